"""The layout of finished files, held against rio-cogeo's validator, rasterio and the bytes themselves."""

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rio_cogeo import cog_validate

from rs_biformer.geometry import Window
from rs_biformer.raster import cog, tiff
from rs_biformer.raster.overviews import halved
from rs_biformer.raster.writer import MapWriter
from rs_biformer.schema import IGNORE, load_schema

POTSDAM = load_schema("potsdam")
PLACE = {"crs": "EPSG:25832", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)}
SIZES = [(1, 1), (511, 511), (512, 512), (513, 513), (5000, 300), (300, 1025), (1, 1500)]


def pixels_of(height: int, width: int, count: int = 1, dtype: str = "uint8") -> np.ndarray:
    rng = np.random.default_rng(height + width + count)
    values = rng.integers(0, 6, (count, height, width))
    return values.astype(dtype) if dtype == "uint8" else (values / 5).astype(dtype)


def write(path: Path, pixels: np.ndarray, **options) -> Path:
    count, height, width = pixels.shape
    place = {"height": height, "width": width, "count": count, "dtype": pixels.dtype, **PLACE, **options}
    with MapWriter(path, **place) as sink:
        for row in range(0, height, 640):
            window = Window(row, 0, min(640, height - row), width)
            sink.write(window, pixels[:, *window.slices])
    return path


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(
    ("count", "dtype", "options"),
    [
        (1, "uint8", {"schema": POTSDAM}),
        (6, "uint8", {"schema": POTSDAM}),
        (2, "float16", {"nodata": float("nan")}),
    ],
)
def test_any_size_is_a_valid_cog_with_the_pixels_that_were_written(tmp_path, height, width, count, dtype, options):
    pixels = pixels_of(height, width, count, dtype)
    path = write(tmp_path / "map.tif", pixels, **options)
    assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
    with rasterio.open(path) as file:
        assert np.array_equal(file.read(), pixels)
        levels = file.overviews(1)
    for level in range(len(levels)):
        pixels = halved(pixels, "mode" if count == 1 else "average", options.get("nodata", IGNORE))
        with rasterio.open(path, overview_level=level) as file:
            assert np.array_equal(file.read(), pixels)
            assert file.block_shapes == [(512, 512)] * count
            assert (file.crs, file.nodata) == (
                rasterio.crs.CRS.from_epsg(25832),
                pytest.approx(file.nodata, nan_ok=True),
            )
    assert max(pixels.shape) <= 512


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_tiles_stand_row_by_row_between_their_size_and_their_last_bytes(tmp_path, monkeypatch, big, count):
    monkeypatch.setattr(cog, "_CLASSIC_LIMIT", 0 if big else 2**32)
    path = write(tmp_path / "map.tif", pixels_of(1300, 1100, count))
    data = path.read_bytes()
    assert struct.unpack_from("<H", data, 2) == (43 if big else 42,)
    assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
    with rasterio.open(path) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert np.array_equal(file.read(), pixels_of(1300, 1100, count))
        at = [
            tuple(
                int(file.get_tag_item(f"{what}_{col}_{row}", "TIFF", bidx=band))
                for what in ("BLOCK_OFFSET", "BLOCK_SIZE")
            )
            for band in range(1, count + 1)
            for row in range(3)
            for col in range(3)
        ]
    for (offset, size), (following, _) in zip(at, [*at[1:], (len(data) + 4, 0)], strict=True):
        assert struct.unpack_from("<I", data, offset - 4) == (size,)
        assert data[offset + size - 4 : offset + size] == data[offset + size : offset + size + 4]
        assert following == offset + size + 8


def test_a_file_is_a_bigtiff_only_where_a_classic_one_cannot_hold_it(tmp_path, monkeypatch):
    path = write(tmp_path / "map.tif", pixels_of(600, 600))
    for limit, version in ((path.stat().st_size // 2, 43), (path.stat().st_size + 2**21, 42)):
        monkeypatch.setattr(cog, "_CLASSIC_LIMIT", limit)
        again = write(tmp_path / "again.tif", pixels_of(600, 600))
        assert struct.unpack_from("<H", again.read_bytes(), 2) == (version,)


def test_offsets_beyond_4_gib_are_kept(tmp_path):
    image = cog.Tiles(1024, 1024, 1, (tmp_path / "none").open("wb"))
    image.file.close()
    image.sizes[:] = 3 * 2**30
    (directory,) = cog._directories([image], {}, 1000, True)
    assert directory[tiff.OFFSETS].numbers.tolist() == [1004 + number * (3 * 2**30 + 8) for number in range(4)]
    assert directory[tiff.SIZES].numbers.tolist() == [3 * 2**30] * 4


@given(
    st.dictionaries(
        st.integers(1, 65_535),
        st.one_of(
            st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5).map(tiff.Tag.of),
            st.binary(min_size=1, max_size=40).map(lambda data: tiff.Tag(2, data)),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_directory_that_is_written_is_read_back(tags):
    data = tiff.header(8, False) + tiff.serialised([tags, {254: tiff.Tag.of([1])}], 8, False)
    assert tiff.read_directory(data) == tags


def test_half_floats_take_two_bytes_and_keep_every_value(tmp_path):
    pixels = np.random.default_rng(0).random((1, 512, 512)).astype(np.float16)
    pixels[0, :9] = np.nan
    path = write(tmp_path / "p.tif", pixels, nodata=float("nan"), compress="none")
    assert path.stat().st_size < 512 * 512 * 2 + 5_000
    with rasterio.open(path) as file:
        assert np.array_equal(file.read().astype(np.float16), pixels, equal_nan=True)
        assert np.isnan(file.nodata)


_MEMORY = """
import sys
import numpy as np
import rasterio
from affine import Affine
from rs_biformer.geometry import Window
from rs_biformer.raster.gdal import set_cache
from rs_biformer.raster.writer import MapWriter

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

set_cache(32 * 2**20)
before = peak()
for side in (2048, 8192):
    with MapWriter(sys.argv[1], height=side, width=side, crs=None, transform=Affine.identity()) as sink:
        for row in range(0, side, 256):
            for col in range(0, side, 2048):
                strip = np.add.outer(np.arange(256), np.arange(2048)) // 97 % 6
                sink.write(Window(row, col, 256, 2048), strip.astype(np.uint8))
    print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_raster(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, tmp_path / "m.tif"], capture_output=True, text=True, timeout=120, check=True
    )
    small, large = map(int, done.stdout.split())
    assert large < 80e6
    assert large - small < 24e6  # of 63 MB more pixels; each of the two more levels holds a block of 4 MiB
