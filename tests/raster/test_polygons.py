import json

import numpy as np
import pyarrow.parquet as pq
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyogrio.raw import write
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.features import rasterize

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster import layer
from rs_biformer.raster import polygons as module
from rs_biformer.raster.polygons import Area, PolygonOptions, Polygons
from rs_biformer.raster.regrid import PixelGrid

UTM = CRS.from_epsg(32633)
NORTH_UP = Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)


def grid(height=600, width=700, transform=NORTH_UP, crs=UTM, **place):
    return PixelGrid("scene.tif", height, width, crs, transform, **place)


def save(path, shapes, crs="EPSG:32633", kind="Unknown", driver=None, layer=None, append=False, **columns):
    columns = columns or {"class": np.arange(1, len(shapes) + 1, dtype=np.int32)}
    write(
        path,
        shapely.to_wkb(np.array(shapes, object)),
        [np.asarray(column) for column in columns.values()],
        list(columns),
        geometry_type=kind,
        crs=crs,
        driver=driver,
        layer=layer,
        append=append,
    )
    return path


def codes_of(features):
    return features.columns["class"].astype(np.int16)


def whole(polygons):
    return polygons.read(Window(0, 0, polygons.grid.height, polygons.grid.width), codes_of, 0)[0]


def on_ground(points, transform=NORTH_UP):
    """Pixels (column, row) -> coordinates."""
    return [transform * point for point in points]


@pytest.fixture(autouse=True)
def forget():
    yield
    layer._layer.cache_clear()
    layer._held.cache_clear()


# Whole 64ths of a pixel, half a pixel among them, so that centres lie exactly on edges.
COORDINATE = st.integers(-64 * 40, 64 * 700).map(lambda n: n / 64)
TRIANGLE = st.tuples(*[st.tuples(COORDINATE, COORDINATE)] * 3).filter(
    lambda p: abs((p[1][0] - p[0][0]) * (p[2][1] - p[0][1]) - (p[2][0] - p[0][0]) * (p[1][1] - p[0][1])) > 1
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    triangles=st.lists(TRIANGLE, min_size=1, max_size=12),
    row=st.integers(0, 590),
    col=st.integers(0, 690),
    height=st.integers(1, 600),
    width=st.integers(1, 700),
    held=st.booleans(),
)
def test_any_window_is_that_part_of_the_whole_rasterized(triangles, row, col, height, width, held, tmp_path_factory):
    shapes = [shapely.Polygon(on_ground(points)) for points in triangles]
    path = save(tmp_path_factory.mktemp("p") / "a.gpkg", shapes)
    truth = rasterize(zip(shapes, range(1, len(shapes) + 1), strict=True), (600, 700), transform=NORTH_UP)
    before, layer.HELD_FEATURES = layer.HELD_FEATURES, 20_000 if held else -1
    try:
        window = Window(row, col, min(height, 600 - row), min(width, 700 - col))
        polygons = Polygons(path, grid(), columns=["class"])
        assert polygons.layer.indexed is not held
        assert (polygons.read(window, codes_of, 0)[0] == truth[window.slices]).all()
    finally:
        layer.HELD_FEATURES = before


def some_polygons(seed=0, count=60, points=9, size=90.0):
    """Stars with holes, in coordinates of NORTH_UP."""
    rng = np.random.default_rng(seed)
    shapes = []
    for x, y in rng.uniform((500_000, 5_399_700), (500_350, 5_400_000), (count, 2)):
        angles = (np.arange(points) + rng.uniform(0, 0.9, points)) * 2 * np.pi / points
        radii = rng.uniform(0.4, 1, points) * size / 2
        star = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)
        shapes.append(shapely.make_valid(shapely.Polygon(star).difference(shapely.Point(x, y).buffer(size / 12))))
    return shapes


@pytest.mark.parametrize("name", ["a.gpkg", "a.fgb", "a.shp", "a.geojson", "a.parquet"])
@pytest.mark.parametrize("limit", [20_000, -1])
def test_every_format_draws_the_same(name, limit, tmp_path, monkeypatch):
    monkeypatch.setattr(layer, "HELD_FEATURES", limit)
    shapes, path = some_polygons(), tmp_path / name
    transform, crs = NORTH_UP, "EPSG:32633"
    if name.endswith(".geojson"):  # always in degrees
        there = pyproj.Transformer.from_crs(32633, 4326, always_xy=True)
        shapes = [shapely.transform(s, lambda p: np.stack(there.transform(*p.T), axis=1)) for s in shapes]
        crs = "EPSG:4326"
    if name.endswith(".parquet"):
        write_parquet(path, shapes)
    else:
        save(path, shapes, crs=crs)
    truth = rasterize(zip(some_polygons(), range(1, 61), strict=True), (600, 700), transform=transform)
    # A FlatGeobuf file has an order of its own: that of its index.
    found = whole(Polygons(path, grid(), PolygonOptions(order="schema"), columns=["class"]))
    if not name.endswith(".geojson"):
        assert (found == truth).all()
    assert (found != truth).mean() < 1e-4  # 2e-2 m is what seven digits of a degree leave


def write_parquet(path, shapes, crs="EPSG:32633", **columns):
    import pyarrow as pa

    columns = columns or {"class": list(range(1, len(shapes) + 1))}
    table = pa.table({**columns, "geometry": [shapely.to_wkb(shape) for shape in shapes]})
    column = {"encoding": "WKB", "geometry_types": []}
    if crs != "OGC:CRS84":
        column["crs"] = crs and pyproj.CRS(crs).to_json_dict()
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), path)


def test_everything_is_found_where_a_file_tells_no_bounds_or_wrong_ones(tmp_path):
    shapes = [*some_polygons()[:3], shapely.Polygon()]
    path = tmp_path / "a.parquet"
    write_parquet(path, shapes)
    assert Polygons(path, grid()).everything().ids.tolist() == [0, 1, 2]
    saved = save(tmp_path / "a.gpkg", shapes[:3])
    assert len(Polygons(saved, grid()).everything().ids) == 3


def geo(**changes):
    column = {"encoding": "WKB", "geometry_types": [], "crs": None} | changes.pop("column", {})
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}} | changes


@pytest.mark.parametrize(
    "document, said",
    [
        ([], "its geo metadata"),
        ({}, "primary_column is missing"),
        (geo(primary_column=7), "primary_column"),
        (geo(primary_column="elsewhere"), "no column 'elsewhere'"),
        (geo(primary_column="class"), "no column 'class'"),
        (geo(columns={"geometry": 3}), "its geo metadata"),
        (geo(columns={"class": {"encoding": "WKB"}}, primary_column="class"), "geometries in int64"),
        (geo(column={"encoding": "point"}), "geometries in point"),
        (geo(column={"crs": {"type": "no CRS"}}), "the CRS is not understood"),
        (geo(column={"crs": 10**9}), "the CRS is not understood"),
        (geo(column={"bbox": "everywhere"}), "bbox"),
    ],
)
def test_geoparquet_that_contradicts_itself_is_refused_in_a_line(document, said, tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, some_polygons()[:2])
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(document)}), path)
    layer._layer.cache_clear()
    with pytest.raises(RasterError, match=said) as refused:
        Polygons(path, grid())
    assert "\n" not in str(refused.value)


def test_a_torn_geoparquet_file_is_refused_in_a_line(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, some_polygons())
    data = bytearray(path.read_bytes())
    data[20:2000] = bytes(1980)  # of the pages: the footer is whole
    path.write_bytes(data)
    with pytest.raises(RasterError, match="cannot be read") as refused:
        Polygons(path, grid()).everything()
    assert "\n" not in str(refused.value)


def test_large_polygons_are_cut_to_blocks_and_draw_the_same(tmp_path, monkeypatch):
    shapes = some_polygons(count=12, points=300, size=400.0)
    path = save(tmp_path / "a.gpkg", shapes)
    truth = rasterize(zip(shapes, range(1, 13), strict=True), (600, 700), transform=NORTH_UP)
    monkeypatch.setattr(module, "_FEW_POINTS", 4)
    assert (whole(Polygons(path, grid(), columns=["class"])) == truth).all()


@pytest.mark.parametrize("angle", [0.0, 33.0, 120.0])
def test_turned_grids_are_drawn_where_they_lie(angle, tmp_path):
    transform = Affine.translation(500_100, 5_399_900) * Affine.rotation(angle) * Affine.scale(0.5, -0.5)
    shapes = some_polygons()
    truth = rasterize(zip(shapes, range(1, 61), strict=True), (600, 700), transform=transform)
    found = whole(Polygons(save(tmp_path / "a.gpkg", shapes), grid(transform=transform), columns=["class"]))
    assert (found != truth).mean() < 1e-5 and len(np.unique(truth)) > 10


def test_scenes_placed_by_control_points_are_drawn_where_those_say(tmp_path):
    points = [GroundControlPoint(r, c, *(NORTH_UP * (c, r))) for r in (0, 300, 600) for c in (0, 350, 700)]
    placed = grid(transform=Affine.identity(), crs=None, gcps=(points, UTM))
    shapes = some_polygons()
    truth = rasterize(zip(shapes, range(1, 61), strict=True), (600, 700), transform=NORTH_UP)
    found = whole(Polygons(save(tmp_path / "a.gpkg", shapes), placed, columns=["class"]))
    assert (found != truth).mean() < 1e-4


def test_long_edges_in_another_crs_are_curves_on_the_grid(tmp_path):
    """A parallel is no straight line in UTM: over 4 degrees it bulges by kilometres."""
    transform = Affine(200, 0, 300_000, 0, -200, 6_700_000)
    lon_lat = shapely.box(12.0, 60.0, 17.0, 60.25)
    found = whole(
        Polygons(save(tmp_path / "a.gpkg", [lon_lat], crs="EPSG:4326"), grid(400, 2000, transform), columns=["class"])
    )
    cols, rows = np.meshgrid(np.arange(2000) + 0.5, np.arange(400) + 0.5)
    back = pyproj.Transformer.from_crs(32633, 4326, always_xy=True)
    lon, lat = back.transform(300_000 + 200 * cols, 6_700_000 - 200 * rows)
    truth = (lon > 12) & (lon < 17) & (lat > 60) & (lat < 60.25)
    edges = shapely.transform(lon_lat, lambda p: np.stack(back.transform(*p.T, direction="INVERSE"), axis=1))
    straight = rasterize([edges], (400, 2000), transform=transform)
    assert truth.any() and ((straight > 0) != truth).sum() > 1000
    assert ((found > 0) != truth).mean() < 1e-3 * truth.mean()


def test_axes_are_in_the_order_of_maps_whatever_the_authority_says(tmp_path):
    """EPSG:4326 says latitude first, EPSG:2180 northing first; files hold longitude and easting first."""
    transform = Affine(0.5, 0, 637_000, 0, -0.5, 487_000)
    shape = shapely.box(637_010, 486_900, 637_060, 486_990)
    truth = rasterize([shape], (300, 300), transform=transform)
    poland = grid(300, 300, transform, CRS.from_epsg(2180))
    for crs in ("EPSG:2180", "EPSG:4326", "OGC:CRS84", "EPSG:2177"):
        there = pyproj.Transformer.from_crs(2180, crs, always_xy=True)
        moved = shapely.transform(shape, lambda p, t=there: np.stack(t.transform(*p.T), axis=1))
        path = save(tmp_path / f"{crs[-4:]}.gpkg", [moved], crs=crs)
        assert ((whole(Polygons(path, poland, columns=["class"])) > 0) != (truth > 0)).mean() < 2e-4


@pytest.mark.parametrize(
    ("order", "between", "middle"), [("last", 3, 3), ("first", 1, 1), ("smallest", 3, 2), ("schema", 3, 3)]
)
def test_the_order_of_overlapping_polygons_is_chosen(order, between, middle, tmp_path):
    # Around the same middle: a large one, the smallest, one between; a code each, the schema's order beside the file's.
    shapes = [
        shapely.box(500_000, 5_399_900, 500_100, 5_400_000),
        *(shapely.Point(500_050, 5_399_950).buffer(r) for r in (10, 20)),
    ]
    codes = [1, 2, 3] if order != "schema" else [3, 2, 1]
    path = save(tmp_path / "a.gpkg", shapes, **{"class": np.array(codes, np.int32)})
    found = whole(Polygons(path, grid(), PolygonOptions(order=order), columns=["class"]))
    # At the rim only the first covers; half-way the third too; in the middle all three.
    assert found[10, 10] == codes[0]
    assert (found[100, 130], found[100, 100]) == (between, middle)


@pytest.mark.parametrize(
    ("crs", "transform", "metres"),
    [
        (32633, NORTH_UP, (0.5, 0.5)),
        (2236, Affine(2.0, 0, 900_000, 0, -2.0, 600_000), (2 * 1200 / 3937,) * 2),  # US survey feet
        (4326, Affine(5e-6, 0, 15.0, 0, -5e-6, 60.0), (5e-6 * 55_800.0, 5e-6 * 111_412.0)),
        (3857, Affine(1.0, 0, 1_670_000, 0, -1.0, 8_399_738.0), (0.5008, 0.5008)),  # 60 degrees north: half as much
    ],
)
def test_lines_and_points_are_as_wide_as_told_in_metres(crs, transform, metres, tmp_path):
    line = shapely.LineString([transform * (50.25, 20.25), transform * (50.25, 160.25)])
    level = shapely.LineString([transform * (80.25, 100.25), transform * (180.25, 100.25)])
    point = shapely.Point(transform * (130.25, 40.25))
    path = save(tmp_path / "a.gpkg", [line, level, point], crs=f"EPSG:{crs}")
    placed = grid(200, 200, transform, CRS.from_epsg(crs))
    along, down = metres
    found = whole(Polygons(path, placed, PolygonOptions(width=12.0), columns=["class"]))
    assert (found[60] == 1).sum() == pytest.approx(12 / along, abs=1)
    assert (found[:, 120] == 2).sum() == pytest.approx(12 / down, abs=1)
    assert (found == 3).sum() == pytest.approx(np.pi * 36 / along / down, rel=0.06)
    assert not whole(Polygons(path, placed, columns=["class"])).any()


def test_a_window_sees_wide_lines_that_begin_outside_of_it(tmp_path):
    path = save(tmp_path / "a.gpkg", [shapely.LineString([(500_100, 5_399_000), (500_100, 5_401_000)])])
    polygons = Polygons(path, grid(), PolygonOptions(width=60.0), columns=["class"])
    everything = whole(polygons)
    for window in (Window(300, 145, 10, 5), Window(0, 250, 3, 12)):
        assert (polygons.read(window, codes_of, 0)[0] == everything[window.slices]).all()
    assert everything[300, 141:259].all() and not everything[300, :139].any()


def test_odd_geometries_are_drawn_as_far_as_they_have_an_area(tmp_path):
    bow_tie = shapely.Polygon([(500_010, 5_399_990), (500_050, 5_399_950), (500_050, 5_399_990), (500_010, 5_399_950)])
    tall = shapely.force_3d(shapely.box(500_060, 5_399_950, 500_070, 5_399_990), z=9.0)
    mixed = shapely.GeometryCollection(
        [shapely.box(500_080, 5_399_950, 500_090, 5_399_990), shapely.Point(500_100, 5_399_990)]
    )
    several = shapely.MultiPolygon(
        [shapely.box(500_110, 5_399_950, 500_115, 5_399_990), shapely.box(500_120, 5_399_950, 500_125, 5_399_990)]
    )
    path = save(tmp_path / "a.gpkg", [bow_tie, tall, mixed, several, shapely.Polygon(), None])
    polygons = Polygons(path, grid(), columns=["class"])
    found = whole(polygons)
    assert found[60, 25] == 1 and found[60, 95] == 1 and found[22, 60] == 0 and found[60, 90] == 1
    assert [(found == code).sum() for code in (2, 3, 4)] == [20 * 80, 20 * 80, 20 * 80]
    survey = polygons.survey(["class"])
    assert survey.invalid == [1]
    assert survey.kinds == {"polygons": 4, "points": 1, "lines": 0, "none": 0}


def test_curves_are_drawn_as_curves(tmp_path):
    import sqlite3
    import struct

    path = save(tmp_path / "a.gpkg", [shapely.box(500_040, 5_399_900, 500_100, 5_399_960)])
    base = sqlite3.connect(path)
    for (trigger,) in base.execute("select name from sqlite_master where type='trigger' and tbl_name='a'").fetchall():
        base.execute(f'drop trigger "{trigger}"')
    (blob,) = base.execute("select geom from a").fetchone()
    header = blob[: 8 + {0: 0, 1: 32, 2: 48, 3: 48, 4: 64}[(blob[3] >> 1) & 7]]
    x, y, r = 500_070, 5_399_930, 30
    ring = [(x - r, y), (x, y + r), (x + r, y), (x, y - r), (x - r, y)]
    curve = struct.pack("<BIIBII", 1, 10, 1, 1, 8, 5) + b"".join(struct.pack("<dd", *point) for point in ring)
    base.execute("update a set geom = ?", (header + curve,))
    base.commit()
    base.close()
    assert (whole(Polygons(path, grid(), columns=["class"])) == 1).sum() == pytest.approx(np.pi * 60**2, rel=0.003)


def test_an_area_is_inside_or_outside(tmp_path):
    path = save(tmp_path / "a.geojson", [shapely.box(15.0, 48.7, 15.001, 48.8)], crs="EPSG:4326")
    transform = Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)
    inside = Area(path, grid(transform=transform)).inside(Window(10, 20, 300, 400))
    there = pyproj.Transformer.from_crs(32633, 4326, always_xy=True)
    cols, rows = np.meshgrid(np.arange(20, 420) + 0.5, np.arange(10, 310) + 0.5)
    lon, _ = there.transform(500_000 + 0.5 * cols, 5_400_000 - 0.5 * rows)
    assert (inside == (lon < 15.001)).all() and 0.1 < inside.mean() < 0.9


def test_an_area_elsewhere_is_refused_with_both_places(tmp_path):
    far = save(tmp_path / "a.gpkg", [shapely.box(0, 0, 10, 10)])
    with pytest.raises(RasterError, match="does not overlap scene.tif: it holds x 0 to 10, y 0 to 10, and the scene"):
        Area(far, grid())
    with pytest.raises(RasterError, match="it holds nothing") as told:
        Area(save(tmp_path / "b.gpkg", []), grid())
    assert "--label-crs" not in str(told.value), "that option is none of an area"


def test_a_file_that_is_no_layer_is_refused_without_a_driver_s_advice(tmp_path):
    (tmp_path / "a.geojson").write_text('{"type": "FeatureColl')
    with pytest.raises(RasterError, match=r"a\.geojson cannot be read as polygons: .* supported file format\.$"):
        Polygons(tmp_path / "a.geojson", grid())


@pytest.mark.parametrize(
    ("kind", "shape", "plural"),
    [
        ("LineString", shapely.LineString([(500_000, 5_399_990), (500_025, 5_399_990)]), "lines"),
        ("MultiPoint Z", shapely.MultiPoint([(500_010, 5_399_990, 1)]), "points"),
    ],
)
def test_an_area_of_lines_or_points_is_refused(tmp_path, kind, shape, plural):
    with pytest.raises(RasterError, match=f"holds {plural} and no polygons"):
        Area(save(tmp_path / "a.gpkg", [shape], kind=kind), grid())


def test_what_cannot_be_drawn_is_refused_in_words(tmp_path):
    box = shapely.box(500_000, 5_399_900, 500_100, 5_400_000)
    path = save(tmp_path / "a.gpkg", [box], layer="one")
    save(tmp_path / "a.gpkg", [box], layer="two", append=True)
    with pytest.raises(RasterError, match=r"2 layers \(one, two\); name one with --label-layer"):
        Polygons(path, grid())
    with pytest.raises(RasterError, match="no layer 'three'.*one, two"):
        Polygons(path, grid(), PolygonOptions("three"))
    assert Polygons(path, grid(), PolygonOptions("two")).layer.name == "two"
    with pytest.raises(RasterError, match="no attribute 'kind'; it has class"):
        Polygons(path, grid(), PolygonOptions("two"), columns=["kind"])
    with pytest.raises(RasterError, match="does not say where it lies"):
        Polygons(path, grid(transform=Affine.identity(), crs=None), PolygonOptions("two"))
    with pytest.raises(ConfigError, match="no CRS 'EPSG:1'"):
        Polygons(path, grid(), PolygonOptions("two", crs="EPSG:1"))
    with pytest.raises(ConfigError, match="more than 0"):
        PolygonOptions(width=0)
    text = tmp_path / "b.gpkg"
    text.write_text("no database")
    with pytest.raises(RasterError, match=r"b\.gpkg cannot be read as polygons"):
        Polygons(text, grid())
    with pytest.raises(RasterError, match=r"c\.gpkg cannot be opened"):
        Polygons(tmp_path / "c.gpkg", grid())


def test_a_polygon_that_jumps_over_the_antimeridian_is_refused(tmp_path):
    jumping = shapely.Polygon([(179.9, -17.0), (-179.9, -17.0), (-179.9, -16.9), (179.9, -16.9)])
    fiji = grid(600, 600, Affine(100, 0, 790_000, 0, -100, 8_140_000), CRS.from_epsg(32760))
    with pytest.raises(RasterError, match="feature 1 .*antimeridian"):
        whole(Polygons(save(tmp_path / "a.gpkg", [jumping], crs="EPSG:4326"), fiji, columns=["class"]))
    split = shapely.MultiPolygon([shapely.box(179.9, -17.1, 180, -16.9), shapely.box(-180, -17.1, -179.9, -16.9)])
    found = whole(Polygons(save(tmp_path / "b.gpkg", [split], crs="EPSG:4326"), fiji, columns=["class"]))
    assert found.sum() * 1e4 == pytest.approx(
        pyproj.Geod(ellps="WGS84").geometry_area_perimeter(shapely.box(0, -17.1, 0.2, -16.9))[0], rel=0.01
    )


def test_coordinates_that_cannot_be_degrees_are_those_of_the_scene(tmp_path):
    ring = [
        [500_005, 5_399_995],
        [500_020, 5_399_995],
        [500_020, 5_399_980],
        [500_005, 5_399_980],
        [500_005, 5_399_995],
    ]
    feature = {"type": "Feature", "properties": {"class": 1}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    polygons = Polygons(path, grid(), columns=["class"])
    assert "degrees" in polygons.notes[0] and whole(polygons).sum() == 30 * 30
