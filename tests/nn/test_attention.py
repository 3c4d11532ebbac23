"""What all kinds of attention have in common: they compile, export, checkpoint and train in bfloat16."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rs_biformer.nn.attention.bra import BiLevelRoutingAttention
from rs_biformer.nn.attention.conv_attention import ConvAttention, ConvRelativePosition
from rs_biformer.nn.attention.cross_shaped import CrossShapedAttention
from rs_biformer.nn.attention.msda import MultiScaleDilatedAttention

DIM = 32


class ConvAttentionOfAMap(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = ConvAttention(DIM, 4)
        self.position = ConvRelativePosition(DIM, {3: 1, 5: 2, 7: 1})

    def forward(self, x):
        return self.attention(x, x.mean((1, 2))[:, None], self.position)[0]


KINDS = {
    "gathered": lambda: BiLevelRoutingAttention(DIM, 2, regions=4, topk=2),
    "dense": lambda: BiLevelRoutingAttention(DIM, 2, regions=4, topk=5),
    "everywhere": lambda: BiLevelRoutingAttention(DIM, 2, regions=4, topk=16),
    "msda": lambda: MultiScaleDilatedAttention(DIM, 2),
    "cross_shaped": lambda: CrossShapedAttention(DIM, 2, 3, mask_padding=True),
    "conv_attention": ConvAttentionOfAMap,
}
pytestmark = pytest.mark.parametrize("kind", KINDS)


def gradients(out, module, x):
    return torch.autograd.grad(out.float().square().mean(), (x, *module.parameters()))


def test_it_exports_for_any_batch(kind):
    module = KINDS[kind]().eval()
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(module, (torch.randn(2, 9, 14, DIM),), dynamic_shapes=({0: batch},))
    x = torch.randn(3, 9, 14, DIM)
    torch.testing.assert_close(program.module()(x), module(x))


def test_it_compiles_to_one_graph_with_the_same_gradients(kind):
    torch._dynamo.reset()
    module = KINDS[kind]()
    x = torch.randn(2, 9, 14, DIM, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled(x), module, x), gradients(module(x), module, x))


@pytest.mark.parametrize("autocast", [False, True])
def test_checkpointing_gives_the_same_gradients(kind, autocast):
    module = KINDS[kind]()
    x = torch.randn(2, 9, 14, DIM, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        kept, again = module(x), checkpoint(module, x, use_reentrant=False)
    torch.testing.assert_close(gradients(kept, module, x), gradients(again, module, x))


def test_it_trains_in_bfloat16(kind, monkeypatch):
    routes = torch.rand(2, 12, 12).topk(5).indices  # rounding may well decide between regions that are alike
    monkeypatch.setattr("rs_biformer.nn.attention.bra._closest", lambda _q, _k, topk: routes[..., :topk])
    module = KINDS[kind]()
    x = torch.randn(2, 9, 14, DIM, requires_grad=True)
    expected = gradients(module(x), module, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.bfloat16
    for ours, theirs in zip(gradients(out, module, x), expected, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= 0.03 * theirs.norm()


@pytest.mark.parametrize("layout", ["a slice", "channels first"])
def test_the_layout_of_the_input_does_not_matter(kind, layout):
    module = KINDS[kind]().double()
    x = torch.randn(2, 9, 14, 2 * DIM, dtype=torch.float64)
    x = x[..., :DIM] if layout == "a slice" else x[..., :DIM].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    torch.testing.assert_close(module(x), module(x.contiguous()))
