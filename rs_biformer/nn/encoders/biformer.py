"""BiFormer: a pyramid of bi-level routing attention, as an encoder for dense prediction.

Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", CVPR 2023, arXiv:2303.08810. After the
published dense-prediction backbone (rayleizhu/BiFormer, semantic_segmentation): regions 8 x 8, and a layer norm over
the channels of each stage's output.

Differences: attention to a map that does not divide into regions never sees padding (see `attention/bra.py`); the stem
takes any number of bands; the features begin with the input and an empty one at stride 2, which is smp's contract.
"""

import re
from collections.abc import Callable

from torch import Tensor, nn

from rs_biformer.nn.attention import bra
from rs_biformer.nn.attention.bra import BiLevelRoutingAttention
from rs_biformer.nn.attention.softmax import attend_everywhere
from rs_biformer.nn.blocks import MLP, ChannelsLast, TransformerBlock, drop_path_rates, init_transformer
from rs_biformer.nn.depthwise import DepthwiseConv2d

HEAD_WIDTH = 32
FFN_RATIO = 3
TOPKS = (1, 4, 16)


class CoarseAttention(nn.Module):
    """The attention of BiFormer's last stage: every pixel sees every other; (B, H, W, C) -> (B, H, W, C).

    Heads are 8 whatever the width, scaled by the head width, and the local convolution is of the input and not of v:
    all as published, and all unlike the routed stages.
    """

    def __init__(self, dim: int, num_heads: int = 8, local_kernel: int = 5) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.local = DepthwiseConv2d(dim, local_kernel)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        out = attend_everywhere(q, k, v, self.num_heads, self.scale)
        joined: Tensor = self.project(out + self.local(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return joined


def _downsample(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1), nn.BatchNorm2d(out_channels)]


def _block(dim: int, attention: nn.Module, drop_path: float) -> TransformerBlock:
    position = ChannelsLast(nn.Conv2d(dim, dim, 3, padding=1, groups=dim))
    return TransformerBlock(dim, attention, MLP(dim, FFN_RATIO * dim), position, drop_path)


class BiFormer(nn.Module):
    """Four stages at strides 4, 8, 16 and 32; keeps smp's encoder contract.

    forward: (B, in_channels, H, W) -> features at strides 1 (the input), 2 (no channels), 4, 8, 16 and 32.
    width: channels at stride 4, doubled at each stage. depths: blocks per stage. drop_path: stochastic depth at the
    last block, growing from 0 at the first. regions: per side of the map, 8 as published for dense prediction; the
    ImageNet checkpoints were trained with 7, at 224 px.
    """

    output_stride = 32

    def __init__(
        self,
        in_channels: int,
        width: int,
        depths: tuple[int, int, int, int],
        drop_path: float = 0.1,
        regions: int = 8,
    ) -> None:
        super().__init__()
        dims = [width << stage for stage in range(4)]
        self.out_channels = [in_channels, 0, *dims]
        stem = [*_downsample(in_channels, width // 2), nn.GELU(), *_downsample(width // 2, width)]
        self.downsamples = nn.ModuleList(
            nn.Sequential(*layers) for layers in (stem, *(_downsample(dim, 2 * dim) for dim in dims[:-1]))
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(_block(dim, self._attention(stage, dim, regions), rate) for rate in rates))
            for stage, (dim, rates) in enumerate(zip(dims, drop_path_rates(drop_path, depths), strict=True))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for dim in dims)
        self.apply(init_transformer)

    @staticmethod
    def _attention(stage: int, dim: int, regions: int) -> nn.Module:
        if stage == len(TOPKS):
            return CoarseAttention(dim)
        return BiLevelRoutingAttention(dim, dim // HEAD_WIDTH, regions, topk=TOPKS[stage], local_kernel=5)

    def stage_outputs(self, x: Tensor) -> list[Tensor]:
        """What each stage gives before its norm: (B, H, W, C) at strides 4, 8, 16 and 32."""
        outputs = []
        for downsample, stage in zip(self.downsamples, self.stages, strict=True):
            y = stage(downsample(x).permute(0, 2, 3, 1))
            outputs.append(y)
            x = y.permute(0, 3, 1, 2)
        return outputs

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = self.stage_outputs(x)
        features = [norm(y).permute(0, 3, 1, 2) for norm, y in zip(self.norms, outputs, strict=True)]
        batch, _, height, width = x.shape
        return [x, features[0].new_empty(batch, 0, -(-height // 2), -(-width // 2)), *features]


def biformer_tiny(in_channels: int = 3, drop_path: float = 0.1, regions: int = 8) -> BiFormer:
    """13 million parameters."""
    return BiFormer(in_channels, 64, (2, 2, 8, 2), drop_path, regions)


def biformer_small(in_channels: int = 3, drop_path: float = 0.15, regions: int = 8) -> BiFormer:
    """25 million parameters."""
    return BiFormer(in_channels, 64, (4, 4, 18, 4), drop_path, regions)


def biformer_base(in_channels: int = 3, drop_path: float = 0.4, regions: int = 8) -> BiFormer:
    """56 million parameters."""
    return BiFormer(in_channels, 96, (4, 4, 18, 4), drop_path, regions)


VARIANTS: dict[str, Callable[..., nn.Module]] = {
    "biformer_tiny": biformer_tiny,
    "biformer_small": biformer_small,
    "biformer_base": biformer_base,
}


BLOCK_PARTS = {
    "pos_embed": "position.module",
    "norm1": "attention_norm",
    "norm2": "ffn_norm",
    "mlp.0": "ffn.0",
    "mlp.3": "ffn.2",
    "attn.proj": "attention.project",
}
"""Parts of a block: published name -> ours."""


def published_key(key: str) -> str | None:
    """Our name for a parameter of the published model; None for its classifier and the norm before that.

    A name that it does not have is returned as it is. The norms of the stages, which its dense-prediction backbone
    calls `extra_norms`, are in no ImageNet checkpoint.
    """
    if key.startswith(("head.", "norm.")):
        return None
    where, _, leaf = key.rpartition(".")
    if block := re.fullmatch(r"(stages\.\d+\.\d+)\.(.+)", where):
        stage, part = block.groups()
        if routed := re.fullmatch(r"attn\.(qkv\.qkv|qkv|wo|lepe)", part):
            return f"{stage}.attention.{bra.published_key(f'{routed[1]}.{leaf}')}"
        return f"{stage}.{BLOCK_PARTS.get(part, part)}.{leaf}"
    return re.sub(r"^extra_norms\.", "norms.", re.sub(r"^downsample_layers\.", "downsamples.", key))
