"""Windows of indexed scenes, image and label together, from decoded chunks that are kept while memory allows.

A window seldom lies on the compressed chunks of its file: one of 256 pixels touches two or three of 512, and its
neighbours touch them again. So what is decoded are square chunks, labels already as class indices, and a window is put
together from them.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rs_biformer.data.index import Manifest, SceneRecord
from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window, cover
from rs_biformer.machine import machine_memory
from rs_biformer.raster.labelling import Label
from rs_biformer.raster.labels import erode_boundaries
from rs_biformer.raster.scene import Scene
from rs_biformer.schema import IGNORE

Pixels = tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.bool_]]
"""Image (C, h, w) in its own dtype, class index (h, w) with IGNORE, valid (h, w)."""

CHUNK = 512
"""Pixels along each side of a decoded chunk: the usual tile of aerial GeoTIFFs, or a whole number of them."""

OPEN_SCENES = 64
"""Scenes that one process keeps open. Chips are scenes as well, and there may be more of them than file handles."""

CACHE_SHARE = 0.4
"""Share of the machine's memory that decoded scenes may take."""


class _Chunk(NamedTuple):
    """The pixels of one chunk; valid is None where all of them are."""

    image: NDArray[Any]
    label: NDArray[np.uint8]
    valid: NDArray[np.bool_] | None

    @property
    def size(self) -> int:
        return self.image.nbytes + self.label.nbytes + (0 if self.valid is None else self.valid.nbytes)


class SceneReader:
    """Reads windows of the scenes of an index.

    cache: bytes of decoded chunks that each process keeps, the least recently used go first; those of the window in
        hand are kept in any case. ignore_boundary: pixels around class boundaries that get no label, as in
        `raster.labels.erode_boundaries`.

    Files are opened when first needed, in the process that reads, and the least recently read are closed again.
    Chunks that `keep` has decoded stay; forked workers share them.

    Raises RasterError for a scene without a label or of another size than when it was tiled.
    """

    def __init__(self, manifest: Manifest, *, cache: int = 0, ignore_boundary: int = 0) -> None:
        self.manifest = manifest
        self.ignore_boundary = ignore_boundary
        self._bound = cache
        self._held = 0
        self._chunks: OrderedDict[tuple[int, Window], _Chunk] = OrderedDict()
        self._open: OrderedDict[int, tuple[Scene, Label]] = OrderedDict()

    def read(self, number: int, window: Window) -> Pixels:
        """The pixels of a window of scene `number`, a copy. What has no valid image has no label."""
        image = np.empty((len(self.manifest.bands), window.height, window.width), self.manifest.dtype)
        label = np.empty((window.height, window.width), np.uint8)
        valid = np.ones((window.height, window.width), bool)
        record = self.manifest.scenes[number]
        areas = list(_chunks(window, record))
        for area in areas:
            chunk = self._chunk(number, area)
            common = area.intersection(window)
            assert common is not None
            place, part = common.within(window), common.within(area)
            image[:, *place], label[place] = chunk.image[:, *part], chunk.label[part]
            if chunk.valid is not None:
                valid[place] = chunk.valid[part]
        self._evict(len(areas))
        return image, label, valid

    def limit(self, cache: int) -> None:
        """Keep so many bytes of decoded chunks, what `keep` has decoded besides."""
        self._bound = max(cache, self._held)

    def keep(self, numbers: Iterable[int], *, processes: int = 1) -> bool:
        """Decode these scenes into memory; False, and nothing is kept, when they would take more than CACHE_SHARE.

        processes: how many of this machine do the same, each with its own copy.
        """
        records = [(number, self.manifest.scenes[number]) for number in numbers]
        pixel = len(self.manifest.bands) * np.dtype(self.manifest.dtype).itemsize + 2
        size = sum(record.height * record.width * pixel for _, record in records)
        if processes * size > CACHE_SHARE * machine_memory():
            return False
        self._bound = max(self._bound, size)
        for number, record in records:
            for area in _chunks(Window(0, 0, record.height, record.width), record):
                self._chunk(number, area)
        self.close()
        return True

    def close(self) -> None:
        """Close the files of this process; what is kept in memory stays."""
        while self._open:
            self._shut(*self._open.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_chunks": OrderedDict(), "_held": 0}

    def _chunk(self, number: int, area: Window) -> _Chunk:
        key = number, area
        chunk = self._chunks.get(key)
        if chunk is None:
            chunk = self._chunks[key] = self._decode(number, area)
            self._held += chunk.size
        self._chunks.move_to_end(key)
        return chunk

    def _evict(self, newest: int) -> None:
        while self._held > self._bound and len(self._chunks) > newest:
            self._held -= self._chunks.popitem(last=False)[1].size

    def _decode(self, number: int, area: Window) -> _Chunk:
        scene, raster = self._scene(number)
        image, valid = scene.read(area)
        around = area.grown(self.ignore_boundary, scene.height, scene.width)
        label, _ = raster.read(around)
        if self.ignore_boundary:
            label = erode_boundaries(label, self.ignore_boundary)
        label = label[area.within(around)].copy()
        label[~valid] = IGNORE
        return _Chunk(image, label, None if valid.all() else valid)

    def _scene(self, number: int) -> tuple[Scene, Label]:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        record = self.manifest.scenes[number]
        scene = record.open(self.manifest.bands, self.manifest.reading)
        if (scene.height, scene.width) != (record.height, record.width):
            raise RasterError(
                f"{scene.path} is {scene.height} x {scene.width} and was {record.height} x {record.width} when it was "
                "tiled; tile again"
            )
        self._open[number] = scene, record.open_label(scene, self.manifest.schema, self.manifest.tolerance)
        if len(self._open) > OPEN_SCENES:
            self._shut(*self._open.popitem(last=False)[1])
        return self._open[number]

    @staticmethod
    def _shut(scene: Scene, label: Label) -> None:
        scene.close()
        label.close()


def _chunks(window: Window, scene: SceneRecord) -> Iterator[Window]:
    """The chunks of a scene that a window touches."""
    return cover(window.aligned(CHUNK, CHUNK, scene.height, scene.width), CHUNK, CHUNK)
