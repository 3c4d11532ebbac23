"""Whole models of segmentation-models-pytorch, as their users save them: architecture, encoder and arguments by name.

smp's models differ from ours in their heads (and some in their decoders), so one that smp saved is built by smp. It
becomes one of ours by what is around it: any size of image, and two classes where it has one logit.
"""

from typing import Any

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rs_biformer.errors import ConfigError
from rs_biformer.nn.encoders.library import timm_name

PREFIX = "smp:"
"""What decoders are called that stand for a whole architecture: `smp:Unet`."""

ARCHITECTURES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        smp.Unet,
        smp.UnetPlusPlus,
        smp.MAnet,
        smp.Linknet,
        smp.FPN,
        smp.PSPNet,
        smp.DeepLabV3,
        smp.DeepLabV3Plus,
        smp.PAN,
        smp.UPerNet,
        smp.Segformer,
        smp.DPT,
    )
}
"""By the name that smp writes into config.json."""


class SmpModel(nn.Module):
    """A model of smp: (B, C, H, W) float -> logits (B, classes, H, W) for any H and W.

    Sizes that its stride does not divide are padded at the bottom and right by repeating the edge, and the logits
    cropped; at others the logits are smp's. One logit for two classes is that of the second, and the first has zero:
    the softmax of both is the sigmoid of the one.
    """

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.network = network
        self.classes = classes

    @property
    def encoder(self) -> nn.Module:
        found: Any = self.network.encoder
        return found  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        stride = int(self.encoder.output_stride)  # type: ignore[arg-type]
        height, width = x.shape[-2:]
        down, right = (-n % stride for n in (height, width))
        padded = F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x
        logits: Tensor = self.network(padded)[..., :height, :width]
        if logits.shape[1] == 1 and self.classes == 2:
            return torch.cat([torch.zeros_like(logits), logits], 1)
        return logits


def create_smp_model(architecture: str, encoder: str, classes: int, in_channels: int, **arguments: Any) -> SmpModel:
    """A model of smp with random weights.

    architecture: one of ARCHITECTURES. arguments: of its constructor, as config.json has them; `logits` 1 stands for
    one logit for two classes.

    Raises ConfigError for what smp cannot build.
    """
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"smp has no model {architecture!r}; it has {', '.join(ARCHITECTURES)}")
    logits = arguments.pop("logits", classes)
    if logits != classes and (logits, classes) != (1, 2):
        raise ConfigError(f"the model gives {logits} logits for {classes} classes; give a schema of as many")
    encoder = encoder if encoder in smp.encoders.encoders else f"tu-{timm_name(encoder)}"
    try:
        network = ARCHITECTURES[architecture](
            encoder_name=encoder, encoder_weights=None, classes=logits, in_channels=in_channels, **arguments
        )
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # some thousand encoders, each with exceptions of its own
        reason = str(error).strip("\"'").partition("\n")[0][:160] or type(error).__name__
        raise ConfigError(f"smp cannot make a {architecture} of {encoder} ({reason})") from error
    return SmpModel(network, classes)
