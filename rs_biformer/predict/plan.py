"""Which windows are inferred, in which order, in which batches, and which pixels they finish. Integers only: no I/O.

A scene is cut into *lanes* of columns, a lane into *strips* of rows, and a strip has the windows that finish it.
Lanes are worked through from left to right, strips from top to bottom, the windows of a strip column by column;
batches are consecutive windows of one strip. So the plan, and with it every byte of the class map, is a function of the
scene's size and the options alone.

Windows lie on one grid for the whole scene, whatever the lanes. Those that straddle the border of two lanes are
inferred for both, which costs a few windows a strip and keeps memory free of the scene's height and width. Lanes begin
where a window begins, since the fewest windows straddle there.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from rs_biformer.errors import ConfigError
from rs_biformer.geometry import Blend, Window, axis_weights, stride_of, window_starts

WIDEST = 8192
"""Columns of a lane, at most: wide enough that few windows straddle (4 % with windows of 512), and the same on every
machine, so that memory does not follow the width of the scene."""

COMFORTABLE = 8
"""Windows side by side, without overlap, that a lane is at least wide before batches become smaller."""

NARROWEST = 512
"""Columns of a lane, at least, and no fewer than a window's: below, most windows straddle."""

READ_AHEAD = 2
"""Batches that wait for the model while it works on another."""

WRITE_BEHIND = 2
"""Strips that wait for the writer while it compresses another."""

CACHE_ROWS = 1024
"""Rows of the scene that GDAL's cache holds decoded: two rows of its blocks, when these are of 512 pixels."""

LEAST_CACHE = 16 * 2**20
"""Bytes of GDAL's cache, at least."""

WRITER = 32 * 2**20
"""Bytes that writing takes beside GDAL's cache, and what libraries allocate when they are first used."""

PIECE = 64
"""Rows that are read at a time, so that what reading takes beside the pixels it returns stays small."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Strip:
    """Pixels that are finished together, and the windows that finish them.

    lane, index: its place in the plan: strip `index`, counted from the top, of lane `lane`, counted from the left.
    output: the pixels of the scene, within one lane, that no later window reaches.
    windows: column by column, from top to bottom in each. They begin at or below `output.row`; what reaches below the
        strip is carried on to the next.
    """

    lane: int
    index: int
    output: Window
    windows: tuple[Window, ...]

    @property
    def source(self) -> Window:
        """The rectangle of the scene that the windows look at."""
        first, last = self.windows[0], self.windows[-1]
        return Window(first.row, first.col, last.row_stop - first.row, last.col_stop - first.col)


class Run(NamedTuple):
    """Consecutive strips `first` to `stop` of one lane: what one worker does in one go."""

    lane: int
    first: int
    stop: int


@dataclass(frozen=True)
class Blocks:
    """The largest blocks of a scene's rasters: rows and columns, and bytes of one with all the bands of its file."""

    height: int = 1
    width: int = 1
    decoded: int = 0


@dataclass(frozen=True)
class Memory:
    """Bytes that prediction allocates beside the loaded program and the model, by purpose.

    source: rows of the scene in use and read ahead, and the block that is being decoded. batches: windows cut and
    waiting, and the forward pass's input and output (its activations are the model's own and not counted). sums:
    blended probabilities. output: finished layers until they are written. cache: GDAL's decoded blocks. writer: what
    it takes to compress and write.
    """

    source: int
    batches: int
    sums: int
    output: int
    cache: int
    writer: int

    @property
    def total(self) -> int:
        return sum(getattr(self, item.name) for item in fields(self))


@dataclass(frozen=True)
class Plan:
    """How a scene of `height` x `width` pixels is predicted; made by `make_plan`.

    size, stride: of the windows, in pixels.
    columns: the lanes, as (first column, stop).
    rows_together: rows of windows that make a strip; more than one only where a row has fewer windows than a batch.
    read_ahead, write_behind: batches and strips that wait between the stages.
    memory: what one worker takes.
    rule: by which window and overlap were chosen, in words; empty where they were given. passes: how they are made, in
    words, for people alone.
    """

    height: int
    width: int
    size: int
    stride: int
    blend: Blend
    batch_size: int
    columns: tuple[tuple[int, int], ...]
    rows_together: int
    memory: Memory
    read_ahead: int = READ_AHEAD
    write_behind: int = WRITE_BEHIND
    rule: str = ""
    passes: str = ""

    @cached_property
    def _row_starts(self) -> tuple[int, ...]:
        return window_starts(self.height, self.size, self.stride)

    @cached_property
    def _column_starts(self) -> tuple[int, ...]:
        return window_starts(self.width, self.size, self.stride)

    @cached_property
    def _groups(self) -> tuple[tuple[int, ...], ...]:
        """First rows of the windows of each strip."""
        return strip_rows(self._row_starts, self.stride, self.rows_together)

    def _starts_in(self, lane: int) -> tuple[int, ...]:
        """First columns of the windows that touch a lane."""
        first, stop = self.columns[lane]
        return tuple(start for start in self._column_starts if start < stop and start + self.size > first)

    @property
    def reach(self) -> int:
        """Rows from the first pixel of a strip to the last pixel its windows touch, at most."""
        return min(self.height, max(group[-1] - group[0] for group in self._groups) + self.size)

    @property
    def carried(self) -> int:
        """Rows of a strip's windows that lie below the strip, at most."""
        return max((one[-1] + self.size - two[0] for one, two in pairwise(self._groups)), default=0)

    @property
    def strip_count(self) -> int:
        """Strips in each lane."""
        return len(self._groups)

    @property
    def window_count(self) -> int:
        """Windows in all strips: those of the grid, and once more those that straddle the border of two lanes."""
        return len(self._row_starts) * sum(len(self._starts_in(lane)) for lane in range(len(self.columns)))

    def strip(self, lane: int, index: int) -> Strip:
        rows = self._groups[index]
        row_stop = self._groups[index + 1][0] if index + 1 < len(self._groups) else self.height
        left, right = self.columns[lane]
        height, width = min(self.size, self.height), min(self.size, self.width)
        return Strip(
            lane,
            index,
            Window(rows[0], left, row_stop - rows[0], right - left),
            tuple(Window(row, col, height, width) for col in self._starts_in(lane) for row in rows),
        )

    def strips(self, lane: int) -> Iterator[Strip]:
        """The strips of a lane, from top to bottom; their outputs cover it without overlap."""
        return (self.strip(lane, index) for index in range(self.strip_count))

    def runs(self, missing: Iterable[tuple[int, int]], at_most: int | None = None) -> list[Run]:
        """The strips `missing`, each (lane, index), as runs in the plan's order of at most so many strips."""
        found: list[Run] = []
        for lane, index in sorted(missing):
            last = found[-1] if found else None
            if last and last.lane == lane and last.stop == index and last.stop - last.first != at_most:
                found[-1] = last._replace(stop=index + 1)
            else:
                found.append(Run(lane, index, index + 1))
        return found

    def lead_in(self, lane: int, first: int) -> int:
        """The first strip whose windows reach into strip `first`: where work on a run that begins there begins."""
        row = self._groups[first][0]
        return next(index for index, rows in enumerate(self._groups) if index == first or rows[-1] + self.size > row)

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

    def __str__(self) -> str:
        used, strips = self.memory, len(self.columns) * self.strip_count
        parts = ", ".join(f"{_mb(getattr(used, item.name))} {item.name}" for item in fields(used))
        passes = f" in passes of {self.passes}" if self.passes else ""
        inferred = self.window_count * self.size**2 / (self.height * self.width)
        return (
            f"{self.height} x {self.width} pixels in {self.window_count} windows of {self.size} every {self.stride} "
            f"({self.rule}{', ' * bool(self.rule)}a halo of {(self.size - self.stride) // 2}, each pixel inferred "
            f"{inferred:.2f} times): "
            f"{strips} strips in {len(self.columns)} lane{'s' * (len(self.columns) > 1)} of columns, "
            f"batches of {self.batch_size}{passes}, {self.read_ahead} read ahead; at most {_mb(used.total)} MB beside "
            f"the model ({parts})"
        )


def _mb(size: int) -> int:
    return -(-size // 10**6)


def strip_rows(starts: Sequence[int], stride: int, together: int) -> tuple[tuple[int, ...], ...]:
    """First rows of windows, `together` of them to a strip.

    The last one is shifted in where the height asks for it. By itself it would then leave nearly a whole window to be
    carried into its strip, so it joins the strip before.
    """
    groups = [tuple(group) for group in chunks(starts, together)]
    if len(groups) > 1 and len(groups[-1]) == 1 and starts[-1] - starts[-2] < stride:
        groups[-2:] = [groups[-2] + groups[-1]]
    return tuple(groups)


def make_plan(
    height: int,
    width: int,
    *,
    planes: int,
    bands: int,
    itemsize: int,
    window: int = 256,
    overlap: float = 0.5,
    blend: Blend = "hann",
    batch_size: int = 8,
    layer_bytes: int = 1,
    views: int = 1,
    models: int = 1,
    largest_view: int = 0,
    blocks: Blocks = Blocks(),
    max_memory: int = 2 * 10**9,
    rule: str = "",
) -> Plan:
    """Plan the prediction of a scene so that one worker keeps to `max_memory` bytes; see `Memory` for what counts.

    planes: float32 values per pixel that are blended: the classes, and one more for the disagreement of views.
    bands, itemsize: of the scene, and bytes of a band's value. layer_bytes: of all layers that are written, per pixel.
    views, largest_view: test-time views of a window, and the side of the largest where it is larger than the window.
    models: that are averaged. blocks: what is decoded at once where the scene is read. rule: by which window and
    overlap were chosen, for the plan to tell.

    Short of memory, lanes become narrower, then batches smaller and queues shorter.

    Raises ConfigError for options that cannot be meant and for a bound that not even the smallest plan keeps; the
    message gives the smallest workable figure.
    """
    if batch_size < 1:
        raise ConfigError(f"batch size is {batch_size}; it must be 1 or more")
    if height < 1 or width < 1:
        raise ConfigError(f"cannot predict a scene of {height} x {width} pixels; both must be 1 or more")
    stride = stride_of(window, overlap)
    axis_weights(1, 1, 1, blend)  # refuses an unknown blend before anything is opened
    per_row, rows = (len(window_starts(length, window, stride)) for length in (width, height))
    together = min(rows, -(-batch_size // per_row))
    job = _Job(window, stride, planes, bands, itemsize, layer_bytes, views, models, max(window, largest_view), blocks)
    least = 0
    for columns, batch, depth in _candidates(width, window, stride, batch_size):
        memory = job.memory(columns, together, batch, depth)
        if memory.total <= max_memory:
            lanes = tuple((first, min(first + columns, width)) for first in range(0, width, columns))
            return Plan(height, width, window, stride, blend, batch, lanes, together, memory, depth, depth, rule)
        together = 1
        least = memory.total
    told = ""
    if blocks.decoded > max_memory // 4:
        told = (
            f"; of these {_mb(blocks.decoded)} MB are one block of {blocks.height} x {blocks.width} pixels of the "
            "scene, which gdal_translate -of COG writes anew in small ones"
        )
    raise ConfigError(
        f"prediction with windows of {window} and {planes} classes needs at least {_mb(least)} MB beside the model, "
        f"got a bound of {max_memory // 10**6} MB; raise it, or take smaller windows or fewer maps{told}"
    )


def _candidates(width: int, window: int, stride: int, batch_size: int) -> Iterator[tuple[int, int, int]]:
    """(columns of a lane, batch size, queue depth) in the order of preference.

    A narrow lane costs windows that are inferred twice, a small batch hardly anything on a CPU: so batches give way
    before lanes become narrower than is comfortable.
    """
    halvings = [batch_size >> power for power in range(batch_size.bit_length())]
    least = max(window, NARROWEST)
    for narrowest in (max(least, COMFORTABLE * window), least):
        for batch in halvings:
            for columns in _lane_widths(width, narrowest, stride):
                yield columns, batch, READ_AHEAD
    yield _lane_widths(width, least, stride)[-1], 1, 1


def _lane_widths(width: int, narrowest: int, stride: int) -> list[int]:
    """Widths of equal lanes from the widest to `narrowest`, multiples of the stride unless one lane holds all."""
    widest = max(WIDEST, narrowest)
    steps = -(-width // stride)
    counts = range(max(2, -(-width // widest)), max(2, width // narrowest) + 1)
    widths = [-(-steps // count) * stride for count in counts]
    return ([width] if width <= widest else []) + [columns for columns in widths if narrowest <= columns < width]


@dataclass(frozen=True)
class _Job:
    """What the memory of a plan depends on beside its shape; fields as in `make_plan`."""

    size: int
    stride: int
    planes: int
    bands: int
    itemsize: int
    layer_bytes: int
    views: int
    models: int
    largest_view: int
    blocks: Blocks

    def memory(self, columns: int, together: int, batch: int, depth: int) -> Memory:
        """Bytes for lanes of `columns` columns. The scene's height is in none of them.

        A quarter more than what is in use at a time: what the allocator keeps between one use and the next.
        """
        finished = together * self.stride
        reach = self.size + finished  # of a last strip that the row shifted in has joined
        sample = self.bands * self.itemsize + 1  # a pixel of the source and its validity
        span = columns + 2 * (self.size - 1)  # the lane and its halo
        above = -(-(self.size - self.stride) // finished) * finished  # rows read for the strips before
        window_pixels, view_pixels = batch * self.size**2, batch * self.largest_view**2
        # Sum, one view, itself undone, and what that takes; of models their sum, one as it comes and stacked.
        scores = self.planes * ((5 if self.views > 1 else 1) + (3 if self.models > 1 else 0))
        # GDAL keeps whole blocks: a row of them over the lane, or each would be decoded again for every few rows.
        tall = self.blocks.height if self.blocks.height > CACHE_ROWS else 0
        kept = self.bands * self.itemsize * tall * (span + self.blocks.width)
        parts = {
            "source": sample * span * (max(above + 2 * finished, reach) + 2 * PIECE),
            "batches": (depth + 2) * sample * window_pixels
            + 4 * (2 * self.bands + scores) * view_pixels
            + 8 * self.planes * self.size**2,
            "sums": 4 * self.planes * (self.size - self.stride) * columns + 4 * (self.planes + 4) * reach * self.size,
            "output": (depth + 2) * (self.layer_bytes + 1) * finished * columns,
            "writer": WRITER,
        }
        parts = {name: part + part // 4 for name, part in parts.items()}
        parts["source"] += self.blocks.decoded
        return Memory(
            **parts,
            cache=max(LEAST_CACHE, CACHE_ROWS * self.bands * self.itemsize * span, kept),
        )


def chunks(items: Sequence[_Item], size: int) -> list[Sequence[_Item]]:
    """Consecutive runs of `size` items; the last may be shorter."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def ring_pieces(start: int, stop: int, length: int) -> Iterator[tuple[slice, slice]]:
    """Where the positions `start` to `stop` of an axis lie in a ring of `length`.

    Yields one or two pairs (slice of the ring, the same positions counted from `start`). A ring lets what is finished
    leave and the next come without moving what both share.
    """
    if stop - start > length:
        raise ConfigError(f"positions {start} to {stop} do not fit a ring of {length}")
    at = start
    while at < stop:
        place = at % length
        count = min(stop - at, length - place)
        yield slice(place, place + count), slice(at - start, at - start + count)
        at += count
