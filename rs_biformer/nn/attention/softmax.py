"""Softmax attention of heads of pixels: the one place that decides how it is computed.

Shapes: B batch, M heads, L queries, N keys, D channels per head.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_KEYS, FEW_KEYS_TO_LEARN = 128, 512


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """softmax(scale * q k^T) v: (B, M, L, D) and twice (B, M, N, D) -> (B, M, L, D).

    mask: bool, broadcastable to (B, M, L, N), True where a query sees a key. Each query must see one.

    PyTorch's fused kernel, except for few keys in bfloat16 on a CPU, where two matrix products and a softmax are
    faster, above all in the backward pass (benchmarks/softmax.py).
    """
    few = FEW_KEYS_TO_LEARN if q.requires_grad else FEW_KEYS
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= few:
        logits = (q * scale) @ k.transpose(-2, -1)
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        return logits.softmax(-1) @ v
    if mask is not None:
        mask = mask.expand(-1, -1, q.shape[-2], -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which products have the type of what goes into them; the meta device has no autocast to leave."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, ..., C) -> (B, M, N, D), a view where x allows one."""
    return x.reshape(x.shape[0], -1, num_heads, x.shape[-1] // num_heads).transpose(1, 2)


def attend_everywhere(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float, mask: Tensor | None = None
) -> Tensor:
    """Ordinary multi-head attention: (B, ..., C) three times -> as q.

    mask: bool, broadcastable to (B, 1, queries, keys), True where a query sees a key.
    """
    out = softmax_attention(
        split_heads(q, num_heads), split_heads(k, num_heads), split_heads(v, num_heads), scale, mask
    )  # (B, M, N, D)
    return out.transpose(1, 2).reshape(q.shape)
