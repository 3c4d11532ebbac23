from __future__ import annotations

import os

from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from .algorithms.map_raster import MapRaster
from .algorithms.measure import MeasureMap
from .algorithms.polygons import PolygonsFromMap
from .algorithms.setup import SetUp
from .algorithms.tile import TileRaster


class RsBiformerProvider(QgsProcessingProvider):
    """The algorithms of rs_biformer in Processing's toolbox."""

    def id(self) -> str:
        return "rs_biformer"

    def name(self) -> str:
        return "rs_biformer"

    def icon(self) -> QIcon:
        return QIcon(os.path.join(os.path.dirname(__file__), "icon.png"))

    def loadAlgorithms(self) -> None:
        for algorithm in (MapRaster, PolygonsFromMap, MeasureMap, TileRaster, SetUp):
            self.addAlgorithm(algorithm())

    def supportedOutputRasterLayerExtensions(self) -> list[str]:
        return ["tif"]

    def supportedOutputVectorLayerExtensions(self) -> list[str]:
        return ["gpkg", "fgb", "geojson"]

    def supportsNonFileBasedOutput(self) -> bool:
        return False
