import json
import os
import resource
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from pieces import blocks, write_chip
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rio_cogeo import cog_validate

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster import cog, writer
from rs_biformer.raster.gdal import open_raster
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.writer import MapWriter
from rs_biformer.schema import IGNORE, load_schema

POTSDAM = load_schema("potsdam")
PLACE = {"crs": "EPSG:25832", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)}
NOWHERE = {"crs": None, "transform": Affine.identity()}


def class_map(height: int = 700, width: int = 600) -> np.ndarray:
    index = np.random.default_rng(0).integers(0, 6, (height, width)).astype(np.uint8)
    index[:, :40] = IGNORE
    return index


def write_map(path: Path, array: np.ndarray, windows: list[Window] | None = None, **options) -> Path:
    height, width = array.shape[-2:]
    count = array.shape[0] if array.ndim == 3 else 1
    with MapWriter(path, height=height, width=width, count=count, dtype=array.dtype, **{**PLACE, **options}) as sink:
        for window in windows or [Window(row, 0, min(96, height - row), width) for row in range(0, height, 96)]:
            sink.write(window, array[(..., *window.slices)])
    return path


def test_a_class_map_is_a_valid_cog_with_everything_a_reader_wants(tmp_path):
    index = class_map()
    path = write_map(tmp_path / "deep" / "map.tif", index, schema=POTSDAM, tags={"MODEL": "resnet50_biformer"})
    valid, errors, warnings = cog_validate(path, strict=True, quiet=True)
    assert (valid, errors, warnings) == (True, [], [])
    with rasterio.open(path) as file:
        assert np.array_equal(file.read(1), index)
        assert (file.crs.to_epsg(), file.transform) == (25832, PLACE["transform"])
        assert (file.nodata, file.dtypes, file.block_shapes) == (IGNORE, ("uint8",), [(512, 512)])
        assert file.compression.name == "deflate"
        assert file.colorinterp == (ColorInterp.palette,)
        assert [file.colormap(1)[k] for k in range(6)] == [(*colour, 255) for colour in POTSDAM.colours]
        assert file.colormap(1)[IGNORE] == (0, 0, 0, 0)
        assert json.loads(file.tags()["CLASS_NAMES"]) == list(POTSDAM.classes)
        assert file.tags()["MODEL"] == "resnet50_biformer"
        assert file.overviews(1) == [2]
    assert [entry.name for entry in path.parent.iterdir()] == ["map.tif"]


def test_overviews_hold_the_most_frequent_class_and_no_class_that_is_not_there(tmp_path):
    index = np.full((1024, 1024), 1, np.uint8)
    index[::2, ::2] = 5  # a quarter of the pixels of every 2 x 2 square; a mean would be 2, nearest would be 5
    index[512:] = IGNORE
    path = write_map(tmp_path / "map.tif", index, schema=POTSDAM)
    with rasterio.open(path, overview_level=0) as file:
        small = file.read(1)
    assert (small[:256] == 1).all()
    assert (small[256:] == IGNORE).all()


def test_a_map_without_a_schema_still_gets_no_invented_values_in_its_overviews(tmp_path):
    index = np.random.default_rng(0).choice([0, 5, IGNORE], (1100, 600)).astype(np.uint8)
    with rasterio.open(write_map(tmp_path / "map.tif", index), overview_level=0) as file:
        assert set(np.unique(file.read(1))) <= {0, 5, IGNORE}


def test_probabilities_keep_their_values_names_and_mean_overviews(tmp_path):
    shares = np.random.default_rng(0).random((6, 600, 530), dtype=np.float32)
    shares[:, :, 0] = np.nan
    path = write_map(tmp_path / "p.tif", shares, schema=POTSDAM, nodata=float("nan"))
    assert cog_validate(path, strict=True, quiet=True)[0]
    with rasterio.open(path) as file:
        assert np.array_equal(file.read(), shares, equal_nan=True)
        assert file.descriptions == POTSDAM.classes
        assert ColorInterp.alpha not in file.colorinterp
    with rasterio.open(path, overview_level=0) as file:
        means = shares[:, 2:600, 2:530].reshape(6, 299, 2, 264, 2).mean((2, 4))
        assert np.allclose(file.read()[:, 1:, 1:], means, atol=1e-6)


def test_overviews_of_a_quantity_in_integers_are_means_when_asked_for(tmp_path):
    levels = np.full((600, 600), 100, np.uint8)
    levels[:, ::2] = 150
    levels[:100] = IGNORE
    with rasterio.open(write_map(tmp_path / "c.tif", levels, overviews="average"), overview_level=0) as file:
        assert set(np.unique(file.read(1))) == {125, IGNORE}


def test_bands_have_the_names_and_the_scale_that_were_given(tmp_path):
    levels = np.zeros((2, 9, 9), np.uint8)
    path = write_map(tmp_path / "p.tif", levels, descriptions=("roads", "Dächer"), scale=0.005, schema=POTSDAM)
    with rasterio.open(path) as file:
        assert file.descriptions == ("roads", "Dächer")
        assert file.scales == (0.005, 0.005)


def test_files_that_described_an_earlier_map_do_not_describe_the_new_one(tmp_path):
    for suffix in (".aux.xml", ".ovr", ".msk"):
        (tmp_path / f"map.tif{suffix}").write_text("old")
    (tmp_path / "map.qml").write_text("the user's own")
    write_map(tmp_path / "map.tif", class_map(50, 50))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["map.qml", "map.tif"]


def test_windows_may_come_in_any_order(tmp_path):
    index = class_map(300, 260)
    windows = list(blocks(300, 260, 77))
    np.random.default_rng(1).shuffle(windows)
    with rasterio.open(write_map(tmp_path / "map.tif", index, windows)) as file:
        assert np.array_equal(file.read(1), index)


@pytest.mark.parametrize("cog", [True, False])
@pytest.mark.parametrize("nodata", [IGNORE, None])
def test_pixels_that_are_never_written_hold_nodata(tmp_path, cog, nodata):
    path = tmp_path / "map.tif"
    with MapWriter(path, height=600, width=40, nodata=nodata, cog=cog, **PLACE) as sink:
        sink.write(Window(100, 0, 50, 40), np.ones((50, 40), np.uint8))
    with rasterio.open(path) as file:
        assert (file.read(1)[100:150] == 1).all()
        assert (np.delete(file.read(1), slice(100, 150), 0) == (nodata or 0)).all()


@pytest.mark.parametrize("compress", ["deflate", "lzw", "zstd", "none"])
@pytest.mark.parametrize("cog", [True, False])
def test_every_compression_keeps_every_value(tmp_path, compress, cog):
    image = np.random.default_rng(0).integers(0, 60_000, (3, 90, 80)).astype(np.uint16)
    path = write_map(tmp_path / "i.tif", image, compress=compress, cog=cog, nodata=None)
    with rasterio.open(path) as file:
        assert np.array_equal(file.read(), image)
        assert (file.compression.name if file.compression else "none") == compress


def test_four_bands_of_8_bits_are_no_mask(tmp_path):
    image = np.random.default_rng(0).integers(0, 2, (4, 30, 30)).astype(np.uint8)
    write_chip(tmp_path / "chip.tif", image, **PLACE)
    for path in (tmp_path / "chip.tif", write_map(tmp_path / "map.tif", image, nodata=None)):
        with Scene(path) as scene:
            pixels, valid = scene.read(Window(0, 0, 30, 30))
            assert np.array_equal(pixels, image)
            assert valid.all()


@pytest.mark.parametrize(
    "transform",
    [
        Affine(3, 1, 100, 2, -4, 200),  # rotated and sheared
        Affine(0.5, 0, -180, 0, 0.5, -90),  # south up
        Affine(10, 0, 7, 0, -10, 9),
    ],
)
@pytest.mark.parametrize("crs", ["EPSG:32633", None])
def test_any_transform_survives(tmp_path, transform, crs):
    with open_raster(write_map(tmp_path / "map.tif", class_map(40, 50), transform=transform, crs=crs)) as file:
        assert file.transform.almost_equals(transform)
        assert file.crs == (rasterio.crs.CRS.from_user_input(crs) if crs else None)


def test_a_map_without_a_place_has_none(tmp_path):
    with open_raster(write_map(tmp_path / "map.tif", class_map(40, 50), **NOWHERE)) as file:
        assert (file.crs, file.transform) == (None, Affine.identity())


def test_ground_control_points_survive(tmp_path):
    points = [GroundControlPoint(row, col, 10 + col / 100, 50 - row / 100) for row, col in [(0, 0), (0, 9), (9, 0)]]
    path = write_map(
        tmp_path / "map.tif", class_map(40, 50), **NOWHERE, gcps=(points, rasterio.crs.CRS.from_epsg(4326))
    )
    with open_raster(path) as file:
        got, crs = file.gcps
        assert crs.to_epsg() == 4326
        assert [(p.row, p.col, p.x, p.y) for p in got] == [(p.row, p.col, p.x, p.y) for p in points]


def test_ground_control_points_survive_without_a_crs_too(tmp_path):
    points = [GroundControlPoint(row, col, 10 + col, 50 - row) for row, col in [(0, 0), (0, 9), (9, 0)]]
    with open_raster(write_map(tmp_path / "map.tif", class_map(40, 50), **NOWHERE, gcps=(points, None))) as file:
        got, crs = file.gcps
        assert crs is None and [(p.row, p.col, p.x, p.y) for p in got] == [(p.row, p.col, p.x, p.y) for p in points]


def test_nothing_is_left_when_the_caller_fails(tmp_path):
    before = write_map(tmp_path / "map.tif", class_map(50, 50)).read_bytes()
    with pytest.raises(ZeroDivisionError), MapWriter(tmp_path / "map.tif", height=9, width=9, **PLACE) as sink:
        sink.write(Window(0, 0, 9, 9), np.ones((9, 9), np.uint8))
        raise ZeroDivisionError
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.tif"]
    assert (tmp_path / "map.tif").read_bytes() == before


def test_the_map_is_absent_until_it_is_complete(tmp_path):
    with MapWriter(tmp_path / "map.tif", height=9, width=9, **PLACE) as sink:
        sink.write(Window(0, 0, 9, 9), np.ones((9, 9), np.uint8))
        assert not (tmp_path / "map.tif").exists()
    assert (tmp_path / "map.tif").exists()


def test_writing_the_same_map_twice_gives_the_same_bytes(tmp_path):
    paths = [write_map(tmp_path / name, class_map(), schema=POTSDAM) for name in ("a.tif", "b.tif")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    with pytest.raises(
        RasterError, match=r"m\.tif cannot be written: it needs about 0\.625 GB and .* has 0\.001 GB free"
    ):
        MapWriter(tmp_path / "m.tif", height=50_000, width=50_000, **PLACE).__enter__()
    assert not list(tmp_path.iterdir())


# A limit on the size of files stands in for a full disk: the same calls fail in the same places, no root needed. The
# child checks itself; the parent sees what is left on the disk.
_FULL_DISK = """
import resource, sys
import numpy as np
from affine import Affine
from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.writer import MapWriter, encode_chip, place_chip

path, mode, dtype, limits = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4]
image = np.random.default_rng(0).integers(0, 255, (1, 600, 512)).astype(dtype)
place = {"crs": None, "transform": Affine.identity()}
for limit in map(int, limits.split(",")):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        if mode == "chip":
            place_chip(path, encode_chip(image, **place))
        else:
            with MapWriter(path, height=600, width=512, dtype=dtype, cog=mode == "cog", nodata=None, **place) as sink:
                for row in range(0, 600, 100):
                    sink.write(Window(row, 0, 100, 512), image[:, row : row + 100])
        print(limit, "written")
    except RasterError as error:
        assert "cannot be written" in str(error) and "free in" in str(error), error
        print(limit, "refused")
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="this system has no limit on file sizes")
@pytest.mark.parametrize(
    ("mode", "dtype"), [("cog", "uint8"), ("tiled", "uint8"), ("cog", "float32"), ("chip", "uint8")]
)
def test_a_disk_that_fills_up_is_an_error_and_nothing_is_left(tmp_path, mode, dtype):
    limits = [100, 3_000, 10_000, 100_000, 200_000, 250_000, 300_000, 310_000, 330_000, 400_000]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(_FULL_DISK),
            tmp_path / "m.tif",
            mode,
            dtype,
            ",".join(map(str, limits)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(writer.__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    outcome = dict(line.split() for line in done.stdout.splitlines())
    written = [limit for limit in limits if outcome[str(limit)] == "written"]
    assert written == [limit for limit in limits if limit >= min(written, default=10**9)]
    if written:  # what was written within the last limits is whole
        with open_raster(tmp_path / "m.tif") as file:
            expected = np.random.default_rng(0).integers(0, 255, (1, 600, 512)).astype(dtype)
            assert np.array_equal(file.read(), expected)
    assert outcome["100"] == outcome["200000"] == "refused"
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.tif"] * bool(written)


def test_a_block_that_is_lost_on_the_way_is_noticed(tmp_path, monkeypatch):
    real = cog.join

    def lossy(images, *rest):
        images[0].starts[0, 0, 0] = images[0].starts[0, 0, 1]
        images[0].sizes[0, 0, 0] = images[0].sizes[0, 0, 1]
        real(images, *rest)

    monkeypatch.setattr(cog, "join", lossy)
    with pytest.raises(RasterError, match="rows 0 to 700 of the map are not as they were written"):
        write_map(tmp_path / "map.tif", class_map())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RasterError, match="cannot be written"):
        write_map(tmp_path / "file" / "map.tif", class_map(9, 9))
    with pytest.raises(RasterError, match="cannot be written"):
        write_chip(tmp_path / "file" / "chip.tif", class_map(9, 9), **PLACE)


@pytest.mark.parametrize(
    ("window", "array", "message"),
    [
        (Window(1, 0, 9, 9), np.ones((9, 9), np.uint8), "leaves it"),
        (Window(0, 0, 9, 9), np.ones((9, 8), np.uint8), "do not fit"),
        (Window(0, 0, 9, 9), np.ones((2, 9, 9), np.uint8), "do not fit"),
        (Window(0, 0, 9, 9), np.full((9, 9), 256), "values 256 to 256"),
        (Window(0, 0, 9, 9), np.full((9, 9), np.nan), "do not fit uint8"),
    ],
)
def test_pixels_that_do_not_fit_are_refused(tmp_path, window, array, message):
    with (
        pytest.raises(RasterError, match=message),
        MapWriter(tmp_path / "m.tif", height=9, width=9, **PLACE) as sink,
    ):
        sink.write(window, array)
    assert not list(tmp_path.iterdir())


def test_a_float_that_a_smaller_float_cannot_hold_is_refused(tmp_path):
    with (
        pytest.raises(RasterError, match="do not fit float16"),
        MapWriter(tmp_path / "m.tif", height=9, width=9, dtype="float16", **PLACE) as sink,
    ):
        sink.write(Window(0, 0, 9, 9), np.full((9, 9), 70_000, np.float32))


def test_indices_of_another_integer_type_are_written_when_they_fit(tmp_path):
    with MapWriter(tmp_path / "m.tif", height=9, width=9, **PLACE) as sink:
        sink.write(Window(0, 0, 9, 9), np.full((9, 9), 254, np.int64))
    with rasterio.open(tmp_path / "m.tif") as file:
        assert (file.read() == 254).all()


@pytest.mark.parametrize(
    "options",
    [
        {"compress": "jpeg"},
        {"height": 0},
        {"dtype": "complex64"},
        {"path": "map.png"},
        {"count": 0},
        {"overviews": "nearest"},
        {"descriptions": ("one", "two")},
    ],
)
def test_options_that_cannot_be_meant_are_refused(tmp_path, options):
    given = {"path": "map.tif", "height": 9, "width": 9, **PLACE, **options}
    with pytest.raises(ConfigError):
        MapWriter(tmp_path / given.pop("path"), **given)


def test_a_chip_holds_pixels_place_mask_names_and_palette(tmp_path):
    index = class_map(64, 48)
    mask = np.indices((64, 48))[0] > 10
    window = Affine(0.5, 0, 500_010, 0, -0.5, 5_399_990)
    write_chip(
        tmp_path / "a" / "chip.tif",
        index,
        crs="EPSG:25832",
        transform=window,
        nodata=IGNORE,
        colormap=dict(enumerate(POTSDAM.colours)),
        descriptions=("class",),
        mask=mask,
    )
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["chip.tif"]
    with rasterio.open(tmp_path / "a" / "chip.tif") as file:
        assert np.array_equal(file.read(1), index)
        assert np.array_equal(file.dataset_mask() > 0, mask)
        assert (file.transform, file.crs.to_epsg(), file.nodata) == (window, 25832, IGNORE)
        assert file.descriptions == ("class",)
        assert file.colormap(1)[1] == (0, 0, 255, 255)


def test_a_chip_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write_chip(tmp_path / "chip.tif", class_map(9, 9), **PLACE)
    before = (tmp_path / "chip.tif").read_bytes()
    with pytest.raises(RasterError):
        write_chip(tmp_path / "chip.tif", class_map(9, 9), crs="no such CRS", transform=PLACE["transform"])
    assert (tmp_path / "chip.tif").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


SITE = (
    'DERIVEDPROJCRS["site grid",BASEPROJCRS["WGS 84 / UTM zone 32N",BASEGEOGCRS["WGS 84",DATUM["World Geodetic System '
    '1984",ELLIPSOID["WGS 84",6378137,298.257223563]]],CONVERSION["UTM zone 32N",METHOD["Transverse Mercator",'
    'ID["EPSG",9807]],PARAMETER["Latitude of natural origin",0],PARAMETER["Longitude of natural origin",9],'
    'PARAMETER["Scale factor at natural origin",0.9996],PARAMETER["False easting",500000],'
    'PARAMETER["False northing",0]]],DERIVINGCONVERSION["site calibration",METHOD["Affine parametric transformation",'
    'ID["EPSG",9624]],PARAMETER["A0",-496000],PARAMETER["A1",1],PARAMETER["A2",0],PARAMETER["B0",-5420000],'
    'PARAMETER["B1",0],PARAMETER["B2",1]],CS[Cartesian,2],AXIS["site east (E)",east],AXIS["site north (N)",north],'
    'LENGTHUNIT["metre",1]]'
)


@pytest.mark.parametrize(
    "crs", [SITE, "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +to_meter=0.0174532925199433"]
)
def test_a_crs_that_geotiff_keys_cannot_hold_stands_beside_the_map(tmp_path, crs):
    path = write_map(tmp_path / "map.tif", class_map(), crs=crs)
    with rasterio.open(path) as file:
        assert file.crs == rasterio.crs.CRS.from_user_input(crs)
    write_map(path, class_map())  # the next one at this place is in another
    with rasterio.open(path) as file:
        assert file.crs.to_epsg() == 25832
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.tif"]
