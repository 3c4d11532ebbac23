"""What of a QGIS layer a command is given: a file or an address that GDAL opens, never what QGIS makes of it."""

from __future__ import annotations

import os
import shutil

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsGeometry,
    QgsPalettedRasterRenderer,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingUtils,
    QgsProject,
    QgsProviderRegistry,
    QgsRasterLayer,
    QgsVectorFileWriter,
    QgsVectorLayer,
)

from .command import ClassEntry

_COPIED = ["gpkg", "shp", "fgb", "geojson", "json"]
"""Kinds of vector files that are taken as they are, where no filter or selection asks for a copy."""


def raster_file(layer: QgsRasterLayer | None, what: str, feedback: QgsProcessingFeedback) -> str:
    """The file or address of a raster layer, which is said. Raises QgsProcessingException where it has none."""
    if layer is None or not layer.isValid():
        raise QgsProcessingException(f"{what}: the layer cannot be opened; is its file still there?")
    save = "save it as a GeoTIFF first (Export > Save As, raw data) and take that"
    if layer.providerType() != "gdal":
        raise QgsProcessingException(
            f"{what}: {layer.name()} comes from {layer.providerType()} and not from a raster file; {save}"
        )
    source = layer.source()
    parts = QgsProviderRegistry.instance().decodeUri("gdal", source)
    if parts.get("authcfg") or "authcfg=" in source:
        raise QgsProcessingException(f"{what}: {layer.name()} needs a login that only QGIS knows; {save}")
    if "/vsimem/" in source or source.lstrip().startswith("<"):
        raise QgsProcessingException(f"{what}: {layer.name()} is in QGIS's memory alone; {save}")
    if parts.get("openOptions") or "|option:" in source:
        raise QgsProcessingException(f"{what}: {layer.name()} is opened with options of its own; {save}")
    taken = parts.get("path") if "|" in source else source
    feedback.pushInfo(f"{what}: {taken}, all of its bands as they are on disk, however the layer is drawn")
    provider = layer.dataProvider()
    bands = range(1, provider.bandCount() + 1)
    if any(provider.userNoDataValues(band) for band in bands):
        feedback.pushWarning(
            f"{what}: no-data values that were added to {layer.name()} in QGIS do not count; give them as 'No data'"
        )
    return str(taken)


def vector_file(
    algorithm: object,
    parameters: dict,
    name: str,
    context: object,
    feedback: QgsProcessingFeedback,
    *,
    keep: str | None = None,
    whole_file: bool = False,
) -> tuple[str, str]:
    """The file of a vector parameter, and the layer in it ("" for the only one).

    A layer that is filtered, in memory, in a database or of which selected features alone are wanted is copied: to
    `keep` where what is made will point to it, else to a temporary file. whole_file: copy one layer of several, too.
    """
    layer = algorithm.parameterAsVectorLayer(parameters, name, context)
    if layer is not None and layer.isEditable() and layer.isModified():
        feedback.pushWarning(f"{layer.name()} has edits that are not saved; they may not count")
    path, inside = algorithm.parameterAsCompatibleSourceLayerPathAndLayerName(
        parameters, name, context, _COPIED, "gpkg", feedback
    )
    if whole_file and inside and not _is_temporary(path):
        path, inside = algorithm.parameterAsCompatibleSourceLayerPathAndLayerName(
            parameters, name, context, [], "gpkg", feedback
        )
    if not path or not os.path.isfile(path):
        raise QgsProcessingException(f"{name}: the layer has no file and cannot be copied to one; save it first")
    if _is_temporary(path):
        inside = ""
        if keep is not None:
            path = shutil.copy(path, keep)
        feedback.pushInfo(f"{name}: what the layer shows (filter, selection) was copied to {path}")
    else:
        feedback.pushInfo(f"{name}: {path}{f', layer {inside}' if inside else ''}")
    return path, inside


def _is_temporary(path: str) -> bool:
    folder = os.path.realpath(QgsProcessingUtils.tempFolder())
    return os.path.realpath(path).startswith(os.path.join(folder, ""))


def write_extent(geometry: QgsGeometry, crs: QgsCoordinateReferenceSystem, path: str) -> str:
    """An extent as the one polygon of a GeoPackage. Raises QgsProcessingException where it cannot be written."""
    layer = QgsVectorLayer(f"Polygon?crs={crs.authid()}", "extent", "memory")
    if not crs.authid():
        layer.setCrs(crs)
    feature = QgsFeature()
    feature.setGeometry(geometry)
    layer.dataProvider().addFeatures([feature])
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName = "GPKG"
    context = QgsProject.instance().transformContext()
    code, message, *_ = QgsVectorFileWriter.writeAsVectorFormatV3(layer, path, context, options)
    if code != QgsVectorFileWriter.WriterError.NoError:
        raise QgsProcessingException(f"the extent cannot be written to {path}: {message}")
    return path


def classes_of_map(layer: QgsRasterLayer) -> list[ClassEntry]:
    """Names and colours of the classes that a map is drawn with.

    Raises QgsProcessingException where it is not drawn by classes, or they are not numbered 0, 1, 2, ...
    """
    renderer = layer.renderer()
    if not isinstance(renderer, QgsPalettedRasterRenderer):
        raise QgsProcessingException(f"{layer.name()} is not drawn by classes with colours; give a class file")
    classes = sorted(renderer.classes(), key=lambda one: one.value)
    if [int(one.value) for one in classes] != list(range(len(classes))):
        raise QgsProcessingException(
            f"the classes of {layer.name()} are not numbered 0, 1, 2, ... as ours are; give a class file"
        )
    return [(one.label or str(place), _rgb(one.color), None) for place, one in enumerate(classes)]


def classes_of_layer(layer: QgsVectorLayer, field: str) -> tuple[str, list[ClassEntry]]:
    """The attribute by which a layer is drawn in categories, and these with their colours, as classes.

    Raises QgsProcessingException where the layer is not drawn by the wanted attribute.
    """
    renderer = layer.renderer()
    drawn_by = renderer.classAttribute().strip('"') if renderer.type() == "categorizedSymbol" else ""
    if not drawn_by or (field and field != drawn_by):
        wanted = f"by {field}" if field else "by the attribute that holds the class"
        raise QgsProcessingException(f"{layer.name()} is not drawn in categories {wanted}; do so, or give a class file")
    found = []
    for category in renderer.categories():
        value = category.value()
        if isinstance(value, (str, int, float)) and str(value) != "":
            number = int(value) if not isinstance(value, str) and float(value).is_integer() else None
            name = (category.label() or str(value)) if number is not None else str(value)
            found.append((name, _rgb(category.symbol().color()), number))
    numbered = [number is not None for _, _, number in found]
    if not found or any(numbered) != all(numbered):
        raise QgsProcessingException(f"{layer.name()} has categories that are no names or numbers; give a class file")
    return drawn_by, found


def _rgb(colour: object) -> tuple[int, int, int]:
    return colour.red(), colour.green(), colour.blue()
