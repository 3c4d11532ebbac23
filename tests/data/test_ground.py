import math
import warnings

import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine
from rasterio.warp import transform

from rs_biformer.data.ground import Frame, area_text, overlaps, shared_between, sites, square_metres
from rs_biformer.data.splits import Blocks, split_by_place
from rs_biformer.geometry import Windows, grid
from rs_biformer.raster.scene import Scene

UTM = CRS.from_epsg(25832)
HERE = 5e5, 5.4e6


def frame(x=0.0, y=0.0, *, height=100, width=100, pixel=1.0, turn=0.0, crs=UTM):
    """A frame whose upper left corner lies x metres east and y metres north of HERE, turned around it."""
    place = Affine.translation(HERE[0] + x, HERE[1] + y) @ Affine.rotation(turn) @ Affine.scale(pixel, -pixel)
    return Frame(height, width, crs, place)


def pairs(*frames):
    return [(overlap.first, overlap.second) for overlap in overlaps(frames)]


def test_neighbours_that_abut_or_overlap_by_a_rounding_share_nothing():
    assert pairs(frame(), frame(100), frame(0, -100), frame(99.7, 100)) == []
    assert pairs(frame(), frame(99), frame(50, 50), frame(500)) == [(0, 1), (0, 2), (1, 2)]


def test_what_is_shared_is_as_large_as_it_is():
    (overlap,) = overlaps([frame(), frame(60, -30)])
    assert overlap.ground.area == pytest.approx(40 * 70)
    (overlap,) = overlaps([frame(), frame(50, -50, height=10, width=10, turn=45)])
    assert overlap.ground.area == pytest.approx(100)


def test_a_turned_frame_is_more_than_nothing_and_less_than_its_box():
    corner = frame(95, 60, turn=45)  # its box overlaps, it does not
    box = shapely.box(*corner.outline(UTM).bounds)
    assert box.intersects(frame().outline(UTM))
    assert pairs(frame(), corner) == []


def test_ground_is_found_across_reference_systems():
    lon, lat = (axis[0] for axis in transform(UTM, CRS.from_epsg(4326), [HERE[0] + 20], [HERE[1] - 20]))
    degrees = Frame(50, 50, CRS.from_epsg(4326), Affine(1e-5, 0, lon, 0, -1e-5, lat))
    other_zone = transform(UTM, CRS.from_epsg(32633), [HERE[0] + 20], [HERE[1] - 20])
    moved = Frame(50, 50, CRS.from_epsg(32633), Affine(1, 0, other_zone[0][0], 0, -1, other_zone[1][0]))
    far = Frame(50, 50, CRS.from_epsg(32633), Affine(1, 0, 7e5, 0, -1, 5.4e6))
    southern = Frame(50, 50, CRS.from_epsg(32755), Affine(1, 0, 7e5, 0, -1, 5.4e6))
    assert pairs(frame(), degrees, moved, far, southern) == [(0, 1), (0, 2), (1, 2)]


def test_heights_in_the_reference_system_do_not_matter(write_raster):
    paths = [
        write_raster(f"{n}.tif", np.ones((1, 50, 50), np.uint8), crs=crs)
        for n, crs in enumerate(("EPSG:32633", "EPSG:32633+5773"))
    ]
    frames = []
    for path in paths:
        with Scene(path) as scene:
            frames.append(Frame.of(scene))
    assert pairs(*frames) == [(0, 1)]


def test_control_points_are_a_place(tmp_path, write_raster):
    plain = write_raster("a.tif", np.ones((1, 50, 50), np.uint8))
    path = tmp_path / "gcp.tif"
    points = [
        GroundControlPoint(row, col, 5e5 + 10 + col / 2, 5.4e6 - 10 - row / 2) for row in (0, 50) for col in (0, 50)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", height=50, width=50, count=1, dtype="uint8") as sink:
            sink.gcps = points, CRS.from_epsg(25832)
            sink.write(np.ones((1, 50, 50), np.uint8))
    with Scene(plain) as one, Scene(path) as two:
        (overlap,) = overlaps([Frame.of(one), Frame.of(two)])
    assert overlap.ground.area == pytest.approx(15 * 15)


@pytest.mark.parametrize(
    "place",
    [
        Affine.identity(),
        Affine(0, 0, 5e5, 0, 0, 5.4e6),
        Affine(1e308, 0, 5e5, 0, -1e308, 5.4e6),
        Affine(1, 0, math.inf, 0, -1, 0),
        Affine(1, 0, math.nan, 0, -1, 0),
    ],
)
def test_a_georeference_that_places_nothing_is_none(monkeypatch, write_raster, place):
    with Scene(write_raster("a.tif", np.ones((1, 50, 50), np.uint8))) as scene:
        monkeypatch.setattr(Scene, "transform", place)
        monkeypatch.setattr(Scene, "georeference", {"gcps": ([], None)})
        assert Frame.of(scene).crs is None
    assert pairs(frame(), Frame(100, 100, None, place), Frame(100, 100, None, frame().transform)) == []


def test_frames_over_a_pole_and_across_the_antimeridian_are_frames_like_others():
    for code, x in ((3031, 0.0), (3413, 0.0), (3575, 0.0), (32601, 1.7e5)):
        crs = CRS.from_epsg(code)
        one, two, apart = (Frame(100, 100, crs, Affine(100, 0, x + n, 0, -100, 5000)) for n in (-5000, -3000, 50_000))
        assert pairs(one, two, apart) == [(0, 1)], code


def test_scenes_that_are_linked_make_one_site():
    frames = [frame(), frame(1000), frame(90), frame(180), frame(1050)]
    assert sites(len(frames), overlaps(frames)) == [(0, 2, 3), (1, 4)]


def test_splits_that_share_ground_are_told_with_the_area_and_the_share():
    frames = [frame(), frame(50), frame(500), frame(0, 0, height=50)]
    shared = shared_between(frames, ["train", "val", "val", None], overlaps(frames))
    (found,) = shared
    assert found.splits == ("train", "val")
    assert found.area == pytest.approx(50 * 100)
    assert found.share == pytest.approx(0.5)
    assert found.describe("abcd") == "train and val share 5,000 m² of ground, 50% of the smaller: a and b"
    assert shared_between(frames, ["train", "train", "val", "test"], overlaps(frames))[0].splits == ("train", "test")


def test_areas_are_metres_in_degrees_too():
    degree = shapely.box(10, 48, 10.001, 48.001)
    expected = 6378137.0**2 * np.radians(0.001) ** 2 * np.cos(np.radians(48.0005))
    assert square_metres(degree, CRS.from_epsg(4326)) == pytest.approx(expected, rel=5e-3)
    feet = CRS.from_epsg(2263)
    assert square_metres(shapely.box(0, 0, 10, 10), feet) == pytest.approx(100 * (1200 / 3937) ** 2)
    assert [area_text(area) for area in (12.34, 9876, 12_345, 3_400_000)] == [
        "12.3 m²",
        "9,876 m²",
        "1.23 ha",
        "3.4 km²",
    ]


def windows_of(frame, size=16, stride=8):
    return Windows.of(grid(frame.height, frame.width, size, stride))


def drawn(frames, windows, splits):
    """The ground of each split, as the union of its windows."""
    ground = {}
    for one, own, chosen in zip(frames, windows, splits, strict=True):
        for split in ("train", "val", "test"):
            outlines = one.outlines(own.take(chosen == split), UTM)
            ground[split] = shapely.union_all([ground.get(split, shapely.Polygon()), *outlines])
    return ground


@given(
    st.lists(
        st.tuples(
            st.integers(-150, 150),
            st.integers(-150, 150),
            st.sampled_from([0, 0, 10, 45]),
            st.sampled_from([1, 1, 0.5, 2]),
        ),
        min_size=2,
        max_size=4,
    ),
    st.integers(0, 5),
)
@example([(0, -41, 0, 0.5), (-41, -116, 10, 1)], 0)
@settings(max_examples=40)
def test_blocks_leave_no_ground_in_two_splits_whatever_lies_upon_what(places, seed):
    frames = [frame(x, y, turn=turn, pixel=pixel, height=120, width=90) for x, y, turn, pixel in places]
    windows = [windows_of(one) for one in frames]
    splits, together = split_by_place(frames, windows, Blocks((0.5, 0.3, 0.2), 40, 6, seed))
    ground = drawn(frames, windows, splits)
    for one, two in (("train", "val"), ("train", "test"), ("val", "test")):
        # a rim of a quarter of a pixel of each may be shared, and a corner reaches further by a root of two
        rim = 1.5 * 0.25 * max(pixel for _, _, _, pixel in places)
        assert shapely.intersection(ground[one], ground[two]).buffer(-rim).is_empty
    assert all(len(members) > 1 for members in together)


def test_two_dates_of_one_place_are_dealt_alike_and_keep_the_buffer():
    frames = [frame(height=300, width=300)] * 2
    windows = [windows_of(one) for one in frames]
    splits, together = split_by_place(frames, windows, Blocks((0.5, 0.5, 0), 75, 10))
    assert together == [(0, 1)]
    assert np.array_equal(*splits)
    ground = drawn(frames, windows, splits)
    assert ground["train"].distance(ground["val"]) >= 10
    alone, _ = split_by_place(frames[:1], windows[:1], Blocks((0.5, 0.5, 0), 75, 10))
    assert np.array_equal(alone[0], splits[0]), "one date more changes nothing"


def test_scenes_apart_are_dealt_as_if_each_had_blocks_of_its_own():
    from rs_biformer.data.splits import assign_blocks, window_splits

    frames = [frame(height=130, width=70), frame(500, height=90, width=110), Frame(80, 80, None, Affine.identity())]
    windows = [windows_of(one) for one in frames]
    blocks = Blocks((0.6, 0.2, 0.2), 32, 4, 3)
    splits, together = split_by_place(frames, windows, blocks)
    assert together == []
    sizes = [(one.height, one.width) for one in frames]
    for one, own, size, dealt in zip(splits, windows, sizes, assign_blocks(sizes, blocks), strict=True):
        assert np.array_equal(one, window_splits(own, *size, dealt, blocks))
