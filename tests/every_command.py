"""Command lines that write something, one for each way to write it, all that they read, and what has to be equal.

For tests that do the same to every command: kills, full disks, links, files that end too early.
"""

import json
import re
from pathlib import Path

import numpy as np
import pyogrio
import rasterio
import shapely
import torch
from rasterio.transform import from_origin
from tiny_checkpoint import tiny_meta, write_checkpoint
from tiny_index import write_tiny_index

from rs_biformer.schema import PRESETS

COMMANDS = {
    "tile": "tile {in}/scene.tif --labels {in}/label.tif --classes {in}/classes.yaml --out {out} --window 64 "
    "--split train --workers 2 --chips",
    "tile corrections": "tile {in}/scene.tif --labels {in}/label.tif --corrections {in}/zones.gpkg --label-field class "
    "--classes {in}/classes.yaml --out {out} --window 64 --split train --workers 1",
    "train": "train --data.index {in}/index/tiles --out {out}/run --model.encoder lcnet_035 --model.decoder unet "
    "--data.batch_size 2 --data.workers 0 --trainer.max_epochs 2 --trainer.accelerator cpu --loggers [] "
    "--trainer.enable_progress_bar false --optimizer.ema 0.9",
    "predict": "predict {in}/scene.tif --checkpoint {in}/model.ckpt --out {out} --device cpu --batch-size 2 --stac "
    "--confidence --quality best",
    "vectorize": "vectorize {in}/map.tif --out {out}/polygons.gpkg --min-area 2",
    "evaluate": "evaluate --prediction {in}/map.tif --label {in}/label.tif --classes {in}/classes.yaml "
    "--out {out}/result.json --report {out}/page.html --card {out}/card.md --samples 200",
    "evaluate models": "evaluate --checkpoint {in}/model.ckpt --scene {in}/scene.tif --label {in}/label.tif "
    "--device cpu --out {out}/result.json",
    "export": "export --checkpoint {in}/model.ckpt --out {out}/model.onnx",
    "export pt2": "export --checkpoint {in}/model.ckpt --out {out}/model.pt2",
    "export safetensors": "export --checkpoint {in}/model.ckpt --out {out}/model.safetensors",
    "ndsm": "ndsm {in}/dsm.tif --out {out}/ndsm.tif",
    "suggest": "suggest {in}/map.tif --score {in}/entropy.tif --window 64 --count 4 --out {out}/next.gpkg",
    "suggest models": "suggest {in}/scene.tif --checkpoint {in}/model.ckpt --device cpu --window 64 --count 4 "
    "--out {out}/next.gpkg",
    "summarise": "summarise {in}/map.tif --zones {in}/zones.gpkg --out {out}/table.gpkg",
    "summarise change": "summarise {in}/map.tif --change {in}/old.tif --map {out}/change.tif --out {out}/table.csv",
    "explain": "explain {in}/scene.tif --checkpoint {in}/routed.ckpt --at 150,150 --pixels --out {out}/routing.png",
    "demo": "demo --scene {out}/scene.tif --size 512",
    "convert": "convert {in}/smp --classes vaihingen --bands red,green,blue --mean imagenet "
    "--out {out}/model.safetensors",
}


def write_inputs(folder: Path) -> None:
    """All that COMMANDS read."""
    import segmentation_models_pytorch as smp

    rng = np.random.default_rng(0)
    classes = rng.integers(0, 5, (20, 20)).repeat(15, 0).repeat(15, 1).astype(np.uint8)
    colours = np.moveaxis(np.array(PRESETS["vaihingen"].colours, np.uint8)[classes], -1, 0)
    rasters = {"scene": colours, "label": colours, "map": classes[None], "old": classes[None, ::-1]}
    rasters |= {"entropy": 9 * classes[None], "dsm": rng.normal(300, 1, (1, 300, 300)).astype(np.float32)}
    place = {"crs": "EPSG:25832", "transform": from_origin(500_000, 5_400_000, 0.5, 0.5), "width": 300, "height": 300}
    for name, pixels in rasters.items():
        kind = {"count": len(pixels), "dtype": pixels.dtype} | ({"photometric": "rgb"} if len(pixels) == 3 else {})
        with rasterio.open(folder / f"{name}.tif", "w", driver="GTiff", **kind, **place) as sink:
            sink.write(pixels)
            if name in ("map", "old"):
                sink.update_tags(CLASS_NAMES=json.dumps(PRESETS["vaihingen"].classes))
    zones = [shapely.box(500_000 + 30 * k, 5_399_860, 500_020 + 30 * k, 5_399_990) for k in range(4)]
    shapes = np.array([shapely.to_wkb(zone) for zone in zones], object)
    kind = {"crs": "EPSG:25832", "geometry_type": "Polygon", "driver": "GPKG"}
    named = np.array(PRESETS["vaihingen"].classes[:4], object)
    pyogrio.raw.write(str(folder / "zones.gpkg"), shapes, [np.arange(4), named], ["number", "class"], **kind)
    (folder / "classes.yaml").write_text(json.dumps(PRESETS["vaihingen"].to_dict()))
    write_checkpoint(folder / "model.ckpt", tiny_meta("lcnet_035", decoder="unet"))
    write_checkpoint(folder / "routed.ckpt", tiny_meta("resnet18_biformer"))
    smp.Unet("resnet18", encoder_weights=None, classes=6).save_pretrained(folder / "smp")
    write_tiny_index(folder / "index", {"a": "train", "b": "val"})


def command(name: str, inputs: Path, out: Path) -> list[str]:
    """One of COMMANDS with the folders that it reads and writes."""
    return [word.format(**{"in": inputs, "out": out}) for word in COMMANDS[name].split()]


def made(out: Path) -> dict[str, object]:
    """What lies in a folder under names that are no hidden ones."""
    found = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    return {str(path): content(out / path) for path in found if not any(part[0] == "." for part in path.parts)}


TIMES = re.compile(r'"(seconds|date|time|created|speed)[^,}]*|\d+(\.\d+)? (s|min|Mpx/s)\b|\d{4}-\d\d-\d\d|\(\d+ s\)')


def content(path: Path) -> object:
    """What has to be equal: of a GeoPackage its features, as its pages carry times, of a checkpoint its weights."""
    if path.suffix == ".gpkg":
        found = {}
        for name, kind in pyogrio.list_layers(path):
            _, ids, shapes, values = pyogrio.raw.read(str(path), layer=name, return_fids=True)
            if name == "layer_styles":  # when, and which of those that were replaced
                ids, values = [], values[:4]
            same = [value.tolist() for value in values]
            found[name] = kind, list(ids), shapes is None or shapes.tolist(), same
        return found
    if path.suffix == ".ckpt":
        state = torch.load(path, weights_only=True)["state_dict"]
        return {name: value.numpy().tobytes() for name, value in state.items()}
    if path.name == "metrics.csv":
        rows = [line.split(",") for line in path.read_text().splitlines()]
        kept = [place for place, name in enumerate(rows[0]) if not re.search("second|speed|time|wait", name)]
        return [[row[place] for place in kept] for row in rows]
    if path.suffix == ".pt2":  # a zip with times
        program = torch.export.load(path)
        return str(program.graph), {
            name: value.detach().numpy().tobytes() for name, value in program.state_dict.items()
        }
    if path.suffix in (".json", ".html", ".md"):
        return TIMES.sub("", path.read_text())
    return path.read_bytes()
