"""Which library runs a model: torch (forward.py) or, for exported models, onnxruntime (onnx.py).

Each of the two modules is a back end. Whoever predicts asks here which one a model needs, and imports neither: where
torch is not installed, exported models run all the same.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from rs_biformer.distribution import describe_missing
from rs_biformer.errors import ConfigError
from rs_biformer.predict.onnx import OnnxModel
from rs_biformer.predict.recipe import Device, Recipe, Worker

if TYPE_CHECKING:
    from torch import nn

_LOG = logging.getLogger(__name__)


class Backend(Protocol):
    """What prediction asks of the library that runs a model. Its devices are its own, and only handed back to it."""

    NAME: str

    def software(self) -> str:
        """The library whose version decides the bytes beside ours: `torch 2.11.0`."""

    def threads(self) -> int:
        """Threads that it works with on a CPU."""

    def use_threads(self, count: int) -> None:
        """Set their number, for what is prepared or predicted from now on."""

    def pick_devices(self, names: Device | Sequence[Device], movable: bool = True) -> list[Any]:
        """The devices that `names` means. movable: whether the model can be brought to a GPU.

        Raises ConfigError for a device that is not there.
        """

    def good_at_bf16(self, device: Any) -> bool:
        """Whether bfloat16 is faster than float32 there."""

    def hardware(self, device: Any, threads: int, model: Any = None) -> str:
        """The kind of hardware, on which the last bits of a sum depend. model: that will run, where it is at hand."""

    def prepare(self, recipe: Recipe, model: Any, device: Any, copy: bool = False) -> Worker:
        """The model on a device, ready to predict: a copy of it, or itself, which is moved there.

        Raises ConfigError for a recipe that cannot be followed.
        """


def backend_of(model: Any) -> Backend:
    """The back end that runs a model. Raises ConfigError where that needs torch and there is none.

    A model that brings one along (`make_backend`, see ensemble.py) is run by that.
    """
    if (brought := getattr(model, "make_backend", None)) is not None:
        own: Backend = brought()
        return own
    return backend(OnnxModel.backend if isinstance(model, OnnxModel) else "torch")


def backend(name: str) -> Backend:
    """The back end of a name, which is its NAME. Raises ConfigError where it needs torch and there is none."""
    if name == OnnxModel.backend:
        import rs_biformer.predict.onnx as onnx

        return onnx
    with needing_torch("this model is run by torch"):
        import rs_biformer.predict.forward as forward

        return forward


def is_module(model: Any) -> TypeGuard["nn.Module"]:
    """Whether a model is a module of torch, which is not imported for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """A module in eval mode, whatever mode it and its parts were left in; these have theirs again afterwards.

    In training mode pixels would depend on the other windows of a batch, and each batch would change the model.
    """
    training = [part for part in model.modules() if part.training] if is_module(model) else []
    if training:
        _LOG.warning("the model is in training mode; it predicts in eval mode, and has its own mode again afterwards")
        model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def needing_torch(what: str) -> Iterator[None]:
    """Say in one line what to install where `what` needs torch and there is none.

    Raises ConfigError for a ModuleNotFoundError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = describe_missing(error.name or str(error))
        raise ConfigError(f"{what}: {missing}; or take an .onnx file, which `rs-biformer export` writes") from None
