"""A raster at any scale: from its overviews, or from a coarse copy in memory where it has none.

A picture of 256 pixels must not read gigabytes, however large the raster and however far away it is seen. What is
drawn is read from the coarsest of the raster's own resolutions that is fine enough; where that would still be too
much, because the raster has no overviews, the whole of it is read once, in a thread of the caller, into a copy that is
a few thousand pixels wide.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.shutil import delete
from rasterio.transform import Affine

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window, cover
from rs_biformer.raster.gdal import gdal_env, open_raster
from rs_biformer.raster.overviews import halved
from rs_biformer.raster.regrid import PixelGrid, Regridded
from rs_biformer.raster.source import Closing, Source, grid_difference, is_georeferenced

COARSE_SIDE = 4096
"""Pixels along the longer side of a coarse copy, at most; a raster without overviews that is no larger needs none."""

MOST_DECODED = 1 << 23
"""Pixels that are decoded for a picture of PICTURE pixels' side, at most, unless it is of full resolution."""
PICTURE = 256

_PART = 2048  # pixels of a side that are read at once for a coarse copy

Bands = tuple[list[NDArray[Any]], NDArray[np.bool_]]
"""Bands (h, w), each in its own dtype, and which pixels are valid."""


def level_grid(grid: PixelGrid, level: int) -> PixelGrid:
    """The grid with pixels of 2**level x 2**level of its own; what sticks out at the far edges is no data."""
    factor = 2**level
    a, b, c, d, e, f = tuple(grid.transform)[:6]
    placed = is_georeferenced(grid.transform)
    transform = Affine(a * factor, b * factor, c, d * factor, e * factor, f) if placed else grid.transform
    return PixelGrid(grid.path, -(-grid.height // factor), -(-grid.width // factor), grid.crs, transform)


class _Step(NamedTuple):
    """A resolution of a raster: how many rows and columns of the finest one of its pixels spans."""

    source: Source
    numbers: Sequence[int]
    down: float
    along: float


class Pyramid(Closing):
    """Bands of a raster read on a grid, and on those with pixels of 2, 4, 8, ... of its pixels.

    source: the raster; it is closed with the pyramid. numbers: its bands, counted from 1. grid: the finest grid, in any
    CRS; where one of the two has no place, the raster has the grid's size, or 2, 4, ... of its pixels are one of the
    raster's. blend: average what lies under a pixel (images, scores) instead of taking the value under its centre
    (classes).

    `needs_copy` tells that it must be read once (`make_copy`) before all of it can be seen from afar.

    Raises RasterError when the raster does not overlap the grid, or has no place and another size.
    """

    def __init__(self, source: Source, numbers: Sequence[int], grid: PixelGrid, *, blend: bool) -> None:
        self.source, self.numbers, self.grid = source, list(numbers), grid
        self.blend = blend and source.palette is None
        steps = [source, *map(source.at_overview, range(len(source.overviews)))]
        self._steps = [
            _Step(step, self.numbers, source.height / step.height, source.width / step.width)
            for step in sorted(steps, key=lambda step: -step.width)
        ]
        self._across: Regridded | None = None if _covers_same(grid, source) else Regridded(source, grid)
        self._readers: dict[tuple[int, int], Regridded] = {}
        self._copy: _Step | None = None
        self.needs_copy = max(_size(self._steps[-1].source)) > COARSE_SIDE

    @property
    def ready(self) -> bool:
        """Whether all of it can be seen from afar."""
        return not self.needs_copy or self._copy is not None

    @property
    def resampled(self) -> bool:
        """Whether its pixels are not the grid's, nor whole numbers of them."""
        return self._across is not None

    def source_position(self, col: float, row: float) -> tuple[float, float] | None:
        """Column and row in the raster of a position on the grid; None where it does not reach."""
        if self._across is None:
            place = col * self.source.width / self.grid.width, row * self.source.height / self.grid.height
        elif (moved := self._across.to_source(col, row)) is None:
            return None
        else:
            place = moved
        return place if 0 <= place[0] < self.source.width and 0 <= place[1] < self.source.height else None

    def read_at(self, col: float, row: float) -> Bands | None:
        """The pixel (1, 1) under a position on the grid, at full resolution; None where the raster does not reach."""
        place = self.source_position(col, row)
        if place is None:
            return None
        return self.source.read_valid(self.numbers, Window(int(place[1]), int(place[0]), 1, 1))

    def read_valid(self, level: int, window: Window) -> Bands | None:
        """The bands over a window of `level_grid(grid, level)`; None where that waits for the copy.

        Raises RasterError when the window leaves that grid or a block cannot be read.
        """
        step = self._step_for(level)
        if step is None:
            return None
        if self._across is None:
            return self._read_aligned(step, level, window)
        key = level, step.source.width
        if key not in self._readers:
            self._readers[key] = Regridded(step.source, level_grid(self.grid, level), nearest=not self.blend)
        return self._readers[key].read_valid(step.numbers, window)

    def read_small(self, pixels: int) -> tuple[Source, Bands] | None:
        """All of the raster on its own grid: the finest of its resolutions that has no more than `pixels` pixels, and
        its bands; the coarsest if all have more. None where that waits for the copy.
        """
        steps = [*self._steps, *([self._copy] if self._copy else [])]
        step = next((step for step in steps if step.source.height * step.source.width <= pixels), steps[-1])
        if step is not self._copy and max(_size(step.source)) > COARSE_SIDE and self.needs_copy:
            return None
        window = Window(0, 0, *_size(step.source))
        return step.source, step.source.read_valid(step.numbers, window)

    def _step_for(self, level: int) -> _Step | None:
        """The resolution that a level is read from: the coarsest that is as fine, if that is not too much to decode."""
        down, along = self._source_pixels(level)
        as_fine = [step for step in self._steps if max(step.along, step.down) <= max(down, along) * 1.01]
        step = (as_fine or self._steps[:1])[-1]
        ratio = max(down / step.down, along / step.along)
        if not self.needs_copy or ratio <= 1 or _decoded(step.source, ratio) <= MOST_DECODED:
            return step
        return self._copy

    def _source_pixels(self, level: int) -> tuple[float, float]:
        """How many rows and columns of the raster a pixel of a level spans."""
        if self._across is not None:
            return self._across.step[0] * 2**level, self._across.step[1] * 2**level
        down, along = (own / whole for own, whole in zip(_size(self.source), _size(self.grid), strict=True))
        return down * 2**level, along * 2**level

    def _read_aligned(self, step: _Step, level: int, window: Window) -> Bands:
        """A raster of the same extent: whole squares averaged, then the pixels under the centres."""
        rows_each, cols_each = self._source_pixels(level)
        down, along = rows_each / step.down, cols_each / step.along
        halvings = int(math.log2(max(1.0, min(down, along)) * 1.01)) if self.blend else 0
        square = 2**halvings
        height, width = _size(step.source)
        rows, cols = _under(window.row, window.height, down, height), _under(window.col, window.width, along, width)
        top, left = rows[0] // square * square, cols[0] // square * square
        bottom, right = (min(size, (last // square + 1) * square) for size, last in
                         ((height, rows[-1]), (width, cols[-1])))  # fmt: skip
        under = Window(int(top), int(left), int(bottom - top), int(right - left))
        pixels, valid = _reduced(*step.source.read_valid(step.numbers, under), halvings)
        pick = np.ix_((rows - top) // square, (cols - left) // square)
        return [band[pick] for band in pixels], valid[pick]

    def make_copy(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Read the whole raster once and keep it in memory, COARSE_SIDE pixels wide at most. Pixels that are not valid
        are masked in the copy; colours and classes stay what they are.

        Raises RasterError when it cannot be read.
        """
        finest = self._steps[-1]
        source = finest.source
        halvings = math.ceil(math.log2(max(_size(source)) / COARSE_SIDE))
        square = 2**halvings
        shape = -(-source.height // square), -(-source.width // square)
        small = np.zeros((len(self.numbers), *shape), np.result_type(*(source.dtypes[n - 1] for n in self.numbers)))
        known = np.zeros(shape, bool)
        parts = _parts(source, square)
        for done, part in enumerate(parts):
            read = source.read_valid(self.numbers, part)
            pixels, valid = _reduced(*read, halvings) if self.blend else _picked(*read, square)
            place = Window(part.row // square, part.col // square, *valid.shape).slices
            known[place] = valid
            for number, band in enumerate(pixels):
                small[number][place] = band
            progress(done + 1, len(parts))
        copy = _in_memory(source, small, known, square)
        self._copy = _Step(copy, range(1, copy.count + 1), finest.down * square, finest.along * square)

    def close(self) -> None:
        """Close the file handles of this process, and let the copy go."""
        for step in self._steps:
            step.source.close()
        if self._copy is not None:
            self._copy.source.close()
            delete(str(self._copy.source.path))
            self._copy = None


def _size(grid: Any) -> tuple[int, int]:
    return grid.height, grid.width


def _covers_same(grid: PixelGrid, source: Source) -> bool:
    """Whether a raster has the corners of the grid, with pixels of any size.

    Raises RasterError where it has no place and cannot be laid there by its size.
    """
    if not (is_georeferenced(grid.transform) and is_georeferenced(source.transform)):
        down, along = grid.height / source.height, grid.width / source.width
        if down == along and math.log2(down).is_integer():
            return True
        raise RasterError(
            f"{source.path} ({source.height} x {source.width} pixels) cannot be laid on {grid.path}: one of them has "
            "no place on the ground, and their sizes differ; georeference it, or give rasters of one size"
        )
    alike = grid.scaled(grid.width / source.width, grid.height / source.height)
    return grid_difference(alike, source) is None


def _under(first: int, count: int, step: float, size: int) -> NDArray[np.int64]:
    """The pixels of a raster under the centres of `count` coarser ones."""
    centres = (np.arange(first, first + count) + 0.5) * step
    return np.minimum(centres.astype(np.int64), size - 1)


def _decoded(source: Source, ratio: float) -> float:
    """Pixels that are decoded where each of a picture's pixels spans `ratio` of a raster, strips and blocks whole."""
    rows, cols = (min(size, math.ceil(PICTURE * ratio / block + 1) * block) for size, block in
                  zip(_size(source), source.block, strict=True))  # fmt: skip
    return rows * cols


def _reduced(pixels: list[NDArray[Any]], valid: NDArray[np.bool_], halvings: int) -> Bands:
    """Squares of 2**halvings pixels as the mean of valid pixels; valid where half of them are.

    Of larger squares than 4 x 4 the mean is that of 4 x 4 pixels spread over it: all of them would be seen no better.
    """
    if not halvings:
        return pixels, valid
    skip = 2 ** max(0, halvings - 2)
    if skip > 1:
        pixels, valid = _picked(pixels, valid, skip)
        halvings = 2
    reduced = []
    for band in pixels:
        values = band[None]
        if not valid.all():
            values = np.where(valid, band, np.nan).astype(np.float32)[None]
        for _ in range(halvings):
            values = halved(values, "average")
        reduced.append(values[0])
    if valid.all():
        return reduced, np.ones(reduced[0].shape, bool)
    known = np.isfinite(reduced[0])
    return [_as(np.where(known, small, 0), band.dtype) for small, band in zip(reduced, pixels, strict=True)], known


def _as(values: NDArray[Any], dtype: np.dtype) -> NDArray[Any]:
    return (np.rint(values) if dtype.kind in "iu" else values).astype(dtype)


def _picked(pixels: list[NDArray[Any]], valid: NDArray[np.bool_], square: int) -> Bands:
    """The pixel in the middle of each square."""
    rows, cols = (np.minimum(np.arange(0, size, square) + square // 2, size - 1) for size in valid.shape)
    pick = np.ix_(rows, cols)
    return [band[pick] for band in pixels], valid[pick]


def _parts(source: Source, square: int) -> list[Window]:
    """Windows over a raster, of whole squares; whole rows where its blocks are strips, to decode none twice."""
    side = max(square, _PART // square * square)
    if source.block[1] < source.width:
        return list(cover(Window(0, 0, source.height, source.width), side, side))
    rows = max(square, side * side // source.width // square * square)
    return list(cover(Window(0, 0, source.height, source.width), rows, source.width))


def _in_memory(source: Source, pixels: NDArray[Any], valid: NDArray[np.bool_], square: int) -> Source:
    """A raster of these pixels with a mask, each of `square` x `square` pixels of a source."""
    count, height, width = pixels.shape
    name = f"/vsimem/rs_biformer_{uuid4().hex}.tif"
    profile: dict[str, Any] = {"count": count, "height": height, "width": width, "dtype": pixels.dtype, "tiled": True}
    if is_georeferenced(source.transform):
        a, b, c, d, e, f = tuple(source.transform)[:6]
        profile["transform"] = Affine(a * square, b * square, c, d * square, e * square, f)
        profile["crs"] = source.crs
    with gdal_env(), open_raster(name, "w", driver="GTiff", photometric="minisblack", **profile) as sink:
        sink.write(pixels)
        sink.colorinterp = [ColorInterp.undefined] * count
        sink.write_mask(valid)
    return Source(name)
