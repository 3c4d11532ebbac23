import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from tiny_checkpoint import pointwise_model, tiny_meta, write_checkpoint

from rs_biformer.errors import CheckpointError, ConfigError
from rs_biformer.predict import predict_scene

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from torch import nn  # noqa: E402

from rs_biformer import files  # noqa: E402
from rs_biformer.checkpoint import TrainedModel  # noqa: E402
from rs_biformer.cli import main  # noqa: E402
from rs_biformer.data.layouts import SceneFiles  # noqa: E402
from rs_biformer.export import Trial, check, export_onnx, export_program, metadata  # noqa: E402
from rs_biformer.export.deployed import Deployed  # noqa: E402
from rs_biformer.export.samples import invented  # noqa: E402
from rs_biformer.jobs import describe, load_model  # noqa: E402
from rs_biformer.nn.attention.bra import BiLevelRoutingAttention, closest_ties  # noqa: E402
from rs_biformer.predict.onnx import OnnxModel  # noqa: E402
from rs_biformer.schema import IGNORE, ClassSchema  # noqa: E402


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_onnx(pointwise_model(), tmp_path_factory.mktemp("onnx") / "model.onnx", overlap=0.25).path


class Layers(nn.Module):
    """Two convolutions and a product, for 3 bands and 6 classes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.head = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 6, 1)
        self.mix = nn.Linear(32, 32)
        nn.init.normal_(self.head.weight, std=2)

    def forward(self, x):
        x = self.first(x).relu()
        return self.head(x + self.mix(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).relu())


class Rims(nn.Module):
    """A maximum of negative values that looks at zeros at the rim, as HGNetV2's stem has it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 6, 1)

    def forward(self, x):
        rimmed = nn.functional.pad(-x.abs(), (0, 1, 0, 1))
        return self.head(nn.functional.max_pool2d(rimmed, 2, 1))


class Windowed(nn.Module):
    """Attention in windows, (B, heads, windows, pixels, channels), as timm's Hiera has it."""

    def __init__(self):
        super().__init__()
        self.fused_attn, self.head = True, nn.Conv2d(3, 6, 1)

    def forward(self, x):
        rows = x.unflatten(2, (-1, 4)).permute(0, 1, 2, 4, 3)[:, None].flatten(2, 3)  # (B, 1, 3 * S / 4, S, 4)
        if self.fused_attn:
            rows = nn.functional.scaled_dot_product_attention(rows, rows, rows)
        else:
            rows = (rows @ rows.mT / 2).softmax(-1) @ rows
        return self.head(rows.unflatten(2, (3, -1))[:, 0].permute(0, 1, 2, 4, 3).flatten(2, 3))


def layers(**changes):
    return TrainedModel(Layers(), tiny_meta(window=32, **changes))


@pytest.fixture
def trial(write_raster):
    """A scene of 70 x 90 with a hole and a label that knows its left half."""
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (3, 70, 90)).astype(np.uint8)
    valid = np.ones((70, 90), bool)
    valid[:20, :20] = False
    label = rng.integers(0, 6, (70, 90)).astype(np.uint8)
    label[:, 45:] = 255
    scene = write_raster("scene.tif", image, mask=valid, photometric="rgb")
    return Trial([SceneFiles("scene", (scene,), write_raster("label.tif", label, nodata=255))])


def session_of(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("network", [Rims, Windowed])
def test_what_onnxruntime_or_torchs_exporter_get_wrong_is_written_otherwise(network, tmp_path):
    """Without it onnxruntime gives other values in the last row and column, and the exporter refuses five axes."""
    torch.manual_seed(0)
    model = TrainedModel(network(), tiny_meta(window=16))
    assert export_onnx(model, tmp_path / "m.onnx").agreement.largest < 1e-5
    assert getattr(model.network, "fused_attn", True), "the network itself is as before"


@pytest.mark.parametrize("batch", [1, 5])
def test_the_file_takes_raw_values_and_gives_probabilities_for_any_batch(exported, batch: int):
    image = torch.randint(0, 256, (batch, 3, 32, 32)).float()
    (found,) = session_of(exported).run(None, {"image": image.numpy()})
    with torch.inference_mode():
        wanted = pointwise_model()(image).softmax(1).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


def test_what_deepness_does_to_its_tiles_gives_the_raw_values_back(exported):
    found = session_of(exported).get_modelmeta().custom_metadata_map
    mean, std = (np.array(json.loads(found[f"standardization_{name}"])) for name in ("mean", "std"))
    raw = np.arange(256)[:, None].repeat(3, 1)
    np.testing.assert_allclose((raw / 255 - mean) / std, raw, atol=1e-9)


def test_the_metadata_are_those_that_deepness_reads(exported):
    found = {key: json.loads(value) for key, value in session_of(exported).get_modelmeta().custom_metadata_map.items()}
    assert found["model_type"] == "Segmentor"
    assert found["class_names"]["1"] == "building"
    assert found["resolution"] == 50
    assert (found["tile_size"], found["tiles_overlap"]) == (32, 25)
    assert (found["seg_thresh"], found["seg_small_segment"]) == (0, 0)


def test_the_versions_are_those_that_deepness_opens(exported):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported)
    assert model.ir_version <= 9
    assert [(one.domain, one.version <= 20) for one in model.opset_import] == [("", True)]


def test_the_runtime_of_deepness_gives_the_same_probabilities(exported, tmp_path):
    """In a process of its own without the packages of this one, where numpy is newer than that runtime allows."""
    folder = os.environ.get("ONNXRUNTIME_1_17")
    if not folder:
        pytest.skip("ONNXRUNTIME_1_17 names no folder (pip install --target FOLDER onnxruntime==1.17.0 'numpy<2')")
    image = torch.randint(0, 256, (3, 3, 32, 32)).float()
    np.save(tmp_path / "image.npy", image.numpy())
    code = (
        f"import sys; sys.path.insert(0, {folder!r}); import numpy, onnxruntime; print(onnxruntime.__version__);"
        f"session = onnxruntime.InferenceSession({str(exported)!r}, providers=['CPUExecutionProvider']);"
        "(found,) = session.run(None, {'image': numpy.load('image.npy')}); numpy.save('found.npy', found)"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("1.17"), done.stderr
    with torch.inference_mode():
        wanted = pointwise_model()(image).softmax(1).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), wanted, atol=1e-5)


def test_an_unknown_pixel_size_is_not_made_up():
    assert "resolution" not in metadata(pointwise_model(tiny_meta(gsd=None)), 32, 0.5)


def test_an_exported_model_is_known_by_its_file_and_travels_with_it(exported, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(exported.read_bytes())
    model = OnnxModel(path)
    packed = pickle.dumps(model)
    path.unlink()  # as on a machine that does not have the file
    sent = pickle.loads(packed)
    raw, valid = np.random.default_rng(0).random((1, 3, 32, 32), np.float32), np.ones((1, 32, 32), bool)
    np.testing.assert_array_equal(sent(raw, valid), model(raw, valid))
    assert sent.fingerprint == model.fingerprint == OnnxModel(exported).fingerprint


def test_an_exported_model_maps_a_scene_as_the_checkpoint_does(exported, write_raster, tmp_path):
    image = np.random.default_rng(1).integers(0, 256, (3, 45, 70)).astype(np.uint8)
    valid = np.ones((45, 70), bool)
    valid[5:12, 20:41] = False
    scene = write_raster("scene.tif", image, mask=valid, photometric="rgb")
    model = OnnxModel(exported)
    maps = []
    for name, one in (("torch", pointwise_model()), ("onnx", model)):
        out = predict_scene(one, scene, tmp_path / f"{name}.tif", classes=6, window=32, precision="32")
        with rasterio.open(out) as source:
            maps.append(source.read(1))
    np.testing.assert_array_equal(*maps)
    assert model.details["bands"] == ["red", "green", "blue"]


def test_another_window_than_the_exported_one_is_refused(exported, write_raster, tmp_path):
    scene = write_raster("scene.tif", np.zeros((3, 40, 40), np.uint8))
    with pytest.raises(ConfigError, match="--window 32"):
        predict_scene(OnnxModel(exported), scene, tmp_path / "map.tif", classes=6, window=16)


def test_files_that_are_no_exported_model_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no model"):
        OnnxModel(tmp_path / "nowhere.onnx")
    (tmp_path / "text.onnx").write_text("no model at all")
    with pytest.raises(CheckpointError, match="is no ONNX model"):
        OnnxModel(tmp_path / "text.onnx")


def test_a_foreign_onnx_model_is_refused(exported, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(CheckpointError, match="does not say what it was trained on"):
        OnnxModel(tmp_path / "foreign.onnx")


def test_the_windows_are_those_of_the_scene(trial):
    scene = rasterio.open(trial.scenes[0].images[0])
    image, mask, label = scene.read(), scene.dataset_mask() > 0, rasterio.open(trial.scenes[0].label).read(1)
    found = trial.windows(layers(), 32)
    assert len(found) == 9
    seen = np.zeros((70, 90), int)
    for values, valid, truth in zip(found.image, found.valid, found.label, strict=True):
        corners = [
            (row, col)
            for row in (0, 32, 38)
            for col in (0, 32, 58)
            if np.array_equal(valid, mask[row : row + 32, col : col + 32])
            and np.array_equal(values[:, valid], image[:, row : row + 32, col : col + 32][:, valid])
        ]
        ((row, col),) = corners
        seen[row : row + 32, col : col + 32] += 1
        np.testing.assert_array_equal(truth, label[row : row + 32, col : col + 32])
        assert (values[:, ~valid] == np.array([[120], [115], [110]])).all()
    assert seen.min() == 1


def test_windows_beyond_a_small_scene_are_filled_and_do_not_count(write_raster):
    image = np.random.default_rng(0).integers(0, 256, (3, 20, 25)).astype(np.uint8)
    files = SceneFiles("s", (write_raster("s.tif", image),), write_raster("l.tif", np.zeros((20, 25), np.uint8)))
    (values,), (valid,), (label,) = (lambda s: (s.image, s.valid, s.label))(Trial([files]).windows(layers(), 32))
    assert valid.sum() == 20 * 25 and valid[:20, :25].all()
    np.testing.assert_array_equal(values[:, :20, :25], image)
    np.testing.assert_array_equal(values[:, 20:, :25], image[:, 18:6:-1])
    assert (label[~valid] == IGNORE).all() and (label[valid] == 0).all()


def test_invented_windows_hold_what_the_rasters_could():
    noise = invented(layers(), 64).image
    assert noise.min() >= 0 and noise.max() <= 255 and (noise == noise.round()).all()
    np.testing.assert_allclose(noise.mean((0, 2, 3)), [120, 115, 110], atol=3)


def initializers(path):
    return {value.name: value for value in pytest.importorskip("onnx").load(path).graph.initializer}


def test_float16_halves_the_weights_and_takes_raw_values_that_float16_cannot_hold(tmp_path):
    onnx = pytest.importorskip("onnx")
    changes = {"dtype": "uint16", "mean": (90000.0,) * 3, "std": (5000.0,) * 3}  # float16 ends at 65504
    model = layers(**changes)
    done = export_onnx(model, tmp_path / "half.onnx", precision="fp16", max_changed=1.0)
    assert done.precision == "fp16" and done.agreement.largest < 0.02 and done.agreement.equal > 0.99
    assert initializers(done.path)["model.network.first.weight"].data_type == 10
    session = session_of(done.path)
    image = torch.randint(60000, 120000, (2, 3, 32, 32)).float()
    (found,) = session.run(None, {"image": image.numpy()})
    assert found.dtype == np.float32 and abs(found.sum(1) - 1).max() < 1e-6  # a softmax in float32
    onnx.checker.check_model(done.path)
    with torch.inference_mode():
        np.testing.assert_allclose(found, model(image).softmax(1).numpy(), atol=0.02)


def test_int8_quantises_what_has_weights_but_not_the_logits(tmp_path, trial):
    onnx = pytest.importorskip("onnx")
    done = export_onnx(layers(), tmp_path / "small.onnx", precision="int8", trial=trial)
    assert 0.9 < done.agreement.equal < 1 and done.agreement.scores is not None
    graph = onnx.load(done.path).graph
    makers = {name: node for node in graph.node for name in node.output}
    quantised = {
        node.op_type: makers[node.input[1]].op_type == "DequantizeLinear"
        for node in graph.node
        if node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in makers
    }
    assert quantised == {"Conv": True, "MatMul": True}
    assert initializers(done.path)["model.network.head.weight"].data_type == 1
    readers = [node.op_type for node in graph.node if "image" in node.input]
    assert "Sub" in readers and "QuantizeLinear" not in readers
    assert (onnx.load(done.path).ir_version, done.path.parent.name) == (9, tmp_path.name)
    assert OnnxModel(done.path).window == 32


def test_int8_is_measured_on_other_windows_than_its_scales_were_found_on(tmp_path, trial, monkeypatch):
    from rs_biformer.export import onnx as module

    seen = {}
    monkeypatch.setattr(module, "_quantise", lambda target, samples: seen.update(calibration=samples.image))
    compared = module.compare
    monkeypatch.setattr(
        module, "compare", lambda *given, **more: seen.update(measured=given[2].image) or compared(*given, **more)
    )
    export_onnx(layers(), tmp_path / "small.onnx", precision="int8", trial=trial)
    both = np.concatenate(list(seen.values()))
    assert len(both) == 9 and len(np.unique(both, axis=0)) == 9


def test_int8_without_a_scene_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="give --scene"):
        export_onnx(layers(), tmp_path / "deep" / "small.onnx", precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_loses_too_much_is_refused(tmp_path, trial):
    with pytest.raises(CheckpointError, match="allow it with --max-changed"):
        export_onnx(layers(), tmp_path / "small.onnx", precision="int8", trial=trial, max_changed=0.0)
    assert not list(tmp_path.glob("*.onnx*"))


def test_the_loss_is_that_of_the_labelled_pixels():
    """By hand: six right of eight, then one more wrong; classes 0 and 1."""
    model = TrainedModel(nn.Conv2d(3, 2, 1), tiny_meta(window=4, schema=two_classes()))
    label = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [255] * 4, [255] * 4], np.uint8)
    right = np.array([[0, 0, 0, 1], [1, 1, 1, 0], [0] * 4, [1] * 4])
    worse = right.copy()
    worse[0, 0] = 1
    samples = invented(model, 4, count=1)
    samples = type(samples)(samples.image, samples.valid, label[None], "a window")
    wanted, found = (np.stack([1 - one, one])[None].astype(np.float32) for one in (right, worse))
    deployed = Deployed(model)
    deployed.probabilities = lambda image: torch.from_numpy(wanted)
    agreement = check.compare(deployed, lambda image: np.repeat(found, len(image), 0), samples, exact=False)
    assert agreement.scores == (pytest.approx((3 / 5, 6 / 8)), pytest.approx(((2 / 5 + 3 / 6) / 2, 5 / 8)))
    assert (agreement.largest, agreement.equal) == (1.0, 15 / 16)


def two_classes():
    return ClassSchema("two", ("field", "road"), ((0, 0, 0), (255, 255, 255)))


def test_a_share_is_whole_only_where_nothing_is_missing():
    assert [check.floored(share) for share in (1.0, 1 - 1e-9, 0.5)] == ["100", "99.999", "50.000"]


def test_an_export_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "TOLERANCE", -1.0)
    with pytest.raises(CheckpointError, match="differs by"):
        export_onnx(pointwise_model(), tmp_path / "new" / "folder" / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_one_probability_that_differs_is_enough_to_refuse(tmp_path):
    model = pointwise_model()
    deployed, samples = Deployed(model), invented(model, 32)

    def run(image):
        found = deployed.probabilities(torch.from_numpy(image)).numpy().copy()
        if (image == samples.image[3]).all((1, 2, 3)).any():
            found[np.flatnonzero((image == samples.image[3]).all((1, 2, 3)))[0], 2, 7, 9] += 2e-4
        return found

    agreement = check.compare(deployed, run, samples)
    assert agreement.largest == pytest.approx(2e-4, rel=1e-2) and agreement.ties == 0
    with pytest.raises(CheckpointError, match="differs by 0.0002"):
        check.require_equal(agreement, "it")


class Routed(nn.Module):
    """Routed attention alone, on a map of 8 x 8 pixels in 4 x 4 regions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = BiLevelRoutingAttention(3, 1, regions=4, topk=2)
        self.head = nn.Linear(3, 6)

    def forward(self, x):
        return self.head(self.attention(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


@torch.no_grad()
def test_ties_between_routes_are_found():
    model = Routed()
    assert closest_ties(model, torch.ones(1, 3, 8, 8)) == 0
    assert closest_ties(pointwise_model(), torch.ones(1, 3, 8, 8)) == float("inf")
    x = torch.randn(1, 3, 8, 8)
    q, k, _ = model.attention.qkv(x.permute(0, 2, 3, 1)).chunk(3, dim=-1)
    regions = [(slice(2 * (r // 4), 2 * (r // 4) + 2), slice(2 * (r % 4), 2 * (r % 4) + 2)) for r in range(16)]
    gaps = []
    for one in regions:
        query = q[0][one].mean((0, 1))
        keys = [k[0][other].mean((0, 1)) for other in regions]
        second, third = sorted((float(query @ key) for key in keys), reverse=True)[1:3]
        gaps.append((second - third) / max(float(query.abs() @ key.abs()) for key in keys))
    assert closest_ties(model, x) == pytest.approx(min(gaps), rel=1e-3)
    assert not model.attention._forward_hooks


def test_a_window_that_is_routed_by_a_tie_proves_nothing(monkeypatch):
    model = TrainedModel(Routed(), tiny_meta(window=8))
    deployed, samples = Deployed(model), invented(model, 8)

    def run(image):
        return deployed.probabilities(torch.from_numpy(image)).numpy() + np.where(np.arange(8) == 3, 3e-3, 0)

    monkeypatch.setattr(check, "TIE", float("inf"))
    agreement = check.compare(deployed, run, samples)
    assert (agreement.largest, agreement.ties) == (0, 4) and agreement.tied == pytest.approx(3e-3, rel=1e-3)
    assert "where routes are a tie within rounding" in str(agreement)
    monkeypatch.setattr(check, "TIE", 0.0)
    assert check.compare(deployed, run, samples).largest == pytest.approx(3e-3, rel=1e-3)


class Untraceable(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) if float(x.sum()) < 1e30 else x


def test_a_network_that_cannot_be_exported_is_refused_in_a_line(tmp_path):
    model = TrainedModel(Untraceable(3, 6, 1), tiny_meta(window=32))
    for export, name in ((export_onnx, "m.onnx"), (export_program, "m.pt2")):
        with pytest.raises(ConfigError, match="cannot be exported") as refused:
            export(model, tmp_path / "new" / name)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_gives_no_numbers_or_does_not_run_is_refused(tmp_path):
    broken = pointwise_model()
    broken.network.weight.data[0] = float("nan")
    with pytest.raises(ConfigError, match="not finite"):
        export_onnx(broken, tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match="does not take windows of 4"):
        export_onnx(TrainedModel(nn.Conv2d(3, 6, 9), tiny_meta(window=32)), tmp_path / "m.onnx", window=4)
    assert list(tmp_path.iterdir()) == []


def test_names_that_no_program_would_know_are_refused(tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    for name, said in (("m.bin", "ends in .onnx"), ("folder.onnx", "is a folder")):
        with pytest.raises(ConfigError, match=said):
            export_onnx(pointwise_model(), tmp_path / name)


def test_what_a_killed_export_leaves_is_known_and_swept(tmp_path, monkeypatch):
    from rs_biformer.export import onnx as module

    seen = []

    def killed(*_, **__):
        seen.extend(tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "compare", killed)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(pointwise_model(), tmp_path / "m.onnx")
    (left,) = seen
    assert files._PARTIAL.fullmatch(left.name) and list(tmp_path.iterdir()) == []


def test_weights_that_are_too_many_lie_beside_the_model(tmp_path, monkeypatch, capsys):
    from rs_biformer.export import onnx as module

    monkeypatch.setattr(module, "LARGEST", 0)
    checkpoint = tmp_path / "unused.ckpt"
    monkeypatch.setattr("rs_biformer.checkpoint.load_checkpoint", lambda path: layers())
    assert main(["export", f"--checkpoint={checkpoint}", f"--out={tmp_path}/m.onnx", "--precision=fp16"]) == 0
    assert "keep both together" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    image = np.full((1, 3, 32, 32), 100, np.float32)
    with torch.inference_mode():
        wanted = layers()(torch.from_numpy(image)).softmax(1).numpy()
    np.testing.assert_allclose(session_of(tmp_path / "m.onnx").run(None, {"image": image})[0], wanted, atol=1e-2)
    with pytest.raises(CheckpointError, match="weights in another file, which is not read; predict with"):
        OnnxModel(tmp_path / "m.onnx")


def test_a_program_of_torch_carries_the_same_metadata(tmp_path):
    model = layers()
    done = export_program(model, tmp_path / "m.pt2", overlap=0.25, licence="CC-BY-4.0")
    wanted = metadata(model, 32, 0.25, "CC-BY-4.0")
    assert wanted["model_license"] == "CC-BY-4.0"
    extra = dict.fromkeys(wanted, "")
    program = torch.export.load(done.path, extra_files=extra).module()
    assert extra == wanted
    for batch in (1, 5):
        image = torch.randint(0, 256, (batch, 3, 32, 32)).float()
        with torch.inference_mode():
            torch.testing.assert_close(program(image), model(image).softmax(1), atol=1e-5, rtol=0)
    told = describe([str(done.path)])
    assert told["kind"] == "exported program of torch" and told["bytes"] == done.path.stat().st_size
    assert {key: value for key, value in told.items() if key not in ("kind", "bytes")} == model.meta.to_dict()
    with pytest.raises(CheckpointError, match="program of torch, for other software; give the checkpoint"):
        load_model(done.path)
    for content in (b"", b"PK\x03\x04nonsense", done.path.read_bytes()[:-500], checkpoint_bytes(tmp_path)):
        done.path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is no program that rs-biformer export wrote, or a damaged one"):
            describe([str(done.path)])


def checkpoint_bytes(folder):
    """An archive of torch's that is no program."""
    torch.save({"weights": torch.zeros(3)}, folder / "state.pt")
    return (folder / "state.pt").read_bytes()


def test_a_licence_stands_in_the_file_or_is_refused_where_it_cannot(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rs_biformer.checkpoint.load_checkpoint", lambda path: pointwise_model())
    argv = ["export", "--checkpoint=unused", "--license=CC-BY-4.0"]
    assert main([*argv, f"--out={tmp_path}/m.onnx"]) == 0
    assert session_of(tmp_path / "m.onnx").get_modelmeta().custom_metadata_map["model_license"] == "CC-BY-4.0"
    capsys.readouterr()
    assert main([*argv, f"--out={tmp_path}/m.safetensors"]) == 2
    assert "--license has no effect on safetensors" in capsys.readouterr().err
    assert main(["export", "--checkpoint=unused", "--license=my own", f"--out={tmp_path}/n.onnx"]) == 2
    assert "is no SPDX identifier of a licence; write one such as CC-BY-4.0" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]


def test_the_command_tells_what_it_found(tmp_path, trial, monkeypatch, capsys):
    monkeypatch.setattr("rs_biformer.checkpoint.load_checkpoint", lambda path: layers())
    (scene,), label = trial.scenes[0].images, trial.scenes[0].label
    argv = ["export", "--checkpoint=unused", f"--scene={scene}", f"--label={label}"]
    assert main([*argv, "--precision=int8", f"--out={tmp_path}/m.onnx"]) == 0
    said = capsys.readouterr().out
    assert "int8" in said and "classes are equal on 9" in said and "mIoU" in said and "9 windows of scene" in said
    assert main([*argv, f"--out={tmp_path}/m.pt2"]) == 0
    assert "probabilities differ by" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--out=m.tar"], "let it end in .onnx, .pt2"),
        (["--out=m.pt2", "--precision=int8"], "--precision has no effect on a program of torch"),
        (["--out=m.onnx", "--label=l.tif"], "--label has no effect without --scene"),
        (["--out=m.onnx", "--format=torch"], "ends in .pt2"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(argv, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rs_biformer.checkpoint.load_checkpoint", lambda path: layers())
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--checkpoint=unused", *argv]) == 2
    assert said in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_deepness_in_qgis_gives_the_classes_of_predict(exported, write_raster, tmp_path):
    """Its own code, in QGIS' Python: `src` of its repository, and what it imports."""
    source, packages = os.environ.get("DEEPNESS"), os.environ.get("DEEPNESS_PACKAGES", "")
    if not source:
        pytest.skip("DEEPNESS names no folder with its source, DEEPNESS_PACKAGES none with what it imports")
    rng = np.random.default_rng(0)
    scene = write_raster("scene.tif", rng.integers(0, 256, (3, 80, 104)).astype(np.uint8), photometric="rgb")
    script = Path(__file__).parents[1] / "benchmarks" / "beside" / "by_deepness.py"
    command = [sys.executable, script, exported, scene, "--deepness", source, "--packages", *packages.split(os.pathsep)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert "away from the edges 100.0000%" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoder",
    ["biformer_tiny", "cswin_tiny", "coat_lite_tiny", "mobilenetv4_conv_small"],  # ViTs and hybrids: test_backbones
)
def test_families_are_exported(tmp_path, encoder):
    """Their logits deviate, as probabilities that are all alike would prove nothing."""
    meta = tiny_meta(encoder)
    torch.manual_seed(0)
    model = TrainedModel(meta.create_network(), meta)
    with torch.no_grad():
        model.network.head.weight *= 3 / model(torch.from_numpy(invented(model, 64, 1).image)).std()
    agreement = export_onnx(model, tmp_path / "model.onnx").agreement
    assert agreement.largest < check.TOLERANCE and agreement.equal > 0.999


@pytest.mark.slow
def test_the_hybrid_is_exported(tmp_path):
    from rs_biformer.checkpoint import load_checkpoint

    model = load_checkpoint(write_checkpoint(tmp_path / "tiny.ckpt", tiny_meta(window=256)))
    assert OnnxModel(export_onnx(model, tmp_path / "model.onnx").path).window == 256
