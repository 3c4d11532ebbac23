"""Window arithmetic, checked exhaustively on small sizes and by properties on others."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rs_biformer.errors import ConfigError
from rs_biformer.geometry import (
    Window,
    Windows,
    axis_weights,
    cells,
    cover,
    grid,
    reflect_pad,
    stride_of,
    window_starts,
)

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


def test_hann_weights_are_squared_sines():
    high, low = np.sin(3 * np.pi / 8) ** 2, np.sin(np.pi / 8) ** 2
    first, last = axis_weights(6, 4, 2, "hann")
    np.testing.assert_allclose(first, [1, 1, high, low], atol=1e-7)
    np.testing.assert_allclose(last, [low, high, 1, 1], atol=1e-7)


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


SCENE = (40, 50)
windows = st.builds(Window, st.integers(0, 30), st.integers(0, 40), st.integers(1, 10), st.integers(1, 10))
steps = st.integers(1, 12)


def mask(*parts: Window) -> np.ndarray:
    """How many of the windows lie over each pixel of a scene: what window arithmetic must agree with."""
    over = np.zeros(SCENE, int)
    for part in parts:
        over[part.slices] += 1
    return over


@given(windows, windows)
def test_the_intersection_is_what_both_hold(one, other):
    common = one.intersection(other)
    both = (mask(one) > 0) & (mask(other) > 0)
    assert np.array_equal(mask(*[common] if common else []) > 0, both)
    assert (common is not None) == one.intersects(other) == bool(both.any())
    assert common == other.intersection(one)


@given(windows, windows)
def test_within_finds_the_same_pixels_in_an_array_of_the_frame(one, other):
    pixels = np.arange(SCENE[0] * SCENE[1]).reshape(SCENE)
    common = one.intersection(other)
    if common:
        assert np.array_equal(pixels[one.slices][common.within(one)], pixels[common.slices])


@given(windows, st.integers(-60, 60), st.integers(-60, 60))
def test_a_moved_window_keeps_its_size_and_stays_in_the_scene(window, down, right):
    moved = window.moved(down, right, *SCENE)
    assert (moved.height, moved.width) == (window.height, window.width)
    assert moved.row_stop <= SCENE[0] and moved.col_stop <= SCENE[1]
    assert moved.row == window.row + down or moved.row in (0, SCENE[0] - window.height)
    assert moved.col == window.col + right or moved.col in (0, SCENE[1] - window.width)


@given(windows, steps, steps)
def test_an_aligned_window_is_the_cells_that_the_window_touches(window, rows, cols):
    aligned = window.aligned(rows, cols, *SCENE)
    touched = [cell for cell in cover(Window(0, 0, *SCENE), rows, cols) if cell.intersects(window)]
    assert np.array_equal(mask(aligned), mask(*touched))
    assert list(cover(aligned, rows, cols)) == touched


@given(windows, steps, st.one_of(st.none(), steps))
def test_rectangles_cover_an_area_once_and_are_as_large_as_they_may_be(area, rows, cols):
    parts = list(cover(area, rows, cols))
    assert np.array_equal(mask(*parts), mask(area))
    assert parts == sorted(parts)
    assert all(part.height == rows or part.row_stop == area.row_stop for part in parts)
    assert all(part.width == (cols or area.width) or part.col_stop == area.col_stop for part in parts)


@given(windows, steps, steps)
def test_cells_are_the_parts_of_an_area_in_each_cell_of_the_grid(area, rows, cols):
    parts = list(cells(area, rows, cols))
    assert np.array_equal(mask(*parts), mask(area))
    for part in parts:
        assert part.row // rows == (part.row_stop - 1) // rows and part.col // cols == (part.col_stop - 1) // cols
    assert len({(part.row // rows, part.col // cols) for part in parts}) == len(parts)


@given(st.lists(windows, max_size=8), windows)
def test_columns_of_windows_say_what_the_windows_say(several, other):
    columns = Windows.of(several)
    assert list(columns) == several
    assert len(columns) == len(several)
    assert columns.touching(other).tolist() == [window.intersects(other) for window in several]
    assert list(columns.take(columns.touching(other))) == [one for one in several if one.intersects(other)]
    assert columns.row_stop.tolist() == [window.row_stop for window in several]
    assert columns.col_stop.tolist() == [window.col_stop for window in several]


@given(st.lists(windows, max_size=8), st.sets(st.integers(0, 40)), st.sets(st.integers(0, 50)))
def test_covered_cells_are_those_that_the_windows_paint(several, more_rows, more_cols):
    columns = Windows.of(several)
    rows = np.array(sorted({0, 40, *more_rows, *columns.row.tolist(), *columns.row_stop.tolist()}))
    cols = np.array(sorted({0, 50, *more_cols, *columns.col.tolist(), *columns.col_stop.tolist()}))
    painted = mask(*several)[rows[:-1]][:, cols[:-1]] > 0
    assert np.array_equal(columns.covered(rows, cols), painted)


def test_columns_of_windows_move_down_and_right():
    moved = Windows.of([Window(1, 2, 3, 4), Window(5, 6, 7, 8)]).moved(10, np.array([100, 200]))
    assert list(moved) == [Window(11, 102, 3, 4), Window(15, 206, 7, 8)]


def test_columns_of_windows_side_by_side_do_not_touch():
    around = [Window(row, col, 4, 4) for row in (0, 4, 8) for col in (0, 4, 8)]
    assert Windows.of(around).touching(Window(4, 4, 4, 4)).tolist() == [False] * 4 + [True] + [False] * 4
