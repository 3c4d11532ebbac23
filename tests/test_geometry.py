"""Window arithmetic, checked exhaustively on small sizes and by properties on others."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rs_biformer.errors import ConfigError
from rs_biformer.geometry import Window, axis_weights, grid, reflect_pad, stride_of, window_starts

lengths = st.integers(1, 300)
sizes = st.integers(1, 80)
shares = st.floats(0, 0.95)
blends = st.sampled_from(["hann", "average", "center"])


@given(lengths, lengths, sizes, shares)
def test_windows_cover_every_pixel_and_lie_inside_the_scene(height, width, size, overlap):
    seen = np.zeros((height, width), int)
    for window in grid(height, width, size, stride_of(size, overlap)):
        assert window.row_stop <= height and window.col_stop <= width
        assert (window.height, window.width) == (min(size, height), min(size, width))
        seen[window.slices] += 1
    assert seen.min() >= 1


@given(lengths, sizes, shares)
def test_window_starts_rise_and_only_the_last_step_may_be_shorter(length, size, overlap):
    stride = stride_of(size, overlap)
    steps = np.diff(window_starts(length, size, stride))
    assert (steps > 0).all()
    assert (steps[:-1] == stride).all()
    assert (steps <= stride).all()


@pytest.mark.parametrize(
    ("length", "size", "stride", "starts"),
    [
        (1, 4, 2, (0,)),
        (4, 4, 4, (0,)),
        (5, 4, 4, (0, 1)),
        (8, 4, 4, (0, 4)),
        (9, 4, 4, (0, 4, 5)),
        (10, 4, 3, (0, 3, 6)),
        (11, 4, 3, (0, 3, 6, 7)),
    ],
)
def test_window_starts_worked_by_hand(length, size, stride, starts):
    assert window_starts(length, size, stride) == starts


def test_half_overlap_of_256_moves_by_128_and_no_overlap_by_256():
    assert stride_of(256, 0.5) == 128
    assert stride_of(256, 0.0) == 256
    assert stride_of(1, 0.9) == 1


@pytest.mark.parametrize(("size", "overlap"), [(0, 0.5), (256, 1.0), (256, -0.1)])
def test_an_impossible_window_or_overlap_is_refused(size, overlap):
    with pytest.raises(ConfigError):
        stride_of(size, overlap)


@given(lengths, sizes, shares, blends)
def test_blend_weights_sum_to_one_at_every_pixel(length, size, overlap, blend):
    stride = stride_of(size, overlap)
    total = np.zeros(length)
    for start, weight in zip(
        window_starts(length, size, stride), axis_weights(length, size, stride, blend), strict=True
    ):
        assert weight.dtype == np.float32 and len(weight) == min(size, length)
        assert (weight >= 0).all()
        total[start : start + len(weight)] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_centre_blending_gives_each_pixel_to_one_window():
    weights = axis_weights(10, 4, 2, "center")
    assert all(set(weight.tolist()) <= {0.0, 1.0} for weight in weights)
    np.testing.assert_array_equal(weights[1], [0, 1, 1, 0])


def test_hann_blending_is_symmetric_and_fades_towards_the_neighbour():
    first, middle, last = axis_weights(8, 4, 2, "hann")
    np.testing.assert_allclose(first, last[::-1])
    np.testing.assert_allclose(middle, middle[::-1])
    assert first[0] == first[1] == 1
    assert first[2] > first[3] > 0


def test_an_unknown_blend_is_refused():
    with pytest.raises(ConfigError, match="hann, average, center"):
        axis_weights(10, 4, 2, "cosine")  # type: ignore[arg-type]


windows = st.builds(Window, st.integers(0, 9), st.integers(0, 9), st.integers(1, 6), st.integers(1, 6))


@given(windows, windows)
def test_windows_intersect_exactly_when_they_share_a_pixel(one, other):
    canvas = np.zeros((16, 16), int)
    canvas[one.slices] += 1
    canvas[other.slices] += 1
    assert one.intersects(other) == other.intersects(one) == bool((canvas == 2).any())


def test_touching_windows_do_not_intersect():
    assert not Window(0, 0, 4, 4).intersects(Window(0, 4, 4, 4))


def test_a_grown_window_is_clipped_to_the_scene():
    assert Window(2, 0, 4, 4).grown(3, 8, 8) == Window(0, 0, 8, 7)


@pytest.mark.parametrize("parts", [(-1, 0, 1, 1), (0, -1, 1, 1), (0, 0, 0, 1), (0, 0, 1, 0)])
def test_a_window_outside_the_positive_quadrant_is_refused(parts):
    with pytest.raises(ConfigError):
        Window(*parts)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 30), st.integers(1, 30))
def test_reflection_padding_keeps_the_array_and_reaches_the_size(height, width, to_height, to_width):
    array = np.arange(2 * height * width).reshape(2, height, width)
    padded = reflect_pad(array, to_height, to_width)
    assert padded.shape == (2, max(height, to_height), max(width, to_width))
    np.testing.assert_array_equal(padded[:, :height, :width], array)
    if height > 1 and to_height > height:
        np.testing.assert_array_equal(padded[:, height, :width], array[:, height - 2])


def test_importing_geometry_and_schema_loads_no_torch():
    code = (
        "import sys, rs_biformer.geometry, rs_biformer.schema;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'rasterio')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
