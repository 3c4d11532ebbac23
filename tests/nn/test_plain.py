import pytest
import timm
import torch
from torch import nn

from rs_biformer.errors import ConfigError
from rs_biformer.nn.encoders.plain import STRIDES, PlainTransformer, add_adapters, is_plain_transformer
from rs_biformer.nn.model import DECODERS, create_encoder, create_model
from rs_biformer.nn.weights import load_published_weights

TINY = "test_vit"


def tokens_of(encoder, x):
    with torch.no_grad():
        return encoder.maps(x)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_works_with_a_plain_transformer_at_any_size_and_with_any_bands(decoder):
    model = create_model(TINY, decoder, classes=3, in_channels=5, width=32).eval()
    for size in ((64, 64), (37, 101)):
        with torch.no_grad():
            assert model(torch.randn(1, 5, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (TINY, {}),
        (TINY, {"taps": "even"}),
        ("vit_small_patch16_dinov3_qkvb", {"embed_dim": 96, "depth": 2, "num_heads": 2}),
        ("vit_small_patch14_dinov2", {"embed_dim": 64, "depth": 4, "num_heads": 2}),
        ("vit_base_patch8_224", {"embed_dim": 64, "depth": 2, "num_heads": 2}),
        ("vit_base_patch32_224", {"embed_dim": 64, "depth": 2, "num_heads": 2}),
        ("samvit_base_patch16", {"embed_dim": 64, "depth": 2, "num_heads": 2, "global_attn_indexes": (1,)}),
        ("eva02_tiny_patch14_224", {"embed_dim": 96, "depth": 2, "num_heads": 2}),
    ],
)
def test_plain_transformers_of_all_kinds_give_a_pyramid(name, arguments):
    encoder = create_encoder(name, in_channels=4, width=24, **arguments).eval()
    assert isinstance(encoder, PlainTransformer)
    x = torch.randn(2, 4, 64, 96)
    with torch.no_grad():
        features = encoder(x)
    assert [f.shape[1] for f in features] == encoder.out_channels == [4, 0, 24, 24, 24, 24]
    assert [tuple(f.shape[2:]) for f in features] == [(64 // s, 96 // s) for s in (1, 2, *STRIDES)]
    assert all(f.std() > 0 for f in features[2:])


def test_the_tokens_are_timms_at_the_size_it_was_made_for():
    encoder = create_encoder(TINY).eval()
    theirs = timm.create_model(TINY, num_classes=0).eval()
    theirs.load_state_dict(encoder.transformer.state_dict())
    x = torch.randn(1, 3, *theirs.pretrained_cfg["input_size"][1:])
    with torch.no_grad():
        expected = theirs.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]
    for tokens in tokens_of(encoder, x):
        assert torch.equal(tokens, expected)


def test_even_taps_are_the_maps_of_blocks_evenly_apart_finest_first():
    encoder = create_encoder(TINY, taps="even").eval()
    count = len(encoder.transformer.blocks)
    assert encoder.indices == [(level + 1) * count // 4 - 1 for level in range(4)]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = encoder.transformer.forward_intermediates(
            x, indices=encoder.indices, norm=True, intermediates_only=True
        )
    assert all(torch.equal(a, b) for a, b in zip(tokens_of(encoder, x), expected, strict=True))


def test_position_embeddings_follow_the_image():
    """On another grid they are stretched over it: a map of twice the size begins and ends like the original."""
    encoder = create_encoder(TINY).eval()
    side = encoder.transformer.patch_embed.grid_size[0]
    with torch.no_grad():
        encoder.transformer.pos_embed.copy_(torch.randn_like(encoder.transformer.pos_embed) * 3)
        size = 16 * side
        x = torch.zeros(1, 3, size, size)
        before, twice = tokens_of(encoder, x)[0], tokens_of(encoder, torch.zeros(1, 3, 2 * size, 2 * size))[0]
    assert twice.shape[2:] == (2 * side, 2 * side)
    pooled = nn.functional.avg_pool2d(twice, 2)
    centred = [(t - t.mean((2, 3), keepdim=True)).flatten() for t in (before, pooled)]
    assert torch.corrcoef(torch.stack(centred))[0, 1] > 0.8


def test_every_parameter_of_the_pyramid_and_the_transformer_learns():
    encoder = create_encoder(TINY, width=16)
    sum(f.square().mean() for f in encoder(torch.randn(1, 3, 64, 64))[2:]).backward()
    still = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


def test_networks_with_several_strides_are_no_plain_transformers():
    assert is_plain_transformer(TINY) and is_plain_transformer("samvit_base_patch16")
    assert not any(map(is_plain_transformer, ("resnet18", "swin_tiny_patch4_window7_224", "hiera_tiny_224")))


def test_a_transformer_of_one_size_is_refused_unless_the_size_is_given():
    with pytest.raises(ConfigError, match="images of one size alone; give it as img_size"):
        create_encoder("beit_base_patch16_224", embed_dim=64, depth=2, num_heads=2)
    encoder = create_encoder("beit_base_patch16_224", embed_dim=64, depth=2, num_heads=2, img_size=64)
    assert encoder(torch.randn(1, 3, 64, 64))[4].shape == (1, 256, 4, 4)


@pytest.mark.parametrize("name", ["hiera_tiny_224", "gcvit_xxtiny", "test_maxvit"])
def test_a_pyramid_of_one_size_is_refused_at_another_unless_it_is_given(name):
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    own = timm.get_pretrained_cfg(name).input_size[-1]
    with torch.device("meta"), torch.inference_mode():
        encoder = create_encoder(name)
        assert encoder(torch.zeros(1, 3, own, own))[-1].shape[-2:] == (own // 32, own // 32)
        with pytest.raises(ConfigError, match=f"{name} cannot take images of 96 x 64 px, it is made for {own} x {own}"):
            encoder(torch.zeros(1, 3, 64, 96))
        given = create_encoder(name, img_size=256)
        assert given(torch.zeros(1, 3, 256, 256))[-1].shape[-2:] == (8, 8)
        with pytest.raises(ConfigError, match="cannot take images of 96 x 64 px, it is made for 256 x 256"):
            given(torch.zeros(1, 3, 64, 96))


def test_a_pyramid_whose_windows_follow_the_image_takes_any_size():
    with torch.device("meta"), torch.inference_mode():
        encoder = create_encoder("swin_tiny_patch4_window7_224")
        assert [f.shape[-2:] for f in encoder(torch.zeros(1, 3, 64, 96))[2:]] == [(16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize(
    ("arguments", "message"), [({"taps": "some"}, "use last or even"), ({"depht": 2}, "cannot make encoder test_vit")]
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        create_encoder(TINY, **arguments)


def test_blocks_can_be_checkpointed():
    encoder = create_encoder(TINY, checkpointing=True)
    assert encoder.transformer.grad_checkpointing


def test_adapters_add_nothing_at_first_and_learn_alone():
    pytest.importorskip("peft")
    plain, adapted = create_encoder(TINY, width=16).eval(), create_encoder(TINY, width=16, lora=4).eval()
    report = load_published_weights(adapted, timm.create_model(TINY).state_dict() | plain.transformer.state_dict())
    adapted.levels.load_state_dict(plain.levels.state_dict())
    assert all(".lora_" in name or name.startswith("levels.") for name in report.missing)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(adapted(x), plain(x), strict=True):
            torch.testing.assert_close(a, b)
    adapted.train()
    sum(f.square().mean() for f in adapted(x)[2:]).backward()
    learning = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert learning == {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert all(".lora_" in name or name.startswith("levels.") for name in learning)
    assert any("qkv" in name for name in learning) and any("fc2" in name for name in learning)


def test_adapters_without_their_package_or_rank_are_refused(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ConfigError, match=r"need peft; get it with: pip install 'rs_biformer\[lora\]'"):
        add_adapters(nn.Sequential(nn.Linear(2, 2)), 4)
