"""Models of segmentation-models-pytorch come in and go out with the same logits."""

import json

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from tiny_checkpoint import tiny_meta, write_checkpoint

from rs_biformer.checkpoint import load_checkpoint
from rs_biformer.cli import main
from rs_biformer.errors import CheckpointError, ConfigError
from rs_biformer.jobs import convert, publish
from rs_biformer.jobs.converting import from_smp
from rs_biformer.schema import PRESETS, ClassSchema

FACTS = {"schema": PRESETS["vaihingen"], "bands": ["red", "green", "blue"], "mean": "imagenet", "gsd": 0.25}
MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])


def saved(folder, kind="Unet", encoder="tu-lcnet_035", classes=6, **arguments):
    """A model of smp with statistics as after training, and the folder that smp writes of it."""
    torch.manual_seed(0)
    model = getattr(smp, kind)(encoder, encoder_weights=None, classes=classes, **arguments).eval()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    model.save_pretrained(folder)
    return model


def standardised(raw):
    return (raw.float() - MEAN[:, None, None]) / STD[:, None, None]


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("Unet", {"decoder_channels": [64, 32, 32, 16, 16], "decoder_attention_type": "scse"}),
        ("FPN", {"activation": "softmax", "aux_params": {"classes": 3}}),
        ("DeepLabV3Plus", {"encoder": "resnet18"}),
    ],
)
def test_a_model_that_smp_saved_gives_smps_logits(kind, arguments, tmp_path):
    theirs = saved(tmp_path / "theirs", kind, **arguments)
    convert(tmp_path / "theirs", tmp_path / "ours.safetensors", **FACTS)
    ours = load_checkpoint(tmp_path / "ours.safetensors")
    raw = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        wanted = theirs.decoder(theirs.encoder(standardised(raw)))
        for part in list(theirs.segmentation_head)[:2]:  # without the activation
            wanted = part(wanted)
        assert torch.equal(ours(raw), wanted)
        assert ours(raw[..., :50, :70]).shape == (2, 6, 50, 70)  # which smp refuses
    assert ours.meta.decoder == f"smp:{kind}" and ours.meta.mean == (123.675, 116.28, 103.53)


def test_one_logit_for_two_classes_is_a_sigmoid(tmp_path):
    theirs = saved(tmp_path / "theirs", classes=1)
    pair = ClassSchema("pair", ("ground", "roof"), ((0, 0, 0), (255, 0, 0)))
    ours = from_smp(tmp_path / "theirs", FACTS | {"schema": pair})
    raw = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(ours(raw).softmax(1)[:, 1:], theirs(standardised(raw)).sigmoid())
    with pytest.raises(ConfigError, match="gives 1 logits for 6 classes"):
        from_smp(tmp_path / "theirs", FACTS)


def test_the_command_converts_and_predict_maps(tmp_path, write_raster, capsys):
    saved(tmp_path / "theirs")
    out = tmp_path / "ours.safetensors"
    options = ["--classes", "vaihingen", "--bands", "red,green,blue", "--mean", "imagenet", "--window", "64"]
    assert main(["convert", str(tmp_path / "theirs"), *options, "--out", str(out)]) == 0
    pixels = np.random.default_rng(0).integers(0, 256, (3, 70, 80)).astype(np.uint8)
    scene = write_raster("scene.tif", pixels, photometric="rgb")
    assert main(["predict", str(scene), "--checkpoint", str(out), "--out", str(tmp_path / "maps")]) == 0
    assert (tmp_path / "maps" / "scene_classes.tif").is_file()
    # The same from a file that says it all, which the card of a model is.
    model = load_checkpoint(out)
    (tmp_path / "card.json").write_text(json.dumps(model.meta.to_json()))
    again = ["convert", str(tmp_path / "theirs"), "--card", str(tmp_path / "card.json")]
    assert main([*again, "--out", str(tmp_path / "again.safetensors")]) == 0
    assert (tmp_path / "again.safetensors").read_bytes() == out.read_bytes()


def test_our_unet_becomes_smps_with_the_same_logits_and_comes_back(tmp_path):
    meta = tiny_meta(encoder="lcnet_035", decoder="unet")
    publish(write_checkpoint(tmp_path / "ours.ckpt", meta), tmp_path / "theirs", "smp")
    ours, theirs = load_checkpoint(tmp_path / "ours.ckpt"), smp.from_pretrained(tmp_path / "theirs").eval()
    raw = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    mean, std = (torch.tensor(part)[:, None, None] for part in (meta.mean, meta.std))
    with torch.inference_mode():
        wanted = ours(raw)
        assert torch.equal(theirs((raw.float() - mean) / std), wanted)
        assert torch.equal(from_smp(tmp_path / "theirs", {})(raw), wanted)  # the card beside it says all
    text = (tmp_path / "theirs" / "README.md").read_text()
    assert "| red | 120 | 60 |" in text and "1 building" in text and "mit" not in text.lower().split()


def test_what_is_no_architecture_of_smp_is_refused(tmp_path, capsys):
    model = write_checkpoint(tmp_path / "ours.ckpt", tiny_meta(encoder="lcnet_035", decoder="segformer"))
    out = tmp_path / "theirs"
    assert main(["export", "--checkpoint", str(model), "--format", "smp", "--out", str(out)]) == 2
    assert "is no architecture of smp" in capsys.readouterr().err and not out.exists()
    out.mkdir()
    with pytest.raises(ConfigError, match="it is a folder; choose another name"):
        publish(model, out, "smp")


@pytest.mark.parametrize(
    ("changes", "facts", "said"),
    [
        ({"_model_class": "os.system"}, {}, "of no model of smp: its _model_class is 'os.system'"),
        ({"encoder_name": ["x"]}, {}, "of no model of smp"),
        ({"encoder_name": "nowhere/model"}, {}, "which neither smp nor timm has"),
        ({"pretrained_cfg": {"file": "/etc/passwd"}}, {}, "reads another file"),
        ({"decoder_channels": "many"}, {}, "smp cannot make a Unet"),
        ({"encoder_depth": 3, "decoder_channels": [8, 8, 8]}, {}, "the weights do not fit the config"),
        ({}, {"bands": ["red"], "mean": [1.0], "std": [1.0]}, "takes 3 bands, got red"),
        ({}, {"bands": None}, "does not tell bands"),
        ({}, {"mean": [1.0], "std": [2.0]}, "3 bands need as many means"),
        ({}, {"dtype": "uint16"}, "statistics of ImageNet are of bytes"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(changes, facts, said, tmp_path):
    saved(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises((CheckpointError, ConfigError), match=said) as caught:
        from_smp(tmp_path / "theirs", FACTS | facts)
    assert "\n" not in str(caught.value)


def test_a_folder_that_smp_did_not_write_is_refused(tmp_path, capsys):
    assert main(["convert", str(tmp_path), "--out", str(tmp_path / "a.safetensors")]) == 2
    assert "has no config.json; give a folder that smp's save_pretrained wrote" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{} {}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert main(["convert", str(tmp_path), "--out", str(tmp_path / "a.safetensors")]) == 2
    assert "is no valid JSON" in capsys.readouterr().err
