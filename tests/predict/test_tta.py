from math import log

import pytest
import torch

from rs_biformer.errors import ConfigError
from rs_biformer.predict.tta import View, average_views, resized, views

ALL = torch.ones(1, 6, 6, dtype=torch.bool)


@pytest.mark.parametrize(("name", "count"), [("none", 1), ("flips", 4), ("d4", 8)])
def test_views_are_different_and_can_be_undone(name: str, count: int):
    batch, valid = torch.arange(2 * 3 * 5 * 5).reshape(2, 3, 5, 5), torch.rand(2, 5, 5) > 0.5
    seen = [view.of(batch, valid) for view in views(name)]
    assert len(seen) == count == len({tuple(image.flatten().tolist()) for image, _ in seen})
    assert torch.equal(seen[0][0], batch)
    for (image, mask), view in zip(seen, views(name), strict=True):
        assert torch.equal(view.undo(image, 5), batch)
        assert torch.equal(view.undo(mask[:, None], 5)[:, 0], valid)


def test_flips_are_those_of_torch():
    batch = torch.rand(1, 1, 6, 6)
    seen = [view.of(batch, ALL)[0] for view in views("flips")]
    for wanted in (batch.flip(-1), batch.flip(-2), batch.flip(-1, -2)):
        assert any(torch.equal(one, wanted) for one in seen)


def test_every_symmetry_is_seen_at_every_scale():
    chosen = views("flips", (0.5, 1, 2))
    assert len(set(chosen)) == 12
    assert [view.side(256) for view in chosen[::4]] == [128, 256, 512]


def test_sides_of_scaled_views_are_multiples_of_32_and_the_window_itself_is_as_it_is():
    assert View(scale=1.25).side(256) == 320
    assert View(scale=0.75).side(250) == 192
    assert View(scale=0.1).side(100) == 32
    assert View().side(100) == 100


def test_a_pointwise_model_gives_the_same_with_any_views():
    image, valid = torch.rand(2, 3, 6, 6), torch.rand(2, 6, 6) > 0.2

    def pointwise(batch, mask):
        return (batch * mask[:, None]).softmax(1)

    for name in ("flips", "d4"):
        torch.testing.assert_close(average_views(pointwise, image, valid, views(name)), pointwise(image, valid))


def test_scores_of_any_scale_come_back_where_they_were():
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    image = torch.cat([ramp, 1 - ramp], 1)
    valid = torch.ones(1, 64, 64, dtype=torch.bool)
    for scale in (0.5, 1.5):
        found = average_views(lambda batch, _: batch, image, valid, views("none", (scale,)))
        torch.testing.assert_close(found, image, atol=0.02, rtol=0)
        torch.testing.assert_close(found.sum(1), torch.ones(1, 64, 64))


def test_a_model_that_looks_to_one_side_becomes_symmetric():
    def shifted(batch, _):
        return batch.roll(1, -1)

    image = torch.rand(1, 2, 6, 6)
    mean = average_views(shifted, image, ALL, views("flips"))
    torch.testing.assert_close(mean, (image.roll(1, -1) + image.roll(-1, -1)) / 2)


def test_values_of_invalid_pixels_do_not_reach_a_scaled_view():
    valid = torch.ones(1, 64, 64, dtype=torch.bool)
    valid[:, 20:40, 10:31] = False
    image = torch.full((1, 1, 64, 64), 7.0)
    for filler in (0.0, 1e30, float("nan")):
        found, mask = resized(torch.where(valid, image, filler), valid, 48)
        torch.testing.assert_close(found[mask[:, None]], torch.full((int(mask.sum()),), 7.0))
        assert torch.isfinite(found).all()
        assert abs(float(mask.float().mean()) - float(valid.float().mean())) < 0.01


def say(*scores: list[float]):
    """A model that gives each view in turn other scores, the same at every pixel."""
    turns = iter(scores)
    return lambda batch, _: torch.tensor(next(turns))[None, :, None, None].expand(1, -1, 6, 6).clone()


def disagreement(*scores: list[float]) -> float:
    chosen = views("flips")[: len(scores)]
    found = average_views(say(*scores), torch.rand(1, 1, 6, 6), ALL, chosen, disagreement=True)
    assert found.shape == (1, len(scores[0]) + 1, 6, 6)
    torch.testing.assert_close(found[0, :-1, 0, 0], torch.tensor(scores).mean(0))
    return float(found[0, -1, 0, 0])


def test_views_that_say_the_same_do_not_disagree():
    assert disagreement([0.2, 0.8], [0.2, 0.8], [0.2, 0.8]) == 0


def test_views_that_are_certain_of_different_classes_disagree_completely():
    assert disagreement([1.0, 0, 0], [0, 1.0, 0]) == pytest.approx(1)
    assert disagreement([1.0, 0], [0, 1.0], [1.0, 0], [0, 1.0]) == pytest.approx(1)


def test_disagreement_is_the_mean_divergence_from_the_average():
    scores = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]
    mean = torch.tensor(scores).mean(0)
    divergences = [(torch.tensor(one) * (torch.tensor(one) / mean).log()).sum() for one in scores]
    assert disagreement(*scores) == pytest.approx(float(sum(divergences)) / 2 / log(2), rel=1e-5)


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="none, flips, d4"):
        views("mirror")


@pytest.mark.parametrize("scales", [(), (0,), (-1,), (float("nan"),), (9,), (1, 1)])
def test_scales_that_cannot_be_meant_are_refused(scales):
    with pytest.raises(ConfigError, match="scales are"):
        views("none", scales)
