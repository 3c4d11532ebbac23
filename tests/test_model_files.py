"""Models in other files than Lightning's: the same model, nothing executed, what is wrong told in a line."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_checkpoint import tiny_meta, write_checkpoint

from rs_biformer.checkpoint import META_KEY, load_checkpoint, read_checkpoint, strip_checkpoint, write_safetensors
from rs_biformer.cli import main
from rs_biformer.errors import CheckpointError
from rs_biformer.jobs import describe, load_model, publish
from rs_biformer.predict import predict_scene

META = tiny_meta(encoder="lcnet_035", decoder="segformer", metrics={"mean_iou": 0.5, "iou/car": float("nan")})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """model.ckpt, and model.safetensors with its card model.json made of it."""
    found = tmp_path_factory.mktemp("models")
    publish(write_checkpoint(found / "model.ckpt", META), found / "model.safetensors")
    return found


@pytest.fixture
def scene(write_raster) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 90, 110)).astype(np.uint8)
    return write_raster("scene.tif", pixels, photometric="rgb")


def parts(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(path: Path, header: object, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_the_map_of_safetensors_is_that_of_the_checkpoint_byte_for_byte(folder, scene, tmp_path):
    maps = []
    for suffix in ("ckpt", "safetensors"):
        model = load_checkpoint(folder / f"model.{suffix}")
        maps.append(predict_scene(model, scene, tmp_path / f"{suffix}.tif", classes=model.schema).read_bytes())
    assert maps[0] == maps[1]


def test_everything_that_the_checkpoint_carries_is_in_the_file_alone(folder, tmp_path):
    moved = tmp_path / "other name.safetensors"
    moved.write_bytes((folder / "model.safetensors").read_bytes())
    before, after = load_checkpoint(folder / "model.ckpt").meta, load_checkpoint(moved).meta
    assert (after.metrics, before.metrics["mean_iou"]) == ({"mean_iou": 0.5}, 0.5)  # NaN is no JSON
    assert after.to_json() == before.to_json()


def test_the_card_is_what_the_file_says_and_the_file_counts(folder, tmp_path):
    card = json.loads((folder / "model.json").read_text())
    assert card == META.to_json() and card["schema"]["classes"][1]["name"] == "building"
    for name in ("model.safetensors", "model.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "model.json").write_text(json.dumps(card | {"bands": ["a", "b", "c"]}))
    assert load_checkpoint(tmp_path / "model.safetensors").bands == META.bands


def test_the_same_model_gives_the_same_bytes(folder, tmp_path):
    write_safetensors(load_checkpoint(folder / "model.safetensors"), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_other_programs_read_the_weights(folder):
    found = safetensors.torch.load_file(folder / "model.safetensors")
    wanted = load_checkpoint(folder / "model.ckpt").network.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_commands_take_the_file_as_they_take_a_checkpoint(folder, scene, tmp_path, capsys):
    model = str(folder / "model.safetensors")
    assert main(["info", model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bands"] == ["red", "green", "blue"]
    assert main(["export", "--checkpoint", model, "--out", str(tmp_path / "copy.safetensors")]) == 0
    assert (tmp_path / "copy.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert main(["predict", str(scene), "--checkpoint", model, "--out", str(tmp_path / "maps")]) == 0
    assert main(["explain", str(scene), "--checkpoint", model, "--at", "9,9", "--pixels", "--out", "a.png"]) == 2
    assert (
        "no bi-level routing attention to explain" in capsys.readouterr().err
    )  # the model was read; this one has none


def test_training_begins_from_it_with_all_of_the_network(folder):
    from rs_biformer.train.finetune import begin_from

    network = META.create_network()
    said = begin_from(folder / "model.safetensors", network, META)
    assert said.endswith(f"{len(network.state_dict())} tensors used, 0 kept as initialised")


def test_a_name_that_would_not_be_read_again_is_refused(folder, tmp_path, capsys):
    out = str(tmp_path / "model.ckpt")
    assert main(["export", "--checkpoint", str(folder / "model.ckpt"), "--format", "safetensors", "--out", out]) == 2
    assert "let it end in .safetensors" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_stripping_leaves_it_as_it_is(folder):
    before = (folder / "model.safetensors").read_bytes()
    strip_checkpoint(folder / "model.safetensors")
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("share", [0.0001, 0.02, 0.5, 0.9999])
def test_a_flipped_bit_anywhere_is_told(folder, tmp_path, share):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[int(share * len(data))] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    assert_refused(tmp_path / "model.safetensors", "model.safetensors")


def test_a_changed_card_is_told(folder, tmp_path):
    header, data = parts(folder / "model.safetensors")
    header["__metadata__"][META_KEY] = header["__metadata__"][META_KEY].replace('"gsd": 0.5', '"gsd": 5.0')
    assert_refused(with_header(tmp_path / "a.safetensors", header, data), "some bytes have changed")


def test_weights_without_a_card_say_how_to_get_one(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "bare.safetensors")
    assert_refused(tmp_path / "bare.safetensors", "no card of rs_biformer.*rs-biformer convert")


def hostile() -> dict[str, tuple[object, bytes, str]]:
    """By name: header, data and what is said of it."""
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return {
        "text": (b"no header at all", b"", "no valid JSON"),
        "list": ([1], b"", "should be a mapping"),
        "twice": (b'{"a": 1, "a": 2}', b"", "occurs twice"),
        "deep": (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", b"", "nested|no valid JSON"),
        "numbers": ({"__metadata__": {META_KEY: 3}}, b"", "should be text"),
        "outside": ({"a": one | {"data_offsets": [0, 1 << 40]}}, b"1234", "or a damaged one"),
        "overlap": ({"a": one, "b": one}, b"1234", "or a damaged one"),
        "huge shape": ({"a": one | {"shape": [1 << 62, 1 << 62]}}, b"1234", "or a damaged one"),
        "card is code": ({"__metadata__": {META_KEY: "__import__('os')"}}, b"", "its card is no valid JSON"),
        "card is a list": ({"__metadata__": {META_KEY: "[]"}}, b"", "its card: it is .*mapping"),
        "no weights": ({"__metadata__": {META_KEY: json.dumps(META.to_json())}}, b"", "do not fit"),
        "another version": ({"__metadata__": {META_KEY: '{"format": 99}'}}, b"", "has format 99"),
    }


@pytest.mark.parametrize("name", hostile())
def test_a_hostile_header_is_refused_in_a_line(name, tmp_path):
    header, data, said = hostile()[name]
    assert_refused(with_header(tmp_path / "a.safetensors", header, data), said)


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 1 << 62), b"\xff" * 8 + b"{}"])
def test_a_header_longer_than_the_file_takes_no_memory(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    assert_refused(tmp_path / "a.safetensors", "header would be larger than the file")


def test_a_header_beyond_the_limit_is_refused(tmp_path):
    path = with_header(tmp_path / "a.safetensors", b" " * (17 << 20), b"")
    assert_refused(path, "has a header of 17,825,792 bytes; it may have 16,777,216")


def test_a_model_is_described_by_its_kind(folder):
    assert describe([str(folder / "model.safetensors")])["kind"] == "model in safetensors"
    assert load_model(folder / "model.safetensors").meta.window == META.window
    assert read_checkpoint(folder / "model.safetensors")[1].encoder == "lcnet_035"
