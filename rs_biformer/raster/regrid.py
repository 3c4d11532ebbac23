"""A raster read on another raster's pixel grid: finer or coarser, shifted, turned, in another CRS, of another extent.

GDAL's warper does the arithmetic, on arrays. A WarpedVRT would be less code, but it knows one mask per raster (nodata
or alpha or a mask band, NaN only when it is the nodata value) where a Source combines them all, and its pixels depend
on GDAL's choice of chunks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.warp import reproject, transform

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window, cover
from rs_biformer.raster.crs import horizontal, names_a_place, same_crs
from rs_biformer.raster.gdal import gdal_env, raster_errors
from rs_biformer.raster.paths import Location
from rs_biformer.raster.source import Grid, Source, grid_difference, is_georeferenced, matrix

CHUNK = 128, 256
"""Rows and columns that are warped at once. Chunks lie on the grid and not on the window that is read: GDAL rounds
coordinates differently in each call, and a pixel must not depend on the window it is read with."""

SOURCE_CHUNK = 1024
"""Rows and columns of source pixels under a chunk, at most: bounds the memory where the grid is much coarser."""

_CRS_TOLERANCE = 0.02  # pixels by which GDAL may be off where it interpolates positions between two CRSs
_PLANE = CRS.from_epsg(3857)  # where a CRS is unknown: the same on both sides, it changes nothing
_LATTICE = 21  # positions along each side of a window that are looked up in the source

Points = NDArray[np.float64]
"""Positions in pixels, (2, N): columns and rows; 0.5, 0.5 is the centre of the first pixel. NaN where there is none."""


@dataclass(frozen=True)
class PixelGrid:
    """Where the pixels of a scene lie, and the file that says so: a `source.Grid`."""

    path: Location
    height: int
    width: int
    crs: CRS | None
    transform: Affine
    gcps: tuple[list[Any], CRS | None] = field(default_factory=lambda: ([], None))
    rpcs: Any = None

    def scaled(self, across: float, down: float) -> "PixelGrid":
        """The grid with pixels `across` times as wide and `down` times as high, and the same upper left corner.

        Height and width are rounded, so that the lower and right edges move by half a new pixel at most.
        """
        height, width = max(1, round(self.height / down)), max(1, round(self.width / across))
        a, b, c, d, e, f = tuple(self.transform)[:6]
        scaled = Affine(a * across, b * down, c, d * across, e * down, f)
        return PixelGrid(self.path, height, width, self.crs, scaled)


class Regridded:
    """A Source resampled to `grid` while it is read.

    Values are interpolated bilinearly. Where the grid is coarser than the raster the kernel grows with the ratio (a
    triangle that reaches one pixel of the grid to each side), so that all source pixels count and nothing is aliased.
    A raster with a colour table is resampled by nearest neighbour: the numbers of colours have no mean.

    A pixel is valid where the source pixel under its centre is. Only valid source pixels have weight, so neither nodata
    nor NaN reaches a neighbour. Integers are rounded, and what is invalid holds 0.

    nearest: take the value of the source pixel under each pixel's centre, as for a colour table.

    Raises RasterError when one of the two has no transform, and when the raster does not overlap the grid.
    """

    def __init__(self, source: Source, grid: Grid, *, nearest: bool = False) -> None:
        self.source, self.grid = source, grid
        self._resampling = Resampling.nearest if nearest or source.palette is not None else Resampling.bilinear
        for one in (grid, source):
            if not is_georeferenced(one.transform) or one.transform.is_degenerate:
                problem = grid_difference(grid, source) or f"{one.path} is to be resampled"
                raise RasterError(f"{problem}; it cannot be done here, as {one.path} has no transform")
        # A raster without a CRS is taken to be in that of the other, as `require_same_grid` does.
        known = names_a_place(grid.crs) and names_a_place(source.crs)
        self._crs: CRS = horizontal(grid.crs) if known else _PLANE
        apart = known and not same_crs(grid.crs, source.crs)
        self._source_crs: CRS = horizontal(source.crs) if apart else self._crs
        if self._source_window(Window(0, 0, grid.height, grid.width), margin=0) is None:
            raise RasterError(
                f"{source.path} does not overlap {grid.path}; give rasters of one area, and check the CRS of both"
            )
        self._step = self._source_step()
        rows, cols = (max(1, int(min(size, SOURCE_CHUNK / step))) for size, step in zip(CHUNK, self._step, strict=True))
        self._chunk = rows, cols

    @property
    def step(self) -> tuple[float, float]:
        """Rows and columns of the source under one pixel of the grid, where the two overlap."""
        return self._step

    def to_source(self, col: float, row: float) -> tuple[float, float] | None:
        """Column and row in the source of a position on the grid; None where the source's CRS does not reach."""
        (x,), (y,) = self._to_source(np.array([[col], [row]], np.float64))
        return None if np.isnan(x + y) else (float(x), float(y))

    def read_valid(self, numbers: Sequence[int], window: Window) -> tuple[list[NDArray[Any]], NDArray[np.bool_]]:
        """The bands of these 1-based numbers over a window of the grid, each (h, w) in its dtype, and which are valid.

        Raises RasterError when the window leaves the grid or a block of the source cannot be read.
        """
        if window.row_stop > self.grid.height or window.col_stop > self.grid.width:
            raise RasterError(f"{self.grid.path} is {self.grid.height} x {self.grid.width} pixels; {window} leaves it")
        shape = window.height, window.width
        pixels: list[NDArray[Any]] = [np.zeros(shape, self.source.dtypes[number - 1]) for number in numbers]
        valid = np.zeros(shape, bool)
        for chunk in cover(window.aligned(*self._chunk, self.grid.height, self.grid.width), *self._chunk):
            warped = self._warp(numbers, chunk)
            common = chunk.intersection(window)
            if warped is None or common is None:
                continue
            place, part = common.within(window), warped[:, *common.within(chunk)]
            valid[place] = known = ~np.isnan(part[0])
            for band, values in zip(pixels, part, strict=True):
                band[place] = _as_dtype(np.where(known, values, 0), band.dtype)
        return pixels, valid

    def _warp(self, numbers: Sequence[int], chunk: Window) -> NDArray[Any] | None:
        """A chunk of the grid (bands, h, w) as floats, NaN where invalid; None where the source does not reach."""
        reach = int(np.ceil(max(1.0, *self._step))) + 2
        under = self._source_window(chunk, margin=reach)
        if under is None:
            return None
        pixels, valid = self.source.read_valid(numbers, under)
        values = np.stack(pixels, dtype=np.result_type(np.float32, *pixels))
        values[:, ~valid] = np.nan
        warped = np.empty((len(numbers), chunk.height, chunk.width), values.dtype)
        down, along = (min(1.0, 1 / step) for step in self._step)
        with gdal_env(), raster_errors(self.source.path, "resampled"):
            reproject(
                values,
                warped,
                src_transform=_moved(self.source.transform, under),
                src_crs=self._source_crs,
                dst_transform=_moved(self.grid.transform, chunk),
                dst_crs=self._crs,
                src_nodata=np.nan,
                dst_nodata=np.nan,
                resampling=self._resampling,
                tolerance=_CRS_TOLERANCE,
                # GDAL would work out the ratio from the shape of each block, a little differently for each.
                XSCALE=along,
                YSCALE=down,
            )
        return warped

    def _source_window(self, window: Window, margin: int) -> Window | None:
        """The part of the source under a window of the grid, with a margin in source pixels; None where there is none.

        The margin also makes up for what curves between the positions that are looked up.
        """
        cols, rows = self._to_source(_lattice(window))
        if np.isnan(cols).all():
            return None
        left, top = (max(0, int(np.floor(np.nanmin(axis))) - margin) for axis in (cols, rows))
        right = min(self.source.width, int(np.ceil(np.nanmax(cols))) + margin)
        bottom = min(self.source.height, int(np.ceil(np.nanmax(rows))) + margin)
        return Window(top, left, bottom - top, right - left) if right > left and bottom > top else None

    def _source_step(self) -> tuple[float, float]:
        """How many rows and columns of the source one pixel of the grid spans, where the two overlap."""
        points = _lattice(Window(0, 0, self.grid.height, self.grid.width))
        here = self._to_source(points)
        along, down = (self._to_source(points + step) - here for step in (np.array([[1], [0]]), np.array([[0], [1]])))
        middle = np.array([[self.source.width / 2], [self.source.height / 2]])
        away = np.where(np.isnan(along + down).any(0), np.inf, np.abs(here - middle).max(0))
        nearest = away.argmin()
        cols, rows = np.hypot(along, down)[:, nearest]
        return float(rows), float(cols)

    def _to_source(self, points: Points) -> Points:
        """Positions on the grid as positions in the source; NaN where the source's CRS does not reach."""
        x, y = _apply(self.grid.transform, points)
        if self._crs != self._source_crs:
            x, y = _project(self._crs, self._source_crs, x, y)
        return np.linalg.solve(
            matrix(self.source.transform)[:2, :2], np.stack([x - self.source.transform.c, y - self.source.transform.f])
        )

    def close(self) -> None:
        """Close the file handles of this process."""
        self.source.close()


def _lattice(window: Window) -> Points:
    """Positions over a window, its edges included."""
    cols = np.linspace(window.col, window.col_stop, _LATTICE)
    rows = np.linspace(window.row, window.row_stop, _LATTICE)
    return np.stack([grid.ravel() for grid in np.meshgrid(cols, rows)])


def _apply(transform: Affine, points: Points) -> Points:
    return (matrix(transform) @ np.vstack([points, np.ones(points.shape[1])]))[:2]


def _project(crs: CRS, other: CRS, x: NDArray[Any], y: NDArray[Any]) -> Points:
    """Coordinates in another CRS; NaN for what lies outside of it, for which rasterio refuses all of them."""
    with gdal_env():
        try:
            return np.array(transform(crs, other, x, y)[:2])
        except CPLE_BaseError:
            return np.hstack([_project_one(crs, other, *point) for point in zip(x, y, strict=True)])


def _project_one(crs: CRS, other: CRS, x: float, y: float) -> Points:
    try:
        return np.array(transform(crs, other, [x], [y])[:2])
    except CPLE_BaseError:
        return np.full((2, 1), np.nan)


def _moved(transform: Affine, window: Window) -> Affine:
    """The transform of a window of a raster with this transform."""
    (x,), (y,) = _apply(transform, np.array([[window.col], [window.row]], np.float64))
    return Affine(transform.a, transform.b, x, transform.d, transform.e, y)


def _as_dtype(band: NDArray[Any], dtype: np.dtype) -> NDArray[Any]:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        band = np.rint(band).clip(limits.min, limits.max)
    return band.astype(dtype, copy=False)
