"""tiles.gpkg, read by a GeoPackage driver that is not the writer's own code, and by SQLite."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from rasterio.windows import Window as RasterWindow

from rs_biformer.data import tile_layer
from rs_biformer.data.index import TileIndex
from rs_biformer.data.splits import Blocks
from rs_biformer.data.tiling import TileOptions, tile_scenes
from rs_biformer.errors import RasterError
from tests.data.test_tiling import SCHEMA, at, make_scene


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Two scenes in one CRS, cut into blocks, with random labels."""
    folder = tmp_path_factory.mktemp("tiles")
    scenes = [make_scene(folder, "a", (96, 96), 1, None)[0], at(folder, "b", None, x=500)]
    index, summary = tile_scenes(
        scenes, SCHEMA, folder / "out", options=TileOptions(16), blocks=Blocks((0.5, 0.5, 0.0), 32, 8)
    )
    return folder / "out", index, summary


def test_the_windows_are_a_layer_where_rasterio_puts_them(tiles):
    folder, index, summary = tiles
    meta, _, outlines, columns = pyogrio.raw.read(folder / "tiles.gpkg", layer="tiles")
    assert (meta["crs"], meta["geometry_type"]) == ("EPSG:25832", "Polygon")
    rows = dict(zip(meta["fields"], columns, strict=True))
    assert rows["split"].tolist() == index.table.split.tolist()
    assert set(rows["split"]) == {"train", "val"} and set(rows["scene"]) == {"a", "b"}
    for number, polygon in enumerate(shapely.from_wkb(outlines)):
        window, (image,) = index.window(number), index.scene(number).images
        with rasterio.open(image) as file:
            box = file.window_bounds(RasterWindow(window.col, window.row, window.width, window.height))
        assert polygon.equals(shapely.box(*box))
    shares = np.column_stack([rows[f"share_{name}"] for name in SCHEMA.classes])
    np.testing.assert_allclose(shares, index.table.histogram / index.table.histogram.sum(axis=1, keepdims=True))
    assert not any("tiles.gpkg" in note for note in summary["notes"])


def test_its_style_tells_the_splits_apart_and_an_edited_one_is_kept(tiles, caplog):
    folder, index, _ = tiles
    with closing(sqlite3.connect(folder / "tiles.gpkg")) as database:
        (qml,) = database.execute("SELECT styleQML FROM layer_styles WHERE useAsDefault").fetchone()
        assert database.execute("PRAGMA user_version").fetchone() == (10300,)
        renderer = ElementTree.fromstring(qml).find("renderer-v2")
        assert renderer.get("attr") == "split"
        assert [one.get("value") for one in renderer.iterfind("./categories/category")] == ["train", "val", "test"]
        database.execute("UPDATE layer_styles SET styleQML = '<qgis>mine</qgis>'")
        database.commit()
    assert tile_layer.write_tile_layer(index, folder) is None
    with closing(sqlite3.connect(folder / "tiles.gpkg")) as database:
        assert database.execute("SELECT styleQML FROM layer_styles").fetchall() == [("<qgis>mine</qgis>",)]
        assert database.execute("SELECT count(*) FROM tiles").fetchone() == (len(index),)
    assert "tiles.gpkg was edited and is kept" in caplog.text


def test_classes_that_differ_in_case_alone_have_columns_of_their_own(tiles, tmp_path):
    index = tiles[1]
    schema = replace(SCHEMA, classes=("road", "Road", "tree"))
    index = TileIndex(replace(index.manifest, schema=schema), index.table)
    tile_layer.write_tile_layer(index, tmp_path)
    fields = pyogrio.read_info(tmp_path / "tiles.gpkg", layer="tiles")["fields"].tolist()
    assert fields[-3:] == ["share_road", "share_Road_1", "share_tree"]


def test_too_many_windows_or_none_with_a_place_make_no_layer_and_it_is_said(tmp_path, monkeypatch):
    scenes = [at(tmp_path, "a", "train")]
    monkeypatch.setattr(tile_layer, "MOST_DRAWN", 3)
    _, summary = tile_scenes(scenes, SCHEMA, tmp_path / "many", options=TileOptions(16))
    assert summary["notes"][-1].startswith("tiles.gpkg is not written for 121 windows (at most 3)")
    monkeypatch.undo()
    scenes = [at(tmp_path, "b", "train", crs=None)]
    _, summary = tile_scenes(scenes, SCHEMA, tmp_path / "nowhere", options=TileOptions(16))
    assert "tiles.gpkg is not written: no window has a known place" in summary["notes"]
    assert sorted(path.name for path in tmp_path.rglob("*") if "tiles" in path.name) == ["tiles.parquet"] * 2


def test_a_layer_of_somebody_else_is_not_replaced(tiles, tmp_path):
    point = shapely.to_wkb(np.array([shapely.Point(1, 2)], object))
    columns = ([np.array([1])], ["mine"])
    pyogrio.raw.write(tmp_path / "tiles.gpkg", point, *columns, layer="tiles", geometry_type="Point", crs="EPSG:25832")
    with pytest.raises(RasterError, match="has a layer tiles that holds no windows of a tile index; remove it or"):
        tile_layer.write_tile_layer(tiles[1], tmp_path)
