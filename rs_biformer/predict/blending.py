"""Blending: windows of probabilities are summed with weights, and what no later window reaches is finished.

A strip is swept from left to right. Sums of full height are held only for the columns in work; left of them the
strip's own rows are finished, and the rows that reach below it are carried to the next strip. So the sums take
(K, S - stride, columns) and not (K, S, columns), and the pixels in work fit a processor's cache.

K classes, P planes that are blended (K, or K + 1 with the disagreement of views), S window.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from rs_biformer.errors import RsBiformerError
from rs_biformer.geometry import Window
from rs_biformer.predict.arrays import Array, Arrays, add_product, library_of
from rs_biformer.predict.outputs import Layers
from rs_biformer.predict.plan import Plan, Strip, ring_pieces


class Sweep:
    """The sums of one run through a lane, float32. Strips come from top to bottom, windows in the plan's order.

    Every pixel is summed in the order of the windows that cover it, whichever strip the run began with.
    """

    def __init__(self, plan: Plan, lane: int, layers: Layers, arrays: Arrays) -> None:
        self._plan, self._layers, self._arrays = plan, layers, arrays
        self._left, self._right = plan.columns[lane]
        width = self._right - self._left
        swept = min(width, swept_columns(plan, arrays))
        self._sums = arrays.room((layers.planes, plan.reach, swept), "float32")
        self._carry = arrays.room((layers.planes, plan.carried, width), "float32")
        self._carried = 0  # rows of the carry that hold sums
        self._along: dict[int, Array] = {}
        self._added: list[Window] = []
        self._broken: list[Array] = []

    def begin(self, strip: Strip, wanted: bool = True) -> None:
        """Turn to a strip. Unless it is `wanted`, only what it leaves to later ones is worked out."""
        self._strip = strip
        self._first = self._stop = self._left  # columns in work
        layers = self._layers if wanted else Layers((), self._layers.classes)
        self._maps = layers.empty(strip.output.height, strip.output.width, self._arrays)
        self._down: dict[int, Array] = {}

    def add(self, windows: Iterable[Window], values: Iterable[Array]) -> None:
        """Blend in windows of the strip, the values of each (P, S, S)."""
        for window, one in zip(windows, values, strict=True):
            # Softmax spreads a NaN or an infinity over all classes of its pixel, so one class tells.
            self._added.append(window)
            self._broken.append(library_of(one).isnan(one[0]).any())
            self._add(window, one)

    def _add(self, window: Window, values: Array) -> None:
        low, high = max(self._left, window.col), min(self._right, window.col_stop)
        if high - self._first > self._sums.shape[2]:
            self._settle(low)  # no later window reaches further left
        self._load(high)
        top, bottom = window.row - self._strip.output.row, window.row_stop - self._strip.output.row
        inside = slice(low - window.col, high - window.col)
        weight, values = self._weight(window)[:, inside], values[:, : window.height, inside]
        for place, part in self._pieces(low, high):
            add_product(self._sums[:, top:bottom, place], values[:, :, part], weight[:, part])

    def _weight(self, window: Window) -> Array:
        down, along = self._plan.weights(window)
        for known, start, weights in ((self._down, window.row, down), (self._along, window.col, along)):
            if start not in known:  # each goes to the device once: a copy would wait for all work on a GPU
                known[start] = self._arrays.placed(weights)
        column, row = self._down[window.row], self._along[window.col]
        return library_of(row).outer(column, row)

    def finish(self) -> dict[str, Array]:
        """The maps of the strip.

        Raises RsBiformerError when a window that was added held NaN.
        """
        self._settle(self._right)
        self._carried = self._strip.source.row_stop - self._strip.output.row_stop
        self._raise_if_broken()
        return self._maps

    def _load(self, stop: int) -> None:
        """Take the columns up to `stop` into work, with what the strips above left in them."""
        for place, part in self._pieces(self._stop, stop):
            carried = slice(self._stop - self._left + part.start, self._stop - self._left + part.stop)
            self._sums[:, : self._carried, place] = self._carry[:, : self._carried, carried]
            self._sums[:, self._carried :, place] = 0
        self._stop = max(self._stop, stop)

    def _settle(self, stop: int) -> None:
        """Finish the columns up to `stop`."""
        rows = self._strip.output.height
        below = self._strip.source.row_stop - self._strip.output.row_stop
        while self._first < stop:
            if self._first == self._stop:  # where no window had a valid pixel
                self._load(min(stop, self._first + self._sums.shape[2]))
            end = min(stop, self._stop)
            for place, part in self._pieces(self._first, end):
                settled = slice(self._first - self._left + part.start, self._first - self._left + part.stop)
                sums = self._sums[:, :, place]
                self._layers.fill({name: layer[..., settled] for name, layer in self._maps.items()}, sums[:, :rows])
                self._carry[:, :below, settled] = sums[:, rows : rows + below]
            self._first = end

    def _pieces(self, first: int, stop: int) -> Iterator[tuple[slice, slice]]:
        """Where the columns `first` to `stop` of the scene lie in the sums, which are a ring of columns."""
        return ring_pieces(first - self._left, max(first, stop) - self._left, self._sums.shape[2])

    def _raise_if_broken(self) -> None:
        added, broken = self._added, self._broken
        self._added, self._broken = [], []
        if not broken:
            return
        flags = self._arrays.on_host(library_of(broken[0]).stack(broken))
        if flags.any():
            window = added[int(np.flatnonzero(flags)[0])]
            raise RsBiformerError(
                f"the model gave NaN for the window at row {window.row}, column {window.col}; no map was written: "
                "check its weights, or try --precision 32 if it was trained without autocast"
            )


def swept_columns(plan: Plan, arrays: Arrays) -> int:
    """Columns that are in work at a time: those of one window for a CPU's cache, of a batch where launches cost."""
    windows = plan.batch_size if arrays.gathers else 1
    return plan.size + (windows - 1) * plan.stride
