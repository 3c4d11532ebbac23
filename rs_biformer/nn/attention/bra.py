"""Bi-level routing attention (BRA): each region of the map attends to the few regions that matter to it.

Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", CVPR 2023, arXiv:2303.08810.

Shapes: B batch, H and W the map's, C channels, M heads, D = C / M, N = H * W pixels, R regions, P pixels per region,
K routed regions.

Where this differs from the published code (rayleizhu/BiFormer):

- Logits are scaled by the full width, C ** -0.5, and not by the head width, exactly as published: its weights need it.
- A map that does not divide into regions is padded after the projection, and padded pixels are neither pooled nor
  attended. The published versions attend to them.
- A map with fewer regions than `topk`, down to a single pixel, is attended as a whole instead of failing.
- The routing is by region means of q and k and carries no gradient (as published); q and k learn through the attention.
- Two methods give the same numbers: see `_use_dense`. The published ones gather, with a backward pass that costs more
  than the attention.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rs_biformer.errors import ConfigError
from rs_biformer.nn.attention.regions import pad_to_multiple, partition, region_of_pixel, region_size, unpartition
from rs_biformer.nn.attention.softmax import softmax_attention


class BiLevelRoutingAttention(nn.Module):
    """Multi-head attention from each region to its `topk` most related regions: (B, H, W, C) -> (B, H, W, C).

    dim: channels C. num_heads: heads, a divisor of dim. regions: regions per side of the map, whatever its size.
    topk: regions that each region attends to; all of them make it ordinary attention.
    local_kernel: side of the depth-wise convolution of v that is added to the output (the paper's LCE term).
    Raises ConfigError unless num_heads divides dim, local_kernel is odd, and the counts are positive.
    """

    def __init__(self, dim: int, num_heads: int, regions: int = 8, topk: int = 4, local_kernel: int = 5) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(f"{num_heads} heads do not divide {dim} channels; use a divisor such as {dim // 32 or 1}")
        if regions < 1 or topk < 1:
            raise ConfigError(f"regions is {regions} and topk is {topk}; both must be 1 or more")
        if local_kernel < 1 or local_kernel % 2 == 0:
            raise ConfigError(f"local_kernel is {local_kernel}; it must be odd, such as 3 or 5")
        self.num_heads, self.regions, self.topk = num_heads, regions, topk
        self.scale = dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.local = nn.Conv2d(dim, dim, local_kernel, padding=local_kernel // 2, groups=dim)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[1], x.shape[2])
        region = region_size(*size, self.regions)
        count = -(-size[0] // region[0]) * -(-size[1] // region[1])
        qkv = self.qkv(x)  # (B, H, W, 3C)
        q, k, v = qkv.chunk(3, dim=-1)
        if self.topk >= count:
            out = attend_everywhere(q, k, v, self.num_heads, self.scale)
        else:
            routes = route(q, k, region, self.topk)
            attend = attend_dense if _use_dense(size[0] * size[1], self.topk / count) else attend_gathered
            out = attend(q, k, v, routes, region, self.num_heads, self.scale)
        local = self.local(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.project(out + local)


def _use_dense(pixels: int, share: float) -> bool:
    """Whether masking ordinary attention beats gathering the routed regions.

    share: routed regions of all regions. Dense work grows with N * N, gathering with N * N * share, and with it the
    copies of keys and values: so dense wins where regions attend to a good part of a small map. Batch 8, bfloat16,
    forward and backward on 2 cores (AVX-512), dense against gathered in ms: 16 x 16, 16 of 64 regions 38 : 75; 24 x 24,
    16 of 64 164 : 177; 32 x 32, 16 of 64 341 : 451, 4 of 64 158 : 46; 48 x 48, 16 of 64 369 : 355 (batch 2).
    """
    return pixels <= 1024 and share >= 1 / 8


def route(q: Tensor, k: Tensor, region: tuple[int, int], topk: int) -> Tensor:
    """The `topk` regions that each region attends to: (B, H, W, C) twice -> (B, R, K) int64, no gradient.

    Regions are compared by the means of q and k over the pixels that lie on the map.
    """
    means = [
        F.avg_pool2d(t.detach().permute(0, 3, 1, 2), region, ceil_mode=True, count_include_pad=False).flatten(2)
        for t in (q, k)
    ]
    affinity = means[0].transpose(1, 2) @ means[1]  # (B, R, R)
    return affinity.topk(topk, dim=-1, sorted=False).indices


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, ..., C) -> (B, M, N, D), a view where x allows one."""
    return x.reshape(x.shape[0], -1, num_heads, x.shape[-1] // num_heads).transpose(1, 2)


def attend_everywhere(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float, mask: Tensor | None = None
) -> Tensor:
    """Ordinary multi-head attention over (B, H, W, C); mask: (B, 1, N, N) bool, True where a query sees a key."""
    out = softmax_attention(
        _heads(q, num_heads), _heads(k, num_heads), _heads(v, num_heads), scale, mask
    )  # (B, M, N, D)
    return out.transpose(1, 2).reshape(q.shape)


def attend_dense(
    q: Tensor, k: Tensor, v: Tensor, routes: Tensor, region: tuple[int, int], num_heads: int, scale: float
) -> Tensor:
    """Routed attention as ordinary attention under a mask of pixel pairs. No padding is ever made."""
    count = routes.shape[1]
    routed = torch.zeros(routes.shape[0], count, count, dtype=torch.bool, device=q.device).scatter(-1, routes, True)
    of_pixel = region_of_pixel((q.shape[1], q.shape[2]), *region, q.device)
    mask = routed[:, of_pixel][:, :, of_pixel]  # (B, N, N)
    return attend_everywhere(q, k, v, num_heads, scale, mask[:, None])


def attend_gathered(
    q: Tensor, k: Tensor, v: Tensor, routes: Tensor, region: tuple[int, int], num_heads: int, scale: float
) -> Tensor:
    """Routed attention by gathering, for each region, the keys and values of the regions that it attends to."""
    size = (q.shape[1], q.shape[2])
    batch, count, topk = routes.shape
    q = partition(pad_to_multiple(q, *region), *region).flatten(0, 1)  # (B*R, P, C)
    kv = partition(pad_to_multiple(torch.cat((k, v), dim=-1), *region), *region)  # (B, R, P, 2C)
    first = torch.arange(batch, device=q.device)[:, None, None] * count
    kv = kv.flatten(0, 1).index_select(0, (routes + first).flatten())  # (B*R*K, P, 2C)
    k, v = kv.view(batch * count, -1, kv.shape[-1]).chunk(2, dim=-1)  # (B*R, K*P, C)
    mask = None
    if size[0] % region[0] or size[1] % region[1]:
        inside = torch.ones(1, *size, 1, dtype=torch.bool, device=q.device)
        inside = partition(pad_to_multiple(inside, *region), *region)[0, :, :, 0]  # (R, P)
        mask = inside[routes].view(batch * count, 1, 1, -1)
    out = softmax_attention(_heads(q, num_heads), _heads(k, num_heads), _heads(v, num_heads), scale, mask)
    out = out.transpose(1, 2).reshape(batch, count, q.shape[1], q.shape[2])
    return unpartition(out, size, *region)


def published_key(key: str) -> str:
    """Our name for a parameter of the published attention, in either of its two versions."""
    key = re.sub(r"^(qkv\.qkv|qkv_linear)\.", "qkv.", key)
    return re.sub(r"^lepe\.", "local.", re.sub(r"^(wo|output_linear)\.", "project.", key))
