import argparse
import json
import resource
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
import rasterio
import rasterio.features
import shapely
import shapely.geometry
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform as reproject
from rasterio.warp import transform_geom
from scipy import ndimage

from rs_biformer.cli import vectorize as command
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.raster import tracing
from rs_biformer.raster.gdal import open_raster
from rs_biformer.raster.ground import ground_areas
from rs_biformer.raster.vector import vectorize
from rs_biformer.schema import IGNORE

NAMES = ["road", "house", "grass", "tree"]
UTM = "EPSG:25832"
HALF_METRE = Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)
SUFFIXES = ["gpkg", "fgb", "parquet", "geojson"]


def blobs(seed: int, height: int, width: int, scale: int = 1) -> np.ndarray:
    coarse = np.random.default_rng(seed).choice([0, 1, 2, IGNORE], (-(-height // scale), -(-width // scale)))
    return np.repeat(np.repeat(coarse, scale, 0), scale, 1)[:height, :width].astype(np.uint8)


def smooth(seed: int, height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((4, height, width))
    return ndimage.gaussian_filter(noise, (0, 3, 3)).argmax(0).astype(np.uint8)


def write(path: Path, pixels: np.ndarray, *, crs=UTM, transform=HALF_METRE, nodata=IGNORE, names=NAMES, **tags) -> Path:
    height, width = pixels.shape
    place = {"crs": crs, "transform": transform} if crs else {}
    profile = {"driver": "GTiff", "count": 1, "height": height, "width": width, "nodata": nodata}
    with open_raster(path, "w", dtype=pixels.dtype.name, **profile, **place) as file:
        file.write(pixels, 1)
        file.update_tags(**({"CLASS_NAMES": json.dumps(names)} if names else {}), **tags)
    return path


def read(path: Path) -> dict[str, list]:
    """The columns of a file, by other code than wrote it where there is some; outlines as shapely polygons."""
    if path.suffix == ".parquet":
        columns = pq.read_table(path).drop_columns(["bbox"]).to_pydict()
    elif path.suffix == ".geojson":
        features = json.loads(path.read_text())["features"]
        columns = {key: [feature["properties"][key] for feature in features] for key in features[0]["properties"]}
        columns["outline"] = [shapely.geometry.shape(feature["geometry"]) for feature in features]
        return columns
    else:
        meta, _, geometry, fields = pyogrio.raw.read(path, layer=path.stem)
        columns = {str(name): values.tolist() for name, values in zip(meta["fields"], fields, strict=True)}
        columns["geometry"] = geometry
    columns["outline"] = shapely.from_wkb(columns.pop("geometry")).tolist()
    return columns


def by_place(columns: dict[str, list]) -> dict[tuple, tuple]:
    """Rows of the attributes, under a point of their polygon."""
    keys = sorted(set(columns) - {"outline"})
    rows = zip(*(columns[key] for key in keys), strict=True)
    return {
        tuple(np.round(outline.representative_point().coords[0], 6)): row
        for outline, row in zip(columns["outline"], rows, strict=True)
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_holds_classes_areas_and_confidence(tmp_path, suffix):
    index = smooth(3, 90, 80)
    index[:20, :15] = IGNORE
    scores = np.random.default_rng(1).random(index.shape, np.float32)
    path = write(tmp_path / "map.tif", index)
    confidence = write(tmp_path / "confidence.tif", scores, nodata=float("nan"))
    out = tmp_path / "deep" / f'my "map".{suffix}'
    number = vectorize(path, out, confidence=confidence, simplify=0, rows=16)
    columns = read(out)
    assert set(columns) == {"class_index", "class_name", "area", "confidence", "outline"}
    assert len(columns["outline"]) == number == sum(ndimage.label(index == value)[1] for value in range(4))
    assert columns["class_name"] == [NAMES[value] for value in columns["class_index"]]
    for value in range(4):
        area = sum(a for a, one in zip(columns["area"], columns["class_index"], strict=True) if one == value)
        assert area == pytest.approx((index == value).sum() * 0.25)
    if suffix != "geojson":
        for outline, mean, area in zip(columns["outline"], columns["confidence"], columns["area"], strict=True):
            inside = rasterio.features.geometry_mask([outline], index.shape, HALF_METRE, invert=True)
            assert mean == pytest.approx(scores[inside].mean())
            assert area == pytest.approx(inside.sum() * 0.25)
    assert {entry.name for entry in out.parent.iterdir()} == {
        out.name,
        *([f"{out.stem}.qml"] if suffix == "fgb" else []),
    }


def test_all_formats_hold_the_same(tmp_path):
    path = write(tmp_path / "map.tif", smooth(5, 70, 90))
    found = {}
    for suffix in SUFFIXES[:3]:
        vectorize(path, tmp_path / f"map.{suffix}", min_area=5)
        found[suffix] = by_place(read(tmp_path / f"map.{suffix}"))
    assert found["gpkg"] == found["fgb"] == found["parquet"]
    vectorize(path, tmp_path / "map.geojson", min_area=5)
    rows = read(tmp_path / "map.geojson")
    assert sorted(rows["area"]) == sorted(row[0] for row in found["gpkg"].values())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_map_of_nothing_but_nodata_gives_a_file_of_no_polygons(tmp_path, suffix):
    out = tmp_path / f"map.{suffix}"
    assert vectorize(write(tmp_path / "map.tif", np.full((20, 20), IGNORE, np.uint8)), out) == 0
    found = pq.read_table(out)["geometry"] if suffix == "parquet" else pyogrio.raw.read(out, layer=out.stem)[2]
    assert len(found) == 0


def test_a_geopackage_has_a_sound_index_and_the_crs(tmp_path):
    number = vectorize(write(tmp_path / "map.tif", blobs(3, 60, 50, 5)), tmp_path / "a b.gpkg")
    base = sqlite3.connect(tmp_path / "a b.gpkg")
    assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert base.execute("PRAGMA application_id").fetchone() == (0x47504B47,)
    assert base.execute('SELECT count(*) FROM "rtree_a b_geom"').fetchone() == (number,)
    table = base.execute("SELECT table_name, geometry_type_name, srs_id FROM gpkg_geometry_columns").fetchall()
    base.close()
    assert table == [("a b", "POLYGON", 25832)]


def test_flatgeobuf_and_geopackage_answer_by_place(tmp_path):
    path = write(tmp_path / "map.tif", blobs(3, 60, 50, 5))
    for suffix in ("gpkg", "fgb"):
        vectorize(path, tmp_path / f"map.{suffix}")
        info = pyogrio.read_info(tmp_path / f"map.{suffix}", layer="map")
        assert info["capabilities"]["fast_spatial_filter"]
        assert (info["crs"], info["geometry_type"], info["layer_name"]) == (UTM, "Polygon", "map")


def test_geoparquet_declares_its_crs_and_a_box_per_row(tmp_path):
    vectorize(write(tmp_path / "map.tif", blobs(3, 60, 50, 5)), tmp_path / "map.parquet")
    table = pq.read_table(tmp_path / "map.parquet")
    geo = json.loads(table.schema.metadata[b"geo"])
    column = geo["columns"]["geometry"]
    outlines = shapely.from_wkb(table["geometry"].to_pylist())
    assert (geo["version"], geo["primary_column"], column["encoding"]) == ("1.1.0", "geometry", "WKB")
    assert column["geometry_types"] == ["Polygon"]
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 25832}
    assert column["covering"]["bbox"]["xmax"] == ["bbox", "xmax"]
    assert column["bbox"] == shapely.total_bounds(outlines).tolist()
    boxes = [tuple(row[name] for name in ("xmin", "ymin", "xmax", "ymax")) for row in table["bbox"].to_pylist()]
    assert boxes == [tuple(bounds) for bounds in shapely.bounds(outlines).tolist()]
    assert shapely.is_ccw(shapely.get_exterior_ring(outlines)).all()


def test_a_crs_without_a_code_is_kept(tmp_path):
    crs = CRS.from_proj4("+proj=tmerc +lat_0=50 +lon_0=11.5 +k=0.99 +x_0=1000 +ellps=GRS80 +units=m")
    path = write(tmp_path / "map.tif", blobs(1, 20, 20), crs=crs)
    for suffix in ("gpkg", "fgb"):
        vectorize(path, tmp_path / f"map.{suffix}")
        kept = CRS.from_user_input(pyogrio.read_info(tmp_path / f"map.{suffix}", layer="map")["crs"]).to_dict()
        assert (kept["proj"], kept["lon_0"], kept["k"]) == ("tmerc", 11.5, 0.99)
    vectorize(path, tmp_path / "map.parquet")
    column = json.loads(pq.read_metadata(tmp_path / "map.parquet").metadata[b"geo"])["columns"]["geometry"]
    assert CRS.from_user_input(json.dumps(column["crs"])).to_dict()["lon_0"] == 11.5


def test_geojson_is_longitude_and_latitude_with_rings_counterclockwise(tmp_path):
    index = np.zeros((20, 20), np.uint8)
    index[5:10, 5:10] = 3
    vectorize(write(tmp_path / "map.tif", index), tmp_path / "map.geojson")
    collection = json.loads((tmp_path / "map.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    by_class = {feature["properties"]["class_name"]: feature for feature in collection["features"]}
    assert set(by_class) == {"road", "tree"}
    assert by_class["tree"]["properties"] == {"class_index": 3, "class_name": "tree", "area": 6.25}
    ring = by_class["tree"]["geometry"]["coordinates"][0]
    assert shapely.LinearRing(ring).is_ccw
    square = {"type": "Point", "coordinates": (500_002.5, 5_399_997.5)}
    west_north = transform_geom(UTM, "EPSG:4326", square)["coordinates"]
    assert min(np.hypot(*(np.array(point) - west_north)) for point in ring) < 1e-7
    assert not shapely.LinearRing(by_class["road"]["geometry"]["coordinates"][1]).is_ccw


@pytest.mark.parametrize(
    "transform", [Affine(3, 1, 100, 2, -4, 200), Affine(0.5, 0, 0, 0, 0.5, 0), Affine(0, 2, 50, 2, 0, 50)], ids=str
)
def test_rotated_and_mirrored_grids_give_polygons_where_the_pixels_are(tmp_path, transform):
    index = blobs(2, 30, 20, 3)
    vectorize(write(tmp_path / "map.tif", index, transform=transform), tmp_path / "map.parquet", simplify=0, rows=7)
    columns = read(tmp_path / "map.parquet")
    assert sum(columns["area"]) == pytest.approx((index != IGNORE).sum() * abs(transform.determinant))
    assert all(outline.exterior.is_ccw for outline in columns["outline"])
    rows, cols = np.nonzero(index != IGNORE)
    a, b, c, d, e, f = tuple(transform)[:6]
    points = shapely.points(a * (cols + 0.5) + b * (rows + 0.5) + c, d * (cols + 0.5) + e * (rows + 0.5) + f)
    point, polygon = shapely.STRtree(columns["outline"]).query(points, "within")
    assert np.array_equal(point, np.arange(len(points)))
    assert np.array_equal(np.array(columns["class_index"])[polygon], index[rows, cols])


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", Affine(1e-4, 0, 10, 0, -1e-4, 60)),
        ("EPSG:4326", Affine(0.05, 0.01, -70, 0.01, -0.05, -30)),
        ("EPSG:3857", Affine(30, 0, 1_113_000, 0, -30, 8_399_000)),
        ("EPSG:3395", Affine(30, 0, 1_113_000, 0, -30, 8_399_000)),
    ],
)
def test_the_area_in_degrees_and_in_mercator_is_that_on_the_ground(tmp_path, crs, transform):
    index = blobs(4, 40, 30, 4)
    vectorize(write(tmp_path / "map.tif", index, crs=crs, transform=transform), tmp_path / "map.parquet", simplify=0)
    columns = read(tmp_path / "map.parquet")
    equal_area = [
        shapely.transform(
            shapely.segmentize(outline, abs(transform.a) / 4),
            lambda points: np.stack(reproject(crs, "EPSG:6933", points[:, 0], points[:, 1]), axis=1),
        ).area
        for outline in columns["outline"]
    ]
    assert columns["area"] == pytest.approx(equal_area, rel=1e-5)


def test_the_area_of_the_earth_is_that_of_wgs_84():
    world = np.array([shapely.box(-180, -90, 180, 90)])
    zones = shapely.segmentize(world, 0.5)
    area = ground_areas(zones, CRS.from_epsg(4326), Affine(1, 0, -180, 0, -1, 90))
    assert area == pytest.approx([510_065_621_724_088.44], rel=1e-9)


def test_feet_are_turned_into_square_metres(tmp_path):
    path = write(
        tmp_path / "map.tif", np.zeros((10, 10), np.uint8), crs="EPSG:2263", transform=Affine(1, 0, 9e5, 0, -1, 2e5)
    )
    vectorize(path, tmp_path / "map.parquet")
    assert read(tmp_path / "map.parquet")["area"] == pytest.approx([100 * 0.3048006096**2])


def test_min_area_is_in_square_metres_and_leaves_no_gap(tmp_path):
    index = np.zeros((20, 20), np.uint8)
    index[0:2, 0:2], index[10:14, 10:14] = 1, 1
    path = write(tmp_path / "map.tif", index)
    assert vectorize(path, tmp_path / "a.gpkg", min_area=1.0) == 3
    assert vectorize(path, tmp_path / "b.gpkg", min_area=1.01) == 2
    assert sum(read(tmp_path / "b.gpkg")["area"]) == 100


def test_min_area_on_the_ground_grows_with_the_latitude(tmp_path):
    index = np.zeros((1000, 20), np.uint8)
    index[10, 10] = index[990, 10] = 1
    place = {"crs": "EPSG:4326", "transform": Affine(0.05, 0, 10, 0, -0.05, 60)}
    path = write(tmp_path / "map.tif", index, **place)
    south, north = (np.cos(np.radians(latitude)) * (0.05 * 111_200) ** 2 for latitude in (10.5, 59.5))
    assert vectorize(path, tmp_path / "a.gpkg", min_area=(south + north) / 2) == 2
    assert read(tmp_path / "a.gpkg")["outline"][1 - read(tmp_path / "a.gpkg")["class_index"].index(0)].centroid.y < 11


def test_the_default_simplifies_and_keeps_the_sum_of_areas(tmp_path):
    index = smooth(7, 200, 150)
    path = write(tmp_path / "map.tif", index)
    assert vectorize(path, tmp_path / "a.parquet") == vectorize(path, tmp_path / "b.parquet", simplify=0)
    ours, exact = (read(tmp_path / f"{name}.parquet") for name in "ab")
    assert shapely.coverage_is_valid(ours["outline"])
    assert sum(ours["area"]) == pytest.approx(index.size * 0.25)
    assert shapely.get_num_coordinates(ours["outline"]).sum() < shapely.get_num_coordinates(exact["outline"]).sum() / 2


def test_confidence_in_steps_or_with_a_scale_is_read_as_meant_and_null_where_it_is_masked(tmp_path):
    index = np.zeros((10, 20), np.uint8)
    index[:, 10:] = 1
    path = write(tmp_path / "map.tif", index)
    steps = np.full((10, 20), 200, np.uint8)
    steps[:, 10:] = 255
    ours = write(tmp_path / "steps.tif", steps, SCALE="value / 250")
    assert vectorize(path, tmp_path / "a.gpkg", confidence=ours) == 2
    assert dict(zip(*(read(tmp_path / "a.gpkg")[key] for key in ("class_index", "confidence")), strict=True))[
        0
    ] == pytest.approx(0.8)
    base = sqlite3.connect(tmp_path / "a.gpkg")
    assert base.execute("SELECT confidence FROM a WHERE class_index = 1").fetchall() == [(None,)]
    base.close()
    scaled = write(tmp_path / "scaled.tif", steps, nodata=None)
    with rasterio.open(scaled, "r+") as file:
        file.scales, file.offsets = (0.002,), (0.1,)
    vectorize(path, tmp_path / "b.parquet", confidence=scaled)
    assert sorted(read(tmp_path / "b.parquet")["confidence"]) == pytest.approx([0.5, 0.61])


@pytest.mark.parametrize("way", ["tag", "scale"])
def test_confidences_of_several_maps_are_in_the_scale_of_their_files(tmp_path, way):
    maps, scores = [], []
    for number, value in enumerate((200, 100)):
        place = HALF_METRE * Affine.translation(20 * number, 0)
        tags = {"SCALE": "value / 250"} if way == "tag" else {}
        maps.append(write(tmp_path / f"m{number}.tif", np.full((10, 20), number, np.uint8), transform=place))
        pixels = np.full((10, 20), value, np.uint8)
        scores.append(write(tmp_path / f"c{number}.tif", pixels, transform=place, **tags))
        if way == "scale":
            with rasterio.open(scores[-1], "r+") as file:
                file.scales = (0.004,)
    vectorize(maps, tmp_path / "a.parquet", confidence=scores)
    found = read(tmp_path / "a.parquet")
    assert dict(zip(found["class_index"], found["confidence"], strict=True)) == pytest.approx({0: 0.8, 1: 0.4})
    with rasterio.open(scores[1], "r+") as file:
        file.scales = (0.5,)
    with pytest.raises(RasterError, match="give maps of one kind"):
        vectorize(maps, tmp_path / "b.parquet", confidence=scores)


def test_a_map_without_a_place_is_in_pixels_and_no_geojson(tmp_path):
    path = write(tmp_path / "map.tif", np.zeros((10, 20), np.uint8), crs=None, names=None)
    for suffix in ("gpkg", "fgb", "parquet"):
        vectorize(path, tmp_path / f"map.{suffix}")
        columns = read(tmp_path / f"map.{suffix}")
        assert (columns["class_index"], columns["class_name"], columns["area"]) == ([0], ["class 0"], [200])
        assert columns["outline"][0].bounds == (0, 0, 20, 10)
    assert json.loads(pq.read_metadata(tmp_path / "map.parquet").metadata[b"geo"])["columns"]["geometry"]["crs"] is None
    assert pyogrio.read_info(tmp_path / "map.fgb")["crs"] is None
    with pytest.raises(RasterError, match=r"map\.tif has no CRS"):
        vectorize(path, tmp_path / "map.geojson")


def test_what_cannot_be_meant_is_refused_and_leaves_nothing(tmp_path, write_raster):
    path = write(tmp_path / "map.tif", np.zeros((10, 20), np.uint8))
    other = write(tmp_path / "other.tif", np.zeros((10, 21), np.float32))
    rgb = write_raster("rgb.tif", np.ones((3, 10, 20), np.uint8))
    before = sorted(entry.name for entry in tmp_path.iterdir())
    for message, call in {
        r"must end in \.gpkg": lambda: vectorize(path, tmp_path / "map.shp"),
        "min_area is -1": lambda: vectorize(path, tmp_path / "map.gpkg", min_area=-1),
        "simplify is nan": lambda: vectorize(path, tmp_path / "map.gpkg", simplify=float("nan")),
        "rows is 0": lambda: vectorize(path, tmp_path / "map.gpkg", rows=0),
    }.items():
        with pytest.raises(ConfigError, match=message):
            call()
    for message, call in {
        r"rgb\.tif has 3 band": lambda: vectorize(rgb, tmp_path / "map.gpkg"),
        "a class map is one of uint8": lambda: vectorize(other, tmp_path / "map.gpkg"),
        "does not exist": lambda: vectorize(tmp_path / "nowhere.tif", tmp_path / "map.gpkg"),
        r"none\.tif does not exist": lambda: vectorize(path, tmp_path / "map.gpkg", confidence=tmp_path / "none.tif"),
        "must have the same size": lambda: vectorize(path, tmp_path / "map.gpkg", confidence=other),
        r"rgb\.tif has 3 bands; a confidence map": lambda: vectorize(path, tmp_path / "map.gpkg", confidence=rgb),
    }.items():
        with pytest.raises(RasterError, match=message):
            call()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failure_on_the_way_is_raised_as_it_is_and_leaves_the_old_file(tmp_path, suffix):
    path = write(tmp_path / "map.tif", blobs(0, 30, 30))
    out = tmp_path / f"map.{suffix}"
    vectorize(path, out)
    before = out.read_bytes()

    def stop(done: int, _: int) -> None:
        if done > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vectorize(path, out, rows=10, progress=stop)
    assert out.read_bytes() == before
    assert {entry.suffix for entry in tmp_path.iterdir()} - {".qml"} == {".tif", out.suffix}


# A limit on the size of files stands in for a full disk, up to the last byte: that is where GDAL is silent.
_FULL_DISK = """
import resource, sys
from pathlib import Path
from rs_biformer.errors import RasterError
from rs_biformer.raster.vector import vectorize

path, out = sys.argv[1], Path(sys.argv[2])
vectorize(path, out, rows=50)
size = out.stat().st_size
out.unlink()
out.with_suffix(".qml").unlink(missing_ok=True)
for limit in (100, size // 3, size - 20_000, size - 100, size - 2):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        vectorize(path, out, rows=50)
    except RasterError as error:
        assert str(error).startswith(f"{out} cannot be written: "), error
        print("refused")
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="this system has no limit on file sizes")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_that_fills_up_is_an_error_and_nothing_is_left(tmp_path, suffix):
    path = write(tmp_path / "map.tif", blobs(0, 200, 200, 2))
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(_FULL_DISK), path, tmp_path / "out" / f"map.{suffix}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["refused"] * 5), done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_map_of_noise_is_taken_in_lower_bands(tmp_path, monkeypatch):
    path = write(tmp_path / "map.tif", blobs(0, 30, 20))
    vectorize(path, tmp_path / "a.parquet", simplify=0)
    monkeypatch.setattr(tracing, "_SLAB_BORDERS", 100)
    seen: list[int] = []
    vectorize(path, tmp_path / "b.parquet", simplify=0, progress=lambda done, _: seen.append(done))
    assert len(seen) > 5 and seen[-1] == 30
    assert by_place(read(tmp_path / "a.parquet")) == by_place(read(tmp_path / "b.parquet"))


def test_progress_counts_the_rows(tmp_path):
    seen: list[tuple[int, int]] = []
    path = write(tmp_path / "map.tif", blobs(0, 30, 10))
    vectorize(path, tmp_path / "a.gpkg", rows=12, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(12, 30), (24, 30), (30, 30)]


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    path = write(tmp_path / "map.tif", np.zeros((10, 20), np.uint8))
    scores = write(tmp_path / "scores.tif", np.ones((10, 20), np.float32))
    options = ["--out", str(tmp_path / "a.fgb"), "--min-area", "10", "--simplify", "2", "--confidence", str(scores)]
    command.run(parser.parse_args([str(path), *options]))
    assert capsys.readouterr().out == f"1 polygon(s) written to {tmp_path / 'a.fgb'}\n"
    assert read(tmp_path / "a.fgb")["confidence"] == [1]
