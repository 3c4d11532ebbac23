import pytest
import torch
from goldens import assert_equals_reference, case, published_checkpoint, published_weights, reference_input

from rs_biformer.nn.encoders.cswin import VARIANTS, CSWin, published_key


def tiny_network(**arguments):
    """All four stages, both directions, with few channels and blocks."""
    options = {"in_channels": 4, "drop_path": 0.0, "mask_padding": False} | arguments
    torch.manual_seed(0)
    return CSWin(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(2, 4, 4, 4), **options)


def meta(name):
    with torch.device("meta"):
        return VARIANTS[name]()


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


def test_features_equal_the_published_implementation():
    reference = case("cswin_tiny")
    network = VARIANTS["cswin_tiny"]().double().eval()
    weights = published_weights(reference["keys"])
    network.load_state_dict({published_key(key): weight for key, weight in weights.items()})
    with torch.no_grad():
        features = network(reference_input(reference["input"]))
    for feature, expected in zip(features[2:], reference["features"], strict=True):
        assert_equals_reference(feature, expected)
    assert count(network.parameters()) == reference["params"]


def test_the_imagenet_checkpoint_fills_all_but_the_norms_of_the_first_three_stages():
    ours = {key: list(value.shape) for key, value in meta("cswin_tiny").state_dict().items()}
    published = published_checkpoint("cswin_tiny")[1]
    translated = {published_key(key): shape for key, shape in published.items()}
    assert [key for key in published if published_key(key) is None] == ["head.weight", "head.bias"]
    del translated[None]
    assert translated.items() <= ours.items()
    norms = {f"stages.{stage}.norm.{leaf}" for stage in range(3) for leaf in ("weight", "bias")}
    assert ours.keys() - translated.keys() == norms


def test_a_name_that_is_not_published_stays_as_it_is():
    assert published_key("patch_embed1.proj.weight") == "patch_embed1.proj.weight"


@pytest.mark.parametrize(
    ("name", "millions"),
    [("cswin_tiny", 22.32), ("cswin_small", 34.64), ("cswin_base", 77.38), ("cswin_large", 173.26)],
)
def test_parameters_of_the_classifier_are_as_published(name, millions):
    network = meta(name)
    only_dense = count(parameter for stage in network.stages[:3] for parameter in stage.norm.parameters())
    head = (network.out_channels[-1] + 1) * 1000
    assert (count(network.parameters()) - only_dense + head) / 1e6 == pytest.approx(millions, abs=0.02)


def assert_promised_shapes(network, size):
    """On the meta device: shapes alone, nothing is computed."""
    features = network(torch.empty(1, network.out_channels[0], *size, device="meta"))
    assert [tuple(feature.shape) for feature in features] == [
        (1, channels, -(-size[0] // stride), -(-size[1] // stride))
        for channels, stride in zip(network.out_channels, (1, 2, 4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_features_of_every_variant_have_the_channels_and_strides_promised(name):
    with torch.device("meta"):
        network = VARIANTS[name](in_channels=5)
    assert network.out_channels[:2] == (5, 0)
    assert_promised_shapes(network, (200, 264))


@pytest.mark.parametrize("size", [(256, 256), (224, 224), (32, 2048), (1, 1)])
def test_features_have_the_strides_promised_at_any_size(size):
    assert_promised_shapes(tiny_network().to("meta"), size)


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (3, 70), (33, 64), (97, 45)])
def test_any_size_gives_finite_features(size, mask_padding):
    network = tiny_network(mask_padding=mask_padding).eval()
    for feature in network(torch.randn(2, 4, *size)):
        assert feature.isfinite().all()


def test_gradients_reach_the_input_and_every_parameter():
    network = tiny_network()
    x = torch.randn(1, 4, 64, 96, requires_grad=True)
    sum(feature.square().sum() for feature in network(x)[2:]).backward()
    assert (x.grad.abs().sum((0, 1)) > 0).all()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_under_autocast_features_stay_close_to_float32():
    network = tiny_network().eval()
    x = torch.randn(1, 4, 64, 96)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(x)
    with torch.no_grad():
        full = network(x)
    for a, b in zip(half, full, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.1, atol=0.1)


def test_stochastic_depth_acts_in_training_only():
    network = tiny_network(drop_path=0.9)
    x = torch.randn(1, 4, 32, 32)
    with torch.no_grad():
        assert not torch.equal(network.train()(x)[-1], network(x)[-1])
        assert torch.equal(network.eval()(x)[-1], network(x)[-1])


def test_a_sample_does_not_depend_on_its_batch():
    network = tiny_network(mask_padding=True).double().eval()
    x = torch.randn(3, 4, 40, 56, dtype=torch.float64)
    torch.testing.assert_close(network(x)[-1][1:2], network(x[1:2])[-1])
