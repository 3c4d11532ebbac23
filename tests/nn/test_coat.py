import pytest
import torch
from goldens import assert_equals_reference, case, published_checkpoint, published_weights, reference_input

from rs_biformer.nn.encoders.coat import VARIANTS, CoaT, published_key


def tiny_network(**arguments):
    """All four scales, with few channels and blocks; two parallel blocks."""
    options = {"in_channels": 4, "parallel_depth": 2, "drop_path": 0.0} | arguments
    torch.manual_seed(0)
    return CoaT(dims=(16, 24, 24, 24), depths=(1, 2, 1, 1), ffn_ratios=(2, 2, 2, 2), **options)


def meta(name):
    with torch.device("meta"):
        return VARIANTS[name]()


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


@pytest.mark.parametrize("name", ["coat_lite_mini", "coat_tiny"])
def test_features_equal_the_published_implementation(name):
    reference = case(name)
    network = VARIANTS[name]().double().eval()
    # several published names may mean one parameter: the last counts, as when the authors' own code loads it
    weights = published_weights(reference["keys"])
    network.load_state_dict({published_key(key): weight for key, weight in weights.items()})
    with torch.no_grad():
        features = network(reference_input(reference["input"]))
    for feature, expected in zip(features[2:], reference["features"], strict=True):
        assert_equals_reference(feature, expected)
    assert count(network.parameters()) == reference["params"]


@pytest.mark.parametrize("name", ["coat_lite_mini", "coat_tiny"])
def test_the_imagenet_checkpoint_fills_everything(name):
    ours = {key: list(value.shape) for key, value in meta(name).state_dict().items()}
    published = published_checkpoint(name)[1]
    translated = {published_key(key): shape for key, shape in published.items()}
    left = {key.partition(".")[0] for key in published if published_key(key) is None}
    assert left == {"norm1", "norm2", "norm3", "norm4", "head"} | ({"aggregate"} if "lite" not in name else set())
    del translated[None]
    assert translated == ours


def test_published_names_of_a_shared_parameter_become_one():
    names = [
        "crpe3.conv_list.2.weight",
        "serial_blocks3.1.factoratt_crpe.crpe.conv_list.2.weight",
        "parallel_blocks.4.factoratt_crpe3.crpe.conv_list.2.weight",
    ]
    assert {published_key(name) for name in names} == {"scales.2.position.convolutions.2.weight"}
    assert {published_key(f"parallel_blocks.5.mlp{n}.fc2.bias") for n in (2, 3, 4)} == {"parallel.5.ffn.2.bias"}


def test_a_name_that_is_not_published_stays_as_it_is():
    assert published_key("stage1.0.qkv.weight") == "stage1.0.qkv.weight"


@pytest.mark.parametrize(
    ("name", "millions"),
    [("coat_lite_tiny", 5.72), ("coat_lite_small", 19.84), ("coat_tiny", 5.50), ("coat_small", 21.69)],
)
def test_parameters_of_the_classifier_are_as_published(name, millions):
    network = meta(name)
    dims = network.out_channels[2:]
    norms = 2 * sum(dims)
    head = (dims[-1] + 1) * 1000
    aggregate = 4 if "lite" not in name else 0
    assert (count(network.parameters()) + norms + aggregate + head) / 1e6 == pytest.approx(millions, abs=0.02)


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


@pytest.mark.parametrize("size", [(1, 1), (3, 70), (33, 64), (97, 45)])
def test_any_size_gives_finite_features(size):
    for feature in tiny_network().eval()(torch.randn(2, 4, *size)):
        assert feature.isfinite().all()


@pytest.mark.parametrize("parallel_depth", [0, 2])
def test_gradients_reach_the_input_and_every_parameter(parallel_depth):
    network = tiny_network(parallel_depth=parallel_depth)
    x = torch.randn(1, 4, 64, 96, requires_grad=True)
    sum(feature.square().sum() for feature in network(x)[2:]).backward()
    assert (x.grad.abs().sum((0, 1)) > 0).all()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_parallel_blocks_carry_coarse_scales_into_finer_ones():
    x = torch.randn(1, 4, 64, 64, dtype=torch.float64)
    for parallel_depth, expected in ((0, False), (1, True)):
        network = tiny_network(parallel_depth=parallel_depth).double().eval()
        before = network(x)
        torch.nn.init.normal_(network.scales[3].token, std=10.0)
        after = network(x)
        assert torch.equal(before[2], after[2])
        assert torch.equal(before[3], after[3]) is not expected


def test_under_autocast_features_stay_close_to_float32():
    network = tiny_network().eval()
    x = torch.randn(1, 4, 64, 96)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(x)
    with torch.no_grad():
        full = network(x)
    for a, b in zip(half, full, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.1, atol=0.1 * b.std().item() if b.numel() else 0)


def test_stochastic_depth_acts_in_training_only():
    network = tiny_network(drop_path=0.9)
    x = torch.randn(1, 4, 32, 32)
    with torch.no_grad():
        assert not torch.equal(network.train()(x)[-1], network(x)[-1])
        assert torch.equal(network.eval()(x)[-1], network(x)[-1])


def test_a_sample_does_not_depend_on_its_batch():
    network = tiny_network().double().eval()
    x = torch.randn(3, 4, 40, 56, dtype=torch.float64)
    torch.testing.assert_close(network(x)[-1][1:2], network(x[1:2])[-1])
