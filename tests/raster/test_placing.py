"""Rasters whose pixels cannot be reckoned with beside a grid that can."""

from types import SimpleNamespace

import pytest
from affine import Affine
from rasterio.crs import CRS

from rs_biformer.errors import RasterError
from rs_biformer.raster.placing import fits, placed


def grid(transform, size=(8, 8)):
    return SimpleNamespace(path="a.tif", height=size[0], width=size[1], crs=CRS.from_epsg(25832), transform=transform)


GOOD = Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)


@pytest.mark.parametrize("odd", [1e-320, 1e308, float("nan"), float("inf")])
def test_a_raster_with_pixels_of_no_real_size_is_refused(odd):
    with pytest.raises(RasterError):
        placed(grid(Affine(odd, 0, 500_000, 0, -0.5, 5_400_000)), grid(GOOD), regrid=False)


@pytest.mark.parametrize("odd", [1e-320, float("nan"), float("inf")])
def test_nothing_is_resampled_from_pixels_of_no_size(odd):
    with pytest.raises(RasterError):
        placed(grid(Affine(odd, 0, 500_000, 0, -0.5, 5_400_000)), grid(GOOD), regrid=True)


def test_a_part_in_whole_pixels_is_cut():
    larger = grid(Affine(0.5, 0, 499_999, 0, -0.5, 5_400_001), (20, 20))
    assert fits(larger, grid(GOOD), regrid=False)
    reader = placed(larger, grid(GOOD), regrid=False)
    assert (reader.row, reader.col) == (2, 2)
