import pytest
import segmentation_models_pytorch as smp
import torch

from rs_biformer.errors import CheckpointError, ConfigError
from rs_biformer.nn.model import DECODERS, create_encoder, create_model, list_encoders

SMALL = "resnet18_biformer"


@pytest.fixture(scope="module")
def small():
    return create_model(SMALL, classes=4)


@pytest.mark.parametrize("size", [(1, 1), (1, 65), (32, 32), (37, 64), (100, 77), (200, 264)])
@pytest.mark.parametrize("training", [False, True])
def test_logits_have_the_size_of_the_input_and_its_every_pixel_counts(small, size, training):
    x = torch.randn(1, 3, *size, requires_grad=True)
    logits = small.train(training)(x)
    assert logits.shape == (1, 4, *size)
    logits.square().sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum((0, 1)).all()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("encoder", [SMALL, "biformer_tiny", "resnet18", "convnext_atto", "tu-convnext_atto", "mit_b0"])
def test_every_decoder_joins_every_kind_of_encoder(decoder, encoder):
    model = create_model(encoder, decoder, classes=5, in_channels=4).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 4, 40, 70)).shape == (1, 5, 40, 70)


@pytest.mark.parametrize("name", list_encoders())
def test_every_encoder_that_is_listed_can_be_made(name):
    with torch.device("meta"):
        encoder = create_encoder(name, in_channels=4)
    assert encoder.out_channels[0] == 4
    assert len(encoder.out_channels) == 6
    assert encoder.output_stride == 32


def test_the_design_s_encoder_names_are_all_there():
    assert set(list_encoders()) == {
        *("resnet50_biformer", "resnet50_biformer2_msda2", "resnet50_biformer_msda", "resnet18_biformer"),
        *(f"biformer_{size}" for size in ("tiny", "small", "base")),
        *(f"cswin_{size}" for size in ("tiny", "small", "base", "large")),
        *(f"coat_lite_{size}" for size in ("tiny", "mini", "small", "medium")),
        *(f"coat_{size}" for size in ("tiny", "mini", "small")),
    }


@pytest.mark.parametrize("architecture", ["unet", "fpn", "upernet", "unetplusplus"])
@pytest.mark.parametrize("name", [SMALL, "biformer_tiny"])
def test_smp_makes_its_models_with_our_encoders(architecture, name):
    model = smp.create_model(architecture, name, encoder_weights=None, in_channels=4, classes=3).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 4, 64, 64)).shape == (1, 3, 64, 64)


def test_smp_may_ask_for_fewer_strides():
    encoder = smp.encoders.get_encoder("biformer_tiny", depth=4)
    assert (len(encoder.out_channels), encoder.output_stride) == (5, 16)
    assert [f.shape[1] for f in encoder(torch.randn(1, 3, 64, 64))] == encoder.out_channels


def test_smp_s_dilation_is_refused_for_ours_and_kept_for_its_own():
    with pytest.raises(ConfigError, match="output stride 16; use 32"):
        smp.create_model("deeplabv3plus", SMALL, encoder_weights=None)
    assert create_model("resnet18", "deeplabv3plus", output_stride=16).encoder.output_stride == 16


def test_padding_repeats_the_edge(small):
    """A constant image of an odd size gives what its repetition gives."""
    small.eval()
    x = torch.linspace(-1, 1, 3).view(1, 3, 1, 1)
    with torch.no_grad():
        odd, whole = small(x.expand(1, 3, 70, 50)), small(x.expand(1, 3, 96, 64))
    torch.testing.assert_close(odd, whole[..., :70, :50])


def test_bfloat16_channels_last_agrees_with_float32(small):
    small.eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = small(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = small(x.to(memory_format=torch.channels_last))
    assert (logits - expected).norm() < 0.1 * expected.norm()


def test_a_hybrid_can_be_exported(small):
    x = torch.randn(2, 3, 64, 64)
    batch = torch.export.Dim("batch", min=1, max=16)
    with torch.no_grad():
        program = torch.export.export(small.eval(), (x,), dynamic_shapes=({0: batch},))
        other = torch.randn(3, 3, 64, 64)
        torch.testing.assert_close(program.module()(other), small(other), atol=1e-4, rtol=1e-4)


def test_a_model_of_one_class_learns_to_tell_left_from_right():
    torch.manual_seed(0)
    model = create_model(SMALL, classes=2, drop_path=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    x = torch.randn(2, 3, 64, 64)
    target = (x[:, 0] + x[:, 1] > 0).long()
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_model("resnet50_biformr"), "did you mean resnet50_biformer"),
        (lambda: create_model(SMALL, "unet_fuson"), "did you mean unet_fusion"),
        (lambda: create_model(SMALL, dorp_path=0.2), "did you mean drop_path"),
        (lambda: create_model(SMALL, classes=0), "classes is 0"),
        (lambda: create_encoder(SMALL, in_channels=0), "in_channels is 0"),
        (lambda: create_encoder("convnext_att"), "did you mean convnext_atto"),
        (lambda: create_encoder("biformer_tiny", encoder_weights="imagenet"), "published checkpoint file"),
        (lambda: create_encoder("resnet18", encoder_weights="imagenat"), "imagenet"),
        (lambda: create_encoder(SMALL, encoder_weights="imagenat"), "imagenet"),
    ],
)
def test_what_cannot_be_meant_is_refused_naming_what_can(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_a_download_that_fails_says_to_pass_a_file(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("name or service not known")

    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", unreachable)
    with pytest.raises(ConfigError, match=r"pass the path of a local \.pth .*name or service not known"):
        create_encoder(SMALL, encoder_weights="imagenet")


def test_encoder_weights_may_be_a_file(tmp_path):
    saved = smp.encoders.get_encoder("resnet18", weights=None).state_dict()
    torch.save(saved, tmp_path / "resnet18.pth")
    encoder = create_encoder(SMALL, in_channels=4, encoder_weights=tmp_path / "resnet18.pth")
    assert torch.equal(encoder.cnn.layer1[0].conv1.weight, saved["layer1.0.conv1.weight"])
    with pytest.raises(CheckpointError, match="does not exist"):
        create_encoder(SMALL, encoder_weights=tmp_path / "absent.pth")
