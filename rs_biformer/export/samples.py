"""The windows that an exported model is tried on: those of scenes, or invented ones."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rs_biformer.checkpoint import TrainedModel
from rs_biformer.data.layouts import SceneFiles, pattern_scenes
from rs_biformer.errors import ConfigError
from rs_biformer.geometry import Window, grid, reflect_pad
from rs_biformer.jobs.fitting import AS_TRAINED, Fitting
from rs_biformer.jobs.truths import Say, find_truths, silent
from rs_biformer.predict.fit import open_scenes
from rs_biformer.raster.labelling import open_label, settle
from rs_biformer.raster.labels import LabelOptions
from rs_biformer.raster.paths import PathLike
from rs_biformer.raster.scene import Scene
from rs_biformer.schema import IGNORE

WINDOWS = 32
"""Windows that are taken of all scenes together, where there are as many."""

INVENTED = 4

_BYTES = 512 * 2**20  # of all windows together


@dataclass(frozen=True)
class Samples:
    """Windows as a file takes them.

    image: (N, C, S, S) float32, raw values, the mean of the band where nothing is valid. valid: (N, S, S) bool.
    label: (N, S, S) uint8, IGNORE where nothing is known; None where nobody gave one. origin: what they are, in words.
    """

    image: NDArray[np.float32]
    valid: NDArray[np.bool_]
    label: NDArray[np.uint8] | None
    origin: str

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, chosen: Any) -> "Samples":
        label = None if self.label is None else self.label[chosen]
        return replace(self, image=self.image[chosen], valid=self.valid[chosen], label=label)


@dataclass(frozen=True)
class Trial:
    """The scenes that an export is tried on; none are needed for float32 and float16.

    scenes: their files, with labels where the loss shall be told in mIoU. fitting: how they are read for the model.
    labelling: how labels are read. say: gets a line on what was decided about a label.
    """

    scenes: Sequence[SceneFiles] = ()
    fitting: Fitting = AS_TRAINED
    labelling: LabelOptions = field(default_factory=LabelOptions)
    say: Say = silent

    @property
    def files(self) -> list[PathLike | None]:
        """All that is read."""
        return [self.fitting.area, *(path for scene in self.scenes for path in (*scene.images, scene.label))]

    def windows(self, model: TrainedModel, size: int) -> Samples:
        """Windows of the scenes, in an order drawn by a fixed seed; invented ones where there are no scenes.

        Raises RasterError for a scene or label that does not fit, ConfigError where no window has a valid pixel.
        """
        if not self.scenes:
            return invented(model, size)
        scenes = open_scenes([files.images for files in self.scenes], **self.fitting.of(model.meta))
        places = [
            (number, window)
            for number, scene in enumerate(scenes)
            for window in grid(scene.height, scene.width, size, size)
        ]
        wanted = max(2, min(WINDOWS, _BYTES // (4 * len(model.bands) * size**2)))
        found: list[tuple[NDArray[Any], NDArray[Any], tuple[int, Window]]] = []
        for at in np.random.default_rng(0).permutation(len(places)):
            number, window = places[at]
            image, valid = scenes[number].read(window)
            if valid.any():
                found.append((image, valid, places[at]))
            if len(found) == wanted:
                break
        if not found:
            raise ConfigError(f"no window of {scenes[0].path} has a pixel with data; give another --scene")
        label = self._labels(model, scenes, [place for *_, place in found], size)
        for scene in scenes:
            scene.close()
        mean = model.normalisation.mean.numpy()[:, None, None]
        images = [reflect_pad(np.where(valid, image, mean).astype(np.float32), size, size) for image, valid, _ in found]
        masks = [_grown(valid, size, False) for _, valid, _ in found]
        more = f" and {len(scenes) - 1} more" if len(scenes) > 1 else ""
        return Samples(np.stack(images), np.stack(masks), label, f"{len(found)} windows of {scenes[0].name}{more}")

    def _labels(
        self, model: TrainedModel, scenes: Sequence[Scene], places: Sequence[tuple[int, Window]], size: int
    ) -> NDArray[np.uint8] | None:
        if any(files.label is None for files in self.scenes):
            return None
        labels = np.full((len(places), size, size), IGNORE, np.uint8)
        for number in sorted({number for number, _ in places}):
            for at, index in self._of_scene(model, scenes[number], number, places):
                labels[at] = _grown(index, size, IGNORE)
        return labels

    def _of_scene(
        self, model: TrainedModel, scene: Scene, number: int, places: Sequence[tuple[int, Window]]
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        path = self.scenes[number].label
        assert path is not None
        options, notes = settle(path, model.schema, scene, options=self.labelling)
        for note in notes:
            self.say(str(note))
        with closing(open_label(path, model.schema, scene, options=options)) as label:
            for at, (of, window) in enumerate(places):
                if of == number:
                    yield at, label.read(window)[0]


def find_trial(
    scenes: Sequence[str], labels: Sequence[str], fitting: Fitting, labelling: LabelOptions, say: Say = silent
) -> Trial:
    """The trial on scenes given by name, as `evaluate` takes them: files, patterns, folders; labels by a pattern too.

    Raises ConfigError where nothing is found, or labels come without scenes.
    """
    if not scenes:
        if labels:
            raise ConfigError("--label has no effect without --scene, the images that it belongs to")
        return Trial()
    found = find_truths(scenes, labels).scenes if labels else pattern_scenes(scenes, None, name=None)
    return Trial(found, fitting, labelling, say)


def invented(model: TrainedModel, size: int, count: int = INVENTED) -> Samples:
    """Noise of the mean and deviation that the model was trained on, as the rasters' data type could hold it."""
    normalisation = model.normalisation
    noise = np.random.default_rng(0).standard_normal((count, normalisation.bands, size, size), np.float32)
    image = noise * normalisation.std.numpy()[:, None, None] + normalisation.mean.numpy()[:, None, None]
    dtype = np.dtype(model.meta.dtype)
    if dtype.kind in "iu" and not model.meta.reading.scaled:
        limits = np.iinfo(dtype)
        image = image.round().clip(limits.min, limits.max)
    valid = np.ones((count, size, size), np.bool_)
    return Samples(image.astype(np.float32), valid, None, f"{count} windows of noise with the model's statistics")


def _grown(plane: NDArray[Any], size: int, value: int | bool) -> NDArray[Any]:
    """(h, w) -> (S, S), with a value at the bottom and right."""
    return np.pad(plane, [(0, size - side) for side in plane.shape], constant_values=value)
