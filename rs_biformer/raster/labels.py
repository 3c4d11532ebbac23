"""Label rasters: colours, palettes or numbers -> class index; the ISPRS boundary erosion; the way back to colours."""

import os
from collections import Counter
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.paths import Location
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.source import Source, require_same_grid
from rs_biformer.schema import IGNORE, ClassSchema, Colour

_UNKNOWN = 254  # a schema has at most 254 classes, 0 to 253


class LabelRaster:
    """A label raster read by window as class indices.

    Three image bands are colours, in the order that the colour interpretation says. One band with a colour table is
    colours as well when the table holds at least half of the schema's class colours; otherwise one band holds the
    schema's values.

    tolerance: how far each of red, green and blue may lie from a class or ignore colour, 0 to 255; the nearest colour
    (by the largest of the three differences, then by their sum) wins.

    Raises RasterError when the file is missing, no raster, or has other than 1 or 3 image bands; ConfigError when the
    tolerance is out of range.
    """

    def __init__(self, path: str | os.PathLike[str], schema: ClassSchema, *, tolerance: int = 0) -> None:
        if not 0 <= tolerance <= 255:
            raise ConfigError(f"tolerance is {tolerance}; it is a difference of 8-bit colours and must be 0 to 255")
        self.schema, self.tolerance = schema, tolerance
        self._source = Source(path)
        self._numbers = _image_bands(self._source)
        self._palette_codes: NDArray[np.uint32] | None = None
        if self._source.palette is not None:
            codes = _pack(self._source.palette[:, :3].T)
            found = set(_colour_table(schema, tolerance)[codes].tolist()) & set(range(len(schema)))
            if 2 * len(found) >= len(schema):
                self._palette_codes = codes

    @property
    def path(self) -> Location:
        return self._source.path

    @property
    def height(self) -> int:
        return self._source.height

    @property
    def width(self) -> int:
        return self._source.width

    @property
    def crs(self) -> CRS | None:
        return self._source.crs

    @property
    def transform(self) -> Affine:
        return self._source.transform

    def read(self, window: Window) -> tuple[NDArray[np.uint8], Counter[Colour | int | float]]:
        """Class index per pixel (h, w) uint8, and how many pixels had each colour or value that the schema lacks.

        IGNORE where the schema says ignore, where the raster is masked (nodata, alpha, mask) and where the colour or
        value is unknown; masked pixels do not count as unknown.

        Raises RasterError when the window leaves the raster or a block cannot be read.
        """
        pixels = self._source.read(self._numbers, window)
        valid = self._source.valid(self._numbers, pixels, window)
        if len(pixels) == 3:
            index = _index_of_colours(pixels, self.schema, self.tolerance)
        elif self._palette_codes is not None:
            index = _colour_table(self.schema, self.tolerance)[self._palette_codes[pixels[0]]]
        else:
            index = _index_of_values(pixels[0], self.schema)
        if not valid.all():
            index[~valid] = IGNORE
        strange = index == _UNKNOWN
        unknown: Counter[Colour | int | float] = Counter()
        if strange.any():
            index[strange] = IGNORE
            unknown.update(self._names([band[strange] for band in pixels]))
        return index, unknown

    def _names(self, pixels: list[NDArray[Any]]) -> dict[Colour | int | float, int]:
        """The colours or values of pixels (bands, each (n,)), with how many have each."""
        codes = _pack(pixels) if len(pixels) == 3 else pixels[0]
        if self._palette_codes is not None:
            codes = self._palette_codes[codes]
        found, counts = np.unique(codes, return_counts=True)
        coloured = len(pixels) == 3 or self._palette_codes is not None
        names = [_unpack(code) for code in found.tolist()] if coloured else found.tolist()
        return dict(zip(names, counts.tolist(), strict=True))

    def close(self) -> None:
        """Close the file handles of this process."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _image_bands(source: Source) -> list[int]:
    """Band numbers that spell the label: one, or those of red, green and blue."""
    image = [number for number, interp in enumerate(source.interps, 1) if interp != ColorInterp.alpha]
    if len(image) not in (1, 3):
        raise RasterError(
            f"{source.path} has {len(image)} image bands; a label raster has 1 (values) or 3 (colours), alpha apart"
        )
    if len(image) == 3:
        wrong = [dtype for dtype in source.dtypes if dtype != "uint8"]
        if wrong:
            raise RasterError(f"{source.path} has colours in {wrong[0]}; a colour-coded label raster must be uint8")
        order = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        if set(order) <= set(source.interps):
            return [source.interps.index(interp) + 1 for interp in order]
    return image


def _pack(channels: NDArray[Any] | list[NDArray[Any]]) -> NDArray[np.uint32]:
    """Red, green, blue as one number, the form in which colours are looked up and counted."""
    red, green, blue = (np.asarray(channel).astype(np.uint32) for channel in channels)
    red <<= np.uint32(16)
    green <<= np.uint32(8)
    return red | green | blue


def _unpack(code: int) -> Colour:
    return code >> 16, (code >> 8) & 255, code & 255


_Known = tuple[tuple[Colour, int], ...]
"""Colours with the class index, or IGNORE, that they mean."""


def _known_colours(schema: ClassSchema) -> _Known:
    return (*schema.class_colours(), *((colour, IGNORE) for colour in schema.ignore_colours))


def _index_of_colours(pixels: list[NDArray[Any]], schema: ClassSchema, tolerance: int) -> NDArray[np.uint8]:
    """Class index, IGNORE or _UNKNOWN of each pixel of three bands of colours (h, w)."""
    tables = None if tolerance else _channel_tables(_known_colours(schema))
    if tables is None:
        return _colour_table(schema, tolerance)[_pack(pixels)]
    *channels, index_of_code = tables
    code = translate_bytes(pixels[0], channels[0])
    code += translate_bytes(pixels[1], channels[1])
    code += translate_bytes(pixels[2], channels[2])
    return translate_bytes(code, index_of_code)


@lru_cache(maxsize=8)
def _channel_tables(colours: _Known) -> tuple[bytes, bytes, bytes, bytes] | None:
    """Tables of 256 bytes: one for each channel, whose entries add up to a colour's code, and from code to index.

    Few colours have few values in each channel, so the code fits a byte, and four tables of 256 bytes are three times
    as fast as one of 2^24. None where it does not fit.
    """
    known = dict(colours)
    tables, codes, size = [], np.zeros(len(known), np.int64), 1
    for channel in np.array(list(known), np.int64).T:
        values, place = np.unique(channel, return_inverse=True)
        codes += size * (place + 1)  # 0 is every other value
        if size * (len(values) + 1) > 256:
            return None
        table = np.zeros(256, np.uint8)
        table[values] = size * np.arange(1, len(values) + 1)
        tables.append(table.tobytes())
        size *= len(values) + 1
    index_of_code = np.full(256, _UNKNOWN, np.uint8)
    index_of_code[codes] = list(known.values())
    return tables[0], tables[1], tables[2], index_of_code.tobytes()


def translate_bytes(values: NDArray[np.uint8], table: bytes) -> NDArray[np.uint8]:
    """`table[values]` for bytes, in half the time; much less where the table changes none of the values that occur."""
    if values.size and (values + np.uint8(1)).max() <= _kept_by(table):
        return values.copy()
    translated = bytearray(np.ascontiguousarray(values).data).translate(table)
    return np.frombuffer(translated, np.uint8).reshape(values.shape)


@lru_cache(maxsize=8)
def _kept_by(table: bytes) -> int:
    """How many values from 0 on stand for themselves, where 255, one less than 0 in a byte, does too; -1 elsewhere."""
    if table[IGNORE] != IGNORE:
        return -1
    return next((value for value, meant in enumerate(table) if value != meant), 255)


def _colour_table(schema: ClassSchema, tolerance: int) -> NDArray[np.uint8]:
    return _build_colour_table(_known_colours(schema), tolerance)


@lru_cache(maxsize=2)
def _build_colour_table(colours: _Known, tolerance: int) -> NDArray[np.uint8]:
    """Class index, IGNORE or _UNKNOWN for each of the 2**24 colours: 16 MB, filled around the schema's colours only."""
    table = np.full((256, 256, 256), _UNKNOWN, np.uint8)
    nearest = np.full(table.shape if tolerance else (0,) * 3, np.iinfo(np.uint32).max, np.uint32)
    for colour, index in colours:
        if not tolerance:
            table[colour] = index
            continue
        box = tuple(slice(max(0, part - tolerance), part + tolerance + 1) for part in colour)
        apart = np.ix_(
            *(abs(np.arange(256, dtype=np.int32)[cut] - part) for cut, part in zip(box, colour, strict=True))
        )
        largest = np.maximum(np.maximum(apart[0], apart[1]), apart[2])
        distance = (largest * 1024 + apart[0] + apart[1] + apart[2]).astype(np.uint32)
        closer = distance < nearest[box]
        table[box][closer] = index
        nearest[box][closer] = distance[closer]
    flat = table.reshape(-1)
    flat.setflags(write=False)
    return flat


def _index_of_values(band: NDArray[Any], schema: ClassSchema) -> NDArray[np.uint8]:
    """Class index, IGNORE or _UNKNOWN of each pixel of a band of label values of any dtype."""
    numbers = schema.class_numbers() | dict.fromkeys(schema.ignore_values, IGNORE)
    values, indices = np.array(list(numbers)), np.array(list(numbers.values()), np.uint8)
    if band.dtype == np.uint8:
        table = np.full(256, _UNKNOWN, np.uint8)
        possible = (values >= 0) & (values <= 255)
        table[values[possible]] = indices[possible]
        return translate_bytes(band, table.tobytes())
    order = np.argsort(values)
    values, indices = values[order], indices[order]
    place = np.minimum(np.searchsorted(values, band), len(values) - 1)
    return np.where(values[place] == band, indices[place], np.uint8(_UNKNOWN))


def encode_colours(index: NDArray[np.uint8], schema: ClassSchema) -> NDArray[np.uint8]:
    """Class index (h, w) -> colours (3, h, w) uint8; IGNORE becomes the first ignore colour, black if there is none.

    Raises RasterError when an index is neither a class nor IGNORE.
    """
    table = np.zeros((256, 3), np.uint8)
    table[: len(schema)] = schema.colours
    table[IGNORE] = schema.ignore_colours[0] if schema.ignore_colours else (0, 0, 0)
    known = np.zeros(256, bool)
    known[: len(schema)] = known[IGNORE] = True
    if not known[index].all():
        strange = int(index[~known[index]].flat[0])
        raise RasterError(
            f"a class map holds the index {strange}; schema {schema.name!r} has 0 to {len(schema) - 1} and {IGNORE}"
        )
    return np.moveaxis(table[index], -1, 0)


def erode_boundaries(index: NDArray[np.uint8], radius: int) -> NDArray[np.uint8]:
    """Class index with the pixels near a class boundary set to IGNORE, a new array.

    The rule of the ISPRS benchmark (radius 3): a pixel is left out when a disc of `radius` pixels around it, its rim
    included, reaches a pixel of another class. IGNORE is no class, and the edge of the array no boundary. A window
    grown by `radius` on each side gives its inner part the result of the whole raster.
    """
    eroded = np.empty_like(index)
    height, width = index.shape
    rows = max(radius, _BAND // max(1, width), 1)
    for top in range(0, height, rows):
        first = max(0, top - radius)
        around = index[first : top + rows + radius]
        near = _near_boundary(around, radius)
        band = slice(top - first, top - first + rows)
        eroded[top : top + rows] = np.where(near[band], np.uint8(IGNORE), around[band])
    return eroded


_BAND = 1 << 19
"""Pixels that are eroded at a time: a few arrays of that many bytes stay in a core's cache, which halves the time."""


def _near_boundary(index: NDArray[np.uint8], radius: int) -> NDArray[np.bool_]:
    """Whether the disc around each pixel reaches another class; the edge of the array is no boundary."""
    # The disc holds a lower class, or a higher one. IGNORE is the highest byte, so it never is the lowest; one more,
    # in 8 bits, and it is the lowest.
    above = index + np.uint8(1)
    boundary: NDArray[np.bool_] = _disc_extreme(index, radius, np.minimum) != index
    boundary |= _disc_extreme(above, radius, np.maximum) != above
    return boundary


def _disc_extreme(values: NDArray[np.uint8], radius: int, extreme: np.ufunc) -> NDArray[np.uint8]:
    """The least or greatest value within a disc around each pixel (h, w); outside the array nothing counts.

    A disc is a pile of rows: the rows' extremes widen by one pixel on each side from one length to the next, and each
    length is laid above and below wherever the disc is that wide. Half a dozen passes over bytes for each pixel of
    the radius, where comparing all pairs of pixels would take its square.
    """
    result = values.copy()
    row, width = values, 0
    for down in range(radius, -1, -1):
        while (width + 1) ** 2 + down**2 <= radius**2:
            width += 1
            wider = row.copy()
            extreme(wider[:, width:], values[:, :-width], out=wider[:, width:])
            extreme(wider[:, :-width], values[:, width:], out=wider[:, :-width])
            row = wider
        if down == 0:
            extreme(result, row, out=result)
        else:
            extreme(result[down:], row[:-down], out=result[down:])
            extreme(result[:-down], row[down:], out=result[:-down])
    return result


def require_pair(scene: Scene, label: LabelRaster) -> None:
    """Raise RasterError, naming both files and both values, unless scene and label lie on the same grid.

    Sizes must be equal; CRS and transform are compared where both have one (the ISPRS ground truth has no CRS).
    """
    require_same_grid(scene, label)
