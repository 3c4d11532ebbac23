"""Pairs of rasters -> Metrics, window by window: memory does not grow with the scenes."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
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
from rs_biformer.evaluation.rasters import ImageFiles, Opened, Spelling, Subject, opened, subjects
from rs_biformer.evaluation.resampling import Resampling
from rs_biformer.geometry import Window, cells
from rs_biformer.raster.labelling import Label, Note, told
from rs_biformer.raster.labels import LabelOptions, erode_boundaries, shifted_by_one
from rs_biformer.raster.metadata import made_by
from rs_biformer.raster.paths import without_access
from rs_biformer.raster.unchanged import Watched
from rs_biformer.schema import IGNORE, ClassSchema, load_schema

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
    area: a layer of polygons; only pixels inside are counted.
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
    names: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress | None = None,
) -> list[Metrics]:
    """`evaluate` under several protocols at once: each raster is read once, each protocol gets a result of its own."""
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
        say=say,
    )
    total, done = _check(files, spelling, say), 0

    def advance(pixels: int) -> None:
        nonlocal done
        done += pixels
        if progress is not None:
            progress(done, total)

    radii = tuple(sorted({0} | {rule.ignore_boundary for rule in rules}))
    results = []
    for subject in files:
        with opened(subject, spelling) as rasters:
            results.append(_count_scene(subject, rasters, options, radii, advance))
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


def _check(files: Sequence[Subject], spelling: Spelling, say: Callable[[str], None]) -> int:
    """Open all rasters and compare their grids before the first is read; the pixels that there are.

    Each is closed again: there may be thousands.
    """
    total, resampled = 0, 0
    notes: list[Note] = []
    for subject in files:
        with opened(subject, spelling) as rasters:
            total += rasters.pixels
            resampled += rasters.resampled
            notes += rasters.notes
    for line in told(notes):
        say(f"note: {line}")
    if resampled:
        say(
            f"{resampled} of {len(files)} maps have pixels of another size than their labels; they are compared on the "
            "grid of the labels, by the map's pixel under the middle of each of theirs"
        )
    return total


@dataclass
class _Counts:
    """What is added up while a scene is read; the counts of its blocks (N, K + 1, K + 1) as `joint` gives them."""

    label: Label
    radii: tuple[int, ...]
    blocks: dict[int, NDArray[np.int64]] = field(init=False)
    calibration: dict[int, CalibrationCounts] = field(default_factory=dict)
    boundary: BoundaryCounts | None = None
    strange: Counter[Any] = field(default_factory=Counter)

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

    def hint(self) -> str:
        """What the labels look like, in a sentence, where they do not look right."""
        pixels = self.blocks[min(self.radii)].sum(axis=(0, 2))[1:]
        said = shifted_by_one(self.label.schema, pixels, self.strange)
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


def _count_scene(
    subject: Subject, rasters: Opened, options: Options, radii: tuple[int, ...], advance: Callable[[int], None]
) -> SceneResult:
    """Everything about one scene. Raises RasterError when the schema lacks too much of its label."""
    label = rasters.label
    counts = _Counts(label, radii)
    reach = max(*radii, halo(options.boundary))
    read = (_read(rasters, window, reach) for window in rasters.windows())
    with closing(read_ahead(read, 1)) as coming:
        for pixels in coming:
            _count_window(rasters, pixels, options.boundary, counts)
            advance(pixels.window.height * pixels.window.width)
    allowed, area = options.max_unknown, rasters.pixels
    unknown = counts.strange.total()
    if unknown > allowed * area:
        raise RasterError(
            f"label {label.path} {describe_unknown(counts.strange, label.schema)}: they are {unknown} pixels, "
            f"{100 * unknown / area:.3g} % of it, allowed are {100 * allowed:.3g} %{counts.hint()}"
        )
    return SceneResult(
        name=subject.name,
        label=without_access(str(subject.label)),
        prediction=without_access(str(subject.prediction)),
        height=label.height,
        width=label.width,
        blocks=counts.stacks(),
        calibration=counts.calibration,
        boundary=counts.boundary,
        made_by=made_by(rasters.prediction.tags),
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


def _count_window(rasters: Opened, pixels: _Pixels, distances: tuple[float, ...], counts: _Counts) -> None:
    """Add a window of a scene to its counts."""
    counts.strange += pixels.unknown
    inner, predicted = pixels.inner, pixels.mapped[pixels.inner]
    for radius in counts.radii:
        # Eroded first: the edge of the data is no boundary.
        truth = (erode_boundaries(pixels.label, radius) if radius else pixels.label)[inner]
        if pixels.valid is not None:
            truth = np.where(pixels.valid[inner], truth, np.uint8(IGNORE))
        counts.add(radius, pixels.window, truth, predicted)
        if rasters.confidence is not None and pixels.confidence is not None:
            sure = rasters.confidence.of_class(pixels.confidence, predicted)
            known = (truth != IGNORE) & (predicted != IGNORE) & ~np.isnan(sure)
            found = count_calibration(sure[known].astype(np.float64), (truth == predicted)[known])
            counts.calibration[radius] = counts.calibration.get(radius, no_calibration()) + found
    if distances:
        known_label = pixels.label if pixels.valid is None else np.where(pixels.valid, pixels.label, np.uint8(IGNORE))
        outlines = count_boundaries(known_label, pixels.mapped, inner, len(rasters.label.schema), distances)
        counts.boundary = outlines if counts.boundary is None else counts.boundary + outlines
