"""Mutations of a TIFF by its structure: entries of its directories have another tag, type, count or value.

Flipped bytes rarely reach the readers behind the directory; an absurd size, stride or georeference does.
"""

import random
import struct
from collections.abc import Iterator
from math import inf, nan
from typing import NamedTuple

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WHOLE = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 31, 33, 64, 255, 256, 1000, 32767, 65535, 65536, 2**20, 2**31 - 1, 2**31)
_REALS = (0.0, -0.0, 1.0, -1.0, 1e-300, -1e-9, 1e9, 5e9, 1e18, 1e300, 1.7e308, nan, inf, -inf)
_TEXTS = (
    b"",
    b"nan",
    b"-1e999",
    b"1e-400",
    b"255 255 0",
    b"0x10",
    b"\xff\xfe",
    b"a\x1b[2J\r\n`b`",
    b"[/red] [link=x]",
    b"<GDALMetadata/>",
    b"<GDALMetadata>" + b"<Item>" * 300,
    b'<GDALMetadata><Item name="SCALE" sample="0" role="scale">0</Item></GDALMetadata>',
    b'<GDALMetadata><Item name="SCALE" sample="0" role="scale">nan</Item></GDALMetadata>',
    b'<GDALMetadata><Item name="OFFSET" sample="1" role="offset">1e308</Item></GDALMetadata>',
    b'<GDALMetadata><Item name="DESCRIPTION" sample="0" role="description">\x1b]0;x\x07`a`\n</Item></GDALMetadata>',
    b'<GDALMetadata><Item name="UNITTYPE" sample="0" role="unittype">furlong</Item></GDALMetadata>',
    b'<GDALMetadata><Item name="OVERVIEW_FILE" domain="OVERVIEWS">/vsicurl/http://127.0.0.1:9/x</Item></GDALMetadata>',
    b'<GDALMetadata><Item name="LINE_OFF" domain="RPC">many</Item></GDALMetadata>',
)
_TAGS = (254, 256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330, 338, 339, 347, 33550,
         33922, 34264, 34735, 34736, 34737, 42112, 42113, 50844)  # fmt: skip
"""Sizes, encodings, strips and tiles, colours, GeoTIFF's and GDAL's."""


class _Entry(NamedTuple):
    at: int  # of the entry in the file
    tag: int
    kind: int
    count: int
    value: int  # where its values begin
    size: int  # bytes of one value, 0 for an unknown type
    end: str


def mutated_tiff(data: bytes, random: random.Random) -> bytes:
    """One to three changes of entries; the bytes as they are where there is none."""
    found = bytearray(data)
    for _ in range(random.randint(1, 3)):
        entries = list(_entries(bytes(found)))
        if not entries:
            break
        _change(found, random.choice(entries), random)
    return bytes(found)


def _entries(data: bytes) -> Iterator[_Entry]:
    """Of the directories in their chain, classic and BigTIFF, as far as they can be followed."""
    end = {b"II": "<", b"MM": ">"}.get(data[:2])
    if end is None or len(data) < 16:
        return
    big = data[2:4] in (b"+\0", b"\0+")
    number, width, link = ("Q", 20, 16) if big else ("H", 12, 8)
    offset = struct.unpack_from(end + ("Q" if big else "I"), data, 8 if big else 4)[0]
    seen: set[int] = set()
    while 0 < offset < len(data) - 8 and offset not in seen and len(seen) < 20:
        seen.add(offset)
        count = struct.unpack_from(end + number, data, offset)[0]
        start = offset + struct.calcsize(number)
        for index in range(min(count, 100)):
            at = start + width * index
            if at + width > len(data):
                return
            tag, kind, many = struct.unpack_from(end + ("HHQ" if big else "HHI"), data, at)
            size, place = _SIZES.get(kind, 0), at + width - (link if big else 8) + (8 if big else 4)
            if size * many > (8 if big else 4):
                place = struct.unpack_from(end + ("Q" if big else "I"), data, place)[0]
            yield _Entry(at, tag, kind, many, place, size, end)
        after = start + width * count
        if after + (8 if big else 4) > len(data):
            return
        offset = struct.unpack_from(end + ("Q" if big else "I"), data, after)[0]


def _change(data: bytearray, entry: _Entry, random: random.Random) -> None:
    what = random.randrange(10)
    if what == 0:
        struct.pack_into(entry.end + "H", data, entry.at, random.choice(_TAGS))
    elif what == 1:
        struct.pack_into(entry.end + "H", data, entry.at + 2, random.choice((*_SIZES, 0, 99)))
    elif what == 2:
        struct.pack_into(entry.end + "I", data, entry.at + 4, random.choice(_WHOLE))
    else:
        _change_value(data, entry, random)


def _change_value(data: bytearray, entry: _Entry, random: random.Random) -> None:
    if entry.kind == 2:  # text: as long as there is room for
        text = random.choice(_TEXTS)[: max(entry.count, 1)].ljust(entry.count, b"\0")
        data[entry.value : entry.value + entry.count] = text
        return
    at = entry.value + entry.size * random.randrange(max(1, min(entry.count, 64)))
    code = {1: "B", 3: "H", 4: "I", 12: "d", 11: "f", 16: "Q", 13: "I", 18: "Q"}.get(entry.kind)
    if code is None or at + struct.calcsize(code) > len(data):
        return
    if code in "df":
        value = random.choice(_REALS)
        struct.pack_into(entry.end + "d" if code == "d" else entry.end + "f", data, at, value if code == "d" else 1e30)
        return
    value = random.choice(_WHOLE) % (1 << (8 * struct.calcsize(code)))
    struct.pack_into(entry.end + code, data, at, value)
