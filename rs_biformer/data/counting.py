"""Class pixels and band statistics of scenes, counted while slabs of rows pass.

The edges of all windows cut a scene into cells; class pixels are counted per cell, and a window's histogram is the sum
over its cells. So overlapping windows cost nothing extra, and a scene is never in memory.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rs_biformer.data.ground import Frame
from rs_biformer.data.index import SceneRecord
from rs_biformer.data.statistics import BandStatistics, Extremes
from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window, Windows, cover
from rs_biformer.raster.labels import Key, bounded, shifted_by_one
from rs_biformer.raster.paths import Location
from rs_biformer.raster.values import Reading, Scaling
from rs_biformer.schema import IGNORE, ClassSchema
from rs_biformer.shares import Executor

_PIXELS_AT_ONCE = 1 << 22
_ROW_STEP = 256
_BYTES_AT_ONCE = 1 << 28  # of an image with many bands
_SAMPLED = 4

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TilePlan:
    """A scene with its planned windows and the split of each, "" for none. block: rows and columns decoded at once."""

    record: SceneRecord
    bands: tuple[str, ...]
    dtype: str
    gsd: float | None
    scalings: tuple[Scaling, ...]
    frame: Frame
    windows: Windows
    splits: NDArray[np.str_]
    block: tuple[int, int] = (_ROW_STEP, _ROW_STEP)


@dataclass(frozen=True)
class _Slab:
    """A share: a window of a scene, the edges of its cells, and which of them count for the statistics."""

    record: SceneRecord
    bands: tuple[str, ...]
    reading: Reading
    schema: ClassSchema
    tolerance: int
    window: Window
    row_edges: NDArray[np.int64]
    col_edges: NDArray[np.int64]
    counted: NDArray[np.bool_]

    @property
    def files(self) -> list[Location]:
        """What is read."""
        return self.record.files


@dataclass(frozen=True)
class _Count:
    """Its result. cells: (cell rows, cell columns, classes). labelled: pixels whose label is known, image or not."""

    cells: NDArray[np.int64]
    statistics: BandStatistics
    extremes: Extremes
    labelled: int
    unknown: Counter[Key]


@dataclass(frozen=True)
class Tally:
    """What a scene holds: class pixels (cell rows, cell columns, classes) between the edges, and what was unknown."""

    row_edges: NDArray[np.int64]
    col_edges: NDArray[np.int64]
    cells: NDArray[np.int64]
    statistics: BandStatistics
    extremes: Extremes
    unknown: Counter[Key]


def count(
    plans: Sequence[TilePlan],
    schema: ClassSchema,
    *,
    reading: Reading,
    statistics_of: str,
    tolerance: int,
    max_unknown: float,
    shares: Executor,
    progress: Progress | None,
) -> list[Tally]:
    """Read all scenes, each pixel once, as `reading` says. shares: reads the slabs.

    statistics_of: the split whose pixels the statistics are of, or `all`. tolerance, max_unknown: see TileOptions.
    Raises RasterError as soon as a scene holds too much that is unknown.
    """
    edges = [_edges(plan) for plan in plans]
    tasks = [
        list(_slabs(plan, *edge, reading, schema, tolerance, statistics_of))
        for plan, edge in zip(plans, edges, strict=True)
    ]
    total, done = sum(map(len, tasks)), 0
    tallies = []
    with closing(shares.map(_count_slab, (task for of_scene in tasks for task in of_scene))) as results:
        for plan, (row_edges, col_edges), of_scene in zip(plans, edges, tasks, strict=True):
            cells = np.zeros((len(row_edges) - 1, len(col_edges) - 1, len(schema)), np.int64)
            statistics, labelled, unknown = BandStatistics.empty(len(plan.bands)), 0, Counter[Key]()
            extremes = Extremes.empty(len(plan.bands))
            for task in of_scene:
                found = next(results)
                first = np.searchsorted(row_edges, task.window.row, "right") - 1
                left = np.searchsorted(col_edges, task.window.col, "right") - 1
                rows, cols, _ = found.cells.shape
                cells[first : first + rows, left : left + cols] += found.cells
                statistics = statistics.merged(found.statistics)
                extremes = extremes.merged(found.extremes)
                labelled += found.labelled
                unknown.update(found.unknown)
                unknown = bounded(unknown)
                if unknown.total() > max_unknown * plan.record.height * plan.record.width:
                    break  # no known pixel can make up for these, and there may be millions of colours
                done += 1
                if progress:
                    progress(done, total)
            _require_known(plan, labelled, cells, unknown, schema, max_unknown)
            tallies.append(Tally(row_edges, col_edges, cells, statistics, extremes, unknown))
    return tallies


def _edges(plan: TilePlan) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where windows begin and end, rows and columns, the scene's own edges included."""
    found, record = plan.windows, plan.record
    rows = np.unique(np.concatenate([found.row, found.row_stop, [0, record.height]]))
    cols = np.unique(np.concatenate([found.col, found.col_stop, [0, record.width]]))
    return rows, cols


def _slabs(
    plan: TilePlan,
    row_edges: NDArray[np.int64],
    col_edges: NDArray[np.int64],
    reading: Reading,
    schema: ClassSchema,
    tolerance: int,
    statistics_of: str,
) -> Iterator[_Slab]:
    record = plan.record
    counted = np.ones((len(row_edges) - 1, len(col_edges) - 1), bool)
    if statistics_of != "all":
        counted = plan.windows.take(plan.splits == statistics_of).covered(row_edges, col_edges)
    pixel = len(plan.bands) * np.dtype(plan.dtype).itemsize
    for window in cover(Window(0, 0, record.height, record.width), *slab_shape(record.width, pixel, plan.block)):
        rows, first = _between(row_edges, window.row, window.row_stop)
        cols, left = _between(col_edges, window.col, window.col_stop)
        own = counted[first : first + len(rows) - 1, left : left + len(cols) - 1]
        yield _Slab(record, plan.bands, reading, schema, tolerance, window, rows, cols, own)


def slab_shape(width: int, pixel: int, block: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the slabs of a scene `width` pixels wide, of `pixel` bytes each: bounded, whatever the width.

    Whole rows where there is room for enough of them. Else what is decoded at once decides, since each slab opens the
    file anew: strips are not cut in columns, each of which would decode them whole, but come a few rows at a time;
    tiles come in columns, whole where one fits.
    """
    at_once = max(1, min(_PIXELS_AT_ONCE, _BYTES_AT_ONCE // pixel))
    if width * _ROW_STEP <= at_once:
        return at_once // width // _ROW_STEP * _ROW_STEP, width
    high, wide = block
    if wide >= width:
        rows = max(1, at_once // width)
        return rows // high * high or rows, min(width, at_once)
    rows = -(-_ROW_STEP // high) * high
    if rows * wide > at_once:
        rows, wide = min(_ROW_STEP, at_once), 1
    return rows, at_once // rows // wide * wide


def _between(edges: NDArray[np.int64], start: int, stop: int) -> tuple[NDArray[np.int64], int]:
    """The edges of cells within a stretch, its ends among them, and the number of the first cell."""
    first, last = int(np.searchsorted(edges, start, "right")) - 1, int(np.searchsorted(edges, stop, "left"))
    return np.clip(edges[first : last + 1], start, stop), first


def _count_slab(task: _Slab) -> _Count:
    """Decode a slab once and count: the only place where tiling meets pixels."""
    record = task.record
    window = task.window
    with (
        record.open(task.bands, task.reading) as scene,
        record.open_label(scene, task.schema, task.tolerance) as raster,
    ):
        image, valid = scene.read(window)
        label, unknown = raster.read(window)
    labelled = int((label != IGNORE).sum())
    label[~valid] = IGNORE
    heights, widths = np.diff(task.row_edges), np.diff(task.col_edges)
    if not task.counted.any():
        statistics = BandStatistics.empty(len(image))
    else:
        counted = valid if task.counted.all() else valid & task.counted.repeat(heights, axis=0).repeat(widths, axis=1)
        statistics = BandStatistics.of(image, counted)
    extremes = _sampled(image, valid, window, record)
    histograms = _cell_histograms(label, heights, widths, len(task.schema))
    return _Count(histograms, statistics, extremes, labelled, unknown)


def _sampled(image: NDArray[Any], valid: NDArray[np.bool_], window: Window, record: SceneRecord) -> Extremes:
    """The extremes of every fourth row and column of a slab, the scene's first and last among them."""
    rim = np.zeros(valid.shape, bool)
    rim[0], rim[-1] = window.row == 0, window.row_stop == record.height
    rim[:, 0] |= window.col == 0
    rim[:, -1] |= window.col_stop == record.width
    rows, cols = (np.unique([*range(0, length, _SAMPLED), length - 1]) for length in valid.shape)
    chosen = np.ix_(rows, cols)
    return Extremes.of(image[:, rows[:, None], cols], valid[chosen], rim[chosen])


def _cell_histograms(
    label: NDArray[np.uint8], heights: NDArray[np.int64], widths: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Pixels of each class in the cells of a class index (h, w), cut at rows and columns: (rows, columns, classes)."""
    offset = np.arange(len(widths), dtype=np.intp).repeat(widths) * (classes + 1)
    counts = np.empty((len(heights), len(widths), classes), np.int64)
    stops = heights.cumsum()
    for number, (height, stop) in enumerate(zip(heights, stops, strict=True)):
        codes = np.minimum(label[stop - height : stop], classes) + offset  # IGNORE becomes one more class
        found = np.bincount(codes.reshape(-1), minlength=len(widths) * (classes + 1))
        counts[number] = found.reshape(len(widths), classes + 1)[:, :classes]
    return counts


def _require_known(
    plan: TilePlan,
    labelled: int,
    cells: NDArray[np.int64],
    unknown: Counter[Key],
    schema: ClassSchema,
    max_unknown: float,
) -> None:
    strange = unknown.total()
    if strange <= max_unknown * (labelled + strange):
        return
    worst = "; ".join(_describe_unknown(key, pixels, schema) for key, pixels in unknown.most_common(3))
    raise RasterError(
        f"{plan.record.label}: {strange / (labelled + strange):.1%} of its labelled pixels are unknown to the class "
        f"schema {schema.name!r}, allowed are {max_unknown:.1%} (--max-unknown): {worst}; correct the schema, "
        f"make them ignore colours or values, or take near ones with --tolerance{_hint(plan, cells, unknown, schema)}"
    )


def _hint(plan: TilePlan, cells: NDArray[np.int64], unknown: Counter[Key], schema: ClassSchema) -> str:
    said = shifted_by_one(schema, cells.sum(axis=(0, 1)), unknown)
    return f". {said}" if said else ""


def _describe_unknown(key: Key, pixels: int, schema: ClassSchema) -> str:
    if isinstance(key, str):
        return f"{key}, {pixels} pixels"
    if not isinstance(key, tuple):
        return f"value {key}, {pixels} pixels (the schema has {', '.join(map(str, schema.class_numbers()))})"
    name, distance = nearest_class(key, schema)
    return f"colour {key[0]},{key[1]},{key[2]}, {pixels} pixels (nearest is {name}, {distance} away)"


def nearest_class(colour: tuple[int, int, int], schema: ClassSchema) -> tuple[str, int]:
    """The class whose colour is nearest, and the tolerance that would take `colour` for it."""
    distance, index = min(
        (max(abs(a - b) for a, b in zip(colour, other, strict=True)), index) for other, index in schema.class_colours()
    )
    return schema.classes[index], distance
