"""The scene as batches: rows of a lane are read ahead in one thread, windows are cut out of them in another.

Shapes: B batch, C bands, S window, h w pixels of a window (S, or the scene's where that is smaller).
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rs_biformer.background import read_ahead
from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window, cover, reflect_pad
from rs_biformer.predict.arrays import Array
from rs_biformer.predict.buffers import buffer
from rs_biformer.predict.plan import PIECE, Plan, Run, Strip, chunks

Stage = Callable[[NDArray[Any]], Array]


def as_they_are(array: NDArray[Any]) -> Array:
    """Arrays of numpy."""
    return array


class Readable(Protocol):
    """What the stages ask of a scene, beyond its size in the plan: `raster.scene.Scene` is one."""

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows of one strip that hold a valid pixel: image (B, C, S, S) as in the raster, valid (B, S, S) bool.

    Both are what `read_run` staged them as.
    """

    strip: Strip
    windows: tuple[Window, ...]
    image: Array
    valid: Array


@dataclass(frozen=True, slots=True)
class Finished:
    """All windows of a strip have been handed out; valid (rows, columns) bool of its output."""

    strip: Strip
    valid: NDArray[np.bool_]


def read_run(source: Readable, plan: Plan, run: Run, staged: Stage = as_they_are) -> Generator[Batch | Finished]:
    """Batches and finished strips of a run in the plan's order. Each pixel is read once.

    staged: what batches are made into before they are handed out, see `Arrays.staged`.

    The run begins with the strips above it whose windows reach into it, as far as they do: their batches are those of
    the plan, so that every pixel of the run is summed as if the whole lane had been worked through.
    """
    top = plan.strip(run.lane, run.first).output.row
    rows = _Rows(plan)
    parts = _read_parts(source, plan, run)
    if plan.window_count > plan.batch_size:
        parts = read_ahead(parts, 1)
    with closing(parts):
        for strip, part in parts:
            rows.add(part, strip.output.row)
            for batch in _batches(strip, rows, plan, staged):
                if any(window.row_stop > top for window in batch.windows):
                    yield batch
            yield Finished(strip, rows.valid(strip.output))


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a lane and its halo as they were read: image (C, rows, columns), valid (rows, columns)."""

    window: Window
    image: NDArray[Any]
    valid: NDArray[np.bool_]


def _read_parts(source: Readable, plan: Plan, run: Run) -> Generator[tuple[Strip, _Part | None]]:
    """Each strip with the rows that the strips before it have not read; None where there are none."""
    done = 0
    for index in range(plan.lead_in(run.lane, run.first), run.stop):
        strip = plan.strip(run.lane, index)
        wanted = strip.source
        first = max(done, wanted.row)
        done = wanted.row_stop
        if first == done:
            yield strip, None
            continue
        yield strip, _read_part(source, Window(first, wanted.col, done - first, wanted.width))


def _read_part(source: Readable, window: Window) -> _Part:
    # In pieces of whole rows: tiles stay in GDAL's cache from one piece to the next, and blocks as wide as the raster
    # are not decoded for each of several columns.
    part: _Part | None = None
    for area in cover(window, PIECE):
        try:
            image, valid = source.read(area)
        except RasterError as error:
            where = f"rows {area.row} to {area.row_stop}, columns {area.col} to {area.col_stop}"
            raise RasterError(f"{error} ({where})") from error
        if area == window:
            return _Part(window, image, valid)
        if part is None:
            shape = (window.height, window.width)
            part = _Part(window, buffer((len(image), *shape), image.dtype), buffer(shape, bool))
        place = area.within(window)
        part.image[:, *place], part.valid[place] = image, valid
    assert part is not None
    return part


class _Rows:
    """The rows in use, in the pieces they were read in: nothing is copied but into batches."""

    def __init__(self, plan: Plan) -> None:
        self._size = plan.size
        self._parts: deque[_Part] = deque()

    def add(self, part: _Part | None, first: int) -> None:
        """Hold a part as well, and let go of those that end above row `first`."""
        while self._parts and self._parts[0].window.row_stop <= first:
            self._parts.popleft()
        if part is not None:
            self._parts.append(part)

    def valid(self, window: Window) -> NDArray[np.bool_]:
        """The validity of a window, (h, w)."""
        pixels = buffer((window.height, window.width), bool)
        self._copy(window, pixels, lambda part: part.valid)
        return pixels

    def any_valid(self, window: Window) -> bool:
        return any(part.valid[place].any() for part, place, _ in self._places(window))

    def batch(self, windows: Sequence[Window]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Windows, (B, C, S, S) and (B, S, S), padded by reflection where the scene is smaller.

        Padding takes the validity of the pixels it mirrors: it is context for the model and never reaches the map.
        """
        first = self._parts[0].image
        image = buffer((len(windows), len(first), self._size, self._size), first.dtype)
        valid = buffer((len(windows), self._size, self._size), bool)
        for number, window in enumerate(windows):
            for whole, get in ((image[number], lambda part: part.image), (valid[number], lambda part: part.valid)):
                inside = whole[..., : window.height, : window.width]
                self._copy(window, inside, get)
                if inside.shape != whole.shape:
                    whole[...] = reflect_pad(inside.copy(), self._size, self._size)
        return image, valid

    def _copy(self, window: Window, target: NDArray[Any], get: Callable[[_Part], NDArray[Any]]) -> None:
        for part, place, rows in self._places(window):
            target[..., rows, :] = get(part)[..., *place]

    def _places(self, window: Window) -> Iterator[tuple[_Part, tuple[slice, slice], slice]]:
        """The parts that a window lies in, where in them, and which of its rows those are."""
        for part in self._parts:
            common = part.window.intersection(window)  # as wide as the window: parts reach over the lane and its halo
            if common is not None:
                yield part, common.within(part.window), common.within(window)[0]


def _batches(strip: Strip, rows: _Rows, plan: Plan, staged: Stage) -> Iterator[Batch]:
    """The windows of a strip in batches; those without a valid pixel are left out."""
    for chosen in chunks([window for window in strip.windows if rows.any_valid(window)], plan.batch_size):
        image, valid = rows.batch(chosen)
        yield Batch(strip, tuple(chosen), staged(image), staged(valid))
