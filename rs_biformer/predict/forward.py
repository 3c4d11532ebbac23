"""How torch runs a model: device, precision, normalisation, test-time views; how many windows fit at a time.

A back end, see backends.py; the other is onnx.py.

B batch, C bands, K classes, S window.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rs_biformer.errors import ConfigError, RsBiformerError
from rs_biformer.predict.folding import folded
from rs_biformer.predict.fusing import fused
from rs_biformer.predict.recipe import Device, Model, Recipe, Worker
from rs_biformer.predict.tensors import TorchArrays
from rs_biformer.predict.tta import average_views

_LOG = logging.getLogger(__name__)

NAME = "torch"
"""Of this back end."""


def software() -> str:
    """The library whose version decides the bytes beside ours."""
    return f"torch {torch.__version__}"


def threads() -> int:
    """Threads that torch works with on a CPU."""
    return torch.get_num_threads()


def use_threads(count: int) -> None:
    """Set their number."""
    torch.set_num_threads(count)


def hardware(device: torch.device, threads: int, model: Any = None) -> str:
    """The kind of hardware, on which the last bits of a sum depend: `NVIDIA H100 80GB HBM3`, `cpu, several threads`.

    threads: that torch works with on a CPU. With one, oneDNN adds up a 1x1 convolution in another order than with two;
    two, four and eight give the same bits.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {'several threads' if threads > 1 else 'one thread'}" if device.type == "cpu" else device.type


def prepare(recipe: Recipe, model: Model, device: torch.device, copy: bool = False) -> Worker:
    """The model on a device, ready to predict: a copy of it, or the module itself, which is moved there.

    Raises ConfigError like `Recipe.settled`.
    """
    recipe = recipe.settled(model, good_at_bf16(device))
    bf16 = recipe.precision == "bf16"
    own = getattr(model, "normalisation", None) is not None
    layout = torch.contiguous_format
    if isinstance(model, nn.Module):
        layout = _layout(model)
        model = (deepcopy(model) if copy else model).to(device).to(memory_format=layout)
        model = _shortened(_with_regions(model, recipe).to(device), device, recipe)
    normalisation = deepcopy(recipe.normalisation).to(device) if recipe.normalisation is not None else None
    chosen = recipe.views
    first = [True]  # emptied by the first batch
    run: Callable[..., Tensor] = torch.compile(model) if recipe.compile else model

    def logits(image: Tensor, valid: Tensor) -> Tensor:
        if own:
            return run(image.contiguous(memory_format=layout), valid)
        if normalisation is not None:
            return run(normalisation(image.contiguous(memory_format=layout), valid))
        filled = image.to(torch.float32, memory_format=layout, copy=True)
        return run(filled.masked_fill_(~valid[:, None], 0.0))

    def scores(image: Tensor, valid: Tensor) -> Tensor:
        with _current(device), _exact(device), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            found = logits(image, valid)
        if first:
            first.clear()
            _tell_of_probabilities(found)
        return _logits(found, image, recipe.classes)

    def predict(image: Tensor, valid: Tensor) -> Iterable[Tensor]:
        if len(chosen) > 1 or chosen[0].scale != 1:
            averaged: Tensor = average_views(
                lambda *view: _softmax(scores(*view), 1), image, valid, chosen, recipe.disagreement
            )
            return averaged
        found = scores(image, valid)
        # One by one they stay in a CPU's cache and take a fraction of the memory.
        return (_softmax(one, 0) for one in found) if device.type == "cpu" else _softmax(found, 1)

    return Worker(predict, TorchArrays(device))


@torch.inference_mode()
def largest_batch(worker: Worker, size: int, image: NDArray[Any], valid: NDArray[np.bool_]) -> int:
    """How many windows a GPU has memory for at a time: `size`, or as many as are left after halving it.

    It is tried out before anything is predicted, so that batches are the same in the first run and in one that goes on
    with it: what a batch holds decides the last bits on a GPU.

    image: (C, S, S) of the kind that will come. valid: (S, S) bool.

    Raises RsBiformerError when not even one window fits.
    """
    one = worker.arrays.placed(image), worker.arrays.placed(valid)
    while True:
        try:
            batch = [part.expand(size, *part.shape).contiguous() for part in one]
            for _ in worker.predict(*batch):
                pass
            return size
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise RsBiformerError(
                    f"one window of {image.shape[-1]} pixels does not fit the memory of {one[0].device}; "
                    "take a smaller window, --precision bf16 or another device"
                ) from error
        # Outside the handler, whose traceback would keep the tensors of the failed batch.
        size = -(-size // 2)
        if one[0].device.type == "cuda":
            torch.cuda.empty_cache()


def _with_regions(model: nn.Module, recipe: Recipe) -> nn.Module:
    """The model with routed attention as the recipe wants it; `model` is left as it is."""
    keep: Callable[[], nn.Module] | None = getattr(model, "with_regions_of_training", None)
    return keep() if recipe.keep_regions and keep is not None else model


def _shortened(model: nn.Module, device: torch.device, recipe: Recipe) -> nn.Module:
    """The same function in fewer steps, where the device gains by it."""
    if device.type == "cuda":
        return folded(model)
    if device.type == "cpu" and recipe.passes == "fused":
        return fused(folded(model), torch.bfloat16 if recipe.precision == "bf16" else torch.float32)
    return model


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a GPU the current one: kernels that a model brings along go there, whatever their tensors say."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Lets convolutions in float32 be that on a GPU, as on a CPU.

    By default cuDNN multiplies in TensorFloat-32, with ten bits: enough to route some regions elsewhere. Those under
    autocast are not concerned.
    """
    cudnn = torch.backends.cudnn
    allowed = cudnn.allow_tf32 if device.type == "cuda" else False
    if allowed:
        cudnn.allow_tf32 = False
    try:
        yield
    finally:
        if allowed:
            cudnn.allow_tf32 = True


def _softmax(scores: Tensor, axis: int) -> Tensor:
    # Over a channels-last tensor it takes several times as long.
    return scores.to(torch.float32).contiguous().softmax(axis)


def _layout(model: nn.Module) -> torch.memory_format:
    """Channels last for networks that look around; a pointwise one would pay for the change and gain nothing."""
    spatial = any(isinstance(part, nn.Conv2d) and max(part.kernel_size) > 1 for part in model.modules())
    return torch.channels_last if spatial else torch.contiguous_format


def pick_devices(names: Device | Sequence[Device], movable: bool = True) -> list[torch.device]:
    """The devices that `names` means, one after the other in a sequence.

    `auto` is every GPU that is visible, but the CPU where there is none or the model cannot be moved, being a callable
    that is no module; `cuda` is every visible GPU too, `cuda:1` the second.

    Raises ConfigError for a device that this machine or this torch does not have.
    """
    if not isinstance(names, str | torch.device):
        if not names:
            raise ConfigError("no device is named; give auto, cpu, cuda, or several such as cuda:0 cuda:1")
        return [device for name in names for device in pick_devices(name, movable)]
    name = str(names)
    if name == "auto":
        name = "cuda" if movable and torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch without CUDA asserts
        raise ConfigError(f"device {name!r} cannot be used ({_first_line(error)}); try auto or cpu") from None
    return [device]


def pick_device(name: Device, movable: bool = True) -> torch.device:
    """The first of the devices that `name` means, see `pick_devices`."""
    return pick_devices(name, movable)[0]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def good_at_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 here: tensor cores, or a CPU with AVX-512 BF16 or AMX."""
    if device.type == "cuda":
        supported: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return supported
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def _logits(found: Any, image: Tensor, classes: int) -> Tensor:
    """What the model returned as (B, K, S, S). One logit for two classes is that of the second against the first."""
    wanted = (image.shape[0], classes, *image.shape[-2:])
    shape = tuple(found.shape) if isinstance(found, Tensor) else None
    single = shape == (image.shape[0], 1, *image.shape[-2:])
    if single and classes == 1:
        raise ConfigError(
            "the model gives one logit and there is one class, which every pixel would belong to; say classes=2 (or a "
            "schema of two classes, background first), and the logit is taken for the second class, by a sigmoid"
        )
    if single and classes == 2:
        return torch.cat([torch.zeros_like(found), found], 1)  # whose softmax is 1 - sigmoid, sigmoid
    if shape != wanted:
        raise ConfigError(
            f"the model returned {shape or type(found).__name__} for a batch {tuple(image.shape)}; it must return "
            f"logits {wanted}: {classes} classes at the size of its input"
        )
    logits: Tensor = found
    return logits


def _tell_of_probabilities(found: Any) -> None:
    """Say so where the first batch looks as if the model ended in a softmax or a sigmoid."""
    if not isinstance(found, Tensor) or found.ndim != 4 or found.min() < 0 or found.max() > 1:
        return
    if found.shape[1] > 1 and ((found.float().sum(1) - 1).abs() < 0.01).all():
        _LOG.warning(
            "the model's output is 0 to 1 and sums to 1 at every pixel, so it seems to end in a softmax; it should "
            "return logits: without them, probabilities come out nearly even. Leave the softmax out, or return its log"
        )
    elif found.shape[1] == 1 and found.max() > found.min():
        _LOG.warning(
            "the model's one output is 0 to 1 at every pixel, so it seems to end in a sigmoid; it should return the "
            "logit: without it, no pixel is of the first class. Leave the sigmoid out, or return torch.logit of it"
        )
