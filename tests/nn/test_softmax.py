import pytest
import torch
import torch.nn.functional as F

from rs_biformer.nn.attention.softmax import FEW_KEYS, FEW_KEYS_TO_LEARN, softmax_attention


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
