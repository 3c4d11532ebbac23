"""Which windows to label next: the choice against loops and figures worked by hand."""

from math import log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rs_biformer.data.acquisition import PARTS, choose, class_shares, hellinger, rarity
from rs_biformer.geometry import Windows


def everywhere(count):
    """Places so far apart that distance never matters."""
    return np.arange(count)[:, None] * 1e6


def test_hellinger_is_nothing_for_equal_classes_and_one_for_classes_apart():
    one = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.36, 0.64, 0.0]])
    assert hellinger(one[0], one).tolist() == pytest.approx([0, 1, sqrt(1 - (sqrt(0.18) + sqrt(0.32)))])


def test_a_class_that_is_seldom_labelled_makes_a_window_rare():
    shares = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    information = [-log(0.9), -log(0.09), -log(0.01)]
    expected = [i / information[2] for i in information[:2]]
    assert rarity(shares, np.array([900, 90, 10])).tolist() == pytest.approx([*expected, sum(expected) / 2, 1.0])


def test_a_class_that_was_never_labelled_is_rarest_and_equal_classes_are_all_rare():
    assert rarity(np.eye(2), np.array([100, 0])).tolist() == pytest.approx([log(1.01) / log(101), 1.0])
    assert rarity(np.eye(2), np.array([7, 7])).tolist() == [1.0, 1.0]
    assert rarity(np.ones((2, 1)), np.array([7])).tolist() == [1.0, 1.0]


def test_windows_without_pixels_have_no_shares():
    assert class_shares(np.array([[1, 3], [0, 0]])).tolist() == [[0.25, 0.75], [0.0, 0.0]]


@given(st.integers(1, 12), st.integers(0, 4), st.integers(2, 4), st.integers(0, 2**32 - 1))
def test_the_choice_is_that_of_a_loop_over_all_distances(windows, labelled, classes, seed):
    rng = np.random.default_rng(seed)
    shares, known = rng.dirichlet(np.ones(classes), windows), rng.dirichlet(np.ones(classes), labelled)
    uncertainty, rare = rng.random(windows), rng.random(windows)
    places = rng.random((windows, 2)) * 4
    found = choose(
        5, uncertainty=uncertainty, rarity=rare, shares=shares, labelled=known, places=places, apart=1.0
    ).chosen.tolist()

    def distance(one, other):
        return sqrt(sum((sqrt(a) - sqrt(b)) ** 2 for a, b in zip(one, other, strict=True)) / 2)

    expected = []
    while len(expected) < 5:
        scores = {}
        for number in range(windows):
            if number in expected:
                continue
            if any(np.hypot(*(places[number] - places[other])) < 1.0 for other in expected):
                continue
            others = [*known, *(shares[other] for other in expected)]
            diverse = min([1.0, *(distance(shares[number], other) for other in others)])
            scores[number] = uncertainty[number] * rare[number] * diverse
        if not scores:
            break
        expected.append(max(scores, key=scores.get))
    assert found == expected


def test_equal_scores_go_to_the_window_that_is_uncertain_and_then_to_the_earlier_one():
    shares = np.array([[1.0, 0.0]] * 4)
    found = choose(
        4,
        uncertainty=np.array([0.2, 0.9, 0.4, 0.4]),
        rarity=np.ones(4),
        shares=shares,
        labelled=shares[:1],  # nothing is new in any of them
        places=everywhere(4),
        apart=1.0,
    )
    assert found.chosen.tolist() == [1, 2, 3, 0] and found.diversity.tolist() == [0.0] * 4


@pytest.mark.parametrize("parts, expected", [(("uncertainty",), 0), (("rarity",), 1), (("diversity",), 2), (PARTS, 3)])
def test_parts_that_are_left_out_do_not_count(parts, expected):
    found = choose(
        1,
        uncertainty=np.array([1.0, 0.1, 0.1, 0.8]),
        rarity=np.array([0.1, 1.0, 0.1, 0.8]),
        shares=np.array([[0.9, 0.1], [0.9, 0.1], [0.0, 1.0], [0.3, 0.7]]),
        labelled=np.array([[1.0, 0.0]]),
        places=everywhere(4),
        apart=1.0,
        parts=parts,
    )
    assert found.chosen.tolist() == [expected]


def test_windows_of_one_scene_that_share_pixels_are_not_chosen_together():
    windows = Windows(*np.array([[0, 0, 8, 8], [0, 7, 8, 8], [0, 8, 8, 8], [0, 7, 8, 8]]).T)
    found = choose(
        4,
        uncertainty=np.array([1.0, 0.9, 0.8, 0.7]),
        rarity=np.ones(4),
        shares=np.full((4, 2), 0.5),
        labelled=np.zeros((0, 2)),
        places=everywhere(4),
        apart=0.0,
        windows=(np.array([0, 0, 0, 1]), windows),
    )
    assert found.chosen.tolist() == [0, 2, 3]
