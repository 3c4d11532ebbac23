from __future__ import annotations

import os
import shutil
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterEnum,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFile,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorLayer,
)

from .. import command, layers
from .base import Algorithm, parent_of

_VIEWS = (("One", ""), ("4: mirrored", "flips"), ("8: mirrored and turned", "d4"))
_QUALITIES = (("Balanced", "balanced"), ("Fast", "fast"), ("Best", "best"))
_PIXELS = (
    ("Refuse the raster", ""),
    ("Resample it to the pixels of the training", "rescale"),
    ("Take its pixels as they are", "take"),
)


class MapRaster(Algorithm):
    """`rs-biformer predict` of one raster."""

    NAME, TITLE = "map_raster", "Map a raster"
    HELP = (
        "Maps a raster of any size with a trained model: a class map with its colours and class names, and on request "
        "how sure the model is.\n\n"
        "Taken is the file or address of the raster layer with all of its bands, as they are on disk: how the layer is "
        "drawn, a band choice or no-data values added in QGIS do not count. A layer from a server of pictures (WMS, "
        "XYZ) or in memory must be saved as GeoTIFF first.\n\n"
        "Model: an ONNX file from 'rs-biformer export'; a checkpoint (.ckpt) needs an environment with PyTorch.\n\n"
        "Extent, area: only what lies inside is mapped; the map is as large as the raster, with no data outside.\n\n"
        "A raster that does not fit the model (bands, data type, pixel size) is refused, with what to do.\n\n"
        "Cancelled, nothing stays, unless the unfinished work is kept: then the same run with the same output goes on "
        "from the last finished strip."
    )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        self.addParameter(QgsProcessingParameterRasterLayer("RASTER", "Raster"))
        models = "Models (*.onnx *.ckpt);;All files (*)"
        self.addParameter(QgsProcessingParameterFile("MODEL", "Model", fileFilter=models))
        self.addParameter(QgsProcessingParameterExtent("EXTENT", "Only this extent", optional=True))
        polygons = [QgsProcessing.SourceType.TypeVectorPolygon]
        self.addParameter(
            QgsProcessingParameterVectorLayer("AREA", "Only inside of these polygons", polygons, optional=True)
        )
        views = [text for text, _ in _VIEWS]
        self.advanced(QgsProcessingParameterEnum("VIEWS", "Views to average", views, defaultValue=0))
        qualities = [text for text, _ in _QUALITIES]
        self.advanced(QgsProcessingParameterEnum("QUALITY", "Quality against time", qualities, defaultValue=0))
        share = QgsProcessingParameterNumber.Type.Double
        self.advanced(
            QgsProcessingParameterNumber(
                "OVERLAP",
                "Overlap of windows, as a share (by the quality)",
                share,
                optional=True,
                minValue=0.0,
                maxValue=0.95,
            )
        )
        pixels = [text for text, _ in _PIXELS]
        self.advanced(
            QgsProcessingParameterEnum("PIXELS", "Where pixels are not of the training's size", pixels, defaultValue=0)
        )
        bands = "Bands by number or name, such as 4,1,2 (those of the model)"
        self.advanced(QgsProcessingParameterString("BANDS", bands, optional=True))
        nodata = "No data, where the raster does not tell"
        self.advanced(QgsProcessingParameterString("NODATA", nodata, optional=True))
        keep = "Keep unfinished work when cancelled, and go on with it"
        self.advanced(QgsProcessingParameterBoolean("KEEP", keep, False))
        self.addParameter(QgsProcessingParameterRasterDestination("OUTPUT", "Class map"))
        for score in command.SCORES:
            self.addParameter(
                QgsProcessingParameterRasterDestination(
                    score.upper(), score.capitalize(), optional=True, createByDefault=False
                )
            )

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Map in a hidden folder beside the output, then give the files their names."""
        layer = self.parameterAsRasterLayer(parameters, "RASTER", context)
        raster = layers.raster_file(layer, "Raster", feedback)
        wanted = {"classes": self.parameterAsOutputLayer(parameters, "OUTPUT", context)}
        for score in command.SCORES:
            if path := self.parameterAsOutputLayer(parameters, score.upper(), context):
                wanted[score] = path
        for path in wanted.values():
            if not path.lower().endswith((".tif", ".tiff")):
                raise QgsProcessingException(f"{path}: maps are GeoTIFFs; give a name that ends in .tif")
            parent_of(path)
        keep = self.parameterAsBoolean(parameters, "KEEP", context)
        output = wanted["classes"]
        folder = os.path.join(parent_of(output), f".{os.path.basename(output)}.unfinished")
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder, exist_ok=True)
        done = False
        try:
            arguments = command.predict(
                raster,
                self.parameterAsFile(parameters, "MODEL", context),
                folder,
                scores=[name for name in wanted if name != "classes"],
                area=self._area(parameters, layer, folder, context, feedback),
                quality=_QUALITIES[self.parameterAsEnum(parameters, "QUALITY", context)][1],
                overlap=self._overlap(parameters, context),
                views=_VIEWS[self.parameterAsEnum(parameters, "VIEWS", context)][1],
                bands=self.parameterAsString(parameters, "BANDS", context),
                nodata=self.parameterAsString(parameters, "NODATA", context),
                pixels=_PIXELS[self.parameterAsEnum(parameters, "PIXELS", context)][1],
                restart=not keep,
            )
            called = {}
            for name, path in wanted.items():
                made = os.path.join(folder, f"{command.MAP_NAME}_{name}")
                called.update({f"{made}.tif": path, f"{made}.qml": f"{os.path.splitext(path)[0]}.qml"})
                _lend_style(path, os.path.join(folder, f"{command.MAP_NAME}_{name}.qml"))
            if not self.call(arguments, feedback, into=[] if keep else [folder], quiet=True, called=called):
                return {}
            for name, path in wanted.items():
                _hand_over(os.path.join(folder, f"{command.MAP_NAME}_{name}"), path)
            done = True
        finally:
            if done or not keep:
                shutil.rmtree(folder, ignore_errors=True)
        return {"OUTPUT" if name == "classes" else name.upper(): path for name, path in wanted.items()}

    def _overlap(self, parameters: dict[str, Any], context: QgsProcessingContext) -> float | None:
        """The overlap that was given, if one was."""
        given = parameters.get("OVERLAP") is not None
        return self.parameterAsDouble(parameters, "OVERLAP", context) if given else None

    def _area(
        self,
        parameters: dict[str, Any],
        layer: object,
        folder: str,
        context: QgsProcessingContext,
        feedback: QgsProcessingFeedback,
    ) -> str | None:
        polygons = parameters.get("AREA") not in (None, "")
        if parameters.get("EXTENT") in (None, ""):
            if not polygons:
                return None
            return layers.vector_file(self, parameters, "AREA", context, feedback, whole_file=True)[0]
        if polygons:
            raise QgsProcessingException("an extent and polygons are given; give one of them")
        extent = self.parameterAsExtentGeometry(parameters, "EXTENT", context, layer.crs())
        return layers.write_extent(extent, layer.crs(), os.path.join(folder, "extent.gpkg"))


def _lend_style(path: str, there: str) -> None:
    """A style that somebody edited is kept by the command, which has to see it."""
    style = os.path.splitext(path)[0] + ".qml"
    if os.path.isfile(style):
        shutil.copy(style, there)


def _hand_over(made: str, path: str) -> None:
    """Give a map and what lies beside it the name that was asked for; the map last, as it is what others look for."""
    try:
        style = os.path.splitext(path)[0] + ".qml"
        for source, target in ((f"{made}.qml", style), (f"{made}.tif.aux.xml", f"{path}.aux.xml")):
            if os.path.isfile(source):
                os.replace(source, target)
            elif target.endswith(".aux.xml") and os.path.isfile(target):
                os.remove(target)  # statistics of the raster that had this name
        os.replace(f"{made}.tif", path)
    except OSError as error:
        raise QgsProcessingException(
            f"{path} cannot be replaced ({error.strerror}); remove its layer from the project or choose another output"
        ) from error
