"""Slabs of a class map as independent shares: read, their patches found, their lines traced and simplified.

A slab is traced with the row above it, so what comes of it depends on the map alone, and not on who did the slabs
before. What spans slabs is put together by the caller (patches.py, vector.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rs_biformer.errors import RasterError
from rs_biformer.files import temporary_folder
from rs_biformer.geometry import Window, cover
from rs_biformer.raster import vrt
from rs_biformer.raster.metadata import ScoreScale
from rs_biformer.raster.mosaic import join_maps
from rs_biformer.raster.outlines import Lines, beside, trace
from rs_biformer.raster.patches import Patches, find_patches, sum_by
from rs_biformer.raster.paths import Location, PathLike, absolute, locate
from rs_biformer.raster.simplify import points_kept
from rs_biformer.raster.source import Source
from rs_biformer.schema import IGNORE

_SLAB_BORDERS = 2**20
"""Pixel edges between classes in a slab: memory grows with them, and a map of noise has two per pixel."""

_SHARE_PIXELS = 2**23
"""Of the slabs of a share: blocks of the file that two slabs reach into are decoded once."""


@dataclass(frozen=True)
class Joined:
    """Rasters on one grid that are read as one, wherever: their paths, and the text of the VRT that joins several."""

    paths: tuple[Location, ...]
    document: bytes = b""

    @classmethod
    def of(cls, paths: Sequence[PathLike]) -> "Joined":
        """Raises RasterError where several are not on one grid, see `mosaic.join_maps`."""
        whole = tuple(locate(absolute(locate(path))) for path in paths)
        if len(whole) == 1:
            return cls(whole)
        with temporary_folder() as folder, vrt.trusted(path := folder / "joined.vrt"):
            return cls(whole, join_maps(whole, path).read_bytes())

    @contextmanager
    def opened(self) -> Iterator[Source]:
        """The raster, open."""
        with ExitStack() as stack:
            path = self.paths[0]
            if self.document:
                path = stack.enter_context(temporary_folder()) / "joined.vrt"
                path.write_bytes(self.document)
                stack.enter_context(vrt.trusted(path))
            yield stack.enter_context(closing(Source(path)))


class Scores:
    """A raster of one number per pixel, in the scale that the file declares."""

    def __init__(self, source: Source) -> None:
        if source.count != 1:
            raise RasterError(f"{source.path} has {source.count} bands; a confidence map has one, cut it out first")
        self.source = source
        self._quantity = ScoreScale(source.path)

    def read(self, window: Window) -> NDArray[np.float64]:
        """A window of the raster (h, w), NaN where it is masked."""
        pixels = self.source.read([1], window)
        values = self._quantity(pixels[0][None])[0]
        return np.where(self.source.valid([1], pixels, window), values, np.nan)


@dataclass(frozen=True)
class Traced:
    """A slab: its patches, its lines, and the sum and number of the scores in each patch.

    kept: which points of the lines are those of simplified ones, as some may have all their points; None where all are.
    moved: the same lines off the edges of pixels (regularise.py).
    """

    patches: Patches
    lines: Lines
    sums: NDArray[np.float64]
    counts: NDArray[np.float64]
    kept: NDArray[np.bool_] | None = None
    moved: Lines | None = None


def traced(
    values: NDArray[np.uint8],
    above: NDArray[np.uint8] | None,
    scores: NDArray[np.float64] | None,
    tolerance: float,
    *,
    last: bool,
    exact: tuple[int, ...] = (),
) -> Traced:
    """A slab of class indices (h, w). above, last: see `outlines.trace`. scores: (h, w), NaN where there is none.

    exact: classes whose lines have all their points; `kept` tells which of them are those of the simplified ones.
    """
    patches = find_patches(values)
    lines, kept = trace(values, above, last=last), None
    if tolerance > 0:
        few = points_kept(lines, patches.shape, tolerance, last=last)
        wanted: NDArray[np.bool_] = np.where(_points_beside(lines, values, above, exact), True, few)
        lines, kept = lines.thinned(wanted), few[wanted]
    return Traced(patches, lines, *_score_sums(patches, scores), kept)


def _points_beside(
    lines: Lines, values: NDArray[np.uint8], above: NDArray[np.uint8] | None, classes: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Which points belong to lines of these classes."""
    height, width = values.shape
    row, column = beside(lines).transpose(2, 0, 1)
    framed = np.full((height + 2, width + 2), IGNORE, np.uint8)
    framed[1:-1, 1:-1] = values
    if above is not None:
        framed[0, 1:-1] = above
    found = np.isin(framed[row + 1, column + 1], classes).any(axis=1)
    points: NDArray[np.bool_] = np.repeat(found, np.diff(lines.first))
    return points


@dataclass(frozen=True)
class Rows:
    """A share: rows of a map, in slabs of `height` rows. last: whether they are the map's last. tolerance: pixels.

    exact: see `traced`.
    """

    maps: Joined
    scores: Joined | None
    rows: Window
    height: int
    tolerance: float
    last: bool
    exact: tuple[int, ...] = ()

    @property
    def files(self) -> list[Location]:
        """What is read."""
        return [*self.maps.paths, *(self.scores.paths if self.scores else ())]


def shares_of(
    maps: Joined,
    scores: Joined | None,
    shape: tuple[int, int],
    height: int,
    tolerance: float,
    exact: tuple[int, ...] = (),
) -> Iterator[Rows]:
    """A map of this shape (h, w), from the top down."""
    slabs = max(1, _SHARE_PIXELS // (height * shape[1]))
    for rows in cover(Window(0, 0, *shape), slabs * height):
        yield Rows(maps, scores, rows, height, tolerance, rows.row_stop == shape[0], exact)


def trace_rows(task: Rows) -> Iterator[Traced]:
    """The slabs of a share; one with a great many borders comes in parts."""
    with ExitStack() as stack:
        source = stack.enter_context(task.maps.opened())
        scores = None if task.scores is None else Scores(stack.enter_context(task.scores.opened()))
        above = _read(source, Window(task.rows.row - 1, 0, 1, task.rows.width))[0] if task.rows.row else None
        for rows, values in _slabs(source, task):
            last = task.last and rows.row_stop == task.rows.row_stop
            certain = None if scores is None else scores.read(rows)
            yield traced(values, above, certain, task.tolerance, last=last, exact=task.exact)
            above = values[-1]


def patches_of_rows(task: Rows) -> Iterator[Patches]:
    """The patches alone of the same slabs."""
    with task.maps.opened() as source:
        for _, values in _slabs(source, task):
            yield find_patches(values)


@dataclass(frozen=True)
class Slab:
    """A share: a slab of class indices (h, w) that the caller has changed, and the row above. rows: where it lies."""

    values: NDArray[np.uint8]
    above: NDArray[np.uint8] | None
    scores: Joined | None
    rows: Window
    tolerance: float
    last: bool
    exact: tuple[int, ...] = ()

    @property
    def files(self) -> tuple[Location, ...]:
        """What is read."""
        return () if self.scores is None else self.scores.paths


def trace_slab(task: Slab) -> Traced:
    """The slab, traced."""
    scores = None
    if task.scores is not None:
        with task.scores.opened() as source:
            scores = Scores(source).read(task.rows)
    return traced(task.values, task.above, scores, task.tolerance, last=task.last, exact=task.exact)


def changed_slabs(
    slabs: Iterator[NDArray[np.uint8]],
    scores: Joined | None,
    height: int,
    tolerance: float,
    exact: tuple[int, ...] = (),
) -> Iterator[Slab]:
    """Shares of slabs that come from the top down. height: rows of the map."""
    row, above = 0, None
    for values in slabs:
        rows = Window(row, 0, *values.shape)
        yield Slab(values, above, scores, rows, tolerance, rows.row_stop == height, exact)
        row, above = rows.row_stop, values[-1].copy()


def _slabs(source: Source, task: Rows) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    for rows in cover(task.rows, task.height):
        values = _read(source, rows)
        borders = int(np.count_nonzero(values[1:] != values[:-1]) + np.count_nonzero(values[:, 1:] != values[:, :-1]))
        row = rows.row
        for part in np.array_split(values, min(len(values), 1 + borders // _SLAB_BORDERS)):
            yield Window(row, 0, *part.shape), part
            row += len(part)


def _read(source: Source, window: Window) -> NDArray[np.uint8]:
    """Class indices (h, w), IGNORE where the map is masked."""
    pixels = source.read([1], window)
    return np.where(source.valid([1], pixels, window), pixels[0], np.uint8(IGNORE))


def _score_sums(
    patches: Patches, scores: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the scores in each patch."""
    count = len(patches.classes)
    if scores is None:
        return np.zeros(count), np.zeros(count)
    there = np.isfinite(scores.ravel())
    sums = np.add.reduceat(np.where(there, scores.ravel(), 0), patches.starts)
    counts = np.add.reduceat(there, patches.starts, dtype=np.float64)
    return sum_by(patches.numbers, sums, count), sum_by(patches.numbers, counts, count)
