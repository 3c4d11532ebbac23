"""The windows of a tile index as training items: raw pixels, class indices, validity.

Shapes: C bands, S pixels along each side of a window. Nothing is normalised here: the raw dtype travels to the device
and the model's own `Normalisation` does the rest there.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from rs_biformer.data.augment import Augment
from rs_biformer.data.index import Manifest, TileIndex
from rs_biformer.data.sampler import Draw
from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window, reflect_pad
from rs_biformer.raster.labels import LabelRaster
from rs_biformer.raster.scene import Scene
from rs_biformer.schema import IGNORE

Pixels = tuple[NDArray, NDArray[np.uint8], NDArray[np.bool_]]
"""Image (C, h, w) in its own dtype, class index (h, w) with IGNORE, valid (h, w)."""

OPEN_SCENES = 64
"""Scenes that one process keeps open. Chips are scenes as well, and there may be more of them than file handles."""

CACHE_SHARE = 0.4
"""Share of the machine's memory that decoded scenes may take."""

UNKNOWN_MEMORY = 8 * 2**30
"""Bytes of memory supposed where the system does not tell (Windows)."""


class SceneReader:
    """Reads windows of the scenes of an index, image and label together.

    Files are opened when first needed, in the process that reads, and the least recently read are closed again. Scenes
    that `keep` has decoded are answered from memory, which forked workers share.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._open: OrderedDict[int, tuple[Scene, LabelRaster]] = OrderedDict()
        self._kept: dict[int, Pixels] = {}

    def read(self, number: int, window: Window) -> Pixels:
        """The pixels of a window of scene `number`. Label and validity agree: what has no image has no label."""
        if number in self._kept:
            image, label, valid = self._kept[number]
            rows, cols = window.slices
            return image[:, rows, cols], label[rows, cols], valid[rows, cols]
        scene, raster = self._scene(number)
        image, valid = scene.read(window)
        label, _ = raster.read(window)
        label[~valid] = IGNORE
        return image, label, valid

    def keep(self, numbers: Iterable[int]) -> bool:
        """Decode these scenes into memory; False, and nothing is kept, when they would take more than CACHE_SHARE."""
        records = [(number, self.manifest.scenes[number]) for number in numbers]
        pixel = len(self.manifest.bands) * np.dtype(self.manifest.dtype).itemsize + 2
        size = sum(record.height * record.width * pixel for _, record in records)
        if size > CACHE_SHARE * _memory():
            return False
        for number, record in records:
            self._kept[number] = self.read(number, Window(0, 0, record.height, record.width))
        self.close()
        return True

    def close(self) -> None:
        """Close the files of this process; what is kept in memory stays."""
        while self._open:
            self._shut(*self._open.popitem()[1])

    def _scene(self, number: int) -> tuple[Scene, LabelRaster]:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        record = self.manifest.scenes[number]
        if record.label is None:
            raise RasterError(f"scene {record.name} has no label; tile it with --labels to train or validate on it")
        scene = Scene(record.images, bands=self.manifest.bands)
        if (scene.height, scene.width) != (record.height, record.width):
            raise RasterError(
                f"{scene.path} is {scene.height} x {scene.width} and was {record.height} x {record.width} when it was "
                "tiled; tile again"
            )
        self._open[number] = scene, LabelRaster(record.label, self.manifest.schema, tolerance=self.manifest.tolerance)
        if len(self._open) > OPEN_SCENES:
            self._shut(*self._open.popitem(last=False)[1])
        return self._open[number]

    @staticmethod
    def _shut(scene: Scene, label: LabelRaster) -> None:
        scene.close()
        label.close()


class TileDataset(Dataset[dict[str, Tensor]]):
    """Items of an index, by row number or by `Draw`.

    An item is {"image": (C, S, S) in the raster's dtype, "label": (S, S) uint8 with IGNORE, "valid": (S, S) bool}.
    Windows of scenes smaller than S are padded by reflection; the padding is neither labelled nor valid. Invalid pixels
    hold the mean of their band, whatever the file has there, so that no interpolation drags NaN or nodata inwards.

    augment, jitter: made for a `Draw` only, from (seed, draw) alone: the process that reads an item does not matter.
    jitter is the furthest shift as a share of the window; a shifted window stays in its scene and is given up for the
    indexed one where it would touch a window of `elsewhere`, the windows of the other splits.
    """

    def __init__(
        self,
        index: TileIndex,
        *,
        reader: SceneReader | None = None,
        augment: Augment | None = None,
        jitter: float = 0.0,
        elsewhere: TileIndex | None = None,
        seed: int = 0,
    ) -> None:
        self.index = index
        self.reader = reader or SceneReader(index.manifest)
        self.augment = augment
        self.jitter = jitter
        self.seed = seed
        self._mean = np.array(index.manifest.mean)
        self._elsewhere = {} if elsewhere is None else _edges_by_scene(elsewhere)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int | Draw) -> dict[str, Tensor]:
        number, rng = item, None
        if isinstance(item, Draw):
            number, rng = item.number, np.random.default_rng((self.seed, item.draw))
        assert isinstance(number, int)
        window, scene = self.index.window(number), int(self.index.table.scene[number])
        if rng is not None and self.jitter:
            window = self._shifted(scene, window, rng)
        image, label, valid = self._padded(*self.reader.read(scene, window))
        if rng is not None and self.augment is not None:
            image, label, valid = self.augment(image, label, valid, rng)
        return {"image": torch.from_numpy(image), "label": torch.from_numpy(label), "valid": torch.from_numpy(valid)}

    def _padded(self, image: NDArray, label: NDArray, valid: NDArray) -> Pixels:
        size = self.index.manifest.window
        image = reflect_pad(image, size, size)
        missing = [(0, size - length) for length in label.shape]
        label = np.pad(label, missing, constant_values=IGNORE)
        valid = np.pad(valid, missing, constant_values=False)
        return _with_mean(image, valid, self._mean), label, valid

    def _shifted(self, scene: int, window: Window, rng: np.random.Generator) -> Window:
        record, reach = self.index.manifest.scenes[scene], round(self.jitter * self.index.manifest.window)
        down, right = rng.integers(-reach, reach, size=2, endpoint=True)
        shifted = Window(
            min(max(0, window.row + int(down)), record.height - window.height),
            min(max(0, window.col + int(right)), record.width - window.width),
            window.height,
            window.width,
        )
        return window if _touches(self._elsewhere.get(scene), shifted) else shifted


def _memory() -> int:
    """Bytes of memory of this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return UNKNOWN_MEMORY


def _with_mean(image: NDArray, valid: NDArray[np.bool_], mean: NDArray[np.float64]) -> NDArray:
    """A copy of `image` in which invalid pixels hold the mean of their band."""
    if valid.all():
        return np.array(image)
    whole = np.issubdtype(image.dtype, np.integer)
    values = (np.rint(mean) if whole else mean).astype(image.dtype)
    return np.where(valid, image, values[:, None, None])


def _edges_by_scene(index: TileIndex) -> dict[int, NDArray[np.int64]]:
    """First and last edges of the windows per scene: (windows, 4) of row, col, row_stop, col_stop."""
    table = index.table
    edges = np.stack([table.row, table.col, table.row + table.height, table.col + table.width], axis=1)
    return {int(scene): edges[table.scene == scene] for scene in np.unique(table.scene)}


def _touches(edges: NDArray[np.int64] | None, window: Window) -> bool:
    """Whether a window shares a pixel with any of these."""
    if edges is None:
        return False
    top, left, bottom, right = edges.T
    shared = (top < window.row_stop) & (window.row < bottom) & (left < window.col_stop) & (window.col < right)
    return bool(shared.any())
