"""How a class map is drawn and named by other programs: small files beside it.

A GeoTIFF holds the colours of a class map but has no place for the names of classes that GDAL would read. GDAL, and
with it QGIS, takes them from `MAP.tif.aux.xml`; QGIS loads `MAP.qml` with the map and shows its legend.
"""

import logging
import os
import zlib
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement
from xml.sax.saxutils import escape, quoteattr

from rasterio.crs import CRS

from rs_biformer.files import write_text
from rs_biformer.raster.gdal import raster_errors
from rs_biformer.raster.legend import as_text
from rs_biformer.schema import ClassSchema

_LOG = logging.getLogger(__name__)


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
    path = Path(path).with_suffix(".qml")
    _set_aside_other_classes(path, schema)
    if not write_unless_edited(path, _style_of_classes(schema)):
        _LOG.warning("%s was edited and is kept; remove it to have a new one", path)
    return path


@lru_cache(maxsize=8)
def _style_of_classes(schema: ClassSchema) -> str:
    """The document, the same for all maps of thousands of scenes."""
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
    return as_text(document)


RAMP = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
"""How scores from 0 to 1 are drawn: viridis, whose brightness rises evenly."""


def write_score_qml(path: str | os.PathLike[str]) -> Path:
    """Write the QGIS style of a map of scores at `path` beside it: its first band from 0 to 1; the style's path.

    Without one QGIS draws the first three of several probabilities as red, green and blue.

    Raises RasterError when the file cannot be written.
    """
    document = Element("qgis", version="3.28.0", styleCategories="AllStyleCategories", hasScaleBasedVisibilityFlag="0")
    limits = {"classificationMin": "0", "classificationMax": "1"}
    kind = {"type": "singlebandpseudocolor", "band": "1", "opacity": "1", "alphaBand": "-1", "nodataColor": ""}
    renderer = SubElement(SubElement(document, "pipe"), "rasterrenderer", kind | limits)
    SubElement(renderer, "rasterTransparency")
    ramp = {"colorRampType": "INTERPOLATED", "classificationMode": "1", "clip": "0"}
    shader = SubElement(
        SubElement(renderer, "rastershader"), "colorrampshader", ramp | {"minimumValue": "0", "maximumValue": "1"}
    )
    for step, colour in enumerate(RAMP):
        value = f"{step / (len(RAMP) - 1):g}"
        SubElement(shader, "item", value=value, label=value, color=colour, alpha="255")
    path = Path(path).with_suffix(".qml")
    if not write_unless_edited(path, as_text(document)):
        _LOG.warning("%s was edited and is kept; remove it to have a new one", path)
    return path


def write_unless_edited(path: Path, text: str) -> bool:
    """Write a style, unless what is there is not as it was written here last; whether it was written.

    The style of a raster does not take the place of that of polygons which have its name, nor the other way round. A
    checksum at the end of the file tells. Raises RasterError when the file cannot be written.
    """
    with raster_errors(path, "written"):
        if path.exists() and not (_is_untouched(path, text) and _draws_a_raster(path) == (_RASTER in text)):
            return False
        write_text(path, f"{text}<!-- rs_biformer {_checksum(text)} -->\n", sync=False)  # cheap to make again
    return True


def _set_aside_other_classes(path: Path, schema: ClassSchema) -> None:
    """Rename an edited style that does not know all of the classes: it would give the map a wrong legend."""
    with raster_errors(path, "written"):
        if not path.exists() or _is_untouched(path, ""):
            return
        found = path.read_text(encoding="utf-8", errors="replace")
        if not all(escape(name) in found or quoteattr(name) in found for name in schema.classes):
            aside = path.with_suffix(".edited.qml")
            path.replace(aside)
            _LOG.warning("%s was edited for other classes and is now %s", path, aside)


def _is_untouched(path: Path, text: str) -> bool:
    found = path.read_text(encoding="utf-8", errors="replace")
    head, mark, tail = found.rpartition("<!-- rs_biformer ")
    return found == text or bool(mark and tail.strip() == f"{_checksum(head)} -->")


_RASTER = "<rasterrenderer"


def _draws_a_raster(path: Path) -> bool:
    return _RASTER in path.read_text(encoding="utf-8", errors="replace")


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def write_category_names(path: str | os.PathLike[str], schema: ClassSchema) -> Path:
    """Write the class names of the map at `path` to the file beside it where GDAL looks for them; that file's path.

    Raises RasterError when the file cannot be written.
    """
    names = Element("CategoryNames")
    for name in schema.classes:
        SubElement(names, "Category").text = name
    path = _side_file(path)
    with raster_errors(path, "written"):
        document = _dataset(path)
        for band in document.findall("PAMRasterBand[@band='1']"):
            document.remove(band)
        band = SubElement(document, "PAMRasterBand", band="1")
        SubElement(band, "Description").text = "class"
        band.append(names)
        _write(path, document)
    return path


def write_crs(path: str | os.PathLike[str], crs: CRS) -> Path:
    """Write a CRS that a GeoTIFF cannot hold to the file beside it where GDAL looks for one; that file's path.

    Raises RasterError when the file cannot be written.
    """
    path = _side_file(path)
    with raster_errors(path, "written"):
        document = _dataset(path)
        system = Element("SRS", dataAxisToSRSAxisMapping="1,2")
        system.text = crs.to_wkt(version="WKT2_2019")
        document.insert(0, system)
        _write(path, document)
    return path


def _side_file(path: str | os.PathLike[str]) -> Path:
    return Path(path).with_name(f"{Path(path).name}.aux.xml")


def _dataset(path: Path) -> Element:
    """What stands beside a map already, which the writer of the map put there."""
    try:
        return ElementTree.parse(path).getroot()
    except (FileNotFoundError, ElementTree.ParseError):
        return Element("PAMDataset")


def _write(path: Path, document: Element) -> None:
    ElementTree.indent(document)
    # Names are cheap to make again; a CRS is part of the map.
    sync = document.find("SRS") is not None
    write_text(path, ElementTree.tostring(document, encoding="unicode") + "\n", sync=sync)
