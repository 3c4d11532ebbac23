"""Fused convolutions against the model as it is, in float32, where both must give the same but for rounding."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trained import trained

from rs_biformer.nn.blocks import IRFFN, ConvNormAct
from rs_biformer.nn.depthwise import DepthwiseConv2d
from rs_biformer.nn.model import create_model
from rs_biformer.predict import fusing
from rs_biformer.predict.folding import folded
from rs_biformer.predict.fusing import FusedConv2d, fused
from rs_biformer.predict.recipe import Recipe

IMAGE = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(1)).contiguous(
    memory_format=torch.channels_last
)


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(type(part) is kind for part in model.modules())


class OwnForward(nn.Sequential):
    """Sees the convolution's output twice, so that the activation may not be part of it."""

    def forward(self, image: Tensor) -> Tensor:
        found = self[0](image)
        return found + self[1](found)


class ReadsWeights(nn.Module):
    """Uses a part of its own by hand, as patch embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        return F.conv2d(image.to(self.conv.weight.dtype), self.conv.weight, self.conv.bias) + self.conv(image)


def twice() -> nn.Module:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    return nn.Sequential(conv, nn.ReLU(), conv)


def one_activation() -> nn.Module:
    relu = nn.ReLU()
    return nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.BatchNorm2d(4), relu, nn.Conv2d(4, 4, 1), nn.Tanh(), relu)


@pytest.mark.parametrize(
    ("make", "convolutions", "taken"),
    [
        pytest.param(lambda: nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.ReLU(inplace=True)), 1, 1, id="ReLU"),
        pytest.param(lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU()), 1, 1, id="GELU"),
        pytest.param(lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.GELU("tanh")), 1, 0, id="another GELU"),
        pytest.param(lambda: nn.Sequential(nn.Conv2d(3, 8, 3, dilation=2), nn.Hardswish()), 1, 0, id="another"),
        pytest.param(lambda: ConvNormAct(3, 8, 3, 2), 1, 1, id="with a batch norm"),
        pytest.param(lambda: nn.Sequential(DepthwiseConv2d(3, 5), nn.Conv2d(3, 6, 1, groups=3)), 2, 0, id="depth-wise"),
        pytest.param(lambda: OwnForward(nn.Conv2d(3, 3, 1), nn.ReLU()), 1, 0, id="own forward"),
        pytest.param(twice, 1, 0, id="a convolution in two places"),
        pytest.param(one_activation, 2, 1, id="an activation in three places"),
        pytest.param(ReadsWeights, 1, 0, id="weights read by hand"),
        pytest.param(lambda: nn.Conv2d(3, 4, 3), 1, 0, id="alone"),
        pytest.param(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.ReLU()), 0, 0, id="padding by name"),
        pytest.param(lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), 0, 0, id="padding by reflection"),
        pytest.param(lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), 0, 0, id="parametrised"),
    ],
)
def test_fused_convolutions_give_what_the_model_gives(make, convolutions: int, taken: int):
    model = trained(make())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        wanted = model(IMAGE)
        found = fused(folded(model), torch.float32)
        torch.testing.assert_close(found(IMAGE), wanted, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(found(IMAGE[:, :, :9, :11]), model(IMAGE[:, :, :9, :11]), atol=2e-5, rtol=1e-5)
        assert torch.equal(model(IMAGE), wanted), "the model itself is as it was"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert count(found, FusedConv2d) == convolutions
    assert sum(part.activation is not None for part in found.modules() if type(part) is FusedConv2d) == taken


def test_a_feed_forward_network_folds_to_the_same_function_its_border_included():
    block = trained(IRFFN(6, 18)).double()
    nn.init.normal_(block.depthwise.weight)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(block.folded()(x), block(x), atol=1e-12, rtol=1e-12)
    assert count(block.folded(), nn.BatchNorm2d) == 1


@pytest.mark.parametrize("encoder", ["resnet18_biformer", "lite_hybrid"])
def test_whole_networks_give_the_same(encoder: str):
    model = trained(create_model(encoder, classes=4))
    image = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        found = fused(folded(model), torch.float32)
        wanted = model(image)
        torch.testing.assert_close(found(image), wanted, atol=1e-3 * float(wanted.abs().max()), rtol=1e-3)
        with torch.autocast("cpu", torch.bfloat16):
            rounded, theirs = fused(folded(model), torch.bfloat16)(image).float(), model(image).float()
    # rounding may send a region of random weights elsewhere, whether fused or not
    assert (rounded - wanted).abs().mean() < 1.5 * (theirs - wanted).abs().mean() + 1e-3
    assert count(found, nn.Conv2d) < count(model, nn.Conv2d) / 10


def test_where_a_part_leaves_autocast_its_convolutions_still_give_numbers():
    conv = fused(trained(nn.Conv2d(3, 4, 3)), torch.bfloat16)
    with torch.inference_mode():
        assert conv(IMAGE).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(conv(IMAGE), conv(IMAGE.bfloat16()))


def nothing(*_arguments):
    raise NotImplementedError("no such kernel on this CPU")


def another_activation(x, weight, bias, *how):
    return torch.nn.functional.conv2d(x, weight, bias, padding=how[0], groups=weight.shape[0] // weight.shape[1])


@pytest.mark.parametrize("operation", [nothing, another_activation])
def test_where_the_operation_fails_or_is_wrong_it_is_said_and_the_model_runs_as_it_is(monkeypatch, caplog, operation):
    fusing.is_available.cache_clear()
    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", operation)
    model = trained(nn.Conv2d(3, 4, 3))
    with caplog.at_level(logging.WARNING):
        assert fused(model, torch.float32) is model
    assert "passes are plain" in caplog.text
    fusing.is_available.cache_clear()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch comes without oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operation_is_there_and_trying_it_draws_no_random_numbers(dtype):
    fusing.is_available.cache_clear()
    state = torch.random.get_rng_state()
    assert fusing.is_available(dtype)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_passes_are_fused_in_bfloat16_unless_the_model_is_compiled_or_none_of_ours():
    class Own(nn.Module):
        normalisation = object()

    assert Recipe(4).settled(Own(), fast=True).passes == "fused"
    assert Recipe(4).settled(Own(), fast=False).passes == "plain"
    assert Recipe(4, compile=True).settled(Own(), fast=True).passes == "plain"
    assert Recipe(4, precision="bf16").settled(nn.Identity(), fast=True).passes == "plain"
    assert Recipe(4, passes="plain").settled(Own(), fast=True).passes == "plain"
    assert Recipe(4, passes="fused").settled(Own(), fast=False).passes == "fused"
    hooked = Own()
    hooked.register_forward_hook(lambda *_: None)
    assert Recipe(4, passes="fused").settled(hooked, fast=True).passes == "plain"
    assert str(Recipe(4).settled(Own(), fast=True)) == "bf16, fused"
    assert str(Recipe(4).settled(Own(), fast=False)) == ""
