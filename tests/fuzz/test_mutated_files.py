"""Mutated rasters, labels, layers, models, configs and begun maps, given to the commands that read them.

Every command runs in a child process, within limits of time and memory. Its outcome is right, by a truth that is worked
out by other means, or one line with exit code 2 and nothing under the name of an output; never a traceback, a warning
on the screen, a hang, a crash of the interpreter or control characters of a file.

More of them by hand: RS_BIFORMER_FUZZ=1000 pytest -m "" tests/fuzz/test_mutated_files.py
RS_BIFORMER_FUZZ_FROM is the first seed; RS_BIFORMER_FUZZ_REPORT a file that gets a line for each kind and finding.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from files import (
    HEIGHT,
    WIDTH,
    Kind,
    Task,
    class_rasters,
    image,
    polygon_layers,
    scenes,
    surfaces,
    with_files,
    write_classes,
    write_raster,
)
from harness import fuzz

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

FILES = int(os.environ.get("RS_BIFORMER_FUZZ", "30"))
FROM = int(os.environ.get("RS_BIFORMER_FUZZ_FROM", "0"))

TILE = "tile {in}/scene.SUFFIX --classes {in}/classes.yaml --out {out} --window 8 --overlap 0 --split train --workers 1"
PREDICT = "predict {in}/scene.SUFFIX --checkpoint {in}/model.onnx --out {out} --max-memory 200MB --window 32"
EVALUATE = (
    "evaluate --prediction {in}/map.tif --label {in}/label.tif --classes {in}/classes.yaml --out {out}/result.json"
)
BEGUN = """
import os, sys
from rs_biformer.cli import main
from rs_biformer.predict import mapping
write, left = mapping._write, [3]
def stop(*arguments):
    write(*arguments)
    left[0] -= 1
    if not left[0]:
        os._exit(9)
mapping._write = stop
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """model.onnx, a pointwise network, and weights.npz, what it computes."""
    from files import SCHEMA
    from tiny_checkpoint import pointwise_model, tiny_meta

    from rs_biformer.export import export_onnx

    folder = tmp_path_factory.mktemp("model")
    made = pointwise_model(tiny_meta(window=32, schema=SCHEMA))
    export_onnx(made, folder / "model.onnx")
    values = {name: value.detach().numpy() for name, value in made.network.named_parameters()}
    weight = values["weight"][:, :, 0, 0]
    np.savez(folder / "weights.npz", weight=weight, bias=values["bias"], mean=made.meta.mean, std=made.meta.std)
    return folder


def by_number(words: str, name: str) -> str:
    """What a command must be told of formats whose bands are not called colours."""
    return " --bands 1,2,3" if name.endswith((".img", ".dat")) and words.startswith("predict") else ""


def scene_kind(folder: Path, model: Path) -> list[Kind]:
    """One kind for each way that a scene is stored, so that its file has one name in the command."""

    def add(place: Path) -> None:
        for name in ("model.onnx", "weights.npz"):
            shutil.copy(model / name, place)
        write_classes(place)
        pixels = np.load(place / "weights.npz")["bias"].argsort().astype(np.uint8)[:1].repeat(HEIGHT * WIDTH)
        write_raster(place / "label.tif", pixels.reshape(1, HEIGHT, WIDTH))

    kinds = []
    for place in with_files(scenes(folder), add):
        name = next(place.glob("scene.*")).name
        tasks = [
            Task(words.replace("scene.SUFFIX", name) + by_number(words, name), truth, made)
            for words, truth, made in (
                (PREDICT, "mapped", ("out/scene_classes.tif",)),
                (TILE + " --labels {in}/label.tif", "tiled", ("out/tiles.parquet",)),
                ("info {in}/scene.SUFFIX", None, ()),
                ("info {in}/model.onnx {in}/scene.SUFFIX", None, ()),
            )
        ]
        kinds.append(Kind(f"scene {place.name}", [place], "scene.*", tasks))
    return kinds


def label_kind(folder: Path) -> list[Kind]:
    def add(place: Path) -> None:
        write_classes(place)
        write_raster(place / "scene.tif", image(), nodata=0, photometric="rgb")
        write_raster(place / "map.tif", np.ones((1, HEIGHT, WIDTH), np.uint8), nodata=255)
        np.savez(place / "weights.npz", labelled=HEIGHT * WIDTH)

    tasks = [
        Task(TILE.replace("SUFFIX", "tif") + " --labels {in}/label.tif", "tiled", ("out/tiles.parquet",)),
        Task(EVALUATE, "counted", ("out/result.json",)),
    ]
    return [Kind("label", with_files(class_rasters(folder, "label"), add), "label.*", tasks)]


def map_kind(folder: Path) -> list[Kind]:
    def add(place: Path) -> None:
        write_classes(place)
        write_raster(place / "label.tif", np.ones((1, HEIGHT, WIDTH), np.uint8))
        np.savez(place / "weights.npz", labelled=HEIGHT * WIDTH)
        (place / "out").mkdir()

    kinds = []
    for place in with_files(class_rasters(folder, "map"), add):
        name = next(place.glob("map.*")).name
        tasks = [
            Task(f"vectorize {{in}}/{name} --out {{out}}/polygons.gpkg", "outlined", ("out/polygons.gpkg",)),
            Task(f"summarise {{in}}/{name} --out {{out}}/table.csv", None, ("out/table.csv",)),
            Task(EVALUATE.replace("map.tif", name), "counted", ("out/result.json",)),
            Task(f"info {{in}}/{name}"),
        ]
        kinds.append(Kind(f"map {place.name}", [place], "map.*", tasks))
    return kinds


def surface_kind(folder: Path) -> list[Kind]:
    kinds = []
    for place in with_files(surfaces(folder), lambda place: (place / "out").mkdir()):
        name = next(place.glob("dsm.*")).name
        shutil.copy(place / name, place / f"dtm.{name}")
        words = f"ndsm {{in}}/{name} --out {{out}}/ndsm.tif"
        tasks = [Task(words + more, "heights", ("out/ndsm.tif",)) for more in ("", f" --terrain {{in}}/dtm.{name}")]
        kinds.append(Kind(f"surface {place.name}", [place], name, tasks))
    return kinds


def layer_kind(folder: Path, model: Path) -> list[Kind]:
    def add(place: Path) -> None:
        write_classes(place)
        shutil.copy(model / "model.onnx", place)
        write_raster(place / "scene.tif", image(), nodata=0, photometric="rgb")
        write_raster(place / "map.tif", np.ones((1, HEIGHT, WIDTH), np.uint8), nodata=255)
        (place / "out").mkdir()

    kinds = []
    for place in with_files(polygon_layers(folder), add):
        name = next(p.name for p in place.glob("layer.*") if p.suffix not in (".cpg", ".prj", ".dbf", ".shx"))
        tasks = [
            Task(TILE.replace("SUFFIX", "tif") + f" --labels {{in}}/{name}", "tiled", ("out/tiles.parquet",)),
            Task(PREDICT.replace("SUFFIX", "tif") + f" --area {{in}}/{name}", None, ("out/scene_classes.tif",)),
            Task(f"summarise {{in}}/map.tif --zones {{in}}/{name} --out {{out}}/table.csv", None, ("out/table.csv",)),
        ]
        kinds.append(Kind(f"layer {place.name}", [place], "layer.*", tasks))
    return kinds


def onnx_kind(folder: Path, model: Path) -> list[Kind]:
    folder.mkdir()
    shutil.copy(model / "model.onnx", folder)
    write_raster(folder / "scene.tif", image(), nodata=0, photometric="rgb")
    tasks = [
        Task(PREDICT.replace("SUFFIX", "tif"), None, ("out/scene_classes.tif",)),
        Task("info {in}/model.onnx"),
        Task("info {in}/model.onnx {in}/scene.tif"),
    ]
    return [Kind("onnx", [folder], "model.onnx", tasks)]


def begun_kind(folder: Path, model: Path) -> list[Kind]:
    """A map that was begun by a process which ended at its third piece; it lies where the fuzzer puts it again."""
    place = folder.with_name("current")
    place.mkdir()
    shutil.copy(model / "model.onnx", place)
    write_raster(place / "scene.tif", np.tile(image()[:, 6:], (1, 8, 2)), photometric="rgb")
    task = Task(PREDICT.replace("SUFFIX", "tif"), "resumed")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as in the child
    argv = [sys.executable, "-c", BEGUN, *task.argv(place)]
    assert subprocess.run(argv, capture_output=True, env=environment).returncode == 9
    shutil.copytree(place, folder)
    assert len(list((folder / "out" / ".scene_classes.tif.partial").glob("*.tif"))) >= 2
    subprocess.run([sys.executable, "-c", BEGUN.replace("[3]", "[-1]"), *task.argv(place)], check=True, env=environment)
    shutil.copy(place / "out" / "scene_classes.tif", folder / "undisturbed.bin")
    return [Kind("begun", [folder], "out/.scene_classes.tif.partial/*", [task])]


KINDS = ("scenes", "labels", "maps", "surfaces", "layers", "onnx", "begun")


def kinds_of(name: str, folder: Path, model: Path) -> list[Kind]:
    if name == "begun":
        return begun_kind(folder, model)
    if name == "onnx":
        return onnx_kind(folder, model)
    if name == "layers":
        return layer_kind(folder, model)
    if name == "scenes":
        return scene_kind(folder, model)
    return {"labels": label_kind, "maps": map_kind, "surfaces": surface_kind}[name](folder)


@pytest.mark.slow
@pytest.mark.timeout(36000)
@pytest.mark.parametrize("name", KINDS)
def test_mutated_files_are_read_right_or_refused_in_a_line(name, tmp_path, model):
    counts: dict[str, int] = {}
    findings: list[str] = []
    kinds = kinds_of(name, tmp_path / "intact", model)
    each = -(-FILES // len(kinds))
    for kind in kinds:
        found, seen = fuzz(kind, tmp_path / "current", range(FROM, FROM + each))
        counts = {key: counts.get(key, 0) + found.get(key, 0) for key in counts | found}
        findings += seen
    report(name, counts, findings)
    assert findings == []
    assert sum(counts.values()) == each * len(kinds) and counts.get("refused", 0) > 0


def report(name: str, counts: dict[str, int], findings: list[str]) -> None:
    if place := os.environ.get("RS_BIFORMER_FUZZ_REPORT"):
        with open(place, "a") as file:
            file.write(yaml.safe_dump({name: {"outcomes": counts, "findings": findings}}, width=10**6))
