import math

import numpy as np
import pytest
import torch

from rs_biformer.errors import ConfigError
from rs_biformer.nn.attention.conv_attention import ConvAttention, ConvRelativePosition


def modules(dim=12, heads_by_kernel=None):
    torch.manual_seed(0)
    heads_by_kernel = heads_by_kernel or {3: 1, 5: 2}
    position = ConvRelativePosition(dim, heads_by_kernel)
    return ConvAttention(dim, position.num_heads).double(), position.double()


def array(tensor):
    return tensor.detach().numpy()


def convolved(position, v):
    """Each channel of (H, W, C) with its own kernel, by loops; outside the map there is nothing."""
    height, width, _ = v.shape
    kernels = [kernel[0] for convolution in position.convolutions for kernel in array(convolution.weight)]
    biases = [bias for convolution in position.convolutions for bias in array(convolution.bias)]
    out = np.zeros_like(v)
    for channel, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        reach = len(kernel) // 2
        for row in range(height):
            for col in range(width):
                total = bias
                for i in range(-reach, reach + 1):
                    for j in range(-reach, reach + 1):
                        if 0 <= row + i < height and 0 <= col + j < width:
                            total += kernel[i + reach, j + reach] * v[row + i, col + j, channel]
                out[row, col, channel] = total
    return out


def by_position(module, position, x, tokens):
    """The attention of one sample by loops over heads, positions and channels."""
    (height, width, dim), count = x.shape, len(tokens)
    sequence = np.concatenate([tokens, x.reshape(-1, dim)])
    qkv = sequence @ array(module.qkv.weight).T + array(module.qkv.bias)
    q, k, v = np.split(qkv, 3, axis=1)
    near = convolved(position, v[count:].reshape(height, width, dim)).reshape(-1, dim)
    out = np.zeros_like(sequence)
    depth = dim // module.num_heads
    for head in range(module.num_heads):
        channels = range(head * depth, (head + 1) * depth)
        for c in channels:
            for n in range(len(sequence)):
                for d in channels:
                    weights = np.exp(k[:, d]) / np.exp(k[:, d]).sum()
                    out[n, c] += q[n, d] * (weights @ v[:, c]) / math.sqrt(depth)
    out[count:] += q[count:] * near
    out = out @ array(module.project.weight).T + array(module.project.bias)
    return out[count:].reshape(height, width, dim), out[:count]


@pytest.mark.parametrize("tokens", [0, 1, 3])
@pytest.mark.parametrize("size", [(4, 5), (1, 1), (2, 7)])
def test_it_equals_loops_over_positions(size, tokens):
    module, position = modules()
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    beside = torch.randn(2, tokens, 12, dtype=torch.float64)
    got_map, got_tokens = module(x, beside, position)
    assert got_map.shape == x.shape
    assert got_tokens.shape == beside.shape
    for number in range(2):
        want_map, want_tokens = by_position(module, position, x[number].numpy(), beside[number].numpy())
        np.testing.assert_allclose(array(got_map[number]), want_map, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(array(got_tokens[number]), want_tokens, rtol=1e-10, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences():
    module, position = modules(dim=6, heads_by_kernel={3: 1, 5: 1})
    x = torch.randn(1, 2, 3, 6, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(1, 1, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, tokens: module(x, tokens, position), (x, tokens))


def test_memory_is_linear_in_the_number_of_pixels():
    module, position = modules()
    x = torch.randn(1, 256, 256, 12, dtype=torch.float64, requires_grad=True)
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: held.append(tensor.numel()) or tensor, lambda t: t):
        module(x, x.new_empty(1, 0, 12), position)
    assert max(held) <= 3 * x.numel()  # a quadratic one would hold 65536 x 65536 per head


def test_large_logits_stay_finite_under_autocast():
    torch.manual_seed(0)
    position, module = ConvRelativePosition(16, {3: 2, 5: 2}), ConvAttention(16, 4)
    with torch.no_grad():
        module.qkv.weight *= 100
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, tokens = module(torch.randn(1, 8, 8, 16), torch.randn(1, 1, 16), position)
    assert x.isfinite().all()
    assert tokens.isfinite().all()


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ConfigError, match="5 heads do not divide 12"):
        ConvAttention(12, 5)
    with pytest.raises(ConfigError, match="5 heads do not divide 12"):
        ConvRelativePosition(12, {3: 2, 5: 3})


def test_an_even_kernel_is_refused():
    with pytest.raises(ConfigError, match="odd"):
        ConvRelativePosition(12, {4: 3})


def test_the_least_that_is_allowed_works():
    position = ConvRelativePosition(8, {1: 1})
    out, tokens = ConvAttention(8, 1)(torch.randn(1, 2, 2, 8), torch.randn(1, 0, 8), position)
    assert out.shape == (1, 2, 2, 8) and tokens.shape == (1, 0, 8)
