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
- The routing is computed in float32 under autocast too. Means of regions are much alike: in bfloat16 chance would send
  2 to 5 % of the regions of a trained model elsewhere.
- The published ones always gather keys and values, with a backward pass that costs more than the attention; here the
  way of computing is chosen by the map: see `choose_method` and `routed.py`.
"""

import math
import re
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rs_biformer.errors import ConfigError
from rs_biformer.nn.attention.regions import pad_to_multiple, region_size
from rs_biformer.nn.attention.routed import Method, attend_dense, attend_flex, attend_gathered
from rs_biformer.nn.attention.softmax import attend_everywhere, without_autocast
from rs_biformer.nn.depthwise import DepthwiseConv2d

METHODS: dict[str, Method] = {"dense": attend_dense, "gathered": attend_gathered, "flex": attend_flex}


class BiLevelRoutingAttention(nn.Module):
    """Multi-head attention from each region to its `topk` most related regions: (B, H, W, C) -> (B, H, W, C).

    dim: channels C. num_heads: heads, a divisor of dim. regions: regions per side of the map, whatever its size, as
    long as `region` is None: see `keep_region_size`. topk: regions that each region attends to; regions ** 2 of them or
    more make it ordinary attention.
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
        self.local = DepthwiseConv2d(dim, local_kernel)
        self.project = nn.Linear(dim, dim)
        self.method: Method | None = None  # the rule's; see use_method
        self.region: tuple[int, int] | None = None

    def region_on(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels of the regions of a map."""
        return self.region or region_size(height, width, self.regions)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[1], x.shape[2])
        region = self.region_on(*size)
        count = -(-size[0] // region[0]) * -(-size[1] // region[1])
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.topk >= min(count, self.regions**2):
            out = attend_everywhere(q, k, v, self.num_heads, self.scale)
        else:
            routes = self._routes(x, q, k, region)
            attend = self.method or choose_method(size[0] * size[1], self.topk / count, _infers_on_cpu(q))
            out = attend(q, k, v, routes, region, self.num_heads, self.scale)
        local = self.local(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        joined: Tensor = self.project(out + local)
        return joined

    def _routes(self, x: Tensor, q: Tensor, k: Tensor, region: tuple[int, int]) -> Tensor:
        """As `route` by q and k. Where autocast has rounded these, by what they were made of.

        The projection is affine, so that the mean of q over a region is the projection of the mean of x.
        """
        exact = self.qkv.weight.dtype
        if q.dtype == exact:
            return route(q, k, region, self.topk)
        with without_autocast(x.device):
            means = region_means(x.detach().to(exact), region)
            weight, bias = self.qkv.weight.detach(), self.qkv.bias.detach()
            q, k = (F.linear(means, w, b) for w, b in zip(weight.chunk(3)[:2], bias.chunk(3)[:2], strict=True))
        return _closest(q, k, self.topk)


DENSE, DENSE_TO_INFER = 1024, 256
"""Pixels of a map that is attended densely, at most; the second for inference on a CPU."""


def choose_method(pixels: int, share: float, infers: bool = False) -> Method:
    """The way to compute routed attention on a map of `pixels` whose regions attend to a `share` of all regions.

    Dense work grows with N * N, gathering with N * N * share, and with it the copies of keys and values: so dense wins
    where regions attend to a good part of a small map (`benchmarks/attention.py methods`). Without a backward pass,
    which is what gathering costs, a CPU gathers sooner (infers): in bfloat16 a mask of all pairs took twice as long on
    32 x 32 pixels.
    """
    most = DENSE_TO_INFER if infers else DENSE
    return attend_dense if pixels <= most and share >= 1 / 4 else attend_gathered


def _infers_on_cpu(q: Tensor) -> bool:
    return q.device.type == "cpu" and not q.requires_grad


def use_method(model: nn.Module, name: str | None) -> None:
    """Make every bi-level routing attention in `model` compute by one of METHODS, or by the rule again with None.

    The results are the same. "flex" is for GPUs and on request: where it was measured, it was slower.
    Raises ConfigError for another name, and for a model without such attention.
    """
    if name is not None and name not in METHODS:
        raise ConfigError(f"{name} is no way to compute routed attention; use {', '.join(METHODS)}, or None")
    modules = [module for module in model.modules() if isinstance(module, BiLevelRoutingAttention)]
    if not modules:
        raise ConfigError(f"{type(model).__name__} has no bi-level routing attention; use a BiFormer or a hybrid")
    for module in modules:
        module.method = None if name is None else METHODS[name]


def keep_region_size(model: nn.Module, window: int, image: Tensor) -> nn.Module:
    """A copy of `model` in which every routed attention has, on images of any size, regions as large as on images of
    `window` pixels, and attends to as many; the model itself where nothing is routed.

    Weights are shared. What attends to all regions goes on to do so. image: (1, C, S, S), a small one that the model
    takes without padding: it is called once to see at which stride its maps are.
    """
    routed = {part: name for name, part in model.named_modules() if isinstance(part, BiLevelRoutingAttention)}
    if not routed:
        return model
    maps: dict[str, int] = {}

    def note(part: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(part, BiLevelRoutingAttention)
        maps[routed[part]] = given[0].shape[1]

    hooks = [part.register_forward_pre_hook(note) for part in routed]
    try:
        with torch.inference_mode():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    kept = deepcopy(model, {id(one): one for one in (*model.parameters(), *model.buffers())})
    for name, side in maps.items():
        part = kept.get_submodule(name)
        assert isinstance(part, BiLevelRoutingAttention)
        length = -(-window * side // image.shape[-1])
        part.region = part.region_on(length, length)
    return kept


def route(q: Tensor, k: Tensor, region: tuple[int, int], topk: int) -> Tensor:
    """The `topk` regions that each region attends to: (B, H, W, C) twice -> (B, R, K) int64, no gradient.

    Regions are compared by the means of q and k over the pixels that lie on the map, in float32 at least: autocast,
    which would round the means before it multiplies them, does not reach here.
    """
    return _closest(region_means(q.detach(), region), region_means(k.detach(), region), topk)


def _closest(q: Tensor, k: Tensor, topk: int) -> Tensor:
    """`route` by the means of regions, (B, R, C) twice."""
    with without_autocast(q.device):
        affinity = q @ k.transpose(1, 2)  # (B, R, R)
        return affinity.topk(topk, dim=-1, sorted=False).indices


def closest_ties(model: nn.Module, *inputs: Any) -> float:
    """How near the routes of a model are to others: the least gap between the last region that is attended and the
    first that is not, anywhere in the model, as a share of the magnitude of what is summed up to their affinities.

    Infinity where nothing is routed. Rounding decides where this is about float32's.
    """
    gaps = [math.inf]

    def look(module: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(module, BiLevelRoutingAttention)
        x = given[0]
        region = module.region_on(x.shape[1], x.shape[2])
        q, k = (region_means(part.detach(), region) for part in module.qkv(x).chunk(3, dim=-1)[:2])
        if module.topk < q.shape[1]:
            affinity, magnitude = (q @ k.transpose(1, 2)), q.abs() @ k.abs().transpose(1, 2)
            best = affinity.topk(module.topk + 1, dim=-1).values
            gaps.append(float(((best[..., -2] - best[..., -1]) / magnitude.amax(-1)).min()))

    routed = [module for module in model.modules() if isinstance(module, BiLevelRoutingAttention)]
    hooks = [module.register_forward_hook(look) for module in routed]
    try:
        if routed:
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return min(gaps)


def region_means(x: Tensor, region: tuple[int, int]) -> Tensor:
    """Means over the pixels of each region that lie on the map: (B, H, W, C) -> (B, R, C), float32 at least.

    Rows are summed first and columns then, which PyTorch does several times faster on a CPU than both at once.
    """
    height, width = x.shape[1:3]
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = pad_to_multiple(x, *region).unflatten(2, (-1, region[1])).unflatten(1, (-1, region[0]))
    sums = x.sum(2).sum(3)  # (B, rows of regions, columns, C)
    if height % region[0] == 0 and width % region[1] == 0:
        return (sums / (region[0] * region[1])).flatten(1, 2)
    rows, columns = (_counts(length, side, x.device) for length, side in zip((height, width), region, strict=True))
    return (sums / (rows[:, None] * columns)[..., None]).flatten(1, 2)


def _counts(length: int, side: int, device: torch.device) -> Tensor:
    """How many of `length` pixels lie in each stretch of `side`; the last may be cut short."""
    return (length - torch.arange(0, length, side, device=device)).clamp(max=side)


def published_key(key: str) -> str:
    """Our name for a parameter of the published attention, in either of its two versions."""
    key = re.sub(r"^(qkv\.qkv|qkv_linear)\.", "qkv.", key)
    return re.sub(r"^lepe\.", "local.", re.sub(r"^(wo|output_linear)\.", "project.", key))
