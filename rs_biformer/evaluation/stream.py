"""Pairs of rasters -> Metrics, window by window: memory does not grow with the scenes."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from os import PathLike, fspath

import numpy as np
from numpy.typing import NDArray

from rs_biformer.background import read_ahead
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.evaluation.boundary import BoundaryCounts, count_boundaries, halo, no_boundaries
from rs_biformer.evaluation.calibration import CalibrationCounts, count_calibration, no_calibration
from rs_biformer.evaluation.confusion import Confusion, joint
from rs_biformer.evaluation.maps import AnyPath, ClassMap, Probabilities, describe_unknown
from rs_biformer.evaluation.metrics import BLOCK, Metrics, Options, SceneResult, block_grid
from rs_biformer.evaluation.protocols import Protocol, load_protocol
from rs_biformer.evaluation.resampling import Resampling
from rs_biformer.geometry import Window, cells, cover
from rs_biformer.raster.labels import LabelRaster, erode_boundaries
from rs_biformer.raster.metadata import made_by
from rs_biformer.raster.paths import Location, folder_of, locate, stem_of
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.source import require_same_grid
from rs_biformer.raster.values import Reading
from rs_biformer.schema import IGNORE, ClassSchema, load_schema

ImageFiles = AnyPath | Sequence[AnyPath]
Progress = Callable[[int, int], None]

# A window is one row of blocks of the usual sizes, 4 Mpx at most, so that each block is decoded once.
_ROWS, _COLUMNS = 512, 8192


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
    progress: Progress | None = None,
) -> Metrics:
    """Compare class maps with label rasters, pairwise in the order given.

    One confusion matrix is summed over the whole set; no score is averaged over scenes or windows. Unlabelled pixels
    are not counted; labelled pixels without a prediction count as errors (see `confusion`), unless `scenes` show that
    there was nothing to predict from. Where the protocol erodes label boundaries, the full labels are counted as well.

    predictions: class maps as `predict` writes them, or in the schema's colours.
    labels: full (not eroded) labels in the schema's colours or values.
    scenes: the images behind the predictions, each one file or several; pixels that are nodata in them are ignored.
    confidences: confidence or probability rasters, one for each prediction, for the calibration.
    boundary: distances in pixels for the boundary F1 (see `boundary`).
    resampling: what intervals are drawn from; spatial blocks unless given.
    tolerance: how far a colour may lie from the schema's, per channel.
    max_unknown: share of a label's pixels whose colour or value the schema may lack; they are ignored and reported.
    nodata: the value that means no data in scenes that declare none, as in `raster.values.Reading`.
    progress: called with (pixels done, pixels in all).

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
    progress: Progress | None = None,
) -> list[Metrics]:
    """`evaluate` under several protocols at once: each raster is read once, each protocol gets a result of its own."""
    schema = schema if isinstance(schema, ClassSchema) else load_schema(fspath(schema))
    rules = [item if isinstance(item, Protocol) else load_protocol(fspath(item)) for item in protocols]
    pairs = pair(predictions, labels)
    names = scene_names(pairs)
    for rule in rules:  # both refuse what cannot be meant before hours of reading
        rule.averaged(schema)
        rule.check_scenes(names)
    if boundary:
        boundary = no_boundaries(len(schema), boundary).distances
    options = Options(tolerance, max_unknown, tuple(boundary))
    images = _one_each(scenes, len(pairs), "scenes")
    certain = _one_each(None if confidences is None else _paths(confidences), len(pairs), "confidence rasters")
    jobs = [
        _Job(*files, image, confidence, schema, options, Reading(nodata))
        for files, image, confidence in zip(pairs, images, certain, strict=True)
    ]
    total = 0
    for job in jobs:
        # All are opened and compared before the first is read, and closed again: there may be thousands.
        with _open(job) as opened:
            total += opened.label.height * opened.label.width
    done = 0

    def advance(pixels: int) -> None:
        nonlocal done
        done += pixels
        if progress is not None:
            progress(done, total)

    radii = tuple(sorted({0} | {rule.ignore_boundary for rule in rules}))
    results = []
    for name, job in zip(names, jobs, strict=True):
        with _open(job) as opened:
            results.append(_count_scene(name, job, opened, radii, advance))
    found = [
        Metrics(schema, rule, tuple(results), options=options, resampling=resampling or Resampling()) for rule in rules
    ]
    for metrics in found:
        if not metrics.scores.confusion.evaluated:
            raise RasterError(
                f"no labelled pixel in {', '.join(str(label) for _, label in pairs)}: all are ignored by schema "
                f"{schema.name!r}, eroded by protocol {metrics.protocol.id!r}, or nodata in the scene; check --classes"
            )
    return found


def _one_each(given: Sequence | None, pairs: int, what: str) -> list:
    listed = list(given) if given is not None else [None] * pairs
    if len(listed) != pairs:
        raise ConfigError(f"{len(listed)} {what} for {pairs} predictions; give one for each, in the same order")
    return listed


@dataclass(frozen=True)
class _Job:
    """The files of one scene, and how they are read."""

    prediction: Location
    label: Location
    image: ImageFiles | None
    confidence: Location | None
    schema: ClassSchema
    options: Options
    reading: Reading


@dataclass(frozen=True)
class _Opened:
    """The rasters of one scene while they are read, on one grid."""

    prediction: ClassMap
    label: LabelRaster
    scene: Scene | None
    confidence: Probabilities | None


@contextmanager
def _open(job: _Job) -> Iterator[_Opened]:
    """The rasters of a scene. Raises RasterError unless they lie on one grid."""
    schema, tolerance = job.schema, job.options.tolerance
    with (
        ClassMap(job.prediction, schema, tolerance=tolerance) as prediction,
        LabelRaster(job.label, schema, tolerance=tolerance) as label,
        nullcontext() if job.image is None else Scene(job.image, reading=job.reading) as scene,
        nullcontext() if job.confidence is None else Probabilities(job.confidence, schema) as confidence,
    ):
        require_same_grid(prediction.source, label)
        if scene is not None:
            require_same_grid(scene, label)
        if confidence is not None:
            require_same_grid(confidence.source, label)
        yield _Opened(prediction, label, scene, confidence)


def pair(
    predictions: AnyPath | Sequence[AnyPath], labels: AnyPath | Sequence[AnyPath]
) -> list[tuple[Location, Location]]:
    """Predictions and labels, paired in the order given. Raises ConfigError unless there are as many of each."""
    left, right = _paths(predictions), _paths(labels)
    if len(left) != len(right) or not left:
        raise ConfigError(
            f"{len(left)} predictions and {len(right)} labels; give one label for each prediction, in the same order"
        )
    return list(zip(left, right, strict=True))


def scene_names(pairs: Sequence[tuple[Location, Location]]) -> tuple[str, ...]:
    """A name for each pair: what the file names begin with in common, or what tells the pairs apart."""
    common = tuple(_common_name(stem_of(prediction), stem_of(label)) for prediction, label in pairs)
    stems = tuple(stem_of(label) for _, label in pairs)
    for names in (common, stems):
        if len(set(names)) == len(names):
            return names
    return tuple(
        f"{folder_of(label).rpartition('/')[2]}/{stem_of(label)} ({number})"
        for number, (_, label) in enumerate(pairs, 1)
    )


def windows(height: int, width: int) -> Iterator[Window]:
    """The windows by which a raster is read here: rows of 512 pixels, cut at 8192 columns."""
    return cover(Window(0, 0, height, width), _ROWS, _COLUMNS)


@dataclass
class _Counts:
    """What is added up while a scene is read; the counts of its blocks (N, K + 1, K + 1) as `joint` gives them."""

    label: LabelRaster
    radii: tuple[int, ...]
    blocks: dict[int, NDArray[np.int64]] = field(init=False)
    calibration: dict[int, CalibrationCounts] = field(default_factory=dict)
    boundary: BoundaryCounts | None = None
    strange: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        rows, columns = block_grid(self.label.height, self.label.width)
        side = len(self.label.schema) + 1
        self.blocks = {radius: np.zeros((rows * columns, side, side), np.int64) for radius in self.radii}

    def add(self, radius: int, window: Window, label: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> None:
        """Count a window's pixels, each in its block."""
        columns = block_grid(self.label.height, self.label.width)[1]
        for part in cells(window, BLOCK, BLOCK):
            place = part.within(window)
            counted = joint(label[place], prediction[place], len(self.label.schema))
            self.blocks[radius][part.row // BLOCK * columns + part.col // BLOCK] += counted

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


def _count_scene(
    name: str, job: _Job, opened: _Opened, radii: tuple[int, ...], advance: Callable[[int], None]
) -> SceneResult:
    """Everything about one scene. Raises RasterError when the schema lacks too much of its label."""
    label = opened.label
    counts = _Counts(label, radii)
    reach = max(*radii, halo(job.options.boundary))
    read = (_read(opened, window, reach) for window in windows(label.height, label.width))
    with closing(read_ahead(read, 1)) as coming:
        for pixels in coming:
            _count_window(opened, pixels, job.options.boundary, counts)
            advance(pixels.window.height * pixels.window.width)
    allowed, area = job.options.max_unknown, label.height * label.width
    unknown = counts.strange.total()
    if unknown > allowed * area:
        raise RasterError(
            f"label {label.path} {describe_unknown(counts.strange, label.schema)}: they are {unknown} pixels, "
            f"{100 * unknown / area:.3g} % of it, allowed are {100 * allowed:.3g} %"
        )
    return SceneResult(
        name=name,
        label=str(job.label),
        prediction=str(job.prediction),
        height=label.height,
        width=label.width,
        blocks=counts.stacks(),
        calibration=counts.calibration,
        boundary=counts.boundary,
        made_by=made_by(opened.prediction.tags),
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
    unknown: Counter


def _read(opened: _Opened, window: Window, reach: int) -> _Pixels:
    """A window of a scene with `reach` pixels around it: erosion and outlines see across its border."""
    outer = window.grown(reach, opened.label.height, opened.label.width)
    index, unknown = opened.label.read(outer)
    if unknown and outer != window:
        _, unknown = opened.label.read(window)  # those around it were or will be counted in their own window
    down, right = window.row - outer.row, window.col - outer.col
    return _Pixels(
        window=window,
        inner=(slice(down, down + window.height), slice(right, right + window.width)),
        label=index,
        mapped=opened.prediction.read(outer),
        valid=None if opened.scene is None else opened.scene.read(outer)[1],
        confidence=None if opened.confidence is None else opened.confidence.read(window),
        unknown=unknown,
    )


def _count_window(opened: _Opened, pixels: _Pixels, distances: tuple[float, ...], counts: _Counts) -> None:
    """Add a window of a scene to its counts."""
    counts.strange += pixels.unknown
    inner, predicted = pixels.inner, pixels.mapped[pixels.inner]
    for radius in counts.radii:
        # Eroded first: the edge of the data is no boundary.
        truth = (erode_boundaries(pixels.label, radius) if radius else pixels.label)[inner]
        if pixels.valid is not None:
            truth = np.where(pixels.valid[inner], truth, np.uint8(IGNORE))
        counts.add(radius, pixels.window, truth, predicted)
        if opened.confidence is not None and pixels.confidence is not None:
            sure = opened.confidence.of_class(pixels.confidence, predicted)
            known = (truth != IGNORE) & (predicted != IGNORE) & ~np.isnan(sure)
            found = count_calibration(sure[known].astype(np.float64), (truth == predicted)[known])
            counts.calibration[radius] = counts.calibration.get(radius, no_calibration()) + found
    if distances:
        known_label = pixels.label if pixels.valid is None else np.where(pixels.valid, pixels.label, np.uint8(IGNORE))
        outlines = count_boundaries(known_label, pixels.mapped, inner, len(opened.label.schema), distances)
        counts.boundary = outlines if counts.boundary is None else counts.boundary + outlines


def _paths(paths: AnyPath | Sequence[AnyPath]) -> list[Location]:
    return [locate(path) for path in ([paths] if isinstance(paths, str | PathLike) else paths)]


def _common_name(prediction: str, label: str) -> str:
    """The words that both names begin with; the label's name when there are none."""
    words = []
    for one, other in zip(prediction.split("_"), label.split("_"), strict=False):
        if one != other:
            break
        words.append(one)
    return "_".join(words) or label
