"""Depth-wise convolution whose weights learn fast on a CPU.

oneDNN, which PyTorch uses there, has a depth-wise kernel for the gradient of the weights as long as those are no wider
than three taps; wider ones go through a dense kernel in blocks of 16 x 16 channels and take ten times as long in
float32, more in bfloat16. The gradient of a wide kernel is therefore made of those of its columns, three at a time,
which is the same sum of products (`benchmarks/attention.py depthwise`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

FAST_COLUMNS = 3


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)`: (B, C, H, W) -> (B, C, H, W).

    The same parameters and the same numbers. kernel_size: side of the kernel, odd.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.kernel_size[1] > FAST_COLUMNS and _runs_on_onednn(x)):
            return super().forward(x)
        tensors = [x, self.weight] if self.bias is None else [x, self.weight, self.bias]
        if torch.is_autocast_enabled(x.device.type):
            tensors = [tensor.to(torch.get_autocast_dtype(x.device.type)) for tensor in tensors]
        out: Tensor = _DepthwiseConvolution.apply(*tensors)
        return out


def _runs_on_onednn(x: Tensor) -> bool:
    """Whether this is an eager convolution that oneDNN takes; a compiler is given the plain one."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype == torch.float64:
        return False
    available: bool = torch.backends.mkldnn.is_available()
    return available


class _DepthwiseConvolution(torch.autograd.Function):
    """forward: x (B, C, H, W), weight (C, 1, K, K), bias (C,) or nothing, all of one dtype -> (B, C, H, W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x, weight)
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x = of_weight = of_bias = None
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                of_x = F.conv2d(gradient, weight.flip(2, 3), padding=weight.shape[-1] // 2, groups=len(weight))
            if ctx.needs_input_grad[1]:
                of_weight = weight_gradient(x, gradient, weight.shape[-1])
            if len(ctx.needs_input_grad) > 2 and ctx.needs_input_grad[2]:
                of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias


def weight_gradient(x: Tensor, gradient: Tensor, kernel: int) -> Tensor:
    """Gradient of the weights of a depth-wise convolution, from its input and the gradient of its output.

    x, gradient: (B, C, H, W), the latter channels-last -> (C, 1, kernel, kernel). A tap's column sees the map shifted
    along its rows, so a group of columns is a narrow kernel on a shifted map.
    """
    channels, reach = x.shape[1], kernel // 2
    if x.shape[3] < kernel:  # more would be cut off than there is
        whole: Tensor = conv2d_weight(x, (channels, 1, kernel, kernel), gradient, padding=reach, groups=channels)
        return whole
    groups = []
    for first in range(0, kernel, FAST_COLUMNS):
        columns = min(FAST_COLUMNS, kernel - first)
        left = reach - first  # what is negative cuts columns off
        shifted = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, columns - 1 - left)).permute(0, 3, 1, 2)
        size = (channels, 1, kernel, columns)
        groups.append(conv2d_weight(shifted, size, gradient, padding=(reach, 0), groups=channels))
    return torch.cat(groups, dim=-1)
