"""A trained model from its file, whichever kind of file it is, with what it was trained on."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rs_biformer import __version__
from rs_biformer.checkpoint import CheckpointMeta
from rs_biformer.predict.backends import needing_torch
from rs_biformer.predict.onnx import OnnxModel
from rs_biformer.predict.recipe import Model
from rs_biformer.raster import metadata
from rs_biformer.raster.paths import PathLike
from rs_biformer.schema import ClassSchema

if TYPE_CHECKING:
    from rs_biformer.checkpoint import TrainedModel


@dataclass(frozen=True)
class Loaded:
    """A model ready to predict, what it was trained on, and the file it came from, if it came from one."""

    model: Model
    meta: CheckpointMeta
    path: Path | None = None

    @property
    def schema(self) -> ClassSchema:
        return self.meta.schema

    @property
    def tags(self) -> dict[str, str]:
        """What a map says of the model that made it."""
        return {
            metadata.MODEL: self.network,
            **({metadata.MODEL_FILE: self.path.name} if self.path else {}),
            metadata.SOFTWARE: f"rs_biformer {__version__}",
        }

    @property
    def network(self) -> str:
        return f"{self.meta.encoder} + {self.meta.decoder}"

    @property
    def parameters(self) -> int:
        """How many numbers were learned; 0 where the file does not tell."""
        parameters: Any = getattr(self.model, "parameters", None)
        return sum(value.numel() for value in parameters()) if parameters else 0

    @property
    def facts(self) -> dict[str, Any]:
        """What there is to say of the model on a page, by name."""
        count = self.parameters
        return {
            "network": self.network,
            **({"checkpoint": self.path.name} if self.path else {}),
            **({"parameters": f"{count / 1e6:.2f} M"} if count else {}),
            **({"file size": f"{self.path.stat().st_size / 1e6:.1f} MB"} if self.path else {}),
            "training window": f"{self.meta.window} px",
            **({"ground sample distance": f"{self.meta.gsd:g} m"} if self.meta.gsd else {}),
            **({"its splits overlap": self.meta.shared_ground} if self.meta.shared_ground else {}),
        }


def load_model(source: "PathLike | TrainedModel | Loaded") -> Loaded:
    """The model of a checkpoint (.ckpt) or of an exported file (.onnx); one that is loaded already as it is.

    Raises CheckpointError for a file that is missing, damaged or no model of ours, ConfigError where what it needs is
    not installed.
    """
    if isinstance(source, Loaded):
        return source
    if not isinstance(source, str | os.PathLike):
        return Loaded(source, source.meta)
    path = Path(source)
    if path.suffix.lower() == ".onnx":
        exported = OnnxModel(path)
        return Loaded(exported, CheckpointMeta.from_dict(exported.details, str(path)), path)
    with needing_torch(f"{path} is a checkpoint"):
        from rs_biformer.checkpoint import load_checkpoint
    model = load_checkpoint(path)
    return Loaded(model, model.meta, path)
