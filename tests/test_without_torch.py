"""Exported models in a process in which importing torch and its company raises.

One process for all commands: it loads what a light installation has, and prints what each command said.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from tiny_checkpoint import pointwise_model, write_checkpoint

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import rs_biformer  # noqa: E402
from rs_biformer.cli import main  # noqa: E402
from rs_biformer.distribution import SPARED  # noqa: E402
from rs_biformer.export import export_onnx  # noqa: E402

ABSENT = (
    *("torch", "torchvision", "pytorch_lightning", "lightning_fabric", "lightning", "torchmetrics", "timm"),
    *("segmentation_models_pytorch", "albumentations", "tensorboard", "safetensors", "onnx", "onnxscript"),
    *SPARED,
)
PROGRAM = """
import json, os, sys
from rs_biformer.cli import main

def killed_after(pieces):
    \"\"\"As if the process ended there: nothing of it tidies up what lies on the disk.\"\"\"
    from rs_biformer.predict import mapping
    write, left = mapping._write, [pieces]
    def stop(*arguments):
        write(*arguments)
        left[0] -= 1
        if not left[0]:
            os._exit(9)
    mapping._write = stop

def run(argv):
    print(*argv, file=sys.stderr)
    try:
        return main(argv)
    except SystemExit as end:
        return end.code

if __name__ == "__main__":
    if sys.argv[1] == "killed":
        killed_after(int(sys.argv[2]))
    codes = [run(argv) for argv in json.load(sys.stdin)]
    print(json.dumps({"codes": codes, "loaded": sorted(set(json.loads(sys.argv[-1])) & set(sys.modules))}))
"""
LAYERS = ("classes", "probabilities", "confidence", "margin", "entropy", "disagreement")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs commands in a process of their own, in which nothing of ABSENT can be imported, nor in its children."""
    folder = tmp_path_factory.mktemp("absent")
    for name in ABSENT:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name={name!r})\n")
    program = tmp_path_factory.mktemp("program") / "commands.py"
    program.write_text(PROGRAM)
    path = os.pathsep.join([str(folder), str(Path(rs_biformer.__file__).parents[1])])

    def run(*commands: list, how: tuple[str, ...] = ("all",)) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, program, *how, json.dumps(ABSENT)],
            input=json.dumps([[str(word) for word in argv] for argv in commands]),
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )

    return run


def codes(done: subprocess.CompletedProcess) -> list[int]:
    """Exit codes, after a look at what the process has loaded."""
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["loaded"] == [] and "Traceback" not in done.stderr, done.stderr
    return told["codes"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return export_onnx(pointwise_model(), tmp_path_factory.mktemp("onnx") / "model.onnx").path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scenes")
    place = {"crs": "EPSG:25832", "transform": from_origin(500_000, 5_400_000, 0.5, 0.5), "photometric": "rgb"}
    paths = []
    for number in range(2):
        image = np.random.default_rng(number).integers(1, 256, (3, 150, 90)).astype(np.uint8)
        image[:, 40:75, 20:] = 0
        paths.append(folder / f"town_{number}.tif")
        with rasterio.open(
            paths[-1], "w", driver="GTiff", height=150, width=90, count=3, dtype="uint8", nodata=0, **place
        ) as sink:
            sink.write(image)
    return paths


def options(exported: Path, out: Path) -> list:
    wanted = [f"--{layer}" for layer in LAYERS[1:]]
    return ["--checkpoint", exported, "--out", out, *wanted, "--tta", "d4", "--batch-size", 2, "--max-memory", "200MB"]


def table_of(label: Path, out: Path) -> list:
    return ["--classes", "vaihingen", "--label", label, "--out", out]


def bytes_of(folder: Path) -> dict[str, bytes]:
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    return {path.name: path.read_bytes() for path in folder.glob("*.tif")}


@pytest.fixture(scope="module")
def with_torch(tmp_path_factory, exported, scenes) -> Path:
    """The maps of both scenes by this process, which has torch."""
    out = tmp_path_factory.mktemp("with_torch")
    assert main([str(word) for word in ["predict", *scenes, *options(exported, out)]]) == 0
    return out


def test_exported_models_map_measure_and_describe_without_torch_and_to_the_same_bytes(
    run, exported, scenes, with_torch, tmp_path
):
    maps, one, index = tmp_path / "maps", tmp_path / "maps/town_0_classes.tif", tmp_path / "tiles"
    checkpoint = write_checkpoint(tmp_path / "best.ckpt")
    label, confidence = with_torch / "town_0_classes.tif", with_torch / "town_0_confidence.tif"
    measured = ["--scene", scenes[0], *table_of(label, tmp_path / "model.json")]
    cut = ["--labels", with_torch / "{stem}_classes.tif", "--classes", "vaihingen", "--window", 32, "--out", index]
    suspects = ["--find-label-errors", tmp_path / "none.gpkg"]
    commands = {
        "predict": ["predict", *scenes, *options(exported, maps)],
        "again": ["predict", *scenes, *options(exported, maps), "--skip-existing"],
        "vectorize": ["vectorize", one, "--out", tmp_path / "town.gpkg"],
        "info": ["info"],
        "info of a model": ["info", exported],
        "info of a map": ["info", "--json", one],
        "evaluate maps": ["evaluate", "--prediction", one, *table_of(label, tmp_path / "maps.json")],
        "evaluate a model": ["evaluate", "--checkpoint", exported, *measured],
        "tile": ["tile", scenes[0], *cut, "--split", "train", "--workers", 1],
        "help": ["train", "--help"],
    }
    refused = {
        "checkpoint": ["predict", scenes[0], "--checkpoint", checkpoint, "--out", tmp_path / "none"],
        "info of a checkpoint": ["info", checkpoint],
        "scales": ["predict", scenes[0], "--checkpoint", exported, "--out", tmp_path / "none", "--scales", 1, 2],
        "compile": ["predict", scenes[0], "--checkpoint", exported, "--out", tmp_path / "none", "--compile"],
        "bf16": ["predict", scenes[0], "--checkpoint", exported, "--out", tmp_path / "none", "--precision", "bf16"],
        "device": ["predict", scenes[0], "--checkpoint", exported, "--out", tmp_path / "none", "--device", "cuda:1"],
        "export": ["export", "--checkpoint", checkpoint, "--out", tmp_path / "none.onnx"],
        "train": ["train", "--data.index", index, "--out", tmp_path / "none"],
        "models": ["models"],
        "label errors": [*commands["evaluate maps"], "--confidence", confidence, *suspects],
        "heights": ["ndsm", scenes[0], "--out", tmp_path / "none.tif"],
    }
    done = run(*commands.values(), *refused.values())
    found = dict(zip([*commands, *refused], codes(done), strict=True))
    assert found == dict.fromkeys(commands, 0) | dict.fromkeys(refused, 2), done.stderr
    assert bytes_of(maps) == bytes_of(with_torch)
    assert len(bytes_of(maps)) == len(LAYERS) * len(scenes)
    assert not list(tmp_path.glob("none*"))
    assert (tmp_path / "maps.json").exists() and not (tmp_path / "maps_confusion.png").exists()
    assert "maps_confusion.png is left out: matplotlib is not installed" in done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("rs-biformer ")]
    for what, line in zip(refused, lines, strict=True):
        wanted = {"scales": "--scales", "compile": "--compile", "bf16": "--precision", "device": "auto, cpu, cuda"}
        assert wanted.get(what, "pip install rs_biformer") in line, line


@pytest.mark.parametrize("goes_on", ["without torch", "with torch"])
def test_killed_without_torch_the_same_command_ends_with_the_same_bytes(
    run, exported, scenes, with_torch, tmp_path, goes_on
):
    argv = ["predict", *scenes, *options(exported, tmp_path / "maps")]
    killed = run(argv, how=("killed", "3"))
    assert killed.returncode == 9, killed.stderr
    pieces = list((tmp_path / "maps").glob(".*/*.tif"))
    assert pieces, "nothing was left to go on from"
    if goes_on == "with torch":
        assert main([str(word) for word in argv]) == 0
    else:
        assert codes(run(argv)) == [0]
    assert bytes_of(tmp_path / "maps") == bytes_of(with_torch)


@pytest.mark.slow
def test_workers_without_torch_make_the_same_bytes(run, exported, scenes, with_torch, tmp_path):
    pytest.importorskip("distributed")
    done = run(["predict", *scenes, *options(exported, tmp_path / "maps"), "--cluster", "dask:2"])
    assert codes(done) == [0], done.stderr
    assert bytes_of(tmp_path / "maps") == bytes_of(with_torch)


def test_a_device_that_onnxruntime_does_not_have_is_refused(monkeypatch):
    import onnxruntime

    from rs_biformer.errors import ConfigError
    from rs_biformer.predict.onnx import pick_devices

    assert pick_devices("auto") == ["auto"] and pick_devices(["cpu"]) == ["cpu"]
    for names in (["cpu", "cpu"], "cuda:1", "gpu", []):
        with pytest.raises(ConfigError, match="one of auto, cpu, cuda"):
            pick_devices(names)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ConfigError, match="this onnxruntime is for CPUs"):
        pick_devices("cuda")
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider", "CUDAExecutionProvider"]
    )
    assert pick_devices("cuda") == ["cuda"]


def test_memory_that_onnxruntime_does_not_get_is_one_line(monkeypatch, exported, scenes, tmp_path):
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    from rs_biformer.errors import RsBiformerError
    from rs_biformer.predict import predict_scene
    from rs_biformer.predict.onnx import OnnxModel

    def fail(*_: object) -> None:
        raise Fail("Failed to allocate memory for requested buffer of size 37748736")

    model = OnnxModel(exported)
    monkeypatch.setattr(OnnxModel, "__call__", fail)
    with pytest.raises(RsBiformerError, match="^this machine ran out of memory"):
        predict_scene(model, scenes[0], tmp_path / "map.tif", classes=6, window=32)
    assert not (tmp_path / "map.tif").exists()


def test_pixels_that_are_no_number_are_told_with_their_window_and_nothing_else(exported, scenes, tmp_path, monkeypatch):
    from rs_biformer.errors import RsBiformerError
    from rs_biformer.predict import predict_scene
    from rs_biformer.predict.onnx import OnnxModel

    model = OnnxModel(exported)
    monkeypatch.setattr(OnnxModel, "__call__", lambda self, raw, valid: np.full((len(raw), 6, 32, 32), np.nan, "f4"))
    with pytest.raises(RsBiformerError, match="NaN for the window at row 0, column 0"):
        predict_scene(model, scenes[0], tmp_path / "map.tif", classes=6, window=32, confidence=tmp_path / "c.tif")


def test_what_the_light_distribution_can_do_without_is_asked_for_by_its_extra(monkeypatch):
    from rs_biformer import distribution

    monkeypatch.setattr(distribution, "NAME", "rs_biformer_predict")
    for package in SPARED:
        assert distribution.describe_missing(package).endswith("pip install 'rs_biformer_predict[all]'")
    assert "the whole toolkit" in distribution.describe_missing("torch")
