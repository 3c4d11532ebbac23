import numpy as np
import pytest

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.predict import open_scene
from rs_biformer.raster.scene import Scene

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
