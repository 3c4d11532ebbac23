import pytest
import torch
from goldens import assert_equals_reference, case, published_weights, reference_input

from rs_biformer.nn.encoders.biformer import VARIANTS, biformer_tiny
from rs_biformer.nn.weights import load_published_weights


@pytest.fixture(scope="module")
def published_tiny():
    """The tiny encoder with the reference weights, what each of its stages gives for the reference input, the case."""
    reference = case("biformer_tiny")
    encoder = biformer_tiny().double().eval()
    load_published_weights(encoder, published_weights(reference["keys"]))
    with torch.no_grad():
        outputs = encoder.stage_outputs(reference_input(reference["input"]))
    return encoder, outputs, reference


def test_stages_equal_the_published_implementation(published_tiny):
    _, outputs, reference = published_tiny
    for output, expected in zip(outputs, reference["stage_outputs"], strict=True):
        assert_equals_reference(output.permute(0, 3, 1, 2), expected)


def test_features_equal_the_published_dense_prediction_backbone(published_tiny):
    encoder, outputs, reference = published_tiny
    with torch.no_grad():
        features = [norm(output).permute(0, 3, 1, 2) for norm, output in zip(encoder.norms, outputs, strict=True)]
    for feature, expected in zip(features, reference["features"], strict=True):
        assert_equals_reference(feature, expected)


def test_it_has_as_many_parameters_as_published_with_their_classifier():
    classifier = 512 * 1000 + 1000 + 2 * 512  # and the batch norm before it
    norms = 2 * (64 + 128 + 256 + 512)
    ours = sum(p.numel() for p in biformer_tiny().parameters())
    assert ours - norms + classifier == case("biformer_tiny")["params"]


@pytest.mark.parametrize("name", VARIANTS)
def test_features_have_the_channels_and_strides_that_are_promised(name):
    encoder = VARIANTS[name](4).eval()
    with torch.no_grad():
        features = encoder(torch.randn(1, 4, 64, 96))
    assert [f.shape[1] for f in features] == encoder.out_channels
    assert [f.shape[2:] for f in features] == [(64 // s, 96 // s) for s in (1, 2, 4, 8, 16, 32)]


@pytest.mark.parametrize("size", [(1, 1), (33, 50)])
def test_it_takes_sizes_that_its_stride_does_not_divide(size):
    x = torch.randn(1, 3, *size, requires_grad=True)
    features = biformer_tiny().eval()(x)
    sum(f.square().sum() for f in features[2:]).backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0
