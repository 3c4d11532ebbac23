"""Whether a run can go on from a checkpoint, seen before Lightning takes its state for granted."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from rs_biformer.checkpoint import CheckpointMeta, read_checkpoint
from rs_biformer.documents import shown
from rs_biformer.errors import CheckpointError, RsBiformerError

ALIKE = ("encoder", "decoder", "model_arguments", "schema", "bands", "dtype", "mean", "std")
"""What the run that is resumed and the run that goes on must have in common."""

_PARTS: dict[str, tuple[type, ...]] = {
    "epoch": (int,),
    "global_step": (int,),
    "loops": (dict,),
    "callbacks": (dict,),
    "optimizer_states": (list,),
    "lr_schedulers": (list,),
    "pytorch-lightning_version": (str,),
}
"""What Lightning reads of a checkpoint besides the weights."""

_MOST = 1 << 53
"""Steps that a run may count; beyond, and below 0, a number is no count."""


@dataclass(frozen=True)
class Resumed:
    """A checkpoint to go on from, and how many steps and epochs it has behind it."""

    path: Path
    steps: int
    epoch: int


def read_resumed(path: Path, meta: CheckpointMeta) -> Resumed:
    """Look a checkpoint through. Raises CheckpointError where a run of `meta` cannot go on from it."""
    content, saved = read_checkpoint(path)
    if "optimizer_states" not in content:
        raise CheckpointError(f"{path} holds weights alone; resume from the last.ckpt of its run")
    for name in ALIKE:
        before, now = getattr(saved, name), getattr(meta, name)
        if before != now:
            short = "" if name == "schema" else f" ({before} then, {now} now)"
            raise CheckpointError(
                f"{path} was trained with another {name}{short}; resume with the config and the index of that run, or "
                "start a new run in another --out"
            )
    for name, kinds in _PARTS.items():
        if type(content.get(name)) not in kinds:
            raise CheckpointError(f"{path} cannot be resumed: its {name} is {shown(content.get(name))}")
    if len(content["optimizer_states"]) != 1:
        raise CheckpointError(f"{path} cannot be resumed: it has {len(content['optimizer_states'])} optimizers, not 1")
    if problem := _miscounted(content):
        raise CheckpointError(f"{path} cannot be resumed: its {problem}")
    return Resumed(path, content["global_step"], content["epoch"])


def _miscounted(content: Mapping[str, Any]) -> str:
    """What is wrong with the numbers by which Lightning counts epochs and steps, or nothing."""
    pending: list[tuple[str, Any]] = [(name, content[name]) for name in ("epoch", "global_step", "loops")]
    while pending:
        key, value = pending.pop()
        if type(value) is int and not 0 <= value < _MOST:
            return f"{key} is {value}"
        if key.endswith((".current", ".total")) and not _is_count(value):
            return f"{key} is {shown(value)}"
        if isinstance(value, dict) and key.count(".") < 10:
            pending += [(f"{key}.{name}", item) for name, item in value.items()]
    return ""


def _is_count(value: Any) -> bool:
    """Whether it tells how many epochs or batches were begun and how many completed, among others."""
    return (
        isinstance(value, dict) and {"ready", "completed"} <= set(value) and all(type(n) is int for n in value.values())
    )


class Restored(Callback):
    """Knows whether Lightning has restored the state, and looks at what torch takes of it without looking."""

    def __init__(self) -> None:
        self.done = False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The state is restored."""
        self._look(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The state is restored, and there was no validation to try."""
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        if not self.done:
            for optimizer in trainer.optimizers:
                _require_fit(optimizer)
        self.done = True


def _require_fit(optimizer: Optimizer) -> None:
    """Raise ValueError where the state of an optimizer is not that of its parameters."""
    for group in optimizer.param_groups:
        for name, default in optimizer.defaults.items():
            if isinstance(default, float) and not isinstance(group.get(name), int | float | Tensor):
                raise ValueError(f"the {name} of its optimizer is {shown(group.get(name))}")
    for parameter, state in optimizer.state.items():
        for name, value in state.items() if isinstance(state, dict) else ():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(f"{name} of its optimizer is {list(value.shape)} and not {list(parameter.shape)}")
            if value is not None and not isinstance(value, Tensor | int | float):
                raise ValueError(f"{name} of its optimizer is {shown(value)}")


@contextmanager
def one_line(resumed: Resumed | None, trainer: Trainer) -> Iterator[None]:
    """Raise CheckpointError for whatever goes wrong while a state is restored, which Lightning does not look at.

    The trainer has a `Restored` among its callbacks.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    restored = next(one for one in callbacks if isinstance(one, Restored))
    try:
        yield
    except (RsBiformerError, MisconfigurationException, OSError):
        raise
    except Exception as error:
        if resumed is None or restored.done:
            raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(
            f"{resumed.path} cannot be resumed, its state does not fit this run ({reason}); start a new run in another "
            "--out, perhaps from its weights with --model.weights"
        ) from None
