"""Attention of (B, H, W, C) feature maps."""

from rs_biformer.nn.attention.bra import BiLevelRoutingAttention
from rs_biformer.nn.attention.msda import MultiScaleDilatedAttention

__all__ = ["BiLevelRoutingAttention", "MultiScaleDilatedAttention"]
