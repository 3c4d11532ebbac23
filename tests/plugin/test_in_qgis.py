"""The plugin in a real QGIS, if this machine has one: provider, algorithms, styles, errors, cancelling."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from rs_biformer.schema import PRESETS
from tests.plugin.loading import QGIS
from tests.tiny_checkpoint import write_checkpoint

PYTHON = "/usr/bin/python3"
SCHEMA = PRESETS["vaihingen"]
LEGEND = [[name, f"#{bytes(colour).hex()}"] for name, colour in zip(SCHEMA.classes, SCHEMA.colours, strict=True)]
PLACE = {"driver": "GTiff", "crs": "EPSG:25832", "transform": from_origin(5e5, 5.4e6, 0.5, 0.5)}
HERE = Path(__file__).parent

pytestmark = pytest.mark.slow


def qgis_version():
    if not Path(PYTHON).exists():
        return None
    ask = "from qgis.core import Qgis; print(Qgis.QGIS_VERSION)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    said = subprocess.run([PYTHON, "-c", ask], capture_output=True, text=True, env=environment)
    return said.stdout.strip() or None


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    if qgis_version() is None:
        pytest.skip(f"{PYTHON} has no qgis.core: install qgis and python3-qgis")
    folder = tmp_path_factory.mktemp("qgis")
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 6, (12, 12))
    label = np.array(SCHEMA.colours, np.uint8)[cells.repeat(8, 0).repeat(8, 1)]
    image = np.clip(label.astype(int) + rng.integers(-20, 20, label.shape), 1, 255).astype(np.uint8)
    for name, array in (("scene.tif", image), ("label.tif", label)):
        with rasterio.open(folder / name, "w", height=96, width=96, count=3, dtype="uint8", **PLACE) as file:
            file.write(np.moveaxis(array, -1, 0))
    more = {"tiled": True, "sparse_ok": True, "nodata": 255}
    with rasterio.open(folder / "huge.tif", "w", height=6000, width=6000, count=3, dtype="uint8", **more, **PLACE):
        pass
    write_checkpoint(folder / "model.ckpt")
    command = folder / "bin" / "rs-biformer"
    command.parent.mkdir()
    code = "import sys; from rs_biformer.cli import main; sys.exit(main())"
    command.write_text(f"#!/bin/sh\nPYTHONPATH='{HERE.parents[1]}' exec '{sys.executable}' -c '{code}' \"$@\"\n")
    command.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def seen(work):
    environment = {
        "QT_QPA_PLATFORM": "offscreen",
        "PATH": os.environ["PATH"],
        "HOME": str(work),
        "OMP_NUM_THREADS": "1",
    }
    script = [PYTHON, HERE / "in_qgis.py", QGIS, work, work / "bin" / "rs-biformer"]
    ended = subprocess.run(list(map(str, script)), env=environment, capture_output=True, text=True, timeout=900)
    assert (work / "seen.json").exists(), ended.stderr[-3000:]
    return json.loads((work / "seen.json").read_text())


def test_the_provider_has_every_algorithm_with_its_help(seen):
    assert set(seen["algorithms"]) == {"map_raster", "polygons_from_map", "measure_map", "tile_raster", "set_up"}
    assert all(len(text) > 200 for text in seen["algorithms"].values())
    assert seen["unloaded"]


def test_before_it_is_set_up_it_says_so_and_then_it_uses_what_was_pointed_at(seen, work):
    assert re.search("there is no rs-biformer in .*: run 'Set up rs_biformer'", seen["not set up"])
    assert seen["set up"]["made"] == {"COMMAND": str(work / "bin" / "rs-biformer")}
    assert "has no command rs-biformer" in seen["set up wrongly"]


def test_a_map_is_made_with_progress_and_has_its_legend_and_colours(seen, work):
    assert seen["map"]["error"] is None
    assert seen["map"]["made"] == {"OUTPUT": str(work / "town.tif"), "CONFIDENCE": str(work / "sure.tif")}
    assert 0 < max(seen["map"]["shares"]) == 100
    assert any(line.startswith(f"Raster: {work / 'scene.tif'}, all of its bands") for line in seen["map"]["lines"])
    assert seen["legend"] == LEGEND
    assert seen["score style"] == ["singlebandpseudocolor", 1.0]
    with rasterio.open(work / "town.tif") as file:
        wanted = np.array(SCHEMA.colours)[file.read(1)].repeat(2, 0).repeat(2, 1)
    for picture in ("town.png",):
        with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(work / picture) as file:
            drawn = np.moveaxis(file.read([1, 2, 3]), 0, -1)
        assert (drawn == wanted).all(axis=-1).mean() > 0.99


def test_quality_is_chosen_in_the_form_and_balanced_where_nobody_chooses(seen):
    assert seen["qualities"] == ["Balanced", ["Balanced", "Fast", "Best"]]
    for run, quality in (("map", "balanced"), ("again", "fast")):
        assert any(f"(quality {quality}," in line for line in seen[run]["lines"]), seen[run]["lines"]


def test_polygons_are_drawn_as_the_map_is(seen):
    assert seen["polygons"]["error"] is None
    assert seen["polygon legend"] == LEGEND


def test_polygons_of_named_classes_are_squared_and_what_became_of_them_is_told(seen):
    assert seen["square"]["error"] is None
    assert any("polygons have right angles, within" in line for line in seen["square"]["lines"])
    assert "has no class barn" in seen["barns"]


def test_a_map_is_measured_against_a_raster_and_against_its_own_polygons(seen, work):
    assert seen["measured"]["error"] is None
    assert 0 <= seen["measured"]["made"]["MEAN_IOU"] <= 1
    assert (work / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    own = seen["measured by legend"]
    assert own["error"] is None and own["made"]["OVERALL_ACCURACY"] > 0.95, "the same but for simplified outlines"
    assert seen["two labels"] == "two labels are given; give a label raster or label polygons"


def test_windows_are_a_layer_and_what_a_filter_hides_is_not_learned(seen, work):
    assert seen["tiles"]["error"] is None
    assert (work / "tiles" / "tiles.parquet").exists() and seen["tiles"]["loaded"] == ["tiles"]
    shown, copied = seen["subset"]
    assert 0 < shown == copied
    assert seen["no polygons"] and not seen["left of it"]


def test_what_fails_is_one_line_of_the_command_and_leaves_nothing(seen, work):
    assert seen["bad model"].startswith("rs-biformer predict: ") and "\n" not in seen["bad model"]
    assert "tiles of a server comes from wms and not from a raster file; save it as a GeoTIFF" in seen["wms"]
    assert not list(work.glob("*bad*")) and not list(work.glob(".bad*"))
    assert not [found for found in work.rglob("*.partial") if "kept" not in str(found)]


def test_a_cancelled_map_leaves_nothing_half_written(seen):
    assert seen["cancelled"] == [{}, None, []]


def test_unfinished_work_is_kept_where_that_was_wanted(seen):
    assert seen["kept"] == [{}, [".kept.tif.unfinished"]]


def test_an_edited_style_is_kept_and_the_message_has_the_names_that_files_will_have(seen, work):
    assert seen["again"]["error"] is None and seen["style again"]
    assert f"{work / 'town.qml'} was edited and is kept; remove it to have a new one" in seen["again"]["lines"]
