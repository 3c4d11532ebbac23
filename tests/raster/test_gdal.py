import subprocess
import sys
import warnings

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.gdal import CACHE_BYTES, set_cache
from rs_biformer.raster.source import Source

# GDAL's cache is one for the process, so each question is asked in a process of its own.
_REPORT = """
import sys
from rasterio.env import get_gdal_config
from rs_biformer.raster.gdal import gdal_env, set_cache

for size in map(int, sys.argv[1:]):
    if size:
        set_cache(size)
    with gdal_env():
        print(get_gdal_config("GDAL_CACHEMAX"))
    with gdal_env():
        pass
print(get_gdal_config("GDAL_CACHEMAX"))
"""


def cache_after(*sizes: int, **environment: str) -> list[int]:
    command = [sys.executable, "-c", _REPORT, *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=60)
    return [int(line) for line in done.stdout.split()]


def test_the_cache_is_bounded_from_the_first_access_on_and_by_what_is_set_later():
    assert cache_after(0, 2**24, 2**26) == [CACHE_BYTES, 2**24, 2**26, 2**26]


def test_a_bound_that_is_set_first_is_not_set_back():
    assert cache_after(2**24, 0) == [2**24] * 3


def test_the_users_own_bound_wins():
    assert set(cache_after(2**24, 2**26, GDAL_CACHEMAX="300")) == {300 * 2**20}


def test_a_bound_that_gdal_would_take_for_megabytes_is_refused():
    with pytest.raises(ConfigError, match="GDAL's cache is to be 64 bytes; it must be 1048576"):
        set_cache(64)


PICTURE = np.random.default_rng(0).integers(0, 255, (3, 16, 16)).astype(np.uint8).repeat(6, 1).repeat(6, 2)


@pytest.mark.parametrize("driver, inserted", [("PNG", b"[" * 200), ("JPEG", b"\xff\xd0")])
def test_a_picture_that_its_library_finds_damaged_is_refused_and_not_made_up(driver, inserted, tmp_path):
    path = tmp_path / "a.pic"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver=driver, width=96, height=96, count=3, dtype="uint8") as sink:
            sink.write(PICTURE)
    whole = Window(0, 0, 96, 96)
    assert np.abs(np.stack(Source(path).read([1, 2, 3], whole)).astype(int) - PICTURE).mean() < 30
    data = path.read_bytes()
    cut = int(len(data) * 0.6)
    path.write_bytes(data[:cut] + inserted + data[cut:])
    with pytest.raises(RasterError, match="cannot be read"):
        Source(path).read([1, 2, 3], whole)
