"""The arrays that predictions are made of, those of numpy or of torch.

Blending, maps and views are written once, in what both libraries call alike: slices, operators, and functions such as
`library_of(array).maximum`. What they call differently is here; where arrays lie, and how they come there, is told by
`Arrays`: in numpy's here, in torch's in tensors.py.
"""

import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rs_biformer.predict.buffers import buffer

Array = Any
"""An array of numpy or a tensor of torch."""

_Function = TypeVar("_Function", bound=Callable[..., Any])

_TINY = np.finfo(np.float32).tiny


class Arrays(Protocol):
    """Where a model computes, and how arrays come there and back."""

    @property
    def gathers(self) -> bool:
        """Whether much is done at a time, as on a GPU, where each call costs; a CPU does little, out of its cache."""

    def room(self, shape: tuple[int, ...], dtype: str) -> Array:
        """An array to be written to; what it holds before is not defined."""

    def staged(self, array: NDArray[Any]) -> Array:
        """An array made ready to be placed, in the thread that reads."""

    def placed(self, array: Array) -> Array:
        """An array of numpy, or one that was staged, where the model is."""

    def on_host(self, array: Array) -> NDArray[Any]:
        """The array as one of numpy."""

    def inferring(self, function: _Function) -> _Function:
        """The function, or generator function, in the mode in which the library only infers."""


class NumpyArrays:
    """Arrays of numpy: they lie where they were made."""

    gathers = False

    def room(self, shape: tuple[int, ...], dtype: str) -> Array:
        return buffer(shape, dtype)

    def staged(self, array: NDArray[Any]) -> Array:
        return array

    def placed(self, array: Array) -> Array:
        return array

    def on_host(self, array: Array) -> NDArray[Any]:
        found: NDArray[Any] = array
        return found

    def inferring(self, function: _Function) -> _Function:
        return function


def library_of(array: Array) -> Any:
    """The module whose functions take an array: numpy or torch, which is loaded where there is a tensor."""
    return np if isinstance(array, np.ndarray | np.generic) else sys.modules["torch"]


def add_product(sums: Array, values: Array, weight: Array) -> None:
    """Add values (P, h, w) times a weight (h, w) to sums (P, h, w), in place."""
    if not isinstance(sums, np.ndarray):
        sums.addcmul_(values, weight)
        return
    for plane, one in zip(sums, values, strict=True):  # a plane at a time stays in the cache
        plane += one * weight


def entr(probabilities: Array) -> Array:
    """-p log p of each, in nats; 0 for 0."""
    if not isinstance(probabilities, np.ndarray):
        return sys.modules["torch"].special.entr(probabilities)
    found = np.maximum(probabilities, _TINY)
    np.log(found, out=found)
    found *= probabilities
    return np.negative(found, out=found)
