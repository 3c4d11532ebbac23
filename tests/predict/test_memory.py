"""Memory as the kernel counts it for whole processes: what is above the same program with one forward pass."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from rs_biformer.export import export_onnx
from rs_biformer.schema import ClassSchema
from tests.tiny_checkpoint import pointwise_model, tiny_meta

SIDE = 6000
PROGRAM = """
import sys, torch
from rs_biformer.predict import predict_scene
torch.set_num_threads(1)
model = torch.nn.Conv2d(3, 6, 1).eval()
with torch.inference_mode():
    model(torch.zeros(1, 3, 512, 512))
if len(sys.argv) > 1:
    scene, out, bound = sys.argv[1:]
    options = {"window": 512, "overlap": 0.25, "batch_size": 4, "device": "cpu", "max_memory": int(bound)}
    predict_scene(model, scene, out, classes=6, **options)
"""


EXPORTED = """
import sys
import numpy as np
from rs_biformer.predict import predict_scene
from rs_biformer.predict.onnx import OnnxModel, use_threads
use_threads(1)
model = OnnxModel(sys.argv[1])
model(np.zeros((1, 3, 512, 512), np.uint8), np.ones((1, 512, 512), bool))
if len(sys.argv) > 2:
    scene, out, bound = sys.argv[2:]
    options = {"window": 512, "overlap": 0.25, "batch_size": 4, "device": "cpu", "max_memory": int(bound)}
    predict_scene(model, scene, out, classes=6, **options)
"""


def peak(program: str, *arguments: str) -> int:
    """Bytes that a process which runs a program has resident at most."""
    process = subprocess.Popen([sys.executable, "-c", program, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    rng = np.random.default_rng(0)
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "zlevel": 1}
    layout |= {"width": SIDE, "height": SIDE, "count": 3, "dtype": "uint8", "crs": "EPSG:25832"}
    with rasterio.open(
        path, "w", driver="GTiff", transform=from_origin(500_000, 5_400_000, 0.1, 0.1), **layout
    ) as sink:
        for top in range(0, SIDE, 500):
            coarse = rng.integers(1, 255, (3, 50, SIDE // 10), dtype="uint8")
            sink.write(coarse.repeat(10, 1).repeat(10, 2), window=Window(0, top, SIDE, 500))
    return path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts KiB on Linux alone")
@pytest.mark.parametrize("bound", [180_000_000, 300_000_000])
def test_prediction_keeps_to_its_bound_as_measured_from_outside(scene: Path, tmp_path: Path, bound: int):
    assert peak(PROGRAM, str(scene), str(tmp_path / "map.tif"), str(bound)) - peak(PROGRAM) <= bound


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts KiB on Linux alone")
@pytest.mark.parametrize("bound", [180_000_000, 300_000_000])
def test_an_exported_model_keeps_to_it_too(scene: Path, tmp_path: Path, bound: int):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    colours = tuple((number, 0, 0) for number in range(6))
    meta = tiny_meta(window=512, schema=ClassSchema("six", tuple("abcdef"), colours))
    model = str(export_onnx(pointwise_model(meta), tmp_path / "model.onnx").path)
    assert peak(EXPORTED, model, str(scene), str(tmp_path / "map.tif"), str(bound)) - peak(EXPORTED, model) <= bound
