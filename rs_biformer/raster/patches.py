"""Connected patches of a class map that comes in slabs of rows: their labels, and the sieve that absorbs small ones.

Pixels that share an edge and a class are one patch. A slab is kept as runs (stretches of one class in one row), of
which there are far fewer than pixels. Masked pixels hold IGNORE and form patches like any other class; whoever uses
the patches leaves them out.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rs_biformer.components import components
from rs_biformer.schema import IGNORE

_CLASSES = 256


@dataclass(frozen=True)
class Patches:
    """The patches of one slab (h, w), numbered from 0.

    starts: flat index of the first pixel of each run, ascending. numbers: the patch of each run. classes: class index
    per patch. contacts (3, n): upper run, lower run and pixels in common of each pair of runs one above the other.
    """

    shape: tuple[int, int]
    starts: NDArray[np.int64]
    numbers: NDArray[np.int64]
    classes: NDArray[np.uint8]
    contacts: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Pixels per run."""
        return np.diff(self.starts, append=self.shape[0] * self.shape[1])

    def at(self, pixels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Patch of the pixels with these flat indices."""
        return self.numbers[np.searchsorted(self.starts, pixels, "right") - 1]

    def row(self, row: int) -> NDArray[np.int64]:
        """Patch of each pixel of a row (w,); -1 is the last row."""
        first = (row % self.shape[0]) * self.shape[1]
        return self.at(np.arange(first, first + self.shape[1]))


def find_patches(values: NDArray[np.uint8]) -> Patches:
    """The patches of a slab of class indices (h, w)."""
    height, width = values.shape
    begins = np.ones((height, width), bool)
    np.not_equal(values[:, 1:], values[:, :-1], out=begins[:, 1:])
    starts = np.flatnonzero(begins)
    # Between two neighbouring rows the pair (upper run, lower run) changes where either of them begins.
    pixels = np.flatnonzero(begins[1:] | begins[:-1])
    upper = np.searchsorted(starts, pixels, "right") - 1
    lower = np.searchsorted(starts, pixels + width, "right") - 1
    contacts = np.stack([upper, lower, np.diff(pixels, append=(height - 1) * width)])
    of_run = values.ravel()[starts]
    same = of_run[upper] == of_run[lower]
    count, numbers = components(upper[same], lower[same], len(starts))
    classes = np.empty(count, np.uint8)
    classes[numbers] = of_run
    return Patches((height, width), starts, numbers, classes, contacts)


def sum_by(numbers: NDArray[np.int64], values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Sum of the values of each number 0 .. count - 1."""
    return np.bincount(numbers, values, count).astype(np.float64)  # of nothing it counts, in integers


@dataclass(frozen=True)
class Merge:
    """A slab's patches merged with those that reach the slab from above, which are `known` and come first.

    part: the merged patch of each of the two lots together. classes: class index per merged patch. growing: whether
    the next slab may add to it. last_row: merged patch of each pixel of the slab's last row. borders (3, n): merged
    patch above the seam, the one below, pixel edges (1) of each place where classes differ across the seam.
    """

    known: int
    part: NDArray[np.int64]
    classes: NDArray[np.uint8]
    growing: NDArray[np.bool_]
    last_row: NDArray[np.int64]
    borders: NDArray[np.int64]

    def total(self, known: NDArray[np.float64], new: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum per merged patch of a quantity, given for the known patches and for those of the slab."""
        return sum_by(self.part, np.concatenate([known, new]), len(self.classes))


def merge(classes: NDArray[np.uint8], above: NDArray[np.int64], patches: Patches, *, last: bool) -> Merge:
    """Join the patches of a slab to the known ones above it.

    classes: class index of the known patches. above: known patch of each pixel of the row above (w,); empty for the
    first slab. last: whether this is the last slab.
    """
    known = len(classes)
    classes = np.concatenate([classes, patches.classes])
    below = known + patches.row(0)[: len(above)]
    joined = classes[above] == classes[below]
    count, part = components(above[joined], below[joined], len(classes))
    of_part = np.empty(count, np.uint8)
    of_part[part] = classes
    last_row = part[known + patches.row(-1)]
    growing = np.zeros(count, bool)
    if not last:
        growing[last_row] = True
    borders = np.stack([part[above], part[below], np.ones_like(below)])[:, ~joined]
    return Merge(known, part, of_part, growing, last_row, borders)


def sieve(
    slabs: Iterable[NDArray[np.uint8]], row_areas: NDArray[np.float64], min_area: float
) -> Iterator[NDArray[np.uint8]]:
    """`sieved` for slabs of class indices (h, w)."""
    return sieved(map(find_patches, slabs), row_areas, min_area)


def sieved(slabs: Iterable[Patches], row_areas: NDArray[np.float64], min_area: float) -> Iterator[NDArray[np.uint8]]:
    """The slabs (h, w) of these patches without those smaller than `min_area`, each as soon as all of it is settled.

    A small patch takes the class with which it shares the longest border (of equal ones the lowest index). Only large
    neighbours count at first; small patches that touch none then join those absorbed before them, from the outside
    inwards. So what remains is at least `min_area` large. A group of small patches that touches nothing large becomes
    one patch of its commonest class if it is large enough together, and masked otherwise. Masked pixels stay masked
    and take no part. The result does not depend on the height of the slabs.

    slabs: from the top down, all of one width. row_areas: area of a pixel in each row of the whole
    map, in the unit of `min_area`. Memory: the runs of slabs that wait for a small patch, or for a group of them.
    """
    state = _Sieve(row_areas, min_area)
    for slab in slabs:
        state.add(slab)
        yield from state.settled()


class _Sieve:
    """The patches that may still grow or whose class is not settled (the table), and the slabs that wait for them.

    A code stands for a patch: its number in the table, or -1 - class once its class is settled.
    """

    def __init__(self, row_areas: NDArray[np.float64], min_area: float) -> None:
        self._row_areas, self._min_area = row_areas, min_area
        self._row = 0
        self._classes, self._areas = np.zeros(0, np.uint8), np.zeros(0)
        self._above = np.zeros(0, np.int64)  # number in the table of each pixel of the row above
        self._borders = np.zeros((3, 0), np.int64)  # an unsettled patch, its neighbour's code, pixel edges in common
        self._slabs: deque[tuple[tuple[int, int], NDArray[np.int64], NDArray[np.int64]]] = deque()  # lengths, codes

    def add(self, patches: Patches) -> None:
        rows = self._row + patches.starts // patches.shape[1]
        areas = sum_by(patches.numbers, patches.lengths * self._row_areas[rows], len(patches.classes))
        self._row += patches.shape[0]
        merged = merge(self._classes, self._above, patches, last=self._row == len(self._row_areas))
        inner = _neighbours(patches)
        inner[:2] = merged.part[merged.known + inner[:2]]
        old = self._borders
        old[0], old[1] = merged.part[old[0]], _codes(old[1], merged.part)
        new = np.concatenate([merged.borders, inner], axis=1)
        borders = np.concatenate([old, new, new[[1, 0, 2]]], axis=1)

        renumber, codes = self._settle(merged.classes, merged.total(self._areas, areas), merged.growing, borders)
        self._above = renumber[merged.last_row]
        self._slabs.append((patches.shape, patches.lengths, merged.known + patches.numbers))
        for _, _, of_run in self._slabs:
            unsettled = of_run >= 0
            of_run[unsettled] = codes[merged.part[of_run[unsettled]]]

    def settled(self) -> Iterator[NDArray[np.uint8]]:
        """The slabs at the head of the queue that wait for nothing any more."""
        while self._slabs and (self._slabs[0][2] < 0).all():
            shape, lengths, codes = self._slabs.popleft()
            yield np.repeat((-1 - codes).astype(np.uint8), lengths).reshape(shape)

    def _settle(
        self,
        classes: NDArray[np.uint8],
        areas: NDArray[np.float64],
        growing: NDArray[np.bool_],
        borders: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give every patch whose group of small patches grows no more its class; keep the rest in the table.

        Returns the new number in the table of each patch (of those that are in it) and the code of each patch.
        """
        small = (areas < self._min_area) & (classes != IGNORE)
        borders = borders[:, small[borders[0]]]
        borders[1] = _codes(borders[1], np.where(small, np.arange(len(classes)), -1 - classes.astype(np.int64)))
        borders = borders[:, borders[1] != -1 - IGNORE]
        inner = borders[:, borders[1] >= 0]
        count, group = components(inner[0], inner[1], len(classes))
        waits = small & (np.bincount(group, growing & small, count) > 0)[group]
        ready = small & ~waits
        classes = _absorb(ready, classes, areas, borders[:, ready[borders[0]]], group, self._min_area)

        kept = growing | waits
        renumber = np.cumsum(kept) - 1
        codes = np.where(waits, renumber, -1 - classes.astype(np.int64))
        borders = borders[:, waits[borders[0]]]
        borders[0], borders[1] = renumber[borders[0]], _codes(borders[1], renumber)
        self._classes, self._areas, self._borders = classes[kept], areas[kept], _summed(borders)
        return renumber, codes


def _codes(codes: NDArray[np.int64], of_patch: NDArray[np.int64]) -> NDArray[np.int64]:
    """Codes after a change of numbers; those of settled patches stay."""
    codes = codes.copy()
    codes[codes >= 0] = of_patch[codes[codes >= 0]]
    return codes


def _neighbours(patches: Patches) -> NDArray[np.int64]:
    """Pairs of different patches of a slab that share an edge, and the pixel edges they share: (3, n)."""
    upper, lower, lengths = patches.contacts
    right = np.flatnonzero(patches.starts % patches.shape[1])  # runs that have one to their left in the same row
    one = np.concatenate([patches.numbers[upper], patches.numbers[right - 1]])
    other = np.concatenate([patches.numbers[lower], patches.numbers[right]])
    borders = np.stack([one, other, np.concatenate([lengths, np.ones_like(right)])])
    return borders[:, one != other]


def _summed(borders: NDArray[np.int64]) -> NDArray[np.int64]:
    """One column for each pair of patches."""
    order = np.lexsort((borders[1], borders[0]))
    borders = borders[:, order]
    if borders.shape[1] == 0:
        return borders
    first = np.flatnonzero(np.append(True, (np.diff(borders[:2], axis=1) != 0).any(axis=0)))
    return np.concatenate([borders[:2, first], np.add.reduceat(borders[2], first)[None]])


def _absorb(
    ready: NDArray[np.bool_],
    classes: NDArray[np.uint8],
    areas: NDArray[np.float64],
    borders: NDArray[np.int64],
    group: NDArray[np.int64],
    min_area: float,
) -> NDArray[np.uint8]:
    """New class of each patch: those that are `ready` take one as `sieve` says, the others keep theirs."""
    classes, left = classes.copy(), ready.copy()
    while borders.shape[1]:
        patch, code, length = borders
        code = _codes(code, np.where(left, np.arange(len(classes)), -1 - classes.astype(np.int64)))
        known = code < 0
        if not known.any():
            break
        score = _summed(np.stack([patch[known], -1 - code[known], length[known]]))
        score = score[:, np.lexsort((score[1], -score[2], score[0]))]
        best = score[:, np.append(True, np.diff(score[0]) != 0)]
        classes[best[0]], left[best[0]] = best[1], False
        borders = borders[:, left[patch]]
    lonely = np.flatnonzero(left)
    if len(lonely):
        place, row = np.unique(group[lonely], return_inverse=True)
        share = np.bincount(row * _CLASSES + classes[lonely], areas[lonely], len(place) * _CLASSES)
        share = share.reshape(-1, _CLASSES)
        commonest = np.where(share.sum(axis=1) >= min_area, share.argmax(axis=1), IGNORE)
        classes[lonely] = commonest[row]
    return classes
