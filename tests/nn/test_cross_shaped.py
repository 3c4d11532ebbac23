import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rs_biformer.errors import ConfigError
from rs_biformer.nn.attention.cross_shaped import CrossShapedAttention


def attention(dim=8, num_heads=4, stripe=2, mask_padding=False, seed=0):
    torch.manual_seed(seed)
    return CrossShapedAttention(dim, num_heads, stripe, mask_padding).double()


def by_pixel(module, x):
    """The same by loops over directions, stripes, heads and pixels; stripes are lists of coordinates, never padded."""
    batch, height, width, dim = x.shape
    qkv = F.linear(x, module.qkv.weight, module.qkv.bias)
    out = torch.zeros_like(x)
    head = dim // (module.heads * module.directions)
    for number in range(batch):
        for direction, local in enumerate(module.local):
            for stripe, keys in stripes_of(height, width, module.stripe, direction):
                rows = [row for row, _ in stripe]
                cols = [col for _, col in stripe]
                box = (slice(min(rows), max(rows) + 1), slice(min(cols), max(cols) + 1))
                first = direction * dim // module.directions
                channels = slice(2 * dim + first, 2 * dim + first + dim // module.directions)
                values = qkv[number, box[0], box[1], channels].permute(2, 0, 1)
                near = F.conv2d(values[None], local.weight, local.bias, padding=1, groups=len(values))[0]
                for m in range(module.heads):
                    at = first + m * head
                    q, k, v = (qkv[number, rows, cols, part * dim + at : part * dim + at + head] for part in range(3))
                    weight = torch.exp(q @ k.T / head**0.5)
                    # a padded key is zero: its weight is exp(0) and its value nothing
                    absent = 0 if module.mask_padding else keys - len(stripe)
                    seen = weight @ v / (weight.sum(1, keepdim=True) + absent)
                    out[number, rows, cols, at : at + head] = seen
                out[number, box[0], box[1], first : first + len(values)] += near.permute(1, 2, 0)
    return F.linear(out, module.project.weight, module.project.bias)


def stripes_of(height, width, stripe, direction):
    """(pixels on the map, pixels with padding) of each stripe; vertical ones first. Half of the padding lies before."""
    pixels = [(row, col) for row in range(height) for col in range(width)]
    if stripe is None:
        return [(pixels, len(pixels))]
    across, along = (width, height) if direction == 0 else (height, width)
    before = -across % stripe // 2
    groups: dict[int, list] = {}
    for row, col in pixels:
        groups.setdefault(((col if direction == 0 else row) + before) // stripe, []).append((row, col))
    return [(group, along * stripe) for group in groups.values()]


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize(
    ("size", "stripe"), [((4, 6), 2), ((5, 7), 3), ((3, 3), 7), ((1, 1), 7), ((7, 4), 1), ((2, 9), None)]
)
def test_it_equals_loops_over_stripes_and_pixels(size, stripe, mask_padding):
    module = attention(stripe=stripe, mask_padding=mask_padding)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    torch.testing.assert_close(module(x), by_pixel(module, x), rtol=1e-10, atol=1e-12)


def test_a_stripe_as_wide_as_the_map_is_dense_attention():
    module = attention(dim=16, num_heads=4, stripe=6)
    for local in module.local:
        nn.init.zeros_(local.weight)
        nn.init.zeros_(local.bias)
    dense = nn.MultiheadAttention(16, 4, batch_first=True).double()
    dense.load_state_dict(
        {
            "in_proj_weight": module.qkv.weight,
            "in_proj_bias": module.qkv.bias,
            "out_proj.weight": module.project.weight,
            "out_proj.bias": module.project.bias,
        }
    )
    x = torch.randn(2, 6, 6, 16, dtype=torch.float64)
    tokens = x.flatten(1, 2)
    expected, _ = dense(tokens, tokens, tokens)
    torch.testing.assert_close(module(x).flatten(1, 2), expected, rtol=1e-10, atol=1e-12)


def test_a_pixel_sees_the_cross_of_its_two_stripes_and_nothing_else():
    x = torch.randn(1, 6, 8, 8, dtype=torch.float64, requires_grad=True)
    out = attention(stripe=2)(x)
    (gradient,) = torch.autograd.grad(out[0, 3, 5].sum(), x)
    cross = torch.zeros(6, 8, dtype=torch.bool)
    cross[2:4] = True  # the row stripe of row 3
    cross[:, 4:6] = True  # the column stripe of column 5
    assert torch.equal(gradient[0].abs().sum(-1) > 0, cross)


@pytest.mark.parametrize("size", [(5, 9), (1, 3), (8, 8)])
def test_masked_padding_leaves_a_constant_map_constant(size):
    module = attention(stripe=7, mask_padding=True)
    for local in module.local:
        nn.init.zeros_(local.weight)
    out = module(torch.ones(1, *size, 8, dtype=torch.float64))
    torch.testing.assert_close(out, out[:, :1, :1].expand_as(out))


def test_padding_as_published_takes_a_share_of_the_border():
    module = attention(stripe=7, mask_padding=False)
    for local in module.local:
        nn.init.zeros_(local.weight)
    out = module(torch.ones(1, 9, 9, 8, dtype=torch.float64))
    assert not torch.allclose(out, out[:, :1, :1].expand_as(out))


def test_masking_changes_nothing_where_the_stripes_divide_the_map():
    x = torch.randn(1, 6, 4, 8, dtype=torch.float64)
    assert torch.equal(attention(mask_padding=True)(x), attention(mask_padding=False)(x))


@pytest.mark.parametrize("mask_padding", [False, True])
def test_gradients_are_those_of_the_loops(mask_padding):
    module = attention(stripe=3, mask_padding=mask_padding)
    x = torch.randn(1, 4, 5, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    ours = torch.autograd.grad((module(x) * weight).sum(), [x, *module.parameters()])
    loops = torch.autograd.grad((by_pixel(module, x) * weight).sum(), [x, *module.parameters()])
    torch.testing.assert_close(ours, loops, rtol=1e-9, atol=1e-11)


def test_under_autocast_it_stays_close_to_float32():
    torch.manual_seed(0)
    module = CrossShapedAttention(32, 4, 7, mask_padding=True)
    x = torch.randn(1, 9, 10, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), module(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((30, 4, 2), "do not divide 30"), ((9, 3, 2), "even number"), ((8, 2, 0), "stripes"), ((8, 0, 2), "0 heads")],
)
def test_heads_that_cannot_be_shared_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        CrossShapedAttention(*arguments)


def test_the_least_that_is_allowed_works_and_padding_is_attended_by_default():
    x = torch.randn(1, 3, 5, 8)
    assert CrossShapedAttention(8, 1, None)(x).shape == x.shape
    assert CrossShapedAttention(8, 2, 1)(x).shape == x.shape
    assert not CrossShapedAttention(8, 2, 2).mask_padding
