import pytest
import torch

from rs_biformer.errors import ConfigError
from rs_biformer.predict.tta import average_views, undo, view, views


@pytest.mark.parametrize(("name", "count"), [("none", 1), ("flips", 4), ("d4", 8)])
def test_views_are_different_and_can_be_undone(name: str, count: int):
    batch = torch.arange(2 * 3 * 5 * 5).reshape(2, 3, 5, 5)
    seen = [view(batch, *symmetry) for symmetry in views(name)]
    assert len(seen) == count == len({tuple(one.flatten().tolist()) for one in seen})
    assert torch.equal(seen[0], batch)
    for one, symmetry in zip(seen, views(name), strict=True):
        assert torch.equal(undo(one, *symmetry), batch)


def test_flips_are_those_of_torch():
    batch = torch.rand(1, 1, 4, 4)
    seen = [view(batch, *symmetry) for symmetry in views("flips")]
    for wanted in (batch.flip(-1), batch.flip(-2), batch.flip(-1, -2)):
        assert any(torch.equal(one, wanted) for one in seen)


def test_a_pointwise_model_gives_the_same_with_any_views():
    image, valid = torch.rand(2, 3, 6, 6), torch.rand(2, 6, 6) > 0.2

    def pointwise(batch, mask):
        return (batch * mask[:, None]).softmax(1)

    for name in ("flips", "d4"):
        torch.testing.assert_close(average_views(pointwise, image, valid, name), pointwise(image, valid))


def test_a_model_that_looks_to_one_side_becomes_symmetric():
    def shifted(batch, _):
        return batch.roll(1, -1)

    image, valid = torch.rand(1, 2, 6, 6), torch.ones(1, 6, 6, dtype=torch.bool)
    mean = average_views(shifted, image, valid, "flips")
    torch.testing.assert_close(mean, (image.roll(1, -1) + image.roll(-1, -1)) / 2)


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="none, flips, d4"):
        views("mirror")
