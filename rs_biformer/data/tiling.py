"""Scenes and labels -> tile index: plan the windows, read every pixel once, count, and keep what holds something.

Scenes are read in bands of full width. The edges of all windows cut a scene into cells; class pixels are counted per
cell while the bands pass, and a window's histogram is the sum over its cells. So overlapping windows cost nothing
extra, and a scene is never in memory.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rs_biformer.data.index import (
    SPLITS,
    Manifest,
    SceneRecord,
    TileIndex,
    TileTable,
    concatenate,
    covered_cells,
    replacing,
)
from rs_biformer.data.layouts import SceneFiles
from rs_biformer.data.parallel import ordered_map
from rs_biformer.data.splits import Blocks, assign_blocks, window_splits
from rs_biformer.data.statistics import BandStatistics
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window, grid, stride_of
from rs_biformer.raster.labels import LabelRaster, require_pair
from rs_biformer.raster.paths import absolute
from rs_biformer.raster.scene import Scene
from rs_biformer.schema import IGNORE, ClassSchema

SUMMARY_NAME = "summary.json"
_PIXELS_AT_ONCE = 1 << 22
_ROW_STEP = 256
_NAMED_UNKNOWNS = 5
_GSD_TOLERANCE = 0.05

Progress = Callable[[int, int], None]
Key = tuple[int, int, int] | int | float


@dataclass(frozen=True)
class TileOptions:
    """What the windows are and which are kept.

    window: pixels on a side. overlap: share common to neighbours, in [0, 1). bands: see Scene.
    tolerance: how far a label's colour may lie from a class colour in each channel. 0 takes exact colours only, since
        a near colour may as well be a mixture made by resampling; what it would take is reported.
    max_unknown: share of a label's pixels that may have no known colour before it is refused.
    min_valid: least share of valid labelled pixels in a window; a window without any is dropped in any case.
    """

    window: int = 256
    overlap: float = 0.5
    bands: tuple[int | str, ...] | None = None
    tolerance: int = 0
    max_unknown: float = 0.01
    min_valid: float = 0.0

    def __post_init__(self) -> None:
        stride_of(self.window, self.overlap)
        for name, share in (("max_unknown", self.max_unknown), ("min_valid", self.min_valid)):
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} is {share}; it is a share and must lie in [0, 1]")


@dataclass(frozen=True)
class _Plan:
    """A scene with its planned windows (n, 4: row, col, height, width) and their splits, "" for none."""

    record: SceneRecord
    bands: tuple[str, ...]
    dtype: str
    gsd: float | None
    windows: NDArray[np.int64]
    splits: NDArray[np.str_]


@dataclass(frozen=True)
class _Band:
    """A task: the rows of a scene from start to stop, the cell edges, and which cells count for the statistics."""

    record: SceneRecord
    bands: tuple[str, ...]
    schema: ClassSchema
    tolerance: int
    start: int
    stop: int
    row_edges: NDArray[np.int64]
    col_edges: NDArray[np.int64]
    counted: NDArray[np.bool_]


@dataclass(frozen=True)
class _Count:
    """Its result. cells: (cell rows, cell columns, classes). labelled: pixels whose label is known, image or not."""

    cells: NDArray[np.int64]
    statistics: BandStatistics
    labelled: int
    unknown: Counter[Key]


@dataclass(frozen=True)
class _Tally:
    """What a scene holds: class pixels (cell rows, cell columns, classes) between the edges, and what was unknown."""

    row_edges: NDArray[np.int64]
    col_edges: NDArray[np.int64]
    cells: NDArray[np.int64]
    statistics: BandStatistics
    unknown: Counter[Key]


def tile_scenes(
    scenes: Sequence[SceneFiles],
    schema: ClassSchema,
    out: Path,
    *,
    options: TileOptions | None = None,
    blocks: Blocks | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> tuple[TileIndex, dict[str, Any]]:
    """Write the tile index of the scenes to OUT/tiles.parquet and its summary to OUT/summary.json.

    Every scene needs a split unless `blocks` deals them; scenes without a label are left out and said so. Nothing is
    written before everything has been read; the same input and options give the same bytes, whatever `workers`.

    Returns the index and the summary: plain lists and numbers. `progress` is told bands of rows done and in all.
    Raises ConfigError and RasterError.
    """
    options = options or TileOptions()
    _require_writable(out)
    labelled = [scene for scene in scenes if scene.label is not None]
    if not labelled:
        raise ConfigError("no scene has a label; give scenes and --labels, or complete the download")
    plans = _plan(labelled, schema, options, blocks)
    statistics_of = "train" if any((plan.splits == "train").any() for plan in plans) else "all"
    tallies = _count(plans, schema, options, statistics_of, workers, progress)
    index = _index(plans, tallies, schema, options, statistics_of)
    index.require_disjoint_splits()
    summary = _summarise(index, plans, tallies, [s.name for s in scenes if s.label is None])
    index.write(out)
    _write_summary(summary, out)
    return index, summary


def _require_writable(out: Path) -> None:
    """Refuse at once what would fail after minutes of reading."""
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        what = "cannot be written to" if existing.is_dir() else "is a file"
        raise ConfigError(f"--out {out}: {existing} {what}; choose another folder")


def _plan(
    scenes: Sequence[SceneFiles], schema: ClassSchema, options: TileOptions, blocks: Blocks | None
) -> list[_Plan]:
    plans = [_open(scene, schema, options) for scene in scenes]
    for plan in plans[1:]:
        _require_alike(plans[0], plan)
    if blocks is None:
        return [
            replace(plan, splits=np.full(len(plan.windows), scene.split or "", dtype="<U5"))
            for plan, scene in zip(plans, scenes, strict=True)
        ]
    if blocks.size < options.window:
        raise ConfigError(f"blocks of {blocks.size} pixels hold no window of {options.window}; make them larger")
    sizes = [(plan.record.height, plan.record.width) for plan in plans]
    dealt = assign_blocks(sizes, blocks)
    plans = [
        replace(plan, splits=window_splits(plan.windows, *size, deal, blocks))
        for plan, size, deal in zip(plans, sizes, dealt, strict=True)
    ]
    for share, split in zip(blocks.shares, SPLITS, strict=True):
        if share and not any((plan.splits == split).any() for plan in plans):
            raise ConfigError(
                f"the blocks leave {split} no window; use smaller blocks, a smaller buffer or another seed (blocks are "
                f"{blocks.size} pixels, buffer {blocks.buffer}, seed {blocks.seed})"
            )
    return plans


def _open(files: SceneFiles, schema: ClassSchema, options: TileOptions) -> _Plan:
    """Look at a scene and its label without reading pixels, and lay its windows."""
    assert files.label is not None
    with Scene(files.images, bands=options.bands) as scene, LabelRaster(files.label, schema) as label:
        require_pair(scene, label)
        record = SceneRecord(
            files.name,
            tuple(absolute(path) for path in files.images),
            absolute(files.label),
            scene.height,
            scene.width,
            scene.crs.to_wkt() if scene.crs else None,
            tuple(scene.transform)[:6],
        )
        windows = [
            (window.row, window.col, window.height, window.width)
            for window in grid(scene.height, scene.width, options.window, stride_of(options.window, options.overlap))
        ]
        return _Plan(
            record, scene.band_names, scene.dtype.name, scene.gsd, np.array(windows, np.int64), np.array([], "<U5")
        )


def _require_alike(first: _Plan, other: _Plan) -> None:
    """All scenes feed one model: the same bands, of one type."""
    facts = [("bands", ", ".join(first.bands), ", ".join(other.bands)), ("data type", first.dtype, other.dtype)]
    for what, expected, got in facts:
        if expected != got:
            raise RasterError(
                f"{other.record.images[0]} has the {what} {got} and {first.record.images[0]} {expected}; "
                "select common bands with --bands, or give the files the same band descriptions and type"
            )


def _count(
    plans: Sequence[_Plan],
    schema: ClassSchema,
    options: TileOptions,
    statistics_of: str,
    workers: int,
    progress: Progress | None,
) -> list[_Tally]:
    """Read all scenes, each pixel once. Raises RasterError as soon as a scene holds too much that is unknown."""
    edges = [_edges(plan) for plan in plans]
    tasks = [
        list(_bands(plan, *edge, schema, options.tolerance, statistics_of))
        for plan, edge in zip(plans, edges, strict=True)
    ]
    total, done = sum(map(len, tasks)), 0
    results = ordered_map(_count_band, [task for of_scene in tasks for task in of_scene], workers)
    tallies = []
    for plan, (row_edges, col_edges), of_scene in zip(plans, edges, tasks, strict=True):
        cells = np.zeros((len(row_edges) - 1, len(col_edges) - 1, len(schema)), np.int64)
        statistics, labelled, unknown = BandStatistics.empty(len(plan.bands)), 0, Counter[Key]()
        for task in of_scene:
            count = next(results)
            first = np.searchsorted(row_edges, task.start, "right") - 1
            cells[first : first + len(count.cells)] += count.cells
            statistics = statistics.merged(count.statistics)
            labelled += count.labelled
            unknown.update(count.unknown)
            done += 1
            if progress:
                progress(done, total)
        _require_known(plan, labelled, unknown, schema, options)
        tallies.append(_Tally(row_edges, col_edges, cells, statistics, unknown))
    return tallies


def _edges(plan: _Plan) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where windows begin and end, rows and columns, the scene's own edges included."""
    starts, stops = plan.windows[:, :2], plan.windows[:, :2] + plan.windows[:, 2:]
    rows, cols = (
        np.unique(np.concatenate([starts[:, axis], stops[:, axis], [0, length]]))
        for axis, length in enumerate((plan.record.height, plan.record.width))
    )
    return rows, cols


def _bands(
    plan: _Plan,
    row_edges: NDArray[np.int64],
    col_edges: NDArray[np.int64],
    schema: ClassSchema,
    tolerance: int,
    statistics_of: str,
) -> Iterator[_Band]:
    record = plan.record
    counted = np.ones((len(row_edges) - 1, len(col_edges) - 1), bool)
    if statistics_of != "all":
        counted = _covered(plan.windows[plan.splits == statistics_of], row_edges, col_edges)
    step = max(_ROW_STEP, _PIXELS_AT_ONCE // record.width // _ROW_STEP * _ROW_STEP)
    for start in range(0, record.height, step):
        stop = min(start + step, record.height)
        first, last = np.searchsorted(row_edges, start, "right") - 1, np.searchsorted(row_edges, stop, "left")
        rows = np.clip(row_edges[first : last + 1], start, stop)
        yield _Band(record, plan.bands, schema, tolerance, start, stop, rows, col_edges, counted[first:last])


def _covered(
    windows: NDArray[np.int64], row_edges: NDArray[np.int64], col_edges: NDArray[np.int64]
) -> NDArray[np.bool_]:
    top, left, height, width = windows.T
    return covered_cells(top, left, top + height, left + width, row_edges, col_edges)


def _count_band(task: _Band) -> _Count:
    """Decode a band of rows once and count: the only place where tiling meets pixels."""
    record = task.record
    window = Window(task.start, 0, task.stop - task.start, record.width)
    assert record.label is not None
    with (
        Scene(record.images, bands=task.bands) as scene,
        LabelRaster(record.label, task.schema, tolerance=task.tolerance) as raster,
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
    return _Count(_cell_histograms(label, heights, widths, len(task.schema)), statistics, labelled, unknown)


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
    plan: _Plan, labelled: int, unknown: Counter[Key], schema: ClassSchema, options: TileOptions
) -> None:
    strange = unknown.total()
    if strange <= options.max_unknown * (labelled + strange):
        return
    worst = "; ".join(_describe_unknown(key, pixels, schema) for key, pixels in unknown.most_common(3))
    raise RasterError(
        f"{plan.record.label}: {strange / (labelled + strange):.1%} of its labelled pixels are unknown to the class "
        f"schema {schema.name!r}, allowed are {options.max_unknown:.1%} (--max-unknown): {worst}; correct the schema, "
        "make them ignore colours or values, or take near colours with --tolerance"
    )


def _describe_unknown(key: Key, pixels: int, schema: ClassSchema) -> str:
    if not isinstance(key, tuple):
        return f"value {key}, {pixels} pixels (the schema has {', '.join(map(str, schema.values))})"
    name, distance = nearest_class(key, schema)
    return f"colour {key[0]},{key[1]},{key[2]}, {pixels} pixels (nearest is {name}, {distance} away)"


def nearest_class(colour: tuple[int, int, int], schema: ClassSchema) -> tuple[str, int]:
    """The class whose colour is nearest, and the tolerance that would take `colour` for it."""
    distances = [max(abs(a - b) for a, b in zip(colour, other, strict=True)) for other in schema.colours]
    return schema.classes[distances.index(min(distances))], min(distances)


def _index(
    plans: Sequence[_Plan],
    tallies: Sequence[_Tally],
    schema: ClassSchema,
    options: TileOptions,
    statistics_of: str,
) -> TileIndex:
    tables = [_table(number, plan, tally) for number, (plan, tally) in enumerate(zip(plans, tallies, strict=True))]
    tables = [table.take((table.valid_share > 0) & (table.valid_share >= options.min_valid)) for table in tables]
    table = concatenate(tables)
    for split in SPLITS:
        planned = [plan.record.images[0] for plan in plans if (plan.splits == split).any()]
        if planned and not (table.split == split).any():
            named = ", ".join(planned[:3]) + (", ..." if len(planned) > 3 else "")
            raise RasterError(
                f"no window of the split {split} ({named}) holds enough pixels with both image data and a known class; "
                "check nodata, masks and ignore colours, or lower --min-valid"
            )
    statistics = BandStatistics.empty(len(plans[0].bands))
    for tally in tallies:
        statistics = statistics.merged(tally.statistics)
    known = [plan.gsd for plan in plans if plan.gsd is not None]
    manifest = Manifest(
        schema=schema,
        window=options.window,
        overlap=options.overlap,
        bands=plans[0].bands,
        dtype=plans[0].dtype,
        mean=tuple(statistics.mean.tolist()),
        # A band that never varies gets 1: normalised, it is then 0 everywhere and not NaN.
        std=tuple(std or 1.0 for std in statistics.std.tolist()),
        gsd=median(known) if known else None,
        tolerance=options.tolerance,
        scenes=tuple(plan.record for plan in plans),
        statistics_of=statistics_of,
    )
    return TileIndex(manifest, table)


def _table(number: int, plan: _Plan, tally: _Tally) -> TileTable:
    """All windows of a scene that have a split."""
    chosen = plan.splits != ""
    row, col, height, width = plan.windows[chosen].T
    sums = np.pad(tally.cells.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0), (0, 0)))
    top, bottom = (np.searchsorted(tally.row_edges, edge) for edge in (row, row + height))
    left, right = (np.searchsorted(tally.col_edges, edge) for edge in (col, col + width))
    histogram = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return TileTable(
        scene=np.full(len(row), number),
        row=row,
        col=col,
        height=height,
        width=width,
        split=plan.splits[chosen],
        histogram=histogram,
        valid_share=histogram.sum(axis=1) / (height * width),
    )


def _summarise(
    index: TileIndex, plans: Sequence[_Plan], tallies: Sequence[_Tally], unlabelled: Sequence[str]
) -> dict[str, Any]:
    """The summary for people and scripts. Pixels are counted once, however many windows cover them."""
    manifest, table = index.manifest, index.table
    pixels = {split: np.zeros(len(manifest.schema), np.int64) for split in SPLITS}
    scenes = []
    for number, (plan, tally) in enumerate(zip(plans, tallies, strict=True)):
        kept = table.take(table.scene == number)
        for split in np.unique(kept.split).tolist():
            part = kept.take(kept.split == split)
            windows = np.stack([part.row, part.col, part.height, part.width], axis=1)
            pixels[split] += tally.cells[_covered(windows, tally.row_edges, tally.col_edges)].sum(axis=0)
        scenes.append(
            {
                "name": plan.record.name,
                "height": plan.record.height,
                "width": plan.record.width,
                "windows": {split: int((kept.split == split).sum()) for split in np.unique(kept.split).tolist()},
                "labelled_share": float(tally.cells.sum() / (plan.record.height * plan.record.width)),
                "unknown_pixels": tally.unknown.total(),
            }
        )
    unknown: Counter[Key] = sum((tally.unknown for tally in tallies), Counter())
    planned = sum(len(plan.windows) for plan in plans)
    between = sum(int((plan.splits == "").sum()) for plan in plans)
    return {
        "schema": manifest.schema.name,
        "window": manifest.window,
        "overlap": manifest.overlap,
        "gsd": manifest.gsd,
        "windows": len(table),
        "dropped_windows": {"without_valid_pixels": planned - between - len(table), "between_splits": between},
        "splits": {
            split: _summarise_split(split, table, pixels[split], manifest.schema)
            for split in SPLITS
            if (table.split == split).any()
        },
        "bands": [
            {"name": name, "mean": mean, "std": std}
            for name, mean, std in zip(manifest.bands, manifest.mean, manifest.std, strict=True)
        ],
        "statistics_of": manifest.statistics_of,
        "unknown": [_summarise_unknown(key, n, manifest.schema) for key, n in unknown.most_common(_NAMED_UNKNOWNS)],
        "scenes": scenes,
        "scenes_without_label": list(unlabelled),
        "notes": list(_notes(manifest, plans, unlabelled, unknown)),
    }


def _summarise_split(split: str, table: TileTable, pixels: NDArray[np.int64], schema: ClassSchema) -> dict[str, Any]:
    own = table.take(table.split == split)
    return {
        "scenes": len(np.unique(own.scene)),
        "windows": len(own),
        "labelled_pixels": int(pixels.sum()),
        "classes": {
            name: {"pixels": int(count), "share": float(count / pixels.sum())}
            for name, count in zip(schema.classes, pixels, strict=True)
        },
    }


def _summarise_unknown(key: Key, pixels: int, schema: ClassSchema) -> dict[str, Any]:
    if not isinstance(key, tuple):
        return {"value": key, "pixels": pixels}
    name, distance = nearest_class(key, schema)
    return {"colour": list(key), "pixels": pixels, "nearest_class": name, "tolerance_needed": distance}


def _notes(
    manifest: Manifest, plans: Sequence[_Plan], unlabelled: Sequence[str], unknown: Counter[Key]
) -> Iterator[str]:
    """What a careful colleague would mention."""
    if manifest.statistics_of == "all":
        yield "there is no train split: mean and standard deviation are of all scenes"
    if unlabelled:
        yield f"{len(unlabelled)} scenes have no label and were left out: {', '.join(unlabelled[:5])}"
    if unknown:
        yield f"{unknown.total()} pixels have a colour or value that the schema lacks; they are ignored"
    known = [plan.gsd for plan in plans if plan.gsd is not None]
    if known and max(known) > min(known) * (1 + _GSD_TOLERANCE):
        yield f"pixel sizes differ, from {min(known):.3g} to {max(known):.3g} m; resample the scenes to one size"
    if any(plan.record.crs is None for plan in plans):
        yield "some scenes have no CRS; their windows have no footprint"


def _write_summary(summary: dict[str, Any], out: Path) -> None:
    path = out / SUMMARY_NAME
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise RasterError(f"cannot write {path}: {error.strerror or error}") from error
