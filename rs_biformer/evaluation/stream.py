"""Pairs of rasters -> Metrics, window by window: memory does not grow with the scenes."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from os import fspath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rs_biformer.background import read_ahead
from rs_biformer.errors import RasterError
from rs_biformer.evaluation.boundary import BoundaryCounts, count_boundaries, halo, no_boundaries
from rs_biformer.evaluation.calibration import CalibrationCounts, count_calibration, no_calibration
from rs_biformer.evaluation.confusion import Confusion, joint
from rs_biformer.evaluation.maps import AnyPath, Numbers, describe_unknown
from rs_biformer.evaluation.metrics import BLOCK, Metrics, Options, SceneResult, block_grid
from rs_biformer.evaluation.protocols import Protocol, load_protocol
from rs_biformer.evaluation.rasters import ImageFiles, Opened, Spelling, Subject, opened, subjects, windows
from rs_biformer.evaluation.resampling import Resampling
from rs_biformer.geometry import Window, cells, cover
from rs_biformer.raster.labelling import Label, Note, told
from rs_biformer.raster.labels import LabelOptions, bounded, erode_boundaries, shifted_by_one
from rs_biformer.raster.metadata import made_by
from rs_biformer.raster.paths import Location, absolute, locate, without_access
from rs_biformer.raster.unchanged import Watched
from rs_biformer.schema import IGNORE, ClassSchema, load_schema
from rs_biformer.shares import Executor, Here

Progress = Callable[[int, int], None]


def evaluate(
    predictions: AnyPath | Sequence[AnyPath],
    labels: AnyPath | Sequence[AnyPath],
    schema: ClassSchema | AnyPath,
    protocol: Protocol | AnyPath = "all-classes",
    *,
    scenes: Sequence[ImageFiles] | None = None,
    confidences: AnyPath | Sequence[AnyPath] | None = None,
    boundary: Sequence[float] = (),
    resampling: Resampling | None = None,
    tolerance: int = 0,
    max_unknown: float = 0.01,
    nodata: tuple[float | None, ...] = (),
    numbers: Numbers = "auto",
    labelling: LabelOptions | None = None,
    area: AnyPath | None = None,
    allow_huge: bool = False,
    names: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress | None = None,
) -> Metrics:
    """Compare class maps with label rasters, pairwise in the order given.

    One confusion matrix is summed over the whole set; no score is averaged over scenes or windows. Unlabelled pixels
    are not counted; labelled pixels without a prediction count as errors (see `confusion`), unless `scenes` show that
    there was nothing to predict from. Where the protocol erodes label boundaries, the full labels are counted as well.

    predictions: class maps as `predict` writes them, or in the schema's colours. Their pixels may have another size
        than those of the labels on the same ground.
    labels: full (not eroded) labels in the schema's colours or values.
    scenes: the images behind the predictions, each one file or several; pixels that are nodata in them are ignored.
    confidences: confidence or probability rasters, one for each prediction, for the calibration.
    boundary: distances in pixels for the boundary F1 (see `boundary`).
    resampling: what intervals are drawn from; spatial blocks unless given.
    tolerance: how far a colour may lie from the schema's, per channel.
    max_unknown: share of a label's pixels whose colour or value the schema may lack; they are ignored and reported.
    nodata: the value that means no data in scenes that declare none, as in `raster.values.Reading`.
    numbers: what those of the maps mean, class indices or the schema's label values; found out unless given, see
        `maps.find_numbers`.
    area: a layer of polygons; only pixels inside are counted. allow_huge: take rasters of more than
    `raster.sizes.MOST_PIXELS`.
    names: what the scenes are called in the result; told by the files unless given.
    say: gets a line about each thing that was decided. progress: called with (pixels done, pixels in all).

    Raises ConfigError for options that cannot be meant and RasterError for files that do not fit each other or the
    schema: sizes or georeferences that differ, unknown colours or values, no labelled pixel in the whole set.
    """
    (metrics,) = evaluate_protocols(
        predictions,
        labels,
        schema,
        [protocol],
        scenes=scenes,
        confidences=confidences,
        boundary=boundary,
        resampling=resampling,
        tolerance=tolerance,
        max_unknown=max_unknown,
        nodata=nodata,
        numbers=numbers,
        area=area,
        allow_huge=allow_huge,
        names=names,
        say=say,
        progress=progress,
    )
    return metrics


def evaluate_protocols(
    predictions: AnyPath | Sequence[AnyPath],
    labels: AnyPath | Sequence[AnyPath],
    schema: ClassSchema | AnyPath,
    protocols: Sequence[Protocol | AnyPath],
    *,
    scenes: Sequence[ImageFiles] | None = None,
    confidences: AnyPath | Sequence[AnyPath] | None = None,
    boundary: Sequence[float] = (),
    resampling: Resampling | None = None,
    tolerance: int = 0,
    max_unknown: float = 0.01,
    nodata: tuple[float | None, ...] = (),
    numbers: Numbers = "auto",
    labelling: LabelOptions | None = None,
    area: AnyPath | None = None,
    allow_huge: bool = False,
    names: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress | None = None,
    shares: Executor | None = None,
) -> list[Metrics]:
    """`evaluate` under several protocols at once: each raster is read once, each protocol gets a result of its own.

    shares: what reads and counts, this process unless given; the figures are the same.
    """
    schema = schema if isinstance(schema, ClassSchema) else load_schema(fspath(schema))
    rules = [item if isinstance(item, Protocol) else load_protocol(fspath(item)) for item in protocols]
    files = subjects(predictions, labels, scenes, confidences, names)
    for rule in rules:  # both refuse what cannot be meant before hours of reading
        rule.averaged(schema)
        rule.check_scenes([subject.name for subject in files])
    if boundary:
        boundary = no_boundaries(len(schema), boundary).distances
    options = Options(tolerance, max_unknown, tuple(boundary))
    watched = Watched([area, *(path for subject in files for path in subject.paths)])
    spelling = Spelling.of(
        files,
        schema,
        tolerance=tolerance,
        numbers=numbers,
        nodata=nodata,
        labelling=labelling,
        area=area,
        allow_huge=allow_huge,
        say=say,
    )
    looked = _check(files, spelling, say)
    total, done = sum(one.pixels for one in looked), 0

    def advance(pixels: int) -> None:
        nonlocal done
        done += pixels
        if progress is not None:
            progress(done, total)

    radii = tuple(sorted({0} | {rule.ignore_boundary for rule in rules}))
    tasks = [_stretches(one, spelling, options, radii) for one in looked]
    with closing((shares or Here()).map(_count_stretch, chain.from_iterable(tasks))) as counted:
        results = [
            _scene_result(
                one,
                _Counts(one, schema, radii),
                chain.from_iterable(islice(counted, len(of_scene))),
                options,
                advance,
            )
            for one, of_scene in zip(looked, tasks, strict=True)
        ]
    watched.require_unchanged()
    drawn = resampling or Resampling()
    found = [Metrics(schema, rule, tuple(results), options=options, resampling=drawn) for rule in rules]
    for metrics in found:
        if not metrics.scores.confusion.evaluated:
            raise RasterError(
                f"no labelled pixel in {', '.join(str(subject.label) for subject in files)}: all are ignored by schema "
                f"{schema.name!r}, eroded by protocol {metrics.protocol.id!r}, or nodata in the scene; check --classes"
            )
    return found


@dataclass(frozen=True)
class _Looked:
    """A scene whose rasters were opened: the size of its label, how that is read, and what made the map."""

    subject: Subject
    height: int
    width: int
    labelling: LabelOptions
    made_by: dict[str, str]

    @property
    def pixels(self) -> int:
        return self.height * self.width


def _check(files: Sequence[Subject], spelling: Spelling, say: Callable[[str], None]) -> list[_Looked]:
    """Open all rasters and compare their grids before the first is read.

    Each is closed again: there may be thousands.
    """
    looked: list[_Looked] = []
    resampled = 0
    notes: list[Note] = []
    for subject in files:
        with opened(subject, spelling) as rasters:
            label = rasters.label
            looked.append(
                _Looked(subject, label.height, label.width, rasters.labelling, made_by(rasters.prediction.tags))
            )
            resampled += rasters.resampled
            notes += rasters.notes
    for line in told(notes):
        say(f"note: {line}")
    if resampled:
        say(
            f"{resampled} of {len(files)} maps have pixels of another size than their labels; they are compared on the "
            "grid of the labels, by the map's pixel under the middle of each of theirs"
        )
    return looked


_PIXELS_AT_ONCE = 2**25
"""Of a share: some seconds of work, so that to open the rasters for it counts for nothing."""


@dataclass(frozen=True)
class _Stretch:
    """A share: whole rows of a scene, from one row of blocks to another."""

    subject: Subject
    spelling: Spelling
    options: Options
    radii: tuple[int, ...]
    rows: Window

    @property
    def files(self) -> list[Location]:
        """What is read."""
        found = [locate(path) for path in self.subject.paths]
        return found if self.spelling.area is None else [*found, self.spelling.area]


def _stretches(looked: _Looked, spelling: Spelling, options: Options, radii: tuple[int, ...]) -> list[_Stretch]:
    """The shares of a scene: whole rows of its blocks."""
    height = max(1, _PIXELS_AT_ONCE // (looked.width * BLOCK)) * BLOCK
    area = None if spelling.area is None else locate(absolute(spelling.area))
    subject, spelling = looked.subject.from_the_root(), replace(spelling, labelling=looked.labelling, area=area)
    rows = cover(Window(0, 0, looked.height, looked.width), height)
    return [_Stretch(subject, spelling, options, radii, part) for part in rows]


def _count_stretch(task: _Stretch) -> Iterator["_Part"]:
    """Read and count whole rows of a scene, window by window: the only place where evaluation meets pixels."""
    distances, rows = task.options.boundary, task.rows
    reach = max(*task.radii, halo(distances))
    with opened(task.subject, task.spelling, settled=True) as rasters:
        read = (_read(rasters, window, reach) for window in windows(rows.height, rows.width, rows.row))
        with closing(read_ahead(read, 1)) as coming:
            for pixels in coming:
                yield _count_window(rasters, pixels, distances, task.radii)


@dataclass(frozen=True)
class _Part:
    """What was counted in a window, by erosion radius where that matters.

    blocks: for each block that the window reaches into, its place in the scene and a table (K + 1, K + 1) as `joint`
    gives it.
    """

    pixels: int
    blocks: dict[int, list[tuple[int, NDArray[np.int64]]]]
    calibration: dict[int, CalibrationCounts]
    boundary: BoundaryCounts | None
    strange: Counter[Any]


@dataclass
class _Counts:
    """What is added up of a scene; the counts of its blocks (N, K + 1, K + 1) as `joint` gives them."""

    looked: _Looked
    schema: ClassSchema
    radii: tuple[int, ...]
    blocks: dict[int, NDArray[np.int64]] = field(init=False)
    calibration: dict[int, CalibrationCounts] = field(default_factory=dict)
    boundary: BoundaryCounts | None = None
    strange: Counter[Any] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        rows, columns = block_grid(self.looked.height, self.looked.width)
        side = len(self.schema) + 1
        self.blocks = {radius: np.zeros((rows * columns, side, side), np.int64) for radius in self.radii}

    def add(self, part: _Part) -> None:
        """Add what was counted in a window."""
        for radius, tables in part.blocks.items():
            for place, table in tables:
                self.blocks[radius][place] += table
        for radius, found in part.calibration.items():
            self.calibration[radius] = self.calibration.get(radius, no_calibration()) + found
        if part.boundary is not None:
            self.boundary = part.boundary if self.boundary is None else self.boundary + part.boundary
        self.strange = bounded(self.strange + part.strange)

    def hint(self) -> str:
        """What the labels look like, in a sentence, where they do not look right."""
        pixels = self.blocks[min(self.radii)].sum(axis=(0, 2))[1:]
        said = shifted_by_one(self.schema, pixels, self.strange)
        return f". {said}" if said else ""

    def stacks(self) -> dict[int, Confusion]:
        """The counts of the blocks, by erosion radius."""
        ignored = {radius: int(table[:, 0].sum()) for radius, table in self.blocks.items()}
        return {
            radius: Confusion(
                table[:, 1:, 1:],
                table[:, 1:, 0],
                ignored=ignored[radius],
                eroded=ignored[radius] - ignored[0],
                unknown=self.strange.total(),
            )
            for radius, table in self.blocks.items()
        }


def _scene_result(
    looked: _Looked, counts: _Counts, parts: Iterator[_Part], options: Options, advance: Callable[[int], None]
) -> SceneResult:
    """Everything about one scene. Raises RasterError when the schema lacks too much of its label."""
    subject = looked.subject
    for part in parts:
        counts.add(part)
        advance(part.pixels)
    allowed, area = options.max_unknown, looked.pixels
    unknown = counts.strange.total()
    if unknown > allowed * area:
        raise RasterError(
            f"label {subject.label} {describe_unknown(counts.strange, counts.schema)}: they are {unknown} pixels, "
            f"{100 * unknown / area:.3g} % of it, allowed are {100 * allowed:.3g} %{counts.hint()}"
        )
    return SceneResult(
        name=subject.name,
        label=without_access(str(subject.label)),
        prediction=without_access(str(subject.prediction)),
        height=looked.height,
        width=looked.width,
        blocks=counts.stacks(),
        calibration=counts.calibration,
        boundary=counts.boundary,
        made_by=looked.made_by,
    )


@dataclass(frozen=True)
class _Pixels:
    """What is read of a window: label, map and validity (H, W) of the window and what is around it, and confidences.

    inner: where the window lies in them. valid: None without a scene. unknown: of the window alone.
    """

    window: Window
    inner: tuple[slice, slice]
    label: NDArray[np.uint8]
    mapped: NDArray[np.uint8]
    valid: NDArray[np.bool_] | None
    confidence: NDArray[np.float32] | None
    unknown: Counter[Any]


def _read(rasters: Opened, window: Window, reach: int) -> _Pixels:
    """A window of a scene with `reach` pixels around it: erosion and outlines see across its border."""
    outer = window.grown(reach, rasters.label.height, rasters.label.width)
    index, unknown = rasters.label.read(outer)
    if unknown and outer != window:
        _, unknown = rasters.label.read(window)  # those around it were or will be counted in their own window
    down, right = window.row - outer.row, window.col - outer.col
    return _Pixels(
        window=window,
        inner=(slice(down, down + window.height), slice(right, right + window.width)),
        label=index,
        mapped=rasters.mapped(outer),
        valid=rasters.valid(outer),
        confidence=rasters.confidences(window),
        unknown=unknown,
    )


def _count_window(rasters: Opened, pixels: _Pixels, distances: tuple[float, ...], radii: tuple[int, ...]) -> _Part:
    """What there is to count in a window of a scene."""
    inner, predicted = pixels.inner, pixels.mapped[pixels.inner]
    blocks, calibration = {}, {}
    for radius in radii:
        # Eroded first: the edge of the data is no boundary.
        truth = (erode_boundaries(pixels.label, radius) if radius else pixels.label)[inner]
        if pixels.valid is not None:
            truth = np.where(pixels.valid[inner], truth, np.uint8(IGNORE))
        blocks[radius] = _in_blocks(rasters.label, pixels.window, truth, predicted)
        if rasters.confidence is not None and pixels.confidence is not None:
            sure = rasters.confidence.of_class(pixels.confidence, predicted)
            known = (truth != IGNORE) & (predicted != IGNORE) & ~np.isnan(sure)
            calibration[radius] = count_calibration(sure[known].astype(np.float64), (truth == predicted)[known])
    boundary = None
    if distances:
        known_label = pixels.label if pixels.valid is None else np.where(pixels.valid, pixels.label, np.uint8(IGNORE))
        boundary = count_boundaries(known_label, pixels.mapped, inner, len(rasters.label.schema), distances)
    area = pixels.window.height * pixels.window.width
    return _Part(area, blocks, calibration, boundary, pixels.unknown)


def _in_blocks(
    label: Label, window: Window, truth: NDArray[np.uint8], predicted: NDArray[np.uint8]
) -> list[tuple[int, NDArray[np.int64]]]:
    """The pixels of a window counted by blocks."""
    columns = block_grid(label.height, label.width)[1]
    return [
        (
            part.row // BLOCK * columns + part.col // BLOCK,
            joint(truth[part.within(window)], predicted[part.within(window)], len(label.schema)),
        )
        for part in cells(window, BLOCK, BLOCK)
    ]
