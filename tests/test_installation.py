"""The wheels in environments of their own, as somebody installs them: `make test-install`, `make predict-env`."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import pytest
import rasterio
from tiny_checkpoint import tiny_meta, write_checkpoint

from rs_biformer.cli import main

pytestmark = pytest.mark.install

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "torchvision", "timm", "pytorch-lightning", "segmentation-models-pytorch", "albumentations"}
OFFLINE = ("NewConnectionError", "name resolution", "dns error", "error sending request", "Network is unreachable")


def run(*command: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The command in an environment that shows nothing of this checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode and any(sign in done.stderr for sign in OFFLINE):
        pytest.skip(f"no package index in reach: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def installed(project: str, place: Path) -> tuple[Path, set[str]]:
    """The scripts of an environment made of the project's wheel, which its sdist builds; names of what is in it."""
    python = sys.executable
    run(python, "-m", "build", "--outdir", place / "dist", ROOT / project, cwd=place)
    (wheel,) = (place / "dist").glob("*.whl")
    run(python, "-m", "venv", place / "venv", cwd=place)
    scripts = place / "venv" / ("Scripts" if os.name == "nt" else "bin")
    uv = shutil.which("uv", path=str(Path(python).parent))
    install = (
        [uv, "pip", "install", "--python", scripts / "python"] if uv else [scripts / "python", "-m", "pip", "install"]
    )
    pinned = ["-c", ROOT / "constraints.txt"] if sys.platform == "linux" and sys.version_info[:2] == (3, 11) else []
    run(*install, *pinned, wheel, cwd=place)
    (packages,) = (place / "venv").rglob("site-packages")
    return scripts, {found.name.lower().replace("_", "-") for found in distributions(path=[str(packages)])}


@pytest.fixture(scope="module")
def light(tmp_path_factory) -> tuple[Path, set[str]]:
    return installed("packaging/predict", tmp_path_factory.mktemp("light"))


def test_prediction_is_installed_without_torch_and_maps_as_the_toolkit_does(light, tmp_path):
    scripts, packages = light
    assert {"rs-biformer-predict", "onnxruntime", "rasterio"} <= packages and not packages & HEAVY
    shape = (3, 300, 280)
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_500_000)}
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", count=3, height=shape[1], width=shape[2], dtype="uint8", **place
    ) as sink:
        sink.write(pixels)
        sink.descriptions = ("red", "green", "blue")
    model = tmp_path / "m.onnx"
    checkpoint = write_checkpoint(tmp_path / "m.ckpt", tiny_meta(window=64))
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(model)]) == 0
    assert main(["predict", str(tmp_path / "a.tif"), "--checkpoint", str(model), "--out", str(tmp_path / "torch")]) == 0

    command = scripts / "rs-biformer"
    run(command, "predict", "a.tif", "--checkpoint", model, "--out", "maps", cwd=tmp_path)
    made = tmp_path / "maps" / "a_classes.tif"
    with rasterio.open(made) as one, rasterio.open(tmp_path / "torch" / "a_classes.tif") as other:
        np.testing.assert_array_equal(one.read(), other.read())
        assert (one.crs, one.transform) == (other.crs, other.transform)
    run(command, "vectorize", made, "--out", "a.gpkg", cwd=tmp_path)
    given = ["--prediction", made, "--label", made, "--classes", "vaihingen", "--map-numbers", "indices"]
    run(command, "evaluate", *given, "--label-as", "values", "--out", "a.json", "--report", "a.html", cwd=tmp_path)
    assert json.loads((tmp_path / "a.json").read_text())["overall_accuracy"] == 1
    assert (tmp_path / "a.gpkg").stat().st_size and (tmp_path / "a.html").stat().st_size
    told = json.loads(run(command, "info", "--json", model, cwd=tmp_path).stdout)
    assert told["kind"] == "exported model"
    assert "onnxruntime" in run(command, "info", cwd=tmp_path).stdout
    for argv in (
        ["train", "--config", "configs/vaihingen/recommended.yaml"],
        ["predict", "a.tif", "--checkpoint", "m.ckpt", "--out", "b"],
    ):
        refused = run(command, *argv, cwd=tmp_path, code=2).stderr.strip()
        assert "Traceback" not in refused and "pip install" in refused.splitlines()[-1]


@pytest.mark.timeout(3600)
def test_the_toolkit_is_installed_from_its_wheel_and_runs_the_demo(tmp_path):
    scripts, packages = installed(".", tmp_path)
    assert packages >= HEAVY and not packages & {"tensorboard", "onnx", "dask", "pytest", "ruff"}
    config = ["--config", "configs/vaihingen/recommended.yaml", "--print_config"]
    assert "resnet50_biformer" in run(scripts / "rs-biformer", "train", *config, cwd=tmp_path).stdout
    done = run(scripts / "rs-biformer", "demo", "--out", "demo", cwd=tmp_path)
    assert "rs_biformer[tensorboard]" in done.stdout + done.stderr
    assert (tmp_path / "demo" / "report.html").stat().st_size
    assert json.loads((tmp_path / "demo" / "metrics.json").read_text())["mean_iou"] > 0.5
