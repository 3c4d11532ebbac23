"""Outlines with right angles against rectangles that were drawn, and coverages against shapely's rules."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import rasterize
from scipy import ndimage
from shapely import affinity

from rs_biformer.cli import main
from rs_biformer.errors import ConfigError
from rs_biformer.raster import regularise
from rs_biformer.raster.gdal import open_raster
from rs_biformer.raster.ground import Metres, in_pixels
from rs_biformer.raster.outlines import trace
from rs_biformer.raster.squaring import _corners, close, direction, squared
from rs_biformer.raster.vector import vectorize

NAMES = ["grass", "road", "building", "tree"]
BUILDING = 2


def write(path, index):
    height, width = index.shape
    profile = {"driver": "GTiff", "count": 1, "height": height, "width": width, "nodata": 255, "dtype": "uint8"}
    with open_raster(path, "w", crs="EPSG:25832", transform=Affine(1, 0, 0, 0, -1, 0), **profile) as file:
        file.write(index, 1)
        file.update_tags(CLASS_NAMES=json.dumps(NAMES))
    return path


def read(path):
    """Outlines in pixels, and their classes."""
    table = pq.read_table(path)
    outlines = shapely.transform(shapely.from_wkb(table["geometry"].to_numpy()), lambda points: points * [1, -1])
    return outlines, table["class_index"].to_numpy()


def ring_of(shape, size=300):
    index = rasterize([(shape, 1)], (size, size)).astype(np.uint8)
    lines = trace(index, None, last=True)
    closed = [number for number in range(len(lines)) if lines.first[number + 1] - lines.first[number] > 4]
    ring = max((lines.points[lines.first[n] : lines.first[n + 1]] for n in closed), key=len)
    assert (ring[0] == ring[-1]).all()
    return ring[:-1]


def rectangle(width, height, angle, x=150.3, y=140.7):
    return affinity.rotate(shapely.box(x - width / 2, y - height / 2, x + width / 2, y + height / 2), angle)


@pytest.mark.parametrize("size", [(60, 30), (100, 20), (12, 8), (45, 45)])
@pytest.mark.parametrize("angle", [0, 7, 20, 45, 71.3])
def test_a_rectangle_comes_back_from_its_pixels(size, angle):
    drawn = rectangle(*size, angle)
    ring = ring_of(drawn)
    found = squared(ring, turn := direction(ring, 3.0), 3.0)
    off = (np.degrees(turn) - angle + 45) % 90 - 45
    assert abs(off) < 40 / max(size)
    assert len(found) == 4
    assert shapely.hausdorff_distance(shapely.Polygon(found), drawn) < 0.75
    assert shapely.Polygon(found).area == pytest.approx(shapely.Polygon(ring).area, rel=0.03)


def test_an_angle_of_buildings_has_six_corners_and_a_circle_none():
    angle = affinity.rotate(shapely.Polygon([(90, 90), (170, 90), (170, 120), (130, 120), (130, 150), (90, 150)]), 25)
    ring = ring_of(angle)
    found = squared(ring, direction(ring, 3.0), 3.0)
    assert len(found) == 6
    assert shapely.hausdorff_distance(shapely.Polygon(found), angle) < 0.5
    ring = ring_of(shapely.Point(150, 150).buffer(40))
    assert squared(ring, direction(ring, 3.0), 3.0) is None


def test_a_side_that_runs_aslant_stays_aslant_and_the_other_corners_are_right():
    house = affinity.rotate(shapely.Polygon([(90, 90), (190, 90), (190, 130), (160, 160), (90, 160)]), 17)
    ring = ring_of(house)
    found = squared(ring, direction(ring, 3.0), 3.0)
    assert shapely.hausdorff_distance(shapely.Polygon(found), house) < 0.75
    way = np.roll(found, -1, axis=0) - found
    after = np.roll(way, -1, axis=0)
    turns = np.degrees(np.arctan2(way[:, 0] * after[:, 1] - way[:, 1] * after[:, 0], (way * after).sum(axis=1)))
    assert sorted(np.abs(turns).round().tolist()) == [45, 45, 90, 90, 90]


@pytest.mark.parametrize("tolerance", [2.0, 4.0])
def test_no_point_of_either_outline_is_farther_than_the_tolerance_from_the_other(tolerance):
    rng = np.random.default_rng(5)
    drawn = shapely.union_all([rectangle(*rng.uniform(15, 90, 2), 30, *rng.uniform(110, 190, 2)) for _ in range(6)])
    ring = ring_of(drawn.buffer(4).buffer(-4))
    found = squared(ring, direction(ring, tolerance), tolerance)
    one, other = shapely.linearrings(ring.astype(float)), shapely.linearrings(found)
    assert shapely.hausdorff_distance(one, other, densify=0.02) <= tolerance + 0.3
    # One corner of a pixel that is too far is seen, whichever of the two outlines it belongs to.
    far = np.concatenate([found, found[:1] + [[0, -3 * tolerance]]])
    assert close(found, found, 0.01) and not close(far, found, tolerance) and not close(found, far, tolerance)


def test_corners_are_found_where_a_ring_passes_a_point_twice():
    ring = np.array([(0, 0), (9, 0), (9, 9), (5, 5), (9, 2), (5, 5), (0, 5)])  # (5, 5) on the way there and back
    assert _corners(ring, 0.1).tolist() == [0, 1, 2, 3, 4, 5, 6]


def town():
    """A map of wide patches with rectangles on it, and these."""
    rng = np.random.default_rng(3)
    drawn = [
        rectangle(rng.uniform(20, 60), rng.uniform(16, 40), rng.uniform(0, 180), 50 + 100 * col, 50 + 100 * row)
        for row in range(3)
        for col in range(4)
    ]
    ground = np.array([0, 1, 3])[ndimage.gaussian_filter(rng.standard_normal((3, 300, 400)), (0, 15, 15)).argmax(0)]
    return np.where(rasterize([(one, 1) for one in drawn], ground.shape), BUILDING, ground).astype(np.uint8), drawn


@pytest.mark.parametrize("rows", [None, 37, 16])
def test_buildings_have_right_angles_and_their_neighbours_the_same_borders(tmp_path, rows):
    index, drawn = town()
    said = []
    vectorize(
        write(tmp_path / "map.tif", index),
        tmp_path / "a.parquet",
        regularise=[],
        min_area=40,
        rows=rows,
        say=said.append,
    )
    outlines, classes = read(tmp_path / "a.parquet")
    assert shapely.is_valid(outlines).all() and shapely.coverage_is_valid(outlines)
    assert shapely.area(outlines).sum() == pytest.approx(index.size, abs=1e-6)
    found = outlines[classes == BUILDING]
    assert len(found) == len(drawn)
    for one in drawn:
        nearest = min(found, key=lambda other: shapely.hausdorff_distance(one, other))
        assert shapely.hausdorff_distance(one, nearest) < 1
        assert nearest.area == pytest.approx(one.area, rel=0.03)
        # What else is in its outline are the ends of borders of others, on straight walls.
        assert len(shapely.simplify(nearest, 0.01).exterior.coords) == 5
    assert said[0].startswith("12 of 12 polygons have right angles, within 3 pixels")
    vectorize(tmp_path / "map.tif", tmp_path / "b.parquet", simplify=0, min_area=40)
    exact, of = read(tmp_path / "b.parquet")
    areas = [shapely.area(some).sum() for some in (exact[of == BUILDING], found)]
    assert any("building: {:.6g} square metres in pixels, {:.6g} as polygons".format(*areas) in line for line in said)


@pytest.mark.parametrize("seed", [0, 28, 31])
def test_whatever_the_map_the_faces_stay_and_the_coverage_is_valid(tmp_path, seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(20, 60, 2)
    blur = rng.uniform(1.5, 4)
    index = ndimage.gaussian_filter(rng.standard_normal((4, height, width)), (0, blur, blur)).argmax(0).astype(np.uint8)
    index[:5, :7] = 255
    path = write(tmp_path / "map.tif", index)
    some = {"regularise": ["Building", "road"], "tolerance": 8.0, "rows": int(rng.integers(5, 90))}
    for simplify in (0, 2):
        vectorize(path, tmp_path / "a.parquet", simplify=simplify, **some)
        vectorize(path, tmp_path / "plain.parquet", simplify=0)
        outlines, classes = read(tmp_path / "a.parquet")
        plain, before = read(tmp_path / "plain.parquet")
        assert shapely.is_valid(outlines).all() and shapely.coverage_is_valid(outlines)
        assert np.bincount(classes).tolist() == np.bincount(before).tolist()
        if simplify == 0:  # what is not mapped stays as it is
            assert shapely.area(outlines).sum() == pytest.approx((index != 255).sum())
            # What was regularised lies where it was.
            wanted = plain[np.isin(before, (1, 2))]
            for one in outlines[np.isin(classes, (1, 2))]:
                nearest = min(shapely.hausdorff_distance(one.exterior, other.exterior) for other in wanted)
                assert nearest <= 2 * some["tolerance"] + 1


def test_a_face_of_one_pixel_beside_a_building_keeps_it_as_it_is(tmp_path):
    index = np.zeros((60, 60), np.uint8)
    index[rasterize([(rectangle(30, 20, 20, 30, 30), 1)], index.shape) == 1] = BUILDING
    alone = index.copy()
    row = int(np.flatnonzero(index[:, 30] == BUILDING)[0]) - 1
    index[row, 30] = 1
    for pixels, wanted in ((alone, "1 of 1"), (index, "0 of 1")):
        said = []
        vectorize(write(tmp_path / "map.tif", pixels), tmp_path / "a.parquet", regularise=[], say=said.append)
        assert said[0].startswith(wanted), said
        outlines, classes = read(tmp_path / "a.parquet")
        assert shapely.coverage_is_valid(outlines) and len(classes) == len(np.unique(pixels))


@pytest.mark.parametrize("gap", [0, 1])
def test_a_wall_does_not_come_to_lie_on_the_border_of_another_face(tmp_path, monkeypatch, gap):
    """Half of the wall ends at row 32, half at 30; it comes to lie at 31, where another face may begin."""
    index = np.zeros((60, 60), np.uint8)
    index[10:30, 14:46] = index[30:32, 22:38] = BUILDING
    index[31 + gap : 34, 40:44] = 1
    monkeypatch.setattr(regularise, "direction", lambda ring, tolerance: 0.0)
    said = []
    vectorize(write(tmp_path / "map.tif", index), tmp_path / "a.parquet", regularise=[], say=said.append)
    outlines, classes = read(tmp_path / "a.parquet")
    assert said[0].startswith(f"{gap} of 1 polygons"), said
    assert shapely.is_valid(outlines).all() and shapely.coverage_is_valid(outlines)
    assert sorted(classes.tolist()) == [0, 1, 2]
    (house,) = outlines[classes == BUILDING]
    assert house.bounds[3] == (31 if gap else 32)


LEFT = "24 23 22 21 19 18 17 16 14 13 12 11 9 8 7 6 5 3 2 1 1 2 3 3 4 5 6 7 7 8 9 10 11 11 12 13 14 15 16 16 17 18"
RIGHT = (
    "26 27 28 28 29 30 31 32 33 33 34 35 36 37 37 38 39 40 41 41 42 43 "
    "43 42 41 39 38 37 36 35 33 32 31 30 28 27 26 25 23 22 21 20"
)


@pytest.mark.parametrize("rows", [None, 18, 19, 20])
def test_a_face_is_not_squeezed_flat_between_a_wall_that_a_seam_cuts_and_another_line(tmp_path, rows):
    """With the seam at row 19 as much was left of the pixel beside the wall as the rounding of the cut makes."""
    index = np.zeros((44, 44), np.uint8)
    for row, (left, right) in enumerate(zip(LEFT.split(), RIGHT.split(), strict=True), start=1):
        index[row, int(left) : int(right)] = BUILDING
    index[18, 2] = 1
    vectorize(write(tmp_path / "map.tif", index), tmp_path / "a.parquet", regularise=[], rows=rows)
    outlines, classes = read(tmp_path / "a.parquet")
    assert shapely.is_valid(outlines).all() and shapely.coverage_is_valid(outlines)
    assert sorted(classes.tolist()) == [0, 1, 2]


def test_buildings_that_touch_the_edge_or_are_too_large_stay_and_are_counted(tmp_path, monkeypatch):
    index = np.zeros((200, 100), np.uint8)
    shapes = [
        rectangle(30, 20, 20, 0, 60),
        rectangle(60, 20, 80, 60, 60),
        rectangle(60, 16, 10, 50, 120),
        rectangle(20, 12, 30, 60, 160),
    ]
    index[rasterize([(one, 1) for one in shapes], index.shape) == 1] = BUILDING
    path = write(tmp_path / "map.tif", index)
    monkeypatch.setattr(regularise, "MOST", 40)
    said = []
    vectorize(path, tmp_path / "a.parquet", regularise=["building"], rows=16, say=said.append)
    assert said[0].startswith("1 of 4 polygons have right angles")
    assert sorted(said[1].removeprefix("left as they were: ").split(", ")) == [
        "1 at the edge of what is mapped",
        "2 too large",
    ]


def test_a_courtyard_is_squared_with_its_building(tmp_path):
    index = np.zeros((120, 120), np.uint8)
    outer, inner = rectangle(80, 60, 20, 60, 60), rectangle(40, 24, 20, 60, 60)
    index[rasterize([(outer.difference(inner), 1)], index.shape) == 1] = BUILDING
    vectorize(write(tmp_path / "map.tif", index), tmp_path / "a.parquet", regularise=[], rows=50)
    outlines, classes = read(tmp_path / "a.parquet")
    assert shapely.coverage_is_valid(outlines)
    (house,) = outlines[classes == BUILDING]
    assert len(house.interiors) == 1
    assert shapely.hausdorff_distance(house, outer.difference(inner)) < 0.75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--regularise", "barn"],
            "has no class barn that could be regularised; its classes are grass, road, building",
        ),
        (["--regularise", "--tolerance", "0"], "tolerance is 0.0; it is a number of pixels above 0, 100 at most"),
        (["--regularise", "--tolerance", "nan"], "tolerance is nan"),
        (["--regularise", "--tolerance", "0m"], "tolerance is 0.0; it is a number of pixels above 0, 100 at most"),
        (["--regularise", "--tolerance", "101m"], "tolerance is 101.0; it is a number of pixels above 0, 100 at most"),
        (["--regularise", "--tolerance", "2 km"], "'2 km' is no length: 3 (pixels) or 0.5m (metres on the ground)"),
        (["--tolerance", "2"], "--tolerance is for --regularise; for other outlines it is --simplify"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_leaves_nothing(tmp_path, capsys, options, message):
    path = write(tmp_path / "map.tif", np.zeros((9, 9), np.uint8))
    try:
        assert main(["vectorize", str(path), "--out", str(tmp_path / "a.gpkg"), *options]) == 2
    except SystemExit as end:  # of argparse
        assert end.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "a.gpkg").exists()


def test_lengths_may_be_metres_on_the_ground(tmp_path):
    index, _ = town()
    path = tmp_path / "map.tif"
    profile = {"driver": "GTiff", "count": 1, "height": 300, "width": 400, "nodata": 255, "dtype": "uint8"}
    for crs, side in [("EPSG:25832", 0.5), ("EPSG:2263", 0.5 / 0.3048006)]:  # two pixels a metre, in feet as well
        with open_raster(path, "w", crs=crs, transform=Affine(side, 0, 0, 0, -side, 0), **profile) as file:
            file.write(index, 1)
            file.update_tags(CLASS_NAMES=json.dumps(NAMES))
        said = {}
        for name, lengths in {"px": ["2.1", "4.1"], "m": ["1.05m", "2.05m"]}.items():
            out = str(tmp_path / f"{name}.parquet")
            simplify, tolerance = lengths
            options = ["--regularise", "--tolerance", tolerance, "--simplify", simplify]
            assert main(["vectorize", str(path), "--out", out, *options]) == 0
            said[name] = read(out)[0]
        assert shapely.equals_exact(said["px"], said["m"], 1e-6).all()
    # In Mercator at 60 degrees two of its metres are one on the ground.
    north = Affine(1, 0, 0, 0, -1, 8_399_738)
    assert in_pixels(Metres(3), CRS.from_epsg(3857), north, (100, 100)) == pytest.approx(6, rel=0.01)


def test_metres_on_a_map_that_lies_nowhere_are_refused(tmp_path, capsys):
    path = str(tmp_path / "map.tif")
    with open_raster(path, "w", driver="GTiff", count=1, height=9, width=9, dtype="uint8") as file:
        file.write(np.zeros((9, 9), np.uint8), 1)
    assert main(["vectorize", path, "--out", str(tmp_path / "a.gpkg"), "--simplify", "1m"]) == 2
    assert "1 m cannot be told in pixels, as the map has no CRS; give pixels" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--regularise"], ["--regularise", "building"], ["--confidence", "sure.tif"]])
def test_a_map_that_an_option_took_for_its_own_is_asked_for(tmp_path, capsys, words):
    path = str(write(tmp_path / "map.tif", np.zeros((9, 9), np.uint8)))
    with pytest.raises(SystemExit) as end:
        main(["vectorize", *words, path, "--out", str(tmp_path / "a.gpkg")])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "required: MAP (before the options: one that takes several values takes what follows it, too)" in line


def test_a_map_without_buildings_asks_for_names(tmp_path, monkeypatch):
    monkeypatch.setattr("rs_biformer.raster.vector.BUILDINGS", ("hut",))
    with pytest.raises(ConfigError, match="has no class hut; name those that are to be regularised of grass, road"):
        vectorize(write(tmp_path / "map.tif", np.zeros((9, 9), np.uint8)), tmp_path / "a.gpkg", regularise=[])
