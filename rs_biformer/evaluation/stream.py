"""Pairs of rasters -> Metrics, window by window: memory does not grow with the scenes."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.evaluation.confusion import Confusion, count, empty
from rs_biformer.evaluation.metrics import Metrics, SceneResult
from rs_biformer.evaluation.protocols import Protocol, load_protocol
from rs_biformer.geometry import Window
from rs_biformer.raster.labels import LabelRaster, erode_boundaries
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.source import Source, require_same_grid
from rs_biformer.schema import IGNORE, ClassSchema, load_schema

AnyPath = str | PathLike[str]
SceneFiles = AnyPath | Sequence[AnyPath]
Progress = Callable[[int, int], None]

# A window is one row of blocks of the usual sizes, 4 Mpx at most, so that each block is decoded once.
_ROWS, _COLUMNS = 512, 8192


class ClassMap:
    """A predicted class map, read by window as class indices; a context manager.

    One band holds class indices 0, 1, 2, ... as `rs-biformer predict` writes them, whatever numbers the schema's
    labels use, with nodata or 255 where there is no prediction. Three bands hold the schema's colours. Either may have
    an alpha band as a mask.

    Raises RasterError when the file cannot be read, holds anything else, or draws its classes (by its colour table)
    in colours that belong to other classes of the schema.
    """

    def __init__(self, path: AnyPath, schema: ClassSchema, *, tolerance: int = 0) -> None:
        self.source, self.schema = Source(path), schema
        self._colours: LabelRaster | None = None
        bands = sum(interp.name != "alpha" for interp in self.source.interps)
        if bands == 3:
            self._colours = LabelRaster(path, schema, tolerance=tolerance)
        elif bands != 1:
            raise RasterError(
                f"{self.path} has {bands} bands; a class map has one of class indices, or three of colours, alpha apart"
            )
        elif np.dtype(self.source.dtypes[0]).kind not in "iu":
            raise RasterError(
                f"{self.path} holds {self.source.dtypes[0]}; a class map holds whole numbers, write uint8"
            )
        self._require_order()

    @property
    def path(self) -> Path:
        return self.source.path

    def __enter__(self) -> "ClassMap":
        return self

    def __exit__(self, *exception: object) -> None:
        self.source.close()
        if self._colours is not None:
            self._colours.close()

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class index (h, w) uint8 of a window, IGNORE where nothing was predicted."""
        if self._colours is not None:
            index, unknown = self._colours.read(window)
            if unknown:
                raise RasterError(f"prediction {self.path} {_describe_unknown(unknown, self.schema)}")
            return index
        (values,) = self.source.read([1], window)
        missing = ~self.source.valid([1], [values], window) | (values == IGNORE)
        wrong = ~missing & ((values < 0) | (values >= len(self.schema)))
        if wrong.any():
            raise RasterError(
                f"prediction {self.path} holds the value {values[wrong][0]}; schema {self.schema.name!r} has the "
                f"class indices 0 to {len(self.schema) - 1}, use the --classes that the map was made with"
            )
        return np.where(missing, IGNORE, values).astype(np.uint8)

    def _require_order(self) -> None:
        if self.source.palette is None:
            return
        for index, colour in enumerate(self.source.palette[: len(self.schema), :3].tolist()):
            if tuple(colour) in self.schema.colours and self.schema.colours[index] != tuple(colour):
                other = self.schema.classes[self.schema.colours.index(tuple(colour))]
                raise RasterError(
                    f"prediction {self.path} draws class {index} in the colour of {other!r}, but schema "
                    f"{self.schema.name!r} calls class {index} {self.schema.classes[index]!r}; use the --classes that "
                    "the map was made with"
                )


def evaluate(
    predictions: AnyPath | Sequence[AnyPath],
    labels: AnyPath | Sequence[AnyPath],
    schema: ClassSchema | AnyPath,
    protocol: Protocol | AnyPath = "all-classes",
    *,
    scenes: Sequence[SceneFiles] | None = None,
    tolerance: int = 0,
    max_unknown: float = 0.01,
    progress: Progress | None = None,
) -> Metrics:
    """Compare class maps with label rasters, pairwise in the order given.

    One confusion matrix is summed over the whole set; no score is averaged over scenes or windows. Unlabelled pixels
    are not counted; labelled pixels without a prediction count as errors (see `confusion`), unless `scenes` show that
    there was nothing to predict from. Where the protocol erodes label boundaries, the full labels are counted as well.

    predictions: class maps as `predict` writes them, or in the schema's colours.
    labels: full (not eroded) labels in the schema's colours or values.
    scenes: the images behind the predictions, each one file or several; pixels that are nodata in them are ignored.
    tolerance: how far a colour may lie from the schema's, per channel.
    max_unknown: share of a label's pixels whose colour or value the schema may lack; they are ignored and reported.
    progress: called with (pixels done, pixels in all).

    Raises ConfigError for options that cannot be meant and RasterError for files that do not fit each other or the
    schema: sizes or georeferences that differ, unknown colours or values, no labelled pixel in the whole set.
    """
    schema = schema if isinstance(schema, ClassSchema) else load_schema(fspath(schema))
    protocol = protocol if isinstance(protocol, Protocol) else load_protocol(fspath(protocol))
    protocol.averaged(schema)  # refuses an unknown class before hours of reading
    pairs = pair(predictions, labels)
    images = list(scenes) if scenes is not None else [None] * len(pairs)
    if len(images) != len(pairs):
        raise ConfigError(f"{len(images)} scenes for {len(pairs)} predictions; give one for each, in the same order")
    names = scene_names(pairs)
    notes = protocol.check_scenes(names)
    total = 0
    for files, image in zip(pairs, images, strict=True):
        # All are opened and compared before the first is read, and closed again: there may be thousands.
        with _open(files, image, schema, tolerance) as opened:
            total += opened.label.height * opened.label.width
    done = 0

    def advance(pixels: int) -> None:
        nonlocal done
        done += pixels
        if progress is not None:
            progress(done, total)

    results = []
    for name, files, image in zip(names, pairs, images, strict=True):
        with _open(files, image, schema, tolerance) as opened:
            counts, full = _count_scene(opened, protocol.ignore_boundary, max_unknown, advance)
        results.append(SceneResult(name, str(files[1]), str(files[0]), counts, full))
    metrics = Metrics(schema, protocol, tuple(results), notes, tolerance, max_unknown)
    if not metrics.scores.confusion.evaluated:
        raise RasterError(
            f"no labelled pixel in {', '.join(str(label) for _, label in pairs)}: all are ignored by schema "
            f"{schema.name!r}, eroded by protocol {protocol.id!r}, or nodata in the scene; check --classes"
        )
    return metrics


@dataclass(frozen=True)
class _Opened:
    """The rasters of one pair while they are read, on one grid."""

    prediction: ClassMap
    label: LabelRaster
    scene: Scene | None


@contextmanager
def _open(files: tuple[Path, Path], image: SceneFiles | None, schema: ClassSchema, tolerance: int) -> Iterator[_Opened]:
    """Prediction, label and image of a pair. Raises RasterError unless they lie on one grid."""
    with (
        ClassMap(files[0], schema, tolerance=tolerance) as prediction,
        LabelRaster(files[1], schema, tolerance=tolerance) as label,
        nullcontext() if image is None else Scene(image) as scene,
    ):
        require_same_grid(prediction.source, label)
        if scene is not None:
            require_same_grid(scene, label)
        yield _Opened(prediction, label, scene)


def pair(predictions: AnyPath | Sequence[AnyPath], labels: AnyPath | Sequence[AnyPath]) -> list[tuple[Path, Path]]:
    """Predictions and labels, paired in the order given. Raises ConfigError unless there are as many of each."""
    left, right = _paths(predictions), _paths(labels)
    if len(left) != len(right) or not left:
        raise ConfigError(
            f"{len(left)} predictions and {len(right)} labels; give one label for each prediction, in the same order"
        )
    return list(zip(left, right, strict=True))


def scene_names(pairs: Sequence[tuple[Path, Path]]) -> tuple[str, ...]:
    """A name for each pair: what the file names begin with in common, or what tells the pairs apart."""
    common = tuple(_common_name(prediction.stem, label.stem) for prediction, label in pairs)
    stems = tuple(label.stem for _, label in pairs)
    for names in (common, stems):
        if len(set(names)) == len(names):
            return names
    return tuple(f"{label.parent.name}/{label.stem} ({number})" for number, (_, label) in enumerate(pairs, 1))


def windows(height: int, width: int) -> Iterator[Window]:
    """The windows by which a raster is read here: rows of 512 pixels, cut at 8192 columns."""
    for row in range(0, height, _ROWS):
        for col in range(0, width, _COLUMNS):
            yield Window(row, col, min(_ROWS, height - row), min(_COLUMNS, width - col))


def _describe_unknown(unknown: Counter, schema: ClassSchema) -> str:
    """The middle of a sentence about colours or values that a schema does not know."""
    values = ", ".join(str(value) for value, _ in unknown.most_common(3))
    return (
        f"holds {values}, which schema {schema.name!r} does not know; use the right --classes, list it under ignore "
        "in the schema, or allow near colours by --tolerance"
    )


def _count_scene(
    opened: _Opened, radius: int, max_unknown: float, advance: Callable[[int], None]
) -> tuple[Confusion, Confusion | None]:
    """A scene's counts on labels eroded by `radius`, and on full labels if that is something else."""
    label = opened.label
    counts, full = empty(len(label.schema)), empty(len(label.schema))
    strange: Counter = Counter()
    for window in windows(label.height, label.width):
        part, part_full, unknown = _count_window(opened, window, radius)
        counts, full, strange = counts + part, full + part_full, strange + unknown
        advance(window.height * window.width)
    if full.unknown > max_unknown * label.height * label.width:
        raise RasterError(
            f"label {label.path} {_describe_unknown(strange, label.schema)}: they are {full.unknown} pixels, "
            f"{100 * full.unknown / (label.height * label.width):.3g} % of it, allowed are {100 * max_unknown:.3g} %"
        )
    return counts, full if radius else None


def _count_window(opened: _Opened, window: Window, radius: int) -> tuple[Confusion, Confusion, Counter]:
    """The counts of one window on labels eroded by `radius`, on full labels, and what the schema does not know."""
    label = opened.label
    # Erosion looks `radius` pixels around, so it sees across the window's border what it would see in the whole scene.
    outer = window.grown(radius, label.height, label.width)
    index, unknown = label.read(outer)
    if unknown and outer != window:
        _, unknown = label.read(window)  # the halo's were or will be counted in their own window
    down, right = window.row - outer.row, window.col - outer.col
    inner = (slice(down, down + window.height), slice(right, right + window.width))
    predicted = opened.prediction.read(window)
    nodata = ~opened.scene.read(window)[1] if opened.scene is not None else np.False_
    full = _count(index[inner], predicted, nodata, len(label.schema), unknown)
    if not radius:
        return full, full, unknown
    kept = _count(erode_boundaries(index, radius)[inner], predicted, nodata, len(label.schema), unknown)
    return replace(kept, eroded=kept.ignored - full.ignored), full, unknown


def _count(
    label: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    nodata: NDArray[np.bool_] | np.bool_,
    classes: int,
    unknown: Counter,
) -> Confusion:
    counts = count(np.where(nodata, np.uint8(IGNORE), label), prediction, classes)
    return replace(counts, unknown=unknown.total())


def _paths(paths: AnyPath | Sequence[AnyPath]) -> list[Path]:
    return [Path(paths)] if isinstance(paths, str | PathLike) else [Path(path) for path in paths]


def _common_name(prediction: str, label: str) -> str:
    """The words that both names begin with; the label's name when there are none."""
    words = []
    for one, other in zip(prediction.split("_"), label.split("_"), strict=False):
        if one != other:
            break
        words.append(one)
    return "_".join(words) or label
