"""Test-time augmentation: several views of a batch, their probabilities averaged.

A view is a symmetry of the square: it moves pixels and changes no value, so every view can be undone exactly.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from rs_biformer.errors import ConfigError

Views = Literal["none", "flips", "d4"]


def view(batch: Tensor, turns: int, mirror: bool) -> Tensor:
    """`batch` mirrored left to right if asked, then turned by `turns` right angles, over its last two axes."""
    mirrored = batch.flip(-1) if mirror else batch
    return torch.rot90(mirrored, turns, (-2, -1)) if turns else mirrored


def undo(batch: Tensor, turns: int, mirror: bool) -> Tensor:
    """The inverse of `view`."""
    turned = torch.rot90(batch, -turns, (-2, -1)) if turns else batch
    return turned.flip(-1) if mirror else turned


def views(name: Views) -> tuple[tuple[int, bool], ...]:
    """The (turns, mirror) pairs of a set of views; the first is the batch as it is.

    `none`: that one alone. `flips`: left to right, top to bottom, and both. `d4`: all eight symmetries of the square.
    """
    if name == "none":
        return ((0, False),)
    if name == "flips":
        return ((0, False), (0, True), (2, False), (2, True))
    if name == "d4":
        return tuple((turns, mirror) for mirror in (False, True) for turns in range(4))
    raise ConfigError(f"test-time augmentation is {name!r}; it must be one of {', '.join(get_args(Views))}")


def average_views(
    probabilities: Callable[[Tensor, Tensor], Tensor], image: Tensor, valid: Tensor, name: Views
) -> Tensor:
    """Mean probabilities (B, K, S, S) over the views of square windows.

    probabilities: (image (B, C, S, S), valid (B, S, S)) -> (B, K, S, S).
    """
    symmetries = views(name)
    total = undo(probabilities(view(image, *symmetries[0]), view(valid, *symmetries[0])), *symmetries[0])
    for symmetry in symmetries[1:]:
        total = total + undo(probabilities(view(image, *symmetry), view(valid, *symmetry)), *symmetry)
    return total / len(symmetries) if len(symmetries) > 1 else total
