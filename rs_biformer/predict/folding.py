"""Batch norm folded into the convolutions before it, for inference.

In eval mode a batch norm is a fixed scale and shift per channel, which the convolution can do itself. Pairs are taken
only where the code is known to give the convolution's output to the batch norm and to nothing else: neighbours in an
nn.Sequential, and the ResNets of torchvision and smp. (torch.fx would find more, but while it traces it diverts the
calls of all modules in the process, those of other threads as well.) Modules that know a shorter form of themselves
give it by a method `folded`.

On a CPU it gains little by itself: a forward pass of resnet50_biformer took within 1 to 7 % of the time. It is done on
GPUs, and before convolutions are fused (fusing.py).
"""

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Pair = tuple[str, str]  # names of a convolution and of its batch norm

KNOWN: dict[str, tuple[Pair, ...]] = {
    "torchvision.models.resnet.BasicBlock": (("conv1", "bn1"), ("conv2", "bn2")),
    "torchvision.models.resnet.Bottleneck": (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")),
    "torchvision.models.resnet.ResNet": (("conv1", "bn1"),),
    "segmentation_models_pytorch.encoders.resnet.ResNetEncoder": (("conv1", "bn1"),),
}
"""Pairs of modules by the full name of their class."""


def folded(model: nn.Module) -> nn.Module:
    """A copy of `model` without the batch norms that follow a convolution; the model itself where there are none.

    All other weights are shared with `model`, which is left as it is. Models in training mode, with hooks, or that
    cannot be copied are not folded.
    """
    if not _is_foldable(model):
        return model
    shared = {id(one): one for one in (*model.parameters(), *model.buffers())}
    try:
        copy = deepcopy(model, shared)
    except Exception:  # whatever an attribute of someone's module raises, such as a lock or an open session
        return model
    uses = Counter(id(part) for _, part in copy.named_modules(remove_duplicate=False))
    for parent in list(copy.modules()):
        for name, part in list(parent.named_children()):
            if callable(shorter := getattr(part, "folded", None)):
                setattr(parent, name, shorter())
    for parent in list(copy.modules()):
        for conv, norm in _pairs(parent):
            one, other = parent.get_submodule(conv), parent.get_submodule(norm)
            if type(one) is not nn.Conv2d or type(other) is not nn.BatchNorm2d or other.running_mean is None:
                continue
            if not other.training and uses[id(one)] == uses[id(other)] == 1:
                setattr(parent, conv, fuse_conv_bn_eval(one, other))
                setattr(parent, norm, nn.Identity())
    return copy


def _is_foldable(model: nn.Module) -> bool:
    parts = list(model.modules())
    normed = any(type(part) is nn.BatchNorm2d for part in parts)
    # A hook would see other outputs, or be called in the copy.
    return normed and not model.training and not any(part._forward_hooks or part._forward_pre_hooks for part in parts)


def _pairs(parent: nn.Module) -> Iterator[Pair]:
    """Names of children of which the second alone sees the first one's output, whatever they are."""
    kind = type(parent)
    if kind.forward is nn.Sequential.forward:
        yield from pairwise(list(parent._modules))  # named_children leaves out what occurs a second time
    yield from KNOWN.get(f"{kind.__module__}.{kind.__qualname__}", ())
