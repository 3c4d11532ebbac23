import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rs_biformer.nn.depthwise import DepthwiseConv2d, weight_gradient


@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("size", [(9, 11), (1, 1), (2, 1), (1, 20)])
def test_the_gradient_of_the_weights_is_that_of_a_plain_convolution(kernel, size):
    x, gradient = torch.randn(2, 2, *size, 16, dtype=torch.float64).permute(0, 1, 4, 2, 3)
    weight = torch.randn(16, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, padding=kernel // 2, groups=16), weight, gradient)
    torch.testing.assert_close(weight_gradient(x, gradient, kernel), expected)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_it_is_the_plain_convolution_in_values_and_gradients(kernel, bias, layout):
    ours = DepthwiseConv2d(24, kernel)
    plain = nn.Conv2d(24, 24, kernel, padding=kernel // 2, groups=24)
    plain.load_state_dict(ours.state_dict())
    if not bias:
        ours.bias = plain.bias = None
    x = torch.randn(2, 24, 9, 11).contiguous(memory_format=layout).requires_grad_()
    results = []
    for module in (ours, plain):
        out = module(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), (x, *module.parameters()))))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_under_autocast_it_gives_bfloat16_and_gradients_of_the_weights_own_type():
    module = DepthwiseConv2d(16, 5)
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x)
        plain = F.conv2d(x, module.weight, module.bias, padding=2, groups=16)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, plain)
    wanted = (x, *module.parameters())
    ours, theirs = (torch.autograd.grad(y.float().square().sum(), wanted) for y in (out, plain))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() <= 0.01 * other.norm()


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_what_needs_no_gradient_gets_none(frozen):
    module = DepthwiseConv2d(16, 5)
    tensors = {"x": torch.randn(1, 16, 6, 6, requires_grad=True), **dict(module.named_parameters())}
    tensors[frozen].requires_grad_(False)
    module(tensors["x"]).sum().backward()
    assert {name for name, tensor in tensors.items() if tensor.grad is None} == {frozen}


def test_it_compiles_to_one_graph():
    module = DepthwiseConv2d(16, 5)
    x = torch.randn(1, 16, 8, 8)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))
