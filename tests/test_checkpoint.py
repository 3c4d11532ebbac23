import errno
import lzma
import os
import pickle
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoint import tiny_meta
from trained import trained

from rs_biformer.checkpoint import (
    FORMAT,
    META_KEY,
    NETWORK_PREFIX,
    CheckpointMeta,
    TrainedModel,
    load_checkpoint,
    read_checkpoint,
    strip_checkpoint,
)
from rs_biformer.errors import CheckpointError
from rs_biformer.nn.archive import write_archive
from rs_biformer.nn.attention import BiLevelRoutingAttention
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


@pytest.mark.parametrize("window", [256, 200, 129, 97, 64])
def test_on_windows_of_training_regions_of_training_change_nothing(window):
    torch.manual_seed(0)
    meta = tiny_meta("resnet18_biformer", window=window)
    model = TrainedModel(trained(meta.create_network()), meta)
    image = torch.randint(0, 255, (1, 3, window, window), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(model.with_regions_of_training()(image), model(image))


def test_a_model_with_regions_of_training_is_the_one_with_twice_as_many_in_images_twice_as_large():
    torch.manual_seed(0)
    meta = tiny_meta("resnet18_biformer", window=256)
    model = TrainedModel(trained(meta.create_network()), meta)
    kept = model.with_regions_of_training()
    assert kept.meta is meta and model.routes and not kept.training
    image = torch.randint(0, 255, (1, 3, 512, 512), dtype=torch.uint8)
    with torch.no_grad():
        small = image[..., :256, :256]
        assert torch.equal(kept(small), model(small))
        found, plain = kept(image), model(image)
        for part in model.modules():
            if isinstance(part, BiLevelRoutingAttention):
                part.topk = part.topk if part.topk < 64 else 16**2
                part.regions = 16
        torch.testing.assert_close(found, model(image))
    assert not torch.allclose(found, plain, atol=1e-3)


class Scaled(torch.nn.Conv2d):
    """Knows a factor beside its weights, as a buffer that is not saved, an attribute, or in a list of such."""

    def __init__(self, how: str) -> None:
        super().__init__(4, 6, 1)
        factor = torch.full((6, 1, 1), 3.0)
        if how == "buffer":
            self.register_buffer("factor", factor, persistent=False)
        else:
            self.factor = factor if how == "attribute" else [factor]

    def forward(self, x):
        return super().forward(x) * (self.factor[0] if isinstance(self.factor, list) else self.factor)


class Tied(torch.nn.Sequential):
    def __init__(self) -> None:
        super().__init__(torch.nn.Conv2d(4, 4, 1), torch.nn.Conv2d(4, 4, 1), torch.nn.Conv2d(4, 6, 1))
        self[1].weight = self[0].weight


@pytest.mark.parametrize(
    "make",
    [
        *(pytest.param(partial(Scaled, how), id=how) for how in ("buffer", "attribute", "list")),
        pytest.param(Tied, id="tied"),
        pytest.param(lambda: torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 6, 1)), id="plain"),
    ],
)
def test_what_a_network_holds_beside_its_weights_is_there_after_loading(make, tmp_path, monkeypatch):
    wanted = trained(make())
    weights = {NETWORK_PREFIX + name: value for name, value in wanted.state_dict().items()}
    torch.save({META_KEY: META.to_dict(), "state_dict": weights}, tmp_path / "model.ckpt")
    monkeypatch.setattr(CheckpointMeta, "create_network", lambda self: make())
    found = load_checkpoint(tmp_path / "model.ckpt").network
    image = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(found(image), wanted(image))
    if make is Tied:
        assert found[0].weight is found[1].weight


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
    assert_refused(save(state_dict=gone), r"do not fit mobilenet_v2 \+ unet_fusion: 1 are missing, such as encoder")
    assert_refused(save(state_dict={}), "do not fit")
    assert_refused(save(state_dict=weights | {"model.x\n": torch.zeros(1)}), r"1 have no place, such as 'x\\n'")
    narrow = replace(META, bands=("a",), mean=(0.0,), std=(1.0,))
    assert_refused(save(narrow), r"do not fit.* is torch.float32 \[32, 4, 3, 3\] where it takes .*\[32, 1, 3, 3\]")
    name = next(iter(weights))
    for other in (weights[name].to(torch.complex64), weights[name].to(torch.int32)):
        assert_refused(save(state_dict=weights | {name: other}), "do not fit.* where it takes torch.float32")
    assert_refused(save(state_dict=weights | {name: weights[name].to_sparse()}), "weights are dense tensors")
    assert_refused(save(state_dict=weights | {name: weights[name].to("meta")}), "weights are dense tensors")
    assert_refused(save(state_dict=weights | {name: [1.0]}), "has a list for .*; weights are dense tensors")
    assert_refused(save(state_dict=weights | {7: weights[name]}), "weights that are called 7")
    for wrong in (None, 3, [1, 2]):
        assert_refused(save(state_dict=wrong), "has no weights: its state_dict is ")


def test_weights_of_half_precision_are_loaded_as_float32(save, network):
    half = {NETWORK_PREFIX + name: value.bfloat16() for name, value in network.state_dict().items()}
    whole = {name: value if value.is_floating_point() else value.long() for name, value in half.items()}
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            whole[NETWORK_PREFIX + name] = value
    model = load_checkpoint(save(state_dict=whole))
    assert {value.dtype for value in model.network.parameters()} == {torch.float32}


def test_a_network_too_large_for_its_weights_is_refused_before_it_takes_memory(save, monkeypatch):
    def on_meta_alone(meta: CheckpointMeta) -> torch.nn.Module:
        network = create(meta)
        assert all(value.is_meta for value in network.parameters()), "it was built in memory"
        return network

    create = CheckpointMeta.create_network
    monkeypatch.setattr(CheckpointMeta, "create_network", on_meta_alone)
    assert_refused(save(replace(META, encoder="biformer_base")), "do not fit biformer_base")


def test_a_checkpoint_of_another_version_names_what_it_lacks_or_has_too_much(save):
    plain = META.to_dict()
    assert_refused(save({name: value for name, value in plain.items() if name != "bands"}), "bands is missing")
    assert_refused(save(plain | {"format": FORMAT + 1}), f"has format {FORMAT + 1} and this version .*update")
    assert_refused(save(plain | {"schema": {"name": "x"}}), "class schema: classes is missing")


def test_a_checkpoint_of_a_later_version_but_of_a_known_format_is_loaded_with_a_note(save, caplog):
    path = save(META.to_dict() | {"temperature": 1.5, "version": "9.0"})
    assert load_checkpoint(path).meta == replace(META, version="9.0")
    assert caplog.messages == [f"{path}: left aside what this version does not know: 'temperature'"]


def test_what_older_formats_lack_has_a_default():
    wanted = replace(META, metrics={}, protocol="", gsd=None, version="")
    older = {name: value for name, value in wanted.to_dict().items() if name not in ("format", *_OPTIONAL)}
    assert CheckpointMeta.from_dict(older) == wanted


_OPTIONAL = ("gsd", "version", "metrics", "protocol")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": None}, "class schema: it is null; it should be a mapping"),
        ({"bands": "nir"}, "bands is 'nir'; it should be a list"),
        ({"bands": []}, "bands is .*at least 1 item"),
        ({"bands": ["a", 1.5, "c", "d"]}, r"bands\[1\] is 1.5; it should be text"),
        ({"bands": ["a"]}, "1 bands need as many means"),
        ({"mean": [1.0, 2.0, 3.0, float("nan")]}, r"mean\[3\] is nan; it should be a finite number"),
        ({"mean": [1.0, 2.0, 3.0, "4"]}, r"mean\[3\] is '4'; it should be a number"),
        ({"std": [1.0, 2.0, 3.0, 0.0]}, r"std\[3\] is 0.0; it should be greater than 0"),
        ({"window": 0}, "window is 0; it should be greater"),
        ({"window": 1 << 40}, "window is .*less than or equal to 65536"),
        ({"window": 256.0}, "window is 256.0; it should be a whole number"),
        ({"gsd": "0.1"}, "gsd is '0.1'; it should be a number"),
        ({"gsd": -1.0}, "gsd is -1.0; it should be greater than 0"),
        ({"dtype": "object"}, "dtype is 'object'; it must be one of uint8"),
        ({"dtype": ["uint8"]}, "dtype is .*; it must be one of uint8"),
        ({"encoder": None}, "encoder is null; it should be text"),
        ({"encoder": "a\x1b[2J"}, "encoder is .*control character"),
        ({"model_arguments": [1]}, "model_arguments is .*; it should be a mapping"),
        ({"model_arguments": {"checkpoint_path": "/etc/passwd"}}, "checkpoint_path, which reads another file"),
        ({"metrics": {"x": torch.zeros(1)}}, "holds a Tensor; plain values are"),
        ({"metrics": {"x": 10**30}}, "beyond 64 bits"),
        ({"protocol": "\udc80"}, "lone surrogate"),
        ({"version": 3.5}, "version is 3.5; it should be text"),
        ({"format": "one"}, "has the format 'one'"),
        ({7: 1}, "7.* should be text"),
    ],
)
def test_a_damaged_description_is_told_in_a_line(save, change, message):
    assert_refused(save(META.to_dict() | change), f"model.ckpt:? .*{message}")


@pytest.mark.parametrize("gone", ["resnet18.pth", "imagenet"])
def test_a_checkpoint_needs_nothing_of_what_its_training_began_from(save, network, tmp_path, gone):
    begun = replace(META, model_arguments={"encoder_weights": str(tmp_path / gone) if "." in gone else gone})
    assert begun.model_arguments == {}
    old = META.to_dict() | {"model_arguments": {"encoder_weights": str(tmp_path / gone) if "." in gone else gone}}
    del old["format"]
    model = load_checkpoint(save(old))
    assert model.meta == META
    for name, value in network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], value)


OLD = Path(__file__).parent / "old"


def test_a_checkpoint_of_0_1_0_as_it_was_first_loads_for_good(tmp_path, caplog):
    path = tmp_path / "old.ckpt"
    path.write_bytes(lzma.decompress((OLD / "checkpoint_0_1_0.ckpt.xz").read_bytes()))
    content = torch.load(path, weights_only=True)
    assert "format" not in content[META_KEY]
    model = load_checkpoint(path)
    assert not caplog.messages
    assert (model.meta.encoder, model.meta.decoder, model.meta.version) == ("lcnet_035", "segformer", "0.1.0")
    assert model.meta.schema == PRESETS["vaihingen"] and model.bands == ("red", "green", "blue")
    assert 0 < model.meta.metrics["mean_iou"] < 1 and model.meta.protocol == "validation-windows"
    # What that version computed with it, on one thread.
    expected = np.load(OLD / "checkpoint_0_1_0.npy")
    raw = torch.from_numpy(np.arange(3 * 64 * 64, dtype=np.int64).reshape(1, 3, 64, 64) * 7919 % 256).to(torch.uint8)
    with torch.no_grad():
        np.testing.assert_allclose(model(raw)[0, :, ::8, ::8].numpy(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_flipped_bit_anywhere_is_told(save, share):
    path = save()
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 1
    path.write_bytes(data)
    for read in (load_checkpoint, read_checkpoint, strip_checkpoint):
        with pytest.raises(CheckpointError, match="some bytes have changed since it was written"):
            read(path)


def test_an_archive_that_would_grow_is_refused_before_it_does(save, tmp_path):
    path, packed = save(), tmp_path / "packed.ckpt"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as small:
        for entry in whole.infolist():
            small.writestr(entry.filename, bytes(entry.file_size) if "/data/" in entry.filename else whole.read(entry))
    assert_refused(packed, "packed.ckpt is damaged: it is compressed")


class Hungry:
    def __reduce__(self):
        return bytearray, (1 << 20,)


def test_a_pickle_cannot_ask_for_memory(save):
    path = save(callbacks={"state": Hungry()})
    assert len(torch.load(path, weights_only=True)["callbacks"]["state"]) == 1 << 20  # torch lets it
    assert_refused(path, "asks for bare memory")


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full")
@pytest.mark.parametrize("bytes_of_weights", [4, 4_000_000])
def test_a_disk_that_is_full_is_told_in_the_words_of_the_system(bytes_of_weights):
    with pytest.raises(OSError) as told:
        write_archive({"weights": torch.zeros(bytes_of_weights // 4)}, Path("/dev/full"))
    assert told.value.errno == errno.ENOSPC
