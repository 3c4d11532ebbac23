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


def peak(*arguments: str) -> int:
    """Bytes that a process which runs PROGRAM has resident at most."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments])
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
    assert peak(str(scene), str(tmp_path / "map.tif"), str(bound)) - peak() <= bound
