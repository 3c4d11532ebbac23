import pytest
import torch

from rs_biformer.nn.decoders.unet_fusion import UNetFusion


def features(channels, height=64, width=96):
    return [torch.randn(2, c, height // s, width // s) for c, s in zip(channels, (1, 2, 4, 8, 16, 32), strict=True)]


@pytest.mark.parametrize("channels", [(3, 8, 12, 16, 20, 24), (3, 0, 12, 16, 20, 24)])
def test_it_ends_at_stride_2_and_every_skip_reaches_it(channels):
    decoder = UNetFusion(channels, (16, 12, 8, 6))
    skips = [f.requires_grad_() for f in features(channels)]
    out = decoder(skips)
    assert out.shape == (2, 6, 32, 48)
    out.square().sum().backward()
    for skip in skips[1:]:
        assert skip.grad is None if not skip.shape[1] else skip.grad.abs().sum() > 0


def test_maps_of_odd_sizes_meet():
    sizes = [(37, 21), (19, 11), (10, 6), (5, 3), (3, 2), (2, 1)]
    channels = (3, 4, 5, 6, 7, 8)
    maps = [torch.randn(2, c, *size) for c, size in zip(channels, sizes, strict=True)]
    assert UNetFusion(channels, (8, 8, 8, 4))(maps).shape == (2, 4, 19, 11)
