"""`info MODEL RASTER`: what predict would say, of all rules at once."""

import json

import numpy as np
import pytest
from rasterio.transform import from_origin
from tiny_checkpoint import tiny_meta, write_checkpoint
from tiny_index import write_tiny_index

from rs_biformer.cli import main
from rs_biformer.data.index import TileIndex
from rs_biformer.errors import RasterError
from rs_biformer.jobs.matching import match_scene
from rs_biformer.predict import open_scene

META = tiny_meta(encoder="lcnet_035", decoder="segformer")  # RGB, uint8, 0.5 m


def raster(write_raster, bands=("red", "green", "blue"), dtype=np.uint8, pixel=0.5, name="scene.tif"):
    pixels = np.random.default_rng(0).integers(0, 255, (len(bands), 40, 50)).astype(dtype)
    place = from_origin(500_000.0, 5_400_000.0, pixel, pixel)
    return write_raster(name, pixels, descriptions=bands, transform=place)


@pytest.mark.parametrize(
    ("options", "wrong", "needed"),
    [
        ({}, set(), None),
        ({"bands": ("nir", "blue", "green", "red")}, set(), None),
        ({"pixel": 0.6}, set(), None),
        ({"pixel": 1.0}, {"pixel size"}, ["--rescale-gsd"]),
        ({"pixel": 8.0}, {"pixel size"}, None),
        ({"dtype": np.uint16}, {"data type"}, None),
        ({"bands": ("nir", "red")}, {"bands"}, None),
        ({"bands": ("nir", "red"), "dtype": np.uint16, "pixel": 1.0}, {"bands", "data type", "pixel size"}, None),
    ],
)
def test_it_says_of_every_rule_what_predict_would(write_raster, options, wrong, needed):
    scene = raster(write_raster, **options)
    found = match_scene(META, [scene])
    points = {name: point for name, point in found.items() if isinstance(point, dict)}
    assert {name for name, point in points.items() if not point["fits"]} == wrong
    assert found["fits"] == (not wrong)
    if needed or len(wrong) < 2:
        assert found.get("options") == needed
    fit = {"bands": META.bands, "dtype": META.dtype, "gsd": META.gsd}
    if not wrong:
        open_scene([scene], **fit).close()
        return
    with pytest.raises(RasterError) as refused:
        open_scene([scene], **fit)
    assert str(refused.value) in [point["says"] for point in points.values()]
    if needed:
        open_scene([scene], **fit, rescale_gsd=True).close()


def test_it_tells_where_the_bands_are_and_how_far_off_the_pixels(write_raster):
    found = match_scene(META, [raster(write_raster, ("nir", "blue", "green", "red"), pixel=0.6)])
    assert found["bands"]["says"] == "3 bands (red, green, blue): the scene's 4, 3, 2"
    assert found["pixel size"]["says"].startswith("0.6 m, 1.2 times off, taken as they are; --rescale-gsd")


def test_the_command_shows_a_line_each_and_json(write_raster, tmp_path, capsys):
    model, scene = write_checkpoint(tmp_path / "model.ckpt", META), raster(write_raster, pixel=1.0)
    assert main(["info", str(model), str(scene)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.split("  ")[0] in ("bands", "scale", "data type", "pixel size") for line in lines) == 4
    assert any("does not fit" in line and "--rescale-gsd" in line for line in lines)
    assert main(["info", str(model), str(scene), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bands"]["fits"] is True
    assert main(["info", str(model), str(model)]) == 2
    assert "is a second model" in capsys.readouterr().err


def test_a_model_beside_an_index(tmp_path, capsys):
    index = write_tiny_index(tmp_path / "tiles", {"a": "train"})
    model = write_checkpoint(tmp_path / "model.ckpt", META)
    assert main(["info", str(model), str(index), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    manifest = TileIndex.read(index).manifest
    assert found["data type"]["fits"] and not found["classes"]["fits"] and not found["fits"]
    assert ", ".join(manifest.schema.classes) in found["classes"]["says"]
