"""What a trained model carries, and how to load it without executing anything from the file.

A checkpoint is Lightning's own `.ckpt`, so that training resumes from it, with a mapping of plain values beside the
weights that says everything prediction needs. Loading unpickles tensors and plain types only (`weights_only=True`) and
rebuilds the network from our own dict of names, never from an import path.
"""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, PlainValidator
from torch import Tensor, nn

from rs_biformer.documents import Listed, Text, build, known_part, made_by, plain, require_format, shown
from rs_biformer.errors import CheckpointError, ConfigError
from rs_biformer.files import replacing
from rs_biformer.nn.archive import require_intact
from rs_biformer.nn.model import create_model
from rs_biformer.nn.normalise import Normalisation
from rs_biformer.raster.values import RAW, Reading
from rs_biformer.schema import ClassSchema

META_KEY = "rs_biformer"
"""Where the mapping lies in the checkpoint."""

FORMAT = 1
"""The number of the mapping's format, under the key `format`; checkpoints of before it was numbered have none."""

NETWORK_PREFIX = "model."
"""What the names of the network's weights begin with in the checkpoint's state dict."""

_LIGHTNING_KEYS = ("epoch", "global_step", "pytorch-lightning_version")

_BEGINNING = "encoder_weights"
"""The argument of a model that tells what its training began from: no part of what it has become."""

_LOADING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "weights")
"""Arguments by which timm would open or download further files."""

_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")


def _known_dtype(name: Any) -> str:
    if name not in _DTYPES:
        raise ValueError(f"it must be one of {', '.join(_DTYPES)}")
    return str(name)


@dataclass(frozen=True)
class CheckpointMeta:
    """All that prediction needs to know about a trained model besides its weights.

    encoder, decoder, model_arguments: what `create_model` gets, together with the numbers of classes and of bands; what
        the training began from (`encoder_weights`) is left out, so that a checkpoint needs no other file.
    bands: names in the order of the input channels; dtype: the numpy name of what the rasters held.
    mean, std: per band in raw units: the network sees (raw - mean) / std.
    window: pixels; gsd: metres per pixel, None when unknown. version: of this package.
    reading, shared_ground: as the tile index had them, see data.index.Manifest.
    metrics: figures of the weights at hand, which `protocol` made; both empty before the first validation.

    Raises ConfigError when the parts do not fit together.
    """

    encoder: Text
    decoder: Text
    model_arguments: dict[str, Any]
    schema: Annotated[ClassSchema, made_by(ClassSchema, ClassSchema.from_dict)]
    bands: Annotated[Listed[Text], Field(min_length=1)]
    dtype: Annotated[str, PlainValidator(_known_dtype)]
    mean: Listed[float]
    std: Listed[Annotated[float, Field(gt=0)]]
    window: Annotated[int, Field(ge=1, le=1 << 16)]
    gsd: Annotated[float, Field(gt=0)] | None = None
    version: Text = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    protocol: Text = ""
    reading: Annotated[Reading, made_by(Reading, Reading.from_dict)] = RAW
    shared_ground: Text = ""

    def __post_init__(self) -> None:
        arguments = {name: value for name, value in self.model_arguments.items() if name != _BEGINNING}
        if files := [name for name in arguments if name in _LOADING]:
            raise ConfigError(f"model arguments have {files[0]}, which reads another file; use {_BEGINNING}")
        object.__setattr__(self, "model_arguments", arguments)
        if not len(self.bands) == len(self.mean) == len(self.std):
            raise ConfigError(
                f"{len(self.bands)} bands need as many means ({len(self.mean)}) and stds ({len(self.std)})"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, which `torch.load(weights_only=True)` admits."""
        values = asdict(self)
        values["schema"] = self.schema.to_dict()
        values["reading"] = self.reading.to_dict()
        for name in ("bands", "mean", "std"):
            values[name] = list(values[name])
        for name in ("reading", "shared_ground"):
            if not values[name]:
                del values[name]
        return {"format": FORMAT, **values}

    @classmethod
    def from_dict(cls, data: Any, where: str = "the checkpoint") -> "CheckpointMeta":
        """The reverse of `to_dict`, for mappings of every format up to FORMAT.

        What came into the format later is left aside with a note, and what older files lack has its default. Raises
        CheckpointError, in one line that begins with `where`, for anything else.
        """
        try:
            values: dict[str, Any] = build(dict[str, Any], plain(data, where), where)
            require_format(values.pop("format", None), FORMAT, where)
            return build(cls, known_part(cls, values, where), where)
        except ConfigError as error:
            raise CheckpointError(str(error)) from None

    def create_network(self, encoder_weights: str | Path | None = None) -> nn.Module:
        """The network with fresh weights, or its encoder with those named. Raises ConfigError as `create_model`."""
        return create_model(
            self.encoder,
            self.decoder,
            classes=len(self.schema),
            in_channels=len(self.bands),
            encoder_weights=encoder_weights,
            **self.model_arguments,
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
        logits: Tensor = self.network(self.normalisation(raw, valid))
        return logits


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], CheckpointMeta]:
    """The content of one of our checkpoints, on the CPU, and what it carries. Executes nothing from the file.

    Raises CheckpointError when the file is missing, no checkpoint, changed since it was written, holds more than
    tensors and plain values, or was not written by this package.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}; `rs-biformer train` writes best.ckpt and last.ckpt")
    require_intact(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what the file would have if it were loaded otherwise
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle is a small program, which can fail in any way
        raise CheckpointError(
            f"{path} holds objects that could execute code, or is damaged; nothing was loaded ({_first_line(error)})"
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get(META_KEY), dict):
        raise CheckpointError(
            f"{path} was not written by `rs-biformer train`; bare weights are loaded by load_published_weights"
        )
    meta = CheckpointMeta.from_dict(content[META_KEY], str(path))
    _require_tensors(content.get("state_dict"), path)
    return content, meta


def _require_tensors(state: Any, path: Path) -> None:
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} has no weights: its state_dict is {shown(state)}")
    for name, value in state.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path} has weights that are called {shown(name)}; a name is text")
        if type(value) is not Tensor or value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise CheckpointError(f"{path} has a {type(value).__name__} for {shown(name)}; weights are dense tensors")


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> TrainedModel:
    """The model of a checkpoint, ready to predict.

    Raises CheckpointError with one line that says what is wrong with the file, or which part this version cannot build.
    """
    content, meta = read_checkpoint(path)
    weights, title = network_weights(content), f"{meta.encoder} + {meta.decoder}"
    try:
        network = _create_to_hold(weights, meta)
        network.load_state_dict(weights)
        model = TrainedModel(network, meta)
    except _Misfit as error:
        raise CheckpointError(f"{path}: the weights do not fit {title}: {error}") from None
    except Exception as error:  # arguments from the file, handed to constructors of three libraries
        raise CheckpointError(f"{path} holds a {title} that cannot be built: {_first_line(error)}") from None
    return model.to(device)


class _Misfit(Exception):
    """Weights are not those of the network that they are said to be of."""


def _create_to_hold(weights: Mapping[str, Tensor], meta: CheckpointMeta) -> nn.Module:
    """The network with fresh weights, seen to have a place for these before it takes any memory. Raises _Misfit."""
    try:
        with torch.device("meta"):
            network = meta.create_network()
    except ConfigError as error:
        if not isinstance(error.__cause__, RuntimeError):
            raise
        network = meta.create_network()  # an encoder that computes while it is made
    own = network.state_dict()
    if missing := [name for name in own if name not in weights]:
        raise _Misfit(f"{len(missing)} are missing, such as {missing[0]}")
    if strange := [name for name in weights if name not in own]:
        raise _Misfit(f"{len(strange)} have no place, such as {shown(strange[0])}")
    for name, value in own.items():
        given = weights[name]
        if given.shape != value.shape or given.is_floating_point() != value.is_floating_point() or given.is_complex():
            raise _Misfit(
                f"{name} is {given.dtype} {list(given.shape)} where it takes {value.dtype} {list(value.shape)}"
            )
    return meta.create_network()


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
    """The network's state dict out of the content of a checkpoint that `read_checkpoint` gave."""
    return {
        name.removeprefix(NETWORK_PREFIX): value
        for name, value in content["state_dict"].items()
        if name.startswith(NETWORK_PREFIX)
    }


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:160] or type(error).__name__
