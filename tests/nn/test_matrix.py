"""Every encoder with every decoder.

By default each encoder with one decoder and each decoder with one encoder, on small images; with `-m slow` all of them
at 224, 256, 200 x 264 and 512 px, and each way through torch's exporter and compiler.
"""

from itertools import cycle

import pytest
import torch
from torch import nn

from rs_biformer.nn.model import DECODERS, complete, create_encoder, create_model, list_encoders

HYBRID, SMALLEST = "resnet18_biformer", "coat_lite_tiny"
LARGE = ("biformer_base", "cswin_base", "cswin_large", "coat_lite_medium", "coat_small")
CLASSES = 3


class Given(nn.Module):
    """An encoder that has run already: a model of it costs its decoder alone."""

    output_stride = 32

    def __init__(self, out_channels, features):
        super().__init__()
        self.out_channels, self.features = out_channels, features

    def forward(self, x):
        return list(self.features)


def assert_gradients_reach(x, model):
    assert x.grad.isfinite().all() and x.grad.abs().sum((0, 1)).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(("encoder", "decoder"), list(zip(list_encoders(), cycle(DECODERS), strict=False)))
def test_every_encoder_trains_and_predicts(encoder, decoder):
    model = create_model(encoder, decoder, classes=CLASSES)
    x = torch.randn(1, 3, 64, 96, requires_grad=True)
    logits = model.train()(x)
    assert logits.shape == (1, CLASSES, 64, 96)
    logits.square().mean().backward()
    assert_gradients_reach(x, model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model.eval()(x[..., :50, :70]).isfinite().all()


@pytest.mark.parametrize("size", [(224, 224), (200, 264)])
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_gives_logits_of_the_size_of_the_image(decoder, size):
    model = create_model(SMALLEST, decoder, classes=CLASSES).eval()
    with torch.no_grad():
        logits = model(torch.randn(1, 3, *size))
    assert logits.shape == (1, CLASSES, *size) and logits.isfinite().all()


def through_all_decoders(encoder, size, *, training, autocast=False, decoders=tuple(DECODERS)):
    """Run the encoder once and every decoder on what it gives; in training, backwards through all to the image."""
    x = torch.randn(1, 3, *size, requires_grad=training)
    losses = []
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        features = encoder.train(training)(complete(encoder, "unet_fusion", CLASSES)._pad(x))
        for name in decoders:
            model = complete(Given(encoder.out_channels, features), name, CLASSES).train(training)
            logits = model(x)
            assert logits.shape == (1, CLASSES, *size), name
            assert logits.isfinite().all(), name
            losses.append(logits.float().square().mean())
    if training:
        sum(losses).backward()
        assert_gradients_reach(x, encoder)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", list_encoders())
def test_all_pairs_at_all_sizes(encoder):
    """Large variants run every size forwards and one of them backwards."""
    torch.manual_seed(0)
    network = create_encoder(encoder)
    few = ("unet_fusion", "fpn")
    for size in ((224, 224), (200, 264), (256, 256)):
        training = encoder not in LARGE or size == (224, 224)
        through_all_decoders(network, size, training=training)
    through_all_decoders(network, (224, 224), training=False, decoders=few)
    through_all_decoders(network, (224, 224), training=True, autocast=True, decoders=few)
    through_all_decoders(network, (512, 512), training=False, autocast=True)
    if encoder not in LARGE:
        through_all_decoders(network, (512, 512), training=True, decoders=few[:1])


def exported(model, x):
    """The model as torch.export sees it, for any number of images of this size."""
    batch = torch.export.Dim("batch", min=1, max=16)
    with torch.no_grad():
        return torch.export.export(model.eval(), (x,), dynamic_shapes=({0: batch},)).module()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        *((name, "unet_fusion") for name in list_encoders()),
        *((SMALLEST, name) for name in DECODERS if name != "unet_fusion"),
    ],
)
def test_everything_can_be_exported_for_any_number_of_images(encoder, decoder):
    """Of one size: how attention cuts a map, and which way of computing it is fast, depend on its height and width."""
    model = create_model(encoder, decoder, classes=CLASSES)
    program = exported(model, torch.randn(2, 3, 64, 96))
    x = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x), atol=1e-3, rtol=1e-3)


def test_a_compiler_sees_the_whole_hybrid_as_one_graph():
    torch.manual_seed(0)
    model = create_model(HYBRID, classes=CLASSES).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "checkpointing"), [(HYBRID, False), (HYBRID, True), ("biformer_tiny", True), (SMALLEST, True)]
)
def test_a_compiled_model_learns_what_the_plain_one_does(encoder, checkpointing):
    options = {"classes": CLASSES, "drop_path": 0.0}
    plain = create_model(encoder, **options).train()
    compiled = create_model(encoder, **options, checkpointing=checkpointing).train()
    compiled.load_state_dict(plain.state_dict())
    compiled.compile(backend="aot_eager")
    x = torch.randn(2, 3, 64, 64)
    for model in (plain, compiled):
        model(x).square().mean().backward()
    for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, atol=1e-3, rtol=1e-2, msg=name)
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), atol=1e-4, rtol=1e-3)
