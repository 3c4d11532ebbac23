import warnings
from itertools import product

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from rs_biformer.errors import ConfigError
from rs_biformer.evaluation import confusion as figures
from rs_biformer.evaluation.confusion import Confusion
from rs_biformer.evaluation.resampling import (
    Resampling,
    bootstrap_weights,
    differences,
    headline,
    holm,
    intervals,
    resample,
)

RNG = np.random.default_rng(11)
AVERAGED = (0, 1, 2)


def pixels_of_units(units: int = 8, size: int = 60, right: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions (units, size) of three classes."""
    label = RNG.integers(0, 3, (units, size))
    return label, np.where(RNG.random((units, size)) < right, label, RNG.integers(0, 3, (units, size)))


def stack(label: np.ndarray, found: np.ndarray) -> Confusion:
    matrix = np.array([sk.confusion_matrix(t, p, labels=AVERAGED) for t, p in zip(label, found, strict=True)])
    return Confusion(matrix, np.zeros(matrix.shape[:2], np.int64))


def test_the_figures_of_a_draw_are_those_of_scikit_learn_on_its_pixels():
    label, found = pixels_of_units()
    (weights,) = bootstrap_weights(8, Resampling(samples=100))
    assert (weights.sum(axis=1) == 8).all()
    drawn = headline(resample(stack(label, found), weights), AVERAGED)
    for place in range(0, 100, 9):
        units = np.repeat(np.arange(8), weights[place].astype(int))
        truth, guess = label[units].ravel(), found[units].ravel()
        assert drawn["overall_accuracy"][place] == pytest.approx(sk.accuracy_score(truth, guess), abs=1e-12)
        assert drawn["kappa"][place] == pytest.approx(sk.cohen_kappa_score(truth, guess), abs=1e-12)
        iou = sk.jaccard_score(truth, guess, average=None)
        np.testing.assert_allclose(drawn["iou"][place], iou, atol=1e-12)
        assert drawn["mean_iou"][place] == pytest.approx(iou.mean(), abs=1e-12)
        assert drawn["mean_f1"][place] == pytest.approx(sk.f1_score(truth, guess, average="macro"), abs=1e-12)


def test_intervals_agree_with_scipys_bootstrap():
    label, found = pixels_of_units(units=60)
    low, high = intervals(stack(label, found), AVERAGED, Resampling(samples=9999))["overall_accuracy"]
    theirs = stats.bootstrap(
        ((label == found).mean(axis=1),), np.mean, n_resamples=9999, method="percentile", rng=0, vectorized=True
    ).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=2e-3)


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    inside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        quality = rng.normal(0.8, 0.05, 40).clip(0, 1)  # blocks differ: their pixels are not independent
        hits = rng.binomial(400, quality)
        matrix = np.zeros((40, 2, 2), np.int64)
        matrix[:, 0, 0], matrix[:, 0, 1] = hits, 400 - hits
        low, high = intervals(
            Confusion(matrix, np.zeros((40, 2), np.int64)), (0, 1), Resampling(samples=400, seed=seed)
        )["overall_accuracy"]
        inside += low <= 0.8 <= high
    assert 0.89 <= inside / 200 <= 0.99


def test_few_units_give_no_interval():
    low, high = intervals(stack(*pixels_of_units(units=4)), AVERAGED, Resampling())["mean_iou"]
    assert np.isnan(low) and np.isnan(high)


def test_a_class_that_a_draw_lacks_does_not_count_as_zero():
    matrix = np.zeros((12, 2, 2), np.int64)
    matrix[:, 0, 0], matrix[0, 1, 1] = 50, 10  # class 1 is in one unit alone, and always right
    low, high = intervals(Confusion(matrix, np.zeros((12, 2), np.int64)), (0, 1), Resampling())["iou"]
    np.testing.assert_array_equal([low, high], np.ones((2, 2)))
    never = intervals(Confusion(matrix[1:], np.zeros((11, 2), np.int64)), (0, 1), Resampling())["iou"]
    assert np.isnan(never[0][1]) and never[0][0] == 1


def test_all_swaps_of_few_units_give_scipys_exact_p():
    label, one = pixels_of_units(units=8)
    other = np.where(RNG.random(label.shape) < 0.1, RNG.integers(0, 3, label.shape), one)
    found = differences(stack(label, one), stack(label, other), AVERAGED, Resampling())["overall_accuracy"]
    theirs = stats.permutation_test(
        ((label == one).mean(axis=1), (label == other).mean(axis=1)),
        lambda x, y: x.mean() - y.mean(),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    assert found.value == pytest.approx(theirs.statistic, abs=1e-12)
    assert found.p == pytest.approx(theirs.pvalue, abs=1e-12)


def test_the_p_of_the_mean_iou_equals_a_loop_over_all_swaps():
    label, one = pixels_of_units(units=6, size=30)
    other = np.where(RNG.random(label.shape) < 0.3, RNG.integers(0, 3, label.shape), one)

    def apart(swap: np.ndarray) -> float:
        first, second = np.where(swap, other, one), np.where(swap, one, other)
        scores = [sk.jaccard_score(label.ravel(), guess.ravel(), average="macro") for guess in (first, second)]
        return abs(scores[0] - scores[1])

    observed = apart(np.zeros((6, 1), bool))
    reached = [apart(np.array(swap)[:, None]) >= observed - 1e-12 for swap in product([False, True], repeat=6)]
    found = differences(stack(label, one), stack(label, other), AVERAGED, Resampling())["mean_iou"]
    assert found.p == np.mean(reached)


def test_random_swaps_come_near_the_exact_p():
    label, one = pixels_of_units(units=10)
    other = np.where(RNG.random(label.shape) < 0.05, RNG.integers(0, 3, label.shape), one)
    exact = differences(stack(label, one), stack(label, other), AVERAGED, Resampling(samples=1024))
    drawn = differences(stack(label, one), stack(label, other), AVERAGED, Resampling(samples=1023, seed=5))
    assert drawn["mean_iou"].p == pytest.approx(exact["mean_iou"].p, abs=0.06)
    assert drawn["mean_iou"].p != exact["mean_iou"].p


def test_equal_maps_do_not_differ_and_much_better_ones_do():
    label, good = pixels_of_units(units=40, size=400, right=0.9)
    bad = np.where(RNG.random(label.shape) < 0.2, RNG.integers(0, 3, label.shape), good)
    same = differences(stack(label, good), stack(label, good), AVERAGED, Resampling())["mean_iou"]
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    better = differences(stack(label, good), stack(label, bad), AVERAGED, Resampling())["mean_iou"]
    assert better.low > 0 and better.p < 0.001
    worse = differences(stack(label, bad), stack(label, good), AVERAGED, Resampling())["mean_iou"]
    assert (worse.value, worse.p) == (-better.value, better.p)
    assert (worse.low, worse.high) == pytest.approx((-better.high, -better.low), abs=1e-12)


def test_under_no_difference_p_is_below_a_twentieth_about_one_time_in_twenty():
    alarms = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        hits = rng.binomial(100, rng.normal(0.8, 0.05, (1, 20)).clip(0, 1), (2, 20))
        matrix = np.zeros((2, 20, 2, 2), np.int64)
        matrix[..., 0, 0], matrix[..., 0, 1] = hits, 100 - hits
        pair = [Confusion(part, np.zeros((20, 2), np.int64)) for part in matrix]
        alarms += differences(*pair, (0, 1), Resampling(samples=200, seed=seed))["overall_accuracy"].p < 0.05
    assert 2 <= alarms <= 20


def test_holm_raises_p_as_worked_by_hand():
    np.testing.assert_allclose(holm(np.array([0.01, np.nan, 0.04, 0.03])), [0.03, np.nan, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.5, 0.9])), [1, 1])
    assert np.isnan(holm(np.array([np.nan]))).all()


def test_the_same_seed_gives_the_same_figures_and_batches_do_not_matter(monkeypatch):
    units = stack(*pixels_of_units(units=9))
    once = intervals(units, AVERAGED, Resampling(samples=150))
    monkeypatch.setattr("rs_biformer.evaluation.resampling._CELLS", 100)
    np.testing.assert_array_equal(intervals(units, AVERAGED, Resampling(samples=150))["iou"], once["iou"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "pixels"}, "use blocks or scenes"),
        ({"samples": 10}, "use 100 to 100,000 samples"),
        ({"level": 1.0}, "a share below 1"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Resampling(**options)


def test_nothing_warns_where_figures_are_undefined():
    empty = Confusion(np.zeros((6, 2, 2), np.int64), np.zeros((6, 2), np.int64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(intervals(empty, (0, 1), Resampling())["mean_iou"][0])
        assert np.isnan(differences(empty, empty, (0, 1), Resampling())["mean_iou"].p)
    assert np.isnan(figures.overall_accuracy(empty)).all()
