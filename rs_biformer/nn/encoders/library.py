"""Encoders of segmentation-models-pytorch and timm, by their own names."""

from typing import Any

import segmentation_models_pytorch as smp
import timm
from torch import nn

from rs_biformer.errors import ConfigError


def is_library_name(name: str) -> bool:
    """Whether smp or timm knows an encoder of this name; smp's prefix `tu-` for timm's is optional."""
    return name in smp.encoders.encoders or timm.is_model(name.removeprefix("tu-"))


def library_names() -> list[str]:
    """The names of all encoders of smp and timm."""
    return [*smp.encoders.encoders, *timm.list_models()]


def library_encoder(name: str, in_channels: int = 3, encoder_weights: str | None = None, **arguments: Any) -> nn.Module:
    """An encoder of smp or, where smp has none of the name, of timm.

    encoder_weights: None for none, otherwise a name such as "imagenet", which is downloaded.
    Raises ConfigError when there are no such weights or they cannot be downloaded, or the encoder cannot give features.
    """
    from_timm = name not in smp.encoders.encoders
    weights = encoder_weights is not None if from_timm else encoder_weights
    try:
        return smp.encoders.get_encoder(
            f"tu-{name.removeprefix('tu-')}" if from_timm else name,
            in_channels=in_channels,
            weights=(weights or None),
            **arguments,
        )
    # The download goes through one of several hubs' clients, each with exceptions of its own.
    except Exception as error:
        reason = str(error).strip('"').partition("\n")[0]
        advice = (
            f" with weights {encoder_weights!r}; without a network, pass the path of a local .pth or .safetensors file"
            if encoder_weights
            else ""
        )
        raise ConfigError(f"cannot make encoder {name}{advice} ({reason})") from error
