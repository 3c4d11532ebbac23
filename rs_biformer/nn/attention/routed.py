"""Three ways to compute routed attention: the same numbers, at a cost that depends on the map.

Each takes q, k, v (B, H, W, C), the routes (B, R, K) int64, the height and width of a region, the number of heads and
the scale of the logits, and gives (B, H, W, C). Pixels of a region see the pixels of its routed regions, without those
that pad the last regions of a map that does not divide. `bra.choose_method` says which one runs.

Shapes: B batch, H and W the map's, C channels, M heads, D = C / M, N = H * W pixels, R regions, P pixels per region,
K routed regions, T = R * P pixels with padding.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rs_biformer.nn.attention.regions import pad_to_multiple, partition, region_of_pixel, unpartition
from rs_biformer.nn.attention.softmax import attend_everywhere, softmax_attention, split_heads, without_autocast

Size = tuple[int, int]
Method = Callable[[Tensor, Tensor, Tensor, Tensor, Size, int, float], Tensor]

GATHERED_BYTES = 4 * 2**20
"""Size of the copies of keys, and of values, that are made at a time on a CPU."""

FLEX_BLOCK = 128
"""Side of the blocks of token pairs that FlexAttention skips or computes; its kernels are tuned for this one."""


def attend_dense(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, region: Size, num_heads: int, scale: float) -> Tensor:
    """Ordinary attention under a mask of pixel pairs. No padding is ever made."""
    of_pixel = region_of_pixel((q.shape[1], q.shape[2]), *region, q.device)
    mask = routing_table(routes)[:, of_pixel][:, :, of_pixel]  # (B, N, N)
    return attend_everywhere(q, k, v, num_heads, scale, mask[:, None])


def attend_gathered(
    q: Tensor, k: Tensor, v: Tensor, routes: Tensor, region: Size, num_heads: int, scale: float
) -> Tensor:
    """Each region beside a copy of the keys and values of its routed regions: memory grows with K.

    Keys and values are gathered apart: in one tensor they would be put together, and their gradients taken apart, by
    copies that take longer than the gathering. Whole regions are rows of memory, so that the backward pass adds rows.
    """
    if q.device.type != "cpu" or torch.compiler.is_compiling():
        return _attend_gathered(q, k, v, routes, region, num_heads, scale)
    # Larger copies are memory that the system hands out anew each time, and zeroes first.
    step = max(1, GATHERED_BYTES // (k[0].numel() * k.element_size() * routes.shape[-1]))
    if step >= len(q):
        return _attend_gathered(q, k, v, routes, region, num_heads, scale)
    parts = zip(q.split(step), k.split(step), v.split(step), routes.split(step), strict=True)
    return torch.cat([_attend_gathered(a, b, c, chosen, region, num_heads, scale) for a, b, c, chosen in parts])


def _attend_gathered(
    q: Tensor, k: Tensor, v: Tensor, routes: Tensor, region: Size, num_heads: int, scale: float
) -> Tensor:
    if q.device.type == "cpu" and not q.requires_grad and not torch.compiler.is_compiling():
        return _attend_by_heads(q, k, v, routes, region, num_heads, scale)
    size = (q.shape[1], q.shape[2])
    batch, count, _ = routes.shape
    q, k, v = (partition(pad_to_multiple(t, *region), *region).flatten(0, 1) for t in (q, k, v))  # (B*R, P, C)
    first = torch.arange(batch, device=q.device)[:, None, None] * count
    rows = (routes + first).flatten()  # (B*R*K,) of B*R
    k, v = (t.index_select(0, rows).unflatten(0, (batch * count, -1)).flatten(1, 2) for t in (k, v))  # (B*R, K*P, C)
    out = attend_everywhere(q, k, v, num_heads, scale, _keys_on_map(routes, size, region))
    return unpartition(out.unflatten(0, (batch, count)), size, *region)


def _attend_by_heads(
    q: Tensor, k: Tensor, v: Tensor, routes: Tensor, region: Size, num_heads: int, scale: float
) -> Tensor:
    """`_attend_gathered` with heads before regions, so that what is gathered lies as the products take it.

    The other way round both products copy all that was gathered, which takes up to twice the time. The backward pass
    would add rows as short as a head and take up to four times as long, so that learning gathers whole pixels.
    """
    size, (batch, count, _) = (q.shape[1], q.shape[2]), routes.shape
    groups = batch * num_heads

    def by_heads(t: Tensor) -> Tensor:  # (B*M*R, P, D)
        parts = split_heads(partition(pad_to_multiple(t, *region), *region).flatten(0, 1), num_heads)  # (B*R, M, P, D)
        ordered: Tensor = parts.unflatten(0, (batch, count)).transpose(1, 2)
        return ordered.reshape(groups * count, parts.shape[2], -1)

    q, k, v = (by_heads(t) for t in (q, k, v))
    first = torch.arange(groups).view(batch, num_heads, 1, 1) * count
    rows = (routes[:, None] + first).flatten()  # (B*M*R*K,) of B*M*R
    k, v = (t.index_select(0, rows).view(groups * count, -1, t.shape[-1]) for t in (k, v))  # (B*M*R, K*P, D)
    mask = _keys_on_map(routes, size, region)  # (B*R, 1, 1, K*P)
    if mask is not None:
        mask = mask.view(batch, 1, count, -1).expand(-1, num_heads, -1, -1).reshape(groups * count, 1, 1, -1)
    out = softmax_attention(q[:, None], k[:, None], v[:, None], scale, mask)
    out = out.view(batch, num_heads, count, q.shape[1], -1).permute(0, 2, 3, 1, 4).flatten(-2)  # (B, R, P, C)
    return unpartition(out, size, *region)


def attend_flex(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, region: Size, num_heads: int, scale: float) -> Tensor:
    """FlexAttention under a block mask made from the routes: nothing is gathered, blocks without a route are skipped.

    On a GPU it is compiled, which takes Triton and heads of 16 channels or more. On a CPU it runs eagerly, at the cost
    of dense attention, and PyTorch refuses to train through it. Tested there are the values and gradients of PyTorch's
    plain code and the block tables. On small maps a GPU takes 3 to 6 times as long as for dense attention, most of it
    for the table of blocks; larger ones were not measured, so no rule chooses it: see `bra.use_method`.
    """
    size = (q.shape[1], q.shape[2])
    q, k, v = (partition(pad_to_multiple(t, *region), *region) for t in (q, k, v))  # (B, R, P, C)
    attended = _flex_attention(q.device)(
        *(split_heads(t, num_heads).contiguous() for t in (q, k, v)),  # (B, M, T, D)
        block_mask=routed_block_mask(routes, size, region),
        scale=scale,
    )
    return unpartition(attended.transpose(1, 2).reshape(q.shape), size, *region)


def routing_table(routes: Tensor) -> Tensor:
    """(B, R, K) int64 -> (B, R, R) bool: whether the region of the row attends to that of the column."""
    batch, count, _ = routes.shape
    return torch.zeros(batch, count, count, dtype=torch.bool, device=routes.device).scatter(-1, routes, True)


def pixels_on_map(size: Size, region: Size, device: torch.device) -> Tensor:
    """(R, P) bool: whether each pixel of each region lies on the map of `size` and not on its padding."""
    inside = torch.ones(1, *size, 1, dtype=torch.bool, device=device)
    return partition(pad_to_multiple(inside, *region), *region)[0, :, :, 0]


def _keys_on_map(routes: Tensor, size: Size, region: Size) -> Tensor | None:
    """Mask (B*R, 1, 1, K*P) of what routes (B, R, K) gather; None for a map that divides and has no padding."""
    if size[0] % region[0] == 0 and size[1] % region[1] == 0:
        return None
    return pixels_on_map(size, region, routes.device)[routes].flatten(2).flatten(0, 1)[:, None, None]


def routed_block_mask(routes: Tensor, size: Size, region: Size) -> Any:
    """FlexAttention's BlockMask for tokens region by region: routes (B, R, K) on a map of `size` -> (B, 1, T, T).

    A block of token pairs is skipped when none of its pairs is routed, computed without a look at the pairs when all
    are, and otherwise pair by pair. Regions may be smaller or larger than a block.
    """
    from torch.nn.attention.flex_attention import BlockMask

    on_map = pixels_on_map(size, region, routes.device)
    table, pixels, tokens = routing_table(routes), on_map.shape[1], on_map.numel()
    keys_on_map = on_map.flatten()

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return table[batch, query // pixels, key // pixels] & keys_on_map[key]

    queries_per_block = _tokens_per_block(torch.ones_like(on_map))
    with without_autocast(routes.device):  # counts reach 128 * 128, which bfloat16 would round
        routed_pairs = queries_per_block.T @ table.float() @ _tokens_per_block(on_map)  # (B, blocks, blocks)
    complete = routed_pairs == FLEX_BLOCK**2
    return BlockMask.from_kv_blocks(
        *_listed((routed_pairs > 0) & ~complete),
        *_listed(complete),
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=sees,
        seq_lengths=(tokens, tokens),
    )


def _tokens_per_block(counted: Tensor) -> Tensor:
    """How many of the tokens counted, (R, P) bool, lie in each block: (R, blocks) float."""
    count, pixels = counted.shape
    blocks = -(-counted.numel() // FLEX_BLOCK)
    of_token = torch.arange(counted.numel(), device=counted.device).view(count, pixels) // FLEX_BLOCK
    return torch.zeros(count, blocks, device=counted.device).scatter_add(1, of_token, counted.float())


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Per row of blocks how many are chosen and the columns, chosen ones first: (B, 1, rows), (B, 1, rows, columns)."""
    order = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None]


def _flex_attention(device: torch.device) -> Callable[..., Tensor]:
    """FlexAttention, compiled where that brings its sparse kernel and nobody compiles around it already."""
    from torch.nn.attention.flex_attention import flex_attention

    if torch.compiler.is_compiling():
        return flex_attention
    return _compiled_flex_attention() if device.type == "cuda" else _eager_flex_attention


@cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _eager_flex_attention(q: Tensor, k: Tensor, v: Tensor, block_mask: Any, scale: float) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    with warnings.catch_warnings():  # that it is slow, and what its tracer finds in its own wrapper
        warnings.simplefilter("ignore", UserWarning)
        return flex_attention(q, k, v, block_mask=block_mask, scale=scale)
