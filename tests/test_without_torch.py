"""Exported models in a process in which importing torch and its company raises.

One process for all commands: it loads what a light installation has, and prints what each command said.
"""

import json
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

from rs_biformer.cli import main  # noqa: E402
from rs_biformer.export import export_onnx  # noqa: E402

PROGRAM = """
import json, os, signal, sys

ABSENT = {"torch", "torchvision", "pytorch_lightning", "lightning_fabric", "lightning", "torchmetrics", "timm",
          "segmentation_models_pytorch", "albumentations", "tensorboard", "safetensors", "onnx", "onnxscript"}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from rs_biformer.cli import main

class Killed(BaseException):
    pass

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

if sys.argv[1] == "killed":
    killed_after(int(sys.argv[2]))
codes = []
for argv in json.load(sys.stdin):
    print(*argv, file=sys.stderr)
    try:
        codes.append(main(argv))
    except SystemExit as end:
        codes.append(end.code)
print(json.dumps({"codes": codes, "loaded": sorted(ABSENT & set(sys.modules))}))
"""
LAYERS = ("classes", "probabilities", "confidence", "margin", "entropy", "disagreement")


def run(*commands: list, program: tuple[str, ...] = ("all",)) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *program],
        input=json.dumps([[str(word) for word in argv] for argv in commands]),
        capture_output=True,
        text=True,
    )


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
    exported, scenes, with_torch, tmp_path
):
    maps, one = tmp_path / "maps", tmp_path / "maps/town_0_classes.tif"
    checkpoint = write_checkpoint(tmp_path / "best.ckpt")
    label = with_torch / "town_0_classes.tif"
    measured = ["--scene", scenes[0], *table_of(label, tmp_path / "model.json")]
    commands = {
        "predict": ["predict", *scenes, *options(exported, maps)],
        "again": ["predict", *scenes, *options(exported, maps), "--skip-existing"],
        "vectorize": ["vectorize", one, "--out", tmp_path / "town.gpkg"],
        "info": ["info"],
        "info of a model": ["info", exported],
        "info of a map": ["info", "--json", one],
        "evaluate maps": ["evaluate", "--prediction", one, *table_of(label, tmp_path / "maps.json")],
        "evaluate a model": ["evaluate", "--checkpoint", exported, *measured],
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
        "train": ["train", "--data.index", tmp_path / "tiles", "--out", tmp_path / "none"],
        "models": ["models"],
    }
    done = run(*commands.values(), *refused.values())
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert dict(zip([*commands, *refused], told["codes"], strict=True)) == dict.fromkeys(commands, 0) | dict.fromkeys(
        refused, 2
    ), done.stderr
    assert told["loaded"] == [] and "Traceback" not in done.stderr
    assert bytes_of(maps) == bytes_of(with_torch)
    assert len(bytes_of(maps)) == len(LAYERS) * len(scenes)
    assert not (tmp_path / "none").exists()
    lines = [line for line in done.stderr.splitlines() if line.startswith("rs-biformer ")]
    for what, line in zip(refused, lines, strict=True):
        wanted = {"scales": "--scales", "compile": "--compile", "bf16": "--precision", "device": "auto, cpu, cuda"}
        assert wanted.get(what, "pip install rs_biformer") in line, line


@pytest.mark.parametrize("goes_on", ["without torch", "with torch"])
def test_killed_without_torch_the_same_command_ends_with_the_same_bytes(
    exported, scenes, with_torch, tmp_path, goes_on
):
    argv = ["predict", *scenes, *options(exported, tmp_path / "maps")]
    killed = run(argv, program=("killed", "3"))
    assert killed.returncode == 9, killed.stderr
    pieces = list((tmp_path / "maps").glob(".*/*.tif"))
    assert pieces, "nothing was left to go on from"
    if goes_on == "with torch":
        assert main([str(word) for word in argv]) == 0
    else:
        done = run(argv)
        assert json.loads(done.stdout.splitlines()[-1])["codes"] == [0], done.stderr
    assert bytes_of(tmp_path / "maps") == bytes_of(with_torch)
