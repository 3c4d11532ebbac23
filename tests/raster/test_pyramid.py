"""Rasters at any scale, against numpy and rasterio."""

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import Affine, from_origin
from rasterio.warp import reproject, transform_bounds

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster import pyramid as module
from rs_biformer.raster.pyramid import Pyramid, level_grid
from rs_biformer.raster.regrid import PixelGrid
from rs_biformer.raster.source import Source

RNG = np.random.default_rng(7)
IMAGE = RNG.integers(1, 250, (3, 150, 260)).astype(np.uint8)
CLASSES = RNG.integers(0, 5, (150, 260)).astype(np.uint8)


def grid_of(path, size=(150, 260)):
    with rasterio.open(path) as file:
        return PixelGrid(path, *size, file.crs, file.transform)


def whole(pyramid, level):
    grid = level_grid(pyramid.grid, level)
    return pyramid.read_valid(level, Window(0, 0, grid.height, grid.width))


def test_images_are_averaged_and_classes_taken_under_the_centre(write_raster):
    image, classes = write_raster("image.tif", IMAGE), write_raster("classes.tif", CLASSES)
    with Pyramid(Source(image), [1, 2, 3], grid_of(image), blend=True) as pyramid:
        pixels, valid = whole(pyramid, 1)
        means = IMAGE.reshape(3, 75, 2, 130, 2).mean((2, 4))
        assert valid.all() and np.abs(np.stack(pixels) - means).max() <= 0.5
        assert np.array_equal(np.stack(whole(pyramid, 0)[0]), IMAGE)
    with Pyramid(Source(classes), [1], grid_of(classes), blend=False) as pyramid:
        (band,), _ = whole(pyramid, 2)
        assert band.shape == (38, 65) and np.array_equal(band[:37], CLASSES[2:148:4, 2::4])


def test_what_is_not_valid_has_no_part_in_a_mean(write_raster):
    values = np.full((8, 8), 100, np.int16)
    values[:, :3] = -9999
    path = write_raster("gap.tif", values, nodata=-9999)
    with Pyramid(Source(path), [1], grid_of(path, (8, 8)), blend=True) as pyramid:
        (band,), valid = whole(pyramid, 1)
    assert valid.tolist() == [[False, True, True, True]] * 4  # a square of which half is known counts
    assert (band[valid] == 100).all()


def test_levels_are_read_from_overviews_where_there_are_some(write_raster):
    path = write_raster("image.tif", IMAGE, tiled=True, blockxsize=64, blockysize=64)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4], Resampling.nearest)
    with rasterio.open(path, overview_level=1) as file:
        overview = file.read()
    with Pyramid(Source(path), [1, 2, 3], grid_of(path), blend=True) as pyramid:
        pixels, _ = whole(pyramid, 2)
    assert np.array_equal(np.stack(pixels), overview)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:25832", Affine(0.4, 0, 500_010.3, 0, -0.4, 5_399_990.1)),
        ("EPSG:25832", Affine(0.5, 0, 500_000, 0, 0.5, 5_399_925)),
        ("EPSG:25832", Affine(0.4, 0.2, 500_000, 0.2, -0.4, 5_399_990)),
        ("EPSG:4326", None),
    ],
    ids=["shifted", "south-up", "rotated", "degrees"],
)
def test_a_raster_on_another_grid_is_what_gdal_warps(write_raster, crs, transform):
    base = write_raster("base.tif", CLASSES)
    if transform is None:
        with rasterio.open(base) as file:
            left, _, _, top = transform_bounds(file.crs, crs, *file.bounds)
        transform = from_origin(left, top, 7e-6, 4.5e-6)
    path = write_raster("other.tif", CLASSES[:140, :250], crs=crs, transform=transform, nodata=255)
    grid = grid_of(base)
    with Pyramid(Source(path), [1], grid, blend=False) as pyramid:
        for level in (0, 1):
            (band,), valid = whole(pyramid, level)
            at = level_grid(grid, level)
            expected = np.full((at.height, at.width), 255, np.uint8)
            reproject(
                CLASSES[:140, :250], expected, src_transform=transform, src_crs=crs, dst_transform=at.transform,
                dst_crs=grid.crs, src_nodata=255, dst_nodata=255, resampling=Resampling.nearest, tolerance=0,
            )  # fmt: skip
            assert (np.where(valid, band, 255) == expected).mean() > 0.995
            assert valid.any()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_what_has_no_place_is_laid_by_its_size_alone(write_raster):
    base = write_raster("base.tif", CLASSES)
    bare = write_raster("bare.tif", CLASSES, crs=None, transform=Affine.identity())
    with Pyramid(Source(bare), [1], grid_of(base), blend=False) as pyramid:
        assert np.array_equal(whole(pyramid, 0)[0][0], CLASSES)
    small = write_raster("small.tif", CLASSES[:100], crs=None, transform=Affine.identity())
    with pytest.raises(RasterError, match="no place on the ground"):
        Pyramid(Source(small), [1], grid_of(base), blend=False)


@pytest.mark.parametrize("blend", [True, False])
@pytest.mark.parametrize("profile", [{"tiled": True, "blockxsize": 16, "blockysize": 16}, {"blockysize": 1}])
def test_a_raster_without_overviews_is_read_once_to_be_seen_from_afar(write_raster, monkeypatch, blend, profile):
    monkeypatch.setattr(module, "COARSE_SIDE", 70)
    monkeypatch.setattr(module, "MOST_DECODED", 100)
    monkeypatch.setattr(module, "_PART", 32)
    mask = np.ones((150, 260), bool)
    mask[:40] = False
    path = write_raster("image.tif", IMAGE, mask=mask, **profile)
    with Pyramid(Source(path), [3, 1], grid_of(path), blend=blend) as pyramid:
        assert pyramid.needs_copy and whole(pyramid, 2) is None
        assert whole(pyramid, 0) is not None
        told, read, original = [], [], Source.read_valid
        monkeypatch.setattr(Source, "read_valid", lambda *args: (read.append(args[2]), original(*args))[1])
        pyramid.make_copy(lambda done, total: told.append(done / total))
        assert max(window.height * window.width for window in read) <= (32 * 32 if "tiled" in profile else 4 * 260)
        assert told == sorted(told) and told[-1] == 1
        pixels, valid = whole(pyramid, 2)
        known = mask[2::4, 2::4][:37, :65]
        assert np.array_equal(valid[:37], known)
        if blend:
            expected = IMAGE[[2, 0], :148].reshape(2, 37, 4, 65, 4).mean((2, 4))
            assert np.abs(np.stack(pixels)[:, :37][:, known] - expected[:, known]).max() <= 1
        else:
            assert np.array_equal(np.stack(pixels)[:, :37][:, known], IMAGE[[2, 0], 2:148:4, 2::4][:, known])


def test_a_picture_from_afar_decodes_no_more_than_is_allowed(tmp_path, monkeypatch):
    """A sparse raster of 40,000 x 40,000 pixels, which has no overviews."""
    path = tmp_path / "large.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=40_000, width=40_000, count=1, dtype="uint8", crs="EPSG:25832", tiled=True,
        transform=from_origin(5e5, 5.4e6, 0.1, 0.1), sparse_ok=True, blockxsize=512, blockysize=512, nodata=0,
    ):  # fmt: skip
        pass
    read = []
    original = Source.read

    def counted(self, numbers, window):
        read.append(window.height * window.width)
        return original(self, numbers, window)

    monkeypatch.setattr(Source, "read", counted)
    for other in (path, None):
        grid = PixelGrid(path, 40_000, 40_000, rasterio.CRS.from_epsg(25832), from_origin(5e5, 5.4e6, 0.1, 0.1))
        if other is None:  # a grid that it is resampled to
            grid = PixelGrid(path, 40_000, 40_000, grid.crs, from_origin(5e5 + 0.05, 5.4e6, 0.1, 0.1))
        with Pyramid(Source(path), [1], grid, blend=True) as pyramid:
            for level in range(9):
                at = level_grid(grid, level)
                read.clear()
                got = pyramid.read_valid(level, Window(0, 0, min(256, at.height), min(256, at.width)))
                assert (got is None) == (level > 3)
                assert sum(read) < 2 * module.MOST_DECODED
