"""Numbers at the edges of what a network may be given: ties of all regions, nothing, very small and very large ones."""

import pytest
import torch

from rs_biformer.nn.attention.bra import METHODS, BiLevelRoutingAttention, use_method
from rs_biformer.nn.model import create_model

PORTABLE = [method for method in METHODS if method != "flex"]


@pytest.mark.parametrize("method", PORTABLE)
@pytest.mark.parametrize("size", [(16, 16), (13, 18)])
def test_where_all_regions_tie_it_does_not_matter_which_are_taken(method, size):
    """On a constant map every query gets the one value that there is, whatever it attends to."""
    one = torch.randn(1, 1, 1, 32)
    x = one.expand(2, *size, 32).contiguous()
    found = []
    for topk in (1, 4, 16):
        torch.manual_seed(1)
        module = BiLevelRoutingAttention(32, 2, regions=4, topk=topk).eval()
        use_method(module, method)
        with torch.no_grad():
            found += [module(x), module(x)]
    for first, again in zip(found[::2], found[1::2], strict=True):
        assert torch.equal(first, again)
    for other in found[2::2]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0][0], found[0][1])


@pytest.mark.parametrize("encoder", ["resnet18_biformer", "coat_lite_tiny"])
@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-8, 65504.0])
def test_inputs_as_small_and_as_large_as_half_precision_knows_give_finite_logits(encoder, scale):
    torch.manual_seed(0)
    model = create_model(encoder, classes=3).eval()
    x = scale * torch.randn(1, 3, 64, 64)  # all zeros too, where all regions tie
    with torch.no_grad():
        first, again = model(x), model(x)
    assert first.isfinite().all() and torch.equal(first, again)
