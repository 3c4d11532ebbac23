import multiprocessing
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from pieces import blocks, write_chip
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import transform

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.regrid import PixelGrid
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.source import grid_difference

TEN_BY_TWELVE = Window(0, 0, 10, 12)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (3, 10, 12), np.uint8)


def read_all(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    return scene.read(Window(0, 0, scene.height, scene.width))


def test_windows_put_together_equal_the_file(write_raster, image):
    path = write_raster("a.tif", image)
    with Scene(path) as scene:
        canvas = np.zeros_like(image)
        for window in blocks(10, 12, 5):
            pixels, valid = scene.read(window)
            canvas[:, *window.slices] = pixels
            assert valid.all()
        assert (scene.name, scene.height, scene.width, scene.count, scene.dtype) == ("a", 10, 12, 3, np.uint8)
        assert scene.crs.to_epsg() == 25832
        assert scene.gsd == pytest.approx(0.5)
        assert scene.bounds == (500_000, 5_399_995, 500_006, 5_400_000)
    assert np.array_equal(canvas, image)


def test_several_files_are_stacked_and_their_valid_pixels_intersect(write_raster, image):
    top = write_raster("top.tif", image, mask=np.indices((10, 12))[0] > 1)
    heights = np.full((1, 10, 12), 250.5, np.float32)
    heights[0, :, 0] = -9999
    heights[0, :, 1] = np.nan
    dsm = write_raster("dsm.tif", heights, nodata=-9999, descriptions=("height",))
    with Scene([top, dsm]) as scene:
        pixels, valid = read_all(scene)
        assert scene.dtype == pixels.dtype == np.float32
        assert scene.band_names == ("red", "green", "blue", "height")
        assert np.array_equal(pixels[:3], image)
        rows, cols = np.indices((10, 12))
        assert np.array_equal(valid, (rows > 1) & (cols > 1))


def test_bands_are_chosen_by_number_and_name_in_the_order_given(write_raster, image):
    top = write_raster("top.tif", image)
    dsm = write_raster("dsm.tif", np.full((1, 10, 12), 7, np.uint16), descriptions=("height",))
    with Scene([top, dsm], bands=["height", 3, "Red"]) as scene:
        pixels, _ = read_all(scene)
        assert scene.band_names == ("height", "blue", "red")
        assert np.array_equal(pixels, np.stack([np.full((10, 12), 7), image[2], image[0]]))
        assert pixels.dtype == np.uint16


def test_only_the_selected_bands_decide_the_dtype_and_the_valid_pixels(write_raster, image):
    top = write_raster("top.tif", image)
    dsm = write_raster("dsm.tif", np.full((1, 10, 12), np.nan, np.float32))
    with Scene([top, dsm], bands=[1, 2, 3]) as scene:
        pixels, valid = read_all(scene)
    assert pixels.dtype == np.uint8
    assert valid.all()


@pytest.mark.parametrize("band", [0, 4, -1, "nir"])
def test_an_unknown_band_is_refused_with_the_list_of_bands(write_raster, image, band):
    with pytest.raises(RasterError, match=r"a\.tif has no band .*it has 1 red, 2 green, 3 blue"):
        Scene(write_raster("a.tif", image), bands=[band])


def test_names_that_occur_twice_get_their_number(write_raster):
    band = np.ones((1, 10, 12), np.uint8)
    with Scene([write_raster("a.tif", band), write_raster("b.tif", band)]) as scene:
        assert scene.band_names == ("gray", "gray_2")


def test_a_pixel_is_nodata_only_when_all_bands_are(write_raster, image):
    image[:, 0, 0] = 0
    image[1, 0, 1] = 0  # a pixel without green, not a missing one
    with Scene(write_raster("a.tif", image, nodata=0)) as scene:
        _, valid = read_all(scene)
    assert not valid[0, 0]
    assert valid.sum() == 119


def test_a_float_that_is_no_measurement_makes_a_pixel_invalid_in_any_band(write_raster):
    """A stack of image and heights: -9999 metres in one band must not reach a model, reflectance 0 may."""
    bands = np.full((2, 10, 12), 5, np.float32)
    bands[1, 0, 0] = -9999
    with Scene(write_raster("a.tif", bands, nodata=-9999)) as scene:
        assert np.argwhere(~read_all(scene)[1]).tolist() == [[0, 0]]
    bands[bands == -9999] = 0
    bands[:, 3, 3] = 0
    with Scene(write_raster("b.tif", bands, nodata=0)) as scene:
        assert np.argwhere(~read_all(scene)[1]).tolist() == [[3, 3]]


def stacked(tmp_path: Path, *bands: tuple[np.ndarray, object]) -> Path:
    """A VRT with each array as a band with its own nodata value; None for none."""
    parts = []
    for number, (array, nodata) in enumerate(bands, 1):
        write_chip(tmp_path / f"{number}.tif", array[None], crs=None, transform=Affine.identity())
        kind = {"uint8": "Byte", "int16": "Int16", "float32": "Float32"}[array.dtype.name]
        own = "" if nodata is None else f"<NoDataValue>{nodata}</NoDataValue>"
        parts.append(
            f'<VRTRasterBand dataType="{kind}" band="{number}">{own}<SimpleSource><SourceFilename relativeToVRT="1">'
            f"{number}.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        )
    path = tmp_path / "stack.vrt"
    path.write_text(f'<VRTDataset rasterXSize="12" rasterYSize="10">{"".join(parts)}</VRTDataset>')
    return path


def test_bands_may_have_nodata_values_of_their_own(tmp_path, image):
    heights = np.full((10, 12), 40, np.int16)
    heights[2, 2] = -32768
    red, green = image[0].copy(), image[1].copy()
    red[4, 4], green[4, 4] = 0, 255  # nodata in both that have it
    red[5, 5] = 0  # in one of them: a dark pixel
    path = stacked(tmp_path, (red, 0), (green, 255), (image[2], None))
    with Scene(path) as scene:
        assert np.argwhere(~read_all(scene)[1] & (green < 255)).tolist() == []
        assert not read_all(scene)[1][4, 4]
        assert read_all(scene)[1][5, 5]
    path = stacked(tmp_path, (image[0], None), (image[1], None), (heights, -32768))
    with Scene(path) as scene:
        assert np.argwhere(~read_all(scene)[1]).tolist() == [[2, 2]]
    with Scene(path, bands=[1, 2]) as scene:
        assert read_all(scene)[1].all()


def test_a_mask_for_each_band_counts_where_its_band_is_selected(write_raster, image, tmp_path):
    path = write_raster("a.tif", image)
    masks = np.full((3, 10, 12), 255, np.uint8)
    masks[1, 6, 7] = masks[2, 8, 9] = 0
    beside = write_raster("masks.tif", masks)
    with rasterio.open(beside, "r+") as file:
        file.update_tags(**{f"INTERNAL_MASK_FLAGS_{number}": "0" for number in (1, 2, 3)})
    beside.rename(tmp_path / "a.tif.msk")
    with Scene(path) as scene:
        assert np.argwhere(~read_all(scene)[1]).tolist() == [[6, 7], [8, 9]]
    with Scene(path, bands=[1, 3]) as scene:
        assert np.argwhere(~read_all(scene)[1]).tolist() == [[8, 9]]


@pytest.mark.parametrize(("dtype", "nodata"), [("float32", -3.4028226550889045e38), ("int16", -32768), ("uint16", 0)])
def test_nodata_is_compared_in_the_dtype_of_the_band(write_raster, dtype, nodata):
    band = np.ones((1, 10, 12), dtype)
    band[0, 3, 4] = np.dtype(dtype).type(nodata)
    with Scene(write_raster("a.tif", band, nodata=nodata)) as scene:
        _, valid = read_all(scene)
    assert not valid[3, 4]
    assert valid.sum() == 119


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_pixel_is_invalid_when_any_band_is_not_finite(write_raster, value):
    bands = np.ones((2, 10, 12), np.float32)
    bands[1, 2, 3] = value
    with Scene(write_raster("a.tif", bands)) as scene:
        _, valid = read_all(scene)
    assert np.argwhere(~valid).tolist() == [[2, 3]]


def rgba(write_raster, image: np.ndarray) -> Path:
    alpha = np.full((1, 10, 12), 255, np.uint8)
    alpha[0, :, 6:] = 0
    alpha[0, 0, 0] = 1
    path = write_raster("rgba.tif", np.concatenate([image, alpha]), photometric="RGB", alpha="YES")
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == ColorInterp.alpha
    return path


def test_alpha_is_mask_and_not_image(write_raster, image):
    with Scene(rgba(write_raster, image)) as scene:
        pixels, valid = read_all(scene)
    assert np.array_equal(pixels, image)
    assert valid[:, :6].all()
    assert not valid[:, 6:].any()


def test_a_band_marked_as_alpha_is_image_when_selected(write_raster, image):
    with Scene(rgba(write_raster, image), bands=[4, 1]) as scene:
        pixels, valid = read_all(scene)
    assert np.array_equal(pixels[1], image[0])
    assert valid.all()


def test_nodata_alpha_and_mask_count_together(write_raster, image):
    image[:, 0, 0] = 9
    path = write_raster("a.tif", image, nodata=9, mask=np.indices((10, 12))[1] > 3)
    with Scene(path) as scene:
        _, valid = read_all(scene)
    image[:, 5, 5] = 9
    with Scene(write_raster("b.tif", image, nodata=9, mask=np.indices((10, 12))[1] > 3)) as scene:
        _, masked = read_all(scene)
    assert not valid[:, :4].any()
    assert valid[:, 4:].all()
    assert np.argwhere(valid & ~masked).tolist() == [[5, 5]]


def test_a_mask_in_a_file_beside_the_raster_is_found(write_raster, image, tmp_path):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        path = write_raster("a.tif", image, mask=np.indices((10, 12))[1] > 3)
    assert (tmp_path / "a.tif.msk").exists()
    with Scene(path) as scene:
        _, valid = read_all(scene)
    assert np.array_equal(valid, np.indices((10, 12))[1] > 3)


def test_a_world_file_beside_the_raster_is_found(tmp_path, image):
    path = tmp_path / "a.tif"
    write_chip(path, image, crs=None, transform=Affine.identity())
    (tmp_path / "a.tfw").write_text("0.09\n0\n0\n-0.09\n496000\n5420000\n")
    with Scene(path) as scene:
        assert scene.transform.almost_equals(Affine(0.09, 0, 495999.955, 0, -0.09, 5420000.045))
        assert scene.gsd is None  # without a CRS nobody knows that these are metres


def test_a_colour_table_becomes_red_green_blue(write_raster, tmp_path):
    values = np.random.default_rng(1).integers(0, 3, (1, 10, 12), np.uint8)
    path = write_raster("a.tif", values, nodata=2)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (10, 20, 30, 255), 1: (40, 50, 60, 255)})
    with Scene(path) as scene:
        pixels, valid = read_all(scene)
        assert scene.band_names == ("red", "green", "blue")
    colours = np.array([(10, 20, 30), (40, 50, 60)])
    assert np.array_equal(valid, values[0] != 2)
    assert np.array_equal(pixels[:, valid].T, colours[values[0][valid]])


@pytest.mark.parametrize("window", [Window(0, 0, 11, 12), Window(9, 0, 2, 1), Window(0, 11, 1, 2)])
def test_a_window_that_leaves_the_scene_is_refused(write_raster, image, window):
    with Scene(write_raster("a.tif", image)) as scene, pytest.raises(RasterError, match="10 x 12"):
        scene.read(window)


def test_files_of_another_size_without_a_place_are_refused_by_name(write_raster, image, tmp_path):
    top = write_raster("a.tif", image)
    write_chip(tmp_path / "b.tif", image[:, :9], crs=None, transform=Affine.identity())
    with pytest.raises(RasterError, match=r"a\.tif is 10 x 12 pixels and .*b\.tif is 9 x 12.*b\.tif has no transform"):
        Scene([top, tmp_path / "b.tif"])


def test_files_on_one_grid_are_read_as_they_are_and_half_a_pixel_apart_is_another_grid(write_raster, image):
    a = write_raster("a.tif", image, transform=Affine(1, 0, 100, 0, -1, 200))
    b = write_raster("b.tif", image, transform=Affine(1, 0, 100.5, 0, -1, 200))
    c = write_raster("c.tif", image, transform=Affine(1.001, 0, 100.1, 0, -1, 200))
    with Scene([a, c]) as scene:
        assert scene.regridded == ()
        assert np.array_equal(read_all(scene)[0], np.concatenate([image, image]))
    with Scene([a, b]) as scene:
        assert scene.regridded == (b,)


def test_a_file_without_a_crs_gives_the_grid_and_the_next_one_the_place(write_raster, image):
    c, a = write_raster("c.tif", image, crs=None), write_raster("a.tif", image)
    with Scene([c, a]) as scene:
        assert scene.crs.to_epsg() == 25832
        assert scene.regridded == ()


@pytest.mark.parametrize("content", [b"", b"no raster at all", b"II*\x00\x08\x00\x00\x00"])
def test_a_file_that_is_no_raster_is_refused(tmp_path, content):
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(RasterError, match=r"a\.tif cannot be opened: ") as caught:
        Scene(path)
    assert "\n" not in str(caught.value)


def test_missing_files_folders_and_no_files_are_refused(tmp_path):
    with pytest.raises(RasterError, match=r"nowhere\.tif does not exist"):
        Scene(tmp_path / "nowhere.tif")
    with pytest.raises(RasterError, match="cannot be opened"):
        Scene(tmp_path)
    with pytest.raises(RasterError, match="no path was given"):
        Scene([])


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "complex_int16"])
def test_complex_numbers_are_refused(tmp_path, dtype):
    path = tmp_path / "a.tif"
    place = {"crs": "EPSG:25832", "transform": Affine(0.5, 0, 5e5, 0, -0.5, 5e6)}
    with rasterio.open(path, "w", driver="GTiff", width=4, height=4, count=1, dtype=dtype, **place):
        pass  # of integers, as radar has them, there are none in numpy
    with pytest.raises(RasterError, match=r"a\.tif holds complex numbers; convert it"):
        Scene(path)


def test_a_truncated_file_is_refused_when_its_block_is_read(write_raster):
    noise = np.random.default_rng(0).integers(0, 255, (1, 512, 64), np.uint8)
    path = write_raster("a.tif", noise, compress="deflate", tiled=True, blockxsize=64, blockysize=64)
    path.write_bytes(path.read_bytes()[:-10_000])
    with Scene(path) as scene:
        assert np.array_equal(scene.read(Window(0, 0, 64, 64))[0], noise[:, :64])
        with pytest.raises(RasterError, match=r"a\.tif cannot be read: ") as caught:
            scene.read(Window(448, 0, 64, 64))
    assert caught.value.__cause__ is not None
    assert "previous exception" not in str(caught.value)


def test_a_web_mercator_pixel_is_measured_on_the_ground(write_raster, image):
    northing = 6_378_137 * np.log(np.tan(np.pi / 4 + np.radians(60) / 2))  # 60 degrees north: distances are doubled
    with Scene(write_raster("a.tif", image, crs="EPSG:3857", transform=Affine(2, 0, 0, 0, -2, northing))) as scene:
        assert scene.gsd == pytest.approx(1.0, abs=1e-4)


def test_feet_are_converted(write_raster, image):
    with Scene(write_raster("a.tif", image, crs="EPSG:2263", transform=Affine(1, 0, 9e5, 0, -1, 2e5))) as scene:
        assert scene.gsd == pytest.approx(0.3048, abs=1e-5)


@pytest.mark.parametrize("latitude", [-78.0, -33.0, 0.0, 50.0])
@pytest.mark.parametrize(
    ("crs", "body"),
    [
        ("EPSG:4326", "+datum=WGS84"),
        ("EPSG:3395", "+datum=WGS84"),
        ("+proj=merc +lat_ts=20 +datum=WGS84", "+datum=WGS84"),
        ("+proj=lonlat +R=1737400", "+R=1737400"),  # the Moon
    ],
)
def test_pixels_are_measured_on_the_ground(write_raster, image, latitude, crs, body):
    """Against an equal-area projection on the same body: the root of the area of a pixel at the centre."""
    crs = rasterio.CRS.from_string(crs)
    plane = rasterio.CRS.from_string(f"+proj=laea +lon_0=7 +lat_0={latitude} {body}")
    size = 1e-4 if crs.is_geographic else 10.0
    (x,), (y,) = transform(plane, crs, [0.0], [0.0])
    place = Affine(size, 0, x - 6 * size, 0, -size, y + 5 * size)
    cols, rows = [x, x + size, x + size, x], [y, y, y + size, y + size]
    east, north = (np.array(axis) for axis in transform(crs, plane, cols, rows))
    area = abs(np.dot(east, np.roll(north, 1)) - np.dot(north, np.roll(east, 1))) / 2
    with Scene(write_raster("a.tif", image, crs=crs, transform=place)) as scene:
        assert scene.gsd == pytest.approx(np.sqrt(area), rel=5e-3)


def test_a_pickled_scene_reads_the_same(write_raster, image):
    with Scene(write_raster("a.tif", image), bands=[2]) as scene:
        again = pickle.loads(pickle.dumps(scene))
        assert np.array_equal(read_all(again)[0], image[1:2])
        again.close()


def test_a_closed_scene_can_be_read_again(write_raster, image):
    scene = Scene(write_raster("a.tif", image))
    scene.close()
    assert np.array_equal(read_all(scene)[0], image)
    scene.close()


def test_threads_read_side_by_side(write_raster):
    noise = np.random.default_rng(0).integers(0, 255, (3, 256, 256), np.uint8)
    path = write_raster("a.tif", noise, compress="deflate", tiled=True, blockxsize=64, blockysize=64)
    windows = list(blocks(256, 256, 48))
    barrier = threading.Barrier(4)

    def read(part: int) -> bool:
        barrier.wait()
        return all(
            np.array_equal(scene.read(window)[0], noise[:, *window.slices]) for window in windows[part::4] for _ in "12"
        )

    with Scene(path) as scene, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(4))) == [True] * 4


def _sum_in_child(scene: Scene, queue: "multiprocessing.Queue[int]") -> None:
    queue.put(int(read_all(scene)[0].sum()))


def test_a_forked_worker_reads_through_its_own_handle(write_raster, image):
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system has no fork")
    context = multiprocessing.get_context("fork")
    with Scene(write_raster("a.tif", image)) as scene:
        read_all(scene)
        queue = context.Queue()
        worker = context.Process(target=_sum_in_child, args=(scene, queue))
        worker.start()
        assert queue.get(timeout=30) == image.sum(dtype=np.int64)
        worker.join(30)
        assert worker.exitcode == 0
        assert np.array_equal(read_all(scene)[0], image)


def test_reading_gives_no_warning_where_there_is_no_georeference(tmp_path, image, recwarn):
    write_chip(tmp_path / "a.tif", image, crs=None, transform=Affine.identity())
    with Scene(tmp_path / "a.tif") as scene:
        read_all(scene)
        assert scene.transform == Affine.identity()
        assert scene.gsd is None
    assert not recwarn.list
    with pytest.warns(NotGeoreferencedWarning):
        rasterio.open(tmp_path / "a.tif").close()


def test_a_grid_that_is_no_numbers_away_is_another_grid():
    """Where the shift of a corner overflows, the grids are not the same."""
    one = PixelGrid("one.tif", 10, 10, None, Affine(1e-200, 0, 5e5, 0, -1e-200, 5e6))
    for other in (Affine(1e200, 0, 1e200, 0, -1e200, 1e200), Affine(float("inf"), 0, 0, 0, -1, 0)):
        assert grid_difference(one, PixelGrid("other.tif", 10, 10, None, other)) is not None
