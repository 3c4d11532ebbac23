"""The plan is integers only, so it is checked by counting, over many sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rs_biformer.errors import ConfigError
from rs_biformer.predict import plan as planning
from rs_biformer.predict.plan import Blocks, Plan, Run, chunks, make_plan, ring_pieces, strip_rows


def plan_of(height: int, width: int, **options: object) -> Plan:
    return make_plan(height, width, **({"planes": 3, "bands": 3, "itemsize": 1, "window": 16} | options))


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
    for lane, (left, right) in enumerate(plan.columns):
        for strip in plan.strips(lane):
            for window in strip.windows:
                assert not finished[window.slices[0], max(window.col, left) : min(window.col_stop, right)].any()
            finished[strip.output.slices] += 1
    assert (finished == 1).all()


@settings(max_examples=60)
@given(plans)
def test_columns_left_of_a_window_are_reached_by_no_later_window_of_the_strip(plan: Plan):
    for strip in plan.strips(0):
        columns = [window.col for window in strip.windows]
        assert columns == sorted(columns)


@settings(max_examples=60)
@given(plans)
def test_blend_weights_sum_to_one_at_every_pixel(plan: Plan):
    total = np.zeros((plan.height, plan.width))
    for strip in plan.strips(0):
        for window in strip.windows:
            assert window.row_stop <= plan.height
            assert window.col_stop <= plan.width
            total[window.slices] += np.outer(*plan.weights(window))
    np.testing.assert_allclose(total, 1, atol=1e-5)


@settings(max_examples=60)
@given(plans)
def test_what_a_strip_touches_fits_the_sums_and_what_it_leaves_fits_the_carry(plan: Plan):
    for strip in plan.strips(0):
        assert strip.windows[0].row == strip.output.row
        assert strip.source.row_stop - strip.output.row <= plan.reach
        assert strip.source.row_stop - strip.output.row_stop <= plan.carried
    assert plan.reach <= plan.height
    assert plan.carried <= plan.size - plan.stride


def test_a_strip_is_found_by_its_place():
    plan = plan_of(100, 100, batch_size=2)
    assert [(strip.lane, strip.index) for strip in plan.strips(0)] == [(0, index) for index in range(plan.strip_count)]
    assert plan.strip(0, 3) == list(plan.strips(0))[3]


def test_narrow_scenes_fill_a_batch_from_several_rows_of_windows():
    plan = plan_of(400, 16, overlap=0.5, batch_size=8)
    strips = list(plan.strips(0))
    assert [len(strip.windows) for strip in strips[:-1]] == [8] * (len(strips) - 1)
    assert plan.window_count == sum(len(strip.windows) for strip in strips)


@settings(max_examples=60)
@given(plans, st.data())
def test_a_run_begins_with_all_strips_that_reach_into_it(plan: Plan, data: st.DataObject):
    first = data.draw(st.integers(0, plan.strip_count - 1))
    row = plan.strip(0, first).output.row
    reaching = [strip.index for strip in plan.strips(0) if strip.index <= first and strip.source.row_stop > row]
    assert list(range(plan.lead_in(0, first), first + 1)) == reaching


@settings(max_examples=60)
@given(st.sets(st.tuples(st.integers(0, 2), st.integers(0, 9))), st.integers(1, 4))
def test_runs_hold_the_missing_strips_and_no_others(missing: set, longest: int):
    runs = plan_of(16, 16).runs(missing, longest)
    assert [(run.lane, index) for run in runs for index in range(run.first, run.stop)] == sorted(missing)
    assert all(run.stop - run.first <= longest for run in runs)


def test_without_a_limit_runs_end_where_a_strip_is_there_already():
    assert plan_of(16, 16).runs([(0, 0), (0, 1), (0, 3), (1, 0)]) == [Run(0, 0, 2), Run(0, 3, 4), Run(1, 0, 1)]


def test_lanes_of_columns_cover_the_width_and_share_the_grid_of_windows():
    whole = plan_of(64, 8000, window=64)
    bound = whole.memory.total * 9 // 10
    split = plan_of(64, 8000, window=64, max_memory=bound)
    assert len(split.columns) > len(whole.columns) == 1
    assert [start for start, _ in split.columns[1:]] == [stop for _, stop in split.columns[:-1]]
    assert split.columns[-1][1] == 8000
    of_lanes = {window for lane in range(len(split.columns)) for s in split.strips(lane) for window in s.windows}
    assert of_lanes == {window for strip in whole.strips(0) for window in strip.windows}
    assert split.memory.total <= bound


def test_lanes_begin_where_the_fewest_windows_straddle():
    plan = plan_of(512, 50_000, window=512, overlap=0.5)
    whole = len(plan_of(512, 512, window=512, overlap=0.5).columns) * -(-(50_000 - 512) // 256 + -1) + 1
    assert len(plan.columns) > 5
    assert plan.window_count <= whole + len(plan.columns)


def test_memory_does_not_grow_with_the_height_of_the_scene():
    assert plan_of(100_000, 5000).memory == plan_of(1000, 5000).memory


def test_memory_does_not_grow_with_the_width_once_there_are_lanes():
    most = plan_of(1000, planning.WIDEST).memory.total
    for width in (planning.WIDEST + 1, 20_000, 1_000_000):
        assert plan_of(1000, width).memory.total <= most


def test_batches_and_queues_become_smaller_before_the_bound_is_refused():
    options = {"planes": 6, "window": 512, "batch_size": 8}
    with pytest.raises(ConfigError, match=r"needs at least (\d+) MB .* got a bound of 10 MB") as caught:
        plan_of(50_000, 50_000, max_memory=10_000_000, **options)
    least = int(str(caught.value).split("at least ")[1].split()[0]) * 10**6
    smallest = plan_of(50_000, 50_000, max_memory=least, **options)
    assert smallest.memory.total <= least
    assert (smallest.batch_size, smallest.read_ahead) == (1, 1)
    middle = plan_of(50_000, 50_000, max_memory=2 * least, **options)
    assert least < middle.memory.total <= 2 * least
    assert middle.batch_size > 1


def test_a_plan_says_in_a_line_what_was_chosen():
    line = str(plan_of(1000, 20_000))
    for part in ("1000 x 20000 pixels", "windows of 16 every 8", "3 lanes of columns", "batches of 8", "MB beside"):
        assert part in line
    assert "\n" not in line


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"window": 0}, {"overlap": 1.0}, {"overlap": -0.1}])
def test_options_that_cannot_be_meant_are_refused(options: dict):
    with pytest.raises(ConfigError):
        plan_of(100, 100, **options)


@given(st.integers(0, 200), st.integers(1, 40), st.integers(1, 40))
def test_ring_pieces_find_every_position_where_it_was_left(start: int, count: int, length: int):
    count = min(count, length)
    ring = np.full(length, -1)
    for place, part in ring_pieces(start, start + count, length):
        ring[place] = np.arange(start, start + count)[part]
    assert all(ring[at % length] == at for at in range(start, start + count))


def test_positions_that_do_not_fit_the_ring_are_refused():
    with pytest.raises(ConfigError, match="do not fit"):
        list(ring_pieces(0, 11, 10))


def test_chunks_keep_the_order_and_the_rest():
    assert chunks([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]


@pytest.mark.parametrize(
    ("starts", "together", "strips"),
    [
        ((0, 3, 6), 1, ((0,), (3,), (6,))),
        ((0, 3, 6, 7), 1, ((0,), (3,), (6, 7))),
        ((0, 3, 6, 7), 2, ((0, 3), (6, 7))),
        ((0, 3, 6, 9, 10), 2, ((0, 3), (6, 9, 10))),
        ((0, 3, 6), 2, ((0, 3), (6,))),
        ((0, 1), 1, ((0, 1),)),
        ((0,), 4, ((0,),)),
    ],
)
def test_a_last_row_that_was_shifted_in_joins_the_strip_before(starts, together, strips):
    assert strip_rows(starts, 3, together) == strips


def test_a_scene_of_one_large_block_takes_its_bytes_of_the_bound():
    small = plan_of(16384, 16384, max_memory=2 * 10**9)
    tall = Blocks(16384, 16384, 3 * 16384**2)
    with pytest.raises(ConfigError, match=r"of these 806 MB are one block of 16384 x 16384 pixels .* gdal_translate"):
        plan_of(16384, 16384, blocks=tall, max_memory=200 * 10**6)
    plan = plan_of(16384, 16384, blocks=tall, max_memory=4 * 10**9)
    assert plan.memory.source >= tall.decoded + small.memory.source
    assert plan.memory.cache >= 3 * 16384**2, "decoded once, not for every few rows"
    usual = plan_of(16384, 16384, blocks=Blocks(512, 512, 3 * 512**2), max_memory=2 * 10**9)
    assert usual.memory.cache == small.memory.cache and usual.columns == small.columns
