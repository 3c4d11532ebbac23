import numpy as np
import pytest

from rs_biformer.data.sampler import Filler, TrainSampler, ValidationSampler, balanced_weights, nearby_order
from rs_biformer.errors import ConfigError


def drawn(sampler: TrainSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return [draw.number for draw in sampler]


def test_an_epoch_of_all_windows_sees_each_of_them_once():
    assert sorted(drawn(TrainSampler(10, 10, seed=3), epoch=4)) == list(range(10))


def test_short_epochs_go_through_all_windows_before_any_comes_again():
    sampler = TrainSampler(10, 4, seed=3)
    numbers = [number for epoch in range(5) for number in drawn(sampler, epoch)]
    assert sorted(numbers[:10]) == sorted(numbers[10:]) == list(range(10))
    assert numbers[:10] != numbers[10:]


def test_an_epoch_larger_than_the_index_repeats_windows_evenly():
    counts = np.bincount(drawn(TrainSampler(7, 21, seed=0), epoch=0))
    assert counts.tolist() == [3] * 7


def test_order_follows_from_seed_and_epoch():
    first, again = TrainSampler(50, 50, seed=1), TrainSampler(50, 50, seed=1)
    assert drawn(first, 2) == drawn(again, 2)
    assert drawn(first, 2) != drawn(first, 3)
    assert drawn(first, 2) != drawn(TrainSampler(50, 50, seed=2), 2)


def test_no_two_draws_of_a_run_share_their_number():
    sampler = TrainSampler(5, 8, seed=0)
    draws = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        draws += [draw.draw for draw in sampler]
    assert draws == list(range(24))


@pytest.mark.parametrize("probabilities", [None, np.array([0.1, 0.2, 0.3, 0.2, 0.2])])
def test_processes_share_what_one_process_draws(probabilities):
    alone = TrainSampler(5, 8, seed=0, probabilities=probabilities)
    shares = [TrainSampler(5, 8, seed=0, probabilities=probabilities, replicas=2, rank=rank) for rank in range(2)]
    assert [len(share) for share in shares] == [4, 4]
    assert sorted([*shares[0], *shares[1]], key=lambda draw: draw.draw) == list(alone)


def test_processes_get_equally_many_draws_when_the_epoch_does_not_divide():
    assert [len(list(TrainSampler(9, 7, 0, replicas=3, rank=rank))) for rank in range(3)] == [2, 2, 2]


@pytest.mark.parametrize(("windows", "replicas"), [(7, 3), (6, 3), (1, 3), (2, 3), (5, 1), (0, 2)])
def test_validation_deals_out_every_window_once_and_every_process_takes_as_many_steps(windows, replicas):
    samplers = [ValidationSampler(windows, replicas=replicas, rank=rank) for rank in range(replicas)]
    shares = [list(sampler) for sampler in samplers]
    assert sorted(item for share in shares for item in share if not isinstance(item, Filler)) == list(range(windows))
    assert {len(share) for share in shares} == {len(sampler) for sampler in samplers} == {-(-windows // replicas)}
    assert all(0 <= item.number < windows for share in shares for item in share if isinstance(item, Filler))


def test_balanced_weights_by_hand():
    # 30 pixels of class 0 and 10 of class 1: frequencies 3/4 and 1/4, worth 4/3 and 4 at strength 1.
    histogram = np.array([[20, 0], [10, 10]])
    raw = np.array([4 / 3, (4 / 3 + 4) / 2])
    np.testing.assert_allclose(balanced_weights(histogram, 1.0), raw / raw.sum())


def test_strength_zero_draws_all_labelled_windows_alike():
    np.testing.assert_allclose(balanced_weights(np.array([[5, 0], [1, 9], [0, 0]]), 0.0), [0.5, 0.5, 0])


def test_full_strength_evens_out_windows_of_single_classes():
    histogram = np.array([[100, 0, 0]] * 17 + [[0, 100, 0]] * 2 + [[0, 0, 100]])
    expected = balanced_weights(histogram, 1.0) @ histogram
    np.testing.assert_allclose(expected / expected.sum(), [1 / 3] * 3)


def test_a_class_that_never_occurs_changes_nothing():
    histogram = np.array([[20, 0], [10, 10]])
    wider = np.insert(histogram, 1, 0, axis=1)
    np.testing.assert_allclose(balanced_weights(wider, 0.7), balanced_weights(histogram, 0.7))


def test_an_index_without_a_labelled_pixel_is_refused():
    with pytest.raises(ConfigError, match="labelled pixel"):
        balanced_weights(np.zeros((3, 2), np.int64), 1.0)


def test_draws_follow_the_probabilities():
    sampler = TrainSampler(3, 20_000, seed=0, probabilities=np.array([0.7, 0.3, 0.0]))
    shares = np.bincount(drawn(sampler, 0), minlength=3) / 20_000
    np.testing.assert_allclose(shares, [0.7, 0.3, 0], atol=0.02)


def test_nearby_draws_follow_each_other_and_all_are_made():
    cells = np.repeat(np.arange(40), 25)
    order = nearby_order(cells, 4, np.random.default_rng(0))
    assert sorted(order) == list(range(1000))
    first, last = (
        np.array([found(np.flatnonzero(cells[order] == cell)) for cell in range(40)]) for found in (min, max)
    )
    assert (last - first < 6 * 25).all()  # a cell is left for good soon after it is begun
    mixture = [len(set(cells[order][start : start + 32])) for start in range(0, 960, 32)]
    assert np.mean(mixture) > 3


def test_reading_nearby_changes_the_order_alone():
    cells = np.arange(50) // 10
    plain, near = (TrainSampler(50, 50, 3, cells=places) for places in (None, cells))
    for epoch in (0, 1):
        plain.set_epoch(epoch), near.set_epoch(epoch)
        assert sorted(draw.number for draw in plain) == sorted(draw.number for draw in near)
    assert [draw.number for draw in near] == [draw.number for draw in near]


@pytest.mark.parametrize("rank", range(3))
def test_what_is_skipped_are_the_first_draws_of_the_process_itself(rank):
    whole, rest = (TrainSampler(20, 18, 3, replicas=3, rank=rank) for _ in range(2))
    rest.skip(4)
    assert list(rest) == list(whole)[4:]
    assert list(rest) == list(whole)  # the next epoch is whole again


def test_windows_of_one_place_are_drawn_near_each_other():
    cells = np.arange(4000) // 20
    plain, near = (
        np.array([cells[draw.number] for draw in TrainSampler(4000, 4000, 3, cells=places)]) for places in (None, cells)
    )
    spread = [np.mean([np.ptp(np.flatnonzero(order == cell)) for cell in range(200)]) for order in (plain, near)]
    assert spread[1] < spread[0] / 4
