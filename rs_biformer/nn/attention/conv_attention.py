"""Conv-attention: attention factorised to linear cost, with a convolution as relative position encoding.

Xu et al., "Co-Scale Conv-Attentional Image Transformers" (CoaT), ICCV 2021, arXiv:2104.06399.

Shapes: B batch, H and W the map's, C channels, M heads, D = C / M, T tokens beside the map (class tokens), and
N = T + H * W.

Where this differs from the published code (mlpc-ucsd/CoaT): the map keeps its shape (B, H, W, C) and the class tokens
come as a second tensor, of which there may be none, instead of one sequence with the class token in front. The numbers
are the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rs_biformer.errors import ConfigError
from rs_biformer.nn.depthwise import DepthwiseConv2d


class ConvRelativePosition(nn.Module):
    """Depth-wise convolutions of the values, with a larger kernel for the later heads: (B, H, W, C) -> (B, H, W, C).

    dim: channels C. heads_by_kernel: side of the kernel (odd) -> how many heads have it; the heads add up to M. One
    such module serves all blocks at a scale.
    """

    def __init__(self, dim: int, heads_by_kernel: dict[int, int]) -> None:
        super().__init__()
        self.num_heads = sum(heads_by_kernel.values())
        if self.num_heads < 1 or dim % self.num_heads:
            raise ConfigError(f"{self.num_heads} heads do not divide {dim} channels; use a divisor")
        if any(kernel < 1 or kernel % 2 == 0 for kernel in heads_by_kernel):
            raise ConfigError(f"kernels are {list(heads_by_kernel)}; each must be odd, such as 3, 5 or 7")
        self.widths = [heads * (dim // self.num_heads) for heads in heads_by_kernel.values()]
        self.convolutions = nn.ModuleList(
            DepthwiseConv2d(width, kernel) for width, kernel in zip(self.widths, heads_by_kernel, strict=True)
        )

    def forward(self, v: Tensor) -> Tensor:
        parts = v.permute(0, 3, 1, 2).split(self.widths, dim=1)
        encoded = [convolve(part) for convolve, part in zip(self.convolutions, parts, strict=True)]
        return torch.cat(encoded, dim=1).permute(0, 2, 3, 1)


class ConvAttention(nn.Module):
    """Factorised multi-head attention over a map and the tokens beside it.

    forward: x (B, H, W, C), tokens (B, T, C) with T >= 0, and the position encoding of the scale -> both, as they came.

    Instead of softmax(q k') v, quadratic in N, this computes q (softmax_N(k)' v) / sqrt(D): each channel of k weighs
    all N positions. To that, on the map alone, it adds q times the convolution of v.

    dim: channels C. num_heads: heads M, a divisor of dim and the M of the position encoding.
    Raises ConfigError unless num_heads divides dim.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(f"{num_heads} heads do not divide {dim} channels; use a divisor such as {dim // 32 or 1}")
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor, tokens: Tensor, position: ConvRelativePosition) -> tuple[Tensor, Tensor]:
        size, count = x.shape[1:3], tokens.shape[1]
        q, k, v = self.qkv(torch.cat((tokens, x.flatten(1, 2)), dim=1)).chunk(3, dim=-1)  # (B, N, C) each
        out = factorised_attention(*(part.unflatten(-1, (self.num_heads, -1)) for part in (q, k, v))).flatten(2)
        near = position(v[:, count:].unflatten(1, size)).flatten(1, 2)
        near = F.pad(near, (0, 0, count, 0))  # the tokens beside the map have no surroundings
        out = self.project(torch.add(q * near, out, alpha=self.scale))
        return out[:, count:].unflatten(1, size), out[:, :count]


def factorised_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The product q (softmax over N of k)' v: (B, N, M, D) three times -> (B, N, M, D), without forming N x N."""
    context = torch.einsum("bnmk,bnmd->bmkd", k.softmax(dim=1), v)
    return torch.einsum("bnmk,bmkd->bnmd", q, context)
