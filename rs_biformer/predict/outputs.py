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
import torch
from numpy.typing import NDArray
from torch import Tensor

from rs_biformer.errors import ConfigError
from rs_biformer.predict.buffers import buffer
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

    def empty(self, height: int, width: int, device: torch.device) -> dict[str, Tensor]:
        """Room for every map, (h, w), and (K, h, w) for probabilities."""
        dtypes = {name: torch.uint8 if name == "classes" else getattr(torch, self.dtype) for name in self.names}
        shapes = {name: (self.classes,) * (name == "probabilities") + (height, width) for name in self.names}
        return {name: room(shapes[name], dtypes[name], device) for name in self.names}

    def fill(self, maps: Mapping[str, Tensor], values: Tensor) -> None:
        """Write the maps, as `empty` gives them, of blended values (P, h, w) float32."""
        if not maps:
            return
        scores = values[: self.classes]
        best, index = _winner(scores)
        for name, target in maps.items():
            match name:
                case "classes":
                    target.copy_(index)
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
            return {"schema": schema}
        return {
            "schema": schema if name == "probabilities" else None,
            "count": self.bands(name),
            "dtype": self.dtype,
            "nodata": IGNORE if self.dtype == "uint8" else float("nan"),
            "tags": score_tags(name, self.dtype),
            "scale": score_scale(self.dtype),
            "overviews": "average",
        }


def room(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor to be written to, see `buffers.buffer`."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(buffer(shape, str(dtype).removeprefix("torch.")))


def _store(target: Tensor, score: Tensor) -> None:
    target.copy_((score * SCORE_LEVELS).round_().clamp_(0, SCORE_LEVELS) if target.dtype == torch.uint8 else score)


def _winner(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each pixel and its class, the first of equals; both (h, w)."""
    if scores.device.type != "cpu":
        return scores.max(0)
    # A sixth of the time that max(0) takes on a CPU, and an argmax takes longer still.
    best, index = scores[0].clone(), torch.zeros(scores.shape[1:], dtype=torch.uint8)
    for number, one in enumerate(scores[1:], 1):
        ahead = (one > best).view(torch.uint8).mul_(number)
        torch.maximum(index, ahead, out=index)
        torch.maximum(best, one, out=best)
    return best, index


def _second(scores: Tensor) -> Tensor:
    """The second largest of each pixel, (h, w); 0 for a single class."""
    best, second = scores[0], torch.zeros_like(scores[0])
    for one in scores[1:]:
        second = torch.maximum(second, torch.minimum(best, one))
        best = torch.maximum(best, one)
    return second


def _entropy(scores: Tensor) -> Tensor:
    """Shannon entropy over the classes divided by log K; 0 for a single class."""
    total = torch.zeros_like(scores[0])
    for one in scores:
        total += torch.special.entr(one)
    return total / log(max(2, len(scores)))
