import pytest
import torch
from goldens import assert_equals_reference, case, published_weights, reference_input

from rs_biformer.errors import ConfigError
from rs_biformer.nn.attention.msda import MultiScaleDilatedAttention, attend_window
from rs_biformer.nn.weights import load_published_weights


def attend_by_pixel(q, k, v, kernel_size, dilation, scale):
    """Attention of one head to its window, a pixel at a time; neighbours off the map are zero keys and values."""
    height, width, _ = q.shape
    out = torch.zeros_like(v)
    steps = [dilation * (i - kernel_size // 2) for i in range(kernel_size)]
    for row in range(height):
        for column in range(width):
            window = [(row + down, column + right) for down in steps for right in steps]
            inside = [0 <= r < height and 0 <= c < width for r, c in window]
            zero = torch.zeros_like(q[0, 0])
            keys = torch.stack([k[at] if ok else zero for at, ok in zip(window, inside, strict=True)])
            values = torch.stack([v[at] if ok else zero for at, ok in zip(window, inside, strict=True)])
            out[row, column] = (scale * keys @ q[row, column]).softmax(0) @ values
    return out


@pytest.mark.parametrize(
    ("height", "width", "kernel_size", "dilation"), [(4, 5, 3, 1), (4, 5, 3, 2), (3, 2, 5, 2), (1, 1, 3, 4)]
)
def test_it_equals_a_loop_over_pixels_in_values_and_gradients(height, width, kernel_size, dilation):
    maps = [t.requires_grad_() for t in torch.randn(3, 2, height, width, 2, 4, dtype=torch.float64)]
    out = attend_window(*maps, kernel_size, dilation, 0.3)
    heads = [
        attend_by_pixel(*(t[sample, :, :, head] for t in maps), kernel_size, dilation, 0.3)
        for sample in (0, 1)
        for head in (0, 1)
    ]
    expected = torch.stack(heads).unflatten(0, (2, 2)).permute(0, 2, 3, 1, 4)
    torch.testing.assert_close(out, expected)
    cotangent = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(y, maps, cotangent) for y in (out, expected))
    torch.testing.assert_close(ours, theirs)


def test_neighbours_off_the_map_take_weight_but_add_nothing():
    q = k = torch.zeros(1, 1, 1, 1, 2)
    v = torch.ones(1, 1, 1, 1, 2)
    assert attend_window(q, k, v, 3, 1, 1.0).flatten().tolist() == pytest.approx([1 / 9, 1 / 9])


def test_a_group_of_heads_sees_no_further_than_its_dilation():
    module = MultiScaleDilatedAttention(8, 2, kernel_size=3, dilations=(1, 3)).double()
    torch.nn.init.eye_(module.project.weight)
    x = torch.randn(1, 9, 9, 8, dtype=torch.float64, requires_grad=True)
    for channels, reach in ((slice(0, 4), 1), (slice(4, 8), 3)):
        (seen,) = torch.autograd.grad(module(x)[0, 4, 4, channels].sum(), x)
        rows, columns = seen[0].abs().sum(-1).nonzero(as_tuple=True)
        assert set(rows.tolist()) == set(columns.tolist()) == {4 - reach, 4, 4 + reach}


@pytest.mark.parametrize("flip", [(1,), (2,)])
def test_it_turns_with_the_map(flip):
    module = MultiScaleDilatedAttention(16, 2).double()
    x = torch.randn(1, 6, 7, 16, dtype=torch.float64)
    torch.testing.assert_close(module(x.flip(flip)), module(x).flip(flip))
    torch.testing.assert_close(module(x.transpose(1, 2)), module(x).transpose(1, 2))


def test_bfloat16_autocast_agrees_with_float32():
    module = MultiScaleDilatedAttention(32, 2)
    x = torch.randn(2, 6, 5, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), module(x), atol=0.03, rtol=0.03)


def test_it_equals_the_published_implementation():
    reference = case("msda_k3_d12")
    module = MultiScaleDilatedAttention(64, 4, kernel_size=3, dilations=(1, 2)).double()
    load_published_weights(module, published_weights(reference["keys"]))
    with torch.no_grad():
        out = module(reference_input(reference["input"]).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert_equals_reference(out, reference["features"][0])


@pytest.mark.parametrize(
    "arguments",
    [
        {"dim": 32, "num_heads": 3},
        {"dim": 32, "num_heads": 1},
        {"dim": 32, "num_heads": 2, "kernel_size": 2},
        {"dim": 32, "num_heads": 2, "dilations": ()},
        {"dim": 32, "num_heads": 2, "dilations": (0, 1)},
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments):
    with pytest.raises(ConfigError):
        MultiScaleDilatedAttention(**arguments)


def test_the_least_that_is_allowed_works_and_the_defaults_are_the_papers():
    assert MultiScaleDilatedAttention(8, 1, kernel_size=1, dilations=(1,))(torch.randn(1, 2, 2, 8)).shape == (
        1,
        2,
        2,
        8,
    )
    module = MultiScaleDilatedAttention(8, 2)
    assert (module.kernel_size, module.dilations) == (3, (1, 2))
