import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.transform import from_origin

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.predict import open_scene
from rs_biformer.predict.fit import open_scenes
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.values import Reading

RGB = ("red", "green", "blue")


@pytest.fixture
def raster(write_raster):
    def write(count: int = 3, dtype: str = "uint8", **options: object):
        image = np.arange(count * 20).reshape(count, 4, 5).astype(dtype)
        return write_raster("scene.tif", image, **options)

    return write


def first_pixels(scene: Scene) -> list[int]:
    return scene.read(Window(0, 0, 1, 1))[0][:, 0, 0].tolist()


def test_bands_are_found_by_name_whatever_their_order(raster):
    path = raster(4, descriptions=("nir", "blue", "green", "red"))
    with open_scene(path, bands=RGB, dtype="uint8", gsd=0.5) as scene:
        assert first_pixels(scene) == [60, 40, 20]


def test_bands_without_names_are_taken_in_their_order(raster):
    path = raster(3, photometric="minisblack")
    with open_scene(path, bands=RGB, dtype="uint8", gsd=None) as scene:
        assert first_pixels(scene) == [0, 20, 40]


def test_bands_of_a_model_without_names_are_taken_in_their_order(raster):
    path = raster(3, descriptions=("nir", "red", "green"))
    with open_scene(path, bands=("band1", "band2", "band3"), dtype="uint8", gsd=None) as scene:
        assert first_pixels(scene) == [0, 20, 40]


def test_as_many_bands_with_other_names_are_refused_unless_insisted_on(raster):
    path = raster(3, descriptions=("nir", "red", "green"))
    with pytest.raises(RasterError, match=r"3 bands \(nir, red, green\).*takes 3 bands.*--bands 1,2,3"):
        open_scene(path, bands=RGB, dtype="uint8", gsd=None)
    with open_scene(path, bands=RGB, dtype="uint8", gsd=None, select=[1, 2, 3]) as scene:
        assert scene.count == 3


@pytest.mark.parametrize("count", [1, 2, 5])
def test_another_number_of_bands_is_refused_with_what_is_expected(raster, count: int):
    path = raster(count, photometric="minisblack")
    with pytest.raises(RasterError, match=rf"{count} bands? \(.*the model takes 3 bands \(red, green, blue\)"):
        open_scene(path, bands=RGB, dtype="uint8", gsd=None)


def test_near_infrared_that_the_file_marks_as_alpha_is_found_by_its_name(raster):
    path = raster(4, photometric="rgb", alpha="yes")
    with open_scene(path, bands=(*RGB, "alpha"), dtype="uint8", gsd=None) as scene:
        assert scene.count == 4
    with open_scene(path, bands=RGB, dtype="uint8", gsd=None) as scene:
        assert scene.count == 3


def test_another_dtype_is_refused_but_not_another_width_of_float(raster):
    with pytest.raises(RasterError, match="holds uint16 values; the model was trained on uint8"):
        open_scene(raster(3, "uint16", photometric="rgb"), bands=RGB, dtype="uint8", gsd=None)
    with open_scene(raster(3, "float64", photometric="rgb"), bands=RGB, dtype="float32", gsd=None) as scene:
        assert scene.dtype == "float64"


@pytest.mark.parametrize("gsd", [0.34, 0.5, 0.74, None])
def test_pixels_of_about_the_training_size_are_accepted(raster, gsd):
    with open_scene(raster(3, photometric="rgb"), bands=RGB, dtype="uint8", gsd=gsd) as scene:
        assert scene.gsd == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("gsd", [0.1, 0.32, 0.8, 10.0])
def test_pixels_of_another_size_are_refused_unless_insisted_on(raster, gsd: float):
    path = raster(3, photometric="rgb")
    with pytest.raises(RasterError, match=r"pixels of 0\.5 m.*--allow-gsd-mismatch"):
        open_scene(path, bands=RGB, dtype="uint8", gsd=gsd)
    open_scene(path, bands=RGB, dtype="uint8", gsd=gsd, allow_gsd_mismatch=True).close()


def test_a_scene_without_a_georeference_has_no_pixel_size_to_refuse(raster):
    path = raster(3, photometric="rgb", crs=None)
    open_scene(path, bands=RGB, dtype="uint8", gsd=0.1).close()


@pytest.mark.parametrize(("gsd", "size"), [(0.5, (40, 60)), (0.52, (40, 60)), (1.0, (20, 30)), (0.2, (100, 150))])
def test_a_scene_is_resampled_to_the_training_pixels_unless_it_has_about_those(write_raster, gsd: float, size):
    path = write_raster("scene.tif", np.full((3, 40, 60), 7, np.uint8), photometric="rgb")
    with open_scene(path, bands=RGB[::-1], dtype="uint8", gsd=gsd, rescale_gsd=True) as scene:
        assert (scene.height, scene.width) == size
        assert scene.band_names == RGB[::-1]
        assert (scene.read(Window(0, 0, *size))[0] == 7).all()


def test_what_cannot_be_resampled_is_refused(write_raster, raster):
    rgb = {"bands": RGB, "dtype": "uint8", "rescale_gsd": True}
    with pytest.raises(RasterError, match=r"pixels of 0\.5 m.*10 times smaller"):
        open_scene(raster(3, photometric="rgb"), gsd=0.05, **rgb)
    with pytest.raises(ConfigError, match="leave out --rescale-gsd"):
        open_scene(raster(3, photometric="rgb"), gsd=None, **rgb)
    with pytest.raises(ConfigError, match="--allow-gsd-mismatch"):
        open_scene(raster(3, photometric="rgb"), gsd=2.0, allow_gsd_mismatch=True, **rgb)
    with pytest.raises(RasterError, match="does not tell the size of its pixels"):
        open_scene(raster(3, photometric="rgb", crs=None), gsd=2.0, **rgb)


def test_a_height_raster_on_another_grid_completes_the_bands(write_raster):
    top = write_raster("top.tif", np.full((3, 40, 60), 7, np.uint8), photometric="rgb")
    place = Affine(1, 0, 500_000, 0, -1, 5_400_000)
    dsm = write_raster("dsm.tif", np.full((1, 20, 30), 9, np.uint8), transform=place, descriptions=("height",))
    with open_scene([top, dsm], bands=(*RGB, "height"), dtype="uint8", gsd=0.5) as scene:
        assert scene.regridded == (dsm,)
        assert first_pixels(scene) == [7, 7, 7, 9]


def test_all_scenes_that_do_not_fit_are_named(write_raster):
    fit = {"bands": RGB, "dtype": "uint8", "gsd": None}
    good = write_raster("good.tif", np.zeros((3, 4, 5), np.uint8), photometric="rgb")
    short = write_raster("short.tif", np.zeros((2, 4, 5), np.uint8))
    deep = write_raster("deep.tif", np.zeros((3, 4, 5), np.uint16), photometric="rgb")
    assert [scene.path for scene in open_scenes([[good], [good]], **fit)] == [good, good]
    with pytest.raises(
        RasterError, match=r"2 of 3 scenes cannot be mapped.*short\.tif has 2 bands.*deep\.tif holds uint16"
    ):
        open_scenes([[short], [good], [deep]], **fit)
    with pytest.raises(RasterError, match=r"^[^;]*short\.tif has 2 bands"):
        open_scenes([[short]], **fit)
    with pytest.raises(RasterError, match=r"7 of 7 .*; and 2 more$"):
        open_scenes([[short]] * 7, **fit)


def scaled_raster(write_raster, scale, offset, dtype="uint16"):
    path = write_raster("scaled.tif", np.arange(100, 160).reshape(3, 4, 5).astype(dtype))
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (scale,) * 3, (offset,) * 3
    return path


def test_a_model_of_physical_values_gets_physical_values(write_raster):
    options = {"bands": ("band1", "band2", "band3"), "dtype": "float32", "gsd": None, "reading": Reading(scaled=True)}
    with open_scene(scaled_raster(write_raster, 1e-2, -1.0), **options) as scene:
        assert first_pixels(scene) == pytest.approx([0.0, 0.2, 0.4], abs=1e-6)
    with open_scene(scaled_raster(write_raster, 1.0, 0.0, "float32"), **options) as scene:
        assert first_pixels(scene) == [100, 120, 140], "values that are physical already"
    with pytest.raises(RasterError, match="declares no scale and offset.*--scale ignore"):
        open_scene(scaled_raster(write_raster, 1.0, 0.0), **options)
    with open_scene(
        scaled_raster(write_raster, 1.0, 0.0), **options, ignore_scale=True, allow_dtype_mismatch=True
    ) as scene:
        assert first_pixels(scene) == [100, 120, 140]


def test_numbers_of_another_meaning_are_refused_unless_insisted_on(write_raster):
    reading = Reading(declared=((1e-4, 0.0),) * 3)
    options = {"bands": ("band1", "band2", "band3"), "dtype": "uint16", "gsd": None, "reading": reading}
    for scaling in ((1e-4, 0.0), (1.0, 0.0)):
        with open_scene(scaled_raster(write_raster, *scaling), **options) as scene:
            assert first_pixels(scene) == [100, 120, 140]
    with pytest.raises(RasterError, match="declares scale 0.0001, offset -0.1; .* declared scale 0.0001, offset 0"):
        open_scene(scaled_raster(write_raster, 1e-4, -0.1), **options)
    with open_scene(scaled_raster(write_raster, 1e-4, -0.1), **options, ignore_scale=True) as scene:
        assert first_pixels(scene) == [100, 120, 140]


def test_another_dtype_of_the_same_values_is_taken_on_request(raster):
    path = raster(3, "uint16", photometric="rgb")
    with open_scene(path, bands=RGB, dtype="uint8", gsd=None, allow_dtype_mismatch=True) as scene:
        assert (scene.dtype, first_pixels(scene)) == ("uint16", [0, 20, 40])


def test_rescaled_scenes_keep_their_bands_and_their_reading(write_raster):
    path = scaled_raster(write_raster, 1e-2, -1.0)
    options = {"bands": ("band1", "band2"), "dtype": "float32", "gsd": 1.0, "reading": Reading(scaled=True)}
    with open_scene(path, **options, select=[3, 1], rescale_gsd=True) as scene:
        assert (scene.height, scene.width) == (2, 2)
        values, _ = scene.read(Window(0, 0, 1, 1))
        assert values[:, 0, 0] == pytest.approx([0.4 + 0.03, 0.03], abs=0.02)


LOCAL = 'LOCAL_CS["quarry",UNIT["metre",1]]'


@pytest.mark.parametrize(
    ("crs", "unit"),
    [
        (LOCAL, 1.0),
        ('LOCAL_CS["site",UNIT["US survey foot",0.304800609601219]]', 0.304800609601219),
        ('LOCAL_CS["Unknown engineering CRS",UNIT["metre",1]]', None),  # what some writers leave for nothing
        ('LOCAL_CS["unnamed",UNIT["metre",1]]', None),
    ],
)
def test_the_pixel_size_of_a_site_s_own_crs_counts(write_raster, crs, unit):
    path = write_raster("a.tif", np.ones((3, 8, 8), np.uint8), crs=crs, transform=from_origin(10, 10, 0.2, 0.2))
    with Scene(path) as scene:
        assert scene.gsd == (None if unit is None else pytest.approx(0.2 * unit))
    if unit is None:
        open_scene(path, bands=("1", "2", "3"), dtype="uint8", gsd=2.0, select=[1, 2, 3]).close()
    else:
        with pytest.raises(RasterError, match="the model was trained on 2 m"):
            open_scene(path, bands=("1", "2", "3"), dtype="uint8", gsd=2.0, select=[1, 2, 3])


def test_oblong_pixels_do_not_pass_for_squares_of_their_area(write_raster):
    values = np.arange(48 * 20, dtype=np.uint16).reshape(1, 20, 48)
    path = write_raster("a.tif", values, transform=from_origin(500_000, 5_400_000, 0.13, 0.31))
    fit = {"bands": ("gray",), "dtype": "uint16", "gsd": 0.2, "select": [1]}
    with pytest.raises(RasterError, match=r"pixels of 0\.13 x 0\.31 m, and the model was trained on 0\.2 m"):
        open_scene(path, **fit)
    with open_scene(path, **fit, allow_gsd_mismatch=True) as scene:
        assert (scene.height, scene.width) == (20, 48)
    with open_scene(path, **fit, rescale_gsd=True) as scene:
        assert scene.pixel_sides == pytest.approx((0.2, 0.2))
        assert (scene.height, scene.width) == (31, 31)


def test_pixels_of_degrees_are_measured_on_the_ground(write_raster):
    degrees = 2e-6
    path = write_raster(
        "a.tif", np.ones((1, 8, 8), np.uint8), crs="EPSG:4326", transform=from_origin(10, 60, degrees, degrees)
    )
    with Scene(path) as scene:
        across, down = scene.pixel_sides
    assert down == pytest.approx(degrees * 111_412, rel=2e-3)  # a degree of latitude at 60 degrees north
    assert across == pytest.approx(degrees * 55_800, rel=2e-3)
