"""How a model is run: device, precision, normalisation, test-time views; how many windows fit at a time.

B batch, C bands, K classes, S window.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rs_biformer.errors import ConfigError, RsBiformerError
from rs_biformer.nn.normalise import Normalisation
from rs_biformer.predict.folding import folded
from rs_biformer.predict.tta import Views, average_views, views

_LOG = logging.getLogger(__name__)

Precision = Literal["auto", "32", "bf16"]
Device = str | torch.device
Model = Callable[..., Tensor]
Predictor = Callable[[Tensor, Tensor], Iterable[Tensor]]
"""(image (B, C, S, S) as in the raster, valid (B, S, S) bool) -> values to blend, for each window (P, S, S) float32."""


@dataclass(frozen=True)
class Recipe:
    """How a model is run; a value that can be sent to another process.

    classes: K. normalisation: None where the model wants raw values or normalises by itself. precision, tta, scales,
    compile: as in `predict_scene`. disagreement: of the views is wanted as one more plane.

    Raises ConfigError for options that cannot be meant.
    """

    classes: int
    normalisation: Normalisation | None = None
    precision: Precision = "auto"
    tta: Views = "none"
    scales: tuple[float, ...] = (1.0,)
    disagreement: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.classes <= 254:
            raise ConfigError(f"got {self.classes} classes; a class map holds 1 to 254")
        if self.precision not in get_args(Precision):
            raise ConfigError(f"precision is {self.precision!r}; it must be one of {', '.join(get_args(Precision))}")
        if len(views(self.tta, self.scales)) == 1 and self.disagreement:
            raise ConfigError("disagreement is that of several test-time views; ask for some with tta= or scales=")

    def prepare(self, model: Model, device: torch.device, copy: bool = False) -> Predictor:
        """The model on a device, ready to predict: a copy of it, or the module itself, which is moved there.

        Raises ConfigError like `settled`.
        """
        bf16 = self.settled(model, good_at_bf16(device)).precision == "bf16"
        own = getattr(model, "normalisation", None) is not None
        layout = torch.contiguous_format
        if isinstance(model, nn.Module):
            layout = _layout(model)
            model = (deepcopy(model) if copy else model).to(device).to(memory_format=layout)
            model = folded(model) if device.type == "cuda" else model
        normalisation = deepcopy(self.normalisation).to(device) if self.normalisation is not None else None
        chosen = views(self.tta, self.scales)
        first = [True]  # emptied by the first batch
        run = torch.compile(model) if self.compile else model

        def logits(image: Tensor, valid: Tensor) -> Tensor:
            if own:
                return run(image.contiguous(memory_format=layout), valid)
            if normalisation is not None:
                return run(normalisation(image.contiguous(memory_format=layout), valid))
            filled = image.to(torch.float32, memory_format=layout, copy=True)
            return run(filled.masked_fill_(~valid[:, None], 0.0))

        def scores(image: Tensor, valid: Tensor) -> Tensor:
            with _current(device), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                found = logits(image, valid)
            if first:
                first.clear()
                _tell_of_probabilities(found)
            return _logits(found, image, self.classes)

        def predict(image: Tensor, valid: Tensor) -> Iterable[Tensor]:
            if len(chosen) > 1 or chosen[0].scale != 1:
                return average_views(lambda *view: _softmax(scores(*view), 1), image, valid, chosen, self.disagreement)
            found = scores(image, valid)
            # One by one they stay in a CPU's cache and take a fraction of the memory.
            return (_softmax(one, 0) for one in found) if device.type == "cpu" else _softmax(found, 1)

        return predict

    def settled(self, model: Model, fast: bool) -> "Recipe":
        """The recipe with a precision that is not `auto`. fast: whether bfloat16 is, on every device that will run it.

        A callable that does not normalise by itself is none of ours and runs as it is.

        Raises ConfigError for a model that has a normalisation of its own beside the recipe's.
        """
        own = getattr(model, "normalisation", None) is not None
        if own and self.normalisation is not None:
            raise ConfigError("the model normalises by itself (it has .normalisation); leave out normalisation=")
        if self.precision != "auto":
            return self
        return replace(self, precision="bf16" if fast and own else "32")


def largest_batch(predict: Predictor, size: int, image: Tensor, valid: Tensor) -> int:
    """How many windows the device has memory for at a time: `size`, or as many as are left after halving it.

    It is tried out before anything is predicted, so that batches are the same in the first run and in one that goes on
    with it: what a batch holds decides the last bits on a GPU.

    image: (C, S, S) of the kind that will come, on the device. valid: (S, S) bool.

    Raises RsBiformerError when not even one window fits.
    """
    while True:
        try:
            batch = image.expand(size, *image.shape).contiguous(), valid.expand(size, *valid.shape).contiguous()
            for _ in predict(*batch):
                pass
            return size
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise RsBiformerError(
                    f"one window of {image.shape[-1]} pixels does not fit the memory of {image.device}; "
                    "take a smaller window, --precision bf16 or another device"
                ) from error
        # Outside the handler, whose traceback would keep the tensors of the failed batch.
        size = -(-size // 2)
        if image.device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """A module in eval mode, whatever mode it and its parts were left in; these have theirs again afterwards.

    In training mode pixels would depend on the other windows of a batch, and each batch would change the model.
    """
    training = [part for part in model.modules() if part.training] if isinstance(model, nn.Module) else []
    if training:
        _LOG.warning("the model is in training mode; it predicts in eval mode, and has its own mode again afterwards")
        model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a GPU the current one: kernels that a model brings along go there, whatever their tensors say."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _softmax(scores: Tensor, axis: int) -> Tensor:
    # Over a channels-last tensor it takes several times as long.
    return scores.to(torch.float32).contiguous().softmax(axis)


def _layout(model: nn.Module) -> torch.memory_format:
    """Channels last for networks that look around; a pointwise one would pay for the change and gain nothing."""
    spatial = any(isinstance(part, nn.Conv2d) and max(part.kernel_size) > 1 for part in model.modules())
    return torch.channels_last if spatial else torch.contiguous_format


def pick_devices(names: Device | Sequence[Device], model: Model | None = None) -> list[torch.device]:
    """The devices that `names` means, one after the other in a sequence.

    `auto` is every GPU that is visible, but the CPU where there is none or the model is a callable that is no module;
    `cuda` is every visible GPU too, `cuda:1` the second.

    Raises ConfigError for a device that this machine or this torch does not have.
    """
    if not isinstance(names, str | torch.device):
        if not names:
            raise ConfigError("no device is named; give auto, cpu, cuda, or several such as cuda:0 cuda:1")
        return [device for name in names for device in pick_devices(name, model)]
    name = str(names)
    if name == "auto":
        movable = model is None or isinstance(model, nn.Module)
        name = "cuda" if movable and torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError(f"device {name!r} cannot be used ({_first_line(error)}); try auto or cpu") from None
    return [device]


def pick_device(name: Device, model: Model | None = None) -> torch.device:
    """The first of the devices that `name` means, see `pick_devices`."""
    return pick_devices(name, model)[0]


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
