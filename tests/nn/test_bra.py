import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from goldens import assert_equals_reference, case, published_weights, reference_input

from rs_biformer.errors import ConfigError
from rs_biformer.nn.attention import bra, routed
from rs_biformer.nn.attention.bra import (
    METHODS,
    BiLevelRoutingAttention,
    choose_method,
    keep_region_size,
    route,
    use_method,
)
from rs_biformer.nn.attention.routed import (
    attend_dense,
    attend_flex,
    attend_gathered,
)
from rs_biformer.nn.attention.softmax import attend_everywhere
from rs_biformer.nn.weights import load_published_weights

QUICK = (attend_dense, attend_gathered)
"""The ways that run at once: FlexAttention is traced anew for each shape."""


@pytest.fixture(autouse=True)
def gradients_of_flex_attention_on_the_cpu(monkeypatch):
    """PyTorch refuses them there since it has no kernel; its plain code, which is what is to be compared, has them."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)


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


@pytest.mark.parametrize(
    ("method", "size"),
    [
        *itertools.product(QUICK, [(8, 8, 4, 3), (12, 8, 4, 5), (9, 13, 4, 2), (5, 3, 4, 1), (2, 19, 8, 3)]),
        *((attend_flex, size) for size in [(12, 8, 4, 5), (9, 13, 4, 2)]),
    ],
)
def test_each_method_equals_a_loop_over_regions_in_values_and_gradients(method, size):
    height, width, regions, topk = size
    q, k, v = random_qkv(2, height, width, 8)
    region = bra.region_size(height, width, regions)
    out = method(q, k, v, route(q, k, region, topk), region, 2, 0.3)
    expected = torch.stack([attend_by_loop(*maps, regions, topk, 2, 0.3) for maps in zip(q, k, v, strict=True)])
    torch.testing.assert_close(out, expected)
    cotangent = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(y, (q, k, v), cotangent) for y in (out, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size", [(8, 8, 4, 3), (12, 8, 4, 5), (9, 13, 4, 2), (5, 3, 4, 1), (2, 19, 8, 3)])
def test_where_nothing_is_learned_it_equals_the_loop_too(size):
    height, width, regions, topk = size
    q, k, v = (part.detach() for part in random_qkv(2, height, width, 8))
    region = bra.region_size(height, width, regions)
    out = attend_gathered(q, k, v, route(q, k, region, topk), region, 2, 0.3)
    expected = torch.stack([attend_by_loop(*maps, regions, topk, 2, 0.3) for maps in zip(q, k, v, strict=True)])
    torch.testing.assert_close(out, expected)


class Encoder(torch.nn.Module):
    """Two stages of routed attention, at strides 2 and 4; the second attends to all regions of 4 x 4."""

    def __init__(self) -> None:
        super().__init__()
        self.first = BiLevelRoutingAttention(16, 2, regions=4, topk=3)
        self.second = BiLevelRoutingAttention(16, 2, regions=4, topk=16)
        self.embed = torch.nn.Conv2d(3, 16, 2, stride=2)
        self.norm = torch.nn.BatchNorm2d(16)

    def forward(self, x):
        x = self.first(self.norm(self.embed(x)).permute(0, 2, 3, 1))
        return x, self.second(x[:, ::2, ::2])


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (48, 32), (70, 32), (16, 8)])
def test_regions_that_keep_their_size_are_as_many_more_as_the_map_is_larger(height, width):
    torch.manual_seed(0)
    model = Encoder().eval()
    kept = keep_region_size(model, 32, torch.zeros(1, 3, 8, 8))
    x = torch.randn(1, 3, height, width)
    first, second = kept(x)
    assert (kept.first.region, kept.second.region) == ((4, 4), (2, 2))
    embedded = model.norm(model.embed(x)).permute(0, 2, 3, 1)

    def by_definition(module, image, topk):
        q, k, v = module.qkv(image).chunk(3, -1)
        side = 4 if module is model.first else 2  # pixels: a quarter of the map of an image of 32 x 32
        rows, columns = (range(0, length, side) for length in image.shape[1:3])
        boxes = [(slice(row, row + side), slice(column, column + side)) for row in rows for column in columns]
        out = torch.zeros_like(v[0])
        for box in boxes:
            affinity = torch.stack([q[0][box].flatten(0, 1).mean(0) @ k[0][o].flatten(0, 1).mean(0) for o in boxes])
            chosen = [boxes[i] for i in affinity.topk(min(topk, len(boxes))).indices]
            keys, values = (torch.cat([part[0][o].flatten(0, 1) for o in chosen]) for part in (k, v))
            for head in torch.arange(16).chunk(2):
                weights = (module.scale * q[0][box][..., head] @ keys[:, head].T).softmax(-1)
                out[box][..., head] = weights @ values[:, head]
        local = module.local(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return module.project(out[None] + local)

    with torch.no_grad():
        wanted = by_definition(model.first, embedded, 3)
        torch.testing.assert_close(first, wanted)
        torch.testing.assert_close(second, by_definition(model.second, wanted[:, ::2, ::2], 10**6))


def test_keeping_the_size_of_regions_leaves_the_model_alone_and_shares_its_weights():
    model = Encoder().eval()
    kept = keep_region_size(model, 32, torch.zeros(1, 3, 8, 8))
    x = torch.randn(2, 3, 32, 32)
    assert model.first.region is None
    assert [id(one) for one in kept.parameters()] == [id(one) for one in model.parameters()]
    assert [one.data_ptr() for one in kept.buffers()] == [one.data_ptr() for one in model.buffers()]
    for one, other in zip(kept(x), model(x), strict=True):  # on the size that was kept, nothing is different
        assert torch.equal(one, other)
    plain = torch.nn.Conv2d(3, 3, 1)
    assert keep_region_size(plain, 32, x) is plain


@pytest.mark.parametrize("size", [(16, 16), (11, 6), (3, 2), (1, 1)])
def test_with_all_regions_it_is_ordinary_attention(size):
    module = BiLevelRoutingAttention(32, 2, regions=4, topk=16).double()
    x = torch.randn(2, *size, 32, dtype=torch.float64)
    q, k, v = (t.flatten(1, 2).view(2, -1, 2, 16).transpose(1, 2) for t in module.qkv(x).chunk(3, -1))
    weights = (q @ k.mT * 32**-0.5).softmax(-1)
    attended = (weights @ v).transpose(1, 2).reshape(x.shape)
    local = module.local(module.qkv(x).chunk(3, -1)[2].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(module(x), module.project(attended + local))


@pytest.mark.parametrize("method", QUICK)
def test_routing_to_all_regions_is_attention_everywhere(method):
    q, k, v = random_qkv(1, 7, 10, 8)
    region = bra.region_size(7, 10, 4)
    routes = route(q, k, region, 16)
    torch.testing.assert_close(method(q, k, v, routes, region, 2, 0.5), attend_everywhere(q, k, v, 2, 0.5))


@pytest.mark.parametrize("method", METHODS.values())
def test_what_padding_holds_cannot_change_the_result(monkeypatch, method):
    q, k, v = random_qkv(2, 9, 13, 8)
    region = bra.region_size(9, 13, 4)
    routes = route(q, k, region, 2)
    clean = method(q, k, v, routes, region, 2, 0.3)

    def pad_with_rubbish(x, height, width):
        filling = False if x.dtype == torch.bool else 1e4
        return F.pad(x, (0, 0, 0, -x.shape[2] % width, 0, -x.shape[1] % height), value=filling)

    monkeypatch.setattr(routed, "pad_to_multiple", pad_with_rubbish)
    rubbish = method(q, k, v, routes, region, 2, 0.3)
    assert torch.equal(rubbish, clean)
    with torch.no_grad():
        torch.testing.assert_close(method(*(part.detach() for part in (q, k, v)), routes, region, 2, 0.3), clean)
    cotangent = torch.randn_like(clean)
    assert torch.equal(*(torch.stack(torch.autograd.grad(y, (q, k, v), cotangent)) for y in (rubbish, clean)))


@pytest.mark.parametrize(("size", "topk"), [((9, 13), 3), ((10, 10), 5)])
def test_a_map_that_does_not_divide_is_not_what_its_padded_map_gives(size, topk):
    """Zeros around a map would be pooled and attended; here nothing beyond its border exists."""
    module = BiLevelRoutingAttention(8, 1, regions=4, topk=topk).double()
    x = torch.randn(1, *size, 8, dtype=torch.float64)
    padded = F.pad(x, (0, 0, 0, -size[1] % 4, 0, -size[0] % 4))
    assert not torch.allclose(module(x), module(padded)[:, : size[0], : size[1]])


def test_region_means_leave_out_padding():
    """On a map whose last region is a single pixel, that pixel alone decides where the region looks."""
    q = torch.zeros(1, 1, 5, 1)
    q[0, 0, 4] = 1.0
    k = torch.tensor([1.0, 1.0, 5.0, 5.0, 8.0]).view(1, 1, 5, 1)
    assert route(q, k, (1, 2), 1)[0, 2].tolist() == [2]  # with a zero averaged in, 8 / 2 would lose against 5


@pytest.mark.parametrize(("size", "region"), [((8, 12), (2, 3)), ((9, 13), (3, 4)), ((2, 5), (1, 1)), ((7, 3), (4, 4))])
def test_region_means_are_those_of_a_loop(size, region):
    x = torch.randn(2, *size, 3, dtype=torch.float64)
    corners = [(row, col) for row in range(0, size[0], region[0]) for col in range(0, size[1], region[1])]
    boxes = [x[:, row : row + region[0], col : col + region[1]] for row, col in corners]
    expected = torch.stack([box.flatten(1, 2).mean(1) for box in boxes], dim=1)
    torch.testing.assert_close(bra.region_means(x, region), expected)


@pytest.mark.parametrize("method", QUICK)
def test_routing_has_no_gradient_and_attention_has(method):
    q, k, v = random_qkv(1, 8, 8, 8)
    routes = route(q, k, (2, 2), 3)
    assert not routes.requires_grad
    for gradient in torch.autograd.grad(method(q, k, v, routes, (2, 2), 2, 0.3).square().sum(), (q, k, v)):
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize(("size", "topk"), [((16, 16), 16), ((24, 24), 1), ((20, 33), 8)])
def test_the_choice_of_method_changes_neither_the_result_nor_the_gradients(size, topk):
    module = BiLevelRoutingAttention(32, 1, topk=topk, local_kernel=1).double()
    x = torch.randn(1, *size, 32, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(x.shape, dtype=torch.float64)
    expected = None
    for name in (None, "dense", "gathered"):
        use_method(module, name)
        out = module(x)
        result = (out, *torch.autograd.grad(out, (x, *module.parameters()), cotangent))
        torch.testing.assert_close(result, expected or result)
        expected = result


def test_the_rule_is_dense_on_small_maps_and_gathers_elsewhere():
    assert choose_method(16 * 16, 16 / 64) is attend_dense
    assert choose_method(16 * 16, 1 / 64) is attend_gathered
    assert choose_method(64 * 64, 16 / 64) is attend_gathered
    assert choose_method(32 * 32, 16 / 64) is attend_dense
    assert choose_method(32 * 32, 16 / 64, infers=True) is attend_gathered
    assert choose_method(16 * 16, 16 / 64, infers=True) is attend_dense


def test_a_method_can_be_asked_for_by_name_and_given_back_to_the_rule():
    model = torch.nn.Sequential(BiLevelRoutingAttention(8, 1), torch.nn.Identity(), BiLevelRoutingAttention(8, 1))
    use_method(model, "flex")
    assert model[0].method is model[2].method is routed.attend_flex
    use_method(model, None)
    assert model[0].method is None
    with pytest.raises(ConfigError, match="fast is no way .* dense, gathered, flex"):
        use_method(model, "fast")
    with pytest.raises(ConfigError, match="Identity has no bi-level routing attention"):
        use_method(torch.nn.Identity(), "dense")


@pytest.mark.parametrize(
    ("height", "width", "region", "topk"), [(64, 64, (8, 8), 3), (64, 48, (16, 16), 2), (9, 13, (3, 4), 2)]
)
def test_the_block_mask_skips_no_routed_pair_and_waves_no_other_through(height, width, region, topk):
    """Blocks of 128 tokens: two regions of 64, half a region of 256, or a dozen of 12 with padding among them."""
    q, k, _ = random_qkv(2, height, width, 4)
    routes = route(q, k, region, topk)
    on_map = routed.pixels_on_map((height, width), region, q.device)
    count, pixels = on_map.shape
    block_mask = routed.routed_block_mask(routes, (height, width), region)
    tokens = count * pixels
    blocks = -(-tokens // routed.FLEX_BLOCK)
    allowed = torch.zeros(2, blocks * routed.FLEX_BLOCK, blocks * routed.FLEX_BLOCK, dtype=torch.bool)
    for sample in range(2):
        for region_number, chosen in enumerate(routes[sample].tolist()):
            rows = slice(region_number * pixels, (region_number + 1) * pixels)
            for other in chosen:
                allowed[sample, rows, other * pixels : (other + 1) * pixels] = on_map[other]
    index = torch.arange(tokens)
    seen = torch.stack([block_mask.mask_mod(torch.tensor(b), None, index[:, None], index) for b in (0, 1)])
    assert torch.equal(seen, allowed[:, :tokens, :tokens])
    tiles = (
        allowed.unflatten(2, (blocks, -1)).unflatten(1, (blocks, -1)).transpose(2, 3)
    )  # (B, rows, columns, 128, 128)
    partial = listed_blocks(block_mask.kv_num_blocks, block_mask.kv_indices)
    full = listed_blocks(block_mask.full_kv_num_blocks, block_mask.full_kv_indices)
    assert torch.equal(full, tiles.flatten(3).all(-1))
    assert torch.equal(partial, tiles.flatten(3).any(-1) & ~full)
    if region == (8, 8):
        assert 0 < (partial | full).float().mean() < 1


def test_the_block_mask_is_the_same_under_autocast():
    """Pairs of a block of 128 tokens are counted up to 128 * 128, which bfloat16 cannot tell from one less."""
    routes = torch.tensor([[[0, 1], [0, 0]]])  # of regions of 127 tokens: all pairs of the first block but one
    plain = routed.routed_block_mask(routes, (1, 254), (1, 127))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = routed.routed_block_mask(routes, (1, 254), (1, 127))
    assert plain.full_kv_num_blocks[0, 0, 0] == 0
    for name in ("kv_num_blocks", "full_kv_num_blocks"):
        assert torch.equal(getattr(plain, name), getattr(cast, name)), name


def listed_blocks(counts, indices):
    chosen = torch.zeros(indices[:, 0].shape, dtype=torch.bool)
    for sample, rows in enumerate(counts[:, 0].tolist()):
        for row, count in enumerate(rows):
            chosen[sample, row, indices[sample, 0, row, :count].long()] = True
    return chosen


def test_a_batch_gives_what_its_samples_give_alone():
    module = BiLevelRoutingAttention(32, 1, regions=4, topk=2).double()
    x = torch.randn(3, 12, 9, 32, dtype=torch.float64)
    torch.testing.assert_close(module(x), torch.cat([module(sample[None]) for sample in x]))


@pytest.mark.parametrize("steps", [(3, 0), (0, 4), (-6, 8)])
def test_it_moves_with_the_map_by_whole_regions_but_for_the_local_kernel(steps):
    module = BiLevelRoutingAttention(32, 2, regions=4, topk=3, local_kernel=1).double()
    x = torch.randn(2, 12, 16, 32, dtype=torch.float64)
    torch.testing.assert_close(module(x.roll(steps, (1, 2))), module(x).roll(steps, (1, 2)))
    assert not torch.allclose(module(x.roll((1, 0), (1, 2))), module(x).roll((1, 0), (1, 2)))


def test_it_follows_any_permutation_of_the_regions_and_of_pixels_within_them():
    q, k, v = random_qkv(1, 12, 12, 8)

    def shuffled(x):
        parts = routed.partition(x, 4, 4)[:, order][:, :, inside]
        return routed.unpartition(parts, (12, 12), 4, 4)

    order, inside = torch.randperm(9), torch.randperm(16)
    out = attend_gathered(q, k, v, route(q, k, (4, 4), 3), (4, 4), 2, 0.3)
    q, k, v = shuffled(q), shuffled(k), shuffled(v)
    torch.testing.assert_close(attend_gathered(q, k, v, route(q, k, (4, 4), 3), (4, 4), 2, 0.3), shuffled(out))


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


MAPS = [((64, 64), 1), ((32, 32), 4), ((16, 16), 16), ((50, 37), 4)]
"""As the stages of a hybrid see them at windows of 256 pixels, and one that does not divide into regions."""


def alike_map(size, channels):
    """A batch of eight maps whose regions are about as much alike as those of a trained network."""
    generator = torch.Generator().manual_seed(0)
    base, detail = (torch.randn(8, *shape, channels, generator=generator) for shape in ((1, 1), size))
    return base + detail


def chosen(routes, regions=64):
    return torch.zeros(*routes.shape[:2], regions, dtype=torch.bool).scatter(-1, routes, True)


@pytest.mark.parametrize(("size", "topk"), MAPS)
def test_routes_of_half_precision_maps_are_those_of_float32_arithmetic(size, topk):
    q, k = alike_map((2 * size[0], size[1]), 32).to(torch.bfloat16).chunk(2, dim=1)
    region = bra.region_size(*size, 8)
    expected = chosen(route(q.float(), k.float(), region, topk))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(chosen(route(q, k, region, topk)), expected)
        assert torch.equal(chosen(route(q.float(), k.float(), region, topk)), expected)
    assert torch.equal(chosen(route(q, k, region, topk)), expected)


def decided(module, x, region):
    """Which regions' choice float32 can tell: those between whose last chosen and first left region there is a gap."""
    q, k, _ = copy.deepcopy(module).double().qkv(x.double()).chunk(3, -1)
    affinity = bra.region_means(q, region) @ bra.region_means(k, region).transpose(1, 2)
    best = affinity.topk(module.topk + 1, dim=-1).values
    return best[..., -2] - best[..., -1] > 1e-5 * affinity.abs().amax(-1)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("size", "topk"), MAPS)
@pytest.mark.parametrize("method", METHODS)
def test_under_autocast_an_attention_routes_as_in_float32(method, size, topk, autocast):
    """Seen where the routes are used, for each way of computing attention."""
    module, seen = BiLevelRoutingAttention(64, 2, topk=topk).eval(), []

    def watched(q, k, v, routes, *rest):
        seen.append(chosen(routes))
        return v if method == "flex" or size == (64, 64) else METHODS[method](q, k, v, routes, *rest)  # slow ones

    module.method = watched
    x = alike_map(size, 64)
    with torch.no_grad():
        module(x)
        with torch.autocast("cpu", dtype=autocast):
            module(x)
            module(x.to(autocast))
            module(x.to(autocast).float())
        told = decided(module, x, bra.region_size(*size, 8))
    exact, under_autocast, of_rounded_map, of_the_same_map = seen
    assert told.float().mean() > 0.98
    assert torch.equal(under_autocast[told], exact[told])
    assert torch.equal(of_rounded_map, of_the_same_map)


def test_a_module_in_half_precision_routes_by_its_own_q_and_k():
    module, seen = BiLevelRoutingAttention(64, 2, topk=4).bfloat16(), []
    module.method = lambda q, k, v, routes, *rest: seen.append((q, k, chosen(routes))) or v
    module(alike_map((32, 32), 64).bfloat16())
    ((q, k, routes),) = seen
    assert torch.equal(routes, chosen(route(q.float(), k.float(), (4, 4), 4)))


def test_an_exported_program_routes_in_float32(tmp_path):
    """Traced under autocast, and as ONNX with maps that are rounded inside."""
    onnxruntime = pytest.importorskip("onnxruntime")
    module = BiLevelRoutingAttention(64, 2, topk=4).eval()
    x = alike_map((32, 32), 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        program = torch.export.export(module, (x,))
        torch.testing.assert_close(program.module()(x), module(x), atol=0.02, rtol=0.02)

    class Routes(torch.nn.Module):
        def forward(self, q, k):
            return route(q.bfloat16(), k.bfloat16(), (4, 4), 4)

    q, k = x.chunk(2, dim=-1)
    torch.onnx.export(
        Routes().eval(), (q, k), tmp_path / "routes.onnx", input_names=["q", "k"], dynamo=True, verbose=False
    )
    session = onnxruntime.InferenceSession(tmp_path / "routes.onnx", providers=["CPUExecutionProvider"])
    (routes,) = session.run(None, {"q": q.numpy(), "k": k.numpy()})
    expected = route(q.bfloat16().float(), k.bfloat16().float(), (4, 4), 4)
    assert torch.equal(chosen(torch.from_numpy(routes)), chosen(expected))


@pytest.mark.parametrize(("size", "topk"), [(32, 2), (16, 16), (8, 64)])
def test_bfloat16_autocast_agrees_with_float32(size, topk):
    torch.manual_seed(0)  # other numbers may hold a tie between regions, which every rounding decides anew
    module = BiLevelRoutingAttention(32, 1, topk=topk)
    x = torch.randn(2, size, size, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), module(x), atol=0.03, rtol=0.03)


def test_it_equals_the_published_implementation():
    reference = case("bra_nchw")
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


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch 2.11's own
@pytest.mark.parametrize(("size", "topk"), [((64, 64), 1), ((32, 32), 4), ((128, 96), 2), ((50, 70), 4)])
def test_flex_attention_on_a_gpu_equals_gathering(size, topk):
    q, k, v = (torch.randn(2, *size, 64, device="cuda", requires_grad=True) for _ in range(3))
    region = bra.region_size(*size, 8)
    routes = route(q, k, region, topk)
    cotangent = torch.randn_like(q)
    results = []
    for method in (attend_flex, attend_gathered):
        out = method(q, k, v, routes, region, 2, 0.2)
        results.append((out, *torch.autograd.grad(out, (q, k, v), cotangent)))
    torch.testing.assert_close(*results, atol=0.02, rtol=0.02)  # Triton multiplies float32 in TF32
