"""Pixel arithmetic: windows, window starts and blend weights.

Integers and numpy only: no I/O and no torch, so that tiling, training and prediction can share one definition and the
tests can check it exhaustively. Rows grow downwards, columns to the right; a stop is exclusive.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rs_biformer.errors import ConfigError

Blend = Literal["hann", "average", "center"]


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """A rectangle of pixels: the first row and column, and how many of each."""

    row: int
    col: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.row < 0 or self.col < 0 or self.height < 1 or self.width < 1:
            raise ConfigError(f"a window needs row, col >= 0 and height, width >= 1, got {self}")

    @property
    def row_stop(self) -> int:
        return self.row + self.height

    @property
    def col_stop(self) -> int:
        return self.col + self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices, for indexing an array whose origin is the scene's."""
        return slice(self.row, self.row_stop), slice(self.col, self.col_stop)

    def intersects(self, other: "Window") -> bool:
        """Whether the two share a pixel; windows that only touch do not."""
        return (
            self.row < other.row_stop
            and other.row < self.row_stop
            and self.col < other.col_stop
            and other.col < self.col_stop
        )

    def grown(self, margin: int, height: int, width: int) -> "Window":
        """The window with `margin` more pixels on each side, clipped to a scene of `height` x `width`."""
        row, col = max(0, self.row - margin), max(0, self.col - margin)
        row_stop, col_stop = min(height, self.row_stop + margin), min(width, self.col_stop + margin)
        return Window(row, col, row_stop - row, col_stop - col)


def stride_of(size: int, overlap: float) -> int:
    """Distance between window starts for windows of `size` pixels of which a share `overlap` is common to neighbours.

    Raises ConfigError unless size >= 1 and 0 <= overlap < 1.
    """
    if size < 1:
        raise ConfigError(f"window is {size} pixels; it must be 1 or more")
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap is {overlap}; it is a share of the window and must lie in [0, 1), such as 0.5")
    return max(1, size - round(size * overlap))


def window_starts(length: int, size: int, stride: int) -> tuple[int, ...]:
    """First pixels of the windows that cover `length` pixels.

    Every pixel is covered. The last window is shifted in so that it ends at the edge; a length of at most `size` has
    the single start 0.
    """
    if length < 1 or size < 1 or not 1 <= stride <= size:
        raise ConfigError(f"cannot cover {length} pixels by windows of {size} every {stride}; stride must be 1 to size")
    if length <= size:
        return (0,)
    return (*range(0, length - size, stride), length - size)


def grid(height: int, width: int, size: int, stride: int) -> Iterator[Window]:
    """The windows that cover a scene, row by row, all inside it.

    They are `size` x `size`, and as large as the scene along an axis on which the scene is smaller.
    """
    columns = window_starts(width, size, stride)
    for row in window_starts(height, size, stride):
        for col in columns:
            yield Window(row, col, min(size, height), min(size, width))


def axis_weights(length: int, size: int, stride: int, blend: Blend = "hann") -> tuple[NDArray[np.float32], ...]:
    """Blend weights along one axis, an array of min(size, length) per window start.

    At every pixel the weights of the windows that cover it sum to one, the first and last pixel included; the weight
    of a window in two dimensions is the outer product of its row and column weights, so these sum to one as well and
    no division by an accumulated weight is needed.

    blend: `hann` fades each window towards its edges (a raised cosine sampled between the ends, never zero),
    `average` weighs all windows alike, `center` gives a pixel to the one window whose centre is nearest.
    """
    if blend not in get_args(Blend):
        raise ConfigError(f"blend is {blend!r}; it must be one of {', '.join(get_args(Blend))}")
    starts = window_starts(length, size, stride)
    span = min(size, length)
    if blend == "center":
        cuts = [0, *((a + b + span) // 2 for a, b in pairwise(starts)), length]
        pixels = np.arange(length)
        raw = [
            ((pixels >= low) & (pixels < high))[start : start + span].astype(np.float64)
            for start, low, high in zip(starts, cuts[:-1], cuts[1:], strict=True)
        ]
    else:
        profile = np.sin(np.pi * (np.arange(span) + 0.5) / span) ** 2 if blend == "hann" else np.ones(span)
        raw = [profile] * len(starts)
    total = np.zeros(length)
    for start, weight in zip(starts, raw, strict=True):
        total[start : start + span] += weight
    return tuple(
        (weight / total[start : start + span]).astype(np.float32) for start, weight in zip(starts, raw, strict=True)
    )


def reflect_pad(array: NDArray, height: int, width: int) -> NDArray:
    """Grow the last two axes to at least `height` x `width` by reflection at the bottom and right edges."""
    down, right = max(0, height - array.shape[-2]), max(0, width - array.shape[-1])
    if not down and not right:
        return array
    return np.pad(array, [(0, 0)] * (array.ndim - 2) + [(0, down), (0, right)], mode="reflect")
