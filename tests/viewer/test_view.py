"""Layers, the pixel under the cursor, areas and places, against rasterio and numpy."""

import numpy as np
import pytest
import rasterio
import shapely
from pyogrio.raw import write
from rasterio.features import rasterize
from rasterio.transform import Affine, from_origin
from rasterio.warp import transform
from rasters import COLOURS, NAMES, write_map

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.pyramid import level_grid
from rs_biformer.viewer.facts import cell_means, outstanding, places_of
from rs_biformer.viewer.view import View

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
RNG = np.random.default_rng(3)
INDEX = RNG.integers(0, 4, (120, 170)).astype(np.uint8)
INDEX[:15, :40] = 255
PLACES = {
    "projected": ("EPSG:25832", from_origin(500_000, 5_400_000, 0.5, 0.5)),
    "degrees": ("EPSG:4326", from_origin(9.0, 48.7, 1e-5, 7e-6)),
    "web mercator": ("EPSG:3857", from_origin(1e6, 6.2e6, 0.6, 0.6)),
    "south-up": ("EPSG:25832", Affine(0.5, 0, 500_000, 0, 0.5, 5_400_000)),
    "rotated": ("EPSG:25832", Affine(0.4, 0.3, 500_000, 0.3, -0.4, 5_400_000)),
    "without a CRS": (None, from_origin(1000, 2000, 2, 2)),
    "without a place": (None, Affine.identity()),
}


def draw(view, key, level=0, **options):
    grid = level_grid(view.frame.grid, level)
    return view.layers[key].draw(level, Window(0, 0, grid.height, grid.width), **options)


@pytest.mark.parametrize("name", PLACES)
def test_the_class_under_the_cursor_is_that_of_rasterio(write_raster, name):
    crs, place = PLACES[name]
    path = write_map(write_raster, "map.tif", INDEX, crs=crs, transform=place)
    with View(path) as view, rasterio.open(path) as file:
        grid = view.frame.grid
        found = 0
        for col, row in RNG.uniform(0, 1, (60, 2)) * (grid.width, grid.height):
            told = view.tell(col, row)
            x, y = told["position"] or (col, row)
            expected = next(file.sample([(x, y)]))[0] if told["position"] else INDEX[int(row), int(col)]
            inside = told["position"] is None or all(
                0 <= part < size for part, size in zip(file.index(x, y), file.shape, strict=True)
            )
            assert told["layers"].get("map", {"class": 255})["class"] == (expected if inside else 255)
            found += "map" in told["layers"]
            assert (told["lonlat"] is not None) == (crs is not None)
            if crs is not None:
                (longitude,), (latitude,) = transform(crs, "EPSG:4326", [x], [y])
                assert told["lonlat"] == pytest.approx((longitude, latitude))
        assert found > 20


def test_the_picture_of_a_map_has_its_colours_and_nothing_where_there_is_no_class(write_raster):
    with View(write_map(write_raster, "map.tif", INDEX)) as view:
        picture = draw(view, "map")
        alone = draw(view, "map", only=2)
    table = np.zeros((256, 4), np.uint8)
    table[:4] = [(*colour, 255) for colour in COLOURS]
    assert np.array_equal(picture, table[INDEX])
    assert np.array_equal(alone[..., 3] > 0, INDEX == 2)


def test_rows_run_from_north_to_south_whatever_the_file_does(write_raster):
    index = np.zeros((4, 6), np.uint8)
    index[0] = 1  # the southernmost row of the ground
    path = write_map(write_raster, "map.tif", index, transform=Affine(1, 0, 500_000, 0, 1, 5_400_000))
    with View(path) as view:
        assert (draw(view, "map")[-1, :, :3] == COLOURS[1]).all()


def test_labels_errors_and_second_maps_are_compared_by_the_names_of_classes(write_raster):
    label = np.where(INDEX == 255, 255, (INDEX + (RNG.random(INDEX.shape) < 0.2)) % 4).astype(np.uint8)
    colours = np.moveaxis(np.array([*COLOURS, *[(0, 0, 0)] * 252], np.uint8)[label], -1, 0)
    order = ("water", "road", "roof", "wood")
    other = np.where(label == 255, 255, (label + 1) % 4).astype(np.uint8)  # the label, numbered in another order
    with View(
        write_map(write_raster, "map.tif", INDEX),
        label=write_raster("label.tif", colours),
        other=write_map(write_raster, "other.tif", other, order),
    ) as view:
        wrong = (INDEX != label) & (INDEX != 255)
        for key in ("errors", "changes"):
            assert np.array_equal(draw(view, key)[..., 3] > 0, wrong)
        view.work()
        state = view.state()
    assert state["done"] and not state["problems"]
    for key, index in (("map", INDEX), ("label", label), ("other", label)):
        counts = np.bincount(index[index != 255], minlength=4)
        assert state["areas"][key]["sizes"] == pytest.approx((counts * 0.25).tolist(), rel=1e-3)
        assert state["areas"][key]["shares"] == pytest.approx((counts / counts.sum()).tolist())
        assert state["areas"][key]["every"] == 1 and state["areas"][key]["unit"] == "m2"


def test_areas_of_a_map_without_a_place_are_pixels(write_raster):
    with View(write_map(write_raster, "map.tif", INDEX, crs=None, transform=Affine.identity())) as view:
        view.work()
        areas = view.state()["areas"]["map"]
    assert areas["unit"] == "pixels" and areas["sizes"] == np.bincount(INDEX[INDEX < 255]).tolist()


def test_a_scene_of_16_bits_is_stretched_and_tells_its_own_numbers(write_raster):
    scene = RNG.normal(3000, 400, (4, 120, 170)).clip(0, 65535).astype(np.uint16)
    scene[:, :10] = 0
    path = write_raster("scene.tif", scene, nodata=0)
    with View(write_map(write_raster, "map.tif", INDEX), path, bands=[4, 2, 1]) as view:
        picture = draw(view, "scene")
        assert not picture[:10, :, 3].any() and picture[10:, :, 3].all()
        shown = picture[10:, :, 0].astype(float)
        low, high = np.percentile(scene[3, 10:], (2, 98))
        expected = ((scene[3, 10:] - low) / (high - low)).clip(0, 1) * 255
        assert np.abs(shown - expected).max() <= 1
        assert view.tell(5.5, 20.5)["layers"]["scene"]["values"] == scene[[3, 1, 0], 20, 5].tolist()


def test_a_scene_of_one_value_or_none_is_drawn_too(write_raster):
    map_path = write_map(write_raster, "map.tif", INDEX)
    for name, value in (("same", 700), ("none", 0)):
        path = write_raster(f"{name}.tif", np.full((120, 170), value, np.uint16), nodata=0)
        with View(map_path, path) as view:
            assert (draw(view, "scene")[..., 3] > 0).all() == (value > 0)


def test_a_finer_scene_is_seen_in_all_its_detail(write_raster):
    scene = RNG.integers(0, 255, (3, 240, 340)).astype(np.uint8)
    map_path = write_map(write_raster, "map.tif", INDEX)
    path = write_raster("scene.tif", scene, transform=from_origin(500_000, 5_400_000, 0.25, 0.25))
    with View(map_path, path) as view:
        assert (view.frame.grid.height, view.frame.grid.width) == (240, 340)
        assert np.array_equal(draw(view, "scene")[..., :3], np.moveaxis(scene, 0, -1))
        assert np.array_equal(draw(view, "map")[::2, ::2, 3] > 0, INDEX != 255)
        assert view.tell(2 * 50.7, 2 * 40.2)["layers"]["map"]["class"] == INDEX[40, 50]


def test_scores_are_told_and_drawn_and_their_lowest_places_found(write_raster):
    confidence = np.full((300, 400), 240, np.uint8)
    confidence[100:120, 200:230] = 50
    confidence[:50] = 255
    probabilities = np.stack([confidence, 250 - np.minimum(confidence, 250), *np.zeros((2, 300, 400), np.uint8)])
    probabilities[:, :50] = 255
    index = np.zeros((300, 400), np.uint8)
    with View(
        write_map(write_raster, "map.tif", index),
        confidence=write_raster("c.tif", confidence, nodata=255),
        probabilities=write_raster("p.tif", probabilities, nodata=255),
    ) as view:
        told = view.tell(215.5, 110.5)["layers"]
        assert told["confidence"]["score"] == [0.2] and told["probabilities"]["probabilities"] == [0.2, 0.8, 0, 0]
        assert "confidence" not in view.tell(3.5, 3.5)["layers"]
        assert not draw(view, "confidence")[:50, :, 3].any()
        place = places_of(view.layers["confidence"], view.frame, low=True)[0]
    assert abs(place["col"] - 215) <= 16 and abs(place["row"] - 110) <= 16 and place["mean"] < 0.5


def test_what_was_decided_is_told(write_raster):
    path = write_map(write_raster, "map.tif", INDEX)
    shifted = write_raster("shifted.tif", INDEX, transform=from_origin(500_000.2, 5_400_000.1, 0.5, 0.5))
    without = write_raster("without.tif", INDEX, crs=None, transform=from_origin(500_000.2, 5_400_000.1, 0.5, 0.5))
    bare = write_raster("bare.tif", INDEX, crs=None, transform=Affine.identity())
    for scene, line in [
        (shifted, f"{shifted} lies on other pixels and is resampled to those of the map"),
        (without, f"{without} lies on other pixels and is resampled to those of the map, in the map's CRS"),
        (bare, f"{bare} has no place on the ground: it is laid on the map by its size"),
    ]:
        with View(path, scene) as view:
            assert view.notes == ["classes: road, roof, wood, water (map)", line]


def test_what_cannot_be_read_is_told_on_the_page_and_ends_the_wait(write_raster, monkeypatch):
    with View(write_map(write_raster, "map.tif", INDEX)) as view:

        def fail(layer):
            raise RasterError("https://me:word@host/map.tif cannot be read")

        monkeypatch.setattr("rs_biformer.viewer.view.areas_of", fail)
        view.work()
        assert view.state()["done"] and view.state()["problems"] == ["https://host/map.tif cannot be read"]


def test_places_do_not_touch_and_need_to_be_known():
    values = np.ones((64, 64))
    values[:8, :8], values[8:16, 8:16], values[40:48, 40:48] = 0, 0.1, 0.2
    values[56:, 56:], values[56, 56] = np.nan, 0  # hardly anything is known there
    means = cell_means(values, 8)
    assert np.isnan(means[7, 7])
    assert outstanding(means, low=True)[:2] == [(0, 0, 0.0), (5, 5, pytest.approx(0.2))]
    assert outstanding(np.zeros((4, 4)), low=False) == []


def test_what_cannot_be_shown_is_told_in_a_line(write_raster):
    path = write_map(write_raster, "map.tif", INDEX)
    far = write_raster("far.tif", INDEX, transform=from_origin(600_000, 5_400_000, 0.5, 0.5))
    image = write_raster("image.tif", np.zeros((3, 120, 170), np.uint8))
    floats = write_raster("floats.tif", np.zeros((120, 170), np.float32))
    strange = write_raster("strange.tif", np.full((120, 170), 77, np.uint8))
    others = write_map(write_raster, "others.tif", INDEX % 3, NAMES[:3])
    for options, message in [
        ({"map": path, "scene": far}, "does not overlap"),
        ({"map": image}, "has 3 bands and names no classes"),
        ({"map": floats}, "holds float32"),
        ({"map": path, "label": strange}, "holds 77, none of which is of the classes road, roof, wood, water"),
        ({"map": path, "other": others}, "give rasters of the same classes"),
        ({"map": path, "confidence": image}, "3 bands; --confidence is a raster of one band"),
        ({"map": path, "classes": "vaihingen"}, "leave --classes out"),
        ({"map": path, "scene": path.with_name("none.tif")}, "does not exist"),
    ]:
        with pytest.raises(RasterError, match=message):
            View(**options)


def test_a_map_that_names_nothing_has_a_class_for_each_value(write_raster):
    values = np.array([[3, 3, 9], [9, 40, 255]], np.uint8)
    with View(write_raster("map.tif", values, nodata=255)) as view:
        assert view.schema.classes == ("class 3", "class 9", "class 40")
        assert [view.tell(col + 0.5, 1.5)["layers"].get("map") for col in range(3)] == [
            {"class": 1},
            {"class": 2},
            None,
        ]
        assert len(set(view.schema.colours)) == 3


@pytest.mark.parametrize("most", [None, 5000])
def test_polygons_are_a_label_on_the_pixels_of_the_map_or_on_larger_ones(write_raster, tmp_path, monkeypatch, most):
    """Against rasterio's own drawing of the polygons, which lie in another CRS."""
    if most:
        monkeypatch.setattr("rs_biformer.raster.drawn.MOST_DRAWN", most)
    crs, place = PLACES["projected"]
    boxes = [shapely.box(10, 20, 60, 90), shapely.box(80, 4, 160, 50)]
    ground = [shapely.transform(box, lambda points: np.stack(place @ points.T, axis=1)) for box in boxes]
    lonlat = [shapely.transform(box, lambda p: np.stack(transform(crs, "EPSG:4326", *p.T), axis=1)) for box in ground]
    names = np.array(["roof", "wood"], object)
    write(tmp_path / "l.gpkg", shapely.to_wkb(np.array(lonlat)), [names], ["kind"], geometry_type="Polygon",
          crs="EPSG:4326")  # fmt: skip
    expected = rasterize(zip(boxes, (1, 2), strict=True), INDEX.shape, fill=255)
    with View(write_map(write_raster, "m.tif", INDEX, crs=crs, transform=place), label=tmp_path / "l.gpkg") as view:
        layer, drawn = view.layers["label"], view.layers["label"].pyramids[0].source.path
        for row, col in RNG.integers((8, 8), (112, 162), (200, 2)).tolist():
            if (expected[row - 3 : row + 4, col - 3 : col + 4] != expected[row, col]).any():
                continue
            wanted = None if expected[row, col] == 255 else int(expected[row, col])
            assert layer.at(col + 0.5, row + 0.5) == wanted
        known = (expected != 255) & (INDEX != 255)
        level = view.layers["errors"].read(0, Window(0, 0, *INDEX.shape))
        if not most:
            assert (level[known] == (INDEX != expected)[known]).all()
        assert any("polygons are read by the attribute kind" in line for line in view.notes)
        assert any("drawn on pixels 3 times as large" in line for line in view.notes) == bool(most)
        assert drawn.exists() and drawn.stem == "l"
    assert not drawn.parent.exists()


def test_polygons_of_other_classes_or_places_are_refused(write_raster, tmp_path):
    crs, place = PLACES["projected"]
    made = write_map(write_raster, "m.tif", INDEX, crs=crs, transform=place)
    for name, x, message in (("lava", 500_010, "no attribute holds the classes"), ("roof", 1, "does not overlap")):
        path = tmp_path / f"{name}.gpkg"
        box = shapely.box(x, 5_399_950, x + 9, 5_399_990)
        write(path, [shapely.to_wkb(box)], [np.array([name], object)], ["kind"], geometry_type="Polygon", crs=crs)
        with pytest.raises(RasterError, match=message):
            View(made, label=path)
