"""The rasters of one scene that are compared: map, label, image and confidence, opened together and read on one grid.

The label's grid is the one that counts. A map with pixels of another size on the same ground, which is what resampling
a scene for a model leaves, is read by the pixel that lies under the middle of each pixel of the label.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.evaluation.maps import AnyPath, ClassMap, Numbers, Probabilities, find_numbers
from rs_biformer.geometry import Window, cover
from rs_biformer.raster.crs import names_a_place, same_crs
from rs_biformer.raster.labelling import Label, Note, open_label, settle, without_effect
from rs_biformer.raster.labels import LabelOptions
from rs_biformer.raster.layer import is_vector
from rs_biformer.raster.paths import Location, absolute, folder_of, locate, stem_of
from rs_biformer.raster.placing import fits
from rs_biformer.raster.polygons import Area
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.sizes import require_possible
from rs_biformer.raster.source import (
    MAX_SHIFT,
    Grid,
    Source,
    grid_difference,
    is_georeferenced,
    matrix,
    require_same_grid,
)
from rs_biformer.raster.values import Reading
from rs_biformer.schema import ClassSchema

ImageFiles = AnyPath | Sequence[AnyPath]

_SAME_SIZE = 0.01
"""Share by which the sides of two pixels may differ and still be called the same."""

_ROWS, _COLUMNS = 512, 8192
"""Of the windows that are read: one row of blocks of the usual sizes, 4 Mpx at most, so that each is decoded once."""


@dataclass(frozen=True)
class Spelling:
    """How labels, maps and scenes are read, the same for all of a set.

    tolerance: how far a colour may lie from the schema's. numbers: what those of a map mean, see `maps.Numbers`.
    reading: of the scenes. labelling: of the labels, where their files leave it open. area: polygons outside of which
    nothing counts.
    """

    schema: ClassSchema
    tolerance: int = 0
    numbers: Numbers = "indices"
    reading: Reading = Reading()
    labelling: LabelOptions = LabelOptions()
    area: Location | None = None
    allow_huge: bool = False

    @classmethod
    def of(
        cls,
        subjects: "Sequence[Subject]",
        schema: ClassSchema,
        *,
        tolerance: int,
        numbers: Numbers,
        nodata: tuple[float | None, ...],
        labelling: LabelOptions | None,
        area: AnyPath | None,
        allow_huge: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> "Spelling":
        """What holds for all of a set, with what the numbers of its maps mean found out where that is `auto`."""
        if numbers == "auto":
            numbers = find_numbers([one.prediction for one in subjects], schema, say, allow_huge=allow_huge)
        return cls(
            schema,
            tolerance,
            numbers,
            Reading(nodata),
            labelling or LabelOptions(),
            None if area is None else locate(area),
            allow_huge,
        )


@dataclass(frozen=True)
class Subject:
    """The files of one scene. name: what it is called in the result."""

    name: str
    prediction: Location
    label: Location
    image: ImageFiles | None = None
    confidence: Location | None = None

    def from_the_root(self) -> "Subject":
        """The same files by names that mean the same in every folder."""
        image = None if self.image is None else [absolute(path) for path in _paths(self.image)]
        confidence = None if self.confidence is None else locate(absolute(self.confidence))
        return Subject(self.name, locate(absolute(self.prediction)), locate(absolute(self.label)), image, confidence)

    @property
    def paths(self) -> list[AnyPath]:
        """All of them."""
        images = [] if self.image is None else _paths(self.image)
        return [self.prediction, self.label, *images, *([] if self.confidence is None else [self.confidence])]


@dataclass(frozen=True)
class Opened:
    """The rasters of one scene while they are read; every window is one of the label's grid.

    labelling: how the label is read, with all found out that was left open. notes: on it.
    """

    prediction: ClassMap
    label: Label
    scene: Scene | None
    confidence: Probabilities | None
    labelling: LabelOptions = LabelOptions()
    notes: tuple[Note, ...] = ()
    area: Area | None = None

    @property
    def pixels(self) -> int:
        return self.label.height * self.label.width

    @property
    def resampled(self) -> bool:
        """Whether the map has pixels of another size than the label."""
        return (self.prediction.source.height, self.prediction.source.width) != (self.label.height, self.label.width)

    def mapped(self, window: Window) -> NDArray[np.uint8]:
        """Mapped class (h, w)."""
        return onto(self.label, self.prediction.source, self.prediction.read, window)

    def valid(self, window: Window) -> NDArray[np.bool_] | None:
        """Where the scene has data, inside the area (h, w); None without either."""
        scene = self.scene
        known = None if scene is None else onto(self.label, scene, lambda part: scene.read(part)[1], window)
        inside = None if self.area is None else self.area.inside(window)
        if known is None or inside is None:
            return inside if known is None else known
        return known & inside

    def confidences(self, window: Window) -> NDArray[np.float32] | None:
        """Confidence or probabilities (B, h, w); None without such a raster."""
        if self.confidence is None:
            return None
        return onto(self.label, self.confidence.source, self.confidence.read, window)

    def windows(self) -> Iterator[Window]:
        """The windows by which the scene is read."""
        return windows(self.label.height, self.label.width)


def subjects(
    predictions: AnyPath | Sequence[AnyPath],
    labels: AnyPath | Sequence[AnyPath],
    images: Sequence[ImageFiles] | None,
    confidences: AnyPath | Sequence[AnyPath] | None,
    names: Sequence[str] | None = None,
) -> list[Subject]:
    """The files of a set, put together in the order given.

    Raises ConfigError unless there are as many of each, and for names that are not one for each.
    """
    left, right = _paths(predictions), _paths(labels)
    if len(left) != len(right) or not left:
        raise ConfigError(
            f"{len(left)} predictions and {len(right)} labels; give one label for each prediction, in the same order"
        )
    pictures = _one_each(images, len(left), "scenes")
    certain = _one_each(None if confidences is None else _paths(confidences), len(left), "confidence rasters")
    called = _one_each(names or scene_names(list(zip(left, right, strict=True))), len(left), "names")
    return [Subject(*parts) for parts in zip(called, left, right, pictures, certain, strict=True)]


@contextmanager
def opened(subject: Subject, spelling: Spelling, *, settled: bool = False) -> Iterator[Opened]:
    """The rasters of a scene, open. settled: the spelling's labelling is what an earlier call found out.

    Raises RasterError unless they lie on the same ground, and for more pixels than `sizes.MOST_PIXELS`.
    """
    schema, tolerance = spelling.schema, spelling.tolerance
    with (
        ExitStack() as close,
        ClassMap(subject.prediction, schema, tolerance=tolerance, numbers=spelling.numbers) as prediction,
        nullcontext() if subject.image is None else Scene(subject.image, reading=spelling.reading) as scene,
        nullcontext() if subject.confidence is None else Probabilities(subject.confidence, schema) as confidence,
    ):
        require_possible(prediction.source, spelling.allow_huge)
        label, labelling, notes = label_for(subject.label, prediction.source, scene, spelling, settled=settled)
        close.callback(label.close)
        require_possible(label, spelling.allow_huge)
        for other in (prediction.source, scene, None if confidence is None else confidence.source):
            if other is not None and not same_ground(other, label):
                require_same_grid(other, label)
        # Labels such as those of the ISPRS tell no place, but then they lie on the map's grid.
        grid: Grid = label if is_georeferenced(label.transform) else prediction.source
        area = None if spelling.area is None else Area(spelling.area, grid)
        yield Opened(prediction, label, scene, confidence, labelling, tuple(notes), area)


def label_for(
    path: AnyPath, prediction: Grid, scene: Grid | None, spelling: Spelling, *, settled: bool = False
) -> tuple[Label, LabelOptions, list[Note]]:
    """The label of a map, how it is read, and what there is to say about it.

    A raster is read on its own grid where the map has that too, or pixels of another size on the same ground. Else it
    is cut or resampled to the map's, as `labelling.open_label` says; polygons are drawn on the grid of the scene.
    """
    grid = prediction
    if is_vector(path):
        grid = scene or prediction
    else:
        own = Source(path)
        own.close()
        apart = grid_difference(prediction, own)
        if same_ground(prediction, own) or apart is None:
            grid = own
        elif not fits(own, prediction, regrid=spelling.labelling.regrid):
            raise RasterError(f"{apart}, or take the label as it lies with --regrid-labels")
    options, notes = spelling.labelling, list[Note]()
    if not settled:
        options, notes = settle(path, spelling.schema, grid, tolerance=spelling.tolerance, options=options)
        notes += without_effect(path, spelling.labelling)
    return open_label(path, spelling.schema, grid, tolerance=spelling.tolerance, options=options), options, notes


def same_ground(one: Grid, other: Grid) -> bool:
    """Whether two rasters show the same ground with pixels of two sizes, as one resampled from the other does.

    Both are georeferenced in one CRS, begin at the same corner within MAX_SHIFT of the larger pixel and end within a
    pixel of each other, and neither is turned against the other.
    """
    if (one.height, one.width) == (other.height, other.width):
        return False
    if not (is_georeferenced(one.transform) and is_georeferenced(other.transform)):
        return False
    if names_a_place(one.crs) and names_a_place(other.crs) and not same_crs(one.crs, other.crs):
        return False
    if one.transform.is_degenerate:
        return False
    relative = _relative(other, one)
    if abs(relative[0, 1]) * other.height > MAX_SHIFT or abs(relative[1, 0]) * other.width > MAX_SHIFT:
        return False
    factors = np.diag(relative)[:2]
    if abs(factors - 1).max() <= _SAME_SIZE:  # a row more or less is another raster, not another pixel
        return False
    larger = np.maximum(1.0, abs(factors))
    begin, end = relative[:2, 2], relative[:2] @ (other.width, other.height, 1)
    return bool((abs(begin) <= MAX_SHIFT * larger).all() and (abs(end - (one.width, one.height)) <= larger).all())


def onto(grid: Grid, own: Grid, read: Callable[[Window], NDArray[Any]], window: Window) -> NDArray[Any]:
    """What `read` gives of a raster on its `own` grid, for a window of another grid on the same ground."""
    if (own.height, own.width) == (grid.height, grid.width):
        return read(window)
    relative = _relative(grid, own)
    rows = _under(relative[1, 1], relative[1, 2], window.row, window.height, own.height)
    cols = _under(relative[0, 0], relative[0, 2], window.col, window.width, own.width)
    top, left = int(rows.min()), int(cols.min())
    pixels = read(Window(top, left, int(rows.max()) - top + 1, int(cols.max()) - left + 1))
    return pixels[..., (rows - top)[:, None], cols - left]


def _under(factor: float, offset: float, start: int, length: int, limit: int) -> NDArray[np.intp]:
    """The pixel of the other axis under the middle of each of `length` pixels from `start`."""
    middles = (np.arange(start, start + length) + 0.5) * factor + offset
    under: NDArray[np.intp] = np.clip(np.floor(middles), 0, limit - 1).astype(np.intp)
    return under


def _relative(one: Grid, other: Grid) -> NDArray[np.float64]:
    """From pixels of `one` to pixels of `other`, (3, 3)."""
    return np.linalg.inv(matrix(other.transform)) @ matrix(one.transform)


def windows(height: int, width: int, row: int = 0) -> Iterator[Window]:
    """The windows by which rows of a raster, from `row` on, are read here: 512 rows high, cut at 8192 columns."""
    return cover(Window(row, 0, height, width), _ROWS, _COLUMNS)


def scene_names(pairs: Sequence[tuple[Location, Location]]) -> tuple[str, ...]:
    """A name for each pair: what the file names begin with in common, or what tells the pairs apart.

    Maps of one label for all have the names of the maps.
    """
    if len(pairs) > 1 and len({label for _, label in pairs}) == 1:
        pairs = [(prediction, prediction) for prediction, _ in pairs]
    common = tuple(_common_name(stem_of(prediction), stem_of(label)) for prediction, label in pairs)
    stems = tuple(stem_of(label) for _, label in pairs)
    for names in (common, stems):
        if len(set(names)) == len(names):
            return names
    return tuple(
        f"{folder_of(label).rpartition('/')[2]}/{stem_of(label)} ({number})"
        for number, (_, label) in enumerate(pairs, 1)
    )


def _common_name(prediction: str, label: str) -> str:
    """The words that both names begin with; the label's name when there are none."""
    words = []
    for one, other in zip(prediction.split("_"), label.split("_"), strict=False):
        if one != other:
            break
        words.append(one)
    return "_".join(words) or label


def _one_each(given: Sequence[Any] | None, pairs: int, what: str) -> list[Any]:
    listed = list(given) if given is not None else [None] * pairs
    if len(listed) != pairs:
        raise ConfigError(f"{len(listed)} {what} for {pairs} predictions; give one for each, in the same order")
    return listed


def _paths(paths: AnyPath | Sequence[AnyPath]) -> list[Location]:
    return [locate(path) for path in ([paths] if isinstance(paths, str | PathLike) else paths)]
