import numpy as np
import pyproj
import pytest
from rasterio.crs import CRS

from rs_biformer.raster.crs import horizontal, names_a_place, same_crs
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.source import grid_difference


def three_dimensional(code):
    return CRS.from_wkt(pyproj.CRS.from_epsg(code).to_3d().to_wkt())


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("EPSG:32633", "EPSG:32633+5773", True),
        ("EPSG:25832+7837", "EPSG:25832+5783", True),
        ("EPSG:25832+7837", "EPSG:25833+7837", False),
        ("EPSG:4979", "EPSG:4326", True),
        ("EPSG:4937", "EPSG:4326", False),
        ("EPSG:7415", "EPSG:28992", True),
    ],
)
def test_heights_do_not_make_another_crs(one, other, same):
    first, second = CRS.from_user_input(one), CRS.from_user_input(other)
    assert same_crs(first, second) is same_crs(second, first) is same


def test_three_dimensional_projections_are_their_plane():
    assert same_crs(three_dimensional(25832), CRS.from_epsg(25832))
    assert horizontal(three_dimensional(25832)).to_epsg() == 25832
    assert horizontal(CRS.from_user_input("EPSG:32633+5773")).to_epsg() == 32633
    assert horizontal(CRS.from_epsg(32633)) == CRS.from_epsg(32633)


def test_a_placeholder_names_no_place():
    assert not names_a_place(None)
    assert not names_a_place(CRS.from_wkt('LOCAL_CS["unknown",UNIT["metre",1]]'))
    assert names_a_place(CRS.from_user_input("EPSG:32633+5773"))


def test_rasters_in_a_compound_crs_lie_on_the_grid_of_their_plane(write_raster):
    plane = write_raster("a.tif", np.ones((1, 6, 7), np.uint8), crs="EPSG:32633")
    high = write_raster("b.tif", np.ones((1, 6, 7), np.float32), crs="EPSG:32633+5773")
    with Scene([plane, high]) as scene, Scene(high) as alone:
        assert scene.regridded == ()
        assert grid_difference(scene, alone) is None
        assert alone.gsd == pytest.approx(0.5)
    moved = write_raster("c.tif", np.ones((1, 6, 7), np.float32), crs="EPSG:25833+7837")
    with Scene([plane, moved]) as scene:
        assert scene.regridded == (moved,), "another datum is another grid, and its place is found"
