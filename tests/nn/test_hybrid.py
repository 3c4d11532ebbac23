import pytest
import segmentation_models_pytorch as smp
import torch

from rs_biformer.nn.attention import BiLevelRoutingAttention, MultiScaleDilatedAttention
from rs_biformer.nn.encoders.hybrid import VARIANTS, resnet18_biformer
from rs_biformer.nn.weights import load_published_weights


def attentions(encoder):
    return [[block.attention for block in stage.blocks] for stage in encoder.stages]


def kinds(encoder):
    short = {BiLevelRoutingAttention: "bra", MultiScaleDilatedAttention: "msda"}
    return [{short[type(attention)] for attention in stage} for stage in attentions(encoder)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50_biformer", ["bra", "bra", "bra", "bra"]),
        ("resnet50_biformer2_msda2", ["bra", "bra", "msda", "msda"]),
        ("resnet50_biformer_msda", ["bra", "msda", "bra", "msda"]),
    ],
)
def test_the_three_hybrids_are_those_of_the_design(name, expected):
    with torch.device("meta"):
        encoder = VARIANTS[name](3)
    assert kinds(encoder) == [{kind} for kind in expected]
    assert [len(stage) for stage in attentions(encoder)] == [3, 4, 6, 3]
    for stage, dim, topk in zip(attentions(encoder), (64, 128, 256, 512), (1, 4, 16, 64), strict=True):
        for attention in stage:
            assert attention.qkv.in_features == dim
            assert attention.num_heads == dim // 32
            if isinstance(attention, BiLevelRoutingAttention):
                assert (attention.regions, attention.topk) == (8, topk)
            else:
                assert attention.dilations == (1, 2)


@pytest.mark.parametrize("name", VARIANTS)
def test_features_have_the_channels_and_strides_that_are_promised(name):
    encoder = VARIANTS[name](5).eval()
    x = torch.randn(1, 5, 64, 96, requires_grad=True)
    features = encoder(x)
    assert features[0] is x
    assert [f.shape[1] for f in features] == encoder.out_channels
    assert [f.shape[2:] for f in features] == [(64 // s, 96 // s) for s in (1, 2, 4, 8, 16, 32)]
    features[-1].square().sum().backward()
    assert x.grad.abs().sum() > 0


def test_every_parameter_learns():
    encoder = resnet18_biformer(drop_path=0.0)
    features = encoder(torch.randn(2, 3, 64, 64))
    sum(f.square().mean() for f in features[1:]).backward()
    still = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


def test_the_cnn_is_smps_and_goes_to_the_skip_at_stride_2_as_it_is():
    encoder = resnet18_biformer().eval()
    cnn = smp.encoders.get_encoder("resnet18", weights=None).eval()
    load_published_weights(cnn, encoder.cnn.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder(x)[1], cnn(x)[1])


def test_each_stage_hears_the_stage_before():
    """The path alone, the CNN's features held fixed, carries a change at stride 4 down to stride 32."""
    encoder = resnet18_biformer().eval()
    features = [torch.randn(1, c, 64 // s, 64 // s) for c, s in zip((64, 128, 256, 512), (4, 8, 16, 32), strict=True)]
    features[0].requires_grad_()
    path = None
    for stage, feature in zip(encoder.stages, features, strict=True):
        path, skip = stage(feature, path)
    (gradient,) = torch.autograd.grad(skip.square().sum(), features[0])
    assert gradient.abs().sum() > 0


def test_weights_of_the_cnn_alone_can_be_loaded():
    cnn = smp.encoders.get_encoder("resnet18", weights=None)
    published = {**cnn.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    encoder = resnet18_biformer()
    report = load_published_weights(encoder, published)
    assert report.left == ("fc.weight", "fc.bias")
    assert all(name.startswith("stages.") for name in report.missing)
    assert torch.equal(encoder.cnn.conv1.weight, cnn.conv1.weight)
