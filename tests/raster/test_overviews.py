import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from rs_biformer.raster.overviews import halved

NODATA = 255


def squares(pixels: np.ndarray):
    """(row, column, the values of its square, row by row) of each pixel of the overview; edges count twice."""
    height, width = pixels.shape
    for row in range(0, height, 2):
        for col in range(0, width, 2):
            rows, cols = (row, min(row + 1, height - 1)), (col, min(col + 1, width - 1))
            yield row // 2, col // 2, [pixels[r, c] for r in rows for c in cols]


def mode_of(values: list[int], nodata: int | None) -> int:
    if values.count(nodata) > 2:
        return nodata
    counts = Counter(value for value in values if value != nodata)
    return max(counts, key=lambda value: (counts[value], -values.index(value)))


def mean_of(values: list[float], nodata: float | None) -> float:
    valid = [float(value) for value in values if value != nodata and not math.isnan(value)]
    return sum(valid) / len(valid) if len(valid) >= 2 else (math.nan if nodata is None else nodata)


few = st.sampled_from([0, 1, 2, 3, NODATA])


@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=few), st.sampled_from([NODATA, None])
)
def test_the_mode_is_the_most_frequent_class_of_each_square(pixels, nodata):
    small = halved(pixels[None], "mode", nodata)[0]
    assert small.shape == tuple(-(-side // 2) for side in pixels.shape)
    for row, col, values in squares(pixels):
        assert small[row, col] == mode_of(values, nodata)


@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=few), st.sampled_from([NODATA, None])
)
def test_the_mean_of_integers_is_that_of_the_valid_pixels_rounded_to_even(pixels, nodata):
    small = halved(pixels[None], "average", nodata)[0]
    assert small.dtype == np.uint8
    for row, col, values in squares(pixels):
        assert small[row, col] == round(mean_of(values, nodata))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_mean_of_floats_takes_nan_and_nodata_for_gaps(dtype):
    pixels = np.random.default_rng(0).random((2, 9, 8)).astype(dtype)
    pixels[0, :5, :3] = np.nan
    pixels[1, 2:, 5:] = -1
    small = halved(pixels, "average", -1)
    assert small.dtype == dtype
    for band in range(2):
        for row, col, values in squares(pixels[band]):
            expected = mean_of(values, -1)
            assert small[band, row, col] == pytest.approx(expected, rel=1e-3 if dtype == np.float16 else 1e-6)


@pytest.mark.parametrize("overviews", ["mode", "average"])
def test_the_outline_of_the_data_stays_within_half_a_pixel_through_many_levels(overviews):
    rows, cols = np.indices((1024, 1024))
    disc = (rows - 500) ** 2 + (cols - 520) ** 2 < 300**2
    pixels = np.where(disc, 3, NODATA).astype(np.uint8)[None]
    for level in range(1, 6):
        pixels = halved(pixels, overviews, NODATA)
        radius = math.sqrt((pixels != NODATA).sum() / math.pi)
        assert radius == pytest.approx(300 / 2**level, abs=0.5)
