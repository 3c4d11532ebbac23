"""The U-Net fusion decoder: coarse features meet the skips from coarsest to finest.

Ronneberger et al., "U-Net", MICCAI 2015, arXiv:1505.04597, with one change: where U-Net runs its first 3x3 convolution
over the concatenation of both maps, here a 1x1 convolution fuses them first. That is where each channel decides how
much of the coarse map and how much of the skip it takes; the 3x3 convolutions then work at the level's own width. With
the skips of `resnet50_biformer` it is less than half of the arithmetic (24 against 53 GFLOP for 8 windows of 256 px).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rs_biformer.nn.blocks import ConvNormAct


class FusionLevel(nn.Module):
    """Upsample the coarse map to the skip's size, fuse the two, refine.

    forward: (B, coarse, h, w) and a skip (B, skip, H, W) with skip >= 0 channels -> (B, out, H, W).
    """

    def __init__(self, coarse: int, skip: int, out: int) -> None:
        super().__init__()
        self.fuse = ConvNormAct(coarse + skip, out, 1)
        self.refine = nn.Sequential(ConvNormAct(out, out, 3), ConvNormAct(out, out, 3))

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        coarse = F.interpolate(coarse, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        both = torch.cat((coarse, skip.to(coarse.dtype)), dim=1) if skip.shape[1] else coarse
        out: Tensor = self.refine(self.fuse(both))
        return out


class UNetFusion(nn.Module):
    """Features of an encoder -> one map at stride 2, `channels[-1]` wide.

    encoder_channels: the encoder's out_channels, for strides 1, 2, 4, 8, 16, 32; a stride that it does not have counts
    0 channels. channels: width of the map at strides 16, 8, 4 and 2.
    There is no level at stride 1: encoders have no feature there but the input, and memory traffic at full resolution
    is what costs on a CPU. The logits are upsampled from stride 2 instead.
    """

    output_stride = 2

    def __init__(self, encoder_channels: Sequence[int], channels: Sequence[int] = (256, 128, 64, 32)) -> None:
        super().__init__()
        *skips, coarsest = encoder_channels[1:]
        self.out_channels = channels[-1]
        self.levels = nn.ModuleList(
            FusionLevel(coarse, skip, out)
            for (coarse, out), skip in zip(pairwise((coarsest, *channels)), reversed(skips), strict=True)
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        *skips, x = features[1:]
        for level, skip in zip(self.levels, reversed(skips), strict=True):
            x = level(x, skip)
        return x
