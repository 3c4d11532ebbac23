import numpy as np
import pytest
import rasterio
from PIL import Image

from rs_biformer.geometry import Window
from rs_biformer.raster.remarks import remarks
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.values import Reading

RNG = np.random.default_rng(0)
RGB = RNG.integers(1, 255, (3, 300, 400), np.uint8)


def said(path, **options):
    with Scene(path, **options) as scene:
        return remarks(scene)


def with_fourth(write_raster, alpha):
    return write_raster("a.tif", np.concatenate([RGB, alpha[None]]), photometric="RGB", alpha="YES")


def test_near_infrared_that_is_marked_as_alpha_is_told_and_how_to_use_it(write_raster):
    path = with_fourth(write_raster, RNG.integers(1, 255, (300, 400), np.uint8))
    (line,) = said(path)
    assert "band 4" in line
    assert "--bands 1,2,3,4" in line
    assert said(path, bands=[1, 2, 3, 4]) == []


@pytest.mark.parametrize("feather", [0, 20])
def test_an_alpha_band_that_is_a_mask_is_none_of_these(write_raster, feather):
    alpha = np.full((300, 400), 255, np.uint8)
    alpha[:, :50] = 0
    for step in range(feather):
        alpha[:, 50 + step] = 10 * step + 5
    assert said(with_fourth(write_raster, alpha)) == []


@pytest.mark.parametrize(("orientation", "turned"), [(1, None), (3, "180 degrees"), (6, "90 degrees clockwise")])
def test_a_photograph_that_is_to_be_turned_is_told_and_read_as_stored(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    slope = np.linspace(0, 200, 300)[:, None] + np.linspace(0, 50, 400)
    Image.fromarray(slope.astype(np.uint8)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    found = said(tmp_path / "a.jpg")
    assert len(found) == (turned is not None)
    if turned:
        assert turned in found[0]
        assert "-auto-orient" in found[0]
    with Scene(tmp_path / "a.jpg") as scene:
        pixels, _ = scene.read(Window(0, 0, 300, 400))
    assert abs(pixels[0] - slope).max() < 5


def test_a_nodata_value_that_is_not_used_is_told(write_raster):
    path = write_raster("a.tif", RGB, nodata=0)
    assert said(path, reading=Reading(nodata=(0.0,))) == []
    (line,) = said(path, reading=Reading(nodata=(255.0,)))
    assert "declares its own nodata value (0); --nodata 255 is not used there" in line


def test_scales_that_are_not_applied_are_told(write_raster):
    path = write_raster("a.tif", RGB)
    with rasterio.open(path, "r+") as file:
        file.scales = (0.5,) * 3
    (line,) = said(path)
    assert "scale 0.5, offset 0" in line
    assert said(path, reading=Reading(scaled=True)) == []
    assert said(path, reading=Reading(declared=((0.5, 0.0),) * 3)) == []
