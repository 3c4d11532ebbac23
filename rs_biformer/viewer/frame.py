"""The grid that everything is drawn on: the map's own pixels, north up, so that nothing is resampled without need."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.transform import Affine
from rasterio.warp import transform as reproject

from rs_biformer.raster.crs import horizontal, names_a_place
from rs_biformer.raster.gdal import gdal_env
from rs_biformer.raster.pyramid import PICTURE
from rs_biformer.raster.regrid import PixelGrid, Regridded
from rs_biformer.raster.source import Source, grid_difference, is_georeferenced, matrix, pixel_sides

_LONLAT = CRS.from_epsg(4326)
_MOST_FINER = 5
_FINER = 1.25  # a layer whose pixels are smaller by less than that adds no detail worth a level


@dataclass(frozen=True)
class Frame:
    """A grid of pixels, the level 0 of the page, and how many levels of half the resolution it takes to see all of it
    in one picture. Without a place on the ground (`placed`) its coordinates are columns and rows.
    """

    grid: PixelGrid

    @property
    def placed(self) -> bool:
        return is_georeferenced(self.grid.transform)

    @property
    def levels(self) -> int:
        """Levels besides 0."""
        return max(0, math.ceil(math.log2(max(self.grid.height, self.grid.width) / PICTURE)))

    def position(self, col: float, row: float) -> tuple[float, float] | None:
        """Coordinates in the CRS of a position in pixels; None without a place."""
        if not self.placed:
            return None
        x, y, _ = (float(part) for part in matrix(self.grid.transform) @ (col, row, 1))
        return x, y

    def lonlat(self, col: float, row: float) -> tuple[float, float] | None:
        """Longitude and latitude in degrees (WGS 84) of a position in pixels; None where the CRS does not tell."""
        place = self.position(col, row)
        if place is None or not names_a_place(self.grid.crs):
            return None
        try:
            with gdal_env():
                (longitude,), (latitude,) = reproject(horizontal(self.grid.crs), _LONLAT, [place[0]], [place[1]])[:2]
        except (CPLE_BaseError, RasterioError):  # another planet, or a place that the CRS does not reach
            return None
        return (longitude, latitude) if math.isfinite(longitude + latitude) else None

    def pixel_metres(self, col: float, row: float) -> tuple[float, float] | None:
        """Width and height on the ground of the pixel at a position; None where its size is not known."""
        place = self.position(col, row)
        if place is None:
            return None
        a, b, _, d, e, _ = tuple(self.grid.transform)[:6]
        return pixel_sides(self.grid.crs, Affine(a, b, place[0] - a / 2, d, e, place[1] - e / 2), 1, 1)


def frame_of(first: Source, others: Sequence[Source] = ()) -> Frame:
    """The frame of a raster, and of others that may be finer.

    It has the pixels of the first raster where that is north up, else upright pixels of the same size around it. A
    raster that has no place takes that of one of the same size. Where others have smaller pixels, those of the frame
    are halved until they show what the others have.
    """
    placed = (one for one in (first, *others) if is_georeferenced(one.transform))
    place = next((one for one in placed if grid_difference(first, one) is None), first)
    if not is_georeferenced(place.transform) or place.transform.is_degenerate:
        return Frame(PixelGrid(first.path, first.height, first.width, None, Affine.identity()))
    crs = next((one.crs for one in (place, *others) if names_a_place(one.crs)), place.crs)
    grid = _upright(PixelGrid(first.path, first.height, first.width, place.crs or crs, place.transform))
    finest = max([1.0, *(_times_finer(one, grid) for one in others)])
    halvings = min(_MOST_FINER, math.ceil(math.log2(finest / _FINER))) if finest > _FINER else 0
    a, b, c, d, e, f = tuple(grid.transform)[:6]
    part = 2**halvings
    finer = Affine(a / part, b / part, c, d / part, e / part, f)
    return Frame(PixelGrid(grid.path, grid.height * part, grid.width * part, grid.crs, finer))


def _times_finer(source: Source, grid: PixelGrid) -> float:
    """How many pixels of a raster, along a side, one of the grid spans."""
    if not is_georeferenced(source.transform) or source.transform.is_degenerate:
        return 1.0
    return max(Regridded(source, grid).step)


def _upright(grid: PixelGrid) -> PixelGrid:
    """The grid itself where its rows run west to east and its columns north to south, else one that does around it."""
    a, b, _, d, e, _ = tuple(grid.transform)[:6]
    if b == d == 0 and a > 0 and e < 0:
        return grid
    corners = np.array([(col, row, 1) for col in (0, grid.width) for row in (0, grid.height)]).T
    x, y, _ = matrix(grid.transform) @ corners
    across, down = math.hypot(a, d), math.hypot(b, e)
    width, height = (max(1, math.ceil(np.ptp(axis) / side - 1e-6)) for axis, side in ((x, across), (y, down)))
    upright = Affine(across, 0, float(x.min()), 0, -down, float(y.max()))
    return PixelGrid(grid.path, height, width, grid.crs, upright)
