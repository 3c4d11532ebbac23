from __future__ import annotations

import os
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorDestination,
)

from .. import command, layers
from .base import Algorithm, parent_of

_FORMATS = (".gpkg", ".fgb", ".geojson", ".json")


class PolygonsFromMap(Algorithm):
    """`rs-biformer vectorize`."""

    NAME, TITLE = "polygons_from_map", "Polygons from a map"
    HELP = (
        "Turns one class map, or several on one grid, into polygons in the colours of the map. Neighbours share every "
        "point of their border, so the layer has no gaps and no overlaps.\n\n"
        "Smallest patch: smaller ones go to the neighbour with the longest common border; square metres on the ground, "
        "pixels for a map without a georeference.\n\n"
        "Simplify: how far outlines may leave the edges of the pixels, in pixels; 0 keeps every corner.\n\n"
        "Square buildings: outlines of these classes get right angles within the tolerance, in pixels, or in metres "
        "with an m, such as 0.5m. Neighbours get the same borders, so there are still no gaps; what has no right "
        "angles stays as it is, and the log counts it. Classes: names as in the map's legend, with commas between; "
        "without any buildings, houses and roofs.\n\n"
        "In a GeoPackage that exists only the layer of this name is added or replaced; a style that was edited is kept."
    )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        rasters = QgsProcessing.SourceType.TypeRaster
        self.addParameter(QgsProcessingParameterMultipleLayers("MAPS", "Class maps", rasters))
        real = QgsProcessingParameterNumber.Type.Double
        self.addParameter(QgsProcessingParameterNumber("MIN_AREA", "Smallest patch (m²)", real, 0.0, minValue=0.0))
        self.addParameter(QgsProcessingParameterNumber("SIMPLIFY", "Simplify (pixels)", real, 1.0, minValue=0.0))
        confidence = "Confidence of the map, for a mean in each polygon"
        self.addParameter(QgsProcessingParameterRasterLayer("CONFIDENCE", confidence, optional=True))
        self.addParameter(QgsProcessingParameterBoolean("SQUARE", "Square buildings", False))
        classes = "Classes to square (building, house or roof)"
        self.advanced(QgsProcessingParameterString("SQUARE_CLASSES", classes, optional=True))
        reach = "Tolerance of squaring (pixels, or metres: 0.5m)"
        self.advanced(QgsProcessingParameterString("TOLERANCE", reach, "3", optional=True))
        layer = "Layer in the GeoPackage (that of the file's name)"
        self.advanced(QgsProcessingParameterString("LAYER", layer, optional=True))
        polygons = QgsProcessing.SourceType.TypeVectorPolygon
        self.addParameter(QgsProcessingParameterVectorDestination("OUTPUT", "Polygons", polygons))

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Vectorize into the file that was asked for: the command adds to it in one transaction, or makes it whole."""
        maps = self.parameterAsLayerList(parameters, "MAPS", context)
        files = [layers.raster_file(layer, "Class map", feedback) for layer in maps]
        output = self.parameterAsOutputLayer(parameters, "OUTPUT", context)
        if not output.lower().endswith(_FORMATS):
            raise QgsProcessingException(f"{output}: polygons are written to {', '.join(_FORMATS)}")
        confidence = []
        if parameters.get("CONFIDENCE") not in (None, ""):
            layer = self.parameterAsRasterLayer(parameters, "CONFIDENCE", context)
            confidence = [layers.raster_file(layer, "Confidence", feedback)]
        name = self.parameterAsString(parameters, "LAYER", context).strip()
        classes = self.parameterAsString(parameters, "SQUARE_CLASSES", context).split(",")
        square = self.parameterAsBool(parameters, "SQUARE", context)
        arguments = command.vectorize(
            files,
            output,
            layer=name,
            min_area=self.parameterAsDouble(parameters, "MIN_AREA", context),
            simplify=self.parameterAsDouble(parameters, "SIMPLIFY", context),
            confidence=confidence,
            square=[one.strip() for one in classes if one.strip()] if square else None,
            tolerance=self.parameterAsString(parameters, "TOLERANCE", context).replace(" ", ""),
        )
        if not self.call(arguments, feedback, into=[parent_of(output)]):
            return {}
        inside = name or os.path.splitext(os.path.basename(output))[0]
        return {"OUTPUT": f"{output}|layername={inside}" if output.lower().endswith(".gpkg") else output}
