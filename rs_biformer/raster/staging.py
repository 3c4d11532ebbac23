"""The pieces of a raster that is being written, in a folder that outlives the process: what makes a map resumable.

Each window is a small GeoTIFF of its own with a checksum behind it, and gets its name by a rename. A process that is
killed leaves whole pieces only, since the kernel keeps what was written; a power cut may leave torn ones, which the
checksum tells. So nothing has to be forced onto the disk piece by piece.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.cog import TILE, Encoding
from rs_biformer.raster.gdal import open_raster

_NAME = re.compile(r"(\d+)-(\d+)-(\d+)-(\d+)\.tif")
_PIECE_BYTES = 8 * 2**20
_CHECKSUM_BYTES = 4
_STATE, _LOCK = "state.json", "lock"


class Staging:
    """The pieces in a folder. Windows that are there and intact when it is made belong to it; torn ones are removed.

    A window is kept as one piece, or as several where it is larger than _PIECE_BYTES, so that neither writing nor
    reading holds much more than that at a time.
    """

    def __init__(self, folder: Path, encoding: Encoding, nodata: float | None) -> None:
        self._folder, self._encoding, self._nodata = folder, encoding, nodata
        pixel_bytes = encoding.count * encoding.dtype.itemsize
        self._piece_width = max(1, _PIECE_BYTES // (TILE * TILE * pixel_bytes)) * TILE
        self._pieces: set[Window] = set()
        for path in folder.glob("*.new"):
            path.unlink()
        for path in folder.glob("*.tif"):
            match = _NAME.fullmatch(path.name)
            if match and _is_intact(path):
                self._pieces.add(Window(*map(int, match.groups())))
            else:
                path.unlink()

    def _cut(self, window: Window) -> Iterator[Window]:
        """The pieces of a window: it is cut at multiples of a tile's height and of the pieces' width."""
        for row, height in _parts(window.row, window.row_stop, TILE):
            for col, width in _parts(window.col, window.col_stop, self._piece_width):
                yield Window(row, col, height, width)

    def __contains__(self, window: Window) -> bool:
        return all(piece in self._pieces for piece in self._cut(window))

    def put(self, window: Window, pixels: NDArray) -> None:
        """Keep the pixels (C, h, w) of a window; they replace what was kept for it."""
        for piece in self._cut(window):
            part = pixels[:, *_within(piece, window)]
            data = self._encoding.encode_quickly(part)
            path = self._path(piece)
            partial = path.with_suffix(f".{threading.get_ident()}.new")
            with partial.open("wb") as file:
                file.write(data)
                file.write(_checksum(data))
            partial.replace(path)
            self._pieces.add(piece)

    def read(self, window: Window) -> NDArray:
        """Pixels (C, h, w) of any window; those in no piece are nodata, or 0 where there is none."""
        shape = (self._encoding.count, window.height, window.width)
        array = np.full(shape, 0 if self._nodata is None else self._nodata, self._encoding.dtype)
        for piece in sorted(one for one in self._pieces if one.intersects(window)):
            common = _common(piece, window)
            with open_raster(self._path(piece)) as file:
                rows, cols = _within(common, piece)
                inside = Window(rows.start, cols.start, common.height, common.width)
                array[:, *_within(common, window)] = self._encoding.decode(file, inside)
        return array

    def _path(self, piece: Window) -> Path:
        return self._folder / f"{piece.row}-{piece.col}-{piece.height}-{piece.width}.tif"


def _parts(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """(start, length) of what multiples of `step` cut start to stop into."""
    while start < stop:
        end = min(stop, (start // step + 1) * step)
        yield start, end - start
        start = end


def _common(one: Window, other: Window) -> Window:
    row, col = max(one.row, other.row), max(one.col, other.col)
    return Window(row, col, min(one.row_stop, other.row_stop) - row, min(one.col_stop, other.col_stop) - col)


def _within(window: Window, frame: Window) -> tuple[slice, slice]:
    """Slices of `window` in an array whose origin is that of `frame`."""
    row, col = window.row - frame.row, window.col - frame.col
    return slice(row, row + window.height), slice(col, col + window.width)


def _checksum(data: bytes | memoryview) -> bytes:
    return zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "little")


def _is_intact(path: Path) -> bool:
    data = memoryview(path.read_bytes())
    return _checksum(data[:-_CHECKSUM_BYTES]) == bytes(data[-_CHECKSUM_BYTES:])


def open_folder(folder: Path, state: Mapping[str, Any], *, restart: bool, target: Path) -> int:
    """Take the staging folder of `target` for one state, made or found; the lock to be given to `close_folder`.

    Raises RasterError while another process has it, and ConfigError when it belongs to another state, unless `restart`
    throws that away.
    """
    lock = _take_lock(folder / _LOCK, target)
    try:
        found = _read_json((folder / _STATE).read_bytes()) if (folder / _STATE).exists() else {}
        wanted = _read_json(json.dumps(state).encode())
        if found != wanted:
            if found and not restart:
                raise ConfigError(_difference(found, wanted, folder, target))
            restart = True
        if restart:
            for path in folder.iterdir():
                if path.name != _LOCK:
                    path.unlink()
            partial = folder / f"{_STATE}.new"
            partial.write_text(json.dumps(wanted))
            partial.replace(folder / _STATE)
    except BaseException:
        close_folder(folder, lock, keep=True)
        raise
    return lock


def close_folder(folder: Path, lock: int, *, keep: bool) -> None:
    """Give a folder up, and remove it unless it is to be kept and has a piece in it."""
    if not keep or not any(folder.glob("*.tif")):
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        os.ftruncate(lock, 0)
    os.close(lock)


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path, target: Path) -> str:
    keys = [key for key in (*wanted, *found) if found.get(key) != wanted.get(key)]
    was, now = (str(one.get(keys[0], "absent"))[:80] for one in (found, wanted))
    return (
        f"{folder} holds the beginning of another {target.name}: its {keys[0]} was {was} and is now {now}; "
        "use --restart to start over (restart=True), or another name"
    )


# The kernel's lock ends with its process, however that ends. The file also says who holds it: for the message, and
# because not every shared file system shows a lock to other machines, or has any. So what another machine has not given
# back is refused.
def _take_lock(path: Path, target: Path) -> int:
    host = socket.gethostname()
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        owner = _read_json(os.pread(file, 1000, 0))
        if not _lock(file, owner) or owner.get("host", host) != host:
            os.close(file)
            who = f"process {owner['pid']} on {owner['host']}" if owner else "another process"
            raise RasterError(
                f"{target} cannot be written: {who} is writing it; choose another name, wait for it or, "
                f"if it is gone for certain, remove {path}"
            )
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps({"pid": os.getpid(), "host": host}).encode(), 0)
            return file
        os.close(file)  # the owner has finished, and removed the folder, after the file was opened here


def _lock(file: int, owner: Mapping[str, Any]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        return "pid" not in owner or not _is_alive(owner["pid"])  # a file system without locks
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read_json(data: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(data))
    except ValueError:
        return {}
