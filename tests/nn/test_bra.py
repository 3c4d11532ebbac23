import pytest
import torch
import torch.nn.functional as F
from goldens import assert_equals_reference, case, published_weights, reference_input

from rs_biformer.errors import ConfigError
from rs_biformer.nn.attention import bra
from rs_biformer.nn.attention.bra import (
    BiLevelRoutingAttention,
    attend_dense,
    attend_everywhere,
    attend_gathered,
    route,
)
from rs_biformer.nn.weights import load_published_weights


def attend_by_loop(q, k, v, regions, topk, num_heads, scale):
    """Routed attention written from the paper's description, a region and a head at a time; (H, W, C) each."""
    height, width, channels = q.shape
    rows, columns = -(-height // regions), -(-width // regions)
    corners = [(row, column) for row in range(0, height, rows) for column in range(0, width, columns)]
    boxes = [(slice(row, row + rows), slice(column, column + columns)) for row, column in corners]
    out = torch.zeros_like(v)
    for box in boxes:
        mean = q[box].detach().flatten(0, 1).mean(0)
        affinity = torch.stack([mean @ k[other].detach().flatten(0, 1).mean(0) for other in boxes])
        chosen = [boxes[i] for i in affinity.topk(min(topk, len(boxes))).indices]
        keys = torch.cat([k[other].flatten(0, 1) for other in chosen])
        values = torch.cat([v[other].flatten(0, 1) for other in chosen])
        for head in torch.arange(channels).chunk(num_heads):
            weights = (scale * q[box][..., head] @ keys[:, head].T).softmax(-1)
            out[box][..., head] = weights @ values[:, head]
    return out


def random_qkv(batch, height, width, channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, batch, height, width, channels)
    return [t.requires_grad_() for t in torch.randn(shape, generator=generator, dtype=torch.float64)]


@pytest.mark.parametrize("method", [attend_dense, attend_gathered])
@pytest.mark.parametrize(
    ("height", "width", "regions", "topk"), [(8, 8, 4, 3), (16, 8, 8, 5), (9, 13, 4, 2), (5, 3, 4, 1), (2, 19, 8, 3)]
)
def test_each_method_equals_a_loop_over_regions_in_values_and_gradients(method, height, width, regions, topk):
    q, k, v = random_qkv(2, height, width, 8)
    region = bra.region_size(height, width, regions)
    out = method(q, k, v, route(q, k, region, topk), region, 2, 0.3)
    expected = torch.stack([attend_by_loop(*maps, regions, topk, 2, 0.3) for maps in zip(q, k, v, strict=True)])
    torch.testing.assert_close(out, expected)
    cotangent = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(y, (q, k, v), cotangent) for y in (out, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size", [(16, 16), (11, 6), (3, 2), (1, 1)])
def test_with_all_regions_it_is_ordinary_attention(size):
    module = BiLevelRoutingAttention(32, 2, regions=4, topk=16).double()
    x = torch.randn(2, *size, 32, dtype=torch.float64)
    q, k, v = (t.flatten(1, 2).view(2, -1, 2, 16).transpose(1, 2) for t in module.qkv(x).chunk(3, -1))
    weights = (q @ k.mT * 32**-0.5).softmax(-1)
    attended = (weights @ v).transpose(1, 2).reshape(x.shape)
    local = module.local(module.qkv(x).chunk(3, -1)[2].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(module(x), module.project(attended + local))


@pytest.mark.parametrize("method", [attend_dense, attend_gathered])
def test_routing_to_all_regions_is_attention_everywhere(method):
    q, k, v = random_qkv(1, 7, 10, 8)
    region = bra.region_size(7, 10, 4)
    routes = route(q, k, region, 16)
    torch.testing.assert_close(method(q, k, v, routes, region, 2, 0.5), attend_everywhere(q, k, v, 2, 0.5))


def test_what_padding_holds_cannot_change_the_result(monkeypatch):
    q, k, v = random_qkv(2, 9, 13, 8)
    region = bra.region_size(9, 13, 4)
    routes = route(q, k, region, 2)
    clean = attend_gathered(q, k, v, routes, region, 2, 0.3)

    def pad_with_rubbish(x, height, width):
        if x.dtype == torch.bool:
            return F.pad(x, (0, 0, 0, -x.shape[2] % width, 0, -x.shape[1] % height), value=False)
        return F.pad(x, (0, 0, 0, -x.shape[2] % width, 0, -x.shape[1] % height), value=1e4)

    monkeypatch.setattr(bra, "pad_to_multiple", pad_with_rubbish)
    assert torch.equal(attend_gathered(q, k, v, routes, region, 2, 0.3), clean)


def test_region_means_leave_out_padding():
    """On a map whose last region is a single pixel, that pixel alone decides where the region looks."""
    q = torch.zeros(1, 1, 5, 1)
    q[0, 0, 4] = 1.0
    k = torch.tensor([1.0, 1.0, 5.0, 5.0, 8.0]).view(1, 1, 5, 1)
    assert route(q, k, (1, 2), 1)[0, 2].tolist() == [2]  # with a zero averaged in, 8 / 2 would lose against 5


def test_routing_has_no_gradient_and_attention_has():
    q, k, v = random_qkv(1, 8, 8, 8)
    routes = route(q, k, (2, 2), 3)
    assert not routes.requires_grad
    for gradient in torch.autograd.grad(attend_gathered(q, k, v, routes, (2, 2), 2, 0.3).square().sum(), (q, k, v)):
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize(("size", "topk"), [((16, 16), 16), ((64, 64), 1), ((20, 33), 8)])
def test_the_choice_of_method_does_not_change_the_result(monkeypatch, size, topk):
    module = BiLevelRoutingAttention(32, 1, topk=topk).double()
    x = torch.randn(1, *size, 32, dtype=torch.float64)
    results = []
    for dense in (True, False):
        monkeypatch.setattr(bra, "_use_dense", lambda *_, dense=dense: dense)
        results.append(module(x))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(("size", "topk"), [(16, 16), (64, 1)])
def test_it_compiles_to_one_graph(size, topk):
    module = BiLevelRoutingAttention(16, 1, topk=topk)
    x = torch.randn(1, size, size, 16)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), module(x))


def test_a_batch_gives_what_its_samples_give_alone():
    module = BiLevelRoutingAttention(32, 1, regions=4, topk=2).double()
    x = torch.randn(3, 12, 9, 32, dtype=torch.float64)
    torch.testing.assert_close(module(x), torch.cat([module(sample[None]) for sample in x]))


@pytest.mark.parametrize("flip", [(1,), (2,), (1, 2)])
def test_it_turns_with_the_map_when_regions_divide_it_and_the_local_kernel_is_symmetric(flip):
    module = BiLevelRoutingAttention(32, 2, regions=4, topk=3, local_kernel=1).double()
    x = torch.randn(1, 8, 12, 32, dtype=torch.float64)
    torch.testing.assert_close(module(x.flip(flip)), module(x).flip(flip))
    torch.testing.assert_close(module(x.transpose(1, 2)), module(x).transpose(1, 2))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 7), (9, 8), (33, 50), (64, 64)])
@pytest.mark.parametrize("topk", [1, 4, 16, 64])
def test_it_takes_a_map_of_any_size(size, topk):
    module = BiLevelRoutingAttention(16, 1, topk=topk)
    x = torch.randn(1, *size, 16, requires_grad=True)
    module(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(("size", "topk"), [(32, 2), (16, 16), (8, 64)])
def test_bfloat16_autocast_agrees_with_float32_given_the_same_routes(monkeypatch, size, topk):
    module = BiLevelRoutingAttention(32, 1, topk=topk)
    routes = torch.rand(2, 64, 64).topk(topk).indices  # rounding may well decide between regions that are alike
    monkeypatch.setattr(bra, "route", lambda *_: routes)
    x = torch.randn(2, size, size, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), module(x), atol=0.03, rtol=0.03)


def test_checkpointing_gives_the_same_gradients():
    module = BiLevelRoutingAttention(16, 1, regions=4, topk=2)
    x = torch.randn(1, 8, 8, 16, requires_grad=True)
    (plain,) = torch.autograd.grad(module(x).square().sum(), x)
    out = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False)
    (checkpointed,) = torch.autograd.grad(out.square().sum(), x)
    torch.testing.assert_close(plain, checkpointed)


def test_it_equals_the_published_implementation(shared):
    reference = case(shared, "bra_nchw")
    module = BiLevelRoutingAttention(64, 2, regions=8, topk=4, local_kernel=5).double()
    load_published_weights(module, published_weights(reference["keys"]))
    with torch.no_grad():
        out = module(reference_input(reference["input"]).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert_equals_reference(out, reference["features"][0])


@pytest.mark.parametrize(
    "arguments",
    [
        {"dim": 30, "num_heads": 4},
        {"dim": 32, "num_heads": 0},
        {"dim": 32, "num_heads": 1, "topk": 0},
        {"dim": 32, "num_heads": 1, "regions": 0},
        {"dim": 32, "num_heads": 1, "local_kernel": 4},
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments):
    with pytest.raises(ConfigError):
        BiLevelRoutingAttention(**arguments)
