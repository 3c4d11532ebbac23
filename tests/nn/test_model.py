import copy

import pytest
import segmentation_models_pytorch as smp
import torch

from rs_biformer.errors import CheckpointError, ConfigError
from rs_biformer.nn.model import DECODERS, create_encoder, create_model, list_encoders

SMALL = "resnet18_biformer"
STRIDES = (1, 2, 4, 8, 16, 32)


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
        *("lite_hybrid", "hybrid"),
        *(f"biformer_{size}" for size in ("tiny", "small", "base")),
        *(f"cswin_{size}" for size in ("tiny", "small", "base", "large")),
        *(f"coat_lite_{size}" for size in ("tiny", "mini", "small", "medium")),
        *(f"coat_{size}" for size in ("tiny", "mini", "small")),
    }


SMP_ARCHITECTURES = list(smp.MODEL_ARCHITECTURES_MAPPING)


@pytest.mark.parametrize("name", [SMALL, "biformer_tiny"])
@pytest.mark.parametrize("architecture", [name for name in SMP_ARCHITECTURES if name != "dpt"])
def test_smp_makes_and_trains_its_models_with_our_encoders(architecture, name):
    model = smp.create_model(architecture, name, encoder_weights=None, in_channels=4, classes=3).train()
    size = 128 if architecture == "pan" else 64  # PAN halves its coarsest map three times
    x = torch.randn(2, 4, size, size, requires_grad=True)
    logits = model(x)
    assert logits.shape == (2, 3, size, size)
    logits.square().mean().backward()
    assert x.grad.isfinite().all() and x.grad.any()


def test_smp_refuses_our_encoders_where_only_plain_vision_transformers_serve():
    with pytest.raises(ValueError, match="Only Timm encoders are supported for DPT"):
        smp.create_model("dpt", SMALL, encoder_weights=None)


def test_smp_may_ask_for_fewer_strides():
    encoder = smp.encoders.get_encoder("biformer_tiny", depth=4)
    assert (len(encoder.out_channels), encoder.output_stride) == (5, 16)
    assert [f.shape[1] for f in encoder(torch.randn(1, 3, 64, 64))] == encoder.out_channels


@pytest.mark.parametrize("output_stride", [8, 16])
def test_smp_gets_the_output_stride_that_it_asks_for_by_interpolation(output_stride):
    torch.manual_seed(0)
    finer = smp.encoders.get_encoder(SMALL, output_stride=output_stride).eval()
    torch.manual_seed(0)
    plain = smp.encoders.get_encoder(SMALL).eval()
    assert (finer.output_stride, plain.output_stride) == (output_stride, 32)
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        for feature, original in zip(finer(x), plain(x), strict=True):
            size = tuple(max(a, b // output_stride) for a, b in zip(original.shape[2:], x.shape[2:], strict=True))
            assert feature.shape[2:] == size
            torch.testing.assert_close(feature.mean(), original.mean(), atol=0.1, rtol=0.1)


def test_dilation_is_kept_for_encoders_that_can():
    assert create_model("resnet18", "deeplabv3plus", output_stride=16).encoder.output_stride == 16


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_single_image_trains_every_decoder(decoder):
    """Also those that pool the whole image into one pixel, of which batch norm can make no statistics."""
    model = create_model(SMALL, decoder, classes=3)
    loss = model.train()(torch.randn(1, 3, 64, 64)).square().mean()
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_where_a_batch_has_statistics_the_decoders_use_them_as_smp_s_do():
    torch.manual_seed(0)
    ours = create_model("resnet18", "upernet", classes=3).train()
    torch.manual_seed(0)
    theirs = smp.UPerNet("resnet18", encoder_weights=None, classes=3).train()
    theirs.decoder.load_state_dict(ours.decoder.state_dict())
    features = [torch.randn(2, c, 64 // s, 64 // s) for c, s in zip(ours.encoder.out_channels, STRIDES, strict=True)]
    torch.testing.assert_close(ours.decoder(list(features)), theirs.decoder(list(features)))


def test_the_auxiliary_head_sees_stride_16_and_costs_prediction_nothing():
    torch.manual_seed(0)
    plain = create_model(SMALL, "upernet", classes=3).eval()
    torch.manual_seed(0)
    model = create_model(SMALL, "upernet", classes=3, auxiliary=True).eval()
    x = torch.randn(1, 3, 70, 100)
    ran = []
    model.auxiliary.register_forward_hook(lambda module, inputs, output: ran.append(inputs[0].shape))
    with torch.no_grad():
        logits = model(x)
        assert ran == []
        torch.testing.assert_close(logits, plain(x))
        again, second = model.forward_with_auxiliary(x)
    assert ran == [(1, model.encoder.out_channels[4], 6, 8)]
    assert torch.equal(again, logits)
    assert second.shape == logits.shape


def test_the_auxiliary_loss_trains_the_encoder_up_to_stride_16():
    model = create_model("biformer_tiny", "fpn", classes=3, auxiliary=True, drop_path=0.0)
    model.forward_with_auxiliary(torch.randn(2, 3, 64, 64))[1].square().mean().backward()
    stages = model.encoder.stages
    assert all(p.grad is not None for stage in stages[:3] for p in stage.parameters())
    assert all(p.grad is None for p in (*stages[3].parameters(), *model.decoder.parameters()))


def clone_with_checkpointing(name, **arguments):
    plain, lean = (create_model(name, classes=2, checkpointing=lean, **arguments) for lean in (False, True))
    lean.load_state_dict(plain.state_dict())
    return plain.train(), lean.train()


@pytest.mark.parametrize("name", [SMALL, "biformer_tiny", "cswin_tiny", "coat_tiny", "tu-convnext_atto"])
def test_checkpointing_gives_the_same_gradients_and_running_statistics(name):
    plain, lean = clone_with_checkpointing(name)
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for model in (plain, lean):
        torch.manual_seed(1)  # stochastic depth
        model(x).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(lean.state_dict(), plain.state_dict())


def test_checkpointing_keeps_less_for_the_backward_pass():
    def kept(model):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            model(torch.randn(1, 3, 64, 64))
        return sum(sizes)

    plain, lean = clone_with_checkpointing("biformer_tiny")
    assert kept(lean) < 0.5 * kept(plain)


def test_a_checkpointed_model_can_be_copied():
    _, lean = clone_with_checkpointing(SMALL)
    twin = copy.deepcopy(lean)
    twin(torch.randn(1, 3, 64, 64)).mean().backward()
    assert all(p.grad is None for p in lean.parameters())
    assert any(p.grad is not None for p in twin.parameters())


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
        (lambda: create_encoder("resnet18", checkpointing=True), "resnet18 cannot checkpoint"),
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
    with pytest.raises(
        ConfigError, match=r"name or service not known.*smp-hub/resnet18.*pass the path of a local \.pth"
    ):
        create_encoder(SMALL, encoder_weights="imagenet")


def test_encoder_weights_may_be_a_file(tmp_path):
    saved = smp.encoders.get_encoder("resnet18", weights=None).state_dict()
    torch.save(saved, tmp_path / "resnet18.pth")
    encoder = create_encoder(SMALL, in_channels=4, encoder_weights=tmp_path / "resnet18.pth")
    assert torch.equal(encoder.cnn.layer1[0].conv1.weight, saved["layer1.0.conv1.weight"])
    with pytest.raises(CheckpointError, match="does not exist"):
        create_encoder(SMALL, encoder_weights=tmp_path / "absent.pth")
