"""The parts that every encoder shares: feed-forward networks and the transformer block made from parts handed in.

Convolutions work on (B, C, H, W) and attention on (B, H, W, C). For a channels-last tensor either is a free view of
the other, so nothing here copies as long as memory stays channels-last.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth


class IRFFN(nn.Module):
    """Inverted residual feed-forward network: (B, C, H, W) -> (B, C, H, W).

    Guo et al., "CMT: Convolutional Neural Networks Meet Vision Transformers", CVPR 2022, arXiv:2107.06263. A 1x1
    expansion, a depth-wise 3x3 with a residual around it, a 1x1 reduction. GELU comes before the batch norm of the
    first two and there is none after the last, as in the published code; its dropout, zero by default, is left out.

    dim: channels C. hidden_dim: channels between the two 1x1 convolutions.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(dim, hidden_dim, 1)
        self.expand_norm = nn.BatchNorm2d(hidden_dim)
        self.depthwise = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.depthwise_norm = nn.BatchNorm2d(hidden_dim)
        self.reduce = nn.Conv2d(hidden_dim, dim, 1)
        self.reduce_norm = nn.BatchNorm2d(dim)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand_norm(self.activation(self.expand(x)))
        x = self.depthwise_norm(self.activation(x + self.depthwise(x)))
        out: Tensor = self.reduce_norm(self.reduce(x))
        return out

    def folded(self) -> nn.Sequential:
        """The same function in eval mode, for inference: the sum is in the middle tap of the depth-wise convolution,
        and the last two batch norms are in the convolution between them. The first stays, since the map that is padded
        with zeros is its output.
        """
        norm = self.depthwise_norm
        assert norm.running_mean is not None and norm.running_var is not None
        summed, reduce = deepcopy(self.depthwise), deepcopy(self.reduce)
        with torch.no_grad():
            summed.weight[:, :, 1, 1] += 1
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            assert reduce.bias is not None
            reduce.bias += reduce.weight[:, :, 0, 0] @ (norm.bias - norm.running_mean * scale)
            reduce.weight *= scale[:, None, None]
        last = fuse_conv_bn_eval(reduce, self.reduce_norm)
        return nn.Sequential(self.expand, self.activation, self.expand_norm, summed, self.activation, last)


class MLP(nn.Sequential):
    """The feed-forward network of a plain transformer, over the last axis: (..., dim) -> (..., dim)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__(nn.Linear(dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))


class ChannelsLast(nn.Module):
    """Lets a module of (B, C, H, W) take and give (B, H, W, C)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out


class Block(nn.Module):
    """A block that can trade time for memory in training.

    With `checkpointing` set it keeps nothing but its input for the backward pass, and runs again there. Gradients are
    the same, stochastic depth included, and batch norms count each batch once.
    """

    checkpointing = False

    def __call__(self, *inputs: Any) -> Any:
        if not (self.checkpointing and torch.is_grad_enabled()):
            return super().__call__(*inputs)
        if torch.compiler.is_compiling():  # which recomputes values, and no update of running statistics
            return checkpoint(super().__call__, *inputs, use_reentrant=False)
        return checkpoint(
            super().__call__, *inputs, use_reentrant=False, context_fn=partial(_first_and_second_run, self)
        )


def _first_and_second_run(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _frozen_statistics(block)


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Let the batch norms of `block` normalise by the batch without moving their running statistics."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class TransformerBlock(Block):
    """Pre-norm transformer block: (B, H, W, C) -> (B, H, W, C).

    attention, ffn: modules of (B, H, W, C). position: one more, whose output is added first, such as a depth-wise
    convolution; None for none. drop_path: probability with which a sample skips a branch in training. eps: what the
    layer norms add to the variance. layer_scale: what both branches are multiplied by in the beginning, channel by
    channel, learned from there (Touvron et al., "Going Deeper with Image Transformers", ICCV 2021); None for no factor.
    """

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        ffn: nn.Module,
        position: nn.Module | None = None,
        drop_path: float = 0.0,
        eps: float = 1e-6,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.position = position
        self.attention_norm = nn.LayerNorm(dim, eps)
        self.attention = attention
        self.ffn_norm = nn.LayerNorm(dim, eps)
        self.ffn = ffn
        self.drop_path = StochasticDepth(drop_path, "row")
        self.attention_scale, self.ffn_scale = (
            None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.position is not None:
            x = x + self.position(x)
        x = x + self.drop_path(_scaled(self.attention(self.attention_norm(x)), self.attention_scale))
        out: Tensor = x + self.drop_path(_scaled(self.ffn(self.ffn_norm(x)), self.ffn_scale))
        return out


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale


class ConvNormAct(nn.Sequential):
    """Convolution (no bias), batch norm, ReLU, at the stride given and otherwise the size of the input."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


def drop_path_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Stochastic depth that grows linearly from 0 at the first block to `rate` at the last, by stage and block."""
    last = max(1, sum(depths) - 1)
    return [[rate * (sum(depths[:stage]) + block) / last for block in range(n)] for stage, n in enumerate(depths)]


def init_transformer(module: nn.Module) -> None:
    """For `Module.apply`: linear layers from a truncated normal of deviation 0.02, convolutions by He's rule."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out" if module.groups == 1 else "fan_in")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


IRFFN_PARTS = {
    "conv1.0": "expand",
    "conv1.2": "expand_norm",
    "proj": "depthwise",
    "proj_bn": "depthwise_norm",
    "conv2.0": "reduce",
    "conv2.1": "reduce_norm",
}
"""Parts of the IRFFN: published name -> ours."""


def irffn_published_key(key: str) -> str:
    """Our name for a parameter of the published IRFFN."""
    where, _, leaf = key.rpartition(".")
    return f"{IRFFN_PARTS.get(where, where)}.{leaf}"
