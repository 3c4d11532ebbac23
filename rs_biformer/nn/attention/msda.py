"""Multi-scale dilated attention (MSDA): heads look at a small window around each pixel, each group at its own dilation.

Jiao et al., "DilateFormer: Multi-Scale Dilated Transformer for Visual Recognition", TMM 2023, arXiv:2302.01791.

Shapes: B batch, H and W the map's, C channels, G dilations, M heads per dilation, D channels per head.

Neighbours outside the map are zero vectors that take part in the softmax with logit 0, as in the published code: they
do not add a value, but they do take weight. Masking them would be cleaner and would not reproduce published weights.
Where this differs from the published code: the window is visited one neighbour at a time on shifted views instead of
being unfolded into a copy kernel_size ** 2 times the size of the map, and the input is not overwritten in place.
"""

import re
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rs_biformer.errors import ConfigError


class MultiScaleDilatedAttention(nn.Module):
    """Multi-head attention of each pixel to a dilated window around it: (B, H, W, C) -> (B, H, W, C).

    dim: channels C. num_heads: heads, a divisor of dim and a multiple of the number of dilations.
    kernel_size: side of the window in samples, odd. dilations: spacing of the samples for each group of heads.
    Raises ConfigError where these do not fit together.
    """

    def __init__(self, dim: int, num_heads: int, kernel_size: int = 3, dilations: Sequence[int] = (1, 2)) -> None:
        super().__init__()
        if not dilations or min(dilations) < 1:
            raise ConfigError(f"dilations are {tuple(dilations)}; give one or more, each 1 or more, such as (1, 2)")
        if num_heads < 1 or dim % num_heads or num_heads % len(dilations):
            raise ConfigError(
                f"{num_heads} heads do not fit {dim} channels and {len(dilations)} dilations; "
                "use a divisor of the channels that is a multiple of the number of dilations"
            )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size is {kernel_size}; it must be odd, such as 3")
        self.num_heads, self.kernel_size, self.dilations = num_heads, kernel_size, tuple(dilations)
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        qkv = self.qkv(x).view(batch, height, width, 3, len(self.dilations), -1, channels // self.num_heads)
        q, k, v = qkv.unbind(3)  # (B, H, W, G, M, D)
        groups = [
            attend_window(q[:, :, :, g], k[:, :, :, g], v[:, :, :, g], self.kernel_size, dilation, self.scale)
            for g, dilation in enumerate(self.dilations)
        ]
        out: Tensor = self.project(torch.cat(groups, dim=3).flatten(3))
        return out


def attend_window(q: Tensor, k: Tensor, v: Tensor, kernel_size: int, dilation: int, scale: float) -> Tensor:
    """Attention of each pixel to its window: (B, H, W, M, D) three times -> (B, H, W, M, D)."""
    q = q * scale
    logits = [(q * neighbour).sum(-1) for neighbour in _neighbours(k, kernel_size, dilation)]
    weights = torch.stack(logits).softmax(0).to(v.dtype)  # (window, B, H, W, M)
    weighted = zip(weights, _neighbours(v, kernel_size, dilation), strict=True)
    first, neighbour = next(weighted)
    out: Tensor = first[..., None] * neighbour
    for weight, neighbour in weighted:
        out = torch.addcmul(out, weight[..., None], neighbour)
    return out


def _neighbours(x: Tensor, kernel_size: int, dilation: int) -> Iterator[Tensor]:
    """The map (B, H, W, M, D) as seen by each neighbour of the window, row by row: views of one zero-padded copy."""
    reach = dilation * (kernel_size // 2)
    padded = F.pad(x, (0, 0, 0, 0, reach, reach, reach, reach))
    for row in range(0, dilation * kernel_size, dilation):
        for column in range(0, dilation * kernel_size, dilation):
            yield padded[:, row : row + x.shape[1], column : column + x.shape[2]]


def published_key(key: str) -> str:
    """Our name for a parameter of the published attention."""
    return re.sub(r"^proj\.", "project.", key)
