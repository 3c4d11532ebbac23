"""Every odd raster of the shared collection is either handled rightly or refused in one line."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from pieces import SHARED, blocks
from rasterio.enums import ColorInterp, MaskFlags

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.gdal import open_raster
from rs_biformer.raster.labels import LabelRaster
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.writer import MapWriter
from rs_biformer.schema import load_schema

AWKWARD = sorted(path.name for path in (SHARED / "data" / "awkward").glob("*.tif"))
CORRUPT = "rasterio__corrupt.tif"
HEALTHY = [name for name in AWKWARD if name != CORRUPT]


@pytest.fixture
def awkward(shared: Path) -> Path:
    return shared / "data" / "awkward"


def corner(height: int, width: int) -> Window:
    """What is compared: the middle of a large raster, all of a small one."""
    h, w = min(height, 700), min(width, 700)
    return Window((height - h) // 2, (width - w) // 2, h, w)


def expected(path: Path, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and validity by rasterio itself, its warnings about the odd file apart."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path) as file:
            return read_by_rasterio(file, rasterio.windows.Window(window.col, window.row, window.width, window.height))


def read_by_rasterio(file: rasterio.DatasetReader, area: rasterio.windows.Window) -> tuple[np.ndarray, np.ndarray]:
    bands = file.read(window=area)
    image = np.array([interp != ColorInterp.alpha for interp in file.colorinterp])
    valid = np.ones(bands.shape[1:], bool)
    if MaskFlags.nodata in file.mask_flag_enums[0]:
        valid = (file.read_masks(window=area)[image] > 0).any(axis=0)
    elif MaskFlags.per_dataset in file.mask_flag_enums[0]:
        valid = file.dataset_mask(window=area) > 0
    if not image.all():
        valid &= bands[~image][0] > 0
    pixels = bands[image]
    if file.colorinterp[0] == ColorInterp.palette:
        colours = np.array([file.colormap(1).get(value, (0, 0, 0, 0)) for value in range(256)], np.uint8)
        valid &= colours[pixels[0], 3] > 0
        pixels = np.moveaxis(colours[pixels[0], :3], -1, 0)
    if pixels.dtype.kind == "f":
        valid &= np.isfinite(pixels).all(axis=0)
    return pixels, valid


@pytest.mark.parametrize("name", HEALTHY)
def test_pixels_and_validity_equal_rasterio_s(awkward, name):
    with Scene(awkward / name) as scene:
        window = corner(scene.height, scene.width)
        pixels, valid = scene.read(window)
        truth, truly_valid = expected(awkward / name, window)
        assert pixels.dtype == truth.dtype == scene.dtype
        assert np.array_equal(pixels, truth, equal_nan=truth.dtype.kind == "f")
        assert np.array_equal(valid, truly_valid)
        assert scene.gsd is None or 0 < scene.gsd < 1e5
        assert len(set(scene.band_names)) == scene.count == len(pixels)


@pytest.mark.parametrize("name", HEALTHY)
def test_a_class_map_takes_the_georeference_of_the_scene(awkward, name, tmp_path):
    with Scene(awkward / name) as scene:
        height, width, place = min(scene.height, 300), min(scene.width, 300), scene.georeference
    index = np.random.default_rng(0).integers(0, 6, (height, width)).astype(np.uint8)
    path = tmp_path / "map.tif"
    with MapWriter(path, height=height, width=width, schema=load_schema("potsdam"), **place) as sink:
        sink.write(Window(0, 0, height, width), index)
    with open_raster(awkward / name) as source, open_raster(path) as file:
        assert np.array_equal(file.read(1), index)
        assert file.transform.almost_equals(source.transform)
        assert file.crs == source.crs
        assert [(p.row, p.col, p.x, p.y) for p in file.gcps[0]] == [(p.row, p.col, p.x, p.y) for p in source.gcps[0]]
        assert file.gcps[1] == source.gcps[1]
        assert bool(file.rpcs) == bool(source.rpcs)
        if source.rpcs:
            assert file.rpcs.line_num_coeff == source.rpcs.line_num_coeff


@pytest.mark.parametrize("name", AWKWARD)
def test_as_a_label_it_is_read_or_refused_in_one_line(awkward, name):
    schema = load_schema("potsdam")
    try:
        with LabelRaster(awkward / name, schema) as label:
            window = corner(label.height, label.width)
            index, unknown = label.read(window)
            _, valid = expected(awkward / name, window)
    except RasterError as error:
        assert name in str(error)
        assert "\n" not in str(error)
    else:
        assert set(np.unique(index)) <= {*range(6), 255}
        assert sum(unknown.values()) <= valid.sum()
        assert (index[~valid] == 255).all()


def test_a_truncated_raster_is_refused_where_it_cannot_be_read_and_nowhere_else(awkward):
    with Scene(awkward / CORRUPT) as scene:
        readable = []
        for window in blocks(scene.height, scene.width, 512):
            try:
                scene.read(window)
                readable.append(window)
            except RasterError as error:
                assert str(error).startswith(f"{awkward / CORRUPT} cannot be read: ")
                assert "\n" not in str(error)
        assert readable == [Window(0, 0, 512, 512), Window(0, 512, 512, 512), Window(512, 0, 512, 512)]


def test_a_raster_on_another_planet_has_its_own_metres(awkward):
    with Scene(awkward / "rio-tiler__cog_nonearth.tif") as scene:
        assert scene.gsd == pytest.approx(282.0)


def test_a_scene_that_only_has_control_points_has_no_transform(awkward):
    with Scene(awkward / "odc-geo__au-gcp.tif") as scene:
        assert scene.transform == Affine.identity()
        assert scene.gsd is None
        assert len(scene.georeference["gcps"][0]) == 24
