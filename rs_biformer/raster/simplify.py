"""Simplify the lines of a map without moving any of them across another.

Douglas and Peucker (1973), all lines at once: a stretch of a line becomes straight if no point of it lies farther than
the tolerance from the straight, otherwise it is halved at the farthest point. With one more condition: between the
stretch and the straight there is no other point of any line (as they were, not as they become). Then no two stretches
can cross: one of them would have a point on the wrong side of the other (de Berg, van Kreveld and Schirra, 1998). So
each line is simplified on its own, in any order, and faces stay what they are: none vanishes, splits or overlaps.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rs_biformer.raster.outlines import Lines, ranges

_PAIRS = 2**21
"""Pairs of a point and an edge that are looked at together; bounds the memory of a large tolerance."""


def points_kept(lines: Lines, shape: tuple[int, int], tolerance: float, *, last: bool) -> NDArray[np.bool_]:
    """As few of the points of lines as the tolerance (in pixels) asks for, as a mask; junctions stay where they are.

    shape: of the slab (h, w) that was traced. last: whether it is the last one.
    """
    keep = np.zeros(len(lines.points), bool)
    low, high = lines.first[:-1], lines.first[1:] - 1
    keep[low] = keep[high] = True
    task = _Task(lines.points, shape, tolerance, keep)
    # A ring is halved first. A line from the seam below to itself keeps a point off the seam: a line of the next slab
    # may have the same ends, and two lines must not become one straight.
    halve = (lines.points[low] == lines.points[high]).all(axis=1)
    if not last:
        halve |= (lines.points[low, 1] == shape[0]) & (lines.points[high, 1] == shape[0])
    low, high = task.halve(low, high, halve)
    task.straighten(low, high)
    twins = task.twins(low, high)
    task.straighten(*task.halve(low[twins], high[twins], np.ones(len(twins), bool)))
    return keep


class _Task:
    """The points of one slab, which of them are kept so far, and a look-up of lattice points.

    Stretches are given as arrays of the index of their first and last point, `low` and `high`.
    """

    def __init__(
        self, points: NDArray[np.int64], shape: tuple[int, int], tolerance: float, keep: NDArray[np.bool_]
    ) -> None:
        self._points, self._tolerance, self._keep = points, tolerance, keep
        self._at = np.full((shape[0] + 1, shape[1] + 1), -1, np.int32)  # a point there; of a junction any
        self._at[points[:, 1], points[:, 0]] = np.arange(len(points))

    def halve(
        self, low: NDArray[np.int64], high: NDArray[np.int64], which: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Keep the farthest point of the stretches of a mask; all stretches afterwards."""
        _, middle = self._farthest(low[which], high[which])
        self._keep[middle] = True
        return (
            np.concatenate([low[~which], low[which], middle]),
            np.concatenate([high[~which], middle, high[which]]),
        )

    def straighten(self, low: NDArray[np.int64], high: NDArray[np.int64]) -> None:
        """Keep the points that these stretches need."""
        while True:
            bent = high - low > 1
            low, high = low[bent], high[bent]
            if not len(low):
                return
            distance, _ = self._farthest(low, high)
            split = distance > self._tolerance**2
            near = np.flatnonzero(~split)
            split[near] = self._hemmed_in(low[near], high[near])
            low, high = self.halve(low[split], high[split], np.ones(int(split.sum()), bool))

    def twins(self, low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.int64]:
        """Stretches that became a straight which another one is already: of equals the nearest to it is the first."""
        kept = np.cumsum(self._keep)
        straight = np.flatnonzero(kept[high] - kept[low] == 1)
        low, high = low[straight], high[straight]
        distance = np.zeros(len(low))
        bent = high - low > 1
        distance[bent] = self._farthest(low[bent], high[bent])[0]
        ends = np.concatenate([self._points[low], self._points[high]], axis=1)
        swap = (ends[:, 0] > ends[:, 2]) | ((ends[:, 0] == ends[:, 2]) & (ends[:, 1] > ends[:, 3]))
        ends[swap] = ends[swap][:, [2, 3, 0, 1]]
        order = np.lexsort((distance, *ends.T))
        again = (np.diff(ends[order], axis=0) == 0).all(axis=1)
        chosen: NDArray[np.int64] = straight[order[1:][again]]
        return chosen

    def _farthest(self, low: NDArray[np.int64], high: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Squared distance from the straight, and index, of the farthest inner point of stretches that have one."""
        if not len(low):
            return np.zeros(0), np.zeros(0, np.int64)
        inner = high - low - 1
        index = ranges(low + 1, inner)
        stretch = np.repeat(np.arange(len(low)), inner)
        start, way = self._points[low], self._points[high] - self._points[low]
        offset = self._points[index] - start[stretch]
        length = np.maximum((way**2).sum(axis=1), 1)
        along = np.clip((offset * way[stretch]).sum(axis=1) / length[stretch], 0, 1)
        distance = ((offset - along[:, None] * way[stretch]) ** 2).sum(axis=1)
        farthest = np.maximum.reduceat(distance, np.cumsum(inner) - inner)
        best = np.flatnonzero(distance == farthest[stretch])
        first = best[np.flatnonzero(np.diff(stretch[best], prepend=-1))]
        return farthest, index[first]

    def _hemmed_in(self, low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a foreign point lies between a stretch and its straight, or on the straight."""
        found = np.zeros(len(low), bool)
        stretch, x, y = self._close_points(low, high)
        index = self._at[y, x]
        there = index >= 0
        stretch, x, y, index = stretch[there], x[there], y[there], index[there]
        own = (index >= low[stretch]) & (index <= high[stretch])
        for end in (low, high):
            own |= (self._points[end[stretch]] == np.stack([x, y], axis=1)).all(axis=1)
        stretch, x, y = stretch[~own], x[~own], y[~own]
        for part in _portions(high[stretch] - low[stretch] + 1):
            inside = self._between(x[part], y[part], low[stretch[part]], high[stretch[part]])
            found[stretch[part][inside]] = True
        return found

    def _close_points(
        self, low: NDArray[np.int64], high: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Lattice points near each straight, within the stretch's box: number of the stretch, x, y.

        A stretch that may become straight lies within the tolerance of its straight, and so does all between the two.
        """
        lengths = high - low + 1
        index, bounds = ranges(low, lengths), np.cumsum(lengths) - lengths
        if not len(low):
            return bounds, bounds, bounds
        smallest = np.minimum.reduceat(self._points[index], bounds)
        largest = np.maximum.reduceat(self._points[index], bounds)
        start, way = self._points[low], self._points[high] - self._points[low]
        steep = np.abs(way[:, 1]) > np.abs(way[:, 0])
        for array in (smallest, largest, start, way):  # the first coordinate is the one that runs farther
            array[steep] = array[steep, ::-1]
        slope = way[:, 1] / way[:, 0]
        reach = self._tolerance * np.hypot(1, slope) + 1e-6
        steps = largest[:, 0] - smallest[:, 0] + 1
        stretch = np.repeat(np.arange(len(low)), steps)
        along = ranges(smallest[:, 0], steps)
        centre = start[stretch, 1] + slope[stretch] * (along - start[stretch, 0])
        lowest = np.maximum(np.ceil(centre - reach[stretch]), smallest[stretch, 1]).astype(np.int64)
        highest = np.minimum(np.floor(centre + reach[stretch]), largest[stretch, 1]).astype(np.int64)
        across = np.maximum(highest - lowest + 1, 0)
        stretch, along, aside = np.repeat(stretch, across), np.repeat(along, across), ranges(lowest, across)
        return stretch, np.where(steep[stretch], aside, along), np.where(steep[stretch], along, aside)

    def _between(
        self, x: NDArray[np.int64], y: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether each point is inside the ring of its stretch and its straight, or on the straight: exact integers."""
        edges = high - low + 1
        pair = np.repeat(np.arange(len(x)), edges)
        tail = ranges(low, edges)
        closing = tail == high[pair]  # from the last point back to the first
        x0, y0 = (self._points[tail] - np.stack([x, y], axis=1)[pair]).T
        x1, y1 = (self._points[np.where(closing, low[pair], tail + 1)] - np.stack([x, y], axis=1)[pair]).T
        side = x0 * y1 - x1 * y0
        turns = ((y0 <= 0) & (y1 > 0) & (side > 0)).astype(np.int64) - ((y1 <= 0) & (y0 > 0) & (side < 0))
        touches = closing & (side == 0) & (x0 * x1 <= 0) & (y0 * y1 <= 0)
        bounds = np.cumsum(edges) - edges
        crossed: NDArray[np.bool_] = (np.add.reduceat(turns, bounds) != 0) | np.logical_or.reduceat(touches, bounds)
        return crossed


def _portions(costs: NDArray[np.int64]) -> Iterator[slice]:
    """Slices whose costs sum to about _PAIRS."""
    if len(costs):
        number = np.cumsum(costs) // _PAIRS
        bounds = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(costs)]
        yield from (slice(*pair) for pair in zip(bounds[:-1], bounds[1:], strict=True))
