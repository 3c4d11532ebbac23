"""Areas by class, by zone and by transition, against rasterio, pyproj and shapely."""

import csv
import sqlite3
from contextlib import closing

import numpy as np
import pyarrow.parquet as pq
import pyogrio.raw
import pytest
import rasterio
import shapely
from pyproj import Geod
from rasterio.features import rasterize
from rasterio.transform import Affine

from rs_biformer.cli import main
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.jobs.summarising import Output, summarise_change, summarise_map, summarise_zones
from rs_biformer.raster.metadata import class_tags
from rs_biformer.schema import IGNORE

NAMES = ("ground", "roof", "tree")
UTM = Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)
HEIGHT, WIDTH = 600, 1100  # more than one block each way


def write_map(path, index, names=NAMES, transform=UTM, crs="EPSG:32633", nodata=IGNORE):
    layout = {"height": index.shape[0], "width": index.shape[1], "count": 1, "dtype": index.dtype, "nodata": nodata}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **layout) as file:
        file.write(index, 1)
        if names:
            file.update_tags(**class_tags(names))
    return path


def write_zones(path, shapes, crs="EPSG:32633", **columns):
    columns = columns or {"parcel": np.array([f"p{number}" for number in range(len(shapes))], object)}
    pyogrio.raw.write(
        path,
        shapely.to_wkb(np.array(shapes, object)),
        list(columns.values()),
        list(columns),
        geometry_type="Unknown",
        crs=crs,
    )
    return path


@pytest.fixture(scope="module")
def index():
    found = np.random.default_rng(0).integers(0, 3, (HEIGHT, WIDTH)).astype(np.uint8)
    found[:40, :700] = IGNORE
    return found


@pytest.fixture(scope="module")
def class_map(index, tmp_path_factory):
    return write_map(tmp_path_factory.mktemp("map") / "map.tif", index)


def zones():
    """A triangle, a ring, one inside of another, two parts in one, one that leaves the map, one far off."""
    at = lambda x, y: (500_000 + x, 5_400_000 - y)  # noqa: E731
    triangle = shapely.Polygon([at(10, 5), at(430, 60), at(80, 290)])
    ring = shapely.Point(at(300, 150)).buffer(80).difference(shapely.Point(at(300, 150)).buffer(33.3))
    inner = shapely.box(*at(120, 180), *at(60, 90))
    parts = shapely.MultiPolygon([shapely.box(*at(20, 30), *at(40, 10)), shapely.box(*at(500, 299), *at(540, 200))])
    leaving = shapely.box(*at(-100, 320), *at(50, 250))
    return [triangle, ring, inner, parts, leaving, shapely.box(0, 0, 10, 10)]


def by_hand(shape, index, transform=UTM):
    inside = rasterize([shape], index.shape, transform=transform).astype(bool)
    return [0.25 * (inside & (index == number)).sum() for number in range(3)]


def test_each_zone_holds_the_pixels_whose_centres_it_holds_though_zones_overlap(class_map, index, tmp_path):
    path, said = write_zones(tmp_path / "zones.gpkg", zones()), []
    table = summarise_zones(class_map, path, Output(), say=said.append)
    wanted = np.array([by_hand(shape, index) for shape in zones()])
    np.testing.assert_allclose(np.stack([table[f"{name}_m2"] for name in NAMES], 1), wanted)
    np.testing.assert_allclose(table["mapped_m2"], wanted.sum(1))
    np.testing.assert_allclose(table["zone_m2"], [shape.area for shape in zones()])
    np.testing.assert_allclose(table["roof_share"][:5], wanted[:5, 1] / wanted[:5].sum(1))
    assert np.isnan(table["roof_share"][5]) and table["largest"][5] is None
    assert table["largest"].tolist()[:5] == [NAMES[number] for number in wanted[:5].argmax(1)]
    assert table["parcel"].tolist() == [f"p{number}" for number in range(6)]
    assert said == ["note: 1 of 6 zones hold no pixel of the map"]


def test_fractions_of_pixels_are_those_of_shapely(tmp_path):
    pytest.importorskip("exactextract")
    index = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    path = write_map(tmp_path / "map.tif", index)
    shape = shapely.Polygon([(500_000.1, 5_399_999.9), (500_001.4, 5_399_999.6), (500_000.6, 5_399_999.2)])
    table = summarise_zones(path, write_zones(tmp_path / "z.gpkg", [shape]), Output(), fractional=True)
    wanted = np.zeros(3)
    for row, col in np.ndindex(2, 3):
        x, y = UTM @ (col, row) if hasattr(UTM, "__matmul__") else UTM * (col, row)
        wanted[index[row, col]] += shape.intersection(shapely.box(x, y - 0.5, x + 0.5, y)).area
    np.testing.assert_allclose([table[f"{name}_m2"][0] for name in NAMES], wanted, rtol=1e-5)


def test_zones_in_degrees_meet_a_map_in_degrees_with_areas_on_the_ellipsoid(tmp_path):
    step = 0.01
    transform = Affine(step, 0, 15, 0, -step, 60)
    index = np.repeat(np.arange(3, dtype=np.uint8), 100)[:, None].repeat(50, 1)
    path = write_map(tmp_path / "map.tif", index, transform=transform, crs="EPSG:4326")
    zone = shapely.box(15.1, 57.5, 15.3, 59.5)
    table = summarise_zones(path, write_zones(tmp_path / "z.gpkg", [zone], crs="EPSG:4326"), Output())
    geod = Geod(ellps="WGS84")
    for name, (south, north) in zip(NAMES, [(59, 59.5), (58, 59), (57.5, 58)], strict=True):
        edges = np.linspace(15.1, 15.3, 401)
        ring = shapely.Polygon([*zip(edges, np.full(401, south)), *zip(edges[::-1], np.full(401, north))])  # noqa: B905
        assert table[f"{name}_m2"][0] == pytest.approx(abs(geod.geometry_area_perimeter(ring)[0]), rel=1e-5)


def test_zones_of_another_crs_lie_where_they_lie(class_map, index, tmp_path):
    pyproj = pytest.importorskip("pyproj")
    away = pyproj.Transformer.from_crs(32633, 5514, always_xy=True)
    shape = shapely.segmentize(zones()[0], 1)
    moved = shapely.transform(shape, lambda points: np.stack(away.transform(*points.T), 1))
    table = summarise_zones(class_map, write_zones(tmp_path / "z.gpkg", [moved], crs="EPSG:5514"), Output())
    wanted = by_hand(shape, index)
    np.testing.assert_allclose([table[f"{name}_m2"][0] for name in NAMES], wanted, rtol=2e-4)


def test_the_confidence_of_a_zone_is_the_mean_over_its_pixels_with_a_class(class_map, index, tmp_path):
    values = np.random.default_rng(1).integers(0, 251, index.shape).astype(np.uint8)
    values[300:320] = 255
    scores = write_map(tmp_path / "score.tif", values, names=())
    with rasterio.open(scores, "r+") as file:
        file.scales = (0.004,)
    table = summarise_zones(class_map, write_zones(tmp_path / "z.gpkg", zones()), Output(), confidence=scores)
    inside = rasterize([zones()[0]], index.shape, transform=UTM).astype(bool) & (index != IGNORE) & (values != 255)
    assert table["confidence"][0] == pytest.approx(values[inside].mean() * 0.004)
    assert np.isnan(table["confidence"][5])


def test_tables_are_written_as_csv_parquet_and_polygons(class_map, tmp_path):
    path = write_zones(tmp_path / "zones.gpkg", zones(), parcel=np.array(["ä,b", "x", "y", "z", "", "q"], object))
    for name in ("a.csv", "a.parquet", "a.gpkg"):
        table = summarise_zones(class_map, path, Output(tmp_path / name))
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["parcel"] for row in rows] == ["ä,b", "x", "y", "z", "", "q"]
    assert [float(row["roof_m2"]) for row in rows] == table["roof_m2"].tolist() and rows[5]["roof_share"] == ""
    whole = pq.read_table(tmp_path / "a.parquet")
    assert whole["roof_m2"].to_pylist() == table["roof_m2"].tolist() and whole["largest"].null_count == 1
    facts, _, shapes, values = pyogrio.raw.read(tmp_path / "a.gpkg")
    assert facts["crs"] == "EPSG:32633" and list(facts["fields"]) == list(table)
    assert shapely.equals(shapely.from_wkb(shapes), np.array(zones(), object)).all()
    with closing(sqlite3.connect(tmp_path / "a.gpkg")) as base:
        assert base.execute("PRAGMA user_version").fetchone() == (10300,)
    # Another summary takes its place, another layer does not.
    summarise_zones(class_map, path, Output(tmp_path / "a.gpkg"))
    with pytest.raises(RasterError, match="holds no summary of zones"):
        write_zones(tmp_path / "b.gpkg", zones())
        summarise_zones(class_map, path, Output(tmp_path / "b.gpkg"))


def test_the_classes_of_a_whole_map(class_map, index):
    table = summarise_map(class_map, Output())
    wanted = [0.25 * (index == number).sum() for number in (IGNORE, 0, 1, 2)]
    assert table["class"].tolist() == ["no data", *NAMES] and table["area_m2"].tolist() == wanted
    np.testing.assert_allclose(table["share"][1:], np.array(wanted[1:]) / sum(wanted[1:]))


def test_what_changed_is_counted_and_mapped_though_the_later_map_has_another_order(class_map, index, tmp_path):
    later = index.copy()
    later[100:300, 50:500][index[100:300, 50:500] == 0] = 1
    later[400:450] = np.where(index[400:450] == 2, IGNORE, later[400:450])
    turned = np.where(later == IGNORE, IGNORE, 2 - later).astype(np.uint8)
    path = write_map(tmp_path / "later.tif", turned, names=NAMES[::-1])
    out = Output(tmp_path / "change.csv", tmp_path / "change.tif")
    table = summarise_change(class_map, path, out)
    names = dict(zip((IGNORE, 0, 1, 2), ("no data", *NAMES), strict=True))
    wanted = {
        (names[one], names[other]): 0.25 * ((index == one) & (later == other)).sum()
        for one in names
        for other in names
        if ((index == one) & (later == other)).any()
    }
    found = zip(table["before"], table["after"], table["area_m2"], strict=True)
    assert {(one, other): area for one, other, area in found} == wanted
    assert ("tree", "no data") in wanted and np.isnan(table["share"][table["after"] == "no data"]).all()
    with rasterio.open(tmp_path / "change.tif") as file:
        values, tags = file.read(1), file.tags()
    assert tags["CLASS_NAMES"] == '["unchanged", "ground to roof"]'
    missing = (index == IGNORE) | (later == IGNORE)
    np.testing.assert_array_equal(values, np.where(missing, IGNORE, (index != later).astype(np.uint8)))
    assert (tmp_path / "change.qml").exists() and len((tmp_path / "change.csv").read_text().splitlines()) == 1 + len(
        wanted
    )


def test_a_later_map_elsewhere_is_refused_or_read_on_the_earlier_pixels(class_map, index, tmp_path):
    half = Affine(0.25, 0, 500_000, 0, -0.25, 5_400_000)
    fine = write_map(tmp_path / "fine.tif", index.repeat(2, 0).repeat(2, 1), transform=half)
    with pytest.raises(RasterError, match="--regrid reads it on those pixels"):
        summarise_change(class_map, fine, Output())
    table = summarise_change(class_map, fine, Output(), regrid=True)
    assert (table["before"] == table["after"]).all()


def test_a_transition_is_as_sure_as_both_maps(class_map, index, tmp_path):
    rng = np.random.default_rng(2)
    one, other = rng.random((2, *index.shape)).astype(np.float32)
    paths = [
        write_map(tmp_path / f"{name}.tif", values, names=(), nodata=None)
        for name, values in (("one", one), ("other", other))
    ]
    table = summarise_change(class_map, class_map, Output(), confidence=tuple(paths))
    wanted = (one.astype(np.float64) * other)[index == 1].mean()
    assert table["confidence"][table["before"] == "roof"][0] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--zones", "points.gpkg"], "zones are polygons"),
        (["--zones", "far.gpkg"], "does not overlap"),
        (["--zones", "own.gpkg"], "has attributes roof_m2 of its own"),
        (["--zones", "own.gpkg", "--out", "table.xlsx"], "must end in .csv, .parquet, .gpkg"),
        (["--zones", "own.gpkg", "--regrid"], "--regrid has no effect without --change"),
        (["--zones", "own.gpkg", "--confidence", "a", "b"], "2 rasters for --confidence, which takes one"),
        (["--fractional"], "--fractional has no effect without --zones"),
        (["--change", "other.tif"], "only the first has water, only the second tree"),
        (["--change", "bare.tif"], "does not name its classes"),
        (["--change", "other.tif", "--map", "change.png"], "must end in .tif"),
        (["--out", "map.gpkg"], "must end in .csv, .parquet"),
    ],
)
def test_what_cannot_be_meant_is_one_line(arguments, message, class_map, index, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_zones("points.gpkg", [shapely.Point(500_010, 5_399_990)])
    write_zones("far.gpkg", [shapely.box(0, 0, 1, 1)])
    write_zones("own.gpkg", zones()[:1], roof_m2=np.ones(1))
    write_map("other.tif", index, names=("ground", "roof", "water"))
    write_map("bare.tif", index, names=())
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["summarise", str(class_map), *arguments]) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_map_itself_is_not_overwritten(class_map, tmp_path):
    copied = write_zones(tmp_path / "zones.gpkg", zones())
    with pytest.raises(ConfigError):
        summarise_zones(class_map, copied, Output(copied))


def test_maps_of_absurd_size_are_refused_before_they_are_counted(tmp_path, monkeypatch):
    """In files of some bytes that claim years of work; who insists has them counted."""
    huge = tmp_path / "huge.vrt"
    huge.write_text(
        '<VRTDataset rasterXSize="2000000" rasterYSize="2000000"><SRS>EPSG:32633</SRS>'
        "<GeoTransform>5e5,.5,0,5.4e6,0,-.5</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'
    )
    before = write_map(tmp_path / "before.tif", np.ones((6, 8), np.uint8))
    refused = "is 2000000 x 2000000 pixels; more than 100,000,000,000 .* --allow-huge"
    with pytest.raises(RasterError, match=refused):
        summarise_map(huge, Output())
    with pytest.raises(RasterError, match=refused):
        summarise_change(huge, before, Output())
    monkeypatch.setattr("rs_biformer.raster.sizes.MOST_PIXELS", 47)
    with pytest.raises(RasterError, match="6 x 8 pixels; more than 47 "):
        summarise_map(before, Output())
    assert summarise_map(before, Output(), allow_huge=True)["area_m2"][2] == pytest.approx(12, rel=0.01)
    with pytest.raises(RasterError, match="6 x 8 pixels; more than 47 "):
        summarise_change(before, before, Output())
    assert len(summarise_change(before, before, Output(), allow_huge=True)["before"]) == 1
