"""Where a label raster lies on its scene: on the same pixels, on more of them, or elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.crs import names_a_place, same_crs
from rs_biformer.raster.regrid import Regridded
from rs_biformer.raster.source import MAX_SHIFT, Grid, Source, grid_difference, is_georeferenced, matrix


class Reader(Protocol):
    """Bands of a raster over a window of a grid, see `Source.read_valid`."""

    def read_valid(self, numbers: Sequence[int], window: Window) -> tuple[list[NDArray[Any]], NDArray[np.bool_]]: ...


@dataclass(frozen=True)
class _Cut:
    """A raster that covers more than a grid: so many whole pixels further up and to the left."""

    source: Source
    row: int
    col: int

    def read_valid(self, numbers: Sequence[int], window: Window) -> tuple[list[NDArray[Any]], NDArray[np.bool_]]:
        moved = Window(window.row + self.row, window.col + self.col, window.height, window.width)
        return self.source.read_valid(numbers, moved)


def fits(source: Source, grid: Grid, *, regrid: bool) -> bool:
    """Whether `placed` reads a raster on a grid."""
    try:
        placed(source, grid, regrid=regrid)
    except RasterError:
        return False
    return True


def placed(source: Source, grid: Grid, *, regrid: bool) -> Reader:
    """A raster read on a grid: as it is, cut to it where it covers more in whole pixels, or resampled with `regrid`.

    Resampled is by nearest neighbour. Raises RasterError, with how far they lie apart, for what does not fit.
    """
    if grid_difference(grid, source) is None:
        return source
    if not _comparable(grid, source):
        raise RasterError(str(grid_difference(grid, source)))
    corner = _whole_pixels(grid, source)
    if corner is not None:
        row, col = corner
        if 0 <= row <= source.height - grid.height and 0 <= col <= source.width - grid.width:
            return _Cut(source, row, col)
    if regrid:
        return Regridded(source, grid, nearest=True)
    raise RasterError(
        f"{source.path} ({source.height} x {source.width} pixels) does not lie on the pixels of {grid.path} "
        f"({grid.height} x {grid.width}): {apart(grid, source)}; --regrid-labels resamples it by nearest neighbour"
    )


def apart(grid: Grid, source: Grid) -> str:
    """How a raster that is georeferenced lies to a grid that is, in words."""
    if names_a_place(grid.crs) and names_a_place(source.crs) and not same_crs(grid.crs, source.crs):
        return f"its CRS is {_name(source)} and not {_name(grid)}"
    there = _to_pixels(grid, source)
    if np.abs(there[:2, :2] - np.eye(2)).max() * max(grid.height, grid.width) > MAX_SHIFT:
        with np.errstate(all="ignore"):
            scale = 1 / np.linalg.norm(there[:2, :2], axis=0)
        return f"its pixels are {scale[0]:.4g} x {scale[1]:.4g} times as large, or turned"
    col, row = -there[:2, 2]
    off = abs(np.array([col, row]) - np.rint([col, row])).max()
    if off > MAX_SHIFT:
        return f"it lies {col:.3g} columns and {row:.3g} rows off, which is no whole number"
    missing = [
        f"{round(count)} {what}"
        for count, what in (
            (row, "rows at the top"),
            (grid.height - source.height - row, "rows at the bottom"),
            (col, "columns at the left"),
            (grid.width - source.width - col, "columns at the right"),
        )
        if round(count) > 0
    ]
    return f"it lacks {', '.join(missing)}"


def _comparable(grid: Grid, source: Grid) -> bool:
    if not all(is_georeferenced(one.transform) and not one.transform.is_degenerate for one in (grid, source)):
        return False
    with np.errstate(all="ignore"):  # pixels may be of no size beside the others, or of one beyond all numbers
        there = _to_pixels(grid, source)
        return bool(np.isfinite(there).all() and there[:2, :2].any(0).all())


def _to_pixels(grid: Grid, source: Grid) -> NDArray[np.float64]:
    """The matrix that takes pixels of the grid to pixels of the raster."""
    result: NDArray[np.float64] = np.linalg.inv(matrix(source.transform)) @ matrix(grid.transform)
    return result


def _whole_pixels(grid: Grid, source: Grid) -> tuple[int, int] | None:
    """Row and column of the raster at which the grid begins, where they share pixels; None where they do not."""
    if names_a_place(grid.crs) and names_a_place(source.crs) and not same_crs(grid.crs, source.crs):
        return None
    corners = np.array([(col, row, 1) for col in (0, grid.width) for row in (0, grid.height)]).T
    with np.errstate(all="ignore"):
        moved = _to_pixels(grid, source) @ corners - corners
        first = np.rint(moved[:2, 0])
        if not np.abs(moved[:2] - first[:, None]).max() <= MAX_SHIFT:  # not a number, after overflows
            return None
    return int(first[1]), int(first[0])


def _name(grid: Grid) -> str:
    text = grid.crs.to_string() if grid.crs is not None else "unknown"
    return text if len(text) <= 80 else f"{text[:77]}..."
