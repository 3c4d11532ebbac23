"""How a model is run: device, precision, normalisation, test-time views; a batch that does not fit is halved.

B batch, C bands, K classes, S window.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rs_biformer.errors import ConfigError, RsBiformerError
from rs_biformer.nn.normalise import Normalisation
from rs_biformer.predict.folding import folded
from rs_biformer.predict.tta import Views, average_views, views

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
            _require_logits(found, image, self.classes)
            return found

        def predict(image: Tensor, valid: Tensor) -> Iterable[Tensor]:
            if len(chosen) > 1 or chosen[0].scale != 1:
                return average_views(lambda *view: _softmax(scores(*view), 1), image, valid, chosen, self.disagreement)
            found = scores(image, valid)
            # One by one they stay in a CPU's cache and take a fraction of the memory.
            return (_softmax(one, 0) for one in found) if device.type == "cpu" else _softmax(found, 1)

        return Halving(predict)

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


class Halving:
    """Runs batches whole, and in halves from the first on that the device has no memory for.

    Raises RsBiformerError when not even one window fits.
    """

    def __init__(self, predict: Predictor) -> None:
        self._predict = predict
        self._most: int | None = None

    def __call__(self, image: Tensor, valid: Tensor) -> Iterable[Tensor]:
        while True:
            size = self._most or len(image)
            try:
                return chain.from_iterable(
                    [self._predict(*part) for part in zip(image.split(size), valid.split(size), strict=True)]
                )
            except torch.OutOfMemoryError as error:
                size = min(size, len(image))
                if size == 1:
                    raise RsBiformerError(
                        f"one window of {image.shape[-1]} pixels does not fit the memory of {image.device}; "
                        "take a smaller window, --precision bf16 or another device"
                    ) from error
            # Outside the handler, whose traceback would keep the tensors of the failed batch.
            self._most = -(-size // 2)
            if image.device.type == "cuda":
                torch.cuda.empty_cache()


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
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def _require_logits(logits: Any, image: Tensor, classes: int) -> None:
    wanted = (image.shape[0], classes, *image.shape[-2:])
    if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"the model returned {got} for a batch {tuple(image.shape)}; it must return logits {wanted}: "
            f"{classes} classes at the size of its input"
        )
