"""What a trained model carries, and how to load it without executing anything from the file.

A checkpoint is Lightning's own `.ckpt`, so that training resumes from it, with a mapping of plain values beside the
weights that says everything prediction needs. Loading unpickles tensors and plain types only (`weights_only=True`) and
rebuilds the network from our own dict of names, never from an import path.
"""

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rs_biformer.errors import CheckpointError, ConfigError
from rs_biformer.files import replacing
from rs_biformer.nn.model import create_model
from rs_biformer.nn.normalise import Normalisation
from rs_biformer.raster.values import RAW, Reading
from rs_biformer.schema import ClassSchema

META_KEY = "rs_biformer"
"""Where the mapping lies in the checkpoint."""

_LIGHTNING_KEYS = ("epoch", "global_step", "pytorch-lightning_version")

NETWORK_PREFIX = "model."
"""What the names of the network's weights begin with in the checkpoint's state dict."""


@dataclass(frozen=True)
class CheckpointMeta:
    """All that prediction needs to know about a trained model besides its weights.

    encoder, decoder, model_arguments: what `create_model` gets, together with the numbers of classes and of bands.
    bands: names in the order of the input channels; dtype: the numpy name of what the rasters held.
    mean, std: per band in raw units: the network sees (raw - mean) / std.
    window: pixels; gsd: metres per pixel, None when unknown. version: of this package.
    reading, shared_ground: as the tile index had them, see data.index.Manifest.
    metrics: figures of the weights at hand, which `protocol` made; both empty before the first validation.
    """

    encoder: str
    decoder: str
    model_arguments: dict[str, Any]
    schema: ClassSchema
    bands: tuple[str, ...]
    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    window: int
    gsd: float | None
    version: str
    metrics: dict[str, Any] = field(default_factory=dict)
    protocol: str = ""
    reading: Reading = RAW
    shared_ground: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, which `torch.load(weights_only=True)` admits."""
        plain = asdict(self)
        plain["schema"] = self.schema.to_dict()
        plain["reading"] = self.reading.to_dict()
        for name in ("reading", "shared_ground"):
            if not plain[name]:
                del plain[name]
        for name in ("bands", "mean", "std"):
            plain[name] = list(plain[name])
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CheckpointMeta":
        """The reverse of `to_dict`. Raises CheckpointError naming what is missing or what this version cannot know."""
        names = {item.name for item in fields(cls)}
        if missing := sorted(names - {"metrics", "protocol", "reading", "shared_ground"} - set(data)):
            raise CheckpointError(f"the checkpoint does not tell {', '.join(missing)}; train it again or repair it")
        if unknown := sorted(set(data) - names):
            raise CheckpointError(
                f"the checkpoint tells {', '.join(unknown)}, which this version does not understand; it was written by "
                f"version {data['version']}: update rs_biformer"
            )
        values = dict(data)
        try:
            values["schema"] = ClassSchema.from_dict(values["schema"])
        except ConfigError as error:
            raise CheckpointError(f"the checkpoint's class schema is damaged: {error}") from None
        try:
            values["reading"] = Reading.from_dict(values.get("reading", {}))
        except ConfigError as error:
            raise CheckpointError(f"the checkpoint is damaged: {error}") from None
        for name in ("bands", "mean", "std"):
            values[name] = tuple(values[name])
        return cls(**values)

    def create_network(self) -> nn.Module:
        """The network with fresh weights. Raises ConfigError when this version cannot build it."""
        return create_model(
            self.encoder, self.decoder, classes=len(self.schema), in_channels=len(self.bands), **self.model_arguments
        )


class TrainedModel(nn.Module):
    """A network together with what it was trained on; in eval mode.

    forward(raw (B, C, H, W) of any dtype, in the units of the rasters, valid (B, H, W) bool or None) -> logits
    (B, classes, H, W).
    """

    def __init__(self, network: nn.Module, meta: CheckpointMeta) -> None:
        super().__init__()
        self.network = network
        self.normalisation = Normalisation(meta.mean, meta.std)
        self.meta = meta
        self.eval()

    @property
    def schema(self) -> ClassSchema:
        return self.meta.schema

    @property
    def bands(self) -> tuple[str, ...]:
        return self.meta.bands

    def forward(self, raw: Tensor, valid: Tensor | None = None) -> Tensor:
        return self.network(self.normalisation(raw, valid))


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], CheckpointMeta]:
    """The content of one of our checkpoints, on the CPU, and what it carries. Executes nothing from the file.

    Raises CheckpointError when the file is missing, no checkpoint, holds more than tensors and plain values, or was not
    written by this package.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}; `rs-biformer train` writes best.ckpt and last.ckpt")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols of files that are no checkpoints anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "holds objects that could execute code, or is damaged" if _is_zip(path) else "is no checkpoint"
        raise CheckpointError(f"{path} {reason}; nothing was loaded ({_first_line(error)})") from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is no checkpoint, or a damaged one ({_first_line(error)})") from None
    if not isinstance(content, dict) or not isinstance(content.get(META_KEY), dict):
        raise CheckpointError(
            f"{path} was not written by `rs-biformer train`; bare weights are loaded by load_published_weights"
        )
    try:
        return content, CheckpointMeta.from_dict(content[META_KEY])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> TrainedModel:
    """The model of a checkpoint, ready to predict.

    Raises CheckpointError with one line that says what is wrong with the file, or which part this version cannot build.
    """
    content, meta = read_checkpoint(path)
    try:
        network = meta.create_network()
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path} holds a {meta.encoder} + {meta.decoder} that cannot be built: {error}") from None
    try:
        network.load_state_dict(network_weights(content))
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: the weights do not fit {meta.encoder} + {meta.decoder}: {_weight_fault(error)}"
        ) from None
    return TrainedModel(network, meta).to(device)


def strip_checkpoint(path: str | Path) -> None:
    """Leave only what prediction needs in a checkpoint: a quarter of the size where Adam trained it.

    Raises CheckpointError like `read_checkpoint`. The file is replaced at once or not at all.
    """
    path = Path(path)
    content, _ = read_checkpoint(path)
    kept = {name: content[name] for name in (META_KEY, "state_dict", *_LIGHTNING_KEYS) if name in content}
    with replacing(path) as partial:
        torch.save(kept, partial)


def network_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's state dict out of the content of a checkpoint."""
    return {
        name.removeprefix(NETWORK_PREFIX): value
        for name, value in content.get("state_dict", {}).items()
        if name.startswith(NETWORK_PREFIX)
    }


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:160] or type(error).__name__


def _weight_fault(error: RuntimeError) -> str:
    """The first fault that torch lists, and of hundreds of names only the first few."""
    faults = str(error).split("\n")[1:] or [str(error)]
    return " ".join(faults[0].split())[:200]
