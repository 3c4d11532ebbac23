"""A label of either kind, a raster or polygons, and its classes: what measuring and tiling both ask for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingParameterEnum,
    QgsProcessingParameterField,
    QgsProcessingParameterFile,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterVectorLayer,
)

from .. import command, layers
from .base import Algorithm

_CLASSES = ("As the map or the polygons are drawn, or a class file", *command.PRESETS)


@dataclass(frozen=True)
class Label:
    """A label's file, its layer there, and the attribute that holds the class; empty for a raster."""

    path: str
    layer: str = ""
    field: str = ""


class LabelledAlgorithm(Algorithm):
    """An algorithm with a label."""

    def add_label_parameters(self) -> None:
        self.addParameter(QgsProcessingParameterRasterLayer("LABEL_RASTER", "Label raster", optional=True))
        polygons = [QgsProcessing.SourceType.TypeVectorPolygon]
        self.addParameter(
            QgsProcessingParameterVectorLayer("LABEL_POLYGONS", "or label polygons", polygons, optional=True)
        )
        self.addParameter(
            QgsProcessingParameterField(
                "FIELD", "Attribute that holds the class", parentLayerParameterName="LABEL_POLYGONS", optional=True
            )
        )
        self.addParameter(QgsProcessingParameterEnum("CLASSES", "Classes", list(_CLASSES), defaultValue=0))
        files = "Class files (*.yaml *.yml *.json);;All files (*)"
        self.addParameter(QgsProcessingParameterFile("CLASS_FILE", "Class file", fileFilter=files, optional=True))

    def label(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        feedback: QgsProcessingFeedback,
        keep: str | None = None,
    ) -> Label:
        """The one label that is given. Raises QgsProcessingException for none or two."""
        raster, polygons = (parameters.get(name) not in (None, "") for name in ("LABEL_RASTER", "LABEL_POLYGONS"))
        if raster == polygons:
            raise QgsProcessingException(
                f"{'two labels are' if raster else 'no label is'} given; give a label raster or label polygons"
            )
        if raster:
            layer = self.parameterAsRasterLayer(parameters, "LABEL_RASTER", context)
            return Label(layers.raster_file(layer, "Label raster", feedback))
        path, inside = layers.vector_file(self, parameters, "LABEL_POLYGONS", context, feedback, keep=keep)
        return Label(path, inside, self.parameterAsString(parameters, "FIELD", context))

    def classes(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback, out: str
    ) -> str:
        """The preset or file of the classes; where none is given, those of a legend are written to `out`."""
        chosen = self.parameterAsEnum(parameters, "CLASSES", context)
        given = self.parameterAsFile(parameters, "CLASS_FILE", context)
        if chosen and given:
            raise QgsProcessingException(f"{_CLASSES[chosen]} and a class file are given; give one of them")
        if chosen or given:
            return _CLASSES[chosen] if chosen else given
        found = self.drawn_classes(parameters, context)
        feedback.pushInfo("classes, as they are drawn: " + ", ".join(name for name, *_ in found))
        with open(out, "w", encoding="utf-8") as file:
            file.write(command.class_file(os.path.splitext(os.path.basename(out))[0], found))
        return out

    def drawn_classes(self, parameters: dict[str, Any], context: QgsProcessingContext) -> list[command.ClassEntry]:
        """Those that a layer is drawn with."""
        raise NotImplementedError
