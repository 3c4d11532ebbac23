"""Pixel arithmetic: windows, what they share, how they cover an area, and blend weights.

Integers and numpy only: no I/O and no torch, so that tiling, training and prediction can share one definition and the
tests can check it exhaustively. Rows grow downwards, columns to the right; a stop is exclusive.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

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
        """Whether the two share a pixel; windows that only touch do not.

        >>> Window(0, 0, 2, 2).intersects(Window(1, 1, 2, 2)), Window(0, 0, 2, 2).intersects(Window(0, 2, 2, 2))
        (True, False)
        """
        return (
            self.row < other.row_stop
            and other.row < self.row_stop
            and self.col < other.col_stop
            and other.col < self.col_stop
        )

    def grown(self, margin: int, height: int, width: int) -> "Window":
        """The window with `margin` more pixels on each side, clipped to a scene of `height` x `width`.

        >>> Window(0, 4, 2, 2).grown(3, 10, 8)
        Window(row=0, col=1, height=5, width=7)
        """
        row, col = max(0, self.row - margin), max(0, self.col - margin)
        row_stop, col_stop = min(height, self.row_stop + margin), min(width, self.col_stop + margin)
        return Window(row, col, row_stop - row, col_stop - col)

    def moved(self, down: int, right: int, height: int, width: int) -> "Window":
        """The window so many pixels further down and to the right, but inside a scene of `height` x `width`.

        The window must fit the scene.

        >>> Window(0, 0, 4, 4).moved(3, -1, 10, 10), Window(0, 0, 4, 4).moved(9, 0, 10, 10)
        (Window(row=3, col=0, height=4, width=4), Window(row=6, col=0, height=4, width=4))
        """
        row = min(max(0, self.row + down), height - self.height)
        col = min(max(0, self.col + right), width - self.width)
        return Window(row, col, self.height, self.width)

    def intersection(self, other: "Window") -> "Window | None":
        """The pixels that both hold; None where there are none.

        >>> Window(0, 0, 4, 4).intersection(Window(2, 3, 4, 4))
        Window(row=2, col=3, height=2, width=1)
        """
        if not self.intersects(other):
            return None
        row, col = max(self.row, other.row), max(self.col, other.col)
        return Window(row, col, min(self.row_stop, other.row_stop) - row, min(self.col_stop, other.col_stop) - col)

    def within(self, frame: "Window") -> tuple[slice, slice]:
        """Row and column slices, for indexing an array whose origin is that of `frame`, in which the window lies.

        >>> Window(5, 7, 2, 3).within(Window(4, 4, 8, 8))
        (slice(1, 3, None), slice(3, 6, None))
        """
        row, col = self.row - frame.row, self.col - frame.col
        return slice(row, row + self.height), slice(col, col + self.width)

    def aligned(self, rows: int, cols: int, height: int, width: int) -> "Window":
        """The least window that holds this one and ends at multiples of `rows` and `cols`, or at the scene's edges.

        >>> Window(5, 7, 2, 2).aligned(4, 4, 10, 10)
        Window(row=4, col=4, height=4, width=6)
        """
        row, col = self.row // rows * rows, self.col // cols * cols
        row_stop, col_stop = -(-self.row_stop // rows) * rows, -(-self.col_stop // cols) * cols
        return Window(row, col, min(height, row_stop) - row, min(width, col_stop) - col)


def cover(area: Window, rows: int, cols: int | None = None) -> Iterator[Window]:
    """Rectangles of at most `rows` x `cols` pixels that cover an area row by row from its upper left corner.

    They neither overlap nor leave the area. Without `cols` they are as wide as the area.

    >>> list(cover(Window(0, 0, 3, 5), 2))
    [Window(row=0, col=0, height=2, width=5), Window(row=2, col=0, height=1, width=5)]
    """
    cols = area.width if cols is None else cols
    for row in range(area.row, area.row_stop, rows):
        for col in range(area.col, area.col_stop, cols):
            yield Window(row, col, min(rows, area.row_stop - row), min(cols, area.col_stop - col))


def cells(area: Window, rows: int, cols: int) -> Iterator[Window]:
    """What multiples of `rows` and `cols` cut an area into, row by row: its part of each cell of the scene's grid.

    >>> [(part.row, part.height) for part in cells(Window(3, 0, 6, 4), 4, 4)]
    [(3, 1), (4, 4), (8, 1)]
    """
    for cell in cover(area.aligned(rows, cols, area.row_stop, area.col_stop), rows, cols):
        part = cell.intersection(area)
        assert part is not None
        yield part


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Many windows as columns of whole numbers, all (n,) int64; indexed by a position, a mask or a slice."""

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]

    @classmethod
    def of(cls, windows: Iterable[Window]) -> "Windows":
        """The columns of single windows."""
        rows = [(one.row, one.col, one.height, one.width) for one in windows]
        return cls(*np.array(rows, np.int64).reshape(-1, 4).T)

    def __len__(self) -> int:
        return len(self.row)

    def __iter__(self) -> Iterator[Window]:
        columns = (self.row.tolist(), self.col.tolist(), self.height.tolist(), self.width.tolist())
        return (Window(*one) for one in zip(*columns, strict=True))

    @property
    def row_stop(self) -> NDArray[np.int64]:
        return self.row + self.height

    @property
    def col_stop(self) -> NDArray[np.int64]:
        return self.col + self.width

    def take(self, chosen: Any) -> "Windows":
        """The windows at these positions, or where a mask is true."""
        return Windows(self.row[chosen], self.col[chosen], self.height[chosen], self.width[chosen])

    def moved(self, down: int | NDArray[np.int64], right: int | NDArray[np.int64]) -> "Windows":
        """The windows, each so many pixels further down and to the right."""
        return Windows(self.row + down, self.col + right, self.height, self.width)

    def touching(self, window: Window) -> NDArray[np.bool_]:
        """Which of them share a pixel with a window, (n,)."""
        down = (self.row < window.row_stop) & (window.row < self.row_stop)
        return down & (self.col < window.col_stop) & (window.col < self.col_stop)

    def covered(self, row_edges: NDArray[np.int64], col_edges: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which cells between sorted edges lie in any of the windows, whose sides all run along edges: (rows, columns).

        Second differences at the corners, summed up along both axes, give the number of windows over each cell.
        """
        over = np.zeros((len(row_edges), len(col_edges)), np.int64)
        for row, start, stop in ((self.row, 1, -1), (self.row_stop, -1, 1)):
            for col, step in ((self.col, start), (self.col_stop, stop)):
                np.add.at(over, (np.searchsorted(row_edges, row), np.searchsorted(col_edges, col)), step)
        return over.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0


def stride_of(size: int, overlap: float) -> int:
    """Distance between window starts for windows of `size` pixels of which a share `overlap` is common to neighbours.

    Raises ConfigError unless size >= 1 and 0 <= overlap < 1.

    >>> stride_of(512, 0.5), stride_of(10, 0.99)
    (256, 1)
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

    >>> window_starts(10, 4, 3), window_starts(11, 4, 3), window_starts(3, 4, 3)
    ((0, 3, 6), (0, 3, 6, 7), (0,))
    """
    if length < 1 or size < 1 or not 1 <= stride <= size:
        raise ConfigError(f"cannot cover {length} pixels by windows of {size} every {stride}; stride must be 1 to size")
    if length <= size:
        return (0,)
    return (*range(0, length - size, stride), length - size)


def grid(height: int, width: int, size: int, stride: int) -> Iterator[Window]:
    """The windows that cover a scene, row by row, all inside it.

    They are `size` x `size`, and as large as the scene along an axis on which the scene is smaller.

    >>> [(window.row, window.col) for window in grid(5, 4, 4, 2)]
    [(0, 0), (1, 0)]
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

    >>> [weight.tolist() for weight in axis_weights(6, 4, 2, "average")]
    [[1.0, 1.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]
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


def reflect_pad(array: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Grow the last two axes to at least `height` x `width` by reflection at the bottom and right edges.

    >>> reflect_pad(np.array([[1, 2, 3]]), 1, 5).tolist()
    [[1, 2, 3, 2, 1]]
    """
    down, right = max(0, height - array.shape[-2]), max(0, width - array.shape[-1])
    if not down and not right:
        return array
    return np.pad(array, [(0, 0)] * (array.ndim - 2) + [(0, down), (0, right)], mode="reflect")
