import subprocess
import sys

import pytest

from rs_biformer.errors import ConfigError
from rs_biformer.raster.gdal import CACHE_BYTES, set_cache

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
