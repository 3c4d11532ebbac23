"""Options that cannot be meant, of every command: one line that names them, exit code 2, and nothing is left."""

import shlex
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from rasterio.transform import from_origin
from tiny_checkpoint import tiny_meta, write_checkpoint

from rs_biformer.cli import main
from rs_biformer.schema import PRESETS

SIDE = 96

COMMANDS = {
    "evaluate": "evaluate --prediction {in}/map.tif --label {in}/label.tif --classes vaihingen --out {out}/r.json",
    "tile": "tile {in}/scene.tif --labels {in}/label.tif --classes vaihingen --split train --window 64 --workers 1 "
    "--out {out}/t",
    "predict": "predict {in}/scene.tif --checkpoint {in}/model.ckpt --device cpu --out {out}/m",
    "export": "export --checkpoint {in}/model.ckpt --out {out}/m.onnx",
    "explain": "explain {in}/scene.tif --checkpoint {in}/model.ckpt --out {out}/x.png",
    "vectorize": "vectorize {in}/map.tif --out {out}/v.gpkg",
    "summarise": "summarise {in}/map.tif --out {out}/t.csv",
    "suggest": "suggest {in}/map.tif --score {in}/entropy.tif --window 64 --count 3 --out {out}/s.gpkg",
    "ndsm": "ndsm {in}/dsm.tif --out {out}/n.tif",
    "demo": "demo",
    "view": "view",
    "info": "info",
}

REFUSED = {
    "evaluate": {
        "--protocol all-classes all-classes": "'all-classes' is asked for twice",
        "--protocol {in}/scene.tif": "no text in UTF-8",
        "--max-unknown nan": "max_unknown nan",
        "--boundary nan": "from 0 to 64",
        "--boundary inf": "from 0 to 64",
        "--samples 1000000000000": "100,000 samples",
        "--samples 0": "100 to",
        "--curves {in}/scene.tif --report {out}/r.html": "cannot be read as training curves",
        "--curves {in}/classes.yaml --report {out}/r.html": "no training curves",
        "--curves {in}/nothing.csv --report {out}/r.html": "does not exist",
        "--out .": "a folder",
        "--out ''": "followed by nothing",
        "--out /proc/r.json": "takes no file",
        "--out {in}/map.tif/r.json": "is a file",
        "--report /proc/r.html": "takes no file",
        "--card .": "it is a folder",
        "--name {stem!z}": "has {stem!z}",
        "--label {stem!z}": "has {stem!z}",
        "--buffer-labels nan": "nan m wide",
        "--classes .": "no class schema",
    },
    "tile": {
        "--labels {stem!z}": "has {stem!z}",
        "--labels {stem.__class__}": "has {stem.__class__}",
        "--labels '{stem:>99999999999}'": "a piece is written",
        "--labels {": "cannot be read",
        "--labels ''": "followed by nothing",
        "--extra {stem!r}": "has {stem!r}",
        "--name {0}": "has {0}",
        "--corrections {stem!z}": "has {stem!z}",
        "--window -1": "1 or more",
        "--overlap nan": "share of the window",
        "--min-valid nan": "a share",
        "--max-unknown nan": "a share",
        "--workers 0": "1 or more",
        "--bands ''": "followed by nothing",
        "--bands 1,,2": "with commas between",
        "--bands=": "followed by nothing",
        "--out ''": "followed by nothing",
        "--out {in}/scene.tif": "is a file",
        "--out /proc/t": "takes no file",
        "--split blocks:nan,0.5,0.5": "add up to 1",
        "--seed -1 --split blocks:0.7,0.15,0.15": "0 or more",
        "--tolerance 300": "0 to 255",
        "--label-band 0": "counted from 1",
        "--area .": "cannot be read as polygons",
    },
    "predict": {
        "--window -1": "1 or more",
        "--overlap nan": "overlap",
        "--batch-size 0": "1 or more",
        "--scales nan": "scales",
        "--max-memory nan": "no size in memory",
        "--max-memory 0": "at least",
        "--name {stem!z}": "has {stem!z}",
        "--name ../x": "no file can be named",
        "--name ..": "no file can be named",
        "--name /tmp/x": "no file can be named",
        "--out {in}/scene.tif": "is a file",
        "--out /proc/m": "takes no file",
        "--bands 9": "no band",
        "--area {in}/scene.tif": "cannot be read as polygons",
        "--device zzz": "device",
        "--device cuda:-1": "device",
        "--nodata 0,0,0": "nodata",
        "--checkpoint .": "no checkpoint",
        "--checkpoint {in}/scene.tif": "checkpoint",
        "--checkpoint hf://": "hf://",
    },
    "export": {
        "--window -1": "1 or more",
        "--window 0": "1 or more",
        "--window 99999999": "at most 8192",
        "--overlap nan": "overlap",
        "--out .": "let it end in",
        "--out /proc/x.onnx": "takes no file",
        "--out {out}/x.zzz": "zzz",
        "--precision fp16 --max-changed nan": "share of the pixels",
    },
    "explain": {
        "--at nan,nan": "two finite numbers",
        "--at inf,0": "two finite numbers",
        "--at 1": "X,Y",
        "--at 5,5 --pixels --window 0": "1 or more",
        "--at 5,5 --pixels --window 999999999": "at most 8192",
        "--at=-1,-1 --pixels": "outside",
        "--at 1e18,1e18 --pixels": "outside",
        "--at 5,5 --pixels --out .": "folder",
        "--at 5,5 --pixels --out /proc/x.png": "takes no file",
    },
    "vectorize": {
        "--layer ''": "followed by nothing",
        "--layer=-a": "in a GeoPackage a name begins",
        "--layer '#a'": "in a GeoPackage a name begins",
        "--min-area nan": "min",
        "--min-area -1": "min",
        "--simplify nan": "simplify",
        "--simplify 1e300": "simplify",
        "--out .": "",
        "--out /proc/v.gpkg": "takes no file",
        "--out {out}/v.zzz": "zzz",
        "--confidence {in}/scene.tif": "",
        "--layer layer_styles": "nor is it layer_styles",
        "--layer sqlite_x": "layer",
    },
    "summarise": {
        "--out .": "",
        "--out /proc/t.csv": "takes no file",
        "--out {out}/t.zzz": "zzz",
        "--zones {in}/scene.tif": "cannot be read as polygons",
        "--zones {in}/zones.gpkg --zones-layer zzz": "zzz",
        "--zones {in}/zones.gpkg --layer '#a' --out {out}/t.gpkg": "layer",
        "--layer x": "layer",
        "--map {out}/x.tif": "--change",
        "--regrid": "--change",
        "--fractional": "--zones",
        "--change {in}/map.tif --map .": "",
        "--change {in}/map.tif --map {out}/c.zzz": "zzz",
        "--change {in}/map.tif --map /proc/c.tif": "takes no file",
        "--change {in}/map.tif --map {out}/t.csv": "",
    },
    "suggest": {
        "--count 0": "count",
        "--window 0": "1 or more",
        "--min-valid nan": "min",
        "--min-distance nan": "distance",
        "--min-distance -1": "distance",
        "--score {stem!z}": "has {stem!z}",
        "--parts zzz": "zzz",
        "--out .": "",
        "--out /proc/s.gpkg": "takes no file",
        "--out {out}/s.csv": "gpkg",
        "--maps {out}/m": "maps",
    },
    "ndsm": {
        "--largest nan": "largest",
        "--largest -1": "largest",
        "--slope nan": "slope",
        "--slope -1": "slope",
        "--out .": "",
        "--out /proc/n.tif": "takes no file",
        "--out {out}/n.zzz": "",
        "--terrain .": "",
        "--unit zzz": "zzz",
    },
    "demo": {
        "--out {in}/scene.tif": "",
        "--scene {out}/x.tif --size -1": "cannot be made",
        "--scene {out}/x.tif --size 0": "cannot be made",
        "--scene {out}/x.tif --size 99999999999": "",
        "--scene {out}/x.tif --gsd nan": "gsd",
        "--scene {out}/x.tif --gsd 0": "gsd",
        "--scene {out}/x.zzz --size 64": "",
        "--scene . --size 64": "",
        "--scene /proc/x.tif --size 64": "cannot be written",
        "--seed -1 --out {out}/d": "seed",
        "--seed 99999999999999999999999 --out {out}/d": "seed",
    },
    "view": {
        "{in}/map.tif --port -1": "port",
        "{in}/map.tif --port 99999": "port",
        "{in}/map.tif --host zzz.invalid": "zzz.invalid",
        ".": "",
        "{in}/zones.gpkg": "",
        "{in}/map.tif {in}/scene.tif --bands 0": "band",
        "{in}/map.tif {in}/scene.tif --bands ''": "followed by nothing",
    },
    "info": {
        ".": "",
        "''": "followed by nothing",
        "{in}/nothing": "",
        "{in}/zones.gpkg": "",
    },
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """scene.tif, label.tif, map.tif, entropy.tif, dsm.tif, zones.gpkg, classes.yaml, model.ckpt."""
    folder = tmp_path_factory.mktemp("inputs")
    classes = np.random.default_rng(0).integers(0, 5, (SIDE // 16, SIDE // 16)).repeat(16, 0).repeat(16, 1)
    colours = np.moveaxis(np.array(PRESETS["vaihingen"].colours, np.uint8)[classes], -1, 0)
    rasters = {"scene": colours, "label": colours, "map": classes[None].astype(np.uint8)}
    rasters["dsm"] = classes[None].astype(np.float32)
    rasters["entropy"] = classes[None].astype(np.uint8)
    size = {"height": SIDE, "width": SIDE, "crs": "EPSG:25832", "transform": from_origin(500_000, 5_400_000, 0.5, 0.5)}
    for name, pixels in rasters.items():
        kind = {"count": len(pixels), "dtype": pixels.dtype} | ({"photometric": "rgb"} if len(pixels) == 3 else {})
        with rasterio.open(folder / f"{name}.tif", "w", driver="GTiff", **kind, **size) as file:
            file.write(pixels)
    zone = np.array([shapely.to_wkb(shapely.box(500_000, 5_399_960, 500_040, 5_399_990))], object)
    kind = {"crs": "EPSG:25832", "geometry_type": "Polygon", "driver": "GPKG"}
    pyogrio.raw.write(str(folder / "zones.gpkg"), zone, [np.arange(1)], ["number"], **kind)
    (folder / "classes.yaml").write_text("name: none\n")
    write_checkpoint(folder / "model.ckpt", tiny_meta("lcnet_035", decoder="unet"))
    return folder


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [(command, options, message) for command, cases in REFUSED.items() for options, message in cases.items()],
)
def test_an_option_that_cannot_be_meant_is_told_in_a_line_and_leaves_nothing(
    command, options, message, inputs, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    words = [
        word.replace("{in}", str(inputs)).replace("{out}", str(out))
        for word in shlex.split(f"{COMMANDS[command]} {options}")
    ]
    before = sorted(path.name for path in inputs.iterdir())
    try:
        code = main(words)
    except SystemExit as end:  # by argparse
        code = end.code
    told = capsys.readouterr().err.splitlines()
    assert code == 2
    assert told[-1].startswith(f"rs-biformer {command}: ") and message in told[-1]
    assert [line for line in told[:-1] if "rs-biformer" in line] == []
    assert list(out.rglob("*")) == [] and sorted(path.name for path in inputs.iterdir()) == before
