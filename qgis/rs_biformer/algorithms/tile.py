from __future__ import annotations

import os
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputVectorLayer,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorLayer,
    QgsVectorLayer,
)

from .. import command, layers
from .labelled import LabelledAlgorithm

_COPIES = ("tiled_labels", "tiled_area", "tiled_classes")


class TileRaster(LabelledAlgorithm):
    """`rs-biformer tile` of one raster."""

    NAME, TITLE = "tile_raster", "Tile a raster with labels"
    HELP = (
        "Cuts a labelled raster into windows to train with. Nothing is copied: the folder holds an index, which "
        "'rs-biformer train' reads, and tiles.gpkg, a layer of the windows in the colours of their split.\n\n"
        "Label: a raster of class numbers or colours, or polygons with an attribute that holds the class. What no "
        "polygon covers is not learned. Filtered layers, and those in memory or a database, are copied there.\n\n"
        "Classes: without a class file, those that the polygons are drawn with (in categories).\n\n"
        "Split: 'train' for all, or blocks:0.7,0.15,0.15 for spatial blocks that train, validate and test, a buffer "
        "apart."
    )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        self.addParameter(QgsProcessingParameterRasterLayer("RASTER", "Raster"))
        self.add_label_parameters()
        polygons = [QgsProcessing.SourceType.TypeVectorPolygon]
        area = "Only inside of these polygons"
        self.addParameter(QgsProcessingParameterVectorLayer("AREA", area, polygons, optional=True))
        whole, real = QgsProcessingParameterNumber.Type.Integer, QgsProcessingParameterNumber.Type.Double
        self.addParameter(QgsProcessingParameterNumber("WINDOW", "Window (pixels)", whole, 256, minValue=1))
        self.addParameter(
            QgsProcessingParameterNumber("OVERLAP", "Overlap, as a share", real, 0.5, minValue=0.0, maxValue=0.95)
        )
        self.addParameter(QgsProcessingParameterString("SPLIT", "Split", "blocks:0.7,0.15,0.15"))
        nodata = "No data, where the raster does not tell"
        self.advanced(QgsProcessingParameterString("NODATA", nodata, optional=True))
        self.addParameter(QgsProcessingParameterFolderDestination("OUTPUT", "Folder of the index"))
        self.addOutput(QgsProcessingOutputVectorLayer("TILES", "Windows"))

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Tile; what had to be copied for it, and a folder that was made for it, go again where it fails."""
        raster = layers.raster_file(self.parameterAsRasterLayer(parameters, "RASTER", context), "Raster", feedback)
        out = self.parameterAsString(parameters, "OUTPUT", context)
        existed = os.path.isdir(out)
        before = set(os.listdir(out)) if existed else set()
        done = False
        try:
            os.makedirs(out, exist_ok=True)
            label = self.label(parameters, context, feedback, keep=_free(out, "tiled_labels.gpkg"))
            area = None
            if parameters.get("AREA") not in (None, ""):
                area, _ = layers.vector_file(
                    self, parameters, "AREA", context, feedback, keep=_free(out, "tiled_area.gpkg"), whole_file=True
                )
            classes = self.classes(parameters, context, feedback, _free(out, "tiled_classes.json"))
            arguments = command.tile(
                raster,
                label.path,
                classes,
                out,
                field=label.field or self._drawn_by(parameters, context, classes, out),
                layer=label.layer,
                window=self.parameterAsInt(parameters, "WINDOW", context),
                overlap=self.parameterAsDouble(parameters, "OVERLAP", context),
                split=self.parameterAsString(parameters, "SPLIT", context),
                area=area,
                nodata=self.parameterAsString(parameters, "NODATA", context),
            )
            done = self.call(arguments, feedback, into=[out])
        except OSError as error:
            raise QgsProcessingException(f"{out} cannot be written: {error.strerror}; choose another folder") from error
        finally:
            if not done:
                _remove_new(out, before, existed)
        return {"OUTPUT": out, **_load_tiles(out, context)} if done else {}

    def drawn_classes(self, parameters: dict[str, Any], context: QgsProcessingContext) -> list[command.ClassEntry]:
        layer = self.parameterAsVectorLayer(parameters, "LABEL_POLYGONS", context)
        if layer is None:
            raise QgsProcessingException("a label raster says nothing of its classes; give a class file")
        return layers.classes_of_layer(layer, self.parameterAsString(parameters, "FIELD", context))[1]

    def _drawn_by(self, parameters: dict[str, Any], context: QgsProcessingContext, classes: str, out: str) -> str:
        """The attribute by which the polygons are drawn, where that gave the classes."""
        if not os.path.dirname(classes) == out or parameters.get("LABEL_POLYGONS") in (None, ""):
            return ""
        layer = self.parameterAsVectorLayer(parameters, "LABEL_POLYGONS", context)
        return layers.classes_of_layer(layer, "")[0]


def _free(folder: str, name: str) -> str:
    """A path in the folder that nothing has: an index that is there may point to what an earlier run copied."""
    stem, suffix = os.path.splitext(name)
    tried = (f"{stem}{f'_{number}' if number else ''}{suffix}" for number in range(10_000))
    return next(path for path in (os.path.join(folder, one) for one in tried) if not os.path.exists(path))


def _remove_new(out: str, before: set[str], existed: bool) -> None:
    if not os.path.isdir(out):
        return
    for name in set(os.listdir(out)) - before:
        if name.startswith(_COPIES):
            os.remove(os.path.join(out, name))
    if not existed and not os.listdir(out):
        os.rmdir(out)


def _load_tiles(out: str, context: QgsProcessingContext) -> dict[str, str]:
    """The layer of windows, to be added to the project with its style when all is done."""
    path = os.path.join(out, "tiles.gpkg")
    if not os.path.isfile(path):  # too many windows, or none with a place; the command has said so
        return {}
    layer = QgsVectorLayer(f"{path}|layername=tiles", "tiles", "ogr")
    context.temporaryLayerStore().addMapLayer(layer)
    if context.project() is not None:
        details = QgsProcessingContext.LayerDetails("tiles", context.project(), "TILES")
        context.addLayerToLoadOnCompletion(layer.id(), details)
    return {"TILES": layer.id()}
