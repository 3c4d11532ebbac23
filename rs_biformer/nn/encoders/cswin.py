"""CSWin Transformer: four stages of cross-shaped window attention at strides 4, 8, 16 and 32.

Dong et al., "CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows", CVPR 2022,
arXiv:2107.00652.

Given the same weights it equals the published dense-prediction backbone for every size that this one accepts. Where it
differs (see `attention/cross_shaped.py` for the attention itself):

- Sizes that are no multiple of 4 are padded with zeros at the bottom and right before the first convolution, which
  would drop the rest of the image.
- The large variant doubles its width at each stage, as its published classifier and checkpoint do. The published
  dense-prediction code derives the factor from the heads (6, 12, 24, 24) and could not load that checkpoint.
- The last norm of the ImageNet checkpoints becomes the norm of the last stage, which it was trained for; the published
  loading leaves it. The norms of the first three stages are in no ImageNet checkpoint.
"""

import re
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from rs_biformer.nn.attention.cross_shaped import CrossShapedAttention
from rs_biformer.nn.blocks import MLP, TransformerBlock, drop_path_rates, init_transformer

STRIPES = (1, 2, 7, None)
"""Stripe width in pixels by stage. The paper's fourth stage has 7, which is the whole map at its 224 px."""

MLP_RATIO = 4
LAYER_NORM_EPS = 1e-5
"""Torch's own, as published; BiFormer's and CoaT's blocks have 1e-6."""


class Stage(nn.Module):
    """A convolution that reduces the map, then blocks.

    forward: (B, C, H, W) -> (B, C', h, w) twice: what the next stage gets, and the same normalised, which leaves the
    encoder.
    """

    def __init__(
        self, reduce: nn.Conv2d, num_heads: int, stripe: int | None, drop_paths: list[float], mask_padding: bool
    ) -> None:
        super().__init__()
        dim = reduce.out_channels
        self.reduce = reduce
        self.reduce_norm = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(
                    dim,
                    CrossShapedAttention(dim, num_heads, stripe, mask_padding),
                    MLP(dim, MLP_RATIO * dim),
                    drop_path=rate,
                    eps=LAYER_NORM_EPS,
                )
                for rate in drop_paths
            )
        )
        self.norm = nn.LayerNorm(dim, LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.blocks(self.reduce_norm(self.reduce(x).permute(0, 2, 3, 1)))
        return x.permute(0, 3, 1, 2), self.norm(x).permute(0, 3, 1, 2)


class CSWin(nn.Module):
    """CSWin as an encoder under smp's contract.

    forward: (B, in_channels, H, W) -> [the input, nothing at stride 2 (zero channels), then the layer-normed outputs of
    the stages at strides 4, 8, 16 and 32], each of ceil(H / stride) x ceil(W / stride) pixels.
    embed_dim: channels at stride 4; they double at each stage. depths, num_heads: by stage. drop_path: stochastic
    depth of the last block, growing from 0 at the first. mask_padding: see CrossShapedAttention.
    """

    output_stride = 32

    def __init__(
        self,
        in_channels: int,
        embed_dim: int,
        depths: tuple[int, int, int, int],
        num_heads: tuple[int, int, int, int],
        drop_path: float,
        mask_padding: bool,
    ) -> None:
        super().__init__()
        dims = tuple(embed_dim * 2**stage for stage in range(4))
        self.out_channels = (in_channels, 0, *dims)
        reductions = [
            nn.Conv2d(in_channels, embed_dim, 7, stride=4, padding=2),
            *(nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1) for dim in dims[1:]),
        ]
        self.stages = nn.ModuleList(
            Stage(reduce, heads, stripe, rates, mask_padding)
            for reduce, heads, stripe, rates in zip(
                reductions, num_heads, STRIPES, drop_path_rates(drop_path, depths), strict=True
            )
        )
        self.apply(init_transformer)

    def forward(self, x: Tensor) -> list[Tensor]:
        batch, _, height, width = x.shape
        features = [x, x.new_empty(batch, 0, -(-height // 2), -(-width // 2))]
        x = F.pad(x, (0, -width % 4, 0, -height % 4))
        for stage in self.stages:
            x, feature = stage(x)
            features.append(feature)
        return features


def cswin_tiny(in_channels: int = 3, drop_path: float = 0.3, mask_padding: bool = False) -> CSWin:
    """CSWin-T: 22 M parameters with its classifier, 4.3 G multiply-adds at 224 px."""
    return CSWin(in_channels, 64, (1, 2, 21, 1), (2, 4, 8, 16), drop_path, mask_padding)


def cswin_small(in_channels: int = 3, drop_path: float = 0.4, mask_padding: bool = False) -> CSWin:
    """CSWin-S: 35 M parameters with its classifier, 6.9 G multiply-adds at 224 px."""
    return CSWin(in_channels, 64, (2, 4, 32, 2), (2, 4, 8, 16), drop_path, mask_padding)


def cswin_base(in_channels: int = 3, drop_path: float = 0.6, mask_padding: bool = False) -> CSWin:
    """CSWin-B: 77 M parameters with its classifier, 15.0 G multiply-adds at 224 px."""
    return CSWin(in_channels, 96, (2, 4, 32, 2), (4, 8, 16, 32), drop_path, mask_padding)


def cswin_large(in_channels: int = 3, drop_path: float = 0.6, mask_padding: bool = False) -> CSWin:
    """CSWin-L: 173 M parameters with its classifier, 31.5 G multiply-adds at 224 px."""
    return CSWin(in_channels, 144, (2, 4, 32, 2), (6, 12, 24, 24), drop_path, mask_padding)


VARIANTS: dict[str, Callable[..., nn.Module]] = {
    "cswin_tiny": cswin_tiny,
    "cswin_small": cswin_small,
    "cswin_base": cswin_base,
    "cswin_large": cswin_large,
}
"""Name -> function of in_channels, drop_path (default: the published dense-prediction rate) and mask_padding."""


BLOCK_PARTS = {
    "norm1": "attention_norm",
    "qkv": "attention.qkv",
    "attns.0.get_v": "attention.local.0",
    "attns.1.get_v": "attention.local.1",
    "proj": "attention.project",
    "norm2": "ffn_norm",
    "mlp.fc1": "ffn.0",
    "mlp.fc2": "ffn.2",
}
"""Parts of a block: published name -> ours."""


def published_key(key: str) -> str | None:
    """Our name for a parameter of the published implementations; None for their classifier, which is left.

    A name that they do not have is returned as it is.
    """
    if key.startswith("head."):
        return None
    where, _, leaf = key.rpartition(".")
    if block := re.fullmatch(r"stage([1-4])\.(\d+)\.(.+)", where):
        stage, index, part = block.groups()
        return f"stages.{int(stage) - 1}.blocks.{index}.{BLOCK_PARTS.get(part, part)}.{leaf}"
    if merge := re.fullmatch(r"merge([1-3])\.(conv|norm)", where):
        return f"stages.{merge[1]}.{'reduce' if merge[2] == 'conv' else 'reduce_norm'}.{leaf}"
    if norm := re.fullmatch(r"norm([1-4])", where):
        return f"stages.{int(norm[1]) - 1}.norm.{leaf}"
    whole = {
        "stage1_conv_embed.0": "stages.0.reduce",
        "stage1_conv_embed.2": "stages.0.reduce_norm",
        "norm": "stages.3.norm",
    }
    return f"{whole.get(where, where)}.{leaf}"
