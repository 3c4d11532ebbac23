"""Every odd raster of the shared collection is either handled rightly or refused in one line."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from pieces import SHARED, blocks
from rasterio.enums import ColorInterp, MaskFlags
from tiny_checkpoint import pointwise_model, tiny_meta

from rs_biformer.cli import main
from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.jobs import Loaded
from rs_biformer.predict import open_scene
from rs_biformer.raster.gdal import open_raster
from rs_biformer.raster.labels import LabelRaster
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.writer import MapWriter
from rs_biformer.schema import load_schema

AWKWARD = sorted(path.name for path in (SHARED / "data" / "awkward").glob("*.tif"))
CORRUPT = "rasterio__corrupt.tif"
HEALTHY = [name for name in AWKWARD if name != CORRUPT]
LARGE = {
    "deepforest__5b90f92da0d7280005fab355_4310.tif",
    "rio-cogeo__image_web_z5_z11.tif",
    "rio-tiler__cog_cmap.tif",
    "rio-tiler__cog_dateline.tif",
} & {*AWKWARD}


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


@pytest.mark.parametrize("name", sorted({*HEALTHY} - LARGE))
def test_the_map_holds_the_classes_of_its_pixels_and_nodata_where_there_are_none(awkward, name, tmp_path, monkeypatch):
    require_right_map(awkward / name, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LARGE))
def test_the_map_of_a_large_one_too(awkward, name, tmp_path, monkeypatch):
    require_right_map(awkward / name, tmp_path, monkeypatch)


def require_right_map(path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Map a raster with a model of one 1x1 convolution by the command line, and work the map out without it."""
    with Scene(path) as scene:
        window = Window(0, 0, scene.height, scene.width)
        bands, dtype, crs, place = scene.band_names, scene.dtype.name, scene.crs, scene.transform
        gcps = len(scene.georeference["gcps"][0])
    image, valid = expected(path, window)
    sample = np.where(valid, image, 0)[:, ::4, ::4].astype(np.float64)
    mean, std = sample.mean(axis=(1, 2)), sample.std(axis=(1, 2)) + 1
    model = pointwise_model(tiny_meta(window=256, bands=bands, dtype=dtype, mean=tuple(mean), std=tuple(std), gsd=None))
    monkeypatch.setattr("rs_biformer.jobs.mapping.load_model", lambda path: Loaded(model, model.meta, Path(path)))
    argv = ["predict", path, "--checkpoint", "pointwise.ckpt", "--out", out, "--overlap", "0", "--precision", "32"]
    assert main([str(part) for part in argv]) == 0
    weight, bias = (value.detach().double().numpy() for value in model.parameters())
    with open_raster(out / f"{path.stem}_classes.tif") as file:
        assert (file.shape, file.crs, file.nodata) == ((window.height, window.width), crs, 255)
        assert file.transform.almost_equals(place)
        assert len(file.gcps[0]) == gcps
        found = file.read(1)
    assert np.array_equal(found == 255, ~valid)
    for row in range(0, window.height, 512):
        known = valid[row : row + 512]
        pixels = image[:, row : row + 512][:, known]
        logits = weight[:, :, 0, 0] @ ((pixels - mean[:, None]) / std[:, None]) + bias[:, None]
        won = np.take_along_axis(logits, found[row : row + 512][known][None].astype(int), 0)
        assert (won > logits.max(0, initial=-np.inf) - 1e-4).all()  # float32 may see a tie otherwise


def test_no_map_is_left_of_a_truncated_one(awkward, tmp_path, monkeypatch, capsys):
    model = pointwise_model(tiny_meta(window=256))
    monkeypatch.setattr("rs_biformer.jobs.mapping.load_model", lambda path: Loaded(model, model.meta, Path(path)))
    argv = ["predict", awkward / CORRUPT, "--checkpoint", "pointwise.ckpt", "--out", tmp_path]
    assert main([str(part) for part in argv]) == 2
    (*_, line) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rs-biformer predict: {awkward / CORRUPT} cannot be read: ")
    assert not list(tmp_path.glob("*.tif"))


OUTCOMES = {
    "deepforest__5b90f92da0d7280005fab355_4310.tif": "pixels of 0.0968 m",  # World Mercator, stretched by 1.03
    "odc-geo__au-3577-rotated.tif": "has 1 band",
    "odc-geo__au-gcp.tif": "has 1 band",
    "rasterio__RGBA.uint16.tif": "holds uint16",
    "rasterio__all-nodata.tif": "holds uint16",
    "rasterio__alpha.tif": "pixels of 3.09 m",
    "rasterio__cogeo.tif": None,
    CORRUPT: None,  # its header is whole: it fails where it cannot be read
    "rasterio__float_nan.tif": "has 1 band",
    "rasterio__rotated.tif": "has 1 band",
    "rio-alpha__dop20c_32587_5922.tif": None,  # without a CRS nobody knows the size of its pixels
    "rio-alpha__external_mask.tif": "pixels of 44.2 m",  # in degrees
    "rio-alpha__two_bands.tif": "has 2 bands",
    "rio-cogeo__image_51px.tif": "pixels of 2.15e+03 m",
    "rio-cogeo__image_rgba_nodata.tif": "pixels of 1.15 m",
    "rio-cogeo__image_web_z5_z11.tif": "pixels of 59.6 m",
    "rio-cogeo__image_webp.tif": "pixels of 1.15 m",
    "rio-tiler__cog_cmap.tif": "pixels of 0.917 m",
    "rio-tiler__cog_dateline.tif": "has 1 band",
    "rio-tiler__cog_nonearth.tif": "has 1 band",
    "rio-tiler__cog_rgb_mask.tif": "pixels of 0.15 m",
    "rio-tiler__cog_scale.tif": "has 2 bands",
    "rio-tiler__inverted_lat.tif": "has 1 band",
    "rioxarray__2d_test.tif": "has 1 band",
    "rioxarray__test_rpcs.tif": "has 1 band",
}


def test_the_collection_is_known_as_a_whole(awkward):
    assert AWKWARD == sorted(OUTCOMES)


@pytest.mark.parametrize(("name", "reason"), OUTCOMES.items())
def test_a_model_for_colours_at_half_a_metre_takes_it_or_says_why_not(awkward, name, reason):
    fit = {"bands": ("red", "green", "blue"), "dtype": "uint8", "gsd": 0.5}
    if reason is None:
        open_scene(awkward / name, **fit).close()
        return
    with pytest.raises(RasterError) as caught:
        open_scene(awkward / name, **fit)
    assert str(caught.value).startswith(f"{awkward / name} {reason if reason.startswith('h') else f'has {reason}'}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", HEALTHY)
def test_resampled_to_other_pixels_it_keeps_its_place_and_its_colours(awkward, name):
    """Twice as coarse: every value lies within what the raster holds, and nodata stays where it was."""
    with Scene(awkward / name) as scene:
        if scene.gsd is None:
            with pytest.raises(RasterError, match="does not tell the size of its pixels"):
                Scene(awkward / name, gsd=1.0)
            return
        window = Window(0, 0, min(scene.height, 512), min(scene.width, 512))
        pixels, valid = scene.read(window)
        bounds = scene.bounds
        coarse = Scene(awkward / name, gsd=2 * scene.gsd)
    with coarse:
        assert coarse.bounds == pytest.approx(bounds, abs=abs(coarse.transform.determinant) ** 0.5)
        part = Window(0, 0, min(coarse.height, window.height // 2 - 1), min(coarse.width, window.width // 2 - 1))
        found, known = coarse.read(part)
    assert found.dtype == pixels.dtype
    # The centre of a coarse pixel is the corner of four fine ones, so one of them says whether it is valid.
    four = [valid[row : 2 * part.height : 2, col : 2 * part.width : 2] for row in (0, 1) for col in (0, 1)]
    assert (known <= np.logical_or.reduce(four)).all()
    assert (known >= np.logical_and.reduce(four)).all()
    if known.any():
        assert (found[:, known].min(axis=1) >= pixels[:, valid].min(axis=1)).all()
        assert (found[:, known].max(axis=1) <= pixels[:, valid].max(axis=1)).all()
