"""Maps that lie side by side on one grid, read as one raster: a VRT that names them."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from xml.etree.ElementTree import Element, ElementTree, SubElement

import numpy as np
from rasterio.dtypes import _gdal_typename

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.crs import same_crs
from rs_biformer.raster.kinds import require_own_pixels
from rs_biformer.raster.metadata import ScoreScale
from rs_biformer.raster.paths import PathLike, absolute, gdal_name, locate
from rs_biformer.raster.source import MAX_SHIFT, Source, is_georeferenced, matrix
from rs_biformer.raster.vrt import trust


def join_maps(paths: Sequence[PathLike], vrt: Path) -> Path:
    """Write a VRT over maps of one band on one grid, and return its path. Where they overlap, the first one counts.

    Raises RasterError when they have no place, or not the same CRS, pixels, data type and scale of values, or lie
    between the pixels of each other's grid.
    """
    parts = []
    for path in paths:
        with closing(Source(path)) as source:
            parts.append(source)
        if isinstance(source.path, Path):
            require_own_pixels(source.path)  # a VRT opens it with any driver
    first = parts[0]
    windows = [_place(first, part) for part in parts]
    top, left = (min(getattr(window, name) for window in windows) for name in ("row", "col"))
    top, left = top - _FAR, left - _FAR
    bottom, right = max(w.row_stop for w in windows) - _FAR, max(w.col_stop for w in windows) - _FAR
    document = Element("VRTDataset", rasterXSize=str(right - left), rasterYSize=str(bottom - top))
    if first.crs is not None:
        SubElement(document, "SRS").text = first.crs.to_wkt(version="WKT2_2019")
    a, b, _, d, e, _ = tuple(first.transform)[:6]
    x, y, _ = matrix(first.transform) @ (left, top, 1)
    SubElement(document, "GeoTransform").text = ", ".join(map(repr, map(float, (x, a, b, y, d, e))))
    band = SubElement(document, "VRTRasterBand", dataType=_gdal_typename(first.dtypes[0]), band="1")
    nodata = first.nodatavals[0]
    if nodata is not None:
        SubElement(band, "NoDataValue").text = f"{nodata:g}"
    offset, scale = _scale(parts)
    SubElement(band, "Offset").text, SubElement(band, "Scale").text = repr(offset), repr(scale)
    for part, window in reversed(list(zip(parts, windows, strict=True))):  # what comes last lies on top
        element = SubElement(band, "ComplexSource")
        SubElement(element, "SourceFilename", relativeToVRT="0").text = gdal_name(absolute(locate(part.path)))
        SubElement(element, "SourceBand").text = "1"
        size = {"xSize": str(part.width), "ySize": str(part.height)}
        SubElement(element, "SrcRect", {"xOff": "0", "yOff": "0", **size})
        place = {"xOff": str(window.col - _FAR - left), "yOff": str(window.row - _FAR - top)}
        SubElement(element, "DstRect", {**place, **size})
        if part.nodatavals[0] is not None:
            SubElement(element, "NODATA").text = f"{part.nodatavals[0]:g}"
    ElementTree(document).write(vrt, encoding="utf-8")
    trust(vrt)
    return vrt


def _scale(parts: Sequence[Source]) -> tuple[float, float]:
    """Offset and scale of the values, which a VRT does not take from its sources."""
    meant = [ScoreScale(part.path) for part in parts]
    values = [(float(one.offset[0]), float(one.scale[0])) for one in meant]
    for part, value in zip(parts, values, strict=True):
        if value != values[0]:
            raise RasterError(
                f"values of {part.path} mean {value[1]:g} times themselves plus {value[0]:g} and those of "
                f"{parts[0].path} {values[0][1]:g} times plus {values[0][0]:g}; give maps of one kind"
            )
    return values[0]


_FAR = 2**40  # added to rows and columns, which may lie before those of the first map


def _place(first: Source, part: Source) -> Window:
    """Where a map lies on the first one's grid, its rows and columns counted from -_FAR."""
    for one in (first, part):
        if not is_georeferenced(one.transform) or one.transform.is_degenerate:
            raise RasterError(f"{one.path} has no transform; maps that become one layer must say where they lie")
    if part.count != 1 or part.dtypes[0] != first.dtypes[0]:
        raise RasterError(
            f"{part.path} has {part.count} band(s) of {part.dtypes[0]} and {first.path} one of {first.dtypes[0]}; give "
            "maps of one kind"
        )
    known = first.crs is not None and part.crs is not None
    if (first.crs is None) != (part.crs is None) or (known and not same_crs(first.crs, part.crs)):
        raise RasterError(f"{part.path} and {first.path} have different CRSs; vectorize each by itself")
    corners = np.array([(col, row, 1) for col in (0, part.width) for row in (0, part.height)]).T
    here = (np.linalg.inv(matrix(first.transform)) @ matrix(part.transform) @ corners)[:2]
    col, row = np.rint(here[:, 0]).astype(int).tolist()
    shift = float(np.abs(here - corners[:2] - [[col], [row]]).max())
    if shift > MAX_SHIFT:
        raise RasterError(
            f"{part.path} does not lie on the pixels of {first.path}: a corner differs by {shift:.3g} pixels, allowed "
            f"are {MAX_SHIFT}; resample one to the other's grid, or vectorize each by itself"
        )
    return Window(row + _FAR, col + _FAR, part.height, part.width)
