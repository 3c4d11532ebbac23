"""Files that torch.save wrote, seen through before torch loads them, and the writing of such files.

torch trusts the archive: it inflates what is compressed, which torch.save never does, and looks at no checksum, so a
file of some MB fills any memory and flipped bits become weights.
"""

import zipfile
from pathlib import Path

import torch

from rs_biformer.errors import CheckpointError

_MAX_PICKLE = 16 << 20
"""Bytes of the pickle in an archive: names and shapes of some 100,000 tensors. A byte of it may become 64 in memory."""


def require_intact(path: Path) -> None:
    """Raise CheckpointError unless a file is an archive as torch.save writes it, with the checksums that it names."""
    try:
        with zipfile.ZipFile(path) as archive:
            if problem := _problem(archive, path.stat().st_size):
                raise CheckpointError(f"{path} is damaged: {problem}; nothing was loaded")
    # Python's reader says in many ways that a header is nonsense.
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(f"{path} is no checkpoint, or a damaged one ({reason})") from None


def write_archive(content: object, path: Path) -> None:
    """Write what torch.save writes. Raises OSError where it cannot be written: torch says in words of its own, as a
    RuntimeError, that it is not where it should be in a file on a full disk.
    """
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _problem(archive: zipfile.ZipFile, size: int) -> str:
    entries = archive.infolist()
    pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        return "it is compressed, which torch.save never does"
    if sum(entry.file_size for entry in entries) > size:
        return "its parts are larger than the file"
    if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE:
        return f"its list of tensors is missing or has over {_MAX_PICKLE:,} bytes"
    if b"bytearray" in archive.read(pickles[0]):  # torch lets a pickle ask for one of any size
        return "it asks for bare memory, which torch.save never does"
    if (broken := archive.testzip()) is not None:
        return f"the checksum of its part {broken!a} is wrong, so some bytes have changed since it was written"
    return ""
