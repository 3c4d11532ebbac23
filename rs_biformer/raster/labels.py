"""Label rasters: colours, palettes or numbers -> class index; the ISPRS boundary erosion; the way back to colours."""

import os
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.paths import Location
from rs_biformer.raster.placing import placed
from rs_biformer.raster.polygons import Order, PolygonOptions
from rs_biformer.raster.source import Closing, Grid, Source
from rs_biformer.schema import IGNORE, ClassSchema, Colour

UNKNOWN = _UNKNOWN = 254
"""What `index_of` gives for what a schema does not know; it has at most 254 classes, 0 to 253."""

ReadAs = Literal["colours", "palette", "values", "one-hot", "grey"]
"""How a label raster spells classes: three bands of colour; one band by the colours of its palette, or by its values;
a band for each class, not 0 where it is; three equal bands of values."""

MOST_TOLD = 10_000
"""Unknown colours or values that are counted one by one; a label has a few, noise has millions."""

OTHERS = "others"
"""What the rest of them is counted as."""

Key = Colour | int | float | str
"""What a label holds that its schema does not know."""


@dataclass(frozen=True)
class LabelOptions:
    """How labels are read where a file leaves it open. What is None is found out, see `labelling.settle`.

    read_as: how a raster spells classes. band: the one that holds values, counted from 1.
    nodata: a value that is no label, whatever the file says; "none" for no such value, and no mask or transparency.
    regrid: resample rasters that lie on another grid than their scene, by nearest neighbour.
    field: the attribute that holds the classes of polygons; "" where all are of the one class that is not outside.
    layer, crs, width, order: see polygons.PolygonOptions.

    Raises ConfigError for a reading that there is not, and what PolygonOptions refuses.
    """

    read_as: ReadAs | None = None
    band: int | None = None
    nodata: float | Literal["none"] | None = None
    regrid: bool = False
    field: str | None = None
    layer: str | None = None
    crs: str | None = None
    width: float | None = None
    order: Order = "last"

    def __post_init__(self) -> None:
        if self.read_as is not None and self.read_as not in get_args(ReadAs):
            raise ConfigError(f"labels cannot be read as {self.read_as!r}; use {', '.join(get_args(ReadAs))}")
        if self.band is not None and self.band < 1:
            raise ConfigError(f"--label-band is {self.band}; bands are counted from 1")
        _ = self.polygons

    @property
    def polygons(self) -> PolygonOptions:
        """What concerns vector layers."""
        return PolygonOptions(self.layer, self.crs, self.width, self.order)


def bounded(unknown: "Counter[Key]") -> "Counter[Key]":
    """The counts themselves, or where too many gathered those of the most frequent, and the rest as OTHERS."""
    if len(unknown) <= 2 * MOST_TOLD:
        return unknown
    kept = Counter(dict(unknown.most_common(MOST_TOLD)))
    kept[OTHERS] += unknown.total() - kept.total()
    return kept


class LabelRaster(Closing):
    """A label raster read by window as class indices, on the grid of its scene.

    options: how it is spelt and where it lies, see LabelOptions. Where `read_as` is left open, three image bands are
    colours, in the order that the colour interpretation says; one band with a colour table is colours as well when the
    table holds at least half of the schema's class colours; otherwise one band holds the schema's values, and as many
    bands as there are classes hold one class each. `labelling.settle` looks closer.

    tolerance: how far each of red, green and blue may lie from a class or ignore colour, 0 to 255; the nearest colour
    (by the largest of the three differences, then by their sum) wins. Values may be as far from the schema's.

    grid: the grid that windows are of; the raster's own unless given. The raster may cover more (whole pixels are cut)
    or, with `options.regrid`, lie on any other grid.

    Raises RasterError when the file is missing, no raster, has bands that spell nothing, or does not fit the grid;
    ConfigError when the tolerance is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        schema: ClassSchema,
        *,
        tolerance: int = 0,
        options: LabelOptions | None = None,
        grid: Grid | None = None,
    ) -> None:
        if not 0 <= tolerance <= 255:
            raise ConfigError(f"tolerance is {tolerance}; it is a difference of 8-bit colours and must be 0 to 255")
        options = options or LabelOptions()
        self.schema, self.tolerance = schema, tolerance
        self._source = Source(path)
        self.read_as, self.numbers = _spelling(self._source, schema, tolerance, options)
        if options.nodata == "none":
            self._source.unmask()
        elif options.nodata is not None:
            self._source.nodatavals = (float(options.nodata),) * self._source.count
        self._hole = self._colour_of_nodata()
        self._grid: Grid = self._source if grid is None else grid
        self._pixels = self._source if grid is None else placed(self._source, grid, regrid=options.regrid)
        self._palette_codes: NDArray[np.uint32] | None = None
        if self.read_as == "palette":
            assert self._source.palette is not None
            self._palette_codes = _pack(self._source.palette[:, :3].T)

    def _colour_of_nodata(self) -> tuple[float | None, ...] | None:
        """The nodata values of coloured bands, which are one colour together: yellow is no hole where white is."""
        nodata = self._source.nodatavals
        if self.read_as != "colours" or any(nodata[number - 1] is None for number in self.numbers):
            return None
        self._source.nodatavals = (None,) * self._source.count
        return tuple(nodata[number - 1] for number in self.numbers)

    @property
    def source(self) -> Source:
        """The raster itself, whatever the grid."""
        return self._source

    @property
    def path(self) -> Location:
        return self._source.path

    @property
    def height(self) -> int:
        return self._grid.height

    @property
    def width(self) -> int:
        return self._grid.width

    @property
    def crs(self) -> CRS | None:
        return self._grid.crs

    @property
    def transform(self) -> Affine:
        return self._grid.transform

    def read(self, window: Window) -> tuple[NDArray[np.uint8], Counter[Key]]:
        """Class index per pixel (h, w) uint8, and how many pixels had each colour or value that the schema lacks.

        IGNORE where the schema says ignore, where the raster is masked (nodata, alpha, mask) and where the colour or
        value is unknown; masked pixels do not count as unknown.

        Raises RasterError when the window leaves the raster or a block cannot be read.
        """
        return self.decode(*self._pixels.read_valid(self.numbers, window))

    def decode(self, pixels: list[NDArray[Any]], valid: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], Counter[Key]]:
        """What `read` gives, of the bands `numbers` of any pixels of the raster, such as those of an overview."""
        if self._hole is not None:
            valid = valid & ~np.logical_and.reduce([p == hole for p, hole in zip(pixels, self._hole, strict=True)])
        index = self.index_of(pixels)
        if not valid.all():
            index[~valid] = IGNORE
        strange = index == _UNKNOWN
        unknown: Counter[Key] = Counter()
        if strange.any():
            index[strange] = IGNORE
            unknown.update(self._names([band[strange] for band in pixels]))
        return index, unknown

    def index_of(self, pixels: list[NDArray[Any]]) -> NDArray[np.uint8]:
        """Class index, IGNORE or UNKNOWN of the pixels of the bands that spell the label."""
        if self.read_as == "colours":
            return _index_of_colours(pixels, self.schema, self.tolerance)
        if self.read_as == "one-hot":
            return _index_of_bands(pixels)
        if self._palette_codes is not None:
            classes: NDArray[np.uint8] = _colour_table(self.schema, self.tolerance)[self._palette_codes[pixels[0]]]
            return classes
        return index_of_values(pixels[0], self.schema, self.tolerance)

    def _names(self, pixels: list[NDArray[Any]]) -> dict[Key, int]:
        """The colours or values of pixels (bands, each (n,)), with how many have each."""
        if self.read_as == "one-hot":
            several, times = np.unique(_set_bands(pixels), return_counts=True)
            return {f"{count} bands at once": int(n) for count, n in zip(several, times, strict=True)}
        codes = _pack(pixels) if self.read_as == "colours" else pixels[0]
        if self._palette_codes is not None:
            codes = self._palette_codes[codes]
        found, counts = np.unique(codes, return_counts=True)
        if len(found) > MOST_TOLD:
            return self._names_of_most(found, counts)
        coloured = self.read_as in ("colours", "palette")
        names = [_unpack(code) for code in found.tolist()] if coloured else found.tolist()
        return dict(zip(names, counts.tolist(), strict=True))

    def _names_of_most(self, found: NDArray[Any], counts: NDArray[np.int64]) -> dict[Key, int]:
        """Of a photograph, or noise, that is taken for a label: those that most pixels have, and the rest as one."""
        most = np.sort(np.argsort(-counts, kind="stable")[:MOST_TOLD])
        coloured = self.read_as in ("colours", "palette")
        names: list[Key] = [_unpack(code) if coloured else code for code in found[most].tolist()]
        kept = counts[most]
        return {**dict(zip(names, kept.tolist(), strict=True)), OTHERS: int(counts.sum() - kept.sum())}

    def close(self) -> None:
        """Close the file handles of this process."""
        self._source.close()


def _spelling(source: Source, schema: ClassSchema, tolerance: int, options: LabelOptions) -> tuple[ReadAs, list[int]]:
    """How a raster spells classes, and the 1-based numbers of the bands that do."""
    image = [number for number, interp in enumerate(source.interps, 1) if interp != ColorInterp.alpha]
    if options.band is not None:
        if not 1 <= options.band <= source.count:
            raise RasterError(f"{source.path} has {source.count} bands; --label-band is {options.band}")
        return ("palette" if options.read_as == "palette" else "values"), [options.band]
    read_as = options.read_as or plain_reading(source, schema, tolerance, image)
    if read_as == "one-hot":
        return read_as, _bands_of_classes(source, schema, image)
    if read_as == "colours":
        return read_as, _colour_bands(source, image)
    if read_as == "palette" and source.palette is None:
        raise RasterError(f"{source.path} has no palette; leave --label-as palette out, or name what it has")
    if read_as in ("values", "palette") and len(image) != 1:
        raise RasterError(f"{source.path} has {len(image)} image bands; say which holds the values with --label-band")
    return read_as, image[:1]


def plain_reading(source: Source, schema: ClassSchema, tolerance: int, image: list[int]) -> ReadAs:
    """What the bands alone suggest. Raises RasterError where they suggest nothing."""
    if len(image) == 1:
        return "palette" if _palette_fits(source, schema, tolerance) else "values"
    if len(image) == 3 and not (len(schema) == 3 and any(dtype != "uint8" for dtype in source.dtypes)):
        return "colours"
    if len(schema) in (len(image), source.count):
        return "one-hot"
    raise RasterError(
        f"{source.path} has {len(image)} image bands; a label raster has 1 (values), 3 (colours), or {len(schema)} "
        f"(one for each class of schema {schema.name!r}), alpha apart; --label-band takes one of them"
    )


def _palette_fits(source: Source, schema: ClassSchema, tolerance: int) -> bool:
    if source.palette is None:
        return False
    found = set(_colour_table(schema, tolerance)[_pack(source.palette[:, :3].T)].tolist()) & set(range(len(schema)))
    return 2 * len(found) >= len(schema)


def _bands_of_classes(source: Source, schema: ClassSchema, image: list[int]) -> list[int]:
    if len(image) == len(schema):
        return image
    if source.count == len(schema):  # a fourth band that a writer took for alpha
        return list(range(1, source.count + 1))
    raise RasterError(
        f"{source.path} has {len(image)} bands and schema {schema.name!r} {len(schema)} classes, one each"
    )


def _colour_bands(source: Source, image: list[int]) -> list[int]:
    if len(image) != 3:
        raise RasterError(f"{source.path} has {len(image)} image bands; colours are three, alpha apart")
    wrong = [dtype for dtype in source.dtypes if dtype != "uint8"]
    if wrong:
        raise RasterError(f"{source.path} has colours in {wrong[0]}; a colour-coded label raster must be uint8")
    order = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if set(order) <= set(source.interps):
        return [source.interps.index(interp) + 1 for interp in order]
    return image


def _set_bands(pixels: list[NDArray[Any]]) -> NDArray[np.uint8]:
    """How many bands of each pixel are not 0."""
    count: NDArray[np.uint8] = np.sum([band != 0 for band in pixels], axis=0, dtype=np.uint8)
    return count


def _index_of_bands(pixels: list[NDArray[Any]]) -> NDArray[np.uint8]:
    """The band that is not 0, IGNORE where none is, UNKNOWN where several are."""
    count = _set_bands(pixels)
    index: NDArray[np.uint8] = np.argmax([band != 0 for band in pixels], axis=0).astype(np.uint8)
    index[count == 0] = IGNORE
    index[count > 1] = _UNKNOWN
    return index


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


def index_of_values(band: NDArray[Any], schema: ClassSchema, tolerance: int = 0) -> NDArray[np.uint8]:
    """Class index, IGNORE or UNKNOWN of each pixel of a band of label values of any dtype.

    tolerance: how far a value may lie from one of the schema's; the nearest wins, of two the lower.
    """
    numbers = schema.class_numbers() | dict.fromkeys(schema.ignore_values, IGNORE)
    values, indices = np.array(list(numbers)), np.array(list(numbers.values()), np.uint8)
    order = np.argsort(values)
    values, indices = values[order], indices[order]
    if band.dtype == np.uint8:
        return translate_bytes(band, _nearest_value(np.arange(256), values, indices, tolerance).tobytes())
    return _nearest_value(band, values, indices, tolerance)


def _nearest_value(
    band: NDArray[Any], values: NDArray[np.int64], indices: NDArray[np.uint8], tolerance: int
) -> NDArray[np.uint8]:
    """The index of the nearest of some values, in rising order, within a tolerance; UNKNOWN elsewhere."""
    above = np.minimum(np.searchsorted(values, band), len(values) - 1)
    if not tolerance:
        return np.where(values[above] == band, indices[above], np.uint8(_UNKNOWN))
    below = np.maximum(above - 1, 0)
    exact = band.astype(np.float64)
    with np.errstate(invalid="ignore"):
        place = np.where(abs(exact - values[below]) <= abs(values[above] - exact), below, above)
        near = abs(exact - values[place]) <= tolerance
    return np.where(near, indices[place], np.uint8(_UNKNOWN))


def shifted_by_one(schema: ClassSchema, pixels: NDArray[np.int64], unknown: Counter[Key]) -> str:
    """A sentence where labels look as if they counted from 1 and the schema from 0; else nothing.

    pixels: how many each class has (K,). The sign: the first class has none, and an unknown value is the next number.
    """
    numbered = schema.values == tuple(range(len(schema)))
    if not numbered or pixels[0] or not pixels.any() or not unknown.get(len(schema)):
        return ""
    return (
        f"The labels look shifted by one: class {schema.classes[0]} (value 0) has no pixel and the value {len(schema)} "
        f"is unknown; if they count from 1, write value: 1 to {len(schema)} in the schema"
    )


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
