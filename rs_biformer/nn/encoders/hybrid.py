"""The hybrid encoder: a CNN with a transformer path of bi-level routing or dilated attention beside it.

At each of strides 4, 8, 16 and 32 the CNN feature is projected to the width of the path, added to what the previous
stage of the path hands down, goes through the stage's blocks, and is fused with the CNN feature:

    CNN       f4 ----+-----> f8 ----+-----> f16 ...     any encoder of smp or timm that gives a pyramid
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
  ResNet-50's channels, which halves both the fusion and what a decoder does with it. Beside a pretrained CNN, which a
  path of random weights disturbs, `fusion="residual"` adds a convolution of the path that begins at zero instead, so
  that the hybrid begins as its CNN.
- Feed-forward networks expand by 3, as in BiFormer (CMT expands by 3.6 to 4): the depth-wise convolution in between is
  bound by memory, so it is what the ratio costs.
- Blocks have no positional convolution. Two things already give positions: BRA's local term and IRFFN's 3x3.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rs_biformer.errors import ConfigError
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

TOPKS = (1, 4, 16, 64)
"""Regions of 8 x 8 that each region attends to, by stage: all of them at the last."""

Fusion = Literal["convolution", "residual"]
AttentionOfWidth = Callable[[int], nn.Module]
FourAttentions = Sequence[AttentionOfWidth | None]
"""By stage; None where there is no path."""


def bra(topk: int, regions: int = 8) -> AttentionOfWidth:
    """Bi-level routing attention of `regions` per side, for a width to be given."""
    return lambda dim: BiLevelRoutingAttention(dim, dim // HEAD_WIDTH, regions, topk)


def msda(dim: int) -> nn.Module:
    """Dilated attention at dilations 1 and 2 in windows of 3 x 3; a single head, at dilation 1 alone."""
    heads = dim // HEAD_WIDTH
    return MultiScaleDilatedAttention(dim, heads, kernel_size=3, dilations=(1, 2) if heads > 1 else (1,))


class PathStage(nn.Module):
    """One stage of the transformer path.

    forward: the CNN feature (B, cnn, h, w) and the previous stage's output (B, dim / 2, 2h, 2w), or None at the first
    stage -> the path's output (B, dim, h, w) and the fused skip (B, skip, h, w).
    fusion: see the module; layer_scale: see TransformerBlock.
    """

    def __init__(
        self,
        cnn: int,
        previous: int,
        dim: int,
        skip: int,
        attention: AttentionOfWidth,
        drop_paths: list[float],
        fusion: Fusion = "convolution",
        layer_scale: float | None = None,
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
                TransformerBlock(
                    dim,
                    attention(dim),
                    ChannelsLast(IRFFN(dim, FFN_RATIO * dim)),
                    drop_path=rate,
                    layer_scale=layer_scale,
                )
                for rate in drop_paths
            )
        )
        self.fuse = ConvNormAct(cnn + dim, skip, 1) if fusion == "convolution" else None
        self.add = None if fusion == "convolution" else nn.Conv2d(dim, skip, 1)

    def forward(self, feature: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        path = self.project(feature)
        if self.down is not None and previous is not None:
            path = path + self.down(previous)
        path = self.blocks(path.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.add is not None:
            return path, feature + self.add(path)
        assert self.fuse is not None
        return path, self.fuse(torch.cat((feature, path), dim=1))


class Hybrid(nn.Module):
    """A CNN and a transformer path, fused at every stride from 4 to 32 at which there is a path. Keeps smp's contract.

    forward: (B, in_channels, H, W) -> features at strides 1 (the input), 2 (the CNN's own), 4, 8, 16 and 32.
    cnn: the pyramid beside which the path runs. dims, depths, attentions: of the path, one per stage; the path begins
    at the first stage that has an attention, and every one after it must have one. fusion: "convolution", or "residual"
    for a hybrid that begins as its CNN. layer_scale: see TransformerBlock. drop_path: stochastic depth at the last
    block, growing from 0 at the first. cnn_name: of the CNN in its library, for weights by name.
    """

    output_stride = 32
    published_part = "cnn"

    def __init__(
        self,
        cnn: nn.Module,
        dims: Sequence[int],
        depths: Sequence[int],
        attentions: FourAttentions,
        drop_path: float = 0.1,
        fusion: Fusion = "convolution",
        layer_scale: float | None = None,
        cnn_name: str | None = None,
    ) -> None:
        super().__init__()
        self.cnn, self.cnn_name = cnn, cnn_name
        first, half, *widths = list(self.cnn.out_channels)  # type: ignore[arg-type]
        if len(widths) != len(dims) or not all(widths):
            raise ConfigError(
                f"a hybrid needs a CNN with features at strides 4, 8, 16 and 32; this one has {widths} channels there"
            )
        rates = drop_path_rates(drop_path, tuple(depths))
        self.begin = next(stage for stage, attention in enumerate(attentions) if attention is not None)
        self.stages = nn.ModuleList()
        skips = widths[: self.begin]
        for stage in range(self.begin, len(dims)):
            attention, dim, width = attentions[stage], dims[stage], widths[stage]
            assert attention is not None
            skips.append(min(SKIPS_PER_PATH * dim, width) if fusion == "convolution" else width)
            previous = dims[stage - 1] if stage > self.begin else 0
            self.stages.append(PathStage(width, previous, dim, skips[-1], attention, rates[stage], fusion, layer_scale))
        self.out_channels = [first, half, *skips]
        self.stages.apply(init_transformer)
        for part in self.stages:
            if isinstance(part, PathStage) and part.add is not None:
                nn.init.zeros_(part.add.weight)

    def forward(self, x: Tensor) -> list[Tensor]:
        inputs, half, *features = self.cnn(x)
        skips, path = [*features[: self.begin]], None  # what is starred above is a tuple to torch 2.11's compiler
        for stage, feature in zip(self.stages, features[self.begin :], strict=True):
            path, skip = stage(feature, path)
            skips.append(skip)
        return [inputs, half, *skips]


ATTENTIONS = ("bra", "msda", "none")


def hybrid(
    in_channels: int = 3,
    cnn: str = "resnet50",
    attention: Sequence[str] = ("bra", "bra", "msda", "msda"),
    width: int = 64,
    depths: Sequence[int] = (1, 1, 2, 1),
    fusion: Fusion = "residual",
    layer_scale: float | None = None,
    regions: int = 8,
    topks: Sequence[int] = TOPKS,
    drop_path: float = 0.1,
    cnn_arguments: dict[str, Any] | None = None,
) -> Hybrid:
    """A transformer path beside any encoder of smp or timm that gives features at strides 4 to 32.

    cnn: its name; cnn_arguments: what else it takes. attention, depths, topks: by stage, strides 4, 8, 16 and 32.
    attention: bra, msda, or none, at first stages, for a path that begins at a coarser one. width: channels of the path
    at stride 4, a multiple of 32, doubled at each stage. regions, topks: of bra. fusion, layer_scale, drop_path: see
    Hybrid.
    Raises ConfigError for values that do not fit.
    """
    _check_hybrid(attention, width, depths, fusion, topks)
    attentions = [_named(name, topk, regions) for name, topk in zip(attention, topks, strict=True)]
    dims = [width << stage for stage in range(4)]
    network = library_encoder(cnn, in_channels, **(cnn_arguments or {}))
    return Hybrid(network, dims, depths, attentions, drop_path, fusion, layer_scale, cnn)


def _named(name: str, topk: int, regions: int) -> AttentionOfWidth | None:
    return {"bra": bra(topk, regions), "msda": msda, "none": None}[name]


def _check_hybrid(
    attention: Sequence[str], width: int, depths: Sequence[int], fusion: str, topks: Sequence[int]
) -> None:
    for what, values in (("attention", attention), ("depths", depths), ("topks", topks)):
        if isinstance(values, str) or len(values) != 4:
            raise ConfigError(f"{what} is {values!r}; give four, one per stride, such as [bra, bra, msda, msda]")
    unknown = [name for name in attention if name not in ATTENTIONS]
    if unknown:
        raise ConfigError(f"attention is {list(attention)}; each must be one of {', '.join(ATTENTIONS)}")
    path = [name != "none" for name in attention]
    if not any(path) or path != sorted(path):
        raise ConfigError(
            f"attention is {list(attention)}; none may stand at the first strides alone, and not at all four"
        )
    if width < HEAD_WIDTH or width % HEAD_WIDTH:
        raise ConfigError(f"width is {width}; it must be a multiple of {HEAD_WIDTH}, such as 32 or 64")
    if min(depths) < 1 or min(topks) < 1:
        raise ConfigError(f"depths are {list(depths)} and topks {list(topks)}; each must be 1 or more")
    if fusion not in ("convolution", "residual"):
        raise ConfigError(f"fusion is {fusion!r}; use convolution or residual")


def _published(
    cnn: str, dims: Sequence[int], depths: Sequence[int], attentions: FourAttentions, in_channels: int, drop_path: float
) -> Hybrid:
    return Hybrid(library_encoder(cnn, in_channels), dims, depths, attentions, drop_path, cnn_name=cnn)


_resnet50 = partial(_published, "resnet50", (64, 128, 256, 512), (3, 4, 6, 3))


def resnet50_biformer(in_channels: int = 3, drop_path: float = 0.1) -> Hybrid:
    """ResNet-50 with bi-level routing attention at every stage; topk 1, 4, 16 and all 64 regions."""
    return _resnet50((bra(1), bra(4), bra(16), bra(64)), in_channels, drop_path)


def resnet50_biformer2_msda2(in_channels: int = 3, drop_path: float = 0.1) -> Hybrid:
    """ResNet-50 with bi-level routing attention at strides 4 and 8, dilated attention at 16 and 32."""
    return _resnet50((bra(1), bra(4), msda, msda), in_channels, drop_path)


def resnet50_biformer_msda(in_channels: int = 3, drop_path: float = 0.1) -> Hybrid:
    """ResNet-50 with bi-level routing and dilated attention in turn."""
    return _resnet50((bra(1), msda, bra(16), msda), in_channels, drop_path)


def resnet18_biformer(in_channels: int = 3, drop_path: float = 0.1) -> Hybrid:
    """The small member of the family, for CPUs: ResNet-18, half as wide a path, 5 blocks instead of 16."""
    attentions = (bra(1), bra(4), bra(16), bra(64))
    return _published("resnet18", (32, 64, 128, 256), (1, 1, 2, 1), attentions, in_channels, drop_path)


def lite_hybrid(in_channels: int = 3, fusion: Fusion = "residual", drop_path: float = 0.1) -> Hybrid:
    """Small and fast, for CPUs without a hub: EfficientNet-Lite0, whose ImageNet weights a package brings
    (`pretrained`).

    The path is narrow, begins at stride 8 and has one block per stage.
    """
    return hybrid(
        in_channels,
        "tf_efficientnet_lite0",
        ("none", "bra", "bra", "bra"),
        width=32,
        depths=(1, 1, 1, 1),
        fusion=fusion,
        drop_path=drop_path,
    )


VARIANTS: dict[str, Callable[..., nn.Module]] = {
    "resnet50_biformer": resnet50_biformer,
    "resnet50_biformer2_msda2": resnet50_biformer2_msda2,
    "resnet50_biformer_msda": resnet50_biformer_msda,
    "resnet18_biformer": resnet18_biformer,
    "lite_hybrid": lite_hybrid,
    "hybrid": hybrid,
}
