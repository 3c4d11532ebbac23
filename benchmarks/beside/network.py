"""The model that all scripts of this folder map with: a U-Net of smp, or a 1x1 convolution where none is given."""

from pathlib import Path

import torch

CLASSES, WINDOW, STRIDE, BATCH = 6, 512, 384, 4


class Scaled(torch.nn.Module):
    """A network that is fed with bytes as they are."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.network(values / 255)


def load(weights: str | Path | None, *, scaled: bool = True) -> torch.nn.Module:
    """(B, 3, h, w) float -> logits. weights: of smp's U-Net over ResNet-18. scaled: bytes come in, not 0 to 1."""
    if weights is None:
        return torch.nn.Conv2d(3, CLASSES, 1).eval()
    import segmentation_models_pytorch as smp

    network = smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=CLASSES)
    network.load_state_dict(torch.load(weights, weights_only=True))
    return (Scaled(network) if scaled else network).eval()
