"""Convolutions of a network made ready for one CPU: weights in the type and layout that oneDNN computes with, and the
activation behind them in the same pass.

Eagerly every convolution of a batch casts its weights to bfloat16, brings them into the layout of its kernel, and
leaves the activation to a second pass over the map. Here the first two are done once, and the third not at all.
It is what torch.compile does of a frozen network, by the same operations of torch, without a C++ compiler and a minute
of compiling (benchmarks/passes.py).

The layout follows from the size of the map alone, never from what was seen before, so that bytes do not depend on
where a run begins.
"""

import logging
from collections import Counter
from copy import copy
from functools import cache
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from rs_biformer.nn.depthwise import DepthwiseConv2d

_LOG = logging.getLogger(__name__)


class FusedConv2d(nn.Conv2d):
    """A convolution and the activation behind it, for inference on a CPU: (B, C, H, W) -> (B, O, h, w).

    conv: whose parameters are taken, and brought to `dtype`. activation: nn.ReLU, nn.GELU, or None for none.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, activation: nn.Module | None = None) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({name: value for name, value in vars(conv).items() if name[0] != "_"})
        self._reversed_padding_repeated_twice = conv._reversed_padding_repeated_twice
        self.weight = _frozen(conv.weight, dtype)
        self.bias = None if conv.bias is None else _frozen(conv.bias, dtype)
        self.activation = activation
        self.train(False)

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.weight.dtype
        if torch.is_autocast_enabled("cpu") != (dtype == torch.bfloat16) or x.ndim != 4 or not x.numel():
            found = F.conv2d(x.to(dtype), self.weight, self.bias, *self._arguments)
            return found if self.activation is None else self.activation(found)
        padding, *others = self._arguments[1], self._arguments[0], *self._arguments[2:]
        how = {nn.ReLU: ("relu", ""), nn.GELU: ("gelu", "none")}.get(type(self.activation), ("none", ""))
        fused: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x.to(dtype), self.weight, self.bias, padding, *others, how[0], [], how[1]
        )
        return fused

    @property
    def _arguments(self) -> tuple[Any, ...]:
        """As F.conv2d takes them."""
        return self.stride, self.padding, self.dilation, self.groups


def _frozen(values: Tensor, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(values.detach().to(dtype), requires_grad=False)


@cache
def is_available(dtype: torch.dtype) -> bool:
    """Whether the operation is there, and gives on this CPU what torch's own convolutions give.

    It is not among those that torch promises, so that it is tried: a convolution and a depth-wise one, each with an
    activation.
    """
    ramp = torch.linspace(-1, 1, 4 * 6 * 6).reshape(1, 4, 6, 6).to(memory_format=torch.channels_last)
    for groups, activation in ((1, nn.ReLU()), (4, nn.GELU())):
        conv = skip_init(nn.Conv2d, 4, 4, 3, padding=1, groups=groups).eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            for values in conv.parameters():
                values.copy_(torch.linspace(-0.5, 1, values.numel()).reshape(values.shape))
            try:
                found = FusedConv2d(conv, dtype, activation)(ramp)
            except Exception:  # no such operation, or none for this CPU, in whatever words
                return False
            if not torch.allclose(found.float(), activation(conv(ramp)).float(), atol=0.05, rtol=0.05):
                return False
    return True


def fused(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`model` with fused convolutions, all else shared with it; itself where this torch has none, which is told.

    model: in eval mode, channels-last, such as `folding.folded` gives. dtype: float32, or bfloat16 for autocast.
    An activation goes with a convolution where it is the next in an nn.Sequential. Convolutions of other classes or
    with padding of other kinds stay as they are, and so do models with hooks, and parts that cannot be copied.
    """
    if not is_available(dtype):
        _LOG.warning("oneDNN's fused convolutions are not there, or not right on this CPU; passes are plain")
        return model
    parts = [part for _, part in model.named_modules(remove_duplicate=False)]
    if any(part._forward_hooks or part._forward_pre_hooks for part in parts):
        return model
    return _replaced(model, dtype, Counter(map(id, parts)), {})


def _replaced(module: nn.Module, dtype: torch.dtype, uses: Counter[int], done: dict[int, nn.Module]) -> nn.Module:
    """The module around copies of its children in which a convolution is a fused one; itself where there is none."""
    if id(module) not in done:
        done[id(module)] = FusedConv2d(module, dtype) if _is_plain(module) else _around(module, dtype, uses, done)
    return done[id(module)]


def _around(module: nn.Module, dtype: torch.dtype, uses: Counter[int], done: dict[int, nn.Module]) -> nn.Module:
    children = {name: part and _replaced(part, dtype, uses, done) for name, part in module._modules.items()}
    if all(part is module._modules[name] for name, part in children.items()):
        return module
    try:
        made = copy(module)
    except Exception:  # whatever someone's module raises, as those with parametrisations do
        return module
    made._modules = children
    if type(module).forward is nn.Sequential.forward:
        _take_activations(made, [uses[id(part)] for part in module._modules.values()])
    return made


def _take_activations(parts: nn.Module, uses: list[int]) -> None:
    """Give each convolution of a sequence the activation that follows it; what is left of that does nothing."""
    conv: FusedConv2d | None = None
    for (name, part), count in zip(list(parts._modules.items()), uses, strict=True):
        if isinstance(part, FusedConv2d):
            conv = part if count == 1 else None
        elif conv is not None and (type(part) is nn.ReLU or type(part) is nn.GELU and part.approximate == "none"):
            conv.activation, parts._modules[name], conv = part, nn.Identity(), None
        elif type(part) is not nn.Identity:
            conv = None


def _is_plain(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    if type(module) is not nn.Conv2d and not (type(module) is DepthwiseConv2d and not module.same):
        return False
    assert isinstance(module, nn.Conv2d)
    return not module.training and module.padding_mode == "zeros" and not isinstance(module.padding, str)
