from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputNumber,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorLayer,
)

from .. import command, layers
from .base import parent_of
from .labelled import LabelledAlgorithm


class MeasureMap(LabelledAlgorithm):
    """`rs-biformer evaluate` of one map that exists."""

    NAME, TITLE = "measure_map", "Measure a map"
    HELP = (
        "Compares a class map with a label, a raster or polygons: overall accuracy, IoU and F1 of each class from one "
        "confusion matrix, with intervals, on a page to open in a browser.\n\n"
        "Classes: without a class file, names and colours are those that the map is drawn with. A label raster holds "
        "their numbers, their colours, or what the class file says.\n\n"
        "A labelled pixel that the map leaves out counts as an error; what no polygon covers is not counted. What was "
        "in the training says little about other places: measure on ground that the model has not seen.\n\n"
        "Confidence: for calibration, whether the model is as sure as it is right."
    )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        self.addParameter(QgsProcessingParameterRasterLayer("MAP", "Class map"))
        self.add_label_parameters()
        self.addParameter(QgsProcessingParameterRasterLayer("CONFIDENCE", "Confidence of the map", optional=True))
        polygons = [QgsProcessing.SourceType.TypeVectorPolygon]
        area = "Only inside of these polygons"
        self.addParameter(QgsProcessingParameterVectorLayer("AREA", area, polygons, optional=True))
        protocol = "Protocol, such as isprs-official (all-classes)"
        self.advanced(QgsProcessingParameterString("PROTOCOL", protocol, optional=True))
        self.addParameter(QgsProcessingParameterFileDestination("OUTPUT", "Page of figures", "HTML files (*.html)"))
        self.addParameter(
            QgsProcessingParameterFileDestination(
                "FIGURES", "Figures", "JSON files (*.json)", optional=True, createByDefault=False
            )
        )
        self.addOutput(QgsProcessingOutputNumber("OVERALL_ACCURACY", "Overall accuracy"))
        self.addOutput(QgsProcessingOutputNumber("MEAN_IOU", "Mean IoU"))
        self.addOutput(QgsProcessingOutputNumber("MEAN_F1", "Mean F1"))

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Measure in a temporary folder, so that figures and page appear together or not at all."""
        map_file = layers.raster_file(self.parameterAsRasterLayer(parameters, "MAP", context), "Class map", feedback)
        label = self.label(parameters, context, feedback)
        confidence = None
        if parameters.get("CONFIDENCE") not in (None, ""):
            layer = self.parameterAsRasterLayer(parameters, "CONFIDENCE", context)
            confidence = layers.raster_file(layer, "Confidence", feedback)
        area = None
        if parameters.get("AREA") not in (None, ""):
            area, _ = layers.vector_file(self, parameters, "AREA", context, feedback, whole_file=True)
        wanted = {
            name: path
            for name in ("OUTPUT", "FIGURES")
            if (path := self.parameterAsFileOutput(parameters, name, context))
        }
        for path in wanted.values():
            parent_of(path)
        with tempfile.TemporaryDirectory(prefix="rs_biformer_") as folder:
            made = {"FIGURES": os.path.join(folder, "figures.json"), "OUTPUT": os.path.join(folder, "report.html")}
            arguments = command.evaluate(
                map_file,
                label.path,
                self.classes(parameters, context, feedback, os.path.join(folder, "classes.json")),
                made["FIGURES"],
                field=label.field,
                layer=label.layer,
                report=made["OUTPUT"],
                confidence=confidence,
                area=area,
                protocol=self.parameterAsString(parameters, "PROTOCOL", context),
            )
            if not self.call(arguments, feedback, into=[]):
                return {}
            with open(made["FIGURES"], encoding="utf-8") as file:
                found = command.figures(file.read())
            for name, path in wanted.items():
                _copy(made[name], path)
        return {**wanted, **{name.upper(): value for name, value in found.items()}}

    def drawn_classes(self, parameters: dict[str, Any], context: QgsProcessingContext) -> list[command.ClassEntry]:
        return layers.classes_of_map(self.parameterAsRasterLayer(parameters, "MAP", context))


def _copy(made: str, path: str) -> None:
    """Through a partial name, so that a full disk leaves what was there."""
    partial = f"{path}.partial"
    try:
        shutil.copyfile(made, partial)
        os.replace(partial, path)
    except OSError as error:
        if os.path.exists(partial):
            os.remove(partial)
        raise QgsProcessingException(f"{path} cannot be written: {error.strerror}; choose another output") from error
