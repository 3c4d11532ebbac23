"""Rasters on other grids: against linear ramps, which bilinear interpolation keeps, and against loops over weights."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pieces import blocks
from rasterio.warp import transform

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.regrid import CHUNK
from rs_biformer.raster.scene import Scene

UTM32, UTM33, LONLAT = "EPSG:25832", "EPSG:25833", "EPSG:4258"
EAST, NORTH = 800_000.0, 5_400_000.0
TOP = Affine(0.5, 0, EAST, 0, -0.5, NORTH)


def centres(place: Affine, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Map coordinates of the pixel centres, (height, width) each."""
    cols, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return place.a * cols + place.b * rows + place.c, place.d * cols + place.e * rows + place.f


def ramp(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Heights that rise by 3 m over 10 m eastwards and fall by 2 m over 10 m northwards."""
    return 400 + 0.3 * (x - EAST) - 0.2 * (y - NORTH)


@pytest.fixture
def top(write_raster) -> Path:
    """The raster that gives the grid: 200 x 300 pixels of half a metre."""
    return write_raster("top.tif", np.full((1, 200, 300), 9, np.uint8), crs=UTM32, transform=TOP)


@pytest.fixture
def heights(write_raster):
    def write(place: Affine, height: int, width: int, *, crs: str = UTM32, dtype: str = "float64", **options: object):
        return write_raster("dsm.tif", ramp(*centres(place, height, width)).astype(dtype), crs=crs, transform=place)

    return write


def read_all(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    return scene.read(Window(0, 0, scene.height, scene.width))


TURNED = Affine.translation(EAST + 50, NORTH + 120) @ Affine.rotation(-30) @ Affine.scale(0.7, -0.7)


@pytest.mark.parametrize(
    ("place", "size"),
    [
        (Affine(1, 0, EAST - 20, 0, -1, NORTH + 20), (200, 250)),  # twice as coarse
        (Affine(0.5, 0, EAST - 10.25, 0, -0.5, NORTH + 10.25), (300, 400)),  # half a pixel off
        (Affine(0.1, 0, EAST - 3, 0, -0.1, NORTH + 3), (1100, 1600)),  # five times as fine
        (Affine(0.13, 0, EAST - 3, 0, -0.31, NORTH + 3), (400, 1300)),  # oblong, an odd ratio
        (Affine(1, 0, EAST - 20, 0, 1, NORTH - 130), (200, 250)),  # south up
        (TURNED, (500, 500)),
    ],
)
def test_a_ramp_on_another_grid_is_the_ramp(top, heights, place, size):
    with Scene([top, heights(place, *size)]) as scene:
        pixels, valid = read_all(scene)
        assert (scene.height, scene.width, scene.transform, scene.crs.to_epsg()) == (200, 300, TOP, 25832)
    assert valid.all()
    assert (pixels[0] == 9).all()
    # Where the grid is coarser, the samples of the kernel lie unevenly about its centre unless the ratio is whole.
    off = 1e-6 if abs(place.determinant) > 0.2 or place.a == 0.1 else 0.1 * (0.13 * 0.3 + 0.31 * 0.2)
    np.testing.assert_allclose(pixels[1], ramp(*centres(TOP, 200, 300)), atol=off)


def test_integers_are_rounded(top, heights):
    with Scene([top, heights(Affine(0.7, 0, EAST - 20, 0, -0.7, NORTH + 20), 250, 320, dtype="uint16")]) as scene:
        pixels, valid = read_all(scene)
    assert pixels.dtype == np.uint16
    assert valid.all()
    assert np.abs(pixels[1] - ramp(*centres(TOP, 200, 300))).max() < 1.51  # the source is cut to integers, then rounded


@pytest.mark.parametrize(("crs", "step"), [(UTM33, 1.0), (LONLAT, 1e-5)])
def test_a_ramp_in_another_crs_is_the_ramp_at_the_same_place(top, write_raster, crs, step):
    """The raster covers the scene in its own CRS; its values are linear in its own coordinates."""
    x, y = centres(TOP, 200, 300)
    there = np.array(transform(UTM32, crs, x.ravel(), y.ravel())).reshape(2, 200, 300)
    left, bottom, right, upper = there[0].min(), there[1].min(), there[0].max(), there[1].max()
    place = Affine(step, 0, left - 5 * step, 0, -step, upper + 5 * step)
    size = int((upper - bottom) / step) + 10, int((right - left) / step) + 10

    def slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return ((x - left) * 0.3 - (y - bottom) * 0.2) / step

    dsm = write_raster("dsm.tif", slope(*centres(place, *size)), crs=crs, transform=place)
    with Scene([top, dsm]) as scene:
        pixels, valid = read_all(scene)
    assert valid.all()
    assert np.abs(pixels[1] - slope(*there)).max() < 0.02  # 0.02 pixels of position, half a unit per pixel


def by_loops(values: np.ndarray, valid: np.ndarray, place: Affine, size: tuple[int, int]) -> np.ndarray:
    """Weighted mean of valid pixels by definition, same CRS and axes; NaN where the nearest pixel is none."""
    x, y = centres(TOP, *size)
    cols, rows = (x - place.c) / place.a - 0.5, (y - place.f) / place.e - 0.5
    reach_x, reach_y = max(1, TOP.a / place.a), max(1, TOP.e / place.e)
    found = np.full(size, np.nan)
    for at in np.ndindex(size):
        row, col = int(np.floor(rows[at] + 0.5)), int(np.floor(cols[at] + 0.5))
        inside = 0 <= row < values.shape[0] and 0 <= col < values.shape[1]
        if inside and valid[row, col]:
            across = np.clip(1 - np.abs(np.arange(values.shape[1]) - cols[at]) / reach_x, 0, None)
            down = np.clip(1 - np.abs(np.arange(values.shape[0]) - rows[at]) / reach_y, 0, None)
            weight = np.outer(down, across) * valid
            found[at] = (weight * values).sum() / weight.sum()
    return found


@pytest.mark.parametrize("step", [1.3, 0.5, 0.21])
def test_what_is_invalid_has_no_weight_in_its_neighbours(write_raster, step):
    """Wherever a source pixel is missing its neighbours are means of the valid ones: -9999 never shows."""
    top = write_raster("top.tif", np.zeros((1, 24, 30), np.uint8), transform=TOP)
    rng = np.random.default_rng(0)
    place = Affine(step, 0, EAST + 0.171, 0, -step, NORTH - 0.337)
    height, width = int(10 / step), int(16 / step)  # neither covers the whole scene nor ends with it
    values, valid = rng.uniform(5, 6, (height, width)), rng.random((height, width)) > 0.3
    dsm = write_raster("dsm.tif", np.where(valid, values, -9999.0), transform=place, nodata=-9999)
    with Scene([top, dsm]) as scene:
        pixels, found = read_all(scene)
    truth = by_loops(values, valid, place, (24, 30))
    assert np.array_equal(found, ~np.isnan(truth))
    assert 0.2 < found.mean() < 0.95
    np.testing.assert_allclose(pixels[1][found], truth[found], rtol=1e-5)
    assert (pixels[1][~found] == 0).all()


@pytest.mark.parametrize("kind", ["nodata", "nan", "alpha", "mask", "external mask"])
def test_masks_of_every_kind_are_kept(write_raster, kind):
    top = write_raster("top.tif", np.zeros((1, 40, 60), np.uint8), transform=TOP)
    place = Affine(1, 0, EAST, 0, -1, NORTH)
    hole = np.zeros((20, 30), bool)
    hole[5:9, 11:17] = True
    bands = np.full((3, 20, 30), 100.0, np.float32)
    bands[:, hole] = {"nodata": 7.0, "nan": np.nan}.get(kind, 250)
    options: dict = {"nodata": 7.0} if kind == "nodata" else {}
    if kind == "alpha":
        bands = np.concatenate([bands, np.where(hole, 0, 255)[None]])
        options = {"photometric": "RGB", "alpha": "YES"}
    if kind.endswith("mask"):
        options = {"mask": ~hole}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=kind == "mask"):
        image = write_raster(
            "image.tif", bands.astype("float32" if kind == "nan" else "uint8"), transform=place, **options
        )
    with Scene([top, image]) as scene:
        assert scene.count == 4
        pixels, valid = read_all(scene)
    assert np.array_equal(valid, ~hole.repeat(2, axis=0).repeat(2, axis=1))
    assert (pixels[1:, valid] == 100).all()


def test_colours_of_a_table_are_not_mixed(write_raster):
    top = write_raster("top.tif", np.zeros((1, 40, 60), np.uint8), transform=TOP)
    values = np.random.default_rng(0).integers(0, 3, (1, 20, 30), np.uint8)
    path = write_raster("table.tif", values, transform=Affine(1, 0, EAST, 0, -1, NORTH))
    table = {0: (10, 20, 30, 255), 1: (200, 100, 0, 255), 2: (90, 90, 90, 255)}
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, table)
    with Scene([top, path]) as scene:
        pixels, valid = read_all(scene)
    truth = np.array([table[n][:3] for n in range(3)])[values[0].repeat(2, 0).repeat(2, 1)]
    assert valid.all()
    assert np.array_equal(np.moveaxis(pixels[1:], 0, -1), truth)


def test_what_the_raster_does_not_reach_is_invalid(top, heights):
    with Scene([top, heights(Affine(1, 0, EAST + 20, 0, -1, NORTH - 30), 50, 60)]) as scene:
        pixels, valid = read_all(scene)
    x, y = centres(TOP, 200, 300)
    assert np.array_equal(valid, (x > EAST + 20) & (x < EAST + 80) & (y < NORTH - 30) & (y > NORTH - 80))
    inner = (x > EAST + 20.5) & (x < EAST + 79.5) & (y < NORTH - 30.5) & (y > NORTH - 79.5)
    np.testing.assert_allclose(pixels[1][inner], ramp(x, y)[inner], atol=1e-6)


@pytest.fixture(scope="module")
def two_zones(tmp_path_factory) -> tuple[Path, Path]:
    folder, rng = tmp_path_factory.mktemp("zones"), np.random.default_rng(0)
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": 0, "compress": "deflate"}
    (x,), (y,) = transform(UTM32, UTM33, [EAST], [NORTH])
    for name, crs, place, size in (
        ("a.tif", UTM32, TOP, (CHUNK[0] + 90, CHUNK[1] + 30)),
        ("b.tif", UTM33, Affine(0.4, 0, x - 10, 0, -0.4, y + 5), (330, 420)),
    ):
        pixels = (rng.integers(0, 256, size) * (rng.random(size) > 0.1)).astype(np.uint8)
        with rasterio.open(folder / name, "w", height=size[0], width=size[1], crs=crs, transform=place, **profile) as f:
            f.write(pixels, 1)
    return folder / "a.tif", folder / "b.tif"


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_pixel_does_not_depend_on_the_window_it_is_read_with(two_zones, data):
    with Scene(two_zones) as scene:
        whole, valid = read_all(scene)
        row, col = data.draw(st.integers(0, scene.height - 1)), data.draw(st.integers(0, scene.width - 1))
        height = data.draw(st.integers(1, scene.height - row))
        width = data.draw(st.integers(1, scene.width - col))
        window = Window(row, col, height, width)
        pixels, known = scene.read(window)
    assert np.array_equal(pixels, whole[:, *window.slices])
    assert np.array_equal(known, valid[window.slices])


def test_a_pickled_scene_resamples_the_same(two_zones):
    with Scene(two_zones) as scene:
        pixels, valid = read_all(scene)
        again = pickle.loads(pickle.dumps(scene))
    assert np.array_equal(read_all(again)[0], pixels)
    assert np.array_equal(read_all(again)[1], valid)
    again.close()


def test_rasters_of_different_areas_are_refused(top, heights, write_raster):
    far = heights(Affine(1, 0, EAST + 5000, 0, -1, NORTH), 50, 60)
    with pytest.raises(RasterError, match=r"dsm\.tif does not overlap .*top\.tif"):
        Scene([top, far])
    antarctica = write_raster("s.tif", np.zeros((1, 4, 4)), crs="EPSG:3031", transform=Affine(9, 0, 0, 0, -9, 0))
    with pytest.raises(RasterError, match="does not overlap"):
        Scene([top, antarctica])


def test_a_raster_with_a_transform_but_no_crs_is_taken_to_be_in_the_scene_s(top, write_raster):
    place = Affine(1, 0, EAST - 20, 0, -1, NORTH + 20)
    dsm = write_raster("dsm.tif", ramp(*centres(place, 200, 250)), crs=None, transform=place)
    with Scene([top, dsm]) as scene:
        pixels, _ = read_all(scene)
    np.testing.assert_allclose(pixels[1], ramp(*centres(TOP, 200, 300)), atol=1e-6)


def test_a_window_that_leaves_the_grid_is_refused(two_zones):
    with Scene(two_zones[::-1]) as scene, pytest.raises(RasterError, match="leave"):
        scene.read(Window(scene.height - 1, 0, 2, 2))


@pytest.mark.parametrize("gsd", [0.2, 0.7, 1.0, 2.5])
def test_a_scene_at_another_pixel_size_keeps_its_corner_and_its_ramp(heights, gsd):
    with Scene(heights(TOP, 200, 300), gsd=gsd) as scene:
        assert scene.gsd == pytest.approx(gsd)
        assert (scene.height, scene.width) == (round(100 / gsd), round(150 / gsd))
        assert (scene.transform.c, scene.transform.f) == (EAST, NORTH)
        assert scene.bounds == pytest.approx((EAST, NORTH - 100, EAST + 150, NORTH), abs=gsd / 2)
        pixels, valid = read_all(scene)
        x, y = centres(scene.transform, scene.height, scene.width)
        inner = np.s_[:, 2:-2, 2:-2]  # at the edge the kernel has one side only
        off = 0.1 * 0.5 * (0.3 + 0.2)  # a tenth of a pixel of the raster, see above
        np.testing.assert_allclose(pixels[inner], ramp(x, y)[None][inner], atol=off if gsd == 0.7 else 1e-6)
        assert valid.all()
        assert scene.georeference["gcps"] == ([], None)


def test_a_scene_in_degrees_is_resampled_to_metres(write_raster):
    place = Affine(1e-5, 0, 7, 0, -1e-5, 50)
    with Scene(write_raster("a.tif", np.zeros((1, 100, 150), np.uint8), crs=LONLAT, transform=place), gsd=3.0) as scene:
        assert scene.gsd == pytest.approx(3.0, rel=1e-4)
        assert scene.height == pytest.approx(100 * 0.893 / 3, abs=1)


def test_a_scene_that_has_the_pixel_size_already_is_read_as_it_is(two_zones):
    with Scene(two_zones[0], gsd=0.5) as scene:
        assert scene.regridded == ()


def test_a_strong_reduction_is_read_by_small_blocks(write_raster):
    """A hundred times coarser: the mean of a checkerboard, without a hundred times the memory."""
    board = (np.indices((3000, 2000)).sum(0) % 2 * 200).astype(np.uint8)
    with Scene(write_raster("a.tif", board, transform=TOP), gsd=50.0) as scene:
        pixels, valid = read_all(scene)
        assert pixels.shape == (1, 30, 20)
    assert valid.all()
    assert np.abs(pixels.astype(int) - 100).max() <= 1


@pytest.mark.parametrize("gsd", [0, -1.0])
def test_no_pixel_size_is_refused(top, gsd):
    with pytest.raises(RasterError, match="more than 0"):
        Scene(top, gsd=gsd)


def test_a_scene_that_does_not_know_its_pixel_size_cannot_be_resampled(write_raster):
    path = write_raster("a.tif", np.zeros((1, 4, 4), np.uint8), crs=None)
    with pytest.raises(RasterError, match=r"a\.tif does not tell the size of its pixels"):
        Scene(path, gsd=1.0)


def test_rasters_on_the_same_grid_are_not_touched(write_raster):
    image = np.random.default_rng(0).integers(0, 256, (3, 50, 70), np.uint8)
    paths = [write_raster("a.tif", image, transform=TOP), write_raster("b.tif", image[:1], transform=TOP)]
    with Scene(paths) as scene:
        assert scene.regridded == ()
        for window in blocks(50, 70, 33):
            assert np.array_equal(scene.read(window)[0], np.concatenate([image, image[:1]])[:, *window.slices])
