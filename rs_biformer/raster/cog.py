"""Cloud Optimized GeoTIFFs in one pass over the pixels, in memory that does not grow with the raster.

GDAL's COG driver wants a finished GeoTIFF, builds overviews beside it and then compresses every pixel a second time,
in more memory the larger the raster is (benchmarks/writer.py). Here a raster is a quadtree of chunks: a chunk of
the raster comes from the caller, one of an overview from its four children. GDAL compresses each once, into tiles, and
makes the tags; what is left is to lay both out in the order of the format without decoding them again, as `cogger`
does (https://github.com/airbusgeo/cogger).

Layout, that of GDAL's driver (https://gdal.org/en/stable/drivers/raster/cog.html#file-format-details): header, a text
that announces the layout, the directories from the raster to its smallest overview, and the tiles from the smallest
overview to the raster, row by row, each between its size and its last four bytes.
"""

import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from rs_biformer.geometry import Window, cover
from rs_biformer.raster import tiff
from rs_biformer.raster.gdal import area, open_raster, writer_threads
from rs_biformer.raster.overviews import Overviews, halved

TILE = 512

COMPRESSIONS = ("deflate", "lzw", "zstd", "none")

Interleave = Literal["band", "pixel"]
"""Whether a tile holds one band, or the bands of its pixels together."""

_LEVELS = {"deflate": ("zlevel", 5, 1), "zstd": ("zstd_level", 9, 1)}
"""Creation option, its value for class maps, and for quantities.

With GDAL's defaults class maps take twice the time and 10 % less room, and probabilities nine times the time and 10 %
less room (deflate 6; label rasters and softmax outputs of 2048 x 2048).
"""

_CHUNK_BYTES = 4 * 2**20
"""A chunk has as many tiles as fit. Larger ones save calls of GDAL; for each level one is held in memory."""

_CHUNKS_PER_OPEN = 8
"""Chunks that are read back before the file is closed, which takes them out of GDAL's cache."""

_CLASSIC_LIMIT = 2**32
"""Bytes that a classic TIFF can address; what is longer becomes a BigTIFF, and nothing else does."""


@dataclass(frozen=True)
class Encoding:
    """How the pixels of a raster are stored. float16 is what readers give as float32."""

    dtype: np.dtype
    count: int
    compress: str
    overviews: Overviews
    interleave: Interleave

    @property
    def profile(self) -> dict[str, Any]:
        """Creation arguments of a GeoTIFF of any size with this encoding, as a finished file has it."""
        return {**self._type, **self._compression, "interleave": self.interleave, "blockysize": TILE}

    @property
    def _type(self) -> dict[str, Any]:
        half = self.dtype == np.float16
        is_picture = self.count == 3 and self.interleave == "pixel"
        return {
            "driver": "GTiff",
            "count": self.count,
            # GDAL has a type of 16-bit floats from 3.11 on; as a number of bits they can be written by any.
            "dtype": "float32" if half else self.dtype.name,
            **({"nbits": 16} if half else {}),
            # GDAL takes the last of four 8-bit bands for alpha unless told otherwise; near infrared is no mask.
            "photometric": "RGB" if is_picture else "MINISBLACK",
            "alpha": "NO",
            "endianness": "LITTLE",
            "bigtiff": "NO",
            "tiled": True,
            "blockxsize": TILE,
        }

    @property
    def _predictor(self) -> int:
        """Quantities and images compress better as differences of neighbours, class maps do not."""
        if self.dtype.kind == "f":
            return 3
        return 1 if self.overviews == "mode" and self.count == 1 else 2

    @property
    def _compression(self) -> dict[str, Any]:
        if self.compress == "none":
            return {"compress": "NONE"}
        options: dict[str, Any] = {"compress": self.compress.upper(), "predictor": self._predictor}
        if self.compress in _LEVELS:
            name, classes, quantities = _LEVELS[self.compress]
            options[name] = classes if self._predictor == 1 else quantities
        return options

    def encode(self, pixels: NDArray[Any]) -> bytes:
        """Pixels (C, h, w) as a GeoTIFF with the tiles of a finished file."""
        return self._encode(pixels, self.profile)

    def encode_quickly(self, pixels: NDArray[Any]) -> bytes:
        """Pixels (C, h, w) as a GeoTIFF that is written and read back once."""
        rows = min(TILE, -(-pixels.shape[-2] // 16) * 16)
        options = {"compress": "DEFLATE", "zlevel": 1, "predictor": self._predictor, "blockysize": rows}
        return self._encode(pixels, {**self._type, **options, "interleave": "band"})

    def _encode(self, pixels: NDArray[Any], profile: Mapping[str, Any]) -> bytes:
        if self.dtype == np.float16:
            pixels = pixels.astype(np.float32)
        height, width = pixels.shape[-2:]
        with MemoryFile() as memory:
            with open_raster(
                memory.name, "w", height=height, width=width, num_threads=writer_threads(), **profile
            ) as sink:
                sink.write(pixels)
            return bytes(memory.getbuffer())

    def decode(self, file: Any, window: Window) -> NDArray[Any]:
        """Pixels (C, h, w) of an open raster."""
        pixels: NDArray[Any] = file.read(window=area(window)).astype(self.dtype, copy=False)
        return pixels


class Checksum(NamedTuple):
    """CRC-32 of the pixels of a window of an image: 0 is the raster, n its n-th overview."""

    image: int
    window: Window
    value: int


def write_cog(
    path: Path,
    tags: tiff.Directory,
    encoding: Encoding,
    read: Callable[[Window], NDArray[Any]],
    *,
    height: int,
    width: int,
    nodata: float | None,
    overviews: bool = True,
) -> list[Checksum]:
    """Write a COG, and give the checksums of what should be in it, to be handed to `verify`.

    tags: of the raster, as `tiff.read_directory` gives them. read: gives the pixels (C, h, w) of a window, and is asked
    for each pixel once. overviews: until one is at most a tile wide and high; False leaves them out.

    Raises what `read` does, and OSError where the file cannot be written.
    """
    sizes = [(height, width)]
    while overviews and max(sizes[-1]) > TILE:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    planes = encoding.count if encoding.interleave == "band" else 1
    checksums = []
    with ExitStack() as stack:
        images = [Tiles(*size, planes, stack.enter_context(tempfile.TemporaryFile(dir=path.parent))) for size in sizes]
        for number, window, pixels in _quadtree(sizes, encoding, read, nodata):
            images[number].add(window, encoding.encode(pixels))
            checksums.append(Checksum(number, window, zlib.crc32(pixels.data)))
        with path.open("wb") as target:
            join(images, tags, encoding, target)
            target.flush()
            os.fsync(target.fileno())  # the rename that follows must not outlive the bytes
    return checksums


def verify(path: Path, encoding: Encoding, checksums: list[Checksum]) -> None:
    """Read a finished file back. Raises OSError where it does not hold what was written."""
    for image, group in groupby(sorted(checksums), attrgetter("image")):
        wanted = list(group)
        level = {"overview_level": image - 1} if image else {}
        for first in range(0, len(wanted), _CHUNKS_PER_OPEN):
            with open_raster(path, **level) as file:
                for _, window, value in wanted[first : first + _CHUNKS_PER_OPEN]:
                    if zlib.crc32(encoding.decode(file, window).data) != value:
                        what = f"overview {image}" if image else "the map"
                        raise OSError(f"rows {window.row} to {window.row_stop} of {what} are not as they were written")


def _quadtree(
    sizes: list[tuple[int, int]], encoding: Encoding, read: Callable[[Window], NDArray[Any]], nodata: float | None
) -> Iterator[tuple[int, Window, NDArray[Any]]]:
    """Every chunk of every image, children before their parent, as (image, window, pixels (C, h, w)).

    sizes: (height, width) of the raster and of its overviews, each half of the one before.
    """
    side = _chunk_side(encoding)

    def chunk(image: int, row: int, col: int) -> Generator[tuple[int, Window, NDArray[Any]], None, NDArray[Any]]:
        height, width = sizes[image]
        window = Window(row, col, min(side, height - row), min(side, width - col))
        if image == 0:
            pixels = read(window)
        else:
            pixels = np.empty((encoding.count, window.height, window.width), encoding.dtype)
            for below_row in range(2 * row, 2 * window.row_stop, side):
                for below_col in range(2 * col, 2 * window.col_stop, side):
                    child = yield from chunk(image - 1, below_row, below_col)
                    part = halved(child, encoding.overviews, nodata)
                    top, left = below_row // 2 - row, below_col // 2 - col
                    pixels[:, top : top + part.shape[1], left : left + part.shape[2]] = part
        yield image, window, pixels
        return pixels

    for root in cover(Window(0, 0, *sizes[-1]), side, side):
        yield from chunk(len(sizes) - 1, root.row, root.col)


def _chunk_side(encoding: Encoding) -> int:
    side = TILE
    while (2 * side) ** 2 * encoding.count * encoding.dtype.itemsize <= _CHUNK_BYTES:
        side *= 2
    return side


_SIZE_BYTES = 4


@dataclass
class Tiles:
    """The compressed tiles of an image: in a temporary file in the order they came, and where each of them is."""

    height: int
    width: int
    planes: int
    file: IO[bytes]
    starts: NDArray[np.int64] = field(init=False)
    sizes: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.planes, -(-self.height // TILE), -(-self.width // TILE))
        self.starts, self.sizes = np.zeros(shape, np.int64), np.zeros(shape, np.int64)

    def add(self, window: Window, encoded: bytes) -> None:
        """Take the tiles of a GeoTIFF of the pixels in a window, which begins at a tile. Raises OSError for a gap."""
        tags = tiff.read_directory(encoded)
        starts, sizes = tags[tiff.OFFSETS].numbers, tags[tiff.SIZES].numbers
        if not sizes.all():
            raise OSError(f"GDAL left out a tile of rows {window.row} to {window.row_stop}")
        rows, cols = (
            slice(first // TILE, -(-stop // TILE))
            for first, stop in ((window.row, window.row_stop), (window.col, window.col_stop))
        )
        shape = self.sizes[:, rows, cols].shape
        self.starts[:, rows, cols] = (self.file.tell() + np.cumsum(sizes) - sizes).reshape(shape)
        self.sizes[:, rows, cols] = sizes.reshape(shape)
        for start, size in zip(starts, sizes, strict=True):
            self.file.write(encoded[start : start + size])

    @property
    def final_sizes(self) -> NDArray[np.int64]:
        """Bytes that each tile takes in a finished file, in its order there."""
        return self.sizes.ravel() + 2 * _SIZE_BYTES

    def copy(self, target: IO[bytes]) -> None:
        """Append the tiles to a finished file."""
        for start, size in zip(self.starts.ravel().tolist(), self.sizes.ravel().tolist(), strict=True):
            self.file.seek(start)
            tile = self.file.read(size)
            target.write(struct.pack("<I", size) + tile + tile[-_SIZE_BYTES:])


def join(images: list[Tiles], tags: tiff.Directory, encoding: Encoding, target: IO[bytes]) -> None:
    """Write the finished file of an image and its overviews, from the largest to the smallest."""
    announced = _announcement(encoding)
    tile_count = sum(image.sizes.size for image in images)
    size = sum(int(image.final_sizes.sum()) for image in images) + 16 * tile_count + 2**20  # a MiB of other tags
    big = size > _CLASSIC_LIMIT
    start = len(tiff.header(0, big)) + len(announced)
    start += start % 2
    # How long the directories are does not depend on where they say that the tiles are.
    tiles_at = start + len(tiff.serialised(_directories(images, tags, 0, big), start, big))
    target.write((tiff.header(start, big) + announced).ljust(start, b"\0"))
    target.write(tiff.serialised(_directories(images, tags, tiles_at, big), start, big))
    for image in reversed(images):
        image.copy(target)


def _announcement(encoding: Encoding) -> bytes:
    """GDAL's text about the layout; the blank at its end is room for YES in place of NO."""
    planar = "INTERLEAVE=BAND\n" if encoding.count > 1 and encoding.interleave == "band" else ""
    text = (
        "LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\nBLOCK_LEADER=SIZE_AS_UINT4\n"
        f"BLOCK_TRAILER=LAST_4_BYTES_REPEATED\n{planar}KNOWN_INCOMPATIBLE_EDITION=NO\n "
    )
    return f"GDAL_STRUCTURAL_METADATA_SIZE={len(text):06d} bytes\n{text}".encode("ascii")


def _directories(images: list[Tiles], tags: tiff.Directory, tiles_at: int, big: bool) -> list[tiff.Directory]:
    """The directories of a file whose first tile, that of the last image, is at byte `tiles_at`."""
    made: list[tiff.Directory] = []
    for number, image in reversed(list(enumerate(images))):
        own = {tag: value for tag, value in tags.items() if number == 0 or tag in tiff.SHARED}
        if number:
            own[tiff.SUBFILE] = tiff.Tag.of([1])
        sizes = image.final_sizes
        made.append(
            own
            | {
                tiff.WIDTH: tiff.Tag.of([image.width]),
                tiff.HEIGHT: tiff.Tag.of([image.height]),
                tiff.OFFSETS: tiff.Tag.of(tiles_at + np.cumsum(sizes) - sizes + _SIZE_BYTES, big),
                tiff.SIZES: tiff.Tag.of(image.sizes.ravel()),
            }
        )
        tiles_at += int(sizes.sum())
    return made[::-1]
