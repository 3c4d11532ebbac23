import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rs_biformer.checkpoint import (
    META_KEY,
    NETWORK_PREFIX,
    CheckpointMeta,
    load_checkpoint,
    read_checkpoint,
    strip_checkpoint,
)
from rs_biformer.errors import CheckpointError
from rs_biformer.schema import PRESETS

META = CheckpointMeta(
    encoder="mobilenet_v2",
    decoder="unet_fusion",
    model_arguments={},
    schema=PRESETS["vaihingen"],
    bands=("nir", "red", "green", "dsm"),
    dtype="float32",
    mean=(100.0, 90.0, 80.0, 280.5),
    std=(50.0, 40.0, 30.0, 7.25),
    window=256,
    gsd=0.09,
    version="0.1.0",
    metrics={"mean_iou": 0.5},
    protocol="validation-windows",
)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return META.create_network().eval()


@pytest.fixture
def save(tmp_path, network):
    def write(meta: CheckpointMeta | dict = META, **changes: object) -> Path:
        weights = {NETWORK_PREFIX + name: value for name, value in network.state_dict().items()}
        plain = meta.to_dict() if isinstance(meta, CheckpointMeta) else meta
        content = {META_KEY: plain, "state_dict": weights | {"normalisation.mean": torch.zeros(4)}, "epoch": 3}
        torch.save(content | changes, tmp_path / "model.ckpt")
        return tmp_path / "model.ckpt"

    return write


def test_what_a_checkpoint_carries_survives_a_round_trip():
    assert CheckpointMeta.from_dict(META.to_dict()) == META


def test_a_loaded_model_answers_like_the_one_that_was_saved(save, network):
    model = load_checkpoint(save())
    raw = torch.rand(2, 4, 40, 50) * 255
    mean, std = (torch.tensor(part)[:, None, None] for part in (META.mean, META.std))
    with torch.no_grad():
        torch.testing.assert_close(model(raw), network((raw - mean) / std))
    assert not model.training
    assert (model.schema, model.bands, model.meta) == (META.schema, META.bands, META)
    assert model.normalisation.mean.tolist() == list(META.mean)


def test_invalid_pixels_cannot_change_what_a_loaded_model_says(save):
    model = load_checkpoint(save())
    raw, valid = torch.rand(1, 4, 32, 32), torch.ones(1, 32, 32, dtype=torch.bool)
    valid[:, :8] = False
    other = raw.clone()
    other[:, :, :8] = float("nan")
    with torch.no_grad():
        torch.testing.assert_close(model(raw, valid), model(other, valid))


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["RS_BIFORMER_TEST_BOMB"],)


@pytest.mark.parametrize("how", ["beside the weights", "in the meta", "plain pickle", "old torch format"])
def test_loading_never_executes_code_from_the_file(save, tmp_path, monkeypatch, how):
    trace = tmp_path / "executed"
    monkeypatch.setenv("RS_BIFORMER_TEST_BOMB", str(trace))
    if how == "beside the weights":
        path = save(callbacks={"state": Bomb()})
    elif how == "in the meta":
        path = save(META.to_dict() | {"protocol": Bomb()})
    else:
        path = tmp_path / "model.ckpt"
        if how == "plain pickle":
            path.write_bytes(pickle.dumps(Bomb()))
        else:
            torch.save({"state_dict": Bomb()}, path, _use_new_zipfile_serialization=False)
    for load in (load_checkpoint, read_checkpoint, strip_checkpoint):
        with pytest.raises(CheckpointError, match="model.ckpt"):
            load(path)
    assert not trace.exists()
    torch.load(path, weights_only=False) if how != "plain pickle" else pickle.loads(path.read_bytes())
    assert trace.exists()  # the file was dangerous


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path):
    assert_refused(tmp_path / "nowhere.ckpt", "no checkpoint .*nowhere.ckpt")
    assert_refused(tmp_path, "no checkpoint")


@pytest.mark.parametrize("content", [b"", b"II*\0not a checkpoint", b"PK\3\4 torn", b"hello world" * 100])
def test_a_file_that_is_no_checkpoint_is_told(tmp_path, content):
    path = tmp_path / "some.ckpt"
    path.write_bytes(content)
    assert_refused(path, "some.ckpt")


def test_a_torn_checkpoint_is_told(save):
    path = save()
    path.write_bytes(path.read_bytes()[:100_000])
    assert_refused(path, "model.ckpt is no checkpoint, or a damaged one")


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"layer.weight": torch.zeros(2)}, torch.zeros(3), [1, 2]])
def test_another_kind_of_checkpoint_is_told(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    assert_refused(tmp_path / "other.pth", "not written by `rs-biformer train`.*load_published_weights")


def test_a_model_that_this_version_does_not_know_is_told(save):
    assert_refused(save(replace(META, encoder="resnet50_bifromer")), "cannot be built.*resnet50_bifromer")
    assert_refused(
        save(replace(META, encoder="resnet18_biformer", model_arguments={"colour": "red"})), "cannot be built.*colour"
    )


def test_weights_that_do_not_fit_are_told(save, network):
    weights = {NETWORK_PREFIX + name: value for name, value in network.state_dict().items()}
    gone = dict(list(weights.items())[1:])
    assert_refused(save(state_dict=gone), r"do not fit mobilenet_v2 \+ unet_fusion: Missing key")
    assert_refused(save(state_dict={}), "do not fit")
    assert_refused(save(replace(META, bands=("a",), mean=(0.0,), std=(1.0,))), "do not fit.*size mismatch")


def test_a_checkpoint_of_another_version_names_what_it_lacks_or_has_too_much(save):
    plain = META.to_dict()
    assert_refused(save({name: value for name, value in plain.items() if name != "gsd"}), "does not tell gsd")
    assert_refused(save(plain | {"temperature": 1.5, "version": "9.0"}), "temperature.*version 9.0: update")
    assert_refused(save(plain | {"schema": {"name": "x"}}), "class schema is damaged")


def test_stripping_leaves_the_model_and_drops_the_rest(save):
    path = save(optimizer_states=[{"state": torch.zeros(10**6)}], current_model_state={"a": torch.zeros(10**6)})
    before, weights = path.stat().st_size, load_checkpoint(path).network.state_dict()
    strip_checkpoint(path)
    assert path.stat().st_size < before - 7 * 10**6
    content, meta = read_checkpoint(path)
    assert set(content) == {META_KEY, "state_dict", "epoch"} and meta == META
    for name, value in load_checkpoint(path).network.state_dict().items():
        assert torch.equal(value, weights[name])
    assert [item.name for item in path.parent.iterdir()] == ["model.ckpt"]
