"""Cross-shaped window attention: half of the heads look along columns of the map, half along rows.

Dong et al., "CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows", CVPR 2022,
arXiv:2107.00652.

Shapes: B batch, H and W the map's, C channels, M heads, D = C / M, S stripe width, R stripes, P pixels per stripe.
With two directions each has C / 2 channels and M / 2 heads; c and m below are those of one direction.

Where this differs from the published code (microsoft/CSWin-Transformer):

- H and W come from the tensor. The published classifier takes the side of a square map from the number of tokens; its
  dense-prediction backbone, which this equals, takes them from the caller.
- Whether padding is attended is a choice. Stripes that do not divide the map need padding, half of it on either side
  so that the cut-off stripes are alike. As published the padded pixels are keys and values of zero: they get no say in
  the sum but a share of the softmax, which weakens the border. The ImageNet checkpoints were trained at 224 px, where
  every stripe divides, so they ask for neither; the published figures for dense prediction do. The default is as
  published, for equal numbers with equal weights; `mask_padding=True` gives padding no weight.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rs_biformer.errors import ConfigError
from rs_biformer.nn.attention.regions import partition, unpartition
from rs_biformer.nn.attention.softmax import attend_everywhere


class CrossShapedAttention(nn.Module):
    """Multi-head attention within vertical and within horizontal stripes: (B, H, W, C) -> (B, H, W, C).

    dim: channels C. num_heads: heads M, a divisor of dim; the first half attend within columns S wide and as high as
    the map, the second half within rows S high. stripe: S in pixels, or None for a map so small that all heads attend
    to all of it. mask_padding: whether pixels that pad the map to whole stripes get no weight; see the module.
    A depth-wise 3x3 convolution of v within each stripe is added to the output (the paper's LePE).
    Raises ConfigError unless num_heads divides dim and is even where there are two directions.
    """

    def __init__(self, dim: int, num_heads: int, stripe: int | None, mask_padding: bool = False) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(f"{num_heads} heads do not divide {dim} channels; use a divisor such as {dim // 32 or 1}")
        if stripe is not None and (stripe < 1 or num_heads % 2):
            raise ConfigError(
                f"stripes of {stripe} pixels with {num_heads} heads; stripes are 1 pixel or wider, and an even number "
                "of heads shares the two directions"
            )
        self.stripe, self.mask_padding = stripe, mask_padding
        self.directions = 1 if stripe is None else 2
        self.heads = num_heads // self.directions
        width = dim // self.directions
        self.qkv = nn.Linear(dim, 3 * dim)
        self.local = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(self.directions))
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, dim = x.shape
        if self.stripe is None:
            stripes = [(height, width)]
        else:
            stripes = [(height, self.stripe), (self.stripe, width)]
        parts = self.qkv(x).chunk(3 * self.directions, dim=-1)  # (B, H, W, c): q of each direction, then k, then v
        out = [
            attend_stripes(parts[number :: self.directions], stripe, self.heads, local, self.mask_padding)
            for number, (stripe, local) in enumerate(zip(stripes, self.local, strict=True))
        ]
        joined: Tensor = self.project(torch.cat(out, dim=-1))
        return joined


def attend_stripes(
    maps: Sequence[Tensor],
    stripe: tuple[int, int],
    heads: int,
    local: Callable[[Tensor], Tensor],
    mask_padding: bool,
) -> Tensor:
    """Attention within each stripe of `stripe` = (height, width) pixels: (B, H, W, c) three times -> (B, H, W, c).

    maps: q, k, v. local: a convolution (N, c, h, w) -> (N, c, h, w) of the values of one stripe, added to the output.
    """
    batch, height, width, channels = maps[0].shape
    top, left = (-height % stripe[0]) // 2, (-width % stripe[1]) // 2
    padded = (height + -height % stripe[0], width + -width % stripe[1])
    q, k, v = (partition(pad_around(t, stripe), *stripe).flatten(0, 1) for t in maps)  # (BR, P, c) each
    mask = None
    if mask_padding and padded != (height, width):
        inside = partition(pad_around(q.new_ones(1, height, width, 1), stripe), *stripe) > 0  # (1, R, P, 1)
        mask = inside.expand(batch, -1, -1, -1).flatten(0, 1).transpose(1, 2)[:, None]  # (BR, 1, 1, P)
    out = attend_everywhere(q, k, v, heads, (channels // heads) ** -0.5, mask)
    near = local(v.unflatten(1, stripe).permute(0, 3, 1, 2))  # (BR, c, h, w)
    out = out + near.permute(0, 2, 3, 1).flatten(1, 2)
    out = unpartition(out.unflatten(0, (batch, -1)), padded, *stripe)
    return out[:, top : top + height, left : left + width]


def pad_around(x: Tensor, stripe: tuple[int, int]) -> Tensor:
    """Grow (B, H, W, C) by zeros to whole stripes, half on either side; an odd pixel goes to the bottom or right."""
    down, right = -x.shape[1] % stripe[0], -x.shape[2] % stripe[1]
    return F.pad(x, (0, 0, right // 2, right - right // 2, down // 2, down - down // 2)) if down or right else x
