"""Which windows to label next: uncertain ones, of rare classes, unlike what is labelled already, apart on the ground.

The choice is the farthest-point traversal of Gonzalez ("Clustering to minimize the maximum intercluster distance",
Theoretical Computer Science 38, 1985), which active learning knows as k-center greedy (Sener and Savarese, "Active
learning for convolutional neural networks: a core-set approach", ICLR 2018, algorithm 1): of all windows the next one
is that whose nearest neighbour among those labelled or chosen is farthest. Differences to it: a window's distance is
multiplied by how uncertain and how rare its classes are, so that what is far and certain does not win; distances are
Hellinger's between class histograms, from 0 to 1; windows too near a chosen one on the ground are left out.

N windows, M that are labelled already, K classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from rs_biformer.geometry import Windows

Floats = NDArray[np.float64]

PARTS = ("uncertainty", "rarity", "diversity")
"""What a score is the product of, each from 0 to 1."""


@dataclass(frozen=True)
class Choice:
    """Windows in the order in which they are to be labelled: positions (C,), and each part of their scores (C,).

    diversity is that at the moment of the choice.
    """

    chosen: NDArray[np.int64]
    score: Floats
    uncertainty: Floats
    rarity: Floats
    diversity: Floats


def class_shares(histograms: NDArray[np.int64] | Floats) -> Floats:
    """Shares (N, K) of the classes of each row of counts (N, K); zeros where a row has none."""
    total = histograms.sum(axis=1, keepdims=True)
    shares: Floats = np.divide(histograms, total, out=np.zeros(histograms.shape), where=total > 0)
    return shares


def hellinger(one: Floats, other: Floats) -> Floats:
    """Hellinger distance between distributions over the last axis, which broadcast: 0 for equal ones, 1 for apart."""
    distance: Floats = np.sqrt(((np.sqrt(one) - np.sqrt(other)) ** 2).sum(axis=-1) / 2)
    return distance


def rarity(shares: Floats, counts: NDArray[np.int64] | Floats) -> Floats:
    """How rare the classes of each window are (N,): their mean self-information, as a share of the rarest class's.

    shares: (N, K). counts: (K,) pixels of each class in what is labelled. A class of frequency f has -log f; one that
    was never labelled counts as one pixel. Where all classes are alike in number all windows have 1.
    """
    known = np.maximum(np.asarray(counts, np.float64), 1)
    information = -np.log(known / known.sum())
    largest = information.max(initial=0.0)
    if len(known) < 2 or largest == 0:
        return np.ones(len(shares))
    mean: Floats = shares @ information / largest
    return mean


def choose(
    count: int,
    *,
    uncertainty: Floats,
    rarity: Floats,
    shares: Floats,
    labelled: Floats,
    places: Floats,
    apart: float,
    windows: tuple[NDArray[np.int64], Windows] | None = None,
    parts: tuple[str, ...] = PARTS,
) -> Choice:
    """The windows to label next, at most `count` of them, the first first.

    uncertainty, rarity: (N,) from 0 to 1. shares: (N, K) of the classes. labelled: (M, K) those of windows that have
    labels. places: (N, D) coordinates of the middles of the windows in any space in which the straight distance is that
    on the ground. apart: least distance of two chosen ones. windows: the scene of each (N,), and where in it: those of
    a scene that share pixels are not chosen together. parts: which of PARTS count; the others are told, and count as 1.
    Equal scores go to the earlier window.
    """
    diversity = np.ones(len(shares))
    if len(labelled):
        nearest = cKDTree(np.sqrt(labelled)).query(np.sqrt(shares))[0]
        diversity = np.minimum(diversity, nearest / np.sqrt(2))
    free = np.ones(len(shares), bool)
    fixed = np.ones(len(shares))
    fixed = fixed * uncertainty if "uncertainty" in parts else fixed
    fixed = fixed * rarity if "rarity" in parts else fixed
    chosen: list[int] = []
    scores, told = [], []
    while len(chosen) < count and free.any():
        score = fixed * diversity if "diversity" in parts else fixed
        # Where histograms repeat, all distances become 0: then what is fixed decides.
        best = int(np.lexsort((-fixed, -np.where(free, score, -1.0)))[0])
        chosen.append(best)
        scores.append(score[best])
        told.append(diversity[best])
        free &= np.linalg.norm(places - places[best], axis=1) >= apart
        free[best] = False
        if windows is not None:
            scene, inside = windows
            free &= (scene != scene[best]) | ~inside.touching(next(iter(inside.take([best]))))
        diversity = np.minimum(diversity, hellinger(shares, shares[best]))
    order = np.array(chosen, np.int64)
    return Choice(order, np.array(scores), uncertainty[order], rarity[order], np.array(told))
