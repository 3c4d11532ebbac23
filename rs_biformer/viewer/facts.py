"""What the page says of whole maps: the area of each class, and the places that are worth a look."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rs_biformer.geometry import Window
from rs_biformer.notebook import percent
from rs_biformer.raster.ground import pixel_areas
from rs_biformer.raster.pyramid import level_grid
from rs_biformer.raster.source import ground_sample_distance
from rs_biformer.viewer.frame import Frame
from rs_biformer.viewer.layers import ClassLayer

_COUNTED = 1 << 24  # pixels that are counted at most
_SIDE = 1024  # pixels of the longer side of what places are looked for in
_CELL = 16  # pixels of a place's side there
_KNOWN = 0.25  # share of a place that must be known
PLACES = 24


class Values(Protocol):
    """A layer that has a number per pixel."""

    def read(self, level: int, window: Window) -> NDArray[np.float64] | None: ...


@dataclass(frozen=True)
class Areas:
    """Of each class its share of the pixels that have one, and square metres, or pixels where their size is not known.

    every: one of so many pixels was counted, 1 where all were.
    """

    shares: list[float]
    sizes: list[float]
    unit: str
    every: int

    def texts(self, number: int) -> list[str]:
        """Share and area of a class in words."""
        size = self.sizes[number]
        area = f"{size:,.0f} pixels" if self.unit == "pixels" else f"{size:,.0f} m²"
        return [percent(self.shares[number]), area if size < 1e4 or self.unit == "pixels" else f"{size / 1e4:,.2f} ha"]

    def describe(self) -> dict[str, Any]:
        """For the page."""
        return {"shares": self.shares, "sizes": self.sizes, "unit": self.unit, "every": self.every}


def areas_of(layer: ClassLayer) -> Areas | None:
    """The area of each class of a layer, counted on its own pixels or an overview of them; None where that must wait.

    Raises RasterError when it cannot be read.
    """
    small = layer.pyramids[0].read_small(_COUNTED)
    if small is None:
        return None
    (source, bands), whole = small, layer.pyramids[0].source
    index = layer.index(bands)
    counts = np.stack([(index == number).sum(axis=1) for number in range(len(layer.schema))])
    every = (whole.height / source.height) * (whole.width / source.width)
    metric = ground_sample_distance(whole.crs, whole.transform, whole.height, whole.width) is not None
    if metric:
        sizes = counts @ pixel_areas(source.crs, source.transform, source.height, source.width)
    else:
        sizes = counts.sum(axis=1) * every
    total = counts.sum()
    shares = (counts.sum(axis=1) / total if total else np.zeros(len(counts))).tolist()
    return Areas(shares, [float(size) for size in sizes], "m2" if metric else "pixels", round(every))


def places_of(layer: Values, frame: Frame, *, low: bool) -> list[dict[str, float]] | None:
    """The places of a layer with the highest means, or the lowest, the first of them first: column and row of the
    middle and the side in pixels of the frame, and the mean. None where that must wait.

    No two of them touch. Raises RasterError when the layer cannot be read.
    """
    level = max(0, math.ceil(math.log2(max(frame.grid.height, frame.grid.width) / _SIDE)))
    grid = level_grid(frame.grid, level)
    values = layer.read(level, Window(0, 0, grid.height, grid.width))
    if values is None:
        return None
    factor = 2**level
    return [
        {
            "col": min((col + 0.5) * _CELL * factor, frame.grid.width - 1),
            "row": min((row + 0.5) * _CELL * factor, frame.grid.height - 1),
            "side": _CELL * factor,
            "mean": round(mean, 4),
        }
        for row, col, mean in outstanding(cell_means(values, _CELL), low=low)
    ]


def cell_means(values: NDArray[np.float64], cell: int) -> NDArray[np.float64]:
    """Means of the known values of each cell x cell square, NaN where less than a quarter of a square is known."""
    rows, cols = (-(-size // cell) for size in values.shape)
    padded = np.full((rows * cell, cols * cell), np.nan)
    padded[: values.shape[0], : values.shape[1]] = values
    squares = padded.reshape(rows, cell, cols, cell).swapaxes(1, 2).reshape(rows, cols, -1)
    known = np.isfinite(squares)
    count = known.sum(axis=-1)
    means = np.full((rows, cols), np.nan)
    np.divide(np.where(known, squares, 0).sum(axis=-1), count, out=means, where=count >= _KNOWN * cell * cell)
    return means


def outstanding(means: NDArray[np.float64], *, low: bool, most: int = PLACES) -> list[tuple[int, int, float]]:
    """Row, column and mean of the cells with the lowest, or highest, means, none beside another that was taken.

    Cells with a highest mean of 0 are none.
    """
    rank = means if low else -means
    found: list[tuple[int, int, float]] = []
    taken = np.isnan(rank)
    for flat in np.argsort(rank, axis=None, kind="stable"):
        row, col = (int(part) for part in np.unravel_index(flat, rank.shape))
        if taken[row, col] or (not low and means[row, col] <= 0):
            continue
        found.append((row, col, float(means[row, col])))
        taken[max(0, row - 1) : row + 2, max(0, col - 1) : col + 2] = True
        if len(found) == most:
            break
    return found
