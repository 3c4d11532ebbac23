import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sk

from rs_biformer.errors import ConfigError
from rs_biformer.evaluation import confusion as ours
from rs_biformer.evaluation.metrics import Scores
from rs_biformer.schema import IGNORE


@st.composite
def maps(draw):
    """Label and prediction of one shape with absent classes, IGNORE in the label and holes in the prediction."""
    classes = draw(st.integers(1, 7))
    values = st.sampled_from([*range(classes), IGNORE])
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    return classes, draw(arrays(np.uint8, shape, elements=values)), draw(arrays(np.uint8, shape, elements=values))


@settings(max_examples=150)
@given(maps())
def test_every_figure_equals_that_of_scikit_learn(case):
    classes, label, prediction = case
    counts = ours.count(label, prediction, classes)
    truth, found = label[label != IGNORE], prediction[label != IGNORE]
    assert counts.ignored == (label == IGNORE).sum()
    assert counts.evaluated == truth.size
    if not truth.size:
        assert np.isnan(ours.overall_accuracy(counts)) and np.isnan(ours.iou(counts)).all()
        return
    names = list(range(classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of absent classes, which are the point here
        # IGNORE as one more label is how scikit-learn is told of a missing prediction.
        table = sk.confusion_matrix(truth, found, labels=[*names, IGNORE])
        precision, recall, f1, support = sk.precision_recall_fscore_support(
            truth, found, labels=names, average=None, zero_division=np.nan
        )
        iou = sk.jaccard_score(truth, found, labels=names, average=None, zero_division=0)
        kappa = sk.cohen_kappa_score(truth, found, labels=[*names, IGNORE])
    np.testing.assert_array_equal(counts.matrix, table[:classes, :classes])
    np.testing.assert_array_equal(counts.unpredicted, table[:classes, classes])
    np.testing.assert_array_equal(counts.support, support)
    present = np.isin(names, truth) | np.isin(names, found)
    np.testing.assert_allclose(ours.precision(counts), precision, atol=1e-12)
    np.testing.assert_allclose(ours.recall(counts), recall, atol=1e-12)
    np.testing.assert_allclose(ours.f1(counts)[present], np.nan_to_num(f1[present]), atol=1e-12)
    np.testing.assert_allclose(ours.iou(counts)[present], iou[present], atol=1e-12)
    assert np.isnan(ours.iou(counts)[~present]).all() and np.isnan(ours.f1(counts)[~present]).all()
    assert ours.overall_accuracy(counts) == pytest.approx(sk.accuracy_score(truth, found), abs=1e-12)
    assert ours.kappa(counts) == pytest.approx(kappa, abs=1e-12, nan_ok=True)
    weighted = (iou * support).sum() / truth.size
    assert ours.frequency_weighted_iou(counts) == pytest.approx(weighted, abs=1e-12)
    scores = Scores(tuple("abcdefg"[:classes]), tuple(names), counts)
    assert scores.mean_iou == pytest.approx(iou[present].mean(), abs=1e-12)
    assert scores.mean_f1 == pytest.approx(np.nan_to_num(f1[present]).mean(), abs=1e-12)


def test_a_three_by_three_worked_by_hand():
    counts = ours.Confusion(np.array([[5, 1, 0], [2, 3, 1], [0, 0, 8]]), np.zeros(3, np.int64))
    np.testing.assert_allclose(ours.iou(counts), [5 / 8, 3 / 7, 8 / 9])
    np.testing.assert_allclose(ours.f1(counts), [10 / 13, 6 / 10, 16 / 17])
    assert ours.overall_accuracy(counts) == 16 / 20
    chance = (6 * 7 + 6 * 4 + 8 * 9) / 400
    assert ours.kappa(counts) == pytest.approx((0.8 - chance) / (1 - chance))


def test_a_hole_in_the_prediction_lowers_accuracy_and_recall_but_no_precision():
    label = np.array([[0, 0, 0, 1]], np.uint8)
    whole = ours.count(label, np.array([[0, 0, 0, 1]], np.uint8), 2)
    holed = ours.count(label, np.array([[0, 0, IGNORE, 1]], np.uint8), 2)
    assert ours.overall_accuracy(whole) == 1 and ours.overall_accuracy(holed) == 0.75
    np.testing.assert_allclose(ours.recall(holed), [2 / 3, 1])
    np.testing.assert_array_equal(ours.precision(holed), [1, 1])


def test_the_counts_of_two_halves_add_up_to_the_whole(monkeypatch):
    rng = np.random.default_rng(0)
    label, prediction = rng.choice([0, 1, 2, 3, IGNORE], (2, 40, 30)).astype(np.uint8)
    whole = ours.count(label, prediction, 4)
    monkeypatch.setattr(ours, "_CHUNK", 7)
    halves = ours.count(label[:13], prediction[:13], 4) + ours.count(label[13:], prediction[13:], 4)
    np.testing.assert_array_equal(halves.matrix, whole.matrix)
    np.testing.assert_array_equal(halves.unpredicted, whole.unpredicted)
    assert halves.ignored == whole.ignored and whole.matrix.dtype == np.int64


def test_a_stack_gives_the_figures_of_each_of_its_confusions():
    rng = np.random.default_rng(4)
    stack = ours.Confusion(rng.integers(0, 5, (7, 3, 3)), rng.integers(0, 2, (7, 3)))
    stack.matrix[3] = stack.unpredicted[3] = 0  # nothing labelled
    single = [ours.Confusion(matrix, missing) for matrix, missing in zip(stack.matrix, stack.unpredicted, strict=True)]
    for figure in (
        *(ours.iou, ours.f1, ours.precision, ours.recall),
        *(ours.overall_accuracy, ours.kappa, ours.frequency_weighted_iou),
    ):
        np.testing.assert_array_equal(figure(stack), np.array([figure(one) for one in single]))
    total = sum(single, start=ours.empty(3))
    np.testing.assert_array_equal(stack.total.matrix, total.matrix)
    np.testing.assert_array_equal(stack.total.unpredicted, total.unpredicted)


def test_more_classes_than_fit_a_byte_of_pairs_are_counted_too():
    rng = np.random.default_rng(5)
    label, found = rng.integers(0, 40, (2, 90, 80)).astype(np.uint8)
    np.testing.assert_array_equal(
        ours.count(label, found, 40).matrix, sk.confusion_matrix(label.ravel(), found.ravel(), labels=range(40))
    )


def test_kappa_survives_counts_whose_squares_overflow_64_bits():
    counts = ours.Confusion(np.array([[4, 1], [1, 4]]) * 10**17, np.zeros(2, np.int64))
    assert ours.kappa(counts) == pytest.approx(0.6)


@pytest.mark.parametrize("what", ["label", "prediction"])
def test_an_index_beyond_the_classes_is_refused_by_name(what):
    right, wrong = np.zeros((2, 2), np.uint8), np.full((2, 2), 3, np.uint8)
    pair = (wrong, right) if what == "label" else (right, wrong)
    with pytest.raises(ConfigError, match=f"the {what} holds class index 3; with 3 classes it may hold 0 to 2"):
        ours.count(*pair, 3)


def test_arrays_of_two_shapes_are_refused():
    with pytest.raises(ConfigError, match="differ in shape"):
        ours.count(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), 2)


def test_counts_of_a_matrix_alone_leave_nothing_out():
    counts = ours.Confusion(np.array([[3, 1], [0, 2]]), np.zeros(2, int))
    assert (counts.ignored, counts.eroded, counts.unknown, counts.padded, counts.evaluated) == (0, 0, 0, 0, 6)


@pytest.mark.parametrize(
    ("matrix", "unpredicted"),
    [((2, 3), (2,)), ((3, 2), (2,)), ((2, 2), (3,)), ((5, 2, 2), (2,)), ((4, 5, 3, 3), (4, 5, 2)), ((), ())],
)
def test_counts_of_shapes_that_do_not_go_together_are_refused(matrix, unpredicted):
    with pytest.raises(ConfigError, match="a confusion needs a square matrix"):
        ours.Confusion(np.zeros(matrix, np.int64), np.zeros(unpredicted, np.int64))


def test_a_grid_of_blocks_is_a_stack_too():
    counts = ours.empty(3, 4, 5)
    assert counts.matrix.shape == (4, 5, 3, 3) and counts.unpredicted.shape == (4, 5, 3)
    assert counts.total.matrix.shape == (3, 3) and counts.total.unpredicted.shape == (3,)


def test_every_count_of_two_scenes_is_added():
    one, other = ours.empty(1), ours.empty(1)
    both = replace(one, ignored=7, eroded=1, unknown=2, padded=3) + replace(
        other, ignored=70, eroded=10, unknown=20, padded=30
    )
    assert (both.ignored, both.eroded, both.unknown, both.padded) == (77, 11, 22, 33)
