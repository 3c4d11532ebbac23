import pytest
import torch
import torch.nn.functional as F

from rs_biformer.nn.attention.softmax import (
    FEW_KEYS,
    FEW_KEYS_TO_LEARN,
    attend_everywhere,
    softmax_attention,
    without_autocast,
)


@pytest.mark.parametrize("keys", [5, FEW_KEYS, FEW_KEYS + 1, FEW_KEYS_TO_LEARN + 1])
@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.02)])
def test_every_route_gives_softmax_attention(keys, masked, learning, dtype, tolerance):
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.float64) for n in (7, keys, keys))
    mask = torch.rand(2, 1, 1, keys) < 0.5 if masked else None
    if mask is not None:
        mask[..., 0] = True
    logits = 0.4 * torch.einsum("bmld,bmnd->bmln", q, k)
    if mask is not None:
        logits[~mask.expand_as(logits)] = -torch.inf
    expected = torch.einsum("bmln,bmnd->bmld", logits.exp() / logits.exp().sum(-1, keepdim=True), v)
    out = softmax_attention(q.to(dtype).requires_grad_(learning), k.to(dtype), v.to(dtype), 0.4, mask)
    torch.testing.assert_close(out.detach().double(), expected, atol=tolerance, rtol=tolerance)


def test_gradients_of_the_two_routes_agree():
    q, k, v = (torch.randn(1, 2, 6, 8).bfloat16().requires_grad_() for _ in range(3))
    ours = torch.autograd.grad(softmax_attention(q, k, v, 0.4).float().square().sum(), (q, k, v))
    fused = torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, scale=0.4).float().square().sum(), (q, k, v))
    torch.testing.assert_close(ours, fused, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("shape", [(2, 5, 12), (2, 3, 4, 12)])
def test_attention_everywhere_is_attention_of_each_head_over_all_positions(shape):
    q, k, v = torch.randn(3, *shape, dtype=torch.float64)
    mask = torch.rand(2, 1, 1, q[0, ..., 0].numel()) < 0.6
    mask[..., 0] = True
    out = attend_everywhere(q, k, v, num_heads=3, scale=0.7, mask=mask)
    for sample in range(2):
        for head in range(3):
            a, b, c = (t[sample].flatten(0, -2)[:, 4 * head : 4 * head + 4] for t in (q, k, v))
            weights = (0.7 * a @ b.T).masked_fill(~mask[sample, 0], -torch.inf).softmax(-1)
            torch.testing.assert_close(out[sample].flatten(0, -2)[:, 4 * head : 4 * head + 4], weights @ c)


def test_autocast_is_left_where_there_is_one():
    a = torch.randn(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with without_autocast(a.device):
            assert (a @ a).dtype == torch.float32
    with without_autocast(torch.device("meta")):
        pass
