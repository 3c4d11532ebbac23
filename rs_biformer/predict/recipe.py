"""How a model is run, whatever library runs it: a value; and what comes of it on a device.

B batch, C bands, K classes, P planes, S window.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from rs_biformer.errors import ConfigError
from rs_biformer.predict.arrays import Array, Arrays
from rs_biformer.predict.tta import View, Views, views

if TYPE_CHECKING:
    import torch

    from rs_biformer.nn.normalise import Normalisation

    Device = str | torch.device
else:
    Device = str  # where there is no torch, there are no other

Precision = Literal["auto", "32", "bf16"]
Passes = Literal["auto", "plain", "fused"]
Model = Callable[..., Any]
Predictor = Callable[[Array, Array], Iterable[Array]]
"""(image (B, C, S, S) as in the raster, valid (B, S, S) bool) -> values to blend, for each window (P, S, S) float32."""


@dataclass(frozen=True)
class Recipe:
    """How a model is run; a value that can be sent to another process.

    classes: K. normalisation: None where the model wants raw values or normalises by itself. precision, tta, scales,
    compile, passes: as in `predict_scene`. models: how many are averaged, see ensemble.py. disagreement: of these, or
    of the views of a single one, is wanted as one more plane. keep_regions: routed attention has regions as large as in
    training, see quality.py; a model that cannot have them (by a method `with_regions_of_training`) runs as it is.

    Raises ConfigError for options that cannot be meant.
    """

    classes: int
    normalisation: "Normalisation | None" = None
    precision: Precision = "auto"
    tta: Views = "none"
    scales: tuple[float, ...] = (1.0,)
    disagreement: bool = False
    compile: bool = False
    models: int = 1
    passes: Passes = "auto"
    keep_regions: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.classes <= 254:
            raise ConfigError(f"got {self.classes} classes; a class map holds 1 to 254")
        if self.precision not in get_args(Precision):
            raise ConfigError(f"precision is {self.precision!r}; it must be one of {', '.join(get_args(Precision))}")
        if self.passes not in get_args(Passes):
            raise ConfigError(f"passes is {self.passes!r}; it must be one of {', '.join(get_args(Passes))}")
        if self.passes == "fused" and self.compile:
            raise ConfigError("torch.compile fuses by itself; leave out --compile or --passes fused")
        if len(self.views) == self.models == 1 and self.disagreement:
            raise ConfigError(
                "disagreement is that of several models or test-time views; ask for views with tta= or scales=, or "
                "give more than one model"
            )

    @property
    def views(self) -> tuple[View, ...]:
        """The views of a window that are averaged."""
        return views(self.tta, self.scales)

    def settled(self, model: Model, fast: bool) -> "Recipe":
        """The recipe with a precision and passes that are not `auto`. fast: whether bfloat16 is, on every device that
        will run it.

        A callable that does not normalise by itself is none of ours and runs as it is. Passes are fused in bfloat16
        alone: what float32 gives stays what it was. Models with hooks are called as they are.

        Raises ConfigError for a model that has a normalisation of its own beside the recipe's.
        """
        own = getattr(model, "normalisation", None) is not None
        if own and self.normalisation is not None:
            raise ConfigError("the model normalises by itself (it has .normalisation); leave out normalisation=")
        precision, passes = self.precision, self.passes
        if precision == "auto":
            precision = "bf16" if fast and own else "32"
        if passes == "auto":
            passes = "fused" if precision == "bf16" and own and not self.compile else "plain"
        if _has_hooks(model):
            passes = "plain"
        return replace(self, precision=precision, passes=passes)

    def __str__(self) -> str:
        """How passes are made, for people; empty where there is nothing to tell."""
        told = {"bf16": self.precision == "bf16", "compiled": self.compile, "fused": self.passes == "fused"}
        return ", ".join(name for name, true in told.items() if true)


@dataclass(frozen=True)
class Worker:
    """A model on a device, ready to predict, and the arrays that it takes and gives there."""

    predict: Predictor
    arrays: Arrays


def _has_hooks(model: Model) -> bool:
    """Whether a module, or a part of it, has forward hooks, which would see other outputs."""
    parts = model.modules() if hasattr(model, "modules") else ()
    return any(getattr(part, "_forward_hooks", None) or getattr(part, "_forward_pre_hooks", None) for part in parts)
