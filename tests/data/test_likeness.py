import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from rs_biformer.data.likeness import same_view
from rs_biformer.raster.scene import Scene


@pytest.fixture
def scene(write_raster):
    def save(name, image):
        return Scene(write_raster(f"{name}.tif", np.clip(image, 1, 255).astype(np.uint8), nodata=0))

    return save


def land(seed, size=(400, 500)):
    """Fields of some 40 pixels, three bands."""
    fields = gaussian_filter(np.random.default_rng(seed).normal(0, 1, (3, *size)), (0, 12, 12))
    return 120 + 40 * fields / fields.std()


def test_another_date_of_one_place_is_the_same_view(scene):
    place = land(0)
    light = 40 + 0.5 * place + np.random.default_rng(9).normal(0, 25, place.shape)
    weak = 0.25 * place + 0.75 * land(3) + np.random.default_rng(9).normal(0, 10, place.shape)
    assert same_view(scene("a", place), scene("b", light))
    assert same_view(scene("a", place), scene("c", weak)), "a correlation of 0.3 that stands out"
    assert same_view(scene("a", place), scene("d", 255 - place)), "bright where it was dark"


@pytest.mark.parametrize("seed", range(1, 8))
def test_another_place_is_another_view(scene, seed):
    assert not same_view(scene("a", land(0)), scene("b", land(seed)))
    cells = np.random.default_rng(seed).integers(20, 230, (3, 6, 6)).repeat(32, 1).repeat(32, 2)
    others = np.random.default_rng(100 + seed).integers(20, 230, (3, 6, 6)).repeat(32, 1).repeat(32, 2)
    assert not same_view(scene("c", cells), scene("d", others))
    assert same_view(scene("c", cells), scene("e", cells + np.random.default_rng(1).normal(0, 10, cells.shape)))


def test_where_nothing_can_be_told_the_georeference_is_believed(scene):
    plain = np.full((3, 60, 60), 7.0)
    assert same_view(scene("a", plain), scene("b", plain))
    assert same_view(scene("a", plain * 0), scene("b", land(0)))
