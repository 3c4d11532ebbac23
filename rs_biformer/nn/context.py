"""Whether a network sees in larger images what it saw in those of training: what decides how large windows may be.

Convolutions do, and so do the routed and the dilated attention of hybrids, as far as it was measured
(`benchmarks/frontier.py`). Attention over whole images, windows or stripes of a fixed number, position embeddings, and
what is pooled over whole images answer otherwise to other sizes; how much was not measured, so that such networks keep
the size they were trained with.
"""

import segmentation_models_pytorch as smp
from torch import nn

from rs_biformer.nn.attention import BiLevelRoutingAttention, MultiScaleDilatedAttention

_OF_THE_WHOLE = ("attention", "attn", "squeezeexcite", "posembed", "relpos", "globalcontext", "focalmodulation")
"""What stands in the names of classes that look at the whole image, in timm, smp and here, in lower case."""

_POOLED = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.GroupNorm, nn.InstanceNorm2d)
_ALIKE = (BiLevelRoutingAttention, MultiScaleDilatedAttention, smp.base.modules.Attention)  # the last holds others


def sees_alike(network: nn.Module) -> bool:
    """Whether a network answers to a pixel alike whatever the size of the image, but for its edge."""
    return not any(_looks_at_the_whole(part) for part in network.modules())


def _looks_at_the_whole(part: nn.Module) -> bool:
    if isinstance(part, _ALIKE):
        return False
    name = type(part).__name__.lower()
    placed = any("pos_embed" in own for own, _ in part.named_parameters(recurse=False))
    return placed or isinstance(part, _POOLED) or any(word in name for word in _OF_THE_WHOLE)
