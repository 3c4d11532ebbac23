"""Directories of TIFF files: read from a small file that GDAL made, and laid out for a file of several images.

Little-endian only. TIFF 6.0 (https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf); BigTIFF as libtiff has it
(http://bigtiff.org).
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

SUBFILE, WIDTH, HEIGHT, OFFSETS, SIZES = 254, 256, 257, 324, 325
"""Tags: kind of image, its columns and rows, and where its tiles are and how many bytes each has."""

SHARED = frozenset({258, 259, 262, 277, 284, 317, 320, 322, 323, 338, 339, 42113})
"""Tags that an overview has in common with its image: those that say how to read pixels, and GDAL's nodata."""

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8, 17: 8, 18: 8}
_NUMBERS = {3: "<u2", 4: "<u4", 16: "<u8"}


@dataclass(frozen=True, slots=True)
class Tag:
    """The value of a tag: a TIFF type and its bytes."""

    type: int
    data: bytes

    @classmethod
    def of(cls, numbers: ArrayLike, big: bool = False) -> "Tag":
        """Whole numbers of 32 bits, or 64."""
        kind = 16 if big else 4
        return cls(kind, np.asarray(numbers).astype(_NUMBERS[kind]).tobytes())

    @property
    def count(self) -> int:
        return len(self.data) // _TYPE_BYTES[self.type]

    @property
    def numbers(self) -> NDArray[np.int64]:
        return np.frombuffer(self.data, _NUMBERS[self.type]).astype(np.int64)


Directory = Mapping[int, Tag]


def read_directory(data: bytes) -> dict[int, Tag]:
    """The first directory of a classic TIFF. Raises OSError for any other file."""
    if data[:4] != b"II*\0":
        raise OSError("GDAL has not written a classic TIFF")
    (start,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, start)
    tags = {}
    for at in range(start + 2, start + 2 + 12 * entries, 12):
        number, kind, count = struct.unpack_from("<HHI", data, at)
        size = _TYPE_BYTES[kind] * count
        value_at = at + 8 if size <= 4 else struct.unpack_from("<I", data, at + 8)[0]
        tags[number] = Tag(kind, data[value_at : value_at + size])
    return tags


def header(directory_at: int, big: bool) -> bytes:
    """The first bytes of a file."""
    return (
        struct.pack("<2sHHHQ", b"II", 43, 8, 0, directory_at) if big else struct.pack("<2sHI", b"II", 42, directory_at)
    )


def serialised(directories: Sequence[Directory], start: int, big: bool) -> bytes:
    """Directories that follow one another from byte `start` of a file, each with its values behind it.

    Where the tiles are comes last, behind all directories, so that a reader has these with its first request.
    """
    form = _Form("<Q", "<HHQ", "<Q", 8) if big else _Form("<H", "<HHI", "<I", 4)
    arrays_at = start + sum(_size(directory, form) for directory in directories)
    written, arrays = bytearray(), bytearray()
    for position, directory in enumerate(directories):
        following = start + len(written) + _size(directory, form)
        values_at = start + len(written) + _table_size(directory, form)
        table, values = bytearray(struct.pack(form.entries, len(directory))), bytearray()
        for number, tag in sorted(directory.items()):
            table += struct.pack(form.entry, number, tag.type, tag.count)
            if len(tag.data) <= form.word:
                table += tag.data.ljust(form.word, b"\0")
            elif number in (OFFSETS, SIZES):
                table += struct.pack(form.offset, arrays_at + len(arrays))
                arrays += _padded(tag.data)
            else:
                table += struct.pack(form.offset, values_at + len(values))
                values += _padded(tag.data)
        table += struct.pack(form.offset, following if position < len(directories) - 1 else 0)
        written += table + values
    return bytes(written + arrays)


class _Form(NamedTuple):
    """How a directory is packed: the number of entries, an entry's head, an offset, and the bytes of that."""

    entries: str
    entry: str
    offset: str
    word: int


def _table_size(directory: Directory, form: _Form) -> int:
    entry = struct.calcsize(form.entry) + form.word
    return struct.calcsize(form.entries) + len(directory) * entry + form.word


def _size(directory: Directory, form: _Form) -> int:
    """Bytes of a directory and of those of its values that stand behind it."""
    own = (tag.data for number, tag in directory.items() if number not in (OFFSETS, SIZES))
    return _table_size(directory, form) + sum(len(_padded(data)) for data in own if len(data) > form.word)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)  # values and directories begin at even bytes
