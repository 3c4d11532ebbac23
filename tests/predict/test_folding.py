import pytest
import torch
from torch import Tensor, nn
from trained import trained

from rs_biformer.nn.model import create_model
from rs_biformer.predict.folding import folded


def norms(model: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in model.modules())


def block() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())


class Residual(nn.Sequential):
    """The convolution's output is seen by the batch norm and by the sum."""

    def forward(self, image: Tensor) -> Tensor:
        found = self[0](image)
        return found + self[1](found)


def shared() -> nn.Sequential:
    """One convolution in two places."""
    conv = nn.Conv2d(3, 3, 1)
    return nn.Sequential(conv, nn.BatchNorm2d(3), conv)


def before() -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1))


def residual() -> nn.Sequential:
    return Residual(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))


def between() -> nn.Sequential:
    """An activation that was there before stands between convolution and batch norm."""
    relu = nn.ReLU()
    return nn.Sequential(nn.Conv2d(3, 3, 1), relu, nn.Conv2d(3, 3, 1), relu, nn.BatchNorm2d(3))


def nested() -> nn.Sequential:
    return nn.Sequential(nn.Sequential(block(), nn.Identity()), nn.Conv2d(4, 4, 1, groups=2), nn.BatchNorm2d(4))


@pytest.mark.parametrize(
    ("make", "left"), [(block, 0), (nested, 0), (residual, 1), (shared, 1), (before, 1), (between, 1)]
)
def test_a_batch_norm_goes_where_it_alone_sees_a_convolution(make, left: int):
    model = trained(make())
    image = torch.rand(2, 3, 9, 9)
    found = folded(model)
    assert norms(found) == left
    with torch.inference_mode():
        torch.testing.assert_close(found(image), model(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_of_torchvision_and_smp_lose_all_of_theirs(name: str):
    import segmentation_models_pytorch as smp
    import torchvision

    image = torch.rand(1, 3, 64, 64)
    for make in (getattr(torchvision.models, name), lambda: smp.Unet(name, encoder_weights=None)):
        model = trained(make())
        found = folded(model)
        assert norms(found) == 0
        with torch.inference_mode():
            torch.testing.assert_close(found(image), model(image), atol=1e-3, rtol=1e-3)


def test_the_callers_model_stays_as_it_is_and_shares_what_does_not_change():
    model = trained(nn.Sequential(block(), nn.Conv2d(4, 5, 1)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = folded(model)
    assert norms(model) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found[1].weight is model[1].weight


def test_models_are_left_alone_that_train_have_hooks_or_no_batch_norm():
    for model in (block().train(), nn.Conv2d(3, 4, 1).eval()):
        assert folded(model) is model
    hooked = block().eval()
    hooked[0].register_forward_hook(lambda *_: None)
    assert folded(hooked) is hooked


def test_a_model_that_cannot_be_copied_is_left_alone():
    model = trained(block())
    model.generator = (one for one in range(3))
    assert folded(model) is model


def test_most_batch_norms_of_the_hybrid_are_folded_and_its_answers_stay():
    model = trained(create_model("resnet18_biformer", classes=4))
    image, found = torch.rand(1, 3, 64, 64), folded(model)
    assert norms(found) < norms(model) / 2
    with torch.inference_mode():
        torch.testing.assert_close(found(image), model(image), atol=1e-3, rtol=1e-3)
