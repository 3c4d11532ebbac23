"""Mutated rasters, labels, layers, models, configs and begun maps, given to the commands that read them.

Every command runs in a child process, within limits of time and memory. Its outcome is right, by a truth that is worked
out by other means, or one line with exit code 2 and nothing under the name of an output; never a traceback, a warning
on the screen, a hang, a crash of the interpreter or control characters of a file.

More of them by hand: RS_BIFORMER_FUZZ=1000 pytest -m "" tests/fuzz/test_mutated_files.py
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from files import (
    HEIGHT,
    WIDTH,
    Kind,
    Task,
    class_rasters,
    classes,
    image,
    polygon_layers,
    scenes,
    surfaces,
    with_files,
    write_classes,
    write_raster,
)
from harness import fuzz
from mutate import mutated_bytes, mutated_document
from reporting import FROM, report

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

FILES = int(os.environ.get("RS_BIFORMER_FUZZ", "30"))

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
    tile = TILE.replace("SUFFIX", "tif")

    def add(place: Path) -> None:
        write_classes(place)
        shutil.copy(model / "model.onnx", place)
        write_raster(place / "label.tif", classes()[None])
        write_raster(place / "scene.tif", image(), nodata=0, photometric="rgb")
        write_raster(place / "map.tif", np.ones((1, HEIGHT, WIDTH), np.uint8), nodata=255)
        (place / "out").mkdir()

    kinds = []
    for place in with_files(polygon_layers(folder), add):
        name = next(p.name for p in place.glob("layer.*") if p.suffix not in (".cpg", ".prj", ".dbf", ".shx"))
        tasks = [
            Task(tile + f" --labels {{in}}/{name}", "tiled", ("out/tiles.parquet",)),
            Task(tile + f" --labels {{in}}/label.tif --corrections {{in}}/{name}", "tiled", ("out/tiles.parquet",)),
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


def model_kind(folder: Path) -> list[Kind]:
    """A checkpoint, and weights with a card: whatever byte is another, the map is the same or there is none."""
    from tiny_checkpoint import tiny_meta, write_checkpoint

    from rs_biformer.checkpoint import load_checkpoint, write_safetensors
    from rs_biformer.cli import main

    kinds = []
    for name in ("ckpt", "safetensors"):
        place = folder / name
        place.mkdir(parents=True)
        checkpoint = write_checkpoint(place / "model.ckpt", tiny_meta("lcnet_035", decoder="segformer", window=32))
        if name != "ckpt":
            write_safetensors(load_checkpoint(checkpoint), place / f"model.{name}")
            checkpoint.unlink()
        write_raster(place / "scene.tif", image(), nodata=0, photometric="rgb")
        words = PREDICT.replace("SUFFIX", "tif").replace("model.onnx", f"model.{name}")
        task = Task(words, "undisturbed", ("out/scene_classes.tif",))
        assert main([*task.argv(place)]) == 0
        shutil.move(place / "out" / "scene_classes.tif", place / "undisturbed.bin")
        shutil.rmtree(place / "out")
        kinds.append(
            Kind(f"model {name}", [place], f"model.{name}", [task, Task(f"info {{in}}/model.{name}")], by_bytes)
        )
    return kinds


def by_bytes(path: Path, chance: random.Random) -> None:
    path.write_bytes(mutated_bytes(path.read_bytes(), chance))


def item_kind(folder: Path, model: Path) -> list[Kind]:
    """A search result of STAC that names a scene."""
    folder.mkdir()
    for name in ("model.onnx", "weights.npz"):
        shutil.copy(model / name, folder)
    write_raster(folder / "scene.tif", image(), nodata=0, photometric="rgb")
    assets = {"visual": {"href": "scene.tif", "type": "image/tiff", "roles": ["data"]}}
    assets["thumbnail"] = {"href": "t.png", "type": "image/png", "roles": ["thumbnail"]}
    item = {"type": "Feature", "id": "scene", "properties": {}, "links": [], "assets": assets}
    (folder / "items.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
    words = PREDICT.replace("scene.SUFFIX", "items.geojson")
    return [Kind("items", [folder], "items.geojson", [Task(words, "mapped")])]


def result_kind(folder: Path) -> list[Kind]:
    """Results of `evaluate`, with blocks, that are compared."""
    from rs_biformer.cli import main

    folder.mkdir()
    write_classes(folder)
    write_raster(folder / "label.tif", classes()[None])
    words = EVALUATE.format(**{"in": folder, "out": folder}).split()
    for name, pixels in (("one", classes()), ("other", np.roll(classes(), 5, 1))):
        write_raster(folder / "map.tif", pixels[None], nodata=255)
        assert main([*words[:-1], str(folder / f"{name}.json")]) == 0
    task = Task("evaluate --compare {in}/one.json {in}/other.json --out {in}/compared.json", None, ("compared.json",))
    return [Kind("results", [folder], "one.json", [task], by_document)]


def by_document(path: Path, chance: random.Random) -> None:
    text = json.dumps(mutated_document(json.loads(path.read_text()), chance))
    path.write_bytes(
        text.encode(errors="surrogatepass") if chance.random() < 0.8 else mutated_bytes(text.encode(), chance)
    )


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


KINDS = ("scenes", "labels", "maps", "surfaces", "layers", "onnx", "begun", "models", "items", "results")


def kinds_of(name: str, folder: Path, model: Path) -> list[Kind]:
    with_model = {
        "scenes": scene_kind,
        "layers": layer_kind,
        "onnx": onnx_kind,
        "begun": begun_kind,
        "items": item_kind,
    }
    if name in with_model:
        return with_model[name](folder, model)
    alone = {"labels": label_kind, "maps": map_kind, "surfaces": surface_kind, "models": model_kind}
    return (alone | {"results": result_kind})[name](folder)


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
