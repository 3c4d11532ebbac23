import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from rs_biformer.data.index import Manifest, SceneRecord, TileIndex, TileTable
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.schema import PRESETS

SCHEMA = PRESETS["vaihingen"]
UTM32 = CRS.from_epsg(25832).to_wkt()
UTM60 = CRS.from_epsg(32660).to_wkt()


def record(name, folder="/scenes", crs=UTM32, transform=(0.5, 0.0, 5e5, 0.0, -0.5, 5.4e6), images=None, **source):
    return SceneRecord(
        name, images or (f"{folder}/{name}.tif",), f"{folder}/{name}_label.tif", 600, 600, crs, transform, **source
    )


def make_index(scenes, rows):
    """An index of windows given as (scene, row, col, size, split)."""
    scene, row, col, size, split = zip(*rows, strict=True)
    count = len(rows)
    manifest = Manifest(SCHEMA, 256, 0.5, ("r", "g"), "uint8", (1.0, 2.0), (3.0, 4.0), 0.5, 0, tuple(scenes))
    columns = (np.array(part, np.int64) for part in (scene, row, col, size, size))
    histogram = (np.arange(count * len(SCHEMA)) % 15).reshape(count, -1)
    return TileIndex(manifest, TileTable(*columns, np.array(split, "<U5"), histogram, np.linspace(0.1, 1, count)))


def three_windows():
    return make_index(
        [record("a"), record("b", crs=None)], [(0, 0, 0, 256, "train"), (0, 300, 44, 256, "val"), (1, 1, 2, 9, "test")]
    )


def mixed_windows():
    """Scenes in two CRSs and one without any."""
    scenes = [record("a"), record("b", crs=None), record("c", crs=UTM60)]
    return make_index(scenes, [(0, 0, 0, 256, "train"), (2, 300, 44, 256, "val"), (1, 1, 2, 9, "test")])


def test_an_index_comes_back_as_it_was_written(tmp_path):
    index = three_windows()
    again = TileIndex.read(index.write(tmp_path))
    assert again.manifest == index.manifest
    for name, column in vars(index.table).items():
        np.testing.assert_array_equal(getattr(again.table, name), column)
    assert again.window(1) == Window(300, 44, 256, 256)
    assert again.scene(2).name == "b"
    assert TileIndex.read(tmp_path).manifest == again.manifest


def test_the_same_index_gives_the_same_bytes(tmp_path):
    first, second = (three_windows().write(tmp_path / name).read_bytes() for name in ("one", "two"))
    assert first == second


def test_a_folder_that_moves_with_its_scenes_still_finds_them(tmp_path):
    folder = tmp_path / "here"
    make_index([record("a", folder=str(folder / "scenes"))], [(0, 0, 0, 256, "train")]).write(folder / "tiles")
    shutil.move(folder, tmp_path / "there")
    found = TileIndex.read(tmp_path / "there" / "tiles").manifest.scenes[0]
    assert found.images == (str(tmp_path / "there" / "scenes" / "a.tif"),)
    assert found.label == str(tmp_path / "there" / "scenes" / "a_label.tif")


def test_select_keeps_the_windows_of_one_split():
    chosen = three_windows().select("val")
    assert len(chosen) == 1
    assert chosen.window(0) == Window(300, 44, 256, 256)
    with pytest.raises(ConfigError, match="no split 'valid'; use train, val, test"):
        three_windows().select("valid")


def test_the_file_is_geoparquet_that_shows_where_the_windows_lie(tmp_path):
    path = mixed_windows().write(tmp_path)
    meta = json.loads(pq.read_metadata(path).metadata[b"geo"])
    assert meta["version"] == "1.1.0"
    column = meta["columns"][meta["primary_column"]]
    assert column["encoding"] == "WKB"
    assert column["geometry_types"] == ["Polygon"]
    assert "crs" not in column  # which is how GeoParquet says longitude and latitude
    table = pq.read_table(path)
    assert table["scene"].to_pylist() == ["a", "c", "b"]
    assert table["pixels_low vegetation"].to_pylist() == [2, 8, 14]
    drawn = shapely.from_wkb(table["geometry"].to_pylist())
    assert drawn[2] is None, "a scene without CRS has no footprint"
    # Easting 500,000 is the central meridian of zone 32, 9 degrees east; a window of 128 m is 0.00115 degrees high.
    west, south, east, north = drawn[0].bounds
    assert west == pytest.approx(9.0, abs=1e-6)
    assert north == pytest.approx(48.7533, abs=1e-3)
    assert north - south == pytest.approx(128 / 111_200, rel=0.01)
    assert (east - west) * np.cos(np.radians(north)) == pytest.approx(128 / 111_320, rel=0.01)
    assert column["bbox"] == pytest.approx(shapely.total_bounds(drawn[:2]).tolist())


def test_windows_of_scenes_in_one_crs_lie_in_it_as_rasterio_puts_their_pixels():
    """To the last digit: a program that transforms to another CRS and back may be metres off."""
    krovak = CRS.from_epsg(5514).to_wkt()
    turned = (0.1, 0.02, -743_000.125, 0.02, -0.1, -1_043_000.5)
    newer = CRS.from_epsg(5514).to_wkt(version="WKT2_2019")
    level = (0.1, 0.0, -7e5, 0.0, -0.1, -1e6)
    scenes = [record("a", crs=krovak, transform=turned), record("b", crs=newer, transform=level)]
    index = make_index(scenes, [(0, 0, 0, 256, "train"), (0, 300, 44, 256, "val"), (1, 1, 2, 9, "test")])
    polygons, crs = index.footprints()
    assert krovak != newer
    assert crs == CRS.from_epsg(5514)
    for number, polygon in enumerate(polygons):
        window, affine = index.window(number), Affine(*index.scene(number).transform)
        rows, cols = (window.row, window.row_stop), (window.col, window.col_stop)
        corners = [(rows[i], cols[j]) for i, j in ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0))]
        expected = np.column_stack(rasterio.transform.xy(affine, *zip(*corners, strict=True), offset="ul"))
        np.testing.assert_array_equal(shapely.get_coordinates(polygon), expected)


def test_the_crs_of_the_scenes_is_that_of_the_file(tmp_path):
    scenes = [record("a"), record("b", crs="EPSG:25832+5783"), record("c", crs=None)]
    scenes[1] = replace(scenes[1], crs=CRS.from_user_input("EPSG:25832+5783").to_wkt())
    path = make_index(scenes, [(0, 0, 0, 256, "train"), (1, 9, 9, 256, "train"), (2, 0, 0, 9, "val")]).write(tmp_path)
    column = json.loads(pq.read_metadata(path).metadata[b"geo"])["columns"]["geometry"]
    assert pyproj.CRS.from_json_dict(column["crs"]).to_epsg() == 25832, "heights aside"
    drawn = shapely.from_wkb(pq.read_table(path)["geometry"].to_pylist())
    assert drawn[2] is None, "a scene without CRS has no footprint"
    assert drawn[0].bounds == (5e5, 5.4e6 - 128, 5e5 + 128, 5.4e6)
    assert column["bbox"] == [5e5, 5.4e6 - 9 / 2 - 128, 5e5 + 9 / 2 + 128, 5.4e6]


def test_a_footprint_across_the_antimeridian_is_cut_there():
    scenes = [record("a", crs=UTM60, transform=(10.0, 0.0, 831_000.0, 0.0, -10.0, 10_000.0)), record("b")]
    (drawn, _), crs = make_index(scenes, [(0, 0, 0, 600, "train"), (1, 0, 0, 600, "train")]).footprints()
    assert crs == CRS.from_user_input("OGC:CRS84")
    assert drawn.geom_type == "MultiPolygon"
    for part in drawn.geoms:
        west, _, east, _ = part.bounds
        assert -180 <= west < east <= 180
        assert east - west < 0.1


def test_a_crs_of_no_known_place_gives_no_footprint():
    index = make_index([record("a", crs='LOCAL_CS["plan",UNIT["metre",1]]')], [(0, 0, 0, 256, "train")])
    assert index.footprints()[0].tolist() == [None]


def test_a_crs_without_a_transform_gives_no_footprint():
    index = make_index([record("a", transform=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0))], [(0, 0, 0, 256, "train")])
    assert index.footprints()[0].tolist() == [None]


def test_windows_that_touch_do_not_overlap():
    make_index(
        [record("a")], [(0, 0, 0, 256, "train"), (0, 0, 256, 256, "val"), (0, 256, 0, 256, "test")]
    ).require_disjoint_splits()


def test_windows_of_two_splits_that_share_a_pixel_are_refused_by_name():
    index = make_index(
        [record("a"), record("b")], [(1, 0, 0, 256, "train"), (0, 0, 0, 256, "val"), (0, 255, 255, 256, "test")]
    )
    with pytest.raises(
        ConfigError, match=r"splits overlap: the test .*row 255, col 255 of a.* val .*row 0, col 0 of a"
    ):
        index.require_disjoint_splits()


def test_one_raster_under_two_names_counts_as_one_scene(tmp_path):
    (tmp_path / "a.tif").touch()
    (tmp_path / "b.tif").symlink_to(tmp_path / "a.tif")
    scenes = [record("a", folder=str(tmp_path)), record("b", folder=str(tmp_path))]
    with pytest.raises(ConfigError, match="splits overlap"):
        make_index(scenes, [(0, 0, 0, 256, "train"), (1, 10, 10, 256, "val")]).require_disjoint_splits()


def test_chips_that_were_cut_from_overlapping_windows_are_refused():
    scenes = [record("a_r0_c0", source="a", source_col=0), record("a_r0_c255", source="a", source_col=255)]
    rows = [(0, 0, 0, 256, "train"), (1, 0, 0, 256, "val")]
    with pytest.raises(ConfigError, match="splits overlap"):
        make_index(scenes, rows).require_disjoint_splits()
    far = [scenes[0], record("a_r0_c256", source="a", source_col=256)]
    make_index(far, rows).require_disjoint_splits()


squares = st.tuples(
    st.integers(0, 1),
    st.integers(0, 30),
    st.integers(0, 30),
    st.integers(1, 8),
    st.sampled_from(["train", "val", "test"]),
)


@given(st.lists(squares, min_size=1, max_size=12))
@settings(max_examples=150)
def test_the_overlap_check_agrees_with_comparing_every_pair(rows):
    windows = [(scene, Window(row, col, size, size), split) for scene, row, col, size, split in rows]
    clash = any(a == b and s != t and one.intersects(two) for a, one, s in windows for b, two, t in windows)
    index = make_index([record("a"), record("b")], rows)
    if clash:
        with pytest.raises(ConfigError, match="splits overlap"):
            index.require_disjoint_splits()
    else:
        index.require_disjoint_splits()


def test_the_overlap_check_is_quick_for_a_million_windows():
    row, col = (part.ravel() for part in np.mgrid[0:1000, 0:1000] * 128)
    count = len(row)
    size = np.full(count, 256)
    split = np.where(row < 64_000, "train", "test").astype("<U5")
    keep = (row + 256 <= 64_000) | (row >= 64_000)
    table = TileTable(
        np.zeros(count, np.int64), row, col, size, size, split, np.zeros((count, 6), np.int64), np.ones(count)
    )
    TileIndex(three_windows().manifest, table.take(keep)).require_disjoint_splits()


def test_a_failed_write_leaves_the_old_index_and_nothing_else(tmp_path, monkeypatch):
    path = three_windows().write(tmp_path)
    before = path.read_bytes()

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(RasterError, match=r"cannot write .*tiles.parquet: No space left on device"):
        make_index([record("c")], [(0, 0, 0, 256, "train")]).write(tmp_path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["tiles.parquet"]


def test_what_is_no_index_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="no tile index .*rs-biformer tile"):
        TileIndex.read(tmp_path)
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(ConfigError, match="no readable Parquet file"):
        TileIndex.read(tmp_path / "text.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match="has no manifest"):
        TileIndex.read(tmp_path / "other.parquet")


def test_an_index_of_a_later_format_is_refused_and_later_keys_are_left_aside(caplog):
    plain = three_windows().manifest.to_dict()
    with pytest.raises(ConfigError, match="has format 99 and this version knows up to 2: update"):
        Manifest.from_dict(plain | {"version": 99})
    with pytest.raises(ConfigError, match="does not tell its format version; tile again"):
        Manifest.from_dict({key: value for key, value in plain.items() if key != "version"})
    newer = plain | {"cloud": 0.1, "scenes": [scene | {"season": "summer"} for scene in plain["scenes"]]}
    assert Manifest.from_dict(newer, "f") == three_windows().manifest
    assert caplog.messages == [f"f: left aside what this version does not know: {key!r}" for key in ("season", "cloud")]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", None, "class schema: it is null; it should be a mapping"),
        ("bands", "rg", "bands is 'rg'; it should be a list"),
        ("bands", ["r"], "1 bands need as many means"),
        ("mean", [1.0, float("nan")], r"mean\[1\] is nan; it should be a finite number"),
        ("mean", [1.0, None], r"mean\[1\] is null; it should be a number"),
        ("window", 10**9, "window is 1000000000; it should be less than or equal to 65536"),
        ("overlap", 1.0, "overlap is 1.0; it should be less than 1"),
        ("gsd", 0, "gsd is 0; it should be greater than 0"),
        ("tolerance", "0", "tolerance is '0'; it should be a whole number"),
        ("crs", {}, "crs: it is {}; it should be a list"),
        ("scenes", {}, "scenes: it is {}; it should be a list"),
        ("scenes", [3], r"scenes: \[0\] is 3; it should be a mapping"),
        ("scenes.0.crs", 1, "a scene has the crs 1; it must be null or 0 to 0"),
        ("scenes.0.crs", -1, "a scene has the crs -1"),
        ("scenes.0.crs", True, "a scene has the crs True"),
        ("scenes.0.images", [], r"scenes\[0\]: images is .*at least 1 item"),
        ("scenes.0.images", [None], r"scenes\[0\]: images\[0\] is null; it should be text"),
        ("scenes.0.label", 7, r"scenes\[0\]: label is 7; it should be text"),
        ("scenes.0.height", 2**40, r"scenes\[0\]: height is .*less than 2147483648"),
        ("scenes.0.transform", [1.0] * 5, r"scenes\[0\]: transform"),
        ("scenes.0.transform", [1e400] * 6, r"transform\[0\] is inf; it should be a finite number"),
        ("scenes.1.name", "a", "2 scenes are called 'a'"),
        ("reading", {"nodata": ["x"]}, "how the scenes were read: nodata"),
        ("statistics_of", ["x"], "statistics_of is .*; it should be text"),
    ],
)
def test_a_damaged_manifest_is_refused_in_a_line(path, value, message):
    data = three_windows().manifest.to_dict()
    *parents, last = path.split(".")
    place = data
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]
    place[int(last) if isinstance(place, list) else last] = value
    with pytest.raises(ConfigError, match=f"^f.*{message}") as caught:
        Manifest.from_dict(data, "f")
    assert "\n" not in str(caught.value)


def rewritten(path, **columns):
    """The index with other columns; None leaves one out."""
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.remove_column(place) if values is None else table.set_column(place, name, values)
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("row", None, "it lacks the column 'row'; tile again"),
        ("pixels_car", None, "it lacks the column 'pixels_car'"),
        ("row", pa.array([0.0, 1.0, 2.0]), "column 'row' is double"),
        ("row", pa.array([0, None, 1]), "column 'row' is int64 with 1 nulls"),
        ("row", pa.array(["0", "1", "2"]), "column 'row' is string"),
        ("row", pa.array([0, 345, 1]), "window 1, 256 x 256 at row 345, col 44, is not inside of a"),
        ("row", pa.array([-1, 0, 1]), "window 0, .* is not inside of a"),
        ("row", pa.array([2**63 - 1, 0, 1]), "window 0, .* is not inside of a"),
        ("height", pa.array([256, 0, 9]), "window 1, 0 x 256 .* is not inside of a"),
        ("scene", pa.array(["a", "a", "c"]), "a window is of 'c', which is none of 'a', 'b'"),
        ("scene", pa.array([0, 0, 1]), "column 'scene' is int64"),
        ("split", pa.array(["train", "validation", "test"]), "a window is of 'validation', which is none of 'train'"),
        ("valid_share", pa.array([0.5, 1.5, 0.5]), "window 1 has counts of its classes that cannot be"),
        ("valid_share", pa.array([0.5, float("nan"), 0.5]), "window 1 has counts of its classes that cannot be"),
        ("pixels_car", pa.array([1, -1, 1]), "window 1 has counts of its classes that cannot be"),
        ("pixels_car", pa.array([1, 1, 82]), "window 2 has counts of its classes that cannot be"),
        ("pixels_car", pa.array([1, 2**63 - 1, 1]), "window 1 has counts of its classes that cannot be"),
    ],
)
def test_a_damaged_table_is_refused_in_a_line(tmp_path, name, values, message):
    path = rewritten(three_windows().write(tmp_path), **{name: values})
    with pytest.raises(ConfigError, match=f"tiles.parquet: .*{message}") as caught:
        TileIndex.read(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_claims_too_many_windows_is_refused_before_they_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr("rs_biformer.data.index._MAX_ROWS", 2)
    monkeypatch.setattr(pq.ParquetFile, "read", None)
    with pytest.raises(ConfigError, match="claims 3 windows; at most 2 are allowed"):
        TileIndex.read(three_windows().write(tmp_path))


def test_a_name_that_is_no_unicode_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"\\udcff.tif' is no text in UTF-8; rename it"):
        make_index([record("a", images=("\udcff.tif",))], [(0, 0, 0, 256, "train")]).write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_index_of_0_1_0_as_it_was_first_is_read_for_good(tmp_path):
    index = TileIndex.read(OLD / "index_0_1_0.parquet")
    assert (len(index), len(index.manifest.scenes), index.manifest.bands) == (845, 5, ("red", "green", "blue"))
    assert {name: int((index.table.split == name).sum()) for name in ("train", "val", "test")} == {
        "train": 507,
        "val": 169,
        "test": 169,
    }
    # Written again it is the same but for the folders that its paths begin in.
    moved = pq.read_metadata(index.write(tmp_path)).metadata[b"rs_biformer"]
    before = pq.read_metadata(OLD / "index_0_1_0.parquet").metadata[b"rs_biformer"]
    assert json.loads(moved) | {"scenes": 0} == json.loads(before) | {"scenes": 0}


OLD = Path(__file__).parents[1] / "old"


def test_the_manifest_is_plain_json_that_names_each_crs_once():
    manifest = make_index([record("a"), record("b"), record("c", crs=None)], [(0, 0, 0, 9, "val")]).manifest
    text = json.dumps(manifest.to_dict())
    assert text.count("PROJCS") == 1
    assert Manifest.from_dict(json.loads(text)) == manifest


def test_scenes_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="2 scenes are called 'a'"):
        make_index([record("a"), record("a", folder="/elsewhere")], [(0, 0, 0, 9, "val")])


def test_an_index_can_be_read_through_a_link_to_its_folder(tmp_path):
    real = tmp_path / "deep" / "tiles"
    make_index([record("a", folder=str(tmp_path))], [(0, 0, 0, 9, "val")]).write(real)
    link = tmp_path / "link"
    link.symlink_to(real)
    assert Path(TileIndex.read(link).manifest.scenes[0].images[0]) == tmp_path / "a.tif"
