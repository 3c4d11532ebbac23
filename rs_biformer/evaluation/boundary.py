"""Boundary F1: do the outlines of the classes lie where the labels have them? Numpy only.

The measure is the BF score of Csurka et al., "What is a good evaluation measure for semantic segmentation?" (BMVC
2013), per class: precision is the share of the predicted outline that has the label's outline of the same class within
a distance, recall the share of the label's outline that has the predicted one within it, F1 their harmonic mean.
Two choices differ from the paper, which averages over photographs of one size and takes 0.75 % of their diagonal:

- the outlines of all scenes are counted together and no score is averaged, as everywhere here, so that a streamed
  scene gives the figures of the whole one and large scenes count for more;
- the distance is given in pixels, Euclidean, from the centre of one pixel to the centre of the other.

A pixel is on its class's outline when one of the four pixels beside it is of another class. Neither IGNORE nor the edge
of the raster makes an outline, and pixels without a label count in neither map. Labels are always taken in full: eroded
ones have no outlines left. Shapes: K classes, D distances.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, isqrt

import numpy as np
from numpy.typing import NDArray

from rs_biformer.errors import ConfigError
from rs_biformer.evaluation.confusion import ratio
from rs_biformer.schema import IGNORE

LARGEST_DISTANCE = 64.0
"""Pixels: the search looks at every pixel of a disc, 12,900 of them at this radius."""


@dataclass(frozen=True)
class BoundaryCounts:
    """Outline pixels of one scene or of a set; two of them add.

    distances: in pixels, ascending (D). label, predicted: pixels on the outlines of each class (K,) int64.
    label_hits, predicted_hits: how many of them have the other map's outline within each distance (D, K) int64.
    """

    distances: tuple[float, ...]
    label: NDArray[np.int64]
    predicted: NDArray[np.int64]
    label_hits: NDArray[np.int64]
    predicted_hits: NDArray[np.int64]

    def __add__(self, other: "BoundaryCounts") -> "BoundaryCounts":
        return BoundaryCounts(
            self.distances,
            self.label + other.label,
            self.predicted + other.predicted,
            self.label_hits + other.label_hits,
            self.predicted_hits + other.predicted_hits,
        )

    @property
    def precision(self) -> NDArray[np.float64]:
        """(D, K); NaN for a class without a predicted outline."""
        return ratio(self.predicted_hits, np.broadcast_to(self.predicted, self.predicted_hits.shape))

    @property
    def recall(self) -> NDArray[np.float64]:
        """(D, K); NaN for a class without an outline in the labels."""
        return ratio(self.label_hits, np.broadcast_to(self.label, self.label_hits.shape))

    @property
    def f1(self) -> NDArray[np.float64]:
        """(D, K); zero where only one of the maps has an outline of the class, NaN where neither has."""
        precision, recall = np.nan_to_num(self.precision), np.nan_to_num(self.recall)
        score = np.nan_to_num(ratio(2 * precision * recall, precision + recall))
        return np.where(self.label + self.predicted > 0, score, np.nan)


def no_boundaries(classes: int, distances: Iterable[float]) -> BoundaryCounts:
    """The counts of no pixels. Raises ConfigError for distances that are not between 0 and 64 pixels."""
    wanted = tuple(sorted({float(distance) for distance in distances}))
    if not wanted or not 0 <= wanted[0] <= wanted[-1] <= LARGEST_DISTANCE:
        raise ConfigError(f"boundary distances are {wanted}; give pixels from 0 to {LARGEST_DISTANCE:g}")
    single, per_distance = np.zeros(classes, np.int64), np.zeros((len(wanted), classes), np.int64)
    return BoundaryCounts(wanted, single, single, per_distance, per_distance)


def halo(distances: tuple[float, ...]) -> int:
    """Pixels that must be read around a window: the largest distance, and one that makes a pixel an outline."""
    return ceil(distances[-1]) + 1 if distances else 0


def count_boundaries(
    label: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    inner: tuple[slice, slice],
    classes: int,
    distances: tuple[float, ...],
) -> BoundaryCounts:
    """Count the outlines within `inner` of two maps (h, w) of class indices.

    `inner` is a window of the arrays; around it they reach `halo(distances)` pixels further, or to the raster's edge.
    """
    prediction = np.where(label == IGNORE, np.uint8(IGNORE), prediction)
    truth, found = outlines(label), outlines(prediction)
    label_all, label_hits = _matched(truth, found, inner, classes, distances)
    found_all, found_hits = _matched(found, truth, inner, classes, distances)
    return BoundaryCounts(distances, label_all, found_all, label_hits, found_hits)


def outlines(index: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The class index on outlines, IGNORE elsewhere (h, w)."""
    edge = np.zeros(index.shape, bool)
    for here, there in (
        ((slice(1, None), slice(None)), (slice(-1), slice(None))),
        ((slice(None), slice(1, None)), (slice(None), slice(-1))),
    ):
        differ = (index[here] != index[there]) & (index[here] != IGNORE) & (index[there] != IGNORE)
        edge[here] |= differ
        edge[there] |= differ
    return np.where(edge, index, np.uint8(IGNORE))


def _matched(
    these: NDArray[np.uint8],
    others: NDArray[np.uint8],
    inner: tuple[slice, slice],
    classes: int,
    distances: tuple[float, ...],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Outline pixels of `these` in `inner` per class (K,), and those with an outline of the class nearby (D, K)."""
    reach = int(distances[-1])
    padded = np.pad(others, reach, constant_values=IGNORE)
    rows, columns = np.nonzero(these[inner] != IGNORE)
    rows, columns = rows + inner[0].start, columns + inner[1].start
    own = these[rows, columns]
    place = (rows + reach) * padded.shape[1] + columns + reach
    total = np.bincount(own, minlength=classes)
    hits = np.zeros((len(distances), classes), np.int64)
    flat, found = padded.reshape(-1), np.zeros(classes, np.int64)
    offsets = _disc(reach)
    for number, distance in enumerate(distances):
        # Nearest first: an outline pixel that has found its partner is not looked at again.
        while offsets and offsets[0][0] <= distance * distance:
            _, down, right = offsets.pop(0)
            hit = flat[place + (down * padded.shape[1] + right)] == own
            found = found + np.bincount(own[hit], minlength=classes)
            place, own = place[~hit], own[~hit]
        hits[number] = found
    return total, hits


def _disc(radius: int) -> list[tuple[int, int, int]]:
    """Squared distance, rows and columns of every pixel of a disc, nearest first."""
    return sorted(
        (down * down + right * right, down, right)
        for down in range(-radius, radius + 1)
        for right in range(-isqrt(radius * radius - down * down), isqrt(radius * radius - down * down) + 1)
    )
