"""The pieces of a raster that is being written, in a folder that outlives the process: what makes a map resumable.

Each window is a small GeoTIFF of its own with a checksum behind it, and gets its name by a rename. A process that is
killed leaves whole pieces only, since the kernel keeps what was written; a power cut may leave torn ones, which the
checksum tells. So nothing has to be forced onto the disk piece by piece.
"""

import errno
import json
import os
import re
import socket
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import BaseFileLock, FileLock, Timeout
from numpy.typing import NDArray

from rs_biformer.documents import build, parse_json, read_json
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.files import discard, process_is_alive, shared_file_system, write_text
from rs_biformer.geometry import Window, cells
from rs_biformer.raster.cog import TILE, Encoding
from rs_biformer.raster.gdal import open_raster

_NAME = re.compile(r"(\d+)-(\d+)-(\d+)-(\d+)\.tif")
_OURS = re.compile(
    r"state\.json|owner\.json|map\.partial|\d+-\d+-\d+-\d+\.(tif|\d+\.new)|\.(state|owner)\.json\.[0-9a-f-]+\.partial"
)
"""Names of what is put into a staging folder."""

_PIECE_BYTES = 8 * 2**20
_CHECKSUM_BYTES = 4
_STATE, _OWNER = "state.json", "owner.json"
_STATE_BYTES = 16 * 2**20

_PATIENCE = 0.2
"""Seconds to wait for a process that has the lock: it may be about to end."""


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
        return cells(window, TILE, self._piece_width)

    def __contains__(self, window: Window) -> bool:
        return all(piece in self._pieces for piece in self._cut(window))

    def put(self, window: Window, pixels: NDArray[Any]) -> None:
        """Keep the pixels (C, h, w) of a window; they replace what was kept for it."""
        for piece in self._cut(window):
            part = pixels[:, *piece.within(window)]
            data = self._encoding.encode_quickly(part)
            path = self._path(piece)
            partial = path.with_suffix(f".{threading.get_ident()}.new")
            with partial.open("wb") as file:
                file.write(data)
                file.write(_checksum(data))
            partial.replace(path)
            self._pieces.add(piece)

    def read(self, window: Window) -> NDArray[Any]:
        """Pixels (C, h, w) of any window; those in no piece are nodata, or 0 where there is none."""
        shape = (self._encoding.count, window.height, window.width)
        array = np.full(shape, 0 if self._nodata is None else self._nodata, self._encoding.dtype)
        for piece in sorted(self._pieces):
            common = piece.intersection(window)
            if common is None:
                continue
            with open_raster(self._path(piece)) as file:
                inside = Window(common.row - piece.row, common.col - piece.col, common.height, common.width)
                array[:, *common.within(window)] = self._encoding.decode(file, inside)
        return array

    def _path(self, piece: Window) -> Path:
        return self._folder / f"{piece.row}-{piece.col}-{piece.height}-{piece.width}.tif"


def _checksum(data: bytes | memoryview) -> bytes:
    return zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "little")


def _is_intact(path: Path) -> bool:
    data = memoryview(path.read_bytes())
    return _checksum(data[:-_CHECKSUM_BYTES]) == bytes(data[-_CHECKSUM_BYTES:])


def open_folder(folder: Path, state: Mapping[str, Any], *, restart: bool, target: Path) -> BaseFileLock:
    """Take the staging folder of `target` for one state, made or found; the lock to be given to `close_folder`.

    Raises RasterError while another process has it, or where it is a link or holds what no writer put there: nothing of
    that is touched. Raises ConfigError when it belongs to another state, unless `restart` throws that away.
    """
    _require_no_links(folder, target)
    lock = _take_lock(folder, target)
    try:
        _require_ours(folder, target, restart)
    except BaseException:
        _give_back(lock)
        raise
    try:
        found = _read_json(folder / _STATE)
        wanted = parse_json(json.dumps(state), target.name)
        if found != wanted and found and not restart:
            raise ConfigError(_difference(found, wanted, folder, target))
        if found != wanted or restart:
            discard(folder, target)
            folder.mkdir(parents=True, exist_ok=True)
            # One that a power cut damages is none, and the map is begun anew: to wait for the disk buys nothing.
            write_text(folder / _STATE, json.dumps(wanted), sync=False)
        write_text(folder / _OWNER, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), sync=False)
    except BaseException:
        close_folder(folder, lock, keep=True, target=target)
        raise
    return lock


def close_folder(folder: Path, lock: BaseFileLock, *, keep: bool, target: Path) -> None:
    """Give a folder up, and remove it unless it is to be kept and has a piece in it."""
    try:
        if not keep or not any(folder.glob("*.tif")):
            discard(folder, target)
        with suppress(OSError):
            (folder / _OWNER).unlink(missing_ok=True)
    finally:
        _give_back(lock)


def _require_no_links(folder: Path, target: Path) -> None:
    """Raise RasterError where the folder or its lock is a link, through which somebody's files would be changed."""
    for place in (folder, _lock_of(folder)):
        if place.is_symlink():
            raise RasterError(f"{target} cannot be begun: {place} is a link; remove it, or choose another name")


def _require_ours(folder: Path, target: Path, restart: bool) -> None:
    """Raise RasterError unless all that is in the folder was put there for a map that was begun; for who has the lock.

    The state is the mark: it says how the pieces beside it are stored.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RasterError(f"{target} cannot be begun: {folder} is a file; move it away, or choose another name")
    names = sorted(path.name for path in folder.iterdir())
    strange = [name for name in names if not _OURS.fullmatch(name)]
    if not strange and not restart and "raster" not in _read_json(folder / _STATE):
        strange = [name for name in names if "json" not in name]
    if strange:
        raise RasterError(
            f"{target} cannot be begun: {folder}, where its pieces would lie, holds {strange[0]}, which is no piece of "
            "a map that was begun; nothing was removed. Move the folder away, or choose another name"
        )


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path, target: Path) -> str:
    keys = [key for key in (*wanted, *found) if found.get(key) != wanted.get(key)]
    was, now = (str(one.get(keys[0], "absent"))[:80] for one in (found, wanted))
    return (
        f"{folder} holds the beginning of another {target.name}: its {keys[0]} was {was} and is now {now}; "
        "use --restart to start over (restart=True), or another name"
    )


# The kernel's lock ends with its process, however that ends, and on a disk of this machine it is all there is to know:
# a container that was started again has another host name. A file in the folder also says who is at work, for the
# message, and because not every file system that machines share shows a lock to the others, or has any. There, what
# another machine has not given back is refused.
def _take_lock(folder: Path, target: Path) -> BaseFileLock:
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = _lock_of(folder)
    lock, free = _acquire(path)
    owner = _read_json(folder / _OWNER)
    who = f"process {owner.get('pid')} on {owner.get('host')}" if owner else "another process"
    if not free:
        raise RasterError(f"{target} cannot be written: {who} is writing it; wait for it, or choose another name")
    shared = shared_file_system(folder.parent)
    elsewhere = owner.get("host", socket.gethostname()) != socket.gethostname()
    if (elsewhere and shared) or (not lock.is_locked and not elsewhere and _is_alive(owner)):
        _give_back(lock)
        raise RasterError(
            f"{target} cannot be written: {who} has begun it and not given it back, and {folder.parent} "
            f"({shared or 'a file system without locks'}) does not tell whether that process is still at work; if it "
            f"is gone for certain, remove {folder / _OWNER} and the same command goes on, else choose another name"
        )
    return lock


def _acquire(path: Path) -> tuple[BaseFileLock, bool]:
    """The lock of this name, taken, and whether it was free; not taken where the file system has no locks."""
    while True:
        lock = FileLock(path, timeout=_PATIENCE, thread_local=False)
        with suppress(OSError):
            path.touch()
        before = _stat(path)
        try:
            lock.acquire(poll_interval=_PATIENCE / 10)
        except Timeout:
            return lock, False
        except NotImplementedError:  # what filelock makes of ENOSYS
            return lock, True
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
            return lock, True
        after = _stat(path)
        if before is not None and after is not None and os.path.samestat(before, after):
            return lock, True
        lock.release()  # whoever had it has removed the file after it was opened here


def _give_back(lock: BaseFileLock) -> None:
    if not lock.is_locked:
        return
    path = Path(lock.lock_file)
    if os.name != "nt":
        path.unlink(missing_ok=True)  # while it is still ours
    lock.release()
    if os.name == "nt":
        with suppress(OSError):  # somebody has it already
            path.unlink(missing_ok=True)


def _is_alive(owner: Mapping[str, Any]) -> bool:
    return isinstance(owner.get("pid"), int) and process_is_alive(owner["pid"])


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _read_json(path: Path) -> dict[str, Any]:
    """What one of our two files says; nothing where it is not there or damaged."""
    try:
        return build(dict[str, Any], read_json(path, limit=_STATE_BYTES), str(path))
    except ConfigError:
        return {}
