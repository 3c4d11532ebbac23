import pytest
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from rs_biformer.nn.depthwise import DepthwiseConv2d, input_gradient, learn_fast, weight_gradient
from rs_biformer.nn.encoders.library import library_encoder


@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("size", [(9, 11), (1, 1), (2, 1), (1, 20)])
def test_the_gradient_of_the_weights_is_that_of_a_plain_convolution(kernel, size):
    x, gradient = torch.randn(2, 2, *size, 16, dtype=torch.float64).permute(0, 1, 4, 2, 3)
    weight = torch.randn(16, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, padding=kernel // 2, groups=16), weight, gradient)
    torch.testing.assert_close(weight_gradient(x, gradient, kernel), expected)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("kernel", [3, 4, 5])
@pytest.mark.parametrize("size", [(9, 11), (5, 5), (8, 5)])
def test_both_gradients_of_strides_and_paddings_are_those_of_a_plain_convolution(kernel, stride, padding, size):
    x = torch.randn(2, *size, 16, dtype=torch.float64).permute(0, 3, 1, 2).requires_grad_()
    weight = torch.randn(16, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    out = F.conv2d(x, weight, None, stride, padding, groups=16)
    gradient = torch.randn_like(out)
    expected = torch.autograd.grad(out, (x, weight), gradient)
    torch.testing.assert_close(weight_gradient(x.detach(), gradient, kernel, stride, padding), expected[1])
    of_x = input_gradient(x.detach(), weight.detach(), gradient, stride, padding)
    assert of_x.dtype == torch.float64
    torch.testing.assert_close(of_x, expected[0])


THEIRS = {
    "wide": lambda: nn.Conv2d(16, 16, 5, padding=2, groups=16),
    "strided": lambda: nn.Conv2d(16, 16, 3, 2, 1, groups=16, bias=False),
    "as TensorFlow pads": lambda: Conv2dSame(16, 16, 5, 2, groups=16, bias=False),
}
LEFT = {
    "narrow": lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16),
    "dense": lambda: nn.Conv2d(16, 16, 5, padding=2),
    "groups of two": lambda: nn.Conv2d(16, 16, 5, padding=2, groups=8),
    "twice as many": lambda: nn.Conv2d(16, 32, 5, padding=2, groups=16),
    "oblong": lambda: nn.Conv2d(16, 16, (1, 7), padding=(0, 3), groups=16),
    "padding by name": lambda: nn.Conv2d(16, 16, 5, padding="same", groups=16),
    "dilated": lambda: nn.Conv2d(16, 16, 5, padding=4, dilation=2, groups=16),
    "reflecting": lambda: nn.Conv2d(16, 16, 5, padding=2, groups=16, padding_mode="reflect"),
}


@pytest.mark.parametrize("kind", [*THEIRS, *LEFT])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_convolution_of_another_library_gives_and_learns_the_same_after_the_exchange(kind, autocast):
    module = (THEIRS | LEFT)[kind]()
    x = torch.randn(2, 16, 12, 13).contiguous(memory_format=torch.channels_last).requires_grad_()
    network = nn.Sequential(module).eval()
    before = network.state_dict()
    results = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = network(x)
        gradients = torch.autograd.grad(out.float().square().sum(), (x, *network.parameters()))
        results.append([out.float(), *(gradient.float() for gradient in gradients)])
        learn_fast(network)
    assert isinstance(network[0], DepthwiseConv2d) == (kind in THEIRS)
    assert not network[0].training
    assert {name: value.data_ptr() for name, value in network.state_dict().items()} == {
        name: value.data_ptr() for name, value in before.items()
    }
    for theirs, ours in zip(*results, strict=True):
        assert (ours - theirs).norm() <= (4e-3 if autocast else 1e-5) * theirs.norm()


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_convnext", "mobilenet_v2"])
def test_encoders_of_other_libraries_have_no_convolution_left_that_learns_slowly(name):
    slow = [
        module
        for module in library_encoder(name).modules()
        if isinstance(module, nn.Conv2d)
        and module.groups == module.in_channels == module.out_channels
        and (max(module.kernel_size) > 3 or max(module.stride) > 1)
    ]
    assert slow
    assert {type(module) for module in slow} == {DepthwiseConv2d}


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
