import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rs_biformer.data.statistics import BandStatistics, Extremes


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


def extremes(image, parts=1):
    """Of an image (C, h, w), whose frame is its rim, in parts merged."""
    rim = np.ones(image.shape[1:], bool)
    rim[1:-1, 1:-1] = False
    valid = np.ones(image.shape[1:], bool)
    found = Extremes.empty(len(image))
    for rows in np.array_split(np.arange(image.shape[1]), parts):
        found = found.merged(Extremes.of(image[:, rows], valid[rows], rim[rows]))
    return found


@pytest.mark.parametrize("parts", [1, 3, 40])
@pytest.mark.parametrize(
    ("dtype", "value"), [("float32", -3.4028235e38), ("float32", -9999), ("int16", -32768), ("uint16", 65535)]
)
def test_a_value_far_from_all_others_that_many_pixels_hold_stands_out(parts, dtype, value):
    rng = np.random.default_rng(0)
    image = rng.normal(300, 10, (2, 40, 50)).round().astype(dtype)
    assert extremes(image, parts).outliers() == []
    image[1, 3:7] = np.dtype(dtype).type(value)
    ((number, found, share),) = extremes(image, parts).outliers()
    assert (number, np.dtype(dtype).type(found), share) == (1, np.dtype(dtype).type(value), 0.1)
    assert extremes(np.full((1, 4, 5), 300.0, np.float32), 1).outliers() == []


def test_masks_heights_of_nothing_and_bright_roofs_do_not_stand_out():
    rng = np.random.default_rng(0)
    mask = (rng.random((1, 40, 50)) < 0.3).astype(np.float32)
    ndsm = np.where(rng.random((1, 40, 50)) < 0.8, 0, rng.random((1, 40, 50)) * 900).astype(np.float32)
    bright = np.where(rng.random((1, 40, 50)) < 0.05, 255, rng.normal(90, 10, (1, 40, 50))).astype(np.uint8)
    terrace = np.where(np.arange(40)[:, None] < 3, 300, 302 + np.zeros((1, 40, 50))).astype(np.float32)
    assert [extremes(image).outliers() for image in (mask, ndsm, bright, terrace)] == [[], [], [], []]


@pytest.mark.parametrize("white", [False, True])
def test_a_blank_frame_is_told_from_dark_pixels(white):
    image = np.random.default_rng(0).integers(1, 255, (3, 40, 50), np.uint8)
    image[:, 10:25, 10:40] = 255 * white
    assert extremes(image, 2).frames() == [], "a lake is no frame"
    image[:, :10] = 255 * white
    ((found, share, rim),) = extremes(image, 2).frames()
    assert found is white
    assert share == (15 * 30 + 500) / 2000
    assert rim == (50 + 2 * 9) / (2 * 50 + 2 * 38)
