"""What a prediction left behind, read by window: class maps, and the confidences that belong to them."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from os import PathLike
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import MaskFlags

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window, cover
from rs_biformer.raster.gdal import gdal_env, open_raster, raster_errors
from rs_biformer.raster.labels import LabelRaster, translate_bytes
from rs_biformer.raster.metadata import SCORE_LEVELS, ScoreScale, read_class_names
from rs_biformer.raster.paths import Location
from rs_biformer.raster.sizes import require_possible
from rs_biformer.raster.source import Closing, Source
from rs_biformer.schema import IGNORE, ClassSchema

AnyPath = str | PathLike[str]

Numbers = Literal["auto", "indices", "values"]
"""What the numbers of a map of one band mean: class indices, or the values that labels have for the classes."""

_ROWS = 512
_WRONG = 254  # a schema has at most 254 classes, 0 to 253


class ClassMap(Closing):
    """A predicted class map, read by window as class indices; a context manager.

    One band holds class indices 0, 1, 2, ... as `rs-biformer predict` writes them, or, where `numbers` says so, the
    numbers that the schema's labels use, with nodata or 255 where there is no prediction. Three bands hold the schema's
    colours. Either may have an alpha band as a mask.

    Raises RasterError when the file cannot be read, holds anything else, or says (by its class names or its colour
    table) that its classes stand in another order than the schema's.
    """

    def __init__(self, path: AnyPath, schema: ClassSchema, *, tolerance: int = 0, numbers: Numbers = "auto") -> None:
        self.source, self.schema = Source(path), schema
        self._colours: LabelRaster | None = None
        bands = sum(interp.name != "alpha" for interp in self.source.interps)
        if bands == 3:
            self._colours = LabelRaster(path, schema, tolerance=tolerance)
        elif bands != 1:
            raise RasterError(
                f"{self.path} has {bands} bands; a class map has one of class indices, or three of colours, alpha apart"
            )
        elif np.dtype(self.source.dtypes[0]).kind not in "iu":
            raise RasterError(
                f"{self.path} holds {self.source.dtypes[0]}; a class map holds whole numbers, write uint8"
            )
        if numbers == "auto":
            numbers = find_numbers([path], schema)
        self._class_of = {index: index for index in range(len(schema))}
        if numbers == "values":
            self._class_of = {**dict.fromkeys(schema.ignore_values, IGNORE), **schema.class_numbers()}
        else:
            self._require_order()
        with gdal_env(), raster_errors(self.path, "opened"), open_raster(self.path) as file:
            self.tags: dict[str, str] = file.tags()
            flags = file.mask_flag_enums[0]
        masked = not flags or MaskFlags.per_dataset in flags
        simple = self.source.count == 1 and self.source.dtypes[0] == "uint8" and not masked
        self._index_of_byte = self._byte_table() if simple else None

    @property
    def path(self) -> Location:
        return self.source.path

    def close(self) -> None:
        """Close the file handles of this process."""
        self.source.close()
        if self._colours is not None:
            self._colours.close()

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class index (h, w) uint8 of a window, IGNORE where nothing was predicted."""
        if self._colours is not None:
            index, unknown = self._colours.read(window)
            if unknown:
                raise RasterError(f"prediction {self.path} {describe_unknown(unknown, self.schema)}")
            return index
        (values,) = self.source.read([1], window)
        if self._index_of_byte is not None:
            index = translate_bytes(values, self._index_of_byte)
            if not (index == _WRONG).any():
                return index
        index = np.full(values.shape, _WRONG, np.uint8)
        for number, mapped in self._class_of.items():
            index[values == number] = mapped
        missing = ~self.source.valid([1], [values], window) | ((values == IGNORE) & (index == _WRONG))
        wrong = ~missing & (index == _WRONG)
        if wrong.any():
            raise RasterError(
                f"prediction {self.path} holds the value {values[wrong][0]}; schema {self.schema.name!r} has "
                f"{self._described()}, use the --classes that the map was made with"
            )
        return np.where(missing, np.uint8(IGNORE), index)

    def _byte_table(self) -> bytes:
        """What each byte of a map without a mask means: a class, IGNORE, or _WRONG. One look-up for many questions."""
        table = np.full(256, _WRONG, np.uint8)
        table[IGNORE] = IGNORE
        for number, mapped in self._class_of.items():
            if 0 <= number <= 255:
                table[number] = mapped
        nodata = self.source.nodatavals[0]
        if nodata is not None and 0 <= nodata <= 255 and float(nodata).is_integer():
            table[int(nodata)] = IGNORE
        if self.source.palette is not None:
            table[self.source.palette[:, 3] == 0] = IGNORE
        return table.tobytes()

    def _described(self) -> str:
        if list(self._class_of) == list(range(len(self.schema))):
            return f"the class indices 0 to {len(self.schema) - 1}"
        return f"the label values {', '.join(map(str, self._class_of))}"

    def _require_order(self) -> None:
        names = None if self._colours is not None else read_class_names(self.path)
        for index, name in enumerate((names or ())[: len(self.schema)]):
            if name in self.schema.classes and self.schema.classes[index] != name:
                raise RasterError(
                    f"prediction {self.path} calls its class {index} {name!r}, but schema {self.schema.name!r} calls "
                    f"class {index} {self.schema.classes[index]!r}; use the --classes that the map was made with"
                )
        if self.source.palette is None:
            return
        for index, colour in enumerate(self.source.palette[: len(self.schema), :3].tolist()):
            if tuple(colour) in self.schema.colours and self.schema.colours[index] != tuple(colour):
                other = self.schema.classes[self.schema.colours.index(tuple(colour))]
                raise RasterError(
                    f"prediction {self.path} draws class {index} in the colour of {other!r}, but schema "
                    f"{self.schema.name!r} calls class {index} {self.schema.classes[index]!r}; use the --classes that "
                    "the map was made with"
                )


def find_numbers(
    paths: Sequence[AnyPath],
    schema: ClassSchema,
    say: Callable[[str], None] = lambda line: None,
    *,
    allow_huge: bool = False,
) -> Literal["indices", "values"]:
    """What the numbers in maps of one band mean: class indices, or the values that labels have for the classes.

    Where the schema's values are 0, 1, 2, ... they are the same. Else class names in a map say indices, as
    `rs-biformer predict` writes them; a colour table says which of the two it colours as the schema does; and where
    neither is there, all maps together decide by the numbers that they hold. say: gets a line when values are found.

    Raises RasterError where both are possible.
    """
    values = schema.class_numbers()
    if values == {index: index for index in range(len(schema))}:
        return "indices"
    silent: list[AnyPath] = []
    for path in paths:
        told = _told(path, schema)
        if told == "values":
            say(f"maps are read in the schema's label values, as the colours of {path} say")
            return told
        silent += [path] if told is None else []
    if not silent:
        return "indices"
    held = set().union(*(_numbers_in(path, allow_huge) for path in silent)) - {IGNORE}
    as_indices = held <= set(range(len(schema)))
    as_values = held <= set(values)  # what labels ignore is nothing that a model maps
    if as_indices and as_values:
        raise RasterError(
            f"{silent[0]} holds the numbers {_some(held)}, which may be class indices (0 to {len(schema) - 1}) or the "
            f"label values of schema {schema.name!r} ({_some(values)}); say which with --map-numbers indices or "
            "--map-numbers values"
        )
    if as_values:
        say(f"maps are read in the schema's label values: they hold {_some(held)}, which are no class indices")
    return "values" if as_values else "indices"


def _told(path: AnyPath, schema: ClassSchema) -> Literal["indices", "values", "neither"] | None:
    """What a map says of its numbers by names or colours; `neither` where it has none: it is in colours."""
    with closing(Source(path)) as source:
        if sum(interp.name != "alpha" for interp in source.interps) != 1:
            return "neither"
        if read_class_names(source.path):
            return "indices"
        if source.palette is None:
            return None
        palette = [tuple(colour) for colour in source.palette[:, :3].tolist()]
    by_index = all(palette[index] == colour for index, colour in enumerate(schema.colours))
    by_value = all(
        0 <= value < len(palette) and palette[value] == schema.colours[index]
        for value, index in schema.class_numbers().items()
    )
    return None if by_index == by_value else "indices" if by_index else "values"


def _numbers_in(path: AnyPath, allow_huge: bool) -> set[int]:
    """The numbers that the valid pixels of a map hold."""
    held: set[int] = set()
    with closing(Source(path)) as source:
        require_possible(source, allow_huge)
        for window in cover(Window(0, 0, source.height, source.width), _ROWS, source.width):
            (band,) = source.read([1], window)
            held.update(np.unique(band[source.valid([1], [band], window)]).tolist())
    return held


def _some(numbers: Iterable[int]) -> str:
    shown = [str(number) for number in sorted(numbers)]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")


class Probabilities(Closing):
    """Probabilities that belong to a class map, read by window; a context manager.

    One band holds the confidence, which is the probability of the mapped class; as many bands as there are classes hold
    the probability of each. Bytes are in the scale that the file declares, else in steps of 1/250, with 255 for none;
    floats from 0 to 1 with NaN for none.

    Raises RasterError when the file cannot be read or holds anything else.
    """

    def __init__(self, path: AnyPath, schema: ClassSchema) -> None:
        self.source, self.schema = Source(path), schema
        if self.source.count not in (1, len(schema)):
            raise RasterError(
                f"{path} has {self.source.count} bands; confidence has one, probabilities have {len(schema)}, one for "
                f"each class of schema {schema.name!r}"
            )
        if any(np.dtype(dtype) != np.uint8 and np.dtype(dtype).kind != "f" for dtype in self.source.dtypes):
            raise RasterError(f"{path} holds {self.source.dtypes[0]}; probabilities are uint8 or float")
        self._quantity = ScoreScale(self.source.path, levels=True)

    @property
    def per_class(self) -> bool:
        """Whether there is a band for each class."""
        return self.source.count == len(self.schema)

    def close(self) -> None:
        """Close the file handles of this process."""
        self.source.close()

    def read(self, window: Window) -> NDArray[np.float32]:
        """The bands of a window (B, h, w) float32, NaN where there is none. Raises RasterError for values above 1."""
        numbers = list(range(1, self.source.count + 1))
        bands = np.stack(self.source.read(numbers, window))
        values = self._quantity(bands).astype(np.float32)
        if bands.dtype == np.uint8:
            values[bands == 255] = np.nan
        with np.errstate(invalid="ignore"):
            strange = (values < 0) | (values > 1.001)
        if strange.any():
            raise RasterError(
                f"{self.source.path} holds {bands[strange][0]}; probabilities are 0 to {SCORE_LEVELS} as bytes, "
                "else 0 to 1"
            )
        return np.minimum(values, 1)

    def of_class(self, values: NDArray[np.float32], index: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The probability (h, w) of the mapped class of each pixel, from what `read` gave; NaN without one."""
        if not self.per_class:
            alone: NDArray[np.float32] = values[0]
            return alone
        mapped = index != IGNORE
        chosen = np.take_along_axis(values, np.where(mapped, index, 0)[None].astype(np.intp), axis=0)[0]
        return np.where(mapped, chosen, np.float32(np.nan))


def describe_unknown(unknown: Counter[Any], schema: ClassSchema) -> str:
    """The middle of a sentence about colours or values that a schema does not know."""
    values = ", ".join(str(value) for value, _ in unknown.most_common(3))
    return (
        f"holds {values}, which schema {schema.name!r} does not know; use the right --classes, list it under ignore "
        "in the schema, or allow near colours by --tolerance"
    )
