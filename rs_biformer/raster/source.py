"""One raster file: what it is, its pixels by window, and which of them are valid.

A Scene stacks sources and a LabelRaster decodes one; neither of them meets a file handle.
"""

import os
import threading
from collections.abc import Sequence
from math import atan, cos, exp, pi, sqrt
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.transform import Affine
from rasterio.windows import Window as RasterioWindow

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.gdal import gdal_env, open_raster, raster_errors

MAX_SHIFT = 0.25
"""Pixels by which the corners of two rasters on the same grid may differ: rounding in a header, not half a pixel."""

_WEB_MERCATOR, _EARTH_RADIUS = 3857, 6_378_137.0


class Grid(Protocol):
    """Anything that lies on a pixel grid and can be named in a message."""

    @property
    def path(self) -> Path: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def crs(self) -> CRS | None: ...
    @property
    def transform(self) -> Affine: ...


class Source:
    """A raster file opened for reading, one handle per process and thread, reopened after a fork or unpickling.

    Facts as rasterio gives them: height, width, count, dtypes, nodatavals, interps (ColorInterp per band),
    descriptions, crs, transform, gcps (points, CRS), rpcs. `palette` is the colour table of a one-band raster as a
    lookup table (values, 4) uint8 of red, green, blue, alpha, else None.

    Raises RasterError when the file is missing, is no raster, or holds complex numbers.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._handles: dict[tuple[int, int], Any] = {}
        with gdal_env():
            handle = self._handle()
            with raster_errors(self.path, "opened"):
                self.height, self.width, self.count = int(handle.height), int(handle.width), int(handle.count)
                self.dtypes: tuple[str, ...] = handle.dtypes
                self.nodatavals: tuple[float | None, ...] = handle.nodatavals
                self.interps: tuple[ColorInterp, ...] = handle.colorinterp
                self.descriptions: tuple[str | None, ...] = handle.descriptions
                self.crs: CRS | None = handle.crs
                self.transform: Affine = handle.transform
                self.gcps: tuple[list[Any], CRS | None] = handle.gcps
                self.rpcs: Any = handle.rpcs
                self.palette = _palette(handle)
                flags = handle.mask_flag_enums[0] if self.count else []
        # A mask band of its own (.msk or internal); an alpha band also counts as a mask for GDAL but is read by us.
        self._has_mask = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
        if self.count == 0:
            raise RasterError(f"{self.path} holds no bands (a container of several rasters?); give one of its rasters")
        if any("complex" in dtype for dtype in self.dtypes):
            raise RasterError(f"{self.path} holds complex numbers; convert it to amplitude or intensity first")

    def _handle(self) -> Any:
        key = (os.getpid(), threading.get_ident())
        if key not in self._handles:
            self._handles[key] = open_raster(self.path)
        return self._handles[key]

    def close(self) -> None:
        """Close the handles of this process; a later read opens the file again."""
        own = [key for key in self._handles if key[0] == os.getpid()]
        for key in own:
            self._handles.pop(key).close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}

    def read(self, numbers: Sequence[int], window: Window) -> list[NDArray]:
        """The bands of these 1-based numbers over a window, each (h, w) in its own dtype.

        Raises RasterError when the window leaves the raster or a block cannot be decoded.
        """
        if window.row_stop > self.height or window.col_stop > self.width:
            raise RasterError(
                f"{self.path} is {self.height} x {self.width} pixels; rows {window.row} to {window.row_stop}, "
                f"columns {window.col} to {window.col_stop} leave it"
            )
        area = RasterioWindow(window.col, window.row, window.width, window.height)
        with gdal_env(), raster_errors(self.path, "read"):
            handle = self._handle()
            if len({self.dtypes[number - 1] for number in numbers}) == 1:
                return list(handle.read(list(numbers), window=area))
            return [handle.read(number, window=area) for number in numbers]

    def valid(self, numbers: Sequence[int], pixels: Sequence[NDArray], window: Window) -> NDArray[np.bool_]:
        """Which pixels of a window are valid, given the bands that `read(numbers, window)` returned: (h, w).

        A pixel is invalid where the alpha bands that are not among `numbers` are 0, where the internal or external
        mask is 0, where any of the bands is NaN or infinite, where its palette entry is transparent, and where all
        of the bands hold their nodata value. All, not any: in 8-bit imagery with nodata 0, a pixel that is black in
        one band alone is a dark pixel.
        """
        valid = np.ones((window.height, window.width), bool)
        empty = valid.copy()
        for number, band in zip(numbers, pixels, strict=True):
            if band.dtype.kind == "f":
                valid &= np.isfinite(band)
            empty &= _is_nodata(band, self.nodatavals[number - 1])
        valid &= ~empty
        for number, interp in enumerate(self.interps, 1):
            if interp == ColorInterp.alpha and number not in numbers:
                valid &= self.read([number], window)[0] > 0
        if self._has_mask:
            area = RasterioWindow(window.col, window.row, window.width, window.height)
            with gdal_env(), raster_errors(self.path, "read"):
                valid &= self._handle().read_masks(1, window=area) > 0
        if self.palette is not None and 1 in numbers:
            valid &= self.palette[pixels[list(numbers).index(1)], 3] > 0
        return valid


def _palette(handle: Any) -> NDArray[np.uint8] | None:
    if handle.count != 1 or handle.colorinterp[0] != ColorInterp.palette:
        return None
    table = np.zeros((np.iinfo(handle.dtypes[0]).max + 1, 4), np.uint8)
    table[:, 3] = 255
    for value, colour in handle.colormap(1).items():
        table[value] = colour
    return table


def _is_nodata(band: NDArray, nodata: float | None) -> NDArray[np.bool_]:
    if nodata is None or np.isnan(nodata):  # NaN pixels are invalid in any case
        return np.zeros(band.shape, bool)
    if band.dtype.kind == "f":
        with np.errstate(over="ignore"):  # a float64 nodata value such as -1.8e308 becomes -inf in a float32 band
            return band == band.dtype.type(nodata)
    limits = np.iinfo(band.dtype)
    if not (limits.min <= nodata <= limits.max and float(nodata).is_integer()):
        return np.zeros(band.shape, bool)
    return band == band.dtype.type(int(nodata))


def is_georeferenced(transform: Affine) -> bool:
    """Whether a transform says where the raster lies; rasterio gives the identity where the file says nothing."""
    return not transform.almost_equals(Affine.identity())


def ground_sample_distance(crs: CRS | None, transform: Affine, height: int, width: int) -> float | None:
    """Metres per pixel, the root of a pixel's area; None without a projected CRS and a transform.

    Web Mercator stretches distances by 1 / cos(latitude); the value is the distance on the ground at the centre.
    """
    if crs is None or not crs.is_projected or not is_georeferenced(transform):
        return None
    metres = sqrt(abs(transform.determinant)) * crs.linear_units_factor[1]
    if crs.to_epsg() == _WEB_MERCATOR:
        northing = (_matrix(transform) @ (width / 2, height / 2, 1))[1]
        metres *= cos(2 * atan(exp(northing / _EARTH_RADIUS)) - pi / 2)
    return metres


def require_same_grid(one: Grid, other: Grid) -> None:
    """Raise RasterError, naming both files and both values, unless the two lie on the same pixel grid.

    Sizes must be equal. CRS and transform are compared where both files have one: the ISPRS ground truth, for
    example, has neither. Transforms agree when no corner moves by more than MAX_SHIFT pixels.
    """
    if (one.height, one.width) != (other.height, other.width):
        raise RasterError(
            f"{one.path} is {one.height} x {one.width} pixels and {other.path} is {other.height} x {other.width}; "
            "they must have the same size, cut or resample one to the other's grid"
        )
    if _names_a_place(one.crs) and _names_a_place(other.crs) and not _same_crs(one.crs, other.crs):
        raise RasterError(
            f"{one.path} is in {_crs_name(one.crs)} and {other.path} in {_crs_name(other.crs)}; "
            "they must have the same CRS, reproject one to the other's grid"
        )
    shift = _largest_shift(one, other)
    if shift > MAX_SHIFT:
        raise RasterError(
            f"{one.path} has the transform {tuple(one.transform)[:6]} and {other.path} {tuple(other.transform)[:6]}: "
            f"a corner differs by {shift:.3g} pixels, allowed are {MAX_SHIFT}; resample one to the other's grid"
        )


def _largest_shift(one: Grid, other: Grid) -> float:
    """Pixels of `one` by which the corners of the two rasters lie apart; 0 where one of them has no georeference."""
    if not (is_georeferenced(one.transform) and is_georeferenced(other.transform)):
        return 0.0
    if one.transform.is_degenerate:
        return 0.0 if one.transform.almost_equals(other.transform) else float("inf")
    corners = np.array([(col, row, 1) for col in (0, one.width) for row in (0, one.height)]).T
    moved = np.linalg.inv(_matrix(one.transform)) @ _matrix(other.transform) @ corners
    return float(np.abs(moved - corners).max())


def _matrix(transform: Affine) -> NDArray[np.float64]:
    # affine 3 warns at `transform * point`, affine 2 does not know `transform @ point`
    return np.array(tuple(transform), np.float64).reshape(3, 3)


def _names_a_place(crs: CRS | None) -> bool:
    """Whether a CRS is more than the placeholder (an "unknown engineering CRS") that some TIFF writers leave."""
    return crs is not None and bool(crs.is_projected or crs.is_geographic)


def _same_crs(one: CRS | None, other: CRS | None) -> bool:
    """Equal, or spelt differently (as WKT, as a code) but known under the same EPSG code."""
    if one == other:
        return True
    assert one is not None and other is not None
    code = one.to_epsg()
    return code is not None and code == other.to_epsg()


def _crs_name(crs: CRS | None) -> str:
    text = crs.to_string() if crs is not None else "no CRS"
    return text if len(text) <= 80 else f"{text[:77]}..."
