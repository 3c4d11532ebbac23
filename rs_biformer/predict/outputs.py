"""The maps of one pass: classes, and on request what the model thought of them.

    probabilities   of each class, a band per class
    confidence      the probability of the class that won
    margin          the winner's probability less that of the second
    entropy         of the probabilities, divided by log K: 0 where one class is certain, 1 where all are alike
    disagreement    of the test-time views, see tta.py: 0 where all say the same

All of them come from the blended probabilities, so none has seams. They are stored as uint8 in steps of 1/250 with
nodata 255, or as float16 with nodata NaN.

K classes, P planes: the classes, then the disagreement if it is asked for.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rs_biformer.errors import ConfigError
from rs_biformer.predict.arrays import Array, Arrays, entr, library_of
from rs_biformer.raster.metadata import SCORE_LEVELS, score_scale, score_tags
from rs_biformer.schema import IGNORE, ClassSchema

PathLike = str | os.PathLike[str]
ScoreDtype = Literal["uint8", "float16"]

SCORES = ("probabilities", "confidence", "margin", "entropy", "disagreement")
"""The maps that can be had beside the classes."""


@dataclass(frozen=True, slots=True)
class Layers:
    """Which maps are made: `names` out of classes and SCORES, of `classes` classes, the scores stored as `dtype`.

    Raises ConfigError for another dtype.
    """

    names: tuple[str, ...]
    classes: int
    dtype: ScoreDtype = "uint8"

    def __post_init__(self) -> None:
        if self.dtype not in get_args(ScoreDtype):
            raise ConfigError(
                f"probability dtype is {self.dtype!r}; it must be one of {', '.join(get_args(ScoreDtype))}"
            )

    @property
    def planes(self) -> int:
        """Values per pixel that are blended."""
        return self.classes + ("disagreement" in self.names)

    @property
    def pixel_bytes(self) -> int:
        """Bytes of all maps, per pixel."""
        scores = sum(self.bands(name) for name in self.names if name != "classes")
        return 1 + scores * np.dtype(self.dtype).itemsize

    def bands(self, name: str) -> int:
        return self.classes if name == "probabilities" else 1

    def empty(self, height: int, width: int, arrays: Arrays) -> dict[str, Array]:
        """Room for every map, (h, w), and (K, h, w) for probabilities."""
        dtypes = {name: "uint8" if name == "classes" else self.dtype for name in self.names}
        shapes = {name: (self.classes,) * (name == "probabilities") + (height, width) for name in self.names}
        return {name: arrays.room(shapes[name], dtypes[name]) for name in self.names}

    def fill(self, maps: Mapping[str, Array], values: Array) -> None:
        """Write the maps, as `empty` gives them, of blended values (P, h, w) float32."""
        if not maps:
            return
        scores = values[: self.classes]
        best, index = _winner(scores)
        for name, target in maps.items():
            match name:
                case "classes":
                    target[...] = index
                case "probabilities":
                    for plane, one in zip(target, scores, strict=True):
                        _store(plane, one)
                case "confidence":
                    _store(target, best)
                case "margin":
                    _store(target, best - _second(scores))
                case "entropy":
                    _store(target, _entropy(scores))
                case "disagreement":
                    _store(target, values[self.classes])

    def mask(self, maps: Mapping[str, NDArray[Any]], valid: NDArray[np.bool_]) -> None:
        """Put nodata where `valid` (h, w) is not."""
        if valid.all():
            return
        for layer in maps.values():
            layer[..., ~valid] = np.nan if layer.dtype.kind == "f" else IGNORE

    def writer_options(self, name: str, schema: ClassSchema | None) -> dict[str, Any]:
        """Arguments of a MapWriter for the map `name`."""
        if name == "classes":
            return {"schema": schema, "descriptions": ["class"]}
        return {
            "schema": schema if name == "probabilities" else None,
            "descriptions": None if name == "probabilities" else [name],
            "count": self.bands(name),
            "dtype": self.dtype,
            "nodata": IGNORE if self.dtype == "uint8" else float("nan"),
            "tags": score_tags(name, self.dtype),
            "scale": score_scale(self.dtype),
            "overviews": "average",
        }


def _store(target: Array, score: Array) -> None:
    """Write scores as `target` holds them: in steps where those are whole numbers."""
    xp = library_of(score)
    if target.dtype == xp.uint8:
        score = score * SCORE_LEVELS
        xp.round(score, out=score)
        xp.clip(score, 0, SCORE_LEVELS, out=score)
    with np.errstate(invalid="ignore"):  # NaN is told with its window when the strip is finished
        target[...] = score


def _winner(scores: Array) -> tuple[Array, Array]:
    """The largest of each pixel and its class, the first of equals; both (h, w).

    On a CPU it takes a sixth of the time of torch's max(0), and an argmax takes longer still.
    """
    xp = library_of(scores)
    best, index = xp.empty_like(scores[0]), xp.zeros_like(scores[0], dtype=xp.uint8)
    best[...] = scores[0]
    for number, one in enumerate(scores[1:], 1):
        ahead = (one > best).view(xp.uint8)
        ahead *= number
        xp.maximum(index, ahead, out=index)
        xp.maximum(best, one, out=best)
    return best, index


def _second(scores: Array) -> Array:
    """The second largest of each pixel, (h, w); 0 for a single class."""
    xp = library_of(scores)
    best, second = scores[0], xp.zeros_like(scores[0])
    for one in scores[1:]:
        second = xp.maximum(second, xp.minimum(best, one))
        best = xp.maximum(best, one)
    return second


def _entropy(scores: Array) -> Array:
    """Shannon entropy over the classes divided by log K; 0 for a single class."""
    total = library_of(scores).zeros_like(scores[0])
    for one in scores:
        total += entr(one)
    return total / log(max(2, len(scores)))
