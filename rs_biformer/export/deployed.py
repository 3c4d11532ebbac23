"""What every exported file computes, and what it says of itself: raw band values in, probabilities out."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rs_biformer.checkpoint import TrainedModel
from rs_biformer.errors import ConfigError
from rs_biformer.predict.onnx import METADATA_KEY

INPUT, OUTPUT = "image", "probabilities"


class Deployed(nn.Module):
    """Raw band values (B, C, S, S) float32 -> probabilities (B, K, S, S) float32, on the CPU."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        self.model = model
        self.eval().cpu()

    @property
    def bands(self) -> int:
        return self.model.normalisation.bands

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.model(image).softmax(1)
        return scores

    def probabilities(self, image: Tensor) -> Tensor:
        """As forward, without gradients.

        Raises ConfigError where the network does not take windows of this size, or gives values that are not finite.
        """
        try:
            with torch.inference_mode():
                found: Tensor = self(image)
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:  # some thousand networks, each with exceptions of its own
            raise ConfigError(
                f"{self.name} does not take windows of {image.shape[-1]} ({first_line(error)}); give another --window"
            ) from error
        if not found.isfinite().all():
            raise ConfigError(f"{self.name} gives values that are not finite, so that no export can be checked")
        return found

    @property
    def name(self) -> str:
        return f"{self.model.meta.encoder} + {self.model.meta.decoder}"


@contextmanager
def tracing(what: str, name: str) -> Iterator[None]:
    """Torch's exporters without their remarks; what they raise becomes one line. Raises ConfigError."""
    noisy = logging.getLogger("torch")
    level = noisy.level
    noisy.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about torch's own code
            yield
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # of a dozen kinds, from several packages
        raise ConfigError(f"{name} cannot be exported {what}; nothing was written ({first_line(error)})") from error
    finally:
        noisy.setLevel(level)


def example(deployed: Deployed, size: int) -> Tensor:
    """A batch of two, which exporters do not take for a constant as they would one."""
    return torch.zeros(2, deployed.bands, size, size)


def first_line(error: BaseException) -> str:
    """What an exception says at the end of its chain, where the reason stands, in at most 200 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:200]}" if lines else type(error).__name__


def metadata(model: TrainedModel, window: int, overlap: float, licence: str = "") -> dict[str, str]:
    """The metadata of a file: the keys of Deepness, and all that our checkpoint carries under one key of ours.

    Deepness divides values by 255 and standardises them, so it is told a mean of 0 and a deviation of 1/255, which
    undoes the division and leaves the raw values that the file expects. licence: of the model (SPDX), under the
    key that ONNX has for it.
    """
    meta, bands = model.meta, len(model.bands)
    entries: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": {str(index): name for index, name in enumerate(meta.schema.classes)},
        "tile_size": window,
        "tiles_overlap": round(100 * overlap),
        "standardization_mean": [0.0] * bands,
        "standardization_std": [1 / 255] * bands,
        "seg_thresh": 0.0,  # Deepness drops what is below before it picks the best class
        "seg_small_segment": 0,  # and filters its map by a median, which takes cars away, unless this is 0
        METADATA_KEY: meta.to_dict() | {"window": window},
    }
    if meta.gsd is not None:
        entries["resolution"] = round(100 * meta.gsd, 4)  # centimetres per pixel
    told = {"model_license": licence} if licence else {}
    return {key: json.dumps(value) for key, value in entries.items()} | told
