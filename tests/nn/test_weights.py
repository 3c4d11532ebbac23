import argparse
import pickle

import numpy as np
import pytest
import torch
from goldens import published_checkpoint
from safetensors.torch import save_file

from rs_biformer.errors import CheckpointError
from rs_biformer.nn.attention import BiLevelRoutingAttention, MultiScaleDilatedAttention
from rs_biformer.nn.blocks import IRFFN
from rs_biformer.nn.encoders.biformer import biformer_tiny
from rs_biformer.nn.model import create_encoder
from rs_biformer.nn.weights import load_published_weights


def legacy_bra():
    """The state dict of the published attention of 8 channels in its first version."""
    shapes = {"qkv.qkv": (24, 8), "wo": (8, 8), "lepe": (8, 1, 5, 5)}
    weights = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    return weights | {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}


def checkpoint_layout(name):
    container, shapes = published_checkpoint(name)
    return container, {key: torch.zeros(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", ["biformer_tiny", "cswin_tiny", "coat_lite_mini", "coat_tiny"])
def test_published_imagenet_checkpoints_fill_the_encoder_but_for_their_classifier(tmp_path, name):
    container, weights = checkpoint_layout(name)
    torch.save({container: weights, "epoch": 300}, tmp_path / "published.pth")
    encoder = create_encoder(name)
    report = load_published_weights(encoder, tmp_path / "published.pth")
    assert len(report.used) + len(report.left) == len(weights)
    assert all(key.startswith(("head.", "norm", "aggregate.")) for key in report.left)
    assert all("norm" in key for key in report.missing)
    filled = {key: value for key, value in encoder.state_dict().items() if key not in report.missing}
    assert all(not value.any() for value in filled.values())


def test_what_was_used_left_and_missing_is_told():
    _, weights = checkpoint_layout("biformer_tiny")
    report = load_published_weights(biformer_tiny(), weights)
    assert "downsample_layers.0.0.weight" in report.used
    assert "head.weight" in report.left
    assert "norm.running_mean" in report.left
    assert report.missing == tuple(f"norms.{i}.{leaf}" for i in range(4) for leaf in ("weight", "bias"))
    assert "tensors used" in str(report)


@pytest.mark.parametrize("container", [None, "model", "state_dict", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone."])
def test_a_state_dict_is_found_in_its_container_and_under_its_prefix(tmp_path, container, prefix):
    weights = legacy_bra()
    content = {prefix + key: value for key, value in weights.items()}
    torch.save(content if container is None else {container: content, "optimizer": {"step": 3}}, tmp_path / "bra.pth")
    module = BiLevelRoutingAttention(8, 2)
    report = load_published_weights(module, tmp_path / "bra.pth")
    assert len(report.used) == 6
    assert torch.equal(module.project.weight, weights["wo.weight"])
    assert torch.equal(module.local.bias, weights["lepe.bias"])


def segmentation_checkpoint(name, prefix="backbone."):
    """What OpenMMLab's code saves: the backbone with its norms for dense prediction, and what is trained beside it."""
    encoder = create_encoder(name)
    _, weights = checkpoint_layout(name)
    below = {key: value for key, value in weights.items() if not key.startswith(("head.", "norm."))}
    if name == "biformer_tiny":
        for stage, norm in enumerate(encoder.norms):
            below |= {f"extra_norms.{stage}.{leaf}": torch.zeros_like(value) for leaf, value in norm.named_parameters()}
    if name == "cswin_tiny":
        for stage, part in enumerate(encoder.stages, 1):
            below |= {f"norm{stage}.{leaf}": torch.zeros_like(value) for leaf, value in part.norm.named_parameters()}
    if name.startswith("coat"):
        below = {key: value for key, value in below.items() if not key.startswith(("norm", "aggregate."))}
    beside = {
        "neck.lateral_convs.0.conv.weight": torch.zeros(256, 64, 1, 1),
        "decode_head.conv_seg.weight": torch.zeros(150, 512, 1, 1),
        "auxiliary_head.convs.0.bn.num_batches_tracked": torch.tensor(7),
    }
    return encoder, {f"{prefix}{key}": value for key, value in below.items()}, beside


@pytest.mark.parametrize("prefix", ["backbone.", "module.backbone.", "backbone.bottom_up.backbone."])
@pytest.mark.parametrize("name", ["biformer_tiny", "cswin_tiny", "coat_lite_mini", "coat_tiny"])
def test_segmentation_checkpoints_fill_all_of_the_encoder_and_leave_necks_and_heads(tmp_path, name, prefix):
    encoder, below, beside = segmentation_checkpoint(name, prefix)
    meta = {"iter": 80000, "CLASSES": ("wall", "building"), "hook_msgs": {"best_score": np.float64(0.489)}}
    torch.save(
        {"meta": meta, "state_dict": {**below, **beside}, "optimizer": {"state": {}}}, tmp_path / "iter_80000.pth"
    )
    report = load_published_weights(encoder, tmp_path / "iter_80000.pth")
    assert report.used == tuple(below)
    assert report.left == tuple(beside)
    assert report.missing == ()
    assert not any(value.any() for key, value in encoder.state_dict().items() if "num_batches" not in key)


def test_a_segmentation_checkpoint_of_another_encoder_is_named():
    _, below, beside = segmentation_checkpoint("cswin_tiny")
    with pytest.raises(CheckpointError, match=r"does not fit BiFormer: .*backbone\..* looks like cswin_tiny"):
        load_published_weights(biformer_tiny(), {"state_dict": {**below, **beside}})


def test_what_authors_save_beside_the_weights_is_not_looked_at(tmp_path):
    beside = {"args": argparse.Namespace(lr=1e-3, out=tmp_path), "metric": np.float64(83.8), "epoch": 300}
    torch.save({"model": legacy_bra(), **beside}, tmp_path / "checkpoint.pth")
    assert len(load_published_weights(BiLevelRoutingAttention(8, 2), tmp_path / "checkpoint.pth").used) == 6


@pytest.mark.parametrize(
    ("published", "message"),
    [
        (BiLevelRoutingAttention(8, 2), r"looks like BiLevelRoutingAttention\(8, num_heads\)"),
        (MultiScaleDilatedAttention(8, 2), r"looks like MultiScaleDilatedAttention\(8, num_heads\)"),
        (IRFFN(8, 24), r"looks like IRFFN\(8, 24\)"),
    ],
)
def test_an_operator_in_the_wrong_place_is_named_with_its_width(published, message):
    with pytest.raises(CheckpointError, match=message):
        load_published_weights(BiLevelRoutingAttention(16, 2), published.state_dict())


def test_the_averaged_weights_are_preferred():
    plain, averaged = legacy_bra(), legacy_bra()
    module = BiLevelRoutingAttention(8, 2)
    load_published_weights(module, {"state_dict": plain, "state_dict_ema": averaged})
    assert torch.equal(module.qkv.weight, averaged["qkv.qkv.weight"])


def test_safetensors_files_are_read(tmp_path):
    weights = legacy_bra()
    save_file(weights, tmp_path / "bra.safetensors")
    module = BiLevelRoutingAttention(8, 2)
    load_published_weights(module, tmp_path / "bra.safetensors")
    assert torch.equal(module.qkv.weight, weights["qkv.qkv.weight"])


def test_convolutions_of_1x1_become_linear_layers():
    weights = {"qkv.weight": torch.randn(24, 8, 1, 1), "qkv.bias": torch.randn(24)}
    weights |= {"proj.weight": torch.randn(8, 8), "proj.bias": torch.randn(8)}
    module = MultiScaleDilatedAttention(8, 2)
    load_published_weights(module, weights)
    assert torch.equal(module.qkv.weight, weights["qkv.weight"][..., 0, 0])


def test_three_bands_become_more_with_the_same_response_to_grey():
    _, weights = checkpoint_layout("biformer_tiny")
    weights["downsample_layers.0.0.weight"] = torch.randn(32, 3, 3, 3)
    three, five = biformer_tiny(3), biformer_tiny(5)
    load_published_weights(three, weights)
    load_published_weights(five, weights)
    grey = torch.randn(1, 1, 8, 8)
    stem3, stem5 = (encoder.downsamples[0][0] for encoder in (three, five))
    assert stem5.weight.shape == (32, 5, 3, 3)
    torch.testing.assert_close(stem5.weight[:, 3], stem5.weight[:, 0])
    expected = stem3(grey.expand(1, 3, 8, 8))
    assert (stem5(grey.expand(1, 5, 8, 8)) - expected).abs().max() < 2 * expected.abs().max()


@pytest.mark.parametrize(
    ("published", "into", "message"),
    [
        ("cswin_tiny", "biformer_tiny", "looks like cswin_tiny"),
        ("biformer_tiny", "biformer_small", "lacks .* looks like biformer_tiny"),
        ("biformer_tiny", "biformer_base", "looks like biformer_tiny"),
        ("coat_tiny", "coat_lite_tiny", "looks like coat_tiny"),
    ],
)
def test_a_file_of_another_architecture_is_refused_by_name(published, into, message):
    _, weights = checkpoint_layout(published)
    encoder = create_encoder(into)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_published_weights(encoder, weights)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_a_resnet_is_recognised():
    resnet = create_encoder("resnet18").state_dict()
    with pytest.raises(CheckpointError, match="looks like resnet18"):
        load_published_weights(biformer_tiny(), resnet)


def test_a_deeper_network_does_not_fit_though_all_is_there():
    deeper = create_encoder("resnet34").state_dict()
    with pytest.raises(CheckpointError, match="have no place"):
        load_published_weights(create_encoder("resnet18"), deeper)


def spring():
    pytest.fail("the file was executed")


class Trap:
    def __reduce__(self):
        return (spring, ())


def test_nothing_in_a_file_is_executed(tmp_path):
    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"model": Trap()}, protocol=2))
    with pytest.raises(CheckpointError, match="cannot be read as weights alone"):
        load_published_weights(biformer_tiny(), tmp_path / "trap.pth")
    torch.save({"model": legacy_bra(), "args": Trap()}, tmp_path / "trap.pth")
    assert len(load_published_weights(BiLevelRoutingAttention(8, 2), tmp_path / "trap.pth").used) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"epoch": 3}, "holds no tensors"),
        ({"weird.weight": torch.zeros(2)}, "no architecture"),
    ],
)
def test_files_without_known_weights_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=message):
        load_published_weights(biformer_tiny(), tmp_path / "odd.pth")


def test_a_missing_and_a_damaged_file_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_published_weights(biformer_tiny(), tmp_path / "absent.pth")
    for name in ("damaged.pth", "damaged.safetensors"):
        (tmp_path / name).write_bytes(b"no weights at all")
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_published_weights(biformer_tiny(), tmp_path / name)
