"""Scenes that STAC documents name."""

import json

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from rs_biformer.data.layouts import pattern_scenes
from rs_biformer.errors import ConfigError
from rs_biformer.jobs import create_tile_index


def item(name, **assets):
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": None,
        "properties": {"datetime": "2024-05-01T00:00:00Z"},
        "links": [],
        "assets": assets,
    }


def raster(href, *roles, kind="image/tiff; application=geotiff; profile=cloud-optimized"):
    return {"href": href, "roles": list(roles), **({"type": kind} if kind else {})}


@pytest.fixture
def folder(tmp_path):
    for place, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        for band in ("visual", "red", "nir", "label"):
            with rasterio.open(
                tmp_path / name / f"{band}.tif", "w", driver="GTiff", height=32, width=32, count=1, dtype="uint8",
                crs="EPSG:32633", transform=from_origin(500_000 + 1000 * place, 5_400_000, 1, 1),
            ) as file:  # fmt: skip
                file.write(np.full((1, 32, 32), 1 + (band == "nir"), np.uint8))
    return tmp_path


def save(path, data):
    path.write_text(json.dumps(data))
    return str(path)


def names(scenes):
    return {one.name: [path.name for path in one.images] for one in scenes}


def test_an_item_is_the_scene_of_its_one_raster_and_relative_names_are_counted_from_it(folder):
    found = save(
        folder / "a" / "item.json",
        item("S 2/x", visual=raster("./visual.tif", "data"), thumbnail=raster("t.png", "thumbnail", kind="image/png"),
             meta={"href": "m.xml", "type": "application/xml"}),
    )  # fmt: skip
    (scene,) = pattern_scenes([found], None)
    assert scene.name == "S_2_x" and scene.images == (folder / "a" / "visual.tif",)


def test_a_search_result_names_a_scene_for_each_item_and_assets_by_key(folder):
    found = save(
        folder / "found.json",
        {"type": "FeatureCollection", "features": [
            item(name, red=raster(f"{name}/red.tif", "data"), nir=raster(f"{name}/nir.tif", kind=None),
                 visual=raster(f"{name}/visual.tif")) for name in "ab"
        ]},
    )  # fmt: skip
    assert names(pattern_scenes([f"{found}#nir"], None, name=None)) == {"a": ["nir.tif"], "b": ["nir.tif"]}
    assert names(pattern_scenes([f"{found}#nir,red"], None)) == {n: ["nir.tif", "red.tif"] for n in "ab"}
    assert names(pattern_scenes([found], None)) == {"a": ["red.tif"], "b": ["red.tif"]}  # the only one of role data
    (folder / "list.txt").write_text("a/visual.tif\n")
    mixed = pattern_scenes([f"{found}#red", str(folder / "b" / "label.tif")], None, name=None)
    assert list(names(mixed)) == ["a", "b", "label"]


def test_a_collection_leads_to_the_items_beside_it(folder):
    for name in "ab":
        save(folder / name / f"{name}.json", item(name, data=raster("red.tif")))
    links = [{"rel": "self", "href": "https://host/collection.json"}]
    links += [{"rel": "item", "href": f"./{name}/{name}.json"} for name in "ab"]
    found = save(folder / "collection.json", {"type": "Collection", "links": links})
    assert names(pattern_scenes([found], None)) == {"a": ["red.tif"], "b": ["red.tif"]}


def test_urls_stay_urls(folder):
    (scene,) = pattern_scenes([save(folder / "i.json", item("r", image=raster("https://host/x/a%20b.tif")))], None)
    assert scene.images == ("https://host/x/a%20b.tif",)


@pytest.mark.parametrize(
    "data, key, message",
    [
        ([], "", "is no STAC document"),
        ({"type": "FeatureCollection", "features": []}, "", "holds no STAC Item"),
        ({"type": "FeatureCollection", "features": [{"geometry": None}]}, "", r"features\[0\] is no STAC Item"),
        (item("x", a=raster("a/red.tif"), b=raster("a/nir.tif")), "", r"Item x has 2 rasters \(a, b\); name the asset"),
        (item("x", a={"href": "a.xml", "type": "text/xml"}), "", "no raster among a"),
        (item("x", a=raster("a/red.tif")), "#b", "Item x has no asset 'b'; it has a"),
        (item("x", a=raster("a/gone.tif")), "", "gone.tif, which does not exist"),
        (item("x", a=raster("a/red.tif")), "#", "names no asset after the #"),
        (item("x", a=raster("a/red.tif")), "#a,", "names no asset after the #"),
        (
            {"type": "Collection", "links": [{"rel": "item", "href": "https://h/i.json"}]},
            "",
            "save its items to a file",
        ),
        ({"type": "Catalog", "links": [{"rel": "child", "href": "bad.json"}] * 30}, "", "holds no STAC Item"),
        ({"type": "Catalog", "links": [{"rel": "item", "href": "gone.json"}]}, "", "gone.json, which does not exist"),
        ({"type": "Catalog", "links": 7}, "", "links: it is 7"),
        ({"type": "Catalog", "links": [{"rel": "item", "href": {"a": 1}}]}, "", r"links: \[0\].href is"),
        ({"type": "FeatureCollection", "features": True}, "", "features: it is True"),
        ({"type": "Feature", "assets": [1]}, "", "assets is"),
        (item("x", a=raster("a/red.tif") | {"roles": 0.5}), "", "assets.a.roles is 0.5"),
        (item("x", a=raster("a/red.tif") | {"type": 1}), "", "assets.a.type is 1"),
        (item("x", a=raster(5)), "", "assets.a.href is 5"),
        (item("x", a=raster("y" * 5000)), "", "which does not exist"),
        (item("x", a=raster("y\0.tif")), "", "zero byte"),
    ],
)
def test_what_names_no_scene_is_one_line(folder, data, key, message):
    with pytest.raises(ConfigError, match=message):
        pattern_scenes([save(folder / "bad.json", data) + key], None)


def test_catalogues_are_followed_so_deep_and_each_document_once(folder):
    for depth in range(12):  # each leads to the next three times, and back
        targets = [depth + 1, depth + 1, depth + 1, max(depth - 1, 0)]
        links = [{"rel": "child", "href": f"{target}.json"} for target in targets]
        save(folder / f"{depth}.json", {"type": "Catalog", "links": links})
    save(folder / "12.json", item("x", a=raster("a/red.tif")))
    with pytest.raises(ConfigError, match="8.json lies more than 8 catalogues deep"):
        pattern_scenes([str(folder / "0.json")], None)
    assert names(pattern_scenes([str(folder / "6.json")], None)) == {"x": ["red.tif"]}


def test_scenes_of_a_search_result_are_tiled_with_labels_beside_them(folder):
    (folder / "c.yaml").write_text(
        "classes: [{name: one, colour: [1, 1, 1], value: 1}, {name: x, colour: [2, 2, 2], value: 2}]"
    )
    found = save(
        folder / "found.json",
        {"type": "FeatureCollection", "features": [item(n, r=raster(f"{n}/red.tif"), n=raster(f"{n}/nir.tif"))
                                                    for n in "ab"]},
    )  # fmt: skip
    index, _ = create_tile_index(
        f"{found}#r,n", folder / "c.yaml", folder / "tiles", labels="{dir}/label.tif", split=["train"]
    )
    assert [scene.name for scene in index.manifest.scenes] == ["a", "b"]
    assert index.manifest.mean == (1.0, 2.0)
