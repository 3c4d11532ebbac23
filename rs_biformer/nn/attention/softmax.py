"""Softmax attention of heads of pixels: the one place that decides how it is computed.

Shapes: B batch, M heads, L queries, N keys, D channels per head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_KEYS = 256


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """softmax(scale * q k^T) v: (B, M, L, D) and twice (B, M, N, D) -> (B, M, L, D).

    mask: bool, broadcastable to (B, M, L, N), True where a query sees a key. Each query must see one.

    PyTorch's fused kernel, except for few keys in bfloat16 on a CPU, where its backward pass takes longer than two
    matrix products and a softmax do (benchmarks/softmax.py).
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= FEW_KEYS:
        logits = (q * scale) @ k.transpose(-2, -1)
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        return logits.softmax(-1) @ v
    if mask is not None:
        mask = mask.expand(-1, -1, q.shape[-2], -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
