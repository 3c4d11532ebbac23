"""What the page lays one over another: images, classes, scores, differences; each draws pictures and tells a pixel."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.labels import LabelRaster
from rs_biformer.raster.metadata import LAYER, ScoreScale
from rs_biformer.raster.paths import stem_of
from rs_biformer.raster.pyramid import Bands, Pyramid
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.source import Source
from rs_biformer.raster.style import RAMP
from rs_biformer.raster.thumbnail import brightness, limits
from rs_biformer.schema import IGNORE, ClassSchema
from rs_biformer.viewer.frame import Frame

_SAMPLE = 1 << 22  # pixels that a look at the whole raster may read
_PROBES, _PROBE = 5, 256  # windows along each side of a raster that must be looked at in places, and their pixels
_DIFFERENT = 214, 20, 60
_CERTAIN = ("confidence", "margin")  # of which low values are what is uncertain
_NO_SCORE = 255

Picture = NDArray[np.uint8]
"""Red, green, blue, alpha: (h, w, 4)."""


class Layer(ABC):
    """A layer under a name of the page (`key`): `title` for people, `role` in words, `kind` for the page."""

    kind = ""

    def __init__(self, key: str, role: str, pyramids: Sequence[Pyramid]) -> None:
        self.key, self.role, self.pyramids = key, role, pyramids
        self.title = ", ".join(stem_of(pyramid.source.path) for pyramid in pyramids[:1])

    @abstractmethod
    def draw(self, level: int, window: Window, only: int | None = None) -> Picture | None:
        """A picture of a window of a level of the frame; None where the raster must be read once before.

        only: the one class that is drawn, of layers that have classes. Raises RasterError where it cannot be read.
        """

    @abstractmethod
    def tell(self, col: float, row: float) -> dict[str, Any] | None:
        """What the pixel under a position of the frame holds, for the page; None where there is nothing."""

    def describe(self) -> dict[str, Any]:
        """The layer for the page."""
        return {"key": self.key, "role": self.role, "title": self.title, "kind": self.kind}


class ImageLayer(Layer):
    """Three bands as red, green and blue, or one as grey; what is not 8-bit is stretched between two percentiles."""

    kind = "image"

    def __init__(self, key: str, role: str, scene: Scene, frame: Frame) -> None:
        source = scene.sources[0]
        self._palette = source.palette
        numbers = [1] if source.palette is not None else list(scene.band_numbers[: 3 if scene.count >= 3 else 1])
        super().__init__(key, role, [Pyramid(source, numbers, frame.grid, blend=True)])
        names = dict(zip(scene.band_numbers, scene.band_names, strict=True))
        self.bands = ["red", "green", "blue"] if source.palette is not None else [names[n] for n in numbers]
        self._limits: list[tuple[float, float]] | None = None
        if source.palette is None and any(source.dtypes[number - 1] != "uint8" for number in numbers):
            self._limits = limits(look(self.pyramids[0]))

    def describe(self) -> dict[str, Any]:
        stretched = [[round(part, 6) for part in pair] for pair in self._limits or ()]
        return {**super().describe(), "bands": self.bands, "stretched": stretched}

    def draw(self, level: int, window: Window, only: int | None = None) -> Picture | None:
        read = self.pyramids[0].read_valid(level, window)
        if read is None:
            return None
        pixels, valid = read
        if self._palette is not None:
            return _masked(self._palette[pixels[0]].copy(), valid)
        return _masked(_stacked([self._shown(band, number) for number, band in enumerate(pixels)]), valid)

    def _shown(self, band: NDArray[Any], number: int) -> NDArray[np.uint8]:
        return band.astype(np.uint8) if self._limits is None else brightness(band, self._limits[number])

    def tell(self, col: float, row: float) -> dict[str, Any] | None:
        read = self.pyramids[0].read_at(col, row)
        if read is None or not read[1].all():
            return None
        values = self._palette[read[0][0][0, 0], :3] if self._palette is not None else [band[0, 0] for band in read[0]]
        return {"values": [_plain(value) for value in values]}


class ClassLayer(Layer):
    """Classes in their colours.

    raster: how they are spelt. moved: for each class of the raster's schema its index in `schema`, where they differ.
    """

    kind = "classes"

    def __init__(
        self,
        key: str,
        role: str,
        raster: LabelRaster,
        frame: Frame,
        schema: ClassSchema,
        moved: Sequence[int] | None = None,
    ) -> None:
        super().__init__(key, role, [Pyramid(raster.source, raster.numbers, frame.grid, blend=False)])
        self.raster, self.schema = raster, schema
        self._moved = np.arange(256, dtype=np.uint8)
        if moved is not None:
            self._moved[: len(moved)] = moved
        self._table = np.zeros((256, 4), np.uint8)
        self._table[: len(schema), :3] = schema.colours
        self._table[: len(schema), 3] = 255

    def index(self, bands: Bands) -> NDArray[np.uint8]:
        """Class indices of what was read, IGNORE elsewhere."""
        index: NDArray[np.uint8] = self._moved[self.raster.decode(*bands)[0]]
        return index

    def read(self, level: int, window: Window) -> NDArray[np.uint8] | None:
        """Class indices over a window of a level of the frame, IGNORE elsewhere; None where that must wait."""
        read = self.pyramids[0].read_valid(level, window)
        return None if read is None else self.index(read)

    def at(self, col: float, row: float) -> int | None:
        """The class under a position of the frame; None where there is none."""
        read = self.pyramids[0].read_at(col, row)
        index = IGNORE if read is None else int(self.index(read)[0, 0])
        return None if index == IGNORE else index

    def draw(self, level: int, window: Window, only: int | None = None) -> Picture | None:
        index = self.read(level, window)
        if index is None:
            return None
        table = self._table
        if only is not None:
            table = np.zeros_like(table)
            table[only] = self._table[only]
        return table[index]

    def tell(self, col: float, row: float) -> dict[str, Any] | None:
        index = self.at(col, row)
        return None if index is None else {"class": index}


class ScoreLayer(Layer):
    """A score from 0 to 1 in the colours of viridis, or several probabilities by their largest."""

    kind = "score"

    def __init__(self, key: str, role: str, source: Source, layer: str, frame: Frame) -> None:
        super().__init__(key, role, [Pyramid(source, range(1, source.count + 1), frame.grid, blend=True)])
        self.layer = layer
        self._scale = ScoreScale(source.path, levels=True)
        if any(np.dtype(dtype).kind not in "fu" for dtype in source.dtypes):
            raise RasterError(f"{source.path} holds {source.dtypes[0]}; a score is uint8 or a float from 0 to 1")
        colours = np.array([ImageColor.getrgb(colour) for colour in RAMP], np.float64)
        steps, places = np.linspace(0, 1, len(RAMP)), np.linspace(0, 1, 256)
        self._table = np.full((256, 4), 255, np.uint8)
        self._table[:, :3] = np.stack([np.interp(places, steps, channel) for channel in colours.T], -1).round()

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "ramp": list(RAMP), "low_is_uncertain": self.low_is_uncertain}

    @property
    def low_is_uncertain(self) -> bool:
        """Whether a low value is what is uncertain, as of a confidence; of an entropy a high one is."""
        return self.layer in (*_CERTAIN, "probabilities")

    def read(self, level: int, window: Window) -> NDArray[np.float64] | None:
        """The score over a window of a level of the frame, NaN where there is none; None where that must wait."""
        read = self.pyramids[0].read_valid(level, window)
        if read is None:
            return None
        values: NDArray[np.float64] = self._values(read).max(axis=0)
        return values

    def _values(self, bands: Bands) -> NDArray[np.float64]:
        stored, valid = np.stack(bands[0]), bands[1]
        missing = ~valid | ((stored == _NO_SCORE).all(axis=0) if stored.dtype == np.uint8 else False)
        return np.where(missing, np.nan, self._scale(stored))

    def draw(self, level: int, window: Window, only: int | None = None) -> Picture | None:
        values = self.read(level, window)
        if values is None:
            return None
        known = np.isfinite(values)
        shade = (np.where(known, values, 0).clip(0, 1) * 255).round().astype(np.uint8)
        return _masked(self._table[shade], known)

    def tell(self, col: float, row: float) -> dict[str, Any] | None:
        read = self.pyramids[0].read_at(col, row)
        values = None if read is None else self._values(read)[:, 0, 0]
        if values is None or not np.isfinite(values).all():
            return None
        return {"score" if len(values) == 1 else "probabilities": [round(float(value), 4) for value in values]}


class DifferenceLayer(Layer):
    """Where two layers of classes have different ones; what only one of them knows is no difference."""

    kind = "difference"

    def __init__(self, key: str, role: str, one: ClassLayer, other: ClassLayer) -> None:
        super().__init__(key, role, [*one.pyramids, *other.pyramids])
        self.one, self.other = one, other
        self.title = f"{one.title} and {other.title}"

    def read(self, level: int, window: Window) -> NDArray[np.float64] | None:
        """1 where they differ, 0 where they are alike, NaN where one has no class; None where that must wait."""
        first, second = self.one.read(level, window), self.other.read(level, window)
        if first is None or second is None:
            return None
        unknown = (first == IGNORE) | (second == IGNORE)
        return np.where(unknown, np.nan, (first != second).astype(np.float64))

    def draw(self, level: int, window: Window, only: int | None = None) -> Picture | None:
        different = self.read(level, window)
        if different is None:
            return None
        picture = np.zeros((*different.shape, 4), np.uint8)
        picture[different == 1] = (*_DIFFERENT, 255)
        return picture

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "colour": "#{:02x}{:02x}{:02x}".format(*_DIFFERENT)}

    def tell(self, col: float, row: float) -> dict[str, Any] | None:
        return None  # the classes of both are told


def score_name(tags: dict[str, str], bands: int) -> str:
    """Which of the maps of a prediction a raster of scores is; one that does not say is a confidence."""
    return tags.get(LAYER) or ("probabilities" if bands > 1 else "confidence")


def look(pyramid: Pyramid) -> Bands:
    """All of a raster in small, or, where that would take long, windows spread over it: bands (h, w), and validity."""
    small = pyramid.read_small(_SAMPLE)
    if small is not None:
        return small[1]
    source = pyramid.source
    height, width = min(_PROBE, source.height), min(_PROBE, source.width)
    read = [
        source.read_valid(pyramid.numbers, Window(row, col, height, width))
        for row in np.linspace(0, source.height - height, _PROBES).astype(int).tolist()
        for col in np.linspace(0, source.width - width, _PROBES).astype(int).tolist()
    ]
    bands = [np.concatenate(parts) for parts in zip(*(pixels for pixels, _ in read), strict=True)]
    return bands, np.concatenate([valid for _, valid in read])


def _stacked(bands: list[NDArray[np.uint8]]) -> Picture:
    red, green, blue = bands if len(bands) == 3 else bands * 3
    return np.stack([red, green, blue, np.full_like(red, 255)], axis=-1)


def _masked(picture: Picture, valid: NDArray[np.bool_]) -> Picture:
    picture[~valid, 3] = 0
    return picture


def _plain(value: Any) -> int | float:
    return int(value) if np.issubdtype(np.asarray(value).dtype, np.integer) else float(f"{float(value):.6g}")
