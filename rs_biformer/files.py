"""Files that appear under their name complete or not at all, whoever is killed meanwhile, and who is at work on one.

Bytes go to a hidden file or folder beside the target, `.NAME.MACHINE-PROCESS-TOKEN.partial`, which takes the target's
name by a rename at the end. What a killed process left is recognised by that name, and removed by the next process that
writes into the same folder.
"""

import ctypes
import errno
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a file cannot grow: a full disk, a used up quota, the limit of a file system."""

AnyPath = str | os.PathLike[str]

_ABANDONED = 24 * 3600.0
"""Seconds without a write after which what a process of another machine left is taken for abandoned."""

_NAME_BYTES = 120  # of the target's name that its partial name repeats: a file system takes 255 in all

_RETRIES = (0.02, 0.1, 0.5)
"""Seconds to wait before a rename is tried again on Windows, where a virus scanner may hold a new file for a moment."""

_SHARED = re.compile(
    r"nfs.*|cifs|smb.*|ncpfs|afs|9p|ceph|lustre|gpfs|beegfs|glusterfs|orangefs|pvfs2|panfs|ocfs2|gfs2|virtiofs|vboxsf"
    r"|prl_fs|fuse\..*|webdav|osxfuse|macfuse"
)
"""File systems that several machines may see, not all of which show one machine's locks to another."""

_PARTIAL = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.partial", re.DOTALL)

_live: set[str] = set()  # partial names of this process that are being written
_swept: set[str] = set()  # folders that this process has rid of leftovers: once, as one may hold a million chips


@contextmanager
def replacing(path: AnyPath, *, sync: bool = True) -> Iterator[Path]:
    """A path to write to that becomes `path` when the block ends well and vanishes when it does not.

    sync: force the bytes onto the disk before the rename, so that a power cut leaves the
    old file or the new one; leave it out for one of thousands that are cheap to make again.

    Raises OSError when the file cannot be written or renamed.
    """
    path = Path(path)
    partial = _begin(path)
    try:
        yield partial
        publish(partial, path, sync=sync)
    except OSError as error:
        if error.filename == str(partial) or (error.filename is None and error.errno in NO_ROOM):
            error.filename, error.filename2 = str(path), None  # as the user knows it; writing names no file at all
        raise
    finally:
        with suppress(OSError):  # what went wrong before tells more
            partial.unlink(missing_ok=True)
        _live.discard(partial.name)


@contextmanager
def scratch_folder(path: AnyPath) -> Iterator[Path]:
    """A hidden folder beside `path`, on the same disk, that goes with all that is in it when the block ends.

    For what must have its name while it is made, or comes in several files: `publish` the one that is wanted.

    Raises OSError when it cannot be made.
    """
    folder = _begin(Path(path))
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _live.discard(folder.name)


def temporary_folder() -> AbstractContextManager[Path]:
    """A folder in the system's place for temporary files, which goes when the block ends.

    Like `scratch_folder`: what a killed process left there is removed by the next one that asks for such a folder.
    """
    return scratch_folder(Path(tempfile.gettempdir(), "rs_biformer"))


def write_text(path: AnyPath, text: str, *, sync: bool = True) -> None:
    """Write UTF-8 text as `replacing` does; lines end as they do in `text`."""
    write_bytes(path, text.encode("utf-8"), sync=sync)


def write_bytes(path: AnyPath, data: bytes, *, sync: bool = True) -> None:
    """Write bytes as `replacing` does."""
    with replacing(path, sync=sync) as partial:
        partial.write_bytes(data)


def publish(partial: Path, path: Path, *, sync: bool = True) -> None:
    """Give a finished file its name, in place of what has it. Both must lie on one disk.

    Raises OSError when it cannot be done.
    """
    if sync:
        _force(partial, os.O_RDWR)
    for seconds in _RETRIES if os.name == "nt" else ():
        try:
            partial.replace(path)
            return
        except PermissionError:
            time.sleep(seconds)
    partial.replace(path)
    if sync and os.name != "nt":
        with suppress(OSError):  # a file system that cannot do this for a folder
            _force(path.parent, os.O_RDONLY)


def discard(folder: Path, path: Path) -> None:
    """Remove a folder that belongs to the target `path`: from its place at once, and then from the disk.

    So nobody takes what is half removed for the whole.
    """
    if not folder.exists():
        return
    aside = _begin(path)
    try:
        folder.replace(aside)
    except OSError:  # on Windows, while somebody has a file of it open
        aside = folder
    shutil.rmtree(aside, ignore_errors=True)
    _live.discard(aside.name)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that are gone left of their attempts to write files of this folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        found = [(Path(entry.path), match) for entry in entries if (match := _PARTIAL.fullmatch(entry.name))]
        for path, match in found:
            if path.name not in _live and _is_abandoned(path, match[1], int(match[2])):
                _remove(path)


def process_is_alive(pid: int) -> bool:
    """Whether this machine has a process of this number."""
    if os.name == "nt":
        return _is_alive_on_windows(pid)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def shared_file_system(path: Path) -> str | None:
    """The kind of file system that holds `path` where other machines may see it too; None for a local one."""
    kind = _file_system(path)
    return kind if kind is not None and _SHARED.fullmatch(kind) else None


def _begin(path: Path) -> Path:
    """A new partial name for the target, whose folder is rid of leftovers first."""
    if (folder := str(path.parent.absolute())) not in _swept:
        remove_leftovers(path.parent)
        _swept.add(folder)
    stem = path.name.encode()[-_NAME_BYTES:].decode(errors="ignore")
    name = f".{stem}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.partial"
    _live.add(name)
    return path.with_name(name)


def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _is_abandoned(path: Path, machine: str, pid: int) -> bool:
    if machine == _machine() and (pid == os.getpid() or not process_is_alive(pid)):
        return True  # of this number, but not among the names that this process has in hand: an earlier one's
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > _ABANDONED
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _force(path: Path, flags: int) -> None:
    file = os.open(path, flags | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _is_alive_on_windows(pid: int) -> bool:
    # os.kill(pid, 0) would send it a Ctrl-C.
    kernel: Any = getattr(ctypes, "WinDLL")("kernel32", use_last_error=True)  # noqa: B009 - known on Windows only
    handle = kernel.OpenProcess(0x00100000, False, pid)  # SYNCHRONIZE
    if not handle:
        return bool(getattr(ctypes, "get_last_error")() == 5)  # noqa: B009 - access denied: it is there
    try:
        return bool(kernel.WaitForSingleObject(handle, 0) == 258)  # WAIT_TIMEOUT: it has not ended
    finally:
        kernel.CloseHandle(handle)


def _file_system(path: Path) -> str | None:
    """The kind of file system under a path, as the system calls it; None where it does not tell."""
    place = os.path.realpath(path)
    if os.name == "nt":
        return "smb" if _is_remote_drive(place) else "ntfs"
    mounts = _linux_mounts() if sys.platform == "linux" else _bsd_mounts()
    under = [(point, kind) for point, kind in mounts if place == point or place.startswith(point.rstrip("/") + "/")]
    return max(reversed(under), key=lambda mount: len(mount[0]))[1] if under else None  # of equals the last covers


def _linux_mounts() -> list[tuple[str, str]]:
    """Mount points and kinds, in the order in which they were mounted (proc_pid_mountinfo(5))."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    pairs = [line.partition(" - ") for line in lines]
    return [(_unescaped(head.split()[4]), tail.split()[0]) for head, _, tail in pairs if tail]


def _unescaped(point: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)


def _bsd_mounts() -> list[tuple[str, str]]:
    """As `mount` lists them on macOS: `server:/home on /Volumes/home (nfs, nodev)`."""
    try:
        listed = subprocess.run(["mount"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [(match[1], match[2]) for match in re.finditer(r" on (.+) \(([\w.+-]+)[^()]*\)$", listed, re.MULTILINE)]


def _is_remote_drive(place: str) -> bool:
    drive = os.path.splitdrive(place)[0]
    windll = getattr(ctypes, "windll", None)
    return drive.startswith("\\\\") or (windll is not None and windll.kernel32.GetDriveTypeW(f"{drive}\\") == 4)
