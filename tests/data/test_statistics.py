import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rs_biformer.data.statistics import BandStatistics


def in_parts(image, counted, cuts):
    """Statistics of an image that is seen band of rows by band of rows."""
    total = BandStatistics.empty(len(image))
    for rows in np.split(np.arange(image.shape[1]), cuts):
        total = total.merged(BandStatistics.of(image[:, rows], counted[rows]))
    return total


@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(["uint8", "int16", "uint16", "float32"]),
    cuts=st.lists(st.integers(1, 22), unique=True, max_size=5).map(sorted),
    share=st.sampled_from([0.05, 0.6, 1.0]),
)
def test_statistics_in_parts_equal_numpy_on_the_whole(seed, dtype, cuts, share):
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 30, (3, 23, 17)).clip(0, 255).astype(dtype)
    counted = rng.random((23, 17)) < share
    counted[0, 0] = True
    found = in_parts(image, counted, cuts)
    assert found.count == counted.sum()
    np.testing.assert_allclose(found.mean, image[:, counted].mean(axis=1, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.std, image[:, counted].std(axis=1, dtype=np.float64), rtol=1e-9, atol=1e-9)


def test_a_large_offset_does_not_cost_the_deviation():
    heights = np.random.default_rng(0).normal(0, 0.01, (1, 400, 500)) + 1e6
    found = in_parts(heights, np.ones((400, 500), bool), range(50, 400, 50))
    assert found.std[0] == pytest.approx(heights.std(), rel=1e-6)


def test_pixels_that_do_not_count_may_hold_nan():
    image = np.array([[[1.0, np.nan], [3.0, np.inf]]], np.float32)
    found = BandStatistics.of(image, np.array([[True, False], [True, False]]))
    assert (found.count, found.mean[0], found.std[0]) == (2, 2.0, 1.0)


def test_no_pixels_are_the_neutral_element():
    some = BandStatistics.of(np.arange(8.0).reshape(2, 2, 2), np.ones((2, 2), bool))
    none = BandStatistics.of(np.zeros((2, 2, 2)), np.zeros((2, 2), bool))
    for merged in (some.merged(none), none.merged(some)):
        assert merged.count == 4
        np.testing.assert_array_equal(merged.mean, some.mean)
    assert none.std.tolist() == [0, 0]
