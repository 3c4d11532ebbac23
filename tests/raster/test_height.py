import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from scipy.ndimage import map_coordinates

from rs_biformer.cli import main
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster import height
from rs_biformer.raster.height import find_ground, low_heights, on_pixels, write_ndsm

GSD = 0.5


def write_heights(path, heights, gsd=GSD, nodata=-9999.0):
    profile = dict(driver="GTiff", count=1, height=heights.shape[0], width=heights.shape[1], dtype="float32")
    transform = Affine(gsd, 0, 500_000, 0, -gsd, 5_400_000)
    with rasterio.open(path, "w", crs="EPSG:25832", transform=transform, nodata=nodata, **profile) as sink:
        sink.write(heights.astype(np.float32), 1)
    return path


def town(rows=400, cols=360, slope=0.1):
    """Heights of a hillside with houses of 5 to 12 m and a hole in the data; what stands on it; where the hole is."""
    y, x = np.mgrid[:rows, :cols] * GSD
    ground = 200 + slope * x + 5 * np.sin(y / 60)
    stands = np.zeros((rows, cols))
    for top, left, high, wide, metres in [
        (40, 30, 20, 30, 5),
        (100, 200, 90, 60, 12),
        (300, 40, 24, 24, 8),
        (250, 300, 50, 40, 6),
    ]:
        stands[top : top + high, left : left + wide] = metres
    heights = ground + stands
    heights[330:360, 200:260] = -9999
    return heights, stands, heights == -9999


@pytest.fixture
def read_ndsm():
    def read(path):
        with rasterio.open(path) as source:
            assert source.dtypes == ("float32",) and source.nodata == -9999 and source.crs.to_epsg() == 25832
            return source.read(1)

    return read


def test_houses_stand_on_a_hillside(tmp_path, read_ndsm):
    heights, stands, empty = town()
    noise = np.random.default_rng(0).normal(0, 0.03, heights.shape)
    write_ndsm(write_heights(tmp_path / "dsm.tif", np.where(empty, heights, heights + noise)), tmp_path / "ndsm.tif")
    found = read_ndsm(tmp_path / "ndsm.tif")
    assert (found[empty] == -9999).all() and (found[~empty] >= 0).all()
    off = np.abs(found - stands)[~empty]
    assert np.median(off) < 0.15 and np.quantile(off, 0.99) < 1.0
    assert np.abs(found - stands)[(stands > 0) & ~empty].max() < 1.5


def test_with_a_terrain_model_it_is_the_difference(tmp_path, read_ndsm):
    heights, stands, empty = town()
    ground = np.where(empty, 0, heights - stands)
    write_heights(tmp_path / "dsm.tif", heights)
    write_heights(tmp_path / "dtm.tif", np.where(empty, 210, ground))
    write_ndsm(tmp_path / "dsm.tif", tmp_path / "ndsm.tif", terrain=tmp_path / "dtm.tif")
    found = read_ndsm(tmp_path / "ndsm.tif")
    np.testing.assert_allclose(found[~empty], stands[~empty], atol=1e-4)
    assert (found[empty] == -9999).all()


def test_a_coarser_terrain_model_is_resampled(tmp_path, read_ndsm):
    y, x = np.mgrid[:200, :200] * GSD
    write_heights(tmp_path / "dsm.tif", 100 + 0.1 * x + 3)
    yy, xx = (np.mgrid[:20, :20] + 0.5) * 10 * GSD - GSD / 2
    write_heights(tmp_path / "dtm.tif", 100 + 0.1 * xx, gsd=10 * GSD)
    write_ndsm(tmp_path / "dsm.tif", tmp_path / "ndsm.tif", terrain=tmp_path / "dtm.tif")
    np.testing.assert_allclose(read_ndsm(tmp_path / "ndsm.tif")[20:-20, 20:-20], 3, atol=0.02)


def test_windows_leave_no_seam(tmp_path, read_ndsm, monkeypatch):
    path = write_heights(tmp_path / "dsm.tif", town()[0])
    write_ndsm(path, tmp_path / "one.tif")
    monkeypatch.setattr(height, "_STRIP", 64)
    rows: list[int] = []
    write_ndsm(path, tmp_path / "many.tif", progress=lambda done, of: rows.append(done))
    np.testing.assert_array_equal(read_ndsm(tmp_path / "many.tif"), read_ndsm(tmp_path / "one.tif"))
    assert len(rows) > 20 and rows[-1] == 400


def test_the_low_height_of_a_cell_is_a_quantile_of_what_is_known():
    rng = np.random.default_rng(0)
    heights = rng.normal(size=(13, 9)).astype(np.float32)
    heights[rng.random(heights.shape) < 0.3] = np.nan
    heights[4:8, 4:8] = np.nan
    found = low_heights(heights, 4)
    assert found.shape == (4, 3)
    for row in range(4):
        for col in range(3):
            part = heights[4 * row : 4 * row + 4, 4 * col : 4 * col + 4]
            known = part[np.isfinite(part)]
            expected = np.quantile(known, 0.1, method="lower") if known.size else np.nan
            np.testing.assert_equal(found[row, col], np.float32(expected))


@pytest.mark.parametrize("shape", [(7, 5), (1, 5), (7, 1), (1, 1)])
def test_the_ground_between_cells_is_bilinear(shape):
    ground = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    window = Window(3, 2, min(20, 4 * shape[0] - 3), min(15, 4 * shape[1] - 2))
    places = [
        (np.arange(a, a + n) + 0.5) / 4 - 0.5 for a, n in ((window.row, window.height), (window.col, window.width))
    ]
    expected = map_coordinates(ground.astype(float), np.meshgrid(*places, indexing="ij"), order=1, mode="nearest")
    np.testing.assert_allclose(on_pixels(ground, 4, window), expected, atol=1e-5)


def test_bare_ground_is_kept_whatever_its_slope():
    y, x = np.mgrid[:80, :90].astype(np.float32)
    plane = 0.2 * x + 0.1 * y
    np.testing.assert_allclose(find_ground(plane, 1.0, 60.0, 0.5), plane, atol=0.2)


def test_what_cannot_be_is_refused_and_nothing_is_written(tmp_path, capsys):
    flat = write_heights(tmp_path / "dsm.tif", np.full((30, 30), 5.0))
    with pytest.raises(ConfigError, match="largest is 0"):
        write_ndsm(flat, tmp_path / "ndsm.tif", largest=0)
    with pytest.raises(RasterError, match="no pixel with a height"):
        write_ndsm(write_heights(tmp_path / "empty.tif", np.full((30, 30), -9999.0)), tmp_path / "ndsm.tif")
    (tmp_path / "link.tif").symlink_to(flat)
    for same in (flat, tmp_path / "link.tif", tmp_path / ".." / tmp_path.name / "dsm.tif"):
        before = flat.read_bytes()
        assert main(["ndsm", str(flat), "--out", str(same)]) == 2
        assert "write it under another name" in capsys.readouterr().err and flat.read_bytes() == before
    assert main(["ndsm", str(flat), "--out", str(tmp_path / "ndsm.png")]) == 2
    assert main(["ndsm", str(flat), "--terrain", str(flat), "--out", str(tmp_path / "same.tif")]) == 0
    assert not (tmp_path / "ndsm.tif").exists()


def test_a_raster_with_more_bands_is_no_surface_model(tmp_path):
    profile = dict(driver="GTiff", count=3, height=8, width=8, dtype="uint8", transform=Affine(1, 0, 9, 0, -1, 9))
    with rasterio.open(tmp_path / "rgb.tif", "w", **profile) as sink:
        sink.write(np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(RasterError, match="3 bands; heights have one band per file"):
        write_ndsm(tmp_path / "rgb.tif", tmp_path / "ndsm.tif")


def write_encoded(path, metres, *, scale=1.0, offset=0.0, unit=None, per_metre=1.0, dtype="int16", crs="EPSG:25832"):
    """Heights as numbers of `dtype`, with the scale, offset and unit that the file declares; -32768 where negative."""
    numbers = np.rint((metres * per_metre - offset) / scale)
    numbers[metres < 0] = -32768
    profile = dict(driver="GTiff", count=1, height=metres.shape[0], width=metres.shape[1], dtype=dtype, nodata=-32768)
    transform = Affine(GSD, 0, 500_000, 0, -GSD, 5_400_000)
    with rasterio.open(path, "w", crs=crs, transform=transform, **profile) as sink:
        sink.write(numbers.astype(dtype), 1)
        sink.scales, sink.offsets = (scale,), (offset,)
        if unit:
            sink.units = (unit,)
    return path


ENCODINGS = [
    {"scale": 0.01},
    {"scale": 0.01, "offset": 150.0},
    {"unit": "cm", "per_metre": 100, "dtype": "int32"},
    {"unit": "US survey foot", "per_metre": 3937 / 1200, "dtype": "float32"},
    {"unit": "feet", "per_metre": 1 / 0.3048, "scale": 0.05},
    {"unit": "Metre", "dtype": "float32"},
    {"crs": "EPSG:25832+8228", "per_metre": 1 / 0.3048, "dtype": "float32"},  # heights of NAVD88 in feet
]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_heights_are_metres_whatever_scale_and_unit_the_file_declares(tmp_path, encoding):
    """A roof is as high in hundredths, centimetres and feet as it is in metres."""
    heights, stands, empty = town(200, 300)
    write_ndsm(write_encoded(tmp_path / "dsm.tif", heights, **encoding), tmp_path / "ndsm.tif")
    with rasterio.open(tmp_path / "ndsm.tif") as file:
        found = file.read(1)
    assert (found[empty] == -9999).all()
    assert np.median(found[stands == 12]) == pytest.approx(12, abs=0.5)
    terrain = write_encoded(tmp_path / "dtm.tif", heights - stands, scale=0.005, offset=200)
    write_ndsm(tmp_path / "dsm.tif", tmp_path / "both.tif", terrain=terrain)
    with rasterio.open(tmp_path / "both.tif") as file:
        both = file.read(1)
    assert both[~empty] == pytest.approx(stands[~empty], abs=1.0 if encoding.get("dtype") == "float32" else 0.6)


def test_a_unit_that_is_said_overrules_and_one_that_is_unknown_is_refused(tmp_path):
    heights, stands, _ = town(200, 300)
    dsm = write_encoded(tmp_path / "dsm.tif", heights, unit="fathom", per_metre=1 / 0.3048, dtype="float32")
    with pytest.raises(RasterError, match="heights in 'fathom', which is no unit known here.*--unit"):
        write_ndsm(dsm, tmp_path / "ndsm.tif")
    with pytest.raises(ConfigError, match="unit is 'fathom'; it must be one of m, ft"):
        write_ndsm(dsm, tmp_path / "ndsm.tif", unit="fathom")
    assert main(["ndsm", str(dsm), "--out", str(tmp_path / "ndsm.tif"), "--unit", "ft"]) == 0
    with rasterio.open(tmp_path / "ndsm.tif") as file:
        assert np.median(file.read(1)[stands == 12]) == pytest.approx(12, abs=0.5)


def test_heights_beyond_all_numbers_are_no_heights(write_raster, tmp_path):
    high, low = np.zeros((1, 8, 8), np.float32), np.zeros((1, 8, 8), np.float32)
    high[0, 0, 0], low[0, 0, 0], high[0, 1, 1], low[0, 2, 2] = 3.4e38, -3.4e38, 5, -3
    dsm, dtm = write_raster("dsm.tif", high), write_raster("dtm.tif", low)
    write_ndsm(dsm, tmp_path / "ndsm.tif", terrain=dtm)
    with rasterio.open(tmp_path / "ndsm.tif") as made:
        found = made.read(1)
    assert found[0, 0] == -9999 and found[1, 1] == 5 and found[2, 2] == 3
    assert (found[3:] == 0).all()
