"""How this package uses GDAL: its settings, how a raster is opened, and how its errors become ours.

Everything that depends on GDAL's process-wide state is kept here, so that the other files of the room read as plain
window arithmetic.
"""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp
from rasterio.env import ensure_env, set_gdal_config
from rasterio.errors import CRSError, NotGeoreferencedWarning
from rasterio.errors import RasterioError as RasterioLibraryError
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.machine import machine_cores
from rs_biformer.raster.kinds import (
    raster_drivers,
    require_overviews_here,
    require_own_pixels,
    require_plain_companions,
    told,
)
from rs_biformer.raster.paths import PathLike, gdal_name, is_remote
from rs_biformer.raster.vrt import REMOTE, is_vrt, may_name_servers, require_local_sources

CACHE_BYTES = 128 * 2**20
"""Bytes of decoded blocks that GDAL keeps: a row of 512-pixel RGB tiles of a scene 50,000 pixels wide fits.

GDAL's own default is 5 % of the machine's memory, for every process: eight loading workers would take 40 %.
"""

_LEAST_CACHE = 2**20  # GDAL takes smaller figures for megabytes (below 100,000) as well

_SETTINGS: dict[str, Any] = {
    # Do not list the folder of every raster (slow in folders of thousands of chips) but still look for the side files
    # of the one at hand. EMPTY_DIR, which is often advised, hides .msk masks and .tfw world files.
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",
    "GDAL_TIFF_INTERNAL_MASK": True,
    # No file may run code, whatever the environment says.
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    # Its shortcut for a PNG that is read at once gives whatever was in memory where the file is damaged, in silence.
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",
    # What libjpeg finds to be damaged is no image. The environment may say otherwise, for files that are only odd.
    "GDAL_ERROR_ON_LIBJPEG_WARNING": os.environ.get("GDAL_ERROR_ON_LIBJPEG_WARNING", "YES"),
    # Decoding threads belong to one pool per process, and a pool does not survive a fork: a data loader's worker that
    # inherited one would wait for ever. Writers ask for threads themselves, see `writer_threads`.
    "GDAL_NUM_THREADS": "1",
}

_HTTP = {
    # A scene is read for hours: a server that is busy for a moment must not end it, and one that is gone must.
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "1",  # seconds, about twice as many each time
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    "GDAL_HTTP_LOW_SPEED_TIME": "60",  # less than LIMIT bytes a second for so long ends a request
    "GDAL_HTTP_LOW_SPEED_LIMIT": "10",
}

_IMPORTED_BY = os.getpid()
_WARNINGS = threading.Lock()  # warnings.catch_warnings swaps state that all threads share


def _renew_lock() -> None:
    global _WARNINGS
    _WARNINGS = threading.Lock()


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=_renew_lock)  # the thread that held it is not in the child


def gdal_env() -> rasterio.Env:
    """The GDAL settings of this package, a context to be entered around every access to a raster."""
    _bound_cache()
    _be_patient()
    return rasterio.Env(**_SETTINGS)


@cache
def _be_patient() -> None:
    # Once for the process, as setting them for every read would take longer than a small one; variables of the
    # environment win.
    for name, value in _HTTP.items():
        if name not in os.environ:
            set_gdal_config(name, value)


@cache
def _bound_cache() -> None:
    _set_cache(CACHE_BYTES)


def set_cache(size: int) -> None:
    """Bound GDAL's cache of decoded blocks to `size` bytes, for the whole process, until it is set again.

    There is one cache for all rasters and threads. A user's own environment variable GDAL_CACHEMAX wins. Blocks that
    are in the cache leave it when others need their room, so the bound holds from the next reads and writes on.

    Raises ConfigError below 1 MiB, where GDAL would decode a block again for each of its windows.
    """
    if size < _LEAST_CACHE:
        raise ConfigError(f"GDAL's cache is to be {size} bytes; it must be {_LEAST_CACHE} (1 MiB) or more")
    _bound_cache()  # now, so that the first gdal_env does not set it back
    _set_cache(size)


def _set_cache(size: int) -> None:
    # As an option of rasterio.Env it would be reset to GDAL's default whenever any thread leaves its Env.
    if "GDAL_CACHEMAX" not in os.environ:
        set_gdal_config("GDAL_CACHEMAX", size)


def writer_threads() -> str:
    """Value of GDAL's NUM_THREADS for writing: all cores we may use, but none beside the caller in a forked process."""
    return str(_cores()) if os.getpid() == _IMPORTED_BY else "1"


_cores = cache(machine_cores)  # which reads the files of control groups; asked for several times in each map


def open_raster(path: PathLike, mode: str = "r", **profile: Any) -> Any:
    """`rasterio.open` without the warning that a raster has no georeference, which is no fault here.

    For reading, with the drivers alone that hold their own pixels, or that the name asks for, see kinds.py.

    Raises RasterError when the path is missing, is no raster, or a description of rasters that lie elsewhere.
    """
    if mode != "r":
        with raster_errors(path, "written"):
            return _opened(path, mode, **profile)
    if not is_remote(path) and not Path(path).exists():
        raise RasterError(f"{os.fspath(path)} does not exist; give the path of a raster")
    _require_followable(path)
    try:
        with raster_errors(path, "opened"):
            found = _opened(path, mode, drivers=raster_drivers(path), **profile)
    except RasterError:
        if not is_remote(path) and (refusal := told(Path(path))) is not None:
            raise refusal from None
        raise
    try:
        require_overviews_here(Path(path), found.tags(ns="OVERVIEWS").get("OVERVIEW_FILE"))
    except RasterError:
        found.close()
        raise
    return found


def _opened(path: PathLike, mode: str, *, drivers: list[str] | None = None, **profile: Any) -> Any:
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        if drivers is None:
            return rasterio.open(gdal_name(path), mode, **profile)
        return _read_with(gdal_name(path), drivers, **profile)


@ensure_env  # type: ignore[untyped-decorator]
def _read_with(name: str, drivers: list[str], **profile: Any) -> Any:
    # rasterio.open takes one driver; what it calls, and what reads the name, take several.
    return DatasetReader(name, driver=drivers, **profile)


def _require_followable(path: PathLike) -> None:
    """Refuse what would lead GDAL from a file of this machine to others that nobody named."""
    name = os.fspath(path)
    text = name.removeprefix("vrt://").partition("?")[0] if name.startswith("vrt://") else name
    remote = is_remote(text)
    if is_vrt(Path(text)) and not may_name_servers():
        if remote:
            raise RasterError(
                f"{name} is a VRT that is no file of this machine, so that nobody can look through what it names; copy "
                f"it here, or set {REMOTE}=YES in the environment if it is your own"
            )
        require_local_sources(Path(text))
    elif text is not name and not remote and Path(text).is_file():
        require_own_pixels(Path(text))
    elif not remote:
        require_plain_companions(Path(text))


def colour_table(handle: Any) -> dict[int, tuple[int, int, int, int]]:
    """The colours of a band that is marked as one with a palette; none where there is no table, or it is not."""
    if handle.count != 1 or handle.colorinterp[0] != ColorInterp.palette:
        return {}
    try:
        table: dict[int, tuple[int, int, int, int]] = handle.colormap(1)
    except ValueError:  # marked, and no table in the file
        return {}
    return table


def area(window: Window) -> RasterioWindow:
    """A window as rasterio writes it: column first."""
    return RasterioWindow(window.col, window.row, window.width, window.height)


@contextmanager
def raster_errors(path: str | os.PathLike[str], done: str) -> Iterator[None]:
    """Turn what GDAL and the file system raise into one line: "PATH cannot be `done`: reason"."""
    try:
        yield
    # rasterio raises SystemError where GDAL failed without saying why
    except (RasterioLibraryError, CRSError, CPLE_BaseError, OSError, SystemError) as error:
        raise RasterError(f"{os.fspath(path)} cannot be {done}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """The deepest message of the chain: rasterio says "See previous exception for details" and GDAL says why."""
    messages = []
    current: BaseException | None = error
    while current is not None:
        messages.append(getattr(current, "errmsg", None) or getattr(current, "strerror", None) or str(current))
        current = current.__cause__
    return " ".join(messages[-1].split()) or type(error).__name__
