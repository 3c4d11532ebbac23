"""The plan is integers only, so it is checked by counting, over many sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rs_biformer.errors import ConfigError
from rs_biformer.predict import plan as planning
from rs_biformer.predict.plan import Plan, chunks, make_plan, memory_of, ring_pieces


def plan_of(height: int, width: int, **options: object) -> Plan:
    return make_plan(height, width, **({"classes": 3, "bands": 3, "itemsize": 1, "window": 16} | options))


sizes = st.integers(1, 70)
plans = st.builds(
    plan_of,
    sizes,
    sizes,
    overlap=st.sampled_from([0, 0.25, 0.5, 0.75]),
    batch_size=st.integers(1, 9),
    blend=st.sampled_from(["hann", "average", "center"]),
)


@settings(max_examples=60)
@given(plans)
def test_every_pixel_is_finished_once_and_after_all_windows_that_cover_it(plan: Plan):
    finished = np.zeros((plan.height, plan.width), int)
    for block in plan.columns:
        for strip in plan.strips(block):
            for window in strip.windows:
                columns = slice(max(window.col, block[0]), min(window.col_stop, block[1]))
                assert not finished[window.slices[0], columns].any()
            finished[strip.output.slices] += 1
    assert (finished == 1).all()


@settings(max_examples=60)
@given(plans)
def test_blend_weights_sum_to_one_at_every_pixel(plan: Plan):
    total = np.zeros((plan.height, plan.width))
    for strip in plan.strips(plan.columns[0]):
        for window in strip.windows:
            assert window.row_stop <= plan.height
            assert window.col_stop <= plan.width
            total[window.slices] += np.outer(*plan.weights(window))
    np.testing.assert_allclose(total, 1, atol=1e-5)


@settings(max_examples=60)
@given(plans)
def test_the_windows_of_a_strip_fit_the_accumulator(plan: Plan):
    for strip in plan.strips(plan.columns[0]):
        assert strip.windows[0].row == strip.output.row
        assert strip.source.row_stop - strip.output.row <= plan.reach
    assert plan.reach <= plan.height


def test_narrow_scenes_fill_a_batch_from_several_rows_of_windows():
    plan = plan_of(400, 16, overlap=0.5, batch_size=8)
    strips = list(plan.strips(plan.columns[0]))
    assert [len(strip.windows) for strip in strips[:-1]] == [8] * (len(strips) - 1)
    assert plan.window_count == sum(len(strip.windows) for strip in strips)


def test_blocks_of_columns_cover_the_width_and_share_the_grid_of_windows():
    whole = plan_of(64, 3000)
    split = plan_of(64, 3000, max_memory=whole.memory // 2)
    assert len(split.columns) > 1
    assert [start for start, _ in split.columns[1:]] == [stop for _, stop in split.columns[:-1]]
    assert split.columns[-1][1] == 3000
    assert all(stop % planning.COLUMN_STEP == 0 for _, stop in split.columns[:-1])
    of_blocks = {window for block in split.columns for strip in split.strips(block) for window in strip.windows}
    of_whole = {window for strip in whole.strips(whole.columns[0]) for window in strip.windows}
    assert of_blocks == of_whole
    assert split.memory <= whole.memory // 2


def test_memory_does_not_grow_with_the_height_of_the_scene():
    assert plan_of(100_000, 5000).memory == plan_of(1000, 5000).memory


def test_memory_does_not_grow_with_the_width_once_there_are_blocks():
    narrow, wide = (plan_of(1000, width, max_memory=3_000_000) for width in (10_000, 1_000_000))
    assert len(wide.columns) > len(narrow.columns) > 1
    assert max(narrow.memory, wide.memory) <= 3_000_000


def test_a_bound_that_cannot_be_kept_is_refused_with_the_smallest_that_can():
    with pytest.raises(ConfigError, match=r"needs at least (\d+) MB .* got a bound of 10 MB") as caught:
        make_plan(5000, 5000, classes=6, bands=3, itemsize=1, window=512, max_memory=10_000_000)
    least = int(str(caught.value).split("at least ")[1].split()[0]) * 10**6
    plan = make_plan(5000, 5000, classes=6, bands=3, itemsize=1, window=512, max_memory=least)
    assert plan.memory <= least


def test_the_accumulator_is_counted_in_the_memory():
    options = {"size": 256, "stride": 128, "rows_together": 1, "bands": 3, "itemsize": 1, "layers": 1, "batch_size": 1}
    more = memory_of(10_000, classes=7, **options) - memory_of(10_000, classes=6, **options)
    assert more >= 4 * 256 * 10_000


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"window": 0}, {"overlap": 1.0}, {"overlap": -0.1}])
def test_options_that_cannot_be_meant_are_refused(options: dict):
    with pytest.raises(ConfigError):
        plan_of(100, 100, **options)


@given(st.integers(0, 200), st.integers(1, 40), st.integers(1, 40))
def test_ring_pieces_find_every_row_where_it_was_left(start: int, rows: int, length: int):
    rows = min(rows, length)
    ring = np.full(length, -1)
    for place, part in ring_pieces(start, start + rows, length):
        ring[place] = np.arange(start, start + rows)[part]
    assert all(ring[row % length] == row for row in range(start, start + rows))


def test_rows_that_do_not_fit_the_ring_are_refused():
    with pytest.raises(ConfigError, match="do not fit"):
        list(ring_pieces(0, 11, 10))


def test_chunks_keep_the_order_and_the_rest():
    assert chunks([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]
