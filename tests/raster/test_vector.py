import json
import sqlite3
import struct
from pathlib import Path

import numpy as np
import pytest
import rasterio.features
import shapely
import shapely.geometry
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.warp import transform_geom
from scipy import ndimage

from rs_biformer.cli import vectorize as command
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.vector import patches, vectorize
from rs_biformer.raster.writer import MapWriter
from rs_biformer.schema import IGNORE, load_schema

SCHEMA = load_schema("vaihingen")
PLACE = {"crs": "EPSG:25832", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)}


def blobs(seed: int, height: int, width: int, scale: int = 1) -> np.ndarray:
    coarse = np.random.default_rng(seed).choice([0, 1, 2, IGNORE], (-(-height // scale), -(-width // scale)))
    return np.repeat(np.repeat(coarse, scale, 0), scale, 1)[:height, :width].astype(np.uint8)


def in_strips(index: np.ndarray, rows: int) -> list[tuple[int, shapely.Polygon]]:
    return list(
        patches((index[row : row + rows], index[row : row + rows] != IGNORE) for row in range(0, len(index), rows))
    )


def write_map(path: Path, index: np.ndarray, **options) -> Path:
    height, width = index.shape
    with MapWriter(path, height=height, width=width, **{"schema": SCHEMA, **PLACE, **options}) as sink:
        sink.write(Window(0, 0, height, width), index)
    return path


def read_geopackage(path: Path) -> tuple[list[tuple[int, str, float, shapely.Polygon]], int]:
    """The rows of the only layer and its spatial reference, decoded by hand after OGC 12-128r18."""
    with sqlite3.connect(path) as base:
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert base.execute("PRAGMA foreign_key_check").fetchall() == []
        assert base.execute("PRAGMA application_id").fetchone() == (0x47504B47,)
        ((table, column, kind, srs),) = base.execute(
            "SELECT table_name, column_name, geometry_type_name, srs_id FROM gpkg_geometry_columns"
        )
        assert (table, column, kind) == (path.stem, "geom", "POLYGON")
        quoted = '"' + table.replace('"', '""') + '"'
        rows = base.execute(f"SELECT geom, class_index, class_name, area FROM {quoted} ORDER BY fid").fetchall()
    polygons = []
    for blob, index, name, area in rows:
        magic, version, flags, blob_srs, west, east, south, north = struct.unpack("<2sBBi4d", blob[:40])
        outline = shapely.from_wkb(blob[40:])
        assert (magic, version, flags, blob_srs) == (b"GP", 0, 3, srs)
        assert (west, south, east, north) == outline.bounds
        polygons.append((index, name, area, outline))
    base.close()
    return polygons, srs


@settings(max_examples=80)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 24),
    width=st.integers(1, 16),
    scale=st.integers(1, 4),
    rows=st.integers(1, 9),
)
def test_strips_give_the_polygons_of_the_whole_map(seed, height, width, scale, rows):
    index = blobs(seed, height, width, scale)
    whole = {
        (int(value), shapely.geometry.shape(shape).normalize().wkt)
        for shape, value in rasterio.features.shapes(index, mask=index != IGNORE, connectivity=4)
    }
    found = in_strips(index, rows)
    assert all(shapely.is_valid(outline) for _, outline in found)
    assert {(value, outline.normalize().wkt) for value, outline in found} == whole
    assert len(found) == len(whole) == sum(ndimage.label(index == value)[1] for value in (0, 1, 2))


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 9))
def test_polygons_burnt_back_give_the_map(seed, rows):
    index = blobs(seed, 23, 17, 2)
    burnt = rasterio.features.rasterize(
        [(outline, value) for value, outline in in_strips(index, rows)], index.shape, fill=IGNORE, dtype=np.uint8
    )
    assert np.array_equal(burnt, index)


def test_a_ring_through_many_strips_keeps_its_hole_and_its_corners():
    index = np.full((40, 30), 1, np.uint8)
    index[5:35, 5:25] = 0
    index[10:30, 10:20] = 2
    found = dict(in_strips(index, 7))
    assert {value: len(outline.interiors) for value, outline in found.items()} == {0: 1, 1: 1, 2: 0}
    assert found[0].area == 30 * 20 - 20 * 10
    assert len(found[2].exterior.coords) == 5


def test_a_map_of_nothing_but_nodata_gives_no_polygons(tmp_path):
    path = write_map(tmp_path / "map.tif", np.full((20, 20), IGNORE, np.uint8))
    assert vectorize(path, tmp_path / "map.gpkg") == 0
    assert vectorize(path, tmp_path / "map.geojson") == 0
    assert json.loads((tmp_path / "map.geojson").read_text())["features"] == []


def test_a_geopackage_keeps_crs_classes_and_areas(tmp_path):
    index = blobs(3, 60, 50, 5)
    number = vectorize(write_map(tmp_path / "map.tif", index), tmp_path / "deep" / 'my "map".gpkg', rows=16)
    polygons, srs = read_geopackage(tmp_path / "deep" / 'my "map".gpkg')
    assert srs == 25832
    assert len(polygons) == number
    for value in (0, 1, 2):
        mine = [polygon for polygon in polygons if polygon[0] == value]
        assert {name for _, name, _, _ in mine} == {SCHEMA.classes[value]}
        assert sum(area for _, _, area, _ in mine) == pytest.approx((index == value).sum() * 0.25)
    burnt = rasterio.features.rasterize(
        [(outline, value) for value, _, _, outline in polygons],
        index.shape,
        fill=IGNORE,
        transform=PLACE["transform"],
        dtype=np.uint8,
    )
    assert np.array_equal(burnt, index)


def test_a_crs_without_a_code_is_kept_as_text(tmp_path):
    crs = CRS.from_proj4("+proj=tmerc +lat_0=50 +lon_0=11.5 +k=0.99 +x_0=1000 +ellps=GRS80 +units=m")
    vectorize(write_map(tmp_path / "map.tif", blobs(1, 20, 20), crs=crs), tmp_path / "map.gpkg")
    _, srs = read_geopackage(tmp_path / "map.gpkg")
    with sqlite3.connect(tmp_path / "map.gpkg") as base:
        (text,) = base.execute("SELECT definition FROM gpkg_spatial_ref_sys WHERE srs_id = ?", (srs,)).fetchone()
    base.close()
    assert srs == 100_000
    assert "11.5" in text


def test_geojson_is_longitude_and_latitude_with_rings_counterclockwise(tmp_path):
    index = np.zeros((20, 20), np.uint8)
    index[5:10, 5:10] = 3
    vectorize(write_map(tmp_path / "map.tif", index), tmp_path / "map.geojson")
    collection = json.loads((tmp_path / "map.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    by_class = {feature["properties"]["class_name"]: feature for feature in collection["features"]}
    assert set(by_class) == {"impervious surface", "tree"}
    tree = by_class["tree"]
    assert tree["properties"] == {"class_index": 3, "class_name": "tree", "area": 6.25}
    ring = tree["geometry"]["coordinates"][0]
    assert shapely.LinearRing(ring).is_ccw
    square = {"type": "Point", "coordinates": (500_002.5, 5_399_997.5)}
    west_north = transform_geom("EPSG:25832", "EPSG:4326", square)["coordinates"]
    assert min(np.hypot(*(np.array(point) - west_north)) for point in ring) < 1e-7
    hole = by_class["impervious surface"]["geometry"]["coordinates"][1]
    assert not shapely.LinearRing(hole).is_ccw


def test_a_rotated_map_gives_rotated_polygons(tmp_path):
    transform = Affine(3, 1, 100, 2, -4, 200)
    path = write_map(tmp_path / "map.tif", np.zeros((10, 20), np.uint8), transform=transform)
    vectorize(path, tmp_path / "map.gpkg", rows=3)
    ((_, _, area, outline),), _ = read_geopackage(tmp_path / "map.gpkg")
    assert area == pytest.approx(10 * 20 * 14)
    corners = [(100 + 3 * x + y, 200 + 2 * x - 4 * y) for x, y in [(0, 0), (20, 0), (20, 10), (0, 10)]]
    assert outline.equals(shapely.Polygon(corners))


def test_the_area_of_degrees_is_that_on_the_ground(tmp_path):
    transform = Affine(1e-4, 0, 10, 0, -1e-4, 60)
    path = write_map(tmp_path / "map.tif", np.zeros((10, 10), np.uint8), crs="EPSG:4326", transform=transform)
    vectorize(path, tmp_path / "map.gpkg")
    ((_, _, area, _),), _ = read_geopackage(tmp_path / "map.gpkg")
    assert area == pytest.approx(111.4 * 55.8, rel=0.01)  # a thousandth of a degree at 60 degrees north, in metres


def test_small_polygons_are_left_out(tmp_path):
    index = np.full((20, 20), IGNORE, np.uint8)
    index[0:2, 0:2], index[10:14, 10:14] = 1, 1
    path = write_map(tmp_path / "map.tif", index)
    assert vectorize(path, tmp_path / "a.gpkg", min_area=1.0) == 2
    assert vectorize(path, tmp_path / "b.gpkg", min_area=1.01) == 1


def test_a_map_without_a_place_is_in_pixels_and_no_geojson(tmp_path):
    path = write_map(
        tmp_path / "map.tif", np.zeros((10, 20), np.uint8), crs=None, transform=Affine.identity(), schema=None
    )
    vectorize(path, tmp_path / "map.gpkg")
    ((index, name, area, outline),), srs = read_geopackage(tmp_path / "map.gpkg")
    assert (index, name, area, outline.bounds, srs) == (0, "class 0", 200, (0, 0, 20, 10), -1)
    with pytest.raises(RasterError, match=r"map\.tif has no CRS"):
        vectorize(path, tmp_path / "map.geojson")


def test_what_cannot_be_meant_is_refused_and_leaves_nothing(tmp_path, write_raster):
    path = write_map(tmp_path / "map.tif", np.zeros((10, 20), np.uint8))
    with pytest.raises(ConfigError, match=r"\.gpkg or \.geojson"):
        vectorize(path, tmp_path / "map.shp")
    with pytest.raises(ConfigError, match="min_area"):
        vectorize(path, tmp_path / "map.gpkg", min_area=-1)
    with pytest.raises(RasterError, match=r"rgb\.tif has 3 band"):
        vectorize(write_raster("rgb.tif", np.ones((3, 5, 5), np.uint8)), tmp_path / "map.gpkg")
    with pytest.raises(RasterError, match="does not exist"):
        vectorize(tmp_path / "nowhere.tif", tmp_path / "map.gpkg")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["map.tif", "rgb.tif"]


@pytest.mark.parametrize("suffix", ["gpkg", "geojson"])
def test_a_failure_on_the_way_leaves_the_old_file(tmp_path, suffix):
    path = write_map(tmp_path / "map.tif", blobs(0, 30, 30))
    out = tmp_path / f"map.{suffix}"
    vectorize(path, out)
    before = out.read_bytes()

    def stop(done: int, _: int) -> None:
        if done > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vectorize(path, out, rows=10, progress=stop)
    assert out.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_progress_counts_the_rows(tmp_path):
    seen: list[tuple[int, int]] = []
    path = write_map(tmp_path / "map.tif", blobs(0, 30, 10))
    vectorize(path, tmp_path / "a.gpkg", rows=12, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(12, 30), (24, 30), (30, 30)]


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    path = write_map(tmp_path / "map.tif", np.zeros((10, 20), np.uint8))
    command.run(parser.parse_args([str(path), "--out", str(tmp_path / "a.gpkg"), "--min-area", "10"]))
    assert capsys.readouterr().out == f"1 polygon(s) written to {tmp_path / 'a.gpkg'}\n"
