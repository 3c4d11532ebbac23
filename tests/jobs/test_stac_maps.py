"""The Item of a scene's maps, against rasterio, pyproj and the schemas of the extensions where they are at hand."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Transformer
from rasterio.transform import from_origin
from tiny_checkpoint import pointwise_model

from rs_biformer.data.layouts import pattern_scenes
from rs_biformer.jobs import map_scenes
from rs_biformer.schema import PRESETS


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 40, 60)).astype(np.uint8)
    for name, crs, tags in (("a", "EPSG:32633", {"TIFFTAG_DATETIME": "2024:05:01 10:20:30"}), ("b", None, {})):
        place = {"crs": crs, "transform": from_origin(500_000, 5_400_000, 0.5, 0.5)} if crs else {}
        with rasterio.open(
            folder / f"{name}.tif", "w", driver="GTiff", height=40, width=60, count=3, dtype="uint8", **place
        ) as file:
            file.write(pixels)
            file.update_tags(**tags)
    scenes = [folder / "a.tif", folder / "b.tif"]
    map_scenes(
        scenes, pointwise_model(), folder / "out", layers=["confidence", "probabilities"], stac=True, device="cpu"
    )
    return folder / "out"


def item(folder: Path, name: str = "a") -> dict:
    return json.loads((folder / f"{name}.stac.json").read_text())


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_the_item_says_where_the_map_lies_and_when(made):
    found = item(made)
    assert found["properties"]["proj:code"] == "EPSG:32633" and found["properties"]["proj:shape"] == [40, 60]
    assert found["properties"]["proj:transform"] == [0.5, 0, 500_000, 0, -0.5, 5_400_000]
    assert found["properties"]["datetime"] == "2024-05-01T10:20:30Z"
    lonlat = Transformer.from_crs(32633, 4326, always_xy=True)
    corners = [lonlat.transform(x, y) for x in (500_000, 500_030) for y in (5_400_000, 5_399_980)]
    outline = shapely.geometry.shape(found["geometry"])
    assert shapely.hausdorff_distance(outline, shapely.MultiPoint(corners).convex_hull) < 1e-7
    assert found["bbox"] == list(outline.bounds) and outline.exterior.is_ccw
    assert item(made, "b")["geometry"] is None and "bbox" not in item(made, "b")
    assert item(made, "b")["properties"]["datetime"] is None


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_its_assets_are_the_maps_and_say_what_values_mean(made):
    assets = item(made)["assets"]
    schema = PRESETS["vaihingen"]
    assert list(assets) == ["classes", "probabilities", "confidence"]
    for layer, asset in assets.items():
        with rasterio.open(made / asset["href"]) as file:
            assert file.dtypes[0] == asset["data_type"] and file.nodata == asset["nodata"] == 255
            if layer != "classes":
                assert (file.scales[0], file.offsets[0]) == (asset["raster:scale"], asset["raster:offset"])
            else:
                colours = {one["value"]: one["color_hint"] for one in asset["classification:classes"]}
                table = file.colormap(1)
                assert colours == {number: bytes(table[number][:3]).hex().upper() for number in range(len(schema))}
    assert [one["description"] for one in assets["classes"]["classification:classes"]] == list(schema.classes)
    (scene,) = pattern_scenes([f"{made / 'a.stac.json'}#classes"], None)  # what we write we read
    assert scene.images == (made / "a_classes.tif",)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_pystac_opens_and_validates_it(made):
    pystac = pytest.importorskip("pystac")
    document = item(made) | {"stac_extensions": []}  # whose schemas it would fetch
    assert pystac.Item.from_dict(document).validate()
    document["assets"]["classes"]["data_type"] = "ubyte"
    with pytest.raises(pystac.STACValidationError):
        pystac.Item.from_dict(document).validate()


def test_it_is_valid_by_the_schemas_of_the_extensions(made):
    """RS_BIFORMER_STAC_SCHEMAS names a folder with the schema.json of projection, raster, ... under these names."""
    home = os.environ.get("RS_BIFORMER_STAC_SCHEMAS")
    if not home or not (Path(home) / "projection.json").is_file():
        pytest.skip("RS_BIFORMER_STAC_SCHEMAS names no folder with the schemas of the extensions")
    jsonschema = pytest.importorskip("jsonschema")
    for name in ("projection", "raster", "classification", "processing"):
        checker = jsonschema.Draft7Validator(within(json.loads((Path(home) / f"{name}.json").read_text())))
        for scene in "ab":
            assert [error.message for error in checker.iter_errors(item(made, scene))] == [], name
        broken = item(made)
        broken["properties"]["proj:shape"] = broken["properties"]["processing:software"] = "none"
        broken["assets"]["classes"]["classification:classes"] = broken["assets"]["confidence"]["raster:scale"] = "none"
        assert list(checker.iter_errors(broken)), name


def within(schema):
    """A schema without what it takes from other files: their part is not looked at here."""
    if isinstance(schema, list):
        return [within(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {} if str(schema.get("$ref", "")).startswith("http") else {name: within(one) for name, one in schema.items()}


@pytest.mark.parametrize("zone", [1, 60])
def test_the_outline_of_a_map_across_the_antimeridian_is_cut_there(tmp_path, zone):
    """Zone 60 ends at 180 degrees east, where zone 1 begins: 10 m on each side of it."""
    system = 32600 + zone
    x, y = Transformer.from_crs(4326, system, always_xy=True).transform(180.0, 10.0)
    place = {"crs": f"EPSG:{system}", "transform": from_origin(x - 10, y + 5, 0.5, 0.5)}
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=20, width=40, count=3, dtype="uint8", **place
    ) as file:
        file.write(np.full((3, 20, 40), 7, np.uint8))
    map_scenes([tmp_path / "a.tif"], pointwise_model(), tmp_path, stac=True, device="cpu")
    found = item(tmp_path)
    west, south, east, north = found["bbox"]
    outline = shapely.geometry.shape(found["geometry"])
    assert outline.geom_type == "MultiPolygon" and len(outline.geoms) == 2 and outline.is_valid
    degree = 111_320 * np.cos(np.radians(10))
    assert (180 - west) * degree == pytest.approx(10, rel=0.05) and east + west == pytest.approx(0, abs=1e-6)
    assert 9.9999 < south < 10 < north < 10.0001
    assert outline.area * degree * 110_610 == pytest.approx(20 * 10, rel=0.01)


def test_no_corner_of_an_outline_is_there_twice(made):
    ring = item(made)["geometry"]["coordinates"][0]
    assert len({tuple(point) for point in ring}) == len(ring) - 1 == 32
