import pytest
import torch
import torch.nn.functional as F
from goldens import assert_equals_reference, case, published_weights, reference_input
from torch import nn

from rs_biformer.nn.blocks import (
    IRFFN,
    MLP,
    ChannelsLast,
    ConvNormAct,
    TransformerBlock,
    drop_path_rates,
    init_transformer,
)
from rs_biformer.nn.weights import load_published_weights


def test_irffn_equals_the_published_implementation():
    reference = case("irffn")
    module = IRFFN(64, 256).double().eval()
    load_published_weights(module, published_weights(reference["keys"]))
    with torch.no_grad():
        out = module(reference_input(reference["input"]))
    assert_equals_reference(out, reference["features"][0])


def test_block_adds_position_then_attention_then_feed_forward():
    class Constant(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, x):
            return torch.full_like(x, self.value)

    x = torch.randn(1, 2, 3, 4)
    torch.testing.assert_close(TransformerBlock(4, Constant(1.0), Constant(10.0), Constant(100.0))(x), x + 111)
    torch.testing.assert_close(TransformerBlock(4, Constant(1.0), Constant(10.0))(x), x + 11)


def test_block_normalises_what_its_parts_see():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x

    TransformerBlock(8, Spy(), Spy())(100 + 50 * torch.randn(2, 3, 3, 8))
    for x in seen:
        torch.testing.assert_close(x.mean(-1), torch.zeros(2, 3, 3), atol=1e-4, rtol=0)


def test_stochastic_depth_skips_whole_samples_in_training_only():
    block = TransformerBlock(8, nn.Identity(), MLP(8, 8), drop_path=0.5)
    for parameter in block.ffn.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(64, 2, 2, 8)
    torch.manual_seed(0)
    unchanged = (block.train()(x) == x).flatten(1).all(1)
    assert 16 < unchanged.sum() < 48
    assert not (block.eval()(x) == x).flatten(1).all(1).any()


def test_channels_last_hands_the_module_channels_first_without_a_copy():
    class Spy(nn.Module):
        def forward(self, x):
            assert x.shape == (2, 5, 3, 4)
            assert x.is_contiguous(memory_format=torch.channels_last)
            return x

    x = torch.randn(2, 3, 4, 5)
    assert ChannelsLast(Spy())(x).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("depths", [(1,), (1, 1, 2, 1), (3, 4, 6, 3)])
def test_drop_path_grows_from_nothing_to_the_rate(depths):
    rates = drop_path_rates(0.3, depths)
    assert tuple(map(len, rates)) == depths
    flat = [rate for stage in rates for rate in stage]
    assert flat == sorted(flat)
    assert flat[0] == 0
    assert flat[-1] == (pytest.approx(0.3) if sum(depths) > 1 else 0)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1)])
def test_a_convolution_with_norm_and_relu_is_these_three(kernel, stride):
    block = ConvNormAct(3, 4, kernel, stride).eval()
    block[1].running_mean.normal_()
    x = torch.randn(1, 3, 8, 9)
    y = F.conv2d(x, block[0].weight, stride=stride, padding=kernel // 2)
    expected = F.batch_norm(y, block[1].running_mean, block[1].running_var).relu()
    torch.testing.assert_close(block(x), expected)
    assert block(x).shape[2:] == (-(-8 // stride), -(-9 // stride))
    assert block[0].bias is None and ConvNormAct(3, 4, kernel)[0].stride == (1, 1)


def test_weights_begin_from_the_distributions_that_are_promised():
    torch.manual_seed(0)
    depthwise = nn.Conv2d(64, 64, 3, groups=64)
    parts = nn.ModuleDict({"linear": nn.Linear(256, 512), "conv": nn.Conv2d(64, 128, 3), "depth": depthwise})
    with torch.no_grad():
        for part in parts.values():
            part.bias.fill_(1.0)
    parts.apply(init_transformer)
    assert not any(part.bias.any() for part in parts.values())
    assert parts["linear"].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert parts["conv"].weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert parts["depth"].weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    for bare in (nn.Linear(4, 4, bias=False), nn.Conv2d(4, 4, 1, bias=False)):
        init_transformer(bare)
    assert TransformerBlock(8, nn.Identity(), nn.Identity()).attention_norm.eps == 1e-6
