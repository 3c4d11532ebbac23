from collections.abc import Iterator

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rs_biformer.raster.patches import find_patches, sieve
from rs_biformer.schema import IGNORE


def slabs(index: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    return (index[row : row + rows] for row in range(0, len(index), rows))


def sieved(index: np.ndarray, rows: int, min_area: float, row_areas: np.ndarray | None = None) -> np.ndarray:
    areas = np.ones(len(index)) if row_areas is None else row_areas
    return np.concatenate(list(sieve(slabs(index, rows), areas, min_area)))


def labelled(index: np.ndarray) -> tuple[np.ndarray, int]:
    """Patches by scipy, class by class."""
    labels, count = np.zeros(index.shape, int), 0
    for value in np.unique(index):
        one, more = ndimage.label(index == value)
        labels[one > 0] = one[one > 0] + count - 1
        count += more
    return labels, count


def sieved_by_hand(index: np.ndarray, areas: np.ndarray, min_area: float) -> np.ndarray:
    """What `sieve` promises, over the whole map, patch by patch."""
    labels, count = labelled(index)
    first = [np.flatnonzero(labels.ravel() == patch)[0] for patch in range(count)]
    classes = {patch: int(index.ravel()[pixel]) for patch, pixel in enumerate(first)}
    size = np.bincount(labels.ravel(), np.broadcast_to(areas[:, None], index.shape).ravel(), count)
    borders: dict[int, dict[int, int]] = {patch: {} for patch in range(count)}
    for one, other in [*pairs(labels), *pairs(labels.T)]:
        for a, b in ((one, other), (other, one)):
            borders[a][b] = borders[a].get(b, 0) + 1
    left = {patch for patch in range(count) if classes[patch] != IGNORE and size[patch] < min_area}
    given_to = dict(classes)
    while chosen := {patch: best for patch in left if (best := best_class(borders[patch], left, given_to)) is not None}:
        given_to.update(chosen)
        left -= set(chosen)
    for patch in sorted(left):
        group = {patch}
        while more := {other for one in group for other in borders[one] if other in left} - group:
            group |= more
        share = np.bincount([classes[one] for one in group], [size[one] for one in group])
        given_to[patch] = int(share.argmax()) if share.sum() >= min_area else IGNORE
    return np.array([given_to[patch] for patch in range(count)], np.uint8)[labels]


def pairs(labels: np.ndarray) -> Iterator[tuple[int, int]]:
    above, below = labels[:-1].ravel(), labels[1:].ravel()
    return zip(above[above != below].tolist(), below[above != below].tolist(), strict=True)


def best_class(border: dict[int, int], left: set[int], classes: dict[int, int]) -> int | None:
    score: dict[int, int] = {}
    for other, length in border.items():
        if other not in left and classes[other] != IGNORE:
            score[classes[other]] = score.get(classes[other], 0) + length
    return min(score, key=lambda value: (-score[value], value)) if score else None


def coarse(seed: int, height: int, width: int, scale: int, values: list[int]) -> np.ndarray:
    cells = np.random.default_rng(seed).choice(values, (-(-height // scale), -(-width // scale)))
    return np.repeat(np.repeat(cells, scale, 0), scale, 1)[:height, :width].astype(np.uint8)


@given(seed=st.integers(0, 10_000), height=st.integers(1, 12), width=st.integers(1, 12), scale=st.integers(1, 3))
def test_patches_are_those_of_scipy(seed, height, width, scale):
    index = coarse(seed, height, width, scale, [0, 1, IGNORE])
    patches = find_patches(index)
    labels, count = labelled(index)
    ours = patches.at(np.arange(index.size)).reshape(index.shape)
    assert len(patches.classes) == count == len(set(zip(ours.ravel().tolist(), labels.ravel().tolist(), strict=True)))
    assert np.array_equal(patches.classes[ours], index)
    assert patches.lengths.sum() == index.size


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    scale=st.integers(1, 3),
    rows=st.integers(1, 9),
    min_area=st.integers(1, 40),
    masked=st.booleans(),
    uneven=st.booleans(),
)
def test_the_sieve_is_that_of_the_whole_map(seed, height, width, scale, rows, min_area, masked, uneven):
    index = coarse(seed, height, width, scale, [0, 1, 2, IGNORE] if masked else [0, 1, 2])
    areas = np.random.default_rng(seed).integers(1, 4, height).astype(float) if uneven else np.ones(height)
    found = sieved(index, rows, min_area, areas)
    assert np.array_equal(found, sieved_by_hand(index, areas, min_area))
    labels, count = labelled(found)
    size = np.bincount(labels.ravel(), np.repeat(areas, width), count)
    assert (size[np.unique(labels[found != IGNORE])] >= min_area).all()
    assert (found[index == IGNORE] == IGNORE).all()


@given(seed=st.integers(0, 10_000))
@example(seed=0)
def test_a_sieve_of_nothing_changes_nothing(seed):
    index = coarse(seed, 15, 11, 2, [0, 1, IGNORE])
    assert np.array_equal(sieved(index, 4, 1.0), index)


def test_a_small_patch_goes_to_the_longest_border_not_to_the_largest_neighbour():
    index = np.zeros((12, 12), np.uint8)
    index[8:] = 1
    index[6:8, 5:7] = 2  # two edges of class 1, six of class 0
    index[5:8, 3:5] = index[5:8, 7:9] = 1  # and now four more of class 1
    assert (sieved(index, 5, 10)[6:8, 5:7] == 1).all()


def test_a_band_does_not_wait_for_patches_that_are_large_already():
    index = np.zeros((40, 8), np.uint8)
    index[:, 4:] = 1  # both patches reach through all slabs
    taken: list[int] = []

    def source() -> Iterator[np.ndarray]:
        for number, slab in enumerate(slabs(index, 4)):
            taken.append(number)
            yield slab

    next(sieve(source(), np.ones(40), 16))
    assert taken == [0]


def test_an_island_of_small_patches_becomes_one_patch_or_goes():
    index = np.full((9, 9), IGNORE, np.uint8)
    index[2:5, 2:4], index[2:5, 4] = 1, 2
    assert (sieved(index, 2, 9)[2:5, 2:5] == 1).all()
    assert (sieved(index, 2, 10) == IGNORE).all()
