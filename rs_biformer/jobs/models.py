"""A trained model from its file, whichever kind of file it is, with what it was trained on."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rs_biformer import __version__
from rs_biformer.checkpoint import CheckpointMeta
from rs_biformer.checkpoint.hub import is_hub_name, located, origin
from rs_biformer.checkpoint.meta import is_licence
from rs_biformer.errors import CheckpointError, ConfigError
from rs_biformer.predict.backends import needing_torch
from rs_biformer.predict.ensemble import Ensemble
from rs_biformer.predict.fit import GSD_CLOSE, times_off
from rs_biformer.predict.onnx import OnnxModel
from rs_biformer.predict.quality import Sight
from rs_biformer.predict.recipe import Model
from rs_biformer.raster import metadata
from rs_biformer.raster.paths import PathLike
from rs_biformer.schema import ClassSchema

if TYPE_CHECKING:
    from rs_biformer.checkpoint import TrainedModel


PROGRAM = ".pt2"
"""What a program of torch.export is called, which others run."""


@dataclass(frozen=True)
class Loaded:
    """A model ready to predict, what it was trained on, and the file it came from, if it came from one.

    origin: what the hub calls that file, with its commit; nothing for others. members: the models of an ensemble, whose
    description is that of the first.
    """

    model: Model
    meta: CheckpointMeta
    path: Path | None = None
    members: tuple["Loaded", ...] = ()
    origin: str = ""

    @property
    def schema(self) -> ClassSchema:
        return self.meta.schema

    @property
    def tags(self) -> dict[str, str]:
        """What a map says of the model that made it."""
        return {
            metadata.MODEL: self.network,
            **({metadata.MODEL_FILE: self.file} if self.file else {}),
            metadata.SOFTWARE: f"rs_biformer {__version__}",
        }

    @property
    def network(self) -> str:
        if self.members:
            return " and ".join(dict.fromkeys(one.network for one in self.members))
        return f"{self.meta.encoder} + {self.meta.decoder}"

    @property
    def file(self) -> str:
        """The name of its file, with the repository of one of the hub, or of the files of an ensemble."""
        return ", ".join(one.file for one in self.members) or self.origin or (self.path.name if self.path else "")

    @property
    def parameters(self) -> int:
        """How many numbers were learned; 0 where the file does not tell."""
        if self.members:
            return sum(one.parameters for one in self.members)
        parameters: Any = getattr(self.model, "parameters", None)
        return sum(value.numel() for value in parameters()) if parameters else 0

    @property
    def licence(self) -> str:
        """The SPDX identifier of its licence, where its file tells one."""
        told = self.model.licence if isinstance(self.model, OnnxModel) else ""
        return told if is_licence(told) else ""

    @property
    def sight(self) -> Sight:
        """What decides the windows that it looks through; those of an ensemble grow where all models' may."""
        each = [one.model for one in self.members] or [self.model]
        return Sight(
            self.meta.window,
            grows=all(getattr(model, "sees_further", False) for model in each),
            routes=any(getattr(model, "routes", False) for model in each),
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What there is to say of the model on a page, by name."""
        count = self.parameters
        return {
            "network": self.network,
            **({"checkpoint": self.file} if self.path else {}),
            **({"parameters": f"{count / 1e6:.2f} M"} if count else {}),
            **({"file size": f"{self.path.stat().st_size / 1e6:.1f} MB"} if self.path else {}),
            "training window": f"{self.meta.window} px",
            **({"ground sample distance": f"{self.meta.gsd:g} m"} if self.meta.gsd else {}),
            **({"its splits overlap": self.meta.shared_ground} if self.meta.shared_ground else {}),
        }


def load_model(source: "PathLike | TrainedModel | Loaded | Sequence[PathLike | TrainedModel | Loaded]") -> Loaded:
    """The model of a checkpoint (.ckpt, .safetensors) or exported file (.onnx); one that is loaded already as it is.

    A model on the hub, hf://owner/name, is fetched first. Several are an ensemble, see `load_ensemble`.

    Raises CheckpointError for a file that is missing, damaged or no model of ours, ConfigError where what it needs is
    not installed.
    """
    if isinstance(source, Loaded):
        return source
    if isinstance(source, Sequence) and not isinstance(source, str):
        return load_ensemble(source) if len(source) > 1 else load_model(source[0])
    if not isinstance(source, str | os.PathLike):
        return Loaded(source, source.meta)
    path = located(source)
    found_as = origin(source, path) if is_hub_name(source) else ""
    if path.suffix.lower() == PROGRAM:
        raise CheckpointError(
            f"{path} is a program of torch, for other software; give the checkpoint, or export an .onnx"
        )
    if path.suffix.lower() == ".onnx":
        exported = OnnxModel(path)
        return Loaded(exported, CheckpointMeta.from_dict(exported.details, str(path)), path)
    with needing_torch(f"{path} is a checkpoint"):
        from rs_biformer.checkpoint import load_checkpoint
    model = load_checkpoint(path)
    return Loaded(model, model.meta, path, origin=found_as)


def load_ensemble(sources: "Sequence[PathLike | TrainedModel | Loaded]") -> Loaded:
    """Models whose probabilities are averaged; checkpoints and exported models together if need be.

    They must have the same classes in the same order, bands, data type, pixel size (within a twentieth) and way of
    reading scenes; networks, statistics and windows may differ. The window is that of the exported models, which take
    no other, else that of the first.

    Raises ConfigError that says what differs.
    """
    members = tuple(map(load_model, sources))
    paths = [one.path.resolve() for one in members if one.path]
    if twice := [path for place, path in enumerate(paths) if path in paths[:place]]:
        raise ConfigError(f"{twice[0]} is given twice; an ensemble is of different models")
    first = members[0]
    for other in members[1:]:
        if differing := _differences(first.meta, other.meta):
            raise ConfigError(
                f"{other.file or other.network} and {first.file or first.network} cannot be averaged: "
                f"{'; '.join(differing)}. Give models of one schema, bands and pixel size"
            )
    fixed = {one.meta.window: one.file for one in members if isinstance(one.model, OnnxModel)}
    if len(fixed) > 1:
        told = ", ".join(f"{file} of {window}" for window, file in fixed.items())
        raise ConfigError(f"exported models take windows of one size: {told}; export them with one --window")
    meta = replace(first.meta, window=next(iter(fixed), first.meta.window))
    averaged: Any = Ensemble([one.model for one in members])
    return Loaded(averaged, meta, None, members)


def _differences(one: CheckpointMeta, other: CheckpointMeta) -> list[str]:
    """What of two models differs that must not, in words."""
    pairs = {
        "classes": (", ".join(one.schema.classes), ", ".join(other.schema.classes)),
        "bands": (", ".join(one.bands), ", ".join(other.bands)),
        "data type": (one.dtype, other.dtype),
        "nodata and scale": (one.reading.to_dict(), other.reading.to_dict()),
    }
    found = [f"{name} are {theirs} and {ours}" for name, (ours, theirs) in pairs.items() if ours != theirs]
    if one.gsd != other.gsd and (one.gsd is None or other.gsd is None or times_off(one.gsd, other.gsd) > GSD_CLOSE):
        found.append(f"metres per pixel are {other.gsd or 'unknown'} and {one.gsd or 'unknown'}")
    return found
