"""How a class map is drawn and named by other programs: small files beside it.

A GeoTIFF holds the colours of a class map but has no place for the names of classes that GDAL would read. GDAL, and
with it QGIS, takes them from `MAP.tif.aux.xml`; QGIS loads `MAP.qml` with the map and shows its legend.
"""

import os
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from rs_biformer.files import write_text
from rs_biformer.raster.gdal import raster_errors
from rs_biformer.schema import ClassSchema


def write_style(path: str | os.PathLike[str], schema: ClassSchema) -> tuple[Path, Path]:
    """Write the style and the class names of the map at `path` beside it; the paths of both files.

    Raises RasterError when a file cannot be written.
    """
    return write_qml(path, schema), write_category_names(path, schema)


def write_qml(path: str | os.PathLike[str], schema: ClassSchema) -> Path:
    """Write the QGIS style of the class map at `path` beside it, as QGIS 3 saves one; the style's path.

    Values that are no class, nodata among them, have no entry and are transparent in QGIS. Resampling is by nearest
    neighbour, since between two classes there is no third.

    Raises RasterError when the file cannot be written.
    """
    document = Element("qgis", version="3.28.0", styleCategories="AllStyleCategories", hasScaleBasedVisibilityFlag="0")
    pipe = SubElement(document, "pipe")
    SubElement(
        SubElement(pipe, "provider"),
        "resampling",
        enabled="false",
        zoomedInResamplingMethod="nearestNeighbour",
        zoomedOutResamplingMethod="nearestNeighbour",
        maxOversampling="2",
    )
    renderer = SubElement(
        pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1", nodataColor=""
    )
    SubElement(renderer, "rasterTransparency")
    palette = SubElement(renderer, "colorPalette")
    for index, (name, (red, green, blue)) in enumerate(zip(schema.classes, schema.colours, strict=True)):
        colour = f"#{red:02x}{green:02x}{blue:02x}"
        SubElement(palette, "paletteEntry", value=str(index), color=colour, label=name, alpha="255")
    SubElement(pipe, "brightnesscontrast", brightness="0", contrast="0", gamma="1")
    SubElement(pipe, "huesaturation", saturation="0", grayscaleMode="0", colorizeOn="0")
    SubElement(pipe, "rasterresampler", maxOversampling="2")
    SubElement(pipe, "resamplingStage").text = "resamplingFilter"
    SubElement(document, "blendMode").text = "0"
    return _write(
        Path(path).with_suffix(".qml"), document, "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
    )


def write_category_names(path: str | os.PathLike[str], schema: ClassSchema) -> Path:
    """Write the class names of the map at `path` to the file beside it where GDAL looks for them; that file's path.

    Raises RasterError when the file cannot be written.
    """
    document = Element("PAMDataset")
    names = SubElement(SubElement(document, "PAMRasterBand", band="1"), "CategoryNames")
    for name in schema.classes:
        SubElement(names, "Category").text = name
    path = Path(path)
    return _write(path.with_name(f"{path.name}.aux.xml"), document)


def _write(path: Path, document: Element, head: str = "") -> Path:
    ElementTree.indent(document)
    with raster_errors(path, "written"):
        write_text(path, head + ElementTree.tostring(document, encoding="unicode") + "\n")
    return path
