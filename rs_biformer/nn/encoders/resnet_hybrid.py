"""The hybrid encoder: a ResNet with a transformer path of bi-level routing or dilated attention beside it.

At each of strides 4, 8, 16 and 32 the CNN feature is projected to the width of the path, added to what the previous
stage of the path hands down, goes through the stage's blocks, and is fused with the CNN feature:

    CNN       f4 ----+-----> f8 ----+-----> f16 ...     torchvision's ResNet, made by smp
              |      |       |      |
              project|       project|
              |      |       |      |
    path      blocks-|-down->+blocks|-down->+ ...        down: 3x3 convolution of stride 2
              |      |       |      |
              fuse <-+       fuse <-+
              |              |
    skips     s4             s8                          fuse: 1x1 convolution over both

Choices where the design leaves one, and why:

- The CNN feature and the path are *added*: both are batch-normed maps of one width, and a sum costs nothing where a
  concatenation would need one more convolution on the largest maps.
- They are *fused* by a 1x1 convolution over both together, with batch norm and ReLU, so that each skip channel weighs
  CNN against path by itself. Skips are as wide as SKIPS_PER_PATH times the path, never wider than the CNN's: half of
  ResNet-50's channels, which halves both the fusion and what a decoder does with it.
- Feed-forward networks expand by 3, as in BiFormer (CMT expands by 3.6 to 4): the depth-wise convolution in between is
  bound by memory, so it is what the ratio costs.
- Blocks have no positional convolution. Two things already give positions: BRA's local term and IRFFN's 3x3.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rs_biformer.nn.attention.bra import BiLevelRoutingAttention
from rs_biformer.nn.attention.msda import MultiScaleDilatedAttention
from rs_biformer.nn.blocks import (
    IRFFN,
    ChannelsLast,
    ConvNormAct,
    TransformerBlock,
    drop_path_rates,
    init_transformer,
)
from rs_biformer.nn.encoders.library import library_encoder

HEAD_WIDTH = 32
FFN_RATIO = 3
SKIPS_PER_PATH = 2

AttentionOfWidth = Callable[[int], nn.Module]
FourAttentions = tuple[AttentionOfWidth, AttentionOfWidth, AttentionOfWidth, AttentionOfWidth]


def bra(topk: int) -> AttentionOfWidth:
    """Bi-level routing attention of 8 x 8 regions, for a width to be given."""
    return lambda dim: BiLevelRoutingAttention(dim, dim // HEAD_WIDTH, regions=8, topk=topk)


def msda(dim: int) -> nn.Module:
    """Dilated attention at dilations 1 and 2 in windows of 3 x 3; a single head, at dilation 1 alone."""
    heads = dim // HEAD_WIDTH
    return MultiScaleDilatedAttention(dim, heads, kernel_size=3, dilations=(1, 2) if heads > 1 else (1,))


class PathStage(nn.Module):
    """One stage of the transformer path.

    forward: the CNN feature (B, cnn, h, w) and the previous stage's output (B, dim / 2, 2h, 2w), or None at the first
    stage -> the path's output (B, dim, h, w) and the fused skip (B, skip, h, w).
    """

    def __init__(
        self, cnn: int, previous: int, dim: int, skip: int, attention: AttentionOfWidth, drop_paths: list[float]
    ) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Conv2d(cnn, dim, 1, bias=False), nn.BatchNorm2d(dim))
        self.down = (
            nn.Sequential(nn.Conv2d(previous, dim, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(dim))
            if previous
            else None
        )
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(dim, attention(dim), ChannelsLast(IRFFN(dim, FFN_RATIO * dim)), drop_path=rate)
                for rate in drop_paths
            )
        )
        self.fuse = ConvNormAct(cnn + dim, skip, 1)

    def forward(self, feature: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        path = self.project(feature)
        if self.down is not None and previous is not None:
            path = path + self.down(previous)
        path = self.blocks(path.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return path, self.fuse(torch.cat((feature, path), dim=1))


class ResNetHybrid(nn.Module):
    """A ResNet and a transformer path, fused at every stride from 4 to 32. Keeps smp's encoder contract.

    forward: (B, in_channels, H, W) -> features at strides 1 (the input), 2 (the CNN's own), 4, 8, 16 and 32.
    cnn: smp's name of the ResNet. dims, depths, attentions: of the path, one per stage. encoder_weights: the CNN's, as
    smp understands them. drop_path: stochastic depth at the last block, growing from 0 at the first.
    """

    output_stride = 32

    def __init__(
        self,
        in_channels: int,
        cnn: str,
        dims: tuple[int, int, int, int],
        depths: tuple[int, int, int, int],
        attentions: FourAttentions,
        encoder_weights: str | None = None,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        self.cnn = library_encoder(cnn, in_channels, encoder_weights)
        _, half, *widths = list(self.cnn.out_channels)  # type: ignore[arg-type]
        skips = [min(SKIPS_PER_PATH * dim, width) for dim, width in zip(dims, widths, strict=True)]
        self.out_channels = [in_channels, half, *skips]
        rates = drop_path_rates(drop_path, depths)
        self.stages = nn.ModuleList(
            PathStage(widths[i], dims[i - 1] if i else 0, dims[i], skips[i], attentions[i], rates[i])
            for i in range(len(dims))
        )
        self.stages.apply(init_transformer)

    def forward(self, x: Tensor) -> list[Tensor]:
        inputs, half, *features = self.cnn(x)
        skips, path = [], None
        for stage, feature in zip(self.stages, features, strict=True):
            path, skip = stage(feature, path)
            skips.append(skip)
        return [inputs, half, *skips]


def _resnet50(
    in_channels: int, attentions: FourAttentions, encoder_weights: str | None, drop_path: float
) -> ResNetHybrid:
    return ResNetHybrid(
        in_channels, "resnet50", (64, 128, 256, 512), (3, 4, 6, 3), attentions, encoder_weights, drop_path
    )


def resnet50_biformer(in_channels: int = 3, encoder_weights: str | None = None, drop_path: float = 0.1) -> ResNetHybrid:
    """ResNet-50 with bi-level routing attention at every stage; topk 1, 4, 16 and all 64 regions."""
    return _resnet50(in_channels, (bra(1), bra(4), bra(16), bra(64)), encoder_weights, drop_path)


def resnet50_biformer2_msda2(
    in_channels: int = 3, encoder_weights: str | None = None, drop_path: float = 0.1
) -> ResNetHybrid:
    """ResNet-50 with bi-level routing attention at strides 4 and 8, dilated attention at 16 and 32."""
    return _resnet50(in_channels, (bra(1), bra(4), msda, msda), encoder_weights, drop_path)


def resnet50_biformer_msda(
    in_channels: int = 3, encoder_weights: str | None = None, drop_path: float = 0.1
) -> ResNetHybrid:
    """ResNet-50 with bi-level routing and dilated attention in turn."""
    return _resnet50(in_channels, (bra(1), msda, bra(16), msda), encoder_weights, drop_path)


def resnet18_biformer(in_channels: int = 3, encoder_weights: str | None = None, drop_path: float = 0.1) -> ResNetHybrid:
    """The small member of the family, for CPUs: ResNet-18, half as wide a path, 5 blocks instead of 16."""
    attentions = (bra(1), bra(4), bra(16), bra(64))
    return ResNetHybrid(
        in_channels, "resnet18", (32, 64, 128, 256), (1, 1, 2, 1), attentions, encoder_weights, drop_path
    )


VARIANTS: dict[str, Callable[..., nn.Module]] = {
    "resnet50_biformer": resnet50_biformer,
    "resnet50_biformer2_msda2": resnet50_biformer2_msda2,
    "resnet50_biformer_msda": resnet50_biformer_msda,
    "resnet18_biformer": resnet18_biformer,
}


def published_key(key: str) -> str | None:
    """Our name for a parameter of torchvision's ResNet, which the CNN path is; None for its classifier.

    No weights of the whole hybrid are published. A name that is ours already is returned as it is.
    """
    if key.startswith("fc."):
        return None
    return key if key.startswith(("cnn.", "stages.")) else f"cnn.{key}"
