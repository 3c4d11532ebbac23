import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.labels import LabelRaster
from rs_biformer.synthetic import SCHEMA, Town, drawing, make_scene, render, scenes, town
from rs_biformer.synthetic.plots import LAND_USES
from rs_biformer.synthetic.things import BUILDING, MEADOW

GSD = 0.4
WHOLE = Window(0, 0, 220, 260)


@pytest.fixture(scope="module")
def whole():
    """A window of a town drawn in one go."""
    return render(Town.from_seed(3), WHOLE, GSD)


@settings(max_examples=12)
@given(st.integers(0, 219), st.integers(0, 259), st.integers(1, 220), st.integers(1, 260))
def test_a_window_holds_the_same_pixels_drawn_alone_or_within_a_larger_one(whole, row, col, height, width):
    window = Window(row, col, min(height, 220 - row), min(width, 260 - col))
    image, label = render(Town.from_seed(3), window, GSD)
    np.testing.assert_array_equal(image, whole[0][:, *window.slices])
    np.testing.assert_array_equal(label, whole[1][window.slices])


def test_a_scene_written_in_pieces_equals_one_drawn_at_once(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "PIECE", (96, 112))
    done = []
    make_scene(
        tmp_path / "a.tif",
        tmp_path / "a_label.tif",
        height=220,
        width=260,
        seed=3,
        gsd=GSD,
        progress=lambda part, total: done.append((part, total)),
    )
    with rasterio.open(tmp_path / "a.tif") as image, LabelRaster(tmp_path / "a_label.tif", SCHEMA) as label:
        np.testing.assert_array_equal(image.read(), whole[0])
        index, unknown = label.read(WHOLE)
    np.testing.assert_array_equal(index, whole[1])
    assert not unknown, "the label has colours that the schema lacks"
    assert len(done) == 9 and done[-1] == (220 * 260, 220 * 260)


def test_scene_and_label_lie_where_they_were_told_to(tmp_path):
    place = {"origin": (500_100.0, 5_400_200.0), "crs": "EPSG:32632", "gsd": 0.25}
    make_scene(tmp_path / "a.tif", tmp_path / "b.tif", height=30, width=41, seed=0, **place)
    for name in ("a.tif", "b.tif"):
        with rasterio.open(tmp_path / name) as file:
            assert (file.height, file.width, file.count, file.dtypes[0]) == (30, 41, 3, "uint8")
            assert file.crs == CRS.from_epsg(32632)
            assert file.transform @ (0, 0) == (500_100.0, 5_400_200.0)
            assert file.transform @ (41, 30) == (500_100.0 + 41 * 0.25, 5_400_200.0 - 30 * 0.25)
            assert file.nodata is None


def test_a_seed_decides_all_and_another_seed_is_another_town():
    window = Window(7, 9, 60, 50)
    first, again, other = (render(Town.from_seed(seed), window, GSD) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[0] != other[0]).mean() > 0.9
    assert (first[1] != other[1]).mean() > 0.2


def test_class_shares_are_those_of_a_town():
    label = np.concatenate([render(Town.from_seed(seed), Window(0, 0, 700, 700), 0.5)[1].ravel() for seed in (1, 2)])
    share = dict(zip(SCHEMA.classes, np.bincount(label, minlength=6) / label.size, strict=True))
    bounds = {
        "impervious surface": (0.20, 0.36),
        "building": (0.18, 0.32),
        "low vegetation": (0.16, 0.32),
        "tree": (0.14, 0.30),
        "car": (0.008, 0.03),
        "clutter": (0.003, 0.03),
    }
    assert all(low < share[name] < high for name, (low, high) in bounds.items()), share


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_shadow_falls_away_from_the_sun_as_far_as_the_tower_is_high(seed):
    sun = Town.from_seed(seed)
    gsd, tower = 0.25, 10.0
    height = np.zeros((241, 241), np.float32)
    height[118:123, 118:123] = tower
    shaded = drawing._shadow_height(height, drawing._shadow_steps(sun, gsd)) > height + 0.25
    rows, cols = np.nonzero(shaded)
    # In pixels from the tower, along the direction in which light travels: east and south components.
    along = (cols - 120) * -math.sin(sun.sun_azimuth) + (rows - 120) * math.cos(sun.sun_azimuth)
    across = (cols - 120) * math.cos(sun.sun_azimuth) + (rows - 120) * math.sin(sun.sun_azimuth)
    length = tower / math.tan(sun.sun_elevation) / gsd
    assert along.min() > 0
    assert along.max() == pytest.approx(length, abs=6)
    assert np.abs(across).max() < 9
    assert shaded.sum() > 3 * length


def test_a_roof_that_faces_the_sun_is_brighter_than_one_that_does_not():
    sun = Town.from_seed(1)
    canvas = drawing._Canvas(sun, (0, 0, 60, 60), 0.25)
    to_sun = canvas.x[None, :] * math.sin(sun.sun_azimuth) - canvas.y[:, None] * math.cos(sun.sun_azimuth)
    canvas.height[:] = 20 - 0.5 * to_sun
    facing = drawing._sunlight(sun, canvas, [])[30, 30]
    canvas.height[:] = 20 + 0.5 * to_sun
    averted = drawing._sunlight(sun, canvas, [])[30, 30]
    slope, elevation = math.atan(0.5), sun.sun_elevation
    assert facing == pytest.approx(min(1.3, math.sin(elevation + slope) / math.sin(elevation)), rel=1e-3)
    assert averted == pytest.approx(math.sin(elevation - slope) / math.sin(elevation), rel=1e-3)


def test_the_higher_of_two_things_is_seen():
    canvas = drawing._Canvas(Town.from_seed(1), (0, 0, 20, 20), 1.0)
    everywhere = np.ones((20, 20), bool)
    frame = (slice(0, 20), slice(0, 20))
    roof, lawn = MEADOW._replace(label=BUILDING), MEADOW
    canvas.paint(frame, everywhere, np.float32(5), roof)
    canvas.paint(frame, everywhere, np.float32(0), lawn)
    assert {canvas.table[number].label for number in np.unique(canvas.surface)} == {BUILDING}


@given(st.integers(0, 50), st.floats(-5000, 5000), st.floats(-5000, 5000))
def test_the_plane_is_found_again_from_grid_coordinates(seed, x, y):
    place = Town.from_seed(seed)
    again = place.to_plane(*place.to_grid(np.array([x]), np.array([y])))
    np.testing.assert_allclose(np.ravel(again), [x, y], atol=0.02)


def test_every_land_use_takes_about_its_share_of_any_few_dozen_blocks():
    place = Town.from_seed(4)
    for corner in (0, 100, -37):
        uses = Counter(town._land_use(place, corner + i, corner + j) for i in range(8) for j in range(8))
        for use, share in LAND_USES:
            assert abs(uses[use] / 64 - share) < 0.05


def test_memory_does_not_grow_with_the_scene(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "PIECE", (64, 64))

    def peak(size):
        town.plan_block.cache_clear()
        tracemalloc.start()
        make_scene(tmp_path / "a.tif", tmp_path / "b.tif", height=size, width=64, seed=0, gsd=0.25)
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small = peak(64)
    assert peak(640) < 1.5 * small


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"height": 0}, "0 x 20 pixels"),
        ({"width": -1}, "20 x -1 pixels"),
        ({"seed": -1}, "seed is -1"),
        ({"gsd": 0.0}, "gsd is 0"),
        ({"gsd": float("nan")}, "gsd is nan"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_file_is_written(tmp_path, wrong, said):
    with pytest.raises(ConfigError, match=said):
        make_scene(tmp_path / "a.tif", tmp_path / "b.tif", **({"height": 20, "width": 20, "seed": 0} | wrong))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RasterError, match="file"):
        make_scene(tmp_path / "file" / "a.tif", tmp_path / "file" / "b.tif", height=5, width=5, seed=0)
