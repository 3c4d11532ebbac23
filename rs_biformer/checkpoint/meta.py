"""What a trained model says of itself: plain values, checked, without the network and without torch."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PlainValidator

from rs_biformer.documents import Listed, Text, build, known_part, made_by, plain, require_format
from rs_biformer.errors import CheckpointError, ConfigError
from rs_biformer.raster.values import RAW, Reading
from rs_biformer.schema import ClassSchema

if TYPE_CHECKING:
    from torch import nn

META_KEY = "rs_biformer"
"""Where the mapping lies in the checkpoint."""

FORMAT = 1
"""The number of the mapping's format, under the key `format`; checkpoints of before it was numbered have none."""

_BEGINNING = "encoder_weights"
"""The argument of a model that tells what its training began from: no part of what it has become."""

_LOADING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "weights")
"""Arguments by which timm would open or download further files."""

_NOT_FINITE = (float("inf"), float("-inf"))

_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")


def is_licence(text: str) -> bool:
    """Whether a text may be the SPDX identifier of a licence."""
    return re.fullmatch(r"[\w.+-]{1,100}", text) is not None


def require_licence(licence: str) -> None:
    """Raise ConfigError for what is no SPDX identifier of a licence; nothing says that none is told."""
    if licence and not is_licence(licence):
        raise ConfigError(f"{licence!r} is no SPDX identifier of a licence; write one such as CC-BY-4.0")


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

    def to_json(self) -> dict[str, Any]:
        """The same for JSON, which has no word for figures that are not finite: they are left out."""
        figures = {name: value for name, value in self.metrics.items() if value not in _NOT_FINITE and value == value}
        return self.to_dict() | {"metrics": figures}

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

    def create_network(self, encoder_weights: str | Path | None = None) -> "nn.Module":
        """The network with fresh weights, or its encoder with those named. Raises ConfigError as `create_model`."""
        if self.decoder.startswith("smp:"):
            from rs_biformer.nn.smp_models import create_smp_model

            architecture = self.decoder.partition(":")[2]
            return create_smp_model(
                architecture, self.encoder, len(self.schema), len(self.bands), **self.model_arguments
            )
        from rs_biformer.nn.model import create_model  # these are all that needs torch here

        return create_model(
            self.encoder,
            self.decoder,
            classes=len(self.schema),
            in_channels=len(self.bands),
            encoder_weights=encoder_weights,
            **self.model_arguments,
        )
