"""The windows of a tile index as training items: raw pixels, class indices, validity.

Shapes: C bands, S pixels along each side of a window. Nothing is normalised here: the raw dtype travels to the device
and the model's own `Normalisation` does the rest there.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from rs_biformer.data.augment import Augment
from rs_biformer.data.index import TileIndex
from rs_biformer.data.reader import Pixels, SceneReader
from rs_biformer.data.sampler import Draw, Filler
from rs_biformer.geometry import Window, Windows
from rs_biformer.schema import IGNORE


class TileDataset(Dataset[dict[str, Tensor]]):
    """Items of an index, by row number, by `Draw` or by `Filler`, which has no label.

    An item is {"image": (C, S, S) in the raster's dtype, "label": (S, S) uint8 with IGNORE, "valid": (S, S) bool}.
    Where a scene is smaller than S the rest is neither labelled nor valid. Invalid pixels hold the mean of their band,
    whatever the file has there, so that no interpolation drags NaN or nodata inwards.

    The following happens for a `Draw` only, by (seed, draw) alone: the process that reads an item does not matter.

    jitter: furthest shift of a window, as a share of it. focus: how often a window is instead moved so that it shows,
        near its centre, a pixel of one of the classes that the indexed window has, each class as likely as the others.
        A moved window stays in its scene, and is given up for the indexed one where it would touch a window of
        `elsewhere`, the windows of the other splits.
    augment: gets `augment.margin` pixels of the scene around the window, so that turning and zooming out show what is
        there; what belongs to `elsewhere` is blanked.
    mosaic: how often the four quarters around a random point come from four draws. probabilities: (windows,) for
        drawing the other three; all windows alike unless given.
    """

    def __init__(
        self,
        index: TileIndex,
        *,
        reader: SceneReader | None = None,
        augment: Augment | None = None,
        jitter: float = 0.0,
        focus: float = 0.0,
        mosaic: float = 0.0,
        probabilities: NDArray[np.float64] | None = None,
        elsewhere: TileIndex | None = None,
        seed: int = 0,
    ) -> None:
        self.index = index
        self.reader = reader or SceneReader(index.manifest)
        self.augment = augment
        self.jitter, self.focus, self.mosaic = jitter, focus, mosaic
        self.seed = seed
        self._mean = np.array(index.manifest.mean)
        self._elsewhere = {} if elsewhere is None else _windows_by_scene(elsewhere)
        self._cumulative = None if probabilities is None else np.cumsum(probabilities)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int | Draw | Filler) -> dict[str, Tensor]:
        if isinstance(item, Draw):
            image, label, valid = self._drawn(item)
        else:
            number = item.number if isinstance(item, Filler) else item
            image, label, valid = self._framed(int(self.index.table.scene[number]), self.index.window(number), 0)
            if isinstance(item, Filler):
                label[:] = IGNORE
        return {"image": torch.from_numpy(image), "label": torch.from_numpy(label), "valid": torch.from_numpy(valid)}

    def _drawn(self, draw: Draw) -> Pixels:
        rng = np.random.default_rng((self.seed, draw.draw))
        first = self._changed(draw.number, rng)
        if not self.mosaic or rng.random() >= self.mosaic:
            return first
        others = [self._changed(self._another(rng), rng) for _ in range(3)]
        return _quarters([first, *others], rng)

    def _another(self, rng: np.random.Generator) -> int:
        if self._cumulative is None:
            return int(rng.integers(len(self.index)))
        place = np.searchsorted(self._cumulative, rng.random() * self._cumulative[-1], side="right")
        return min(int(place), len(self.index) - 1)

    def _changed(self, number: int, rng: np.random.Generator) -> Pixels:
        """The window as training sees it."""
        window, scene = self.index.window(number), int(self.index.table.scene[number])
        if self.focus and rng.random() < self.focus:
            window = self._focused(scene, window, rng)
        elif self.jitter:
            window = self._shifted(scene, window, rng)
        if self.augment is None:
            return self._framed(scene, window, 0)
        return self.augment(*self._framed(scene, window, self.augment.margin), rng)

    def _framed(self, scene: int, window: Window, margin: int) -> Pixels:
        """(C, T, T), (T, T), (T, T) with T = S + 2 margin: the window in the middle of what the scene has around it."""
        record, side = self.index.manifest.scenes[scene], self.index.manifest.window + 2 * margin
        around = window.grown(margin, record.height, record.width)
        image, label, valid = self.reader.read(scene, around)
        if margin:
            self._blank(scene, around, label, valid)
        if (around.height, around.width) != (side, side):
            top, left = margin - (window.row - around.row), margin - (window.col - around.col)
            frame = [(top, side - top - around.height), (left, side - left - around.width)]
            image = np.pad(image, [(0, 0), *frame])
            label = np.pad(label, frame, constant_values=IGNORE)
            valid = np.pad(valid, frame)
        return _with_mean(image, valid, self._mean), label, valid

    def _blank(self, scene: int, around: Window, label: NDArray[Any], valid: NDArray[Any]) -> None:
        """Take from a margin what belongs to the windows of other splits."""
        others = self._elsewhere.get(scene)
        for other in others.take(others.touching(around)) if others is not None else ():
            common = other.intersection(around)
            assert common is not None
            label[common.within(around)], valid[common.within(around)] = IGNORE, False

    def _focused(self, scene: int, window: Window, rng: np.random.Generator) -> Window:
        label = self.reader.read(scene, window)[1]
        present = np.setdiff1d(label, IGNORE)
        if not len(present):
            return window
        rows, cols = np.nonzero(label == rng.choice(present))
        chosen = rng.integers(len(rows))
        row, col = (np.array((rows[chosen], cols[chosen])) - np.array(label.shape) // 2).tolist()
        off_centre = rng.integers(-(min(label.shape) // 4), min(label.shape) // 4, size=2, endpoint=True)
        return self._moved(scene, window, row + int(off_centre[0]), col + int(off_centre[1]))

    def _shifted(self, scene: int, window: Window, rng: np.random.Generator) -> Window:
        reach = round(self.jitter * self.index.manifest.window)
        down, right = rng.integers(-reach, reach, size=2, endpoint=True)
        return self._moved(scene, window, int(down), int(right))

    def _moved(self, scene: int, window: Window, down: int, right: int) -> Window:
        record = self.index.manifest.scenes[scene]
        moved = window.moved(down, right, record.height, record.width)
        others = self._elsewhere.get(scene)
        return window if others is not None and others.touching(moved).any() else moved


def _quarters(parts: list[Pixels], rng: np.random.Generator) -> Pixels:
    """The upper left, upper right, lower left and lower right of four windows, which meet in the inner half."""
    image, label, valid = (np.array(part) for part in parts[0])
    side = label.shape[0]
    row, col = (int(place) for place in rng.integers(side // 4, side - side // 4, size=2, endpoint=True))
    quarters = [np.s_[:row, col:], np.s_[row:, :col], np.s_[row:, col:]]
    for (other_image, other_label, other_valid), quarter in zip(parts[1:], quarters, strict=True):
        image[:, *quarter], label[quarter], valid[quarter] = (
            other_image[:, *quarter],
            other_label[quarter],
            other_valid[quarter],
        )
    return image, label, valid


def _with_mean(image: NDArray[Any], valid: NDArray[np.bool_], mean: NDArray[np.float64]) -> NDArray[Any]:
    """A copy of `image` in which invalid pixels hold the mean of their band."""
    if valid.all():
        return np.array(image)
    whole = np.issubdtype(image.dtype, np.integer)
    values = (np.rint(mean) if whole else mean).astype(image.dtype)
    return np.where(valid, image, values[:, None, None])


def _windows_by_scene(index: TileIndex) -> dict[int, Windows]:
    table = index.table
    return {int(scene): table.windows.take(table.scene == scene) for scene in np.unique(table.scene)}
