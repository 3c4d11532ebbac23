import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from rs_biformer.errors import ConfigError
from rs_biformer.nn.attention import BiLevelRoutingAttention, MultiScaleDilatedAttention
from rs_biformer.nn.blocks import TransformerBlock
from rs_biformer.nn.encoders.hybrid import VARIANTS, resnet18_biformer
from rs_biformer.nn.model import create_encoder
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


@pytest.mark.parametrize(
    ("cnn", "arguments"),
    [
        ("test_convnext", {}),
        ("efficientnet-b0", {"attention": ["bra", "bra", "msda", "msda"], "width": 32}),
        ("tf_efficientnet_lite0", {"attention": ["none", "none", "bra", "msda"], "fusion": "convolution"}),
        ("mit_b0", {"layer_scale": 1e-5, "width": 32, "regions": 4, "topks": [1, 2, 4, 16]}),
    ],
)
def test_the_path_runs_beside_any_pyramid(cnn, arguments):
    encoder = create_encoder("hybrid", in_channels=4, cnn=cnn, **arguments).eval()
    plain = create_encoder(cnn, in_channels=4).out_channels
    x = torch.randn(1, 4, 64, 96)
    with torch.no_grad():
        features = encoder(x)
    assert [f.shape[1] for f in features] == list(encoder.out_channels)
    assert [tuple(f.shape[2:]) for f in features[2:]] == [(64 // s, 96 // s) for s in (4, 8, 16, 32)]
    if arguments.get("fusion") != "convolution":
        assert list(encoder.out_channels) == list(plain)


def test_a_residual_hybrid_begins_as_its_cnn_and_its_path_learns_at_once():
    encoder = create_encoder("hybrid", cnn="test_convnext", attention=["none", "bra", "msda", "msda"], width=32).eval()
    x = torch.randn(1, 3, 64, 64)
    features, cnn = encoder(x), encoder.cnn(x)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(features, cnn, strict=True))
    sum(f.square().mean() for f in features[2:]).backward()
    assert all(stage.add.weight.grad.abs().sum() > 0 for stage in encoder.stages)
    with torch.no_grad():
        for stage in encoder.stages:
            stage.add.weight.normal_()
        moved = encoder(x)
    changed = [not torch.equal(mine, theirs) for mine, theirs in zip(moved, cnn, strict=True)]
    assert changed == [False, False, False, True, True, True]


def test_layer_scale_multiplies_both_branches():
    block = TransformerBlock(8, nn.Identity(), nn.Identity(), layer_scale=0.25)
    x = torch.randn(2, 3, 3, 8)
    y = x + 0.25 * block.attention_norm(x)
    torch.testing.assert_close(block(x), y + 0.25 * block.ffn_norm(y))
    assert {name for name, _ in block.named_parameters() if "scale" in name} == {"attention_scale", "ffn_scale"}
    assert not [n for n, _ in TransformerBlock(8, nn.Identity(), nn.Identity()).named_parameters() if "scale" in n]


def test_the_lite_hybrid_has_no_path_at_stride_4():
    encoder = create_encoder("lite_hybrid")
    assert encoder.begin == 1 and len(encoder.stages) == 3
    assert sum(p.numel() for p in encoder.parameters()) < 6e6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": ["bra", "bra"]}, "give four, one per stride"),
        ({"attention": "bra"}, "give four, one per stride"),
        ({"attention": ["bra", "none", "bra", "bra"]}, "none may stand at the first strides alone"),
        ({"attention": ["none"] * 4}, "not at all four"),
        ({"attention": ["bra", "bra", "swin", "bra"]}, "each must be one of bra, msda, none"),
        ({"width": 48}, "multiple of 32"),
        ({"depths": [1, 0, 1, 1]}, "each must be 1 or more"),
        ({"fusion": "add"}, "use convolution or residual"),
        ({"cnn": "resnet19"}, "cannot make encoder resnet19"),
        ({"cnn": "test_vit", "cnn_arguments": {"taps": "no"}}, "use last or even"),
        ({"cnm": "resnet18"}, "takes no argument 'cnm'.*cnn"),
    ],
)
def test_hybrids_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        create_encoder("hybrid", **arguments)
