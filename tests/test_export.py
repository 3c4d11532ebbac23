import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import torch
from tiny_checkpoint import pointwise_model, tiny_meta, write_checkpoint

from rs_biformer.errors import CheckpointError, ConfigError
from rs_biformer.predict import predict_scene

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from rs_biformer.export import export_onnx, metadata  # noqa: E402
from rs_biformer.predict.onnx import OnnxModel  # noqa: E402


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_onnx(pointwise_model(), tmp_path_factory.mktemp("onnx") / "model.onnx", overlap=0.25)


def session_of(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


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


def test_an_export_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("rs_biformer.export.TOLERANCE", -1.0)
    with pytest.raises(CheckpointError, match="differs by"):
        export_onnx(pointwise_model(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_hybrid_is_exported(tmp_path):
    from rs_biformer.checkpoint import load_checkpoint

    model = load_checkpoint(write_checkpoint(tmp_path / "tiny.ckpt", tiny_meta(window=256)))
    assert OnnxModel(export_onnx(model, tmp_path / "model.onnx")).window == 256
