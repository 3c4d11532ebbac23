"""Which windows are inferred, in which order, in which batches, and which pixels they finish. Integers only: no I/O.

A scene is cut into *blocks* of columns (one, unless memory is short), a block into *strips* of rows, and a strip has
the windows that finish it. Blocks are worked through from left to right, strips from top to bottom, windows row by
row; batches are consecutive windows of one strip. So the plan, and with it every byte of the class map, is a function
of the scene's size and the options alone.

Windows lie on one grid for the whole scene, whatever the blocks. Those that straddle the border of two blocks are
inferred for both, which costs a few windows a strip and keeps memory free of the scene's height and width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rs_biformer.errors import ConfigError
from rs_biformer.geometry import Blend, Window, axis_weights, stride_of, window_starts

COLUMN_STEP = 512
"""Blocks end at multiples of this: the tile size of the maps, so that no tile is written by two blocks."""

READ_AHEAD = 2
"""Batches that wait for the model while it works on another."""

WRITE_BEHIND = 2
"""Strips that wait for the writer while it compresses another."""

DEFAULT_MAX_MEMORY = 2 * 1024**3
"""Bytes. A constant, not a share of the machine, so that the plan is the same on every machine."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Strip:
    """Pixels that are finished together, and the windows that finish them.

    output: the pixels of the scene, within one block, that no later window reaches.
    windows: in row-major order. They begin at or below `output.row`; those that reach beyond the strip leave their
        part of the next strips in the accumulator.
    """

    output: Window
    windows: tuple[Window, ...]

    @property
    def source(self) -> Window:
        """The rectangle of the scene that the windows look at."""
        first, last = self.windows[0], self.windows[-1]
        return Window(first.row, first.col, last.row_stop - first.row, last.col_stop - first.col)


@dataclass(frozen=True)
class Plan:
    """How a scene of `height` x `width` pixels is predicted; made by `make_plan`.

    size, stride: of the windows, in pixels.
    columns: the blocks, as (first column, stop).
    rows_together: rows of windows that make a strip; more than one only where a row has fewer windows than a batch.
    memory: bytes that prediction allocates beside the model and its activations, by `memory_of`.
    """

    height: int
    width: int
    size: int
    stride: int
    blend: Blend
    batch_size: int
    columns: tuple[tuple[int, int], ...]
    rows_together: int
    memory: int

    @property
    def reach(self) -> int:
        """Rows from the first pixel of a strip to the last pixel its windows touch, at most: the accumulator's height.

        It is at most the scene's height.
        """
        return min(self.height, self.size + (self.rows_together - 1) * self.stride)

    @cached_property
    def _row_starts(self) -> tuple[int, ...]:
        return window_starts(self.height, self.size, self.stride)

    @cached_property
    def _column_starts(self) -> tuple[int, ...]:
        return window_starts(self.width, self.size, self.stride)

    def _starts_in(self, block: tuple[int, int]) -> tuple[int, ...]:
        """First columns of the windows that touch a block."""
        return tuple(start for start in self._column_starts if start < block[1] and start + self.size > block[0])

    @property
    def window_count(self) -> int:
        """Windows in all strips: those of the grid, and once more those that straddle the border of two blocks."""
        return len(self._row_starts) * sum(len(self._starts_in(block)) for block in self.columns)

    def strips(self, block: tuple[int, int]) -> Iterator[Strip]:
        """The strips of a block, from top to bottom; their outputs cover it without overlap."""
        height, width = min(self.size, self.height), min(self.size, self.width)
        columns = self._starts_in(block)
        groups = chunks(self._row_starts, self.rows_together)
        stops = [*(group[0] for group in groups[1:]), self.height]
        for group, stop in zip(groups, stops, strict=True):
            yield Strip(
                Window(group[0], block[0], stop - group[0], block[1] - block[0]),
                tuple(Window(row, col, height, width) for row in group for col in columns),
            )

    @cached_property
    def _row_weights(self) -> dict[int, NDArray[np.float32]]:
        weights = axis_weights(self.height, self.size, self.stride, self.blend)
        return dict(zip(self._row_starts, weights, strict=True))

    @cached_property
    def _column_weights(self) -> dict[int, NDArray[np.float32]]:
        weights = axis_weights(self.width, self.size, self.stride, self.blend)
        return dict(zip(self._column_starts, weights, strict=True))

    def weights(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Blend weights of the window's rows and columns; at each pixel their products sum to one over the windows."""
        return self._row_weights[window.row], self._column_weights[window.col]


def make_plan(
    height: int,
    width: int,
    *,
    classes: int,
    bands: int,
    itemsize: int,
    window: int = 256,
    overlap: float = 0.5,
    blend: Blend = "hann",
    batch_size: int = 8,
    layers: int = 1,
    max_memory: int = DEFAULT_MAX_MEMORY,
) -> Plan:
    """Plan the prediction of a scene so that it keeps to `max_memory` bytes.

    classes, bands: of the model. itemsize: bytes of a band's value. layers: uint8 bands that are written (the class
    map, confidence, a probability per class).
    max_memory bounds accumulators, source pixels, batches and queues; the model with its activations and GDAL's block
    cache come on top.

    Raises ConfigError for options that cannot be meant and for a bound that not even the narrowest block keeps; the
    message gives the smallest workable figure.
    """
    if batch_size < 1:
        raise ConfigError(f"batch size is {batch_size}; it must be 1 or more")
    if height < 1 or width < 1:
        raise ConfigError(f"cannot predict a scene of {height} x {width} pixels; both must be 1 or more")
    stride = stride_of(window, overlap)
    axis_weights(1, 1, 1, blend)  # refuses an unknown blend before anything is opened
    per_row = len(window_starts(width, window, stride))
    rows = len(window_starts(height, window, stride))
    together = min(rows, -(-batch_size // per_row))

    def memory(columns: int, together: int) -> int:
        return memory_of(
            columns,
            size=window,
            stride=stride,
            rows_together=together,
            classes=classes,
            bands=bands,
            itemsize=itemsize,
            layers=layers,
            batch_size=batch_size,
        )

    if memory(width, together) > max_memory:
        together = 1
    parts, step = 1, width
    while memory(step, together) > max_memory and step > COLUMN_STEP:
        parts += 1
        step = -(-width // (parts * COLUMN_STEP)) * COLUMN_STEP
    if memory(step, together) > max_memory:
        least = -(-memory(step, together) // 10**6)
        raise ConfigError(
            f"prediction with windows of {window}, {classes} classes and batches of {batch_size} needs at least "
            f"{least} MB beside the model, got a bound of {max_memory // 10**6} MB; raise it or take smaller batches"
        )
    columns = tuple((start, min(start + step, width)) for start in range(0, width, step))
    return Plan(height, width, window, stride, blend, batch_size, columns, together, memory(step, together))


def memory_of(
    columns: int,
    *,
    size: int,
    stride: int,
    rows_together: int,
    classes: int,
    bands: int,
    itemsize: int,
    layers: int,
    batch_size: int,
) -> int:
    """Bytes that predicting a block of `columns` pixel columns takes beside the model and its activations."""
    reach, finished = size + (rows_together - 1) * stride, rows_together * stride
    sample = bands * itemsize + 1  # a pixel of the source and its validity
    source = 2 * sample * reach * (columns + 2 * size)  # the rows in use, and those being put together for the next
    accumulator = 4 * classes * reach * columns
    argmax = (8 + 4) * finished * columns  # index as int64, maximum as float32
    output = (WRITE_BEHIND + 2) * (layers + 1) * finished * columns
    window_pixels = batch_size * size * size
    batches = (READ_AHEAD + 2) * sample * window_pixels
    scores = 4 * (2 * bands + 3 * classes) * window_pixels  # input as float32, logits, probabilities, one temporary
    return source + accumulator + argmax + output + batches + scores


def chunks(items: Sequence[_Item], size: int) -> list[Sequence[_Item]]:
    """Consecutive runs of `size` items; the last may be shorter."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def ring_pieces(start: int, stop: int, length: int) -> Iterator[tuple[slice, slice]]:
    """Where the rows `start` to `stop` of a scene lie in a ring of `length` rows.

    Yields one or two pairs (rows of the ring, the same rows counted from `start`). A ring lets a strip leave and the
    next come without moving the rows that both share.
    """
    if stop - start > length:
        raise ConfigError(f"rows {start} to {stop} do not fit a ring of {length} rows")
    row = start
    while row < stop:
        place = row % length
        count = min(stop - row, length - place)
        yield slice(place, place + count), slice(row - start, row - start + count)
        row += count
