import pytest
import torch
from torch import nn

from rs_biformer.errors import ConfigError
from rs_biformer.nn.attention import BiLevelRoutingAttention
from rs_biformer.nn.count import count_model, count_multiply_adds, count_parameters
from rs_biformer.nn.model import create_model

PUBLISHED = {
    "biformer_tiny": (13.14, 2.22),
    "biformer_small": (25.54, 4.46),
    "biformer_base": (56.80, 9.76),
    "cswin_tiny": (22.32, 4.32),
    "cswin_small": (34.64, 6.80),
    "cswin_base": (77.38, 14.96),
    "cswin_large": (173.26, 33.13),
    "coat_lite_tiny": (5.72, 1.59),
    "coat_lite_small": (19.84, 3.94),
    "coat_tiny": (5.50, 4.32),
    "coat_small": (21.69, 12.55),
}
"""Million parameters and G multiply-adds at 224 px of the published code with its classifier, counted by torch."""


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items(), ids=PUBLISHED)
def test_figures_with_the_classifier_are_those_of_the_published_code(name, published):
    figures = count_model(name, "fpn", size=224)
    assert figures.classifier_parameters / 1e6 == pytest.approx(published[0], rel=0.001)
    assert figures.classifier_multiply_adds / 1e9 == pytest.approx(published[1], rel=0.01)


def test_linear_layers_and_convolutions_are_counted_by_hand():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, groups=1), nn.Flatten(), nn.Linear(8 * 16, 10))
    counts = count_multiply_adds(network, torch.zeros(2, 3, 4, 4))
    assert counts["0"] == 2 * 16 * 3 * 8 * 9
    assert counts["2"] == 2 * 128 * 10
    assert counts[""] == counts["0"] + counts["2"]
    assert count_parameters(network) == 3 * 8 * 9 + 8 + 128 * 10 + 10


@pytest.mark.parametrize("topk", [1, 16, 64])
def test_routed_attention_counts_the_pairs_that_are_routed_however_it_is_computed(topk):
    """A map of 16 x 16 in 64 regions of 4 pixels: each pixel sees topk * 4 of 256."""
    attention = BiLevelRoutingAttention(32, 2, regions=8, topk=topk)
    routing = 64 * 64 * 32 if topk < 64 else 0
    by_hand = 256 * 32 * 3 * 32 + 256 * 32 * 32 + 256 * 25 * 32 + routing + 2 * 256 * (4 * topk) * 32
    assert count_multiply_adds(attention, torch.zeros(1, 16, 16, 32))[""] == by_hand
    within = nn.Sequential(nn.Linear(32, 32), nn.Sequential(attention))
    counts = count_multiply_adds(within, torch.zeros(1, 16, 16, 32))
    assert counts["1"] == counts["1.0"] == by_hand
    assert counts[""] == by_hand + 256 * 32 * 32


def test_figures_are_of_the_model_that_is_made():
    figures = count_model("resnet18_biformer", "unet", size=64, bands=5, classes=7)
    network = create_model("resnet18_biformer", "unet", classes=7, in_channels=5)
    assert figures.parameters == count_parameters(network)
    assert figures.encoder_parameters == count_parameters(network.encoder)
    assert figures.strides == (2, 4, 8, 16, 32)
    assert figures.widths == tuple(network.encoder.out_channels[1:])
    assert 0 < figures.encoder_multiply_adds < figures.multiply_adds


def test_four_times_the_pixels_are_four_times_the_work_of_a_linear_architecture():
    small, large = (count_model("coat_lite_tiny", "fpn", size=size).multiply_adds for size in (128, 256))
    assert large / small == pytest.approx(4, rel=0.01)


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ConfigError, match="size is 0"):
        count_model("biformer_tiny", "unet", size=0)
