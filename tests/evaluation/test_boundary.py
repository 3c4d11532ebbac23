import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rs_biformer.errors import ConfigError
from rs_biformer.evaluation.boundary import count_boundaries, halo, no_boundaries, outlines
from rs_biformer.geometry import Window
from rs_biformer.schema import IGNORE


def whole(index: np.ndarray) -> tuple[slice, slice]:
    return slice(0, index.shape[0]), slice(0, index.shape[1])


def outline_by_hand(index: np.ndarray) -> np.ndarray:
    """Every pixel asks the four beside it."""
    result = np.full(index.shape, IGNORE, np.uint8)
    for row, col in np.ndindex(index.shape):
        for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            near = row + down, col + right
            inside = 0 <= near[0] < index.shape[0] and 0 <= near[1] < index.shape[1]
            if inside and IGNORE not in (index[row, col], index[near]) and index[near] != index[row, col]:
                result[row, col] = index[row, col]
    return result


def by_scipy(label: np.ndarray, prediction: np.ndarray, classes: int, distance: float) -> tuple[list, list]:
    """Outline pixels of the label and of the prediction within a distance, from Euclidean distance transforms."""
    prediction = np.where(label == IGNORE, IGNORE, prediction)
    truth, found = outline_by_hand(label), outline_by_hand(prediction)
    hits: tuple[list, list] = ([], [])
    for number in range(classes):
        for kept, (these, others) in zip(hits, ((truth, found), (found, truth)), strict=True):
            if not (others == number).any():
                kept.append(0)
                continue
            away = ndimage.distance_transform_edt(others != number)
            kept.append(int(((these == number) & (away <= distance + 1e-9)).sum()))
    return hits


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), scale=st.integers(1, 6), classes=st.integers(1, 4))
def test_counts_equal_those_of_scipys_distance_transform(seed, scale, classes):
    rng = np.random.default_rng(seed)
    coarse = rng.choice([*range(classes), IGNORE], (2, 6, 7)).astype(np.uint8)
    label, prediction = coarse.repeat(scale, 1).repeat(scale, 2)
    distances = (0.0, 1.0, 1.5, 3.0)
    counts = count_boundaries(label, prediction, whole(label), classes, distances)
    for place, distance in enumerate(distances):
        of_label, of_prediction = by_scipy(label, prediction, classes, distance)
        assert counts.label_hits[place].tolist() == of_label
        assert counts.predicted_hits[place].tolist() == of_prediction
    np.testing.assert_array_equal(outlines(label), outline_by_hand(label))


def test_windows_with_a_halo_add_up_to_the_whole():
    rng = np.random.default_rng(1)
    label, prediction = rng.choice([0, 1, 2, IGNORE], (2, 12, 15)).astype(np.uint8).repeat(5, 1).repeat(4, 2)
    distances = (1.0, 2.5, 7.0)
    total = no_boundaries(3, distances)
    for row in range(0, 60, 17):
        for col in range(0, 60, 23):
            window = Window(row, col, min(17, 60 - row), min(23, 60 - col))
            outer = window.grown(halo(distances), 60, 60)
            inner = (
                slice(window.row - outer.row, window.row_stop - outer.row),
                slice(window.col - outer.col, window.col_stop - outer.col),
            )
            total += count_boundaries(label[outer.slices], prediction[outer.slices], inner, 3, distances)
    once = count_boundaries(label, prediction, whole(label), 3, distances)
    for part in ("label", "predicted", "label_hits", "predicted_hits"):
        np.testing.assert_array_equal(getattr(total, part), getattr(once, part))
    assert once.label.min() > 0


def test_an_edge_moved_by_two_pixels_is_found_at_two_and_not_at_one():
    label = np.zeros((10, 20), np.uint8)
    label[:, 10:] = 1
    moved = label.copy()
    moved[:, 10:12] = 0
    counts = count_boundaries(label, moved, whole(label), 2, (1.0, 2.0))
    np.testing.assert_array_equal(counts.f1, [[0, 0], [1, 1]])


def test_a_class_without_outlines_has_no_score_and_one_that_is_missed_has_zero():
    label = np.zeros((8, 8), np.uint8)
    label[:4] = 1
    missed = count_boundaries(label, np.zeros_like(label), whole(label), 3, (1.0,))
    np.testing.assert_array_equal(missed.f1, [[0, 0, np.nan]])
    np.testing.assert_array_equal(missed.recall, [[0, 0, np.nan]])
    assert np.isnan(missed.precision).all()


def test_holes_in_the_prediction_make_no_outline_and_find_none():
    label = np.zeros((8, 8), np.uint8)
    label[:4] = 1
    holed = np.where(np.arange(8)[:, None] == 4, np.uint8(IGNORE), label)
    counts = count_boundaries(label, holed, whole(label), 2, (5.0,))
    assert counts.predicted.tolist() == [0, 0] and counts.label.tolist() == [8, 8]


@pytest.mark.parametrize("distances", [(), (-1.0,), (65.0,)])
def test_distances_that_cannot_be_meant_are_refused(distances):
    with pytest.raises(ConfigError, match="give pixels from 0 to 64"):
        no_boundaries(2, distances)
