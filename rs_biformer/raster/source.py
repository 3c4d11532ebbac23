"""One raster file: what it is, its pixels by window, and which of them are valid.

A Scene stacks sources and a LabelRaster decodes one; neither of them meets a file handle.
"""

import os
import re
import threading
from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from math import atan, cos, exp, hypot, isnan, pi, radians, sin, sqrt
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Interleaving, MaskFlags
from rasterio.transform import Affine

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.crs import horizontal, local_metres, names_a_place, same_crs
from rs_biformer.raster.gdal import area, colour_table, gdal_env, open_raster, raster_errors
from rs_biformer.raster.metadata import DATE
from rs_biformer.raster.paths import Location, PathLike, locate
from rs_biformer.raster.unchanged import Watched
from rs_biformer.raster.values import Scaling

MAX_SHIFT = 0.25
"""Pixels by which the corners of two rasters on the same grid may differ: rounding in a header, not half a pixel."""

SQUARE = 1.5
"""How many times the sides of a pixel may differ from the root of its area for it to be taken for a square."""

_FURTHEST = 1e15  # in units of any CRS
_COLOURED = ("uint8", "uint16")  # numbers that a table of colours may have
_ELLIPSOID = re.compile(r'(?:SPHEROID|ELLIPSOID)\["[^"]*", *([\d.eE+]+), *([\d.eE+]+)')
_MERCATOR_EDGE = 4 * pi  # radii; beyond it the pole is less than a metre away
_EARTH = (6_378_137.0, 298.257223563)  # metres, and the inverse of the flattening


class Grid(Protocol):
    """Anything that lies on a pixel grid and can be named in a message."""

    @property
    def path(self) -> Location: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def crs(self) -> CRS | None: ...
    @property
    def transform(self) -> Affine: ...


class Closing:
    """What holds files open until it is closed: a context manager."""

    def close(self) -> None:
        """Let go of them."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Source:
    """A raster file opened for reading, one handle per process and thread, reopened after a fork or unpickling.

    nodata: the value that means no data in bands for which the file says none.

    Facts as rasterio gives them: height, width, count, dtypes, nodatavals, interps (ColorInterp per band),
    descriptions, crs, transform, gcps (points, CRS), rpcs, units; scalings (scale and offset per band, which `read`
    does not apply). `misplaced` tells a georeference that places nothing (pixels of size 0, infinite places, control
    points in a line, coefficients that are no numbers), for which the raster counts as one without. `uncoloured`
    tells a palette that is none: without a table, or of numbers that no table has. `turned` is the EXIF orientation,
    1 where the picture is to be seen as it is stored. `palette` is the colour table of a one-band raster as a lookup
    table (values, 4) uint8 of red, green, blue, alpha, else None. `overviews` are the factors by which the overviews
    of the file are coarser; `at_overview` gives one of them, `overview` is its number. `block` is the rows and
    columns that are decoded at once, `decoded` its bytes, with all bands where these lie pixel by pixel. `files` are
    those that GDAL reads for it (masks, world files, the sources of a VRT), `dated` the text of its TIFFTAG_DATETIME.

    Every read looks whether the file is the one that was opened, `require_unchanged` at its masks and sources as well.

    Raises RasterError when the file is missing, is no raster, or holds complex numbers.
    """

    def __init__(self, path: PathLike, *, nodata: float | None = None) -> None:
        self.path: Location = locate(path)
        self.overview: int | None = None
        self._handles: dict[tuple[int, int], Any] = {}
        self._watched = Watched([self.path])
        with gdal_env():
            handle = self._handle()
            with raster_errors(self.path, "opened"):
                self.height, self.width, self.count = int(handle.height), int(handle.width), int(handle.count)
                self.dtypes: tuple[str, ...] = handle.dtypes
                if any("complex" in dtype for dtype in self.dtypes):  # some of which are no types of numpy's
                    raise RasterError(f"{self.path} holds complex numbers; convert it to amplitude or intensity first")
                self.nodatavals: tuple[float | None, ...] = tuple(
                    nodata if own is None else own for own in handle.nodatavals
                )
                self.declares_nodata = any(own is not None for own in handle.nodatavals)
                self.scalings: tuple[Scaling, ...] = tuple(zip(handle.scales, handle.offsets, strict=True))
                self.units: tuple[str | None, ...] = handle.units
                self.turned = _orientation(handle)
                self.interps: tuple[ColorInterp, ...] = handle.colorinterp
                self.descriptions: tuple[str | None, ...] = handle.descriptions
                self.crs: CRS | None = handle.crs
                self.transform: Affine = handle.transform
                self.gcps: tuple[list[Any], CRS | None] = handle.gcps
                self.rpcs, unreadable = _coefficients(handle)
                apart = places_pixels(self.transform, self.height, self.width)
                self.misplaced = unreadable or not apart or not _places_points(self.gcps[0])
                if not apart:
                    self.transform = Affine.identity()
                if not _places_points(self.gcps[0]):
                    self.gcps = [], None
                self.palette, self.uncoloured = _palette(handle)
                self.overviews: tuple[int, ...] = tuple(handle.overviews(1)) if self.count else ()
                self.block: tuple[int, int] = handle.block_shapes[0] if self.count else (1, 1)
                pixelwise = handle.interleaving == Interleaving.pixel
                together = self.dtypes if pixelwise else self.dtypes[:1]
                self.decoded = self.block[0] * self.block[1] * sum(np.dtype(name).itemsize for name in together)
                flags = handle.mask_flag_enums
                self.files: tuple[str, ...] = tuple(handle.files)
                self.dated: str = handle.tags().get(DATE, "").strip()
                self._beside = Watched(self.files)
        # Bands with a mask of their own (.msk or internal): one for all, read through the first, or one for each. An
        # alpha band also counts as a mask for GDAL but is read by us.
        self._mask_of_all = any(MaskFlags.per_dataset in flag and MaskFlags.alpha not in flag for flag in flags)
        self._masked = frozenset(number for number, flag in enumerate(flags, 1) if not flag)
        if self.count == 0:
            raise RasterError(f"{self.path} holds no bands (a container of several rasters?); give one of its rasters")

    def _handle(self) -> Any:
        key = (os.getpid(), threading.get_ident())
        if key not in self._handles:
            level: dict[str, Any] = {} if self.overview is None else {"overview_level": self.overview}
            self._handles[key] = open_raster(self.path, **level)
        return self._handles[key]

    def at_overview(self, number: int) -> "Source":
        """The raster at an overview, 0 for the finest: smaller, in the same place, and with the same idea of what is
        valid. It has handles of its own to be closed.

        Raises RasterError when it cannot be opened.
        """
        smaller = copy(self)
        smaller.path, smaller._handles = self.path, {}
        smaller.overview, smaller.overviews = number, ()
        with gdal_env(), raster_errors(self.path, "opened"):
            handle = smaller._handle()
            smaller.height, smaller.width = int(handle.height), int(handle.width)
            smaller.block = handle.block_shapes[0]
        if is_georeferenced(self.transform):
            a, b, c, d, e, f = tuple(self.transform)[:6]
            across, down = self.width / smaller.width, self.height / smaller.height
            smaller.transform = Affine(a * across, b * down, c, d * across, e * down, f)
        return smaller

    def close(self) -> None:
        """Close the handles of this process; a later read opens the file again."""
        own = [key for key in self._handles if key[0] == os.getpid()]
        for key in own:
            self._handles.pop(key).close()

    def unmask(self) -> None:
        """From now on every pixel that is a finite number is valid: nodata, masks and transparency are not obeyed."""
        self.nodatavals = (None,) * self.count
        self.interps = tuple(ColorInterp.undefined if i == ColorInterp.alpha else i for i in self.interps)
        self._mask_of_all, self._masked = False, frozenset()
        if self.palette is not None:
            self.palette = np.concatenate([self.palette[:, :3], np.full_like(self.palette[:, 3:], 255)], axis=1)

    def __getstate__(self) -> dict[str, Any]:
        # Whoever unpickles it may work in another folder.
        path = self.path if isinstance(self.path, str) else self.path.absolute()
        return {**self.__dict__, "path": path, "_handles": {}}

    def read(self, numbers: Sequence[int], window: Window) -> list[NDArray[Any]]:
        """The bands of these 1-based numbers over a window, each (h, w) in its own dtype.

        Raises RasterError when the window leaves the raster, a block cannot be decoded, or the file was changed.
        """
        if window.row_stop > self.height or window.col_stop > self.width:
            raise RasterError(
                f"{self.path} is {self.height} x {self.width} pixels; rows {window.row} to {window.row_stop}, "
                f"columns {window.col} to {window.col_stop} leave it"
            )
        with gdal_env(), raster_errors(self.path, "read"):
            handle = self._handle()
            if len({self.dtypes[number - 1] for number in numbers}) == 1:
                found = list(handle.read(list(numbers), window=area(window)))
            else:
                found = [handle.read(number, window=area(window)) for number in numbers]
        self._watched.require_unchanged()
        return found

    def require_unchanged(self) -> None:
        """Raise RasterError where a file that belongs to the raster (a mask, a source of a VRT) was changed."""
        self._watched.require_unchanged()
        self._beside.require_unchanged()

    def valid(self, numbers: Sequence[int], pixels: Sequence[NDArray[Any]], window: Window) -> NDArray[np.bool_]:
        """Which pixels of a window are valid, given the bands that `read(numbers, window)` returned: (h, w).

        A pixel is invalid where the alpha bands that are not among `numbers` are 0, where the internal or external
        mask is 0, where any of the bands is NaN or infinite, where its palette entry is transparent, and where any of
        the bands holds its nodata value: -9999 metres or 65535 in one band is no measurement. Only 0 in bands of 8 bits
        and of floats must be in all of them that have it as nodata: a pixel that is black in one band alone is a dark
        pixel there, where 16-bit imagery keeps 0 for what was not seen.
        """
        valid = self._holds_data(numbers, pixels)
        for number, interp in enumerate(self.interps, 1):
            if interp == ColorInterp.alpha and number not in numbers:
                valid &= self.read([number], window)[0] > 0
        for number in self._masks(numbers):
            with gdal_env(), raster_errors(self.path, "read"):
                valid &= self._handle().read_masks(number, window=area(window)) > 0
        if self.palette is not None and 1 in numbers:
            valid &= self.palette[pixels[list(numbers).index(1)], 3] > 0
        return valid

    def _holds_data(self, numbers: Sequence[int], pixels: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
        """Where no band's value says that there is none, (h, w)."""
        valid = np.ones(pixels[0].shape, bool)
        empty: list[NDArray[np.bool_]] = []
        for number, band in zip(numbers, pixels, strict=True):
            nodata = self.nodatavals[number - 1]
            if band.dtype.kind == "f":
                valid &= np.isfinite(band)
            if nodata is None:
                continue
            hole = _is_nodata(band, nodata)
            dark = nodata == 0 and (band.dtype.kind == "f" or band.dtype.itemsize == 1)
            if dark or band.dtype.itemsize == 1:
                empty.append(hole)
            if not dark:
                valid &= ~hole
        if empty:
            valid &= ~np.logical_and.reduce(empty)
        return valid

    def _masks(self, numbers: Sequence[int]) -> list[int]:
        """The bands whose masks count when the bands `numbers` are read."""
        return [1] if self._mask_of_all else [number for number in numbers if number in self._masked]

    def read_valid(self, numbers: Sequence[int], window: Window) -> tuple[list[NDArray[Any]], NDArray[np.bool_]]:
        """What `read` and `valid` give for these bands over a window."""
        pixels = self.read(numbers, window)
        return pixels, self.valid(numbers, pixels, window)


def _orientation(handle: Any) -> int:
    """The EXIF orientation of a photograph, 1 to 8. GDAL gives the pixels as they are stored."""
    text = str(handle.tags().get("EXIF_Orientation", "1")).strip()
    return int(text) if text in "12345678" and len(text) == 1 else 1


def _palette(handle: Any) -> tuple[NDArray[np.uint8] | None, bool]:
    """The colours of a one-band raster, and whether it should have some and has none that can be looked up.

    TIFF and GDAL know tables for numbers of 8 and 16 bits without a sign; side files say what they like.
    """
    if handle.count != 1 or handle.colorinterp[0] != ColorInterp.palette:
        return None, False
    colours = colour_table(handle)
    if handle.dtypes[0] not in _COLOURED or not colours:
        return None, True
    table = np.zeros((np.iinfo(handle.dtypes[0]).max + 1, 4), np.uint8)
    table[:, 3] = 255
    for value, colour in colours.items():
        if value < len(table):
            table[value] = colour
    return table, False


def _coefficients(handle: Any) -> tuple[Any, bool]:
    """The rational polynomials of a raster, and whether there are some that cannot be read."""
    try:
        return handle.rpcs, False
    except (ValueError, KeyError, TypeError, AttributeError):  # what rasterio meets in their texts
        return None, True


def _places_points(points: Sequence[Any]) -> bool:
    """Whether control points place something: they are finite, and do not lie in a line, on the picture or beside it.

    Fewer than three place nothing in any case, and are no fault.
    """
    if len(points) < 3:
        return True
    pixels = np.array([(point.col, point.row) for point in points], np.float64)
    places = np.array([(point.x, point.y) for point in points], np.float64)
    found = np.concatenate([pixels, places])
    if not (np.isfinite(found).all() and abs(found).max() < _FURTHEST):
        return False
    return all(np.linalg.matrix_rank(part - part.mean(axis=0)) == 2 for part in (pixels, places))


def _is_nodata(band: NDArray[Any], nodata: float) -> NDArray[np.bool_]:
    if np.isnan(nodata):  # NaN pixels are invalid in any case
        return np.zeros(band.shape, bool)
    if band.dtype.kind == "f":
        with np.errstate(over="ignore"):  # a float64 nodata value such as -1.8e308 becomes -inf in a float32 band
            same: NDArray[np.bool_] = band == band.dtype.type(nodata)
            return same
    limits = np.iinfo(band.dtype)
    if not (limits.min <= nodata <= limits.max and float(nodata).is_integer()):
        return np.zeros(band.shape, bool)
    equal: NDArray[np.bool_] = band == band.dtype.type(int(nodata))
    return equal


def places_pixels(transform: Affine, height: int, width: int) -> bool:
    """Whether the pixels of a raster have an area and its corners lie at places whose squares are numbers."""
    a, b, c, d, e, f = tuple(transform)[:6]
    east, north = abs(c) + abs(a) * width + abs(b) * height, abs(f) + abs(d) * width + abs(e) * height
    return bool(east < _FURTHEST and north < _FURTHEST and a * e - b * d)  # false for NaN, too


def is_georeferenced(transform: Affine) -> bool:
    """Whether a transform says where the raster lies; rasterio gives the identity where the file says nothing."""
    return not transform.almost_equals(Affine.identity())


def ground_sample_distance(crs: CRS | None, transform: Affine, height: int, width: int) -> float | None:
    """Metres per pixel on the ground, the root of a pixel's area; None without a CRS and a transform.

    A local CRS counts where it is more than a placeholder and has a unit of length. Degrees are metres at the latitude
    of the centre, on the ellipsoid of the CRS. Mercator projections stretch distances by 1 / cos(latitude), which is
    taken back there; other projections are taken at their word.
    """
    if crs is None or not is_georeferenced(transform):
        return None
    pixel = sqrt(abs(transform.determinant))
    if not names_a_place(crs):
        unit = local_metres(crs)
        return None if unit is None else pixel * unit
    middle = float((matrix(transform) @ (width / 2, height / 2, 1))[1])
    radius, inverse_flattening = _ellipsoid(crs)
    if crs.is_geographic:
        unit = crs.units_factor[1]  # radians
        latitude = middle * unit
        flattening = 1 / inverse_flattening if inverse_flattening else 0.0
        squared = flattening * (2 - flattening)
        # the mean of the curvature along the meridian and across it, by which both sides of a pixel are multiplied
        mean_radius = radius * (1 - flattening) / (1 - squared * sin(latitude) ** 2)
        return pixel * unit * mean_radius * sqrt(cos(latitude)) if abs(latitude) < pi / 2 else None
    metres: float = pixel * crs.linear_units_factor[1]
    projection = _projection(crs)
    if projection.get("proj") in ("merc", "webmerc"):
        true = radians(projection.get("lat_ts", 0.0))
        northing = middle * crs.linear_units_factor[1] / (projection.get("k", 1.0) * cos(true))
        if abs(northing) > _MERCATOR_EDGE * radius:
            return None
        metres *= cos(2 * atan(exp(northing / radius)) - pi / 2) / (projection.get("k", 1.0) * cos(true))
    return metres


def is_oblong(sides: tuple[float, float]) -> bool:
    """Whether a pixel of these sides is too long, or too broad, to be taken for a square of its area."""
    return max(sides) > SQUARE**2 * min(sides)


def pixel_sides(crs: CRS | None, transform: Affine, height: int, width: int) -> tuple[float, float] | None:
    """Width and height of a pixel on the ground in metres, at the scene's centre; None where its area is not known."""
    gsd = ground_sample_distance(crs, transform, height, width)
    down = hypot(transform.b, transform.e)
    across = hypot(transform.a, transform.d)
    if not gsd or crs is None or not down or not across:
        return None
    ratio = across / down
    if crs.is_geographic:
        latitude = float((matrix(transform) @ (width / 2, height / 2, 1))[1]) * crs.units_factor[1]
        ratio *= cos(latitude)
    return gsd * sqrt(ratio), gsd / sqrt(ratio)


@lru_cache(maxsize=64)
def _projection(crs: CRS) -> dict[str, Any]:
    """The parameters of PROJ, which takes milliseconds to spell them: thousands of scenes share a few."""
    found: dict[str, Any] = horizontal(crs).to_dict()
    return found


def _ellipsoid(crs: CRS) -> tuple[float, float]:
    """Semi-major axis in metres and inverse flattening, 0 for a sphere."""
    found = _ELLIPSOID.search(crs.to_wkt())
    return (float(found[1]), float(found[2])) if found else _EARTH


def require_same_grid(one: Grid, other: Grid) -> None:
    """Raise RasterError, naming both files and both values, unless the two lie on the same pixel grid."""
    if difference := grid_difference(one, other):
        raise RasterError(difference)


def grid_difference(one: Grid, other: Grid) -> str | None:
    """How the pixel grids of two rasters differ, with what to do about it; None where they do not.

    Sizes must be equal. CRS and transform are compared where both files have one: the ISPRS ground truth, for
    example, has neither. Transforms agree when no corner moves by more than MAX_SHIFT pixels.
    """
    if (one.height, one.width) != (other.height, other.width):
        return (
            f"{one.path} is {one.height} x {one.width} pixels and {other.path} is {other.height} x {other.width}; "
            "they must have the same size, cut or resample one to the other's grid"
        )
    if names_a_place(one.crs) and names_a_place(other.crs) and not same_crs(one.crs, other.crs):
        return (
            f"{one.path} is in {_crs_name(one.crs)} and {other.path} in {_crs_name(other.crs)}; "
            "they must have the same CRS, reproject one to the other's grid"
        )
    shift = _largest_shift(one, other)
    if shift > MAX_SHIFT:
        return (
            f"{one.path} has the transform {tuple(one.transform)[:6]} and {other.path} {tuple(other.transform)[:6]}: "
            f"a corner differs by {shift:.3g} pixels, allowed are {MAX_SHIFT}; resample one to the other's grid"
        )
    return None


def _largest_shift(one: Grid, other: Grid) -> float:
    """Pixels of `one` by which the corners of the two rasters lie apart; 0 where one of them has no georeference."""
    if not (is_georeferenced(one.transform) and is_georeferenced(other.transform)):
        return 0.0
    if one.transform.is_degenerate:
        return 0.0 if one.transform.almost_equals(other.transform) else float("inf")
    corners = np.array([(col, row, 1) for col in (0, one.width) for row in (0, one.height)]).T
    with np.errstate(all="ignore"):
        moved = np.linalg.inv(matrix(one.transform)) @ matrix(other.transform) @ corners
        shift = float(np.abs(moved - corners).max())
    return float("inf") if isnan(shift) else shift


def matrix(transform: Affine) -> NDArray[np.float64]:
    """A transform as an array (3, 3)."""
    # affine 3 warns at `transform * point`, affine 2 does not know `transform @ point`
    return np.array(tuple(transform), np.float64).reshape(3, 3)


def _crs_name(crs: CRS | None) -> str:
    text = crs.to_string() if crs is not None else "no CRS"
    return text if len(text) <= 80 else f"{text[:77]}..."
