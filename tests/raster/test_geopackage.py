"""Polygons in a GeoPackage that holds other things or that another program has open; how GIS programs draw them."""

import resource
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from every_command import content
from rasterio.crs import CRS
from rasterio.transform import from_origin

from rs_biformer.errors import RasterError
from rs_biformer.raster.features import write_layer
from rs_biformer.raster.metadata import class_tags
from rs_biformer.raster.vector import vectorize

NAMES = ("ground", "roof", "tree")
UTM = "EPSG:32633"


def write_map(path: Path, size: int = 20, crs: str | None = UTM, names: tuple[str, ...] = NAMES) -> Path:
    """A map of squares, each of one class."""
    classes = np.random.default_rng(size).integers(0, 3, (100 // size, 100 // size))
    place = {"crs": crs, "transform": from_origin(5e5, 5e6, 1, 1)}
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=100, width=100, dtype="uint8", nodata=255, **place
    ) as file:
        file.write(np.kron(classes, np.ones((size, size))).astype(np.uint8), 1)
        file.write_colormap(1, {index: (10 * index, 20, 30, 255) for index in range(3)})
        if names:
            file.update_tags(**class_tags(names))
    return path


def features(path: Path, layer: str) -> list[tuple[str, int, bytes]]:
    meta, _, outlines, fields = pyogrio.raw.read(path, layer=layer)
    columns = dict(zip(meta["fields"], fields, strict=True))
    return sorted(
        (str(name), int(index), shapely.to_wkb(shapely.normalize(shapely.from_wkb(outline))))
        for name, index, outline in zip(columns["class_name"], columns["class_index"], outlines, strict=True)
    )


def names(path: Path) -> list[str]:
    return sorted(pyogrio.list_layers(path)[:, 0].tolist())


@pytest.fixture
def project(tmp_path) -> Path:
    """Somebody's file: two layers, one of them in a reference system of its own."""
    path = tmp_path / "project.gpkg"
    points = shapely.to_wkb(shapely.points(np.arange(20.0).reshape(10, 2)))
    for layer, crs in (("field_points", UTM), ("site", "+proj=tmerc +lat_0=49.3 +lon_0=8.7 +k=0.99997 +ellps=GRS80")):
        pyogrio.raw.write(
            path, points, [np.arange(10)], ["id"], layer=layer, geometry_type="Point", crs=crs, driver="GPKG"
        )
    return path


@pytest.mark.parametrize("crs", [UTM, "EPSG:25832", "+proj=laea +lat_0=51 +lon_0=10 +ellps=GRS80", None])
def test_a_layer_is_added_beside_those_of_others_as_it_would_be_alone(tmp_path, project, crs):
    path = write_map(tmp_path / "a.tif", crs=crs)
    vectorize(path, tmp_path / "alone.gpkg", layer="polygons")
    before = {layer: pyogrio.raw.read(project, layer=layer)[2].tolist() for layer in ("field_points", "site")}
    systems = {layer: pyogrio.read_info(project, layer=layer)["crs"] for layer in before}
    vectorize(path, project, layer="polygons")
    assert set(names(project)) == {"field_points", "site", "polygons", "layer_styles"}
    assert features(project, "polygons") == features(tmp_path / "alone.gpkg", "polygons")
    found, alone = (pyogrio.read_info(one, layer="polygons") for one in (project, tmp_path / "alone.gpkg"))
    assert found["crs"] == alone["crs"]
    assert found["total_bounds"] == alone["total_bounds"]
    assert found["capabilities"]["fast_spatial_filter"]
    for layer, geometry in before.items():
        assert pyogrio.raw.read(project, layer=layer)[2].tolist() == geometry
        assert pyogrio.read_info(project, layer=layer)["crs"] == systems[layer]
    with closing(sqlite3.connect(project)) as database, database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        numbers = {blob[4:8] for (blob,) in database.execute("SELECT geom FROM polygons")}
        (number,) = database.execute("SELECT srs_id FROM gpkg_geometry_columns WHERE table_name='polygons'").fetchone()
    assert numbers == {number.to_bytes(4, "little", signed=True)}


def test_a_box_finds_the_polygons_of_an_added_layer(tmp_path, project):
    vectorize(write_map(tmp_path / "a.tif"), project, layer="polygons", simplify=0)
    box = (500000.0, 4999990.0, 500010.0, 5000000.0)
    near = pyogrio.raw.read(project, layer="polygons", bbox=box)[2]
    every = shapely.from_wkb(pyogrio.raw.read(project, layer="polygons")[2])
    assert len(near) == shapely.intersects(every, shapely.box(*box)).sum() > 0


def test_a_layer_of_ours_is_replaced_and_nothing_else(tmp_path, project):
    for size in (50, 10):
        number = vectorize(write_map(tmp_path / f"{size}.tif", size), project, layer="polygons")
    vectorize(tmp_path / "10.tif", tmp_path / "alone.gpkg", layer="polygons")
    assert len(features(project, "polygons")) == number
    assert features(project, "polygons") == features(tmp_path / "alone.gpkg", "polygons")
    assert set(names(project)) == {"field_points", "site", "polygons", "layer_styles"}


def test_a_layer_of_others_is_not_replaced(tmp_path, project):
    before = project.read_bytes()
    with pytest.raises(RasterError, match=r"project\.gpkg has a layer site that holds no polygons .*--layer"):
        vectorize(write_map(tmp_path / "a.tif"), project, layer="site")
    assert project.read_bytes() == before


@pytest.mark.parametrize("content", [b"no database at all" * 100, None])
def test_what_is_no_geopackage_is_not_replaced(tmp_path, content):
    out = tmp_path / "a.gpkg"
    if content is None:
        with closing(sqlite3.connect(out)) as database, database:
            database.execute("CREATE TABLE notes (text)")
    else:
        out.write_bytes(content)
    before = out.read_bytes()
    with pytest.raises(RasterError, match="no GeoPackage.*choose another name"):
        vectorize(write_map(tmp_path / "a.tif"), out)
    assert out.read_bytes() == before


def test_a_program_that_died_with_a_write_ahead_log_leaves_a_file_that_can_be_written(tmp_path):
    out = tmp_path / "town.gpkg"
    vectorize(write_map(tmp_path / "first.tif", 50), out)
    script = (
        "import sqlite3, os, sys; c = sqlite3.connect(sys.argv[1]); c.execute('pragma journal_mode=wal');"
        "c.execute(\"update gpkg_contents set description='mine'\"); c.commit(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", script, out], check=False)
    assert out.with_name("town.gpkg-wal").stat().st_size > 0
    number = vectorize(write_map(tmp_path / "second.tif", 10), out)
    with closing(sqlite3.connect(out)) as database, database:
        assert database.execute("SELECT count(*) FROM town").fetchone() == (number,)
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_program_that_reads_in_the_meantime_sees_the_old_layer_and_then_the_new_one(tmp_path):
    out = tmp_path / "town.gpkg"
    old = vectorize(write_map(tmp_path / "first.tif", 50), out)
    with closing(sqlite3.connect(out)) as reader, reader:
        reader.execute("PRAGMA journal_mode=wal")
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM town").fetchone() == (old,)
        new = vectorize(write_map(tmp_path / "second.tif", 10), out)
        assert reader.execute("SELECT count(*) FROM town").fetchone() == (old,)
        reader.rollback()
        assert reader.execute("SELECT count(*) FROM town").fetchone() == (new,)
    reader.close()


def test_a_program_that_is_writing_is_not_disturbed(tmp_path, monkeypatch):
    monkeypatch.setattr("rs_biformer.raster.geopackage._BUSY", 0.1)
    out = tmp_path / "town.gpkg"
    old = vectorize(write_map(tmp_path / "first.tif", 50), out)
    writer = sqlite3.connect(out, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(RasterError, match=r"town\.gpkg cannot be written: another program is writing to it"):
        vectorize(write_map(tmp_path / "second.tif", 10), out)
    writer.execute("COMMIT")
    assert writer.execute("SELECT count(*) FROM town").fetchone() == (old,)
    writer.close()


def test_an_error_in_the_middle_leaves_the_file_as_it_was(tmp_path, project, monkeypatch):
    vectorize(write_map(tmp_path / "first.tif", 50), project, layer="polygons")
    before = features(project, "polygons")

    def fail(*_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("rs_biformer.raster.geopackage._copy_rows", fail)
    with pytest.raises(ZeroDivisionError):
        vectorize(write_map(tmp_path / "second.tif", 10), project, layer="polygons")
    assert features(project, "polygons") == before
    assert {"field_points", "site"} < set(names(project))


def test_a_new_geopackage_is_of_version_1_3(tmp_path):
    vectorize(write_map(tmp_path / "a.tif"), tmp_path / "a.gpkg")
    with closing(sqlite3.connect(tmp_path / "a.gpkg")) as database, database:
        assert database.execute("PRAGMA user_version").fetchone() == (10300,)


def style(path: Path, layer: str) -> str:
    with closing(sqlite3.connect(path)) as database, database:
        rows = database.execute(
            "SELECT styleQML, useAsDefault, f_geometry_column FROM layer_styles WHERE f_table_name = ?", [layer]
        ).fetchall()
    ((text, default, column),) = rows
    assert default == 1 and column in ("geom", "geometry")
    return text


def test_the_colours_of_the_map_are_the_style_of_the_layer_and_stand_beside_a_flatgeobuf(tmp_path):
    path = write_map(tmp_path / "a.tif", names=("ground", "roof & <eave>", "tree"))
    vectorize(path, tmp_path / "a.gpkg")
    vectorize(path, tmp_path / "a.fgb")
    text = style(tmp_path / "a.gpkg", "a")
    assert 'value="10,20,30,255"' in text and 'label="roof &amp; &lt;eave&gt;"' in text
    assert (tmp_path / "a.qml").read_text().startswith(text)


def test_an_edited_style_is_kept_and_one_of_ours_is_renewed(tmp_path, caplog):
    path, out = write_map(tmp_path / "a.tif"), tmp_path / "a.gpkg"
    vectorize(path, out)
    vectorize(path, out)
    vectorize(write_map(tmp_path / "b.tif", names=("ground", "house", "tree")), out)
    assert 'label="house"' in style(out, "a")
    assert not caplog.text
    with closing(sqlite3.connect(out)) as database, database:
        database.execute("UPDATE layer_styles SET styleQML = '<qgis>mine</qgis>'")
    vectorize(path, out)
    assert style(out, "a") == "<qgis>mine</qgis>"
    assert "a.gpkg was edited and is kept" in caplog.text


def test_a_map_without_names_gets_no_style(tmp_path):
    vectorize(write_map(tmp_path / "a.tif", names=()), tmp_path / "a.gpkg")
    assert names(tmp_path / "a.gpkg") == ["a"]


def lonlat(path: Path) -> np.ndarray:
    info = pyogrio.read_info(path, layer=path.stem)
    return np.array(rasterio.warp.transform_bounds(info["crs"], "EPSG:4326", *info["total_bounds"]))


@pytest.mark.parametrize(
    ("crs", "corner", "pixel"),
    [
        ("+proj=utm +zone=17 +datum=NAD83 +units=us-ft", (1_500_000, 14_000_000), 1.0),
        ("+proj=utm +zone=17 +datum=NAD83 +units=ft", (1_500_000, 14_000_000), 1.0),
        ("+proj=utm +zone=32 +datum=WGS84 +units=km", (500, 5500), 2e-4),
        ("+proj=utm +zone=33 +south +datum=WGS84 +units=us-ft", (1_500_000, 26_000_000), 1.0),
        ("+proj=tmerc +lat_0=0 +lon_0=9 +k=0.9996 +x_0=500000 +y_0=0 +datum=WGS84 +units=ft", (1.6e6, 1.7e7), 1.0),
        ("EPSG:2263", (980_000, 200_000), 1.0),
        (UTM, (5e5, 5e6), 1.0),
    ],
)
def test_polygons_lie_where_their_map_lies_whatever_its_unit(tmp_path, crs, corner, pixel):
    path = tmp_path / "a.tif"
    values = np.zeros((20, 30), np.uint8)
    place = {"crs": crs, "transform": from_origin(*corner, pixel, pixel)}
    with rasterio.open(path, "w", driver="GTiff", count=1, height=20, width=30, dtype="uint8", **place) as file:
        file.write(values, 1)
        true = np.array(rasterio.warp.transform_bounds(file.crs, "EPSG:4326", *file.bounds))
    areas = []
    for suffix in ("gpkg", "fgb"):
        out = tmp_path / f"a.{suffix}"
        vectorize(path, out)
        np.testing.assert_allclose(lonlat(out), true, atol=1e-7)
        areas.append(float(pyogrio.raw.read(out, layer="a")[3][2][0]))
    metres = CRS.from_user_input(crs).linear_units_factor[1]
    np.testing.assert_allclose(areas, 600 * (pixel * metres) ** 2, rtol=1e-6)


def test_a_map_that_control_points_place_is_taken_to_the_ground(tmp_path, caplog):
    from rasterio.control import GroundControlPoint

    path = tmp_path / "a.tif"
    values = np.zeros((200, 256), np.uint8)
    values[:100, :128] = 1
    points = [
        GroundControlPoint(row, col, 496_000 + col * 0.2, 5_420_000 - row * 0.2) for row in (0, 200) for col in (0, 256)
    ]
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=200, width=256, dtype="uint8", gcps=points, crs="EPSG:25832"
    ) as file:
        file.write(values, 1)
    vectorize(path, tmp_path / "a.gpkg", min_area=1)
    info = pyogrio.read_info(tmp_path / "a.gpkg", layer="a")
    assert info["crs"] == "EPSG:25832"
    np.testing.assert_allclose(info["total_bounds"], (496_000, 5_419_960, 496_051.2, 5_420_000), atol=1e-3)
    areas = sorted(pyogrio.raw.read(tmp_path / "a.gpkg", layer="a")[3][2].tolist())
    np.testing.assert_allclose(areas, [128 * 100 * 0.04, (200 * 256 - 128 * 100) * 0.04], rtol=1e-4)
    outlines = shapely.from_wkb(pyogrio.raw.read(tmp_path / "a.gpkg", layer="a")[2])
    assert all(shapely.is_ccw(shapely.get_exterior_ring(outlines)))
    assert "placed by control points alone" in caplog.text


@pytest.fixture
def quarters(tmp_path) -> list[Path]:
    """A map, and the same one in four files."""
    path = write_map(tmp_path / "whole.tif", 10)
    parts = []
    with rasterio.open(path) as file:
        for row in (0, 37):
            for col in (0, 61):
                window = rasterio.windows.Window(col, row, (61, 39)[col > 0], (37, 63)[row > 0])
                part = tmp_path / f"part_{row}_{col}.tif"
                with rasterio.open(
                    part,
                    "w",
                    **file.profile
                    | {"height": window.height, "width": window.width, "transform": file.window_transform(window)},
                ) as sink:
                    sink.write(file.read(window=window))
                    sink.write_colormap(1, file.colormap(1))
                    sink.update_tags(**file.tags())
                parts.append(part)
    return [path, *parts]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_several_maps_become_the_layer_of_the_whole(tmp_path, quarters, order):
    whole, *parts = quarters
    vectorize(whole, tmp_path / "a.gpkg", layer="polygons")
    vectorize([parts[number] for number in order], tmp_path / "b.gpkg", layer="polygons")
    assert features(tmp_path / "b.gpkg", "polygons") == features(tmp_path / "a.gpkg", "polygons")


def test_where_maps_overlap_the_first_counts_and_masked_pixels_hide_nothing(tmp_path):
    paths = []
    for name, value in (("a", 0), ("b", 1)):
        values = np.full((10, 10), value, np.uint8)
        values[:, :2] = 255 if name == "a" else value
        with rasterio.open(
            tmp_path / f"{name}.tif",
            "w",
            driver="GTiff",
            count=1,
            height=10,
            width=10,
            dtype="uint8",
            nodata=255,
            crs=UTM,
            transform=from_origin(5e5, 5e6, 1, 1),
        ) as file:
            file.write(values, 1)
        paths.append(tmp_path / f"{name}.tif")
    for order, areas in ((paths, [20.0, 80.0]), (paths[::-1], [100.0])):
        vectorize(order, tmp_path / "out.fgb", simplify=0)
        assert sorted(pyogrio.raw.read(tmp_path / "out.fgb")[3][2].tolist()) == areas


def test_maps_that_cannot_be_one_layer_are_refused(tmp_path, quarters):
    whole, *parts = quarters
    other = write_map(tmp_path / "other.tif", crs="EPSG:32632")
    with pytest.raises(RasterError, match="different CRSs"):
        vectorize([whole, other], tmp_path / "out.gpkg")
    with rasterio.open(parts[0], "r+") as file:
        file.transform = file.transform * file.transform.translation(0.5, 0)
    with pytest.raises(RasterError, match=r"part_0_0\.tif does not lie on the pixels of .*whole\.tif.*0\.5 pixels"):
        vectorize([whole, parts[0]], tmp_path / "out.gpkg")
    renamed = write_map(tmp_path / "renamed.tif", names=("a", "b", "c"))
    with pytest.raises(RasterError, match="maps of other classes"):
        vectorize([whole, renamed], tmp_path / "out.gpkg")
    assert not (tmp_path / "out.gpkg").exists()


def test_a_layer_of_which_a_full_disk_has_taken_the_tail_or_the_index_is_not_handed_over(tmp_path):
    """GDAL says nothing where the disk is full when it closes a file; a bound on the size of files stands in for it."""
    squares = shapely.box(5e5 + 10 * np.arange(40.0), 5e6, 5e5 + 10 * np.arange(40.0) + 5, 5e6 + 5)
    columns = {"number": np.arange(40), "name": np.array(["n"] * 40, object)}

    def write(name: str) -> Path:
        about = {"layer": "squares", "qml": "<qgis/>", "what": "squares", "advice": "no"}
        write_layer(tmp_path / name, squares, columns, CRS.from_epsg(32633), **about)
        return tmp_path / name

    most = write("whole.gpkg").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    refused = 0
    for size in range(0, most, 4096):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            write(f"{size}.gpkg")
        except RasterError as error:
            refused += 1
            assert f"{size}.gpkg cannot be written" in str(error) and len(str(error)) < 500
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        if (path := tmp_path / f"{size}.gpkg").exists():
            assert pyogrio.read_info(path, layer="squares")["capabilities"]["fast_spatial_filter"], size
            assert content(path) == content(tmp_path / "whole.gpkg"), size
    assert refused > 15
    assert all(path.suffix == ".gpkg" for path in tmp_path.iterdir())


def test_zones_written_beside_somebody_s_layers_have_an_index_and_keep_their_parts(project):
    parts = np.array(
        [shapely.box(0, 0, 1, 1), shapely.MultiPolygon([shapely.box(2, 0, 3, 1), shapely.box(4, 0, 5, 1)])]
    )
    about = {"layer": "zones", "what": "zones", "advice": "no", "known_by": ["largest"]}
    for number in range(2):  # the second replaces the first, which has other columns
        columns = {"largest": np.array(["a", "b"], object), f"other{number}": np.arange(2)}
        write_layer(project, parts, columns, CRS.from_string(UTM), **about)
    meta, _, shapes, values = pyogrio.raw.read(project, layer="zones")
    assert list(meta["fields"]) == ["largest", "other1"] and values[0].tolist() == ["a", "b"]
    assert [shapely.area(shape) for shape in shapely.from_wkb(shapes)] == [1, 2]
    assert names(project) == ["field_points", "site", "zones"]
