"""Scenes and labels -> tile index: plan the windows, read every pixel once, count, and keep what holds something."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from rs_biformer.data.counting import Progress, Tally, TilePlan, count
from rs_biformer.data.ground import Frame, Overlap, overlaps, shared_between
from rs_biformer.data.index import FORMAT_VERSION, SPLITS, Manifest, SceneRecord, TileIndex, TileTable, concatenate
from rs_biformer.data.layouts import SceneFiles
from rs_biformer.data.likeness import same_view
from rs_biformer.data.splits import Blocks, split_by_place
from rs_biformer.data.statistics import BandStatistics
from rs_biformer.data.summary import summarise, write_summary
from rs_biformer.data.tile_layer import write_tile_layer
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Windows, grid, stride_of
from rs_biformer.raster.bands import common_names, is_name, open_alike
from rs_biformer.raster.correcting import settle_corrections
from rs_biformer.raster.labelling import Note, settle, told, without_effect
from rs_biformer.raster.labels import LabelOptions
from rs_biformer.raster.layer import is_vector
from rs_biformer.raster.paths import Location, absolute, locate
from rs_biformer.raster.remarks import remarks
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.sizes import MOST_PIXELS
from rs_biformer.raster.source import Source, is_georeferenced
from rs_biformer.raster.unchanged import Watched
from rs_biformer.raster.values import AS_IT_IS, Reading, Scaling, describe
from rs_biformer.schema import ClassSchema
from rs_biformer.shares import executor

MOST_WINDOWS = 10**7
"""Of a scene, unless insisted on: each takes some hundred bytes until the index is written."""

_PAIRS_LOOKED_AT = 8
_GROUPS_SHOWN = 5


@dataclass(frozen=True)
class TileOptions:
    """What the windows are and which are kept.

    window: pixels on a side. overlap: share common to neighbours, in [0, 1). bands: see Scene.
    tolerance: how far a label's colour may lie from a class colour in each channel. 0 takes exact colours only, since
        a near colour may as well be a mixture made by resampling; what it would take is reported.
    max_unknown: share of a label's pixels that may have no known colour before it is refused.
    min_valid: least share of valid labelled pixels in a window; a window without any is dropped in any case.
    nodata: the value that means no data in rasters that declare none, see `raster.values.Reading`.
    scale: `apply` the scale and offset that rasters declare, `ignore` them; `auto` takes the numbers as they are where
        all scenes declare the same, applies them where each declares its own, and refuses scenes of which some declare
        none.
    allow_shared_ground: take scenes of different splits that show the same ground; the index says so for good.
    labels: how labels are read where their files leave it open. area: polygons; what lies outside is ignored.
    allow_huge: take scenes of more than MOST_PIXELS pixels or MOST_WINDOWS windows.
    allow_dtype_mismatch: take scenes of several data types together, their values as they are.
    """

    window: int = 256
    overlap: float = 0.5
    bands: tuple[int | str, ...] | None = None
    tolerance: int = 0
    max_unknown: float = 0.01
    min_valid: float = 0.0
    nodata: tuple[float | None, ...] = ()
    scale: Literal["auto", "apply", "ignore"] = "auto"
    allow_dtype_mismatch: bool = False
    labels: LabelOptions = LabelOptions()
    area: Location | None = None
    allow_shared_ground: bool = False
    allow_huge: bool = False

    def __post_init__(self) -> None:
        stride_of(self.window, self.overlap)
        for name, share in (("max_unknown", self.max_unknown), ("min_valid", self.min_valid)):
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} is {share}; it is a share and must lie in [0, 1]")


def tile_scenes(
    scenes: Sequence[SceneFiles],
    schema: ClassSchema,
    out: Path,
    *,
    options: TileOptions | None = None,
    blocks: Blocks | None = None,
    workers: int = 1,
    cluster: Any = None,
    progress: Progress | None = None,
) -> tuple[TileIndex, dict[str, Any]]:
    """Write the tile index of the scenes to OUT/tiles.parquet, tiles.gpkg beside it, its summary to OUT/summary.json.

    Every scene needs a split unless `blocks` deals them; scenes without a label are left out and said so. Nothing is
    written before everything has been read; the same input and options give the same bytes, whatever `workers`, which
    are processes of this machine, or `cluster`, whose workers read instead (as `shares.executor` takes it).

    Returns the index and the summary: plain lists and numbers. `progress` is told slabs of rows done and in all.
    Raises ConfigError and RasterError.
    """
    options = options or TileOptions()
    _require_writable(out)
    if slashed := [scene.name for scene in scenes if "/" in scene.name or "\\" in scene.name]:
        raise ConfigError(
            f"a scene is called {slashed[0]!r}; chips are files of that name, so it must have no slash: take a "
            "piece of the folder, such as {dir:*/images}, or {parent}"
        )
    labelled = [scene for scene in scenes if scene.label is not None]
    if not labelled:
        raise ConfigError("no scene has a label; give scenes and --labels, or complete the download")
    watched = Watched([options.area, *(path for scene in labelled for path in (*scene.images, scene.label))])
    plans, reading, remarked = _open_all(labelled, schema, options)
    plans, shared = _with_splits(plans, labelled, options, reading, blocks, remarked)
    statistics_of = "train" if any((plan.splits == "train").any() for plan in plans) else "all"
    with executor(cluster, workers) as shares:
        tallies = count(
            plans,
            schema,
            reading=reading,
            statistics_of=statistics_of,
            tolerance=options.tolerance,
            max_unknown=options.max_unknown,
            shares=shares,
            progress=progress,
        )
    index = _index(plans, tallies, schema, options, reading, statistics_of, shared)
    index.require_disjoint_splits()
    watched.require_unchanged()
    summary = summarise(index, plans, tallies, [s.name for s in scenes if s.label is None], remarked)
    index.write(out)
    if why_not := write_tile_layer(index, out):
        summary["notes"].append(why_not)
    write_summary(summary, out)
    return index, summary


def _require_writable(out: Path) -> None:
    """Refuse at once what would fail after minutes of reading."""
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        what = "cannot be written to" if existing.is_dir() else "is a file"
        raise ConfigError(f"--out {out}: {existing} {what}; choose another folder")


def _open_all(
    scenes: Sequence[SceneFiles], schema: ClassSchema, options: TileOptions
) -> tuple[list[TilePlan], Reading, list[str]]:
    """The windows of all scenes, how they are read, and what there is to remark."""
    reading = Reading(nodata=options.nodata)
    remarked: list[str] = []
    notes: list[Note] = []
    _require_own_labels(scenes)
    plans = [_open(scene, schema, options, reading, remarked, notes) for scene in scenes]
    _require_used(scenes, plans)
    remarked += told(notes)
    plans = _with_common_bands(plans, scenes, options, reading, remarked)
    reading, said = _common_reading([(plan.record.name, plan.scalings) for plan in plans], reading, options.scale)
    _require_one_dtype(plans, reading, options)
    return plans, reading, [*said, *dict.fromkeys(remarked)]


def _require_used(scenes: Sequence[SceneFiles], plans: Sequence[TilePlan]) -> None:
    """A correction that lies on no scene was meant for others."""
    used = {one.path for plan in plans for one in plan.record.corrections}
    for path in dict.fromkeys(path for scene in scenes for path in scene.corrections):
        if absolute(path) not in used:
            raise RasterError(f"the corrections {path} lie on none of the scenes; check the file and its CRS")


def _require_own_labels(scenes: Sequence[SceneFiles]) -> None:
    """One label for several scenes is cut to each, so it must say where it lies."""
    shared = Counter(scene.label for scene in scenes if scene.label is not None)
    for label, users in shared.items():
        if users > 1 and not is_vector(label) and not is_georeferenced(Source(label).transform):
            raise RasterError(
                f"{label} is one file for {users} scenes and does not say where it lies; give each scene its own, "
                "with {stem} or {name} in --labels where they differ, or a label that is georeferenced"
            )


def _with_common_bands(
    plans: Sequence[TilePlan],
    scenes: Sequence[SceneFiles],
    options: TileOptions,
    reading: Reading,
    remarked: list[str],
) -> list[TilePlan]:
    """All scenes feed one model: the same bands under the same names, by numbers where a scene calls them otherwise."""
    if options.bands is not None:
        names = common_names([plan.bands for plan in plans])
    else:
        model = next((plan for plan in plans if all(map(is_name, plan.bands))), plans[0])
        names = model.bands
    found = []
    for plan, files in zip(plans, scenes, strict=True):
        if plan.bands == names:
            found.append(plan)
            continue
        with open_alike(
            files.images, names, whose=str(plans[0].record.images[0]), select=options.bands, reading=reading
        ) as scene:
            if set(scene.band_names) != set(names):
                remarked.append(
                    f"the bands {', '.join(scene.band_names)} of scene {files.name} are taken for {', '.join(names)}"
                )
            record = replace(plan.record, bands=scene.band_numbers)
            found.append(replace(plan, record=record, bands=names, dtype=scene.dtype.name, scalings=scene.scalings))
    return found


def _common_reading(
    declared: Sequence[tuple[str, tuple[Scaling, ...]]], reading: Reading, scale: str
) -> tuple[Reading, list[str]]:
    """How scenes, each with the scalings that it declares, are read together, and what to say about it."""
    silent = [name for name, scalings in declared if all(scaling == AS_IT_IS for scaling in scalings)]
    kinds: dict[tuple[Scaling, ...], str] = {}
    for name, scalings in declared:
        kinds.setdefault(scalings, name)
    if len(silent) == len(declared) or scale == "ignore":
        said = [] if len(silent) == len(declared) else ["declared scales and offsets are ignored"]
        return reading, said
    if len(kinds) == 1 and scale == "auto":
        (common,) = kinds
        said = [f"the scenes declare {describe(common)}; numbers are taken as they are (--scale apply applies them)"]
        return replace(reading, declared=common), said
    if silent and scale == "auto":
        other = next(name for name, _ in declared if name not in silent)
        raise RasterError(
            f"scene {other} declares {describe(dict(declared)[other])} and scene {silent[0]} nothing, so that the same "
            "number may mean different things: --scale apply applies what is declared, --scale ignore takes the "
            "numbers as they are"
        )
    several = "; ".join(f"{name}: {describe(scalings)}" for scalings, name in list(kinds.items())[:3])
    said = [f"scale and offset of each scene are applied ({several}); means and deviations are in physical units"]
    return replace(reading, scaled=True), said


def _require_one_dtype(plans: Sequence[TilePlan], reading: Reading, options: TileOptions) -> None:
    dtypes = {plan.dtype: plan for plan in reversed(plans)}
    floats = reading.scaled or all(np.dtype(dtype).kind == "f" for dtype in dtypes)
    if len(dtypes) > 1 and not floats and not options.allow_dtype_mismatch:
        first = plans[0]
        other = next(plan for plan in plans if plan.dtype != first.dtype)
        raise RasterError(
            f"{other.record.images[0]} has the data type {other.dtype} and {first.record.images[0]} {first.dtype}; "
            "convert one to the other's scale, or, where the values mean the same, insist with --allow-dtype-mismatch"
        )


def _with_splits(
    plans: list[TilePlan],
    scenes: Sequence[SceneFiles],
    options: TileOptions,
    reading: Reading,
    blocks: Blocks | None,
    remarked: list[str],
) -> tuple[list[TilePlan], str]:
    """The windows with their splits, and what ground these share, in words."""
    if blocks is not None:
        return _in_blocks(plans, options, blocks, remarked), ""
    splits = [scene.split for scene in scenes]
    found = [
        overlap
        for overlap in overlaps([plan.frame for plan in plans])
        if splits[overlap.first] != splits[overlap.second]
    ]
    found = _without_placeholders(plans, found, reading, remarked)
    names = [plan.record.name for plan in plans]
    shared = shared_between([plan.frame for plan in plans], splits, found)
    said = "; ".join(part.describe(names) for part in shared)
    if shared and not options.allow_shared_ground:
        raise ConfigError(
            f"splits overlap on the ground: {said}; put scenes of one place into one split, deal blocks by place "
            "(--split blocks:0.7,0.15,0.15), or insist with --allow-shared-ground, which the index will tell for good"
        )
    if shared:
        remarked.append(f"{said}: figures of such a split say little about other places")
    plans = [
        replace(plan, splits=np.full(len(plan.windows), split or "", dtype="<U5"))
        for plan, split in zip(plans, splits, strict=True)
    ]
    return plans, said


def _in_blocks(plans: Sequence[TilePlan], options: TileOptions, blocks: Blocks, remarked: list[str]) -> list[TilePlan]:
    if blocks.size < options.window:
        raise ConfigError(f"blocks of {blocks.size} pixels hold no window of {options.window}; make them larger")
    splits, together = split_by_place([plan.frame for plan in plans], [plan.windows for plan in plans], blocks)
    found = [replace(plan, splits=own) for plan, own in zip(plans, splits, strict=True)]
    for share, split in zip(blocks.shares, SPLITS, strict=True):
        if share and not any((plan.splits == split).any() for plan in found):
            raise ConfigError(
                f"the blocks leave {split} no window; use smaller blocks, a smaller buffer or another seed (blocks are "
                f"{blocks.size} pixels, buffer {blocks.buffer}, seed {blocks.seed})"
            )
    for members in together[:_GROUPS_SHOWN]:
        names = [plans[number].record.name for number in members]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        remarked.append(f"{', '.join(names[:4])}{more} share ground: their blocks are dealt by place, for all together")
    return found


def _without_placeholders(
    plans: Sequence[TilePlan], found: list[Overlap], reading: Reading, remarked: list[str]
) -> list[Overlap]:
    """The overlaps but those of scenes with one upper left corner that show different places.

    A few pairs stand for all: some tools leave the same georeference in every file that they write.
    """
    corner = [
        overlap
        for overlap in found
        if plans[overlap.first].frame.transform == plans[overlap.second].frame.transform
        and plans[overlap.first].record.crs == plans[overlap.second].record.crs
    ]
    step = max(1, len(corner) // _PAIRS_LOOKED_AT)
    for overlap in corner[::step][:_PAIRS_LOOKED_AT]:
        one, other = plans[overlap.first], plans[overlap.second]
        with one.record.open(one.bands, reading) as first, other.record.open(other.bands, reading) as second:
            if same_view(first, second):
                return found
    if corner:
        names = ", ".join(dict.fromkeys(plans[n].record.name for o in corner for n in (o.first, o.second)))
        remarked.append(
            f"scenes of different splits have the same upper left corner and show different places ({names[:200]}): "
            "their georeference is taken for a placeholder, and they for scenes apart"
        )
    return [overlap for overlap in found if overlap not in corner]


def _open(
    files: SceneFiles,
    schema: ClassSchema,
    options: TileOptions,
    reading: Reading,
    remarked: list[str],
    notes: list[Note],
) -> TilePlan:
    """Look at a scene and its label, reading no more than a few pixels, and lay its windows."""
    assert files.label is not None
    with Scene(files.images, bands=options.bands, reading=reading) as scene:
        labelling, said = settle(
            files.label, schema, scene, tolerance=options.tolerance, options=options.labels, area=options.area
        )
        notes += said
        if not files.corrections:  # whose options these may be
            notes += without_effect(files.label, options.labels)
        corrections, more = settle_corrections(
            files.corrections, schema, scene, tolerance=options.tolerance, options=options.labels
        )
        notes += more
        remarked += remarks(scene, scales=False)
        record = SceneRecord(
            files.name,
            tuple(absolute(path) for path in files.images),
            absolute(files.label),
            scene.height,
            scene.width,
            scene.crs.to_wkt() if scene.crs else None,
            tuple(scene.transform)[:6],
            labelling=labelling,
            area=None if options.area is None else absolute(options.area),
            corrections=tuple(replace(one, path=absolute(locate(one.path))) for one in corrections),
        )
        stride = stride_of(options.window, options.overlap)
        _require_possible(scene, options, stride)
        return TilePlan(
            record,
            scene.band_names,
            scene.dtype.name,
            scene.gsd,
            scene.scalings,
            Frame.of(scene),
            Windows.of(grid(scene.height, scene.width, options.window, stride)),
            np.array([], "<U5"),
            max((source.decoded, source.block) for source in scene.sources)[1],
        )


def _require_possible(scene: Scene, options: TileOptions, stride: int) -> None:
    """Refuse what would take days, or all memory, before anything of that size is made."""
    pixels = scene.height * scene.width
    windows = (scene.height // stride + 1) * (scene.width // stride + 1)
    if options.allow_huge or (pixels <= MOST_PIXELS and windows <= MOST_WINDOWS):
        return
    raise RasterError(
        f"{scene.path} is {scene.height} x {scene.width} pixels, some {windows:,} windows of {options.window}; more "
        f"than {MOST_PIXELS:,} pixels or {MOST_WINDOWS:,} windows of a scene are taken for a mistake: use a larger "
        "--window or less --overlap, or insist with --allow-huge"
    )


def _index(
    plans: Sequence[TilePlan],
    tallies: Sequence[Tally],
    schema: ClassSchema,
    options: TileOptions,
    reading: Reading,
    statistics_of: str,
    shared: str,
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
        dtype=_common_dtype(plans, reading),
        mean=tuple(statistics.mean.tolist()),
        # A band that never varies gets 1: normalised, it is then 0 everywhere and not NaN.
        std=tuple(std or 1.0 for std in statistics.std.tolist()),
        gsd=median(known) if known else None,
        tolerance=options.tolerance,
        scenes=tuple(plan.record for plan in plans),
        statistics_of=statistics_of,
        reading=reading,
        shared_ground=shared,
        version=FORMAT_VERSION if any(plan.record.corrections for plan in plans) else 1,
    )
    return TileIndex(manifest, table)


def _common_dtype(plans: Sequence[TilePlan], reading: Reading) -> str:
    kinds = [np.dtype(plan.dtype) for plan in plans]
    return np.result_type(*kinds, *([np.float32] if reading.scaled else [])).name


def _table(number: int, plan: TilePlan, tally: Tally) -> TileTable:
    """All windows of a scene that have a split."""
    chosen = plan.splits != ""
    windows = plan.windows.take(chosen)
    sums = np.pad(tally.cells.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0), (0, 0)))
    top, bottom = (np.searchsorted(tally.row_edges, edge) for edge in (windows.row, windows.row_stop))
    left, right = (np.searchsorted(tally.col_edges, edge) for edge in (windows.col, windows.col_stop))
    histogram = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return TileTable(
        scene=np.full(len(windows), number),
        row=windows.row,
        col=windows.col,
        height=windows.height,
        width=windows.width,
        split=plan.splits[chosen],
        histogram=histogram,
        valid_share=histogram.sum(axis=1) / (windows.height * windows.width),
    )
