"""Depth-wise convolution that learns fast on a CPU.

oneDNN, which PyTorch uses there, has depth-wise kernels for some gradients and none for others; those go through dense
kernels or plain loops and take ten to a hundred times as long (`benchmarks/attention.py depthwise`):

- The gradient of weights wider than three taps is therefore made of those of its columns, three at a time, which is
  the same sum of products.
- The gradient of the input of a strided one in bfloat16 is computed in float32 and rounded once, as a kernel would.
"""

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

FAST_COLUMNS = 3


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d(dim, dim, kernel_size, stride, padding, groups=dim, bias=bias)`: (B, C, H, W) -> (B, C, h, w).

    The same parameters and the same numbers. kernel_size: side of the kernel. padding: half of it unless given.
    same: whether the map is padded as TensorFlow does, by what its size and the stride ask for, instead.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
        same: bool = False,
    ) -> None:
        around = kernel_size // 2 if padding is None else padding
        super().__init__(dim, dim, kernel_size, stride, 0 if same else around, groups=dim, bias=bias)
        self.same = same

    def forward(self, x: Tensor) -> Tensor:
        if self.same:
            x = pad_same(x, list(self.kernel_size), list(self.stride))
        if not (self._learns_slowly() and torch.is_grad_enabled() and _runs_on_onednn(x)):
            return super().forward(x)
        tensors = [x, self.weight] if self.bias is None else [x, self.weight, self.bias]
        if torch.is_autocast_enabled(x.device.type):
            tensors = [tensor.to(torch.get_autocast_dtype(x.device.type)) for tensor in tensors]
        out: Tensor = _DepthwiseConvolution.apply(self.stride[0], int(self.padding[0]), *tensors)
        return out

    def _learns_slowly(self) -> bool:
        return self.kernel_size[1] > FAST_COLUMNS or self.stride[0] > 1


def learn_fast(network: nn.Module) -> None:
    """Exchange the depth-wise convolutions of another library's network whose gradients are slow; names stay."""
    for parent in network.modules():
        for name, child in parent.named_children():
            if _is_slow(child):
                setattr(parent, name, _like(child))


def _is_slow(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether this is a square depth-wise convolution, of torch's kind or timm's, that DepthwiseConv2d stands for."""
    if type(module) not in (nn.Conv2d, Conv2dSame) or not isinstance(module, nn.Conv2d):
        return False
    depthwise = module.groups == module.in_channels == module.out_channels > 1
    sides = (module.kernel_size, module.stride, (0, 0) if isinstance(module.padding, str) else module.padding)
    square = all(len(set(side)) == 1 for side in sides) and not isinstance(module.padding, str)
    plain = set(module.dilation) == {1} and module.padding_mode == "zeros"
    return depthwise and square and plain and (module.kernel_size[1] > FAST_COLUMNS or module.stride[0] > 1)


def _like(module: nn.Conv2d) -> DepthwiseConv2d:
    same = isinstance(module, Conv2dSame)
    with torch.device("meta"):  # its parameters are the other's
        made = DepthwiseConv2d(
            module.in_channels, module.kernel_size[0], module.stride[0], int(module.padding[0]), False, same
        )
    made.weight, made.bias = module.weight, module.bias
    made.train(module.training)
    return made


def _runs_on_onednn(x: Tensor) -> bool:
    """Whether this is an eager convolution that oneDNN takes; a compiler is given the plain one."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype == torch.float64:
        return False
    available: bool = torch.backends.mkldnn.is_available()
    return available


class _DepthwiseConvolution(torch.autograd.Function):
    """forward: x (B, C, H, W), weight (C, 1, K, K), bias (C,) or nothing, all of one dtype -> (B, C, h, w)."""

    @staticmethod
    def forward(ctx: Any, stride: int, padding: int, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x = of_weight = of_bias = None
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[2]:
                of_x = input_gradient(x, weight, gradient, ctx.stride, ctx.padding)
            if ctx.needs_input_grad[3]:
                of_weight = weight_gradient(x, gradient, weight.shape[-1], ctx.stride, ctx.padding)
            if len(ctx.needs_input_grad) > 4 and ctx.needs_input_grad[4]:
                of_bias = gradient.sum((0, 2, 3))
        return None, None, of_x, of_weight, of_bias


def input_gradient(x: Tensor, weight: Tensor, gradient: Tensor, stride: int, padding: int) -> Tensor:
    """Gradient of the input (B, C, H, W) of a depth-wise convolution, from its weights and that of its output."""
    if stride > 1:
        exact = torch.promote_types(x.dtype, torch.float32)
        weight, gradient = weight.to(exact), gradient.to(exact)
    of_x: Tensor = conv2d_input(x.shape, weight, gradient, stride, padding, groups=len(weight))
    return of_x.to(x.dtype)


def weight_gradient(x: Tensor, gradient: Tensor, kernel: int, stride: int = 1, padding: int | None = None) -> Tensor:
    """Gradient of the weights of a depth-wise convolution, from its input and the gradient of its output.

    x (B, C, H, W), gradient (B, C, h, w) channels-last -> (C, 1, kernel, kernel). padding: half of the kernel unless
    given; put around the map here, because oneDNN's kernels take no map that is smaller than theirs. A tap's column
    sees the map shifted along its rows, so a group of columns is a narrow kernel on a part of it.
    """
    channels, around = x.shape[1], kernel // 2 if padding is None else padding
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, *[around] * 4)) if around else x.permute(0, 2, 3, 1)
    groups = []
    for first in range(0, kernel, FAST_COLUMNS):
        columns = min(FAST_COLUMNS, kernel - first)
        seen = (gradient.shape[3] - 1) * stride + columns
        part = padded[:, :, first : first + seen].permute(0, 3, 1, 2)
        size = (channels, 1, kernel, columns)
        groups.append(conv2d_weight(part, size, gradient, stride, groups=channels))
    return torch.cat(groups, dim=-1)
