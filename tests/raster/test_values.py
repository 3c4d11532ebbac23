import numpy as np
import pytest
import rasterio

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.values import RAW, Reading, describe, parse_nodata


def invalid(scene):
    return np.argwhere(~scene.read(Window(0, 0, scene.height, scene.width))[1]).tolist()


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("int16", -32768), ("uint16", 65535), ("uint16", 0), ("int32", -9999), ("uint8", 255)]
)
def test_a_void_in_one_band_is_a_void_in_integers_as_in_floats(write_raster, dtype, nodata):
    bands = np.full((3, 6, 7), 5, dtype)
    bands[2, 1, 2] = nodata
    for kind in (dtype, "float64"):
        with Scene(write_raster(f"{kind}.tif", bands.astype(kind), nodata=nodata)) as scene:
            assert invalid(scene) == ([[1, 2]] if kind == dtype or nodata else [])


def test_black_in_one_band_of_8_bits_is_a_dark_pixel(write_raster):
    bands = np.full((3, 6, 7), 5, np.uint8)
    bands[:, 0, 0] = bands[1, 3, 3] = 0
    with Scene(write_raster("a.tif", bands, nodata=0)) as scene:
        assert invalid(scene) == [[0, 0]]
    with Scene(write_raster("b.tif", bands), reading=Reading(nodata=(0.0,))) as scene:
        assert invalid(scene) == [[0, 0]]


def test_nodata_is_given_where_the_file_says_none_and_for_each_raster(write_raster):
    image, heights = np.full((3, 6, 7), 5, np.uint8), np.full((1, 6, 7), 2, np.float32)
    image[:, 0, 0] = 0
    heights[0, 1, 1], heights[0, 2, 2] = -9999, 0
    paths = [write_raster("a.tif", image), write_raster("b.tif", heights)]
    for nodata, expected in (
        ((), []),
        ((0.0,), [[0, 0], [2, 2]]),
        ((0.0, None), [[0, 0]]),
        ((0.0, -9999.0), [[0, 0], [1, 1]]),
        ((None, -9999.0), [[1, 1]]),
    ):
        with Scene(paths, reading=Reading(nodata=nodata)) as scene:
            assert invalid(scene) == expected, nodata
    with Scene(write_raster("c.tif", heights, nodata=-9999), reading=Reading(nodata=(2.0,))) as scene:
        assert invalid(scene) == [[1, 1]], "a file's own nodata value stands"


@pytest.mark.parametrize(("rasters", "nodata"), [(2, (None, 0.0, 1.0)), (1, (0.0, None)), (3, (0.0, None))])
def test_nodata_for_another_number_of_rasters_is_refused(write_raster, rasters, nodata):
    paths = [write_raster(f"{number}.tif", np.ones((1, 3, 4), np.uint8)) for number in range(rasters)]
    with pytest.raises(ConfigError, match=rf"0\.tif: {len(nodata)} values .* the scene has {rasters}; give --nodata"):
        Scene(paths, reading=Reading(nodata=nodata))


@pytest.fixture
def scaled(write_raster):
    """Two uint16 bands with a scale and offset of their own: reflectance and kelvin."""
    numbers = np.arange(2 * 6 * 7, dtype=np.uint16).reshape(2, 6, 7) + 100
    numbers[0, 0, 0] = 65535
    path = write_raster("scaled.tif", numbers, nodata=65535)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (1e-4, 0.01), (-0.1, 273.15)
    return path, numbers


def test_scale_and_offset_are_applied_when_asked_for(scaled):
    path, numbers = scaled
    whole = Window(0, 0, 6, 7)
    with Scene(path) as scene:
        assert scene.dtype == np.uint16
        assert np.array_equal(scene.read(whole)[0], numbers)
        assert scene.scalings == ((1e-4, -0.1), (0.01, 273.15))
    with Scene(path, bands=[2, 1], reading=Reading(scaled=True)) as scene:
        values, valid = scene.read(whole)
        assert scene.dtype == values.dtype == np.float32
        assert values[0] == pytest.approx(numbers[1] * 0.01 + 273.15, rel=1e-6)
        assert values[1] == pytest.approx(numbers[0] * 1e-4 - 0.1, abs=1e-6)
        assert np.argwhere(~valid).tolist() == [[0, 0]], "nodata is compared before"


def test_resampled_rasters_are_scaled_too(scaled, write_raster):
    path, _ = scaled
    top = write_raster(
        "top.tif", np.zeros((1, 12, 14), np.uint8), transform=rasterio.Affine(0.25, 0, 5e5, 0, -0.25, 5.4e6)
    )
    with Scene([top, path], bands=[3], reading=Reading(scaled=True)) as scene:
        values, valid = scene.read(Window(0, 0, 12, 14))
    assert values[0][valid].min() > 273.15
    assert values[0][valid].max() < 275


def test_a_scale_that_gives_no_values_is_refused_only_when_applied(write_raster):
    path = write_raster("a.tif", np.ones((1, 6, 7), np.uint8))
    with rasterio.open(path, "r+") as file:
        file.scales = (0.0,)
    with Scene(path):
        pass
    with pytest.raises(RasterError, match="scale 0, offset 0, which gives no values"):
        Scene(path, reading=Reading(scaled=True))


def test_a_reading_survives_json_and_says_only_what_differs():
    reading = Reading((-9999.0, None), True, ((1e-4, -0.1), (1.0, 0.0)))
    assert Reading.from_dict(reading.to_dict()) == reading
    assert RAW.to_dict() == {}
    assert Reading.from_dict({}) == RAW
    for wrong in ({"nodata": ["x"]}, {"declared": [1]}, {"scaled": True, "gain": 2}):
        with pytest.raises(ConfigError):
            Reading.from_dict(wrong)


@pytest.mark.parametrize(
    ("text", "values"),
    [("-9999", (-9999.0,)), ("0,none", (0.0, None)), ("-3.4028235e38", (-3.4028235e38,)), (" 0 , None ", (0.0, None))],
)
def test_nodata_is_read_from_the_command_line(text, values):
    assert parse_nodata(text) == values


@pytest.mark.parametrize("text", ["", "a", "0,,1", "nan", "inf"])
def test_nodata_that_is_no_number_is_refused(text):
    with pytest.raises(ConfigError, match="is no number"):
        parse_nodata(text)


def test_scales_are_described_once_each():
    assert describe(((1e-4, -0.1),) * 3) == "scale 0.0001, offset -0.1"
    assert describe(((1.0, 0.0), (0.01, 0.0))) == "none; scale 0.01, offset 0"
