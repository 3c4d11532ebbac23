"""What a prediction left behind, read by window: class maps, and the confidences that belong to them."""

from collections import Counter
from os import PathLike

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import MaskFlags

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.gdal import gdal_env, open_raster, raster_errors
from rs_biformer.raster.labels import LabelRaster, translate_bytes
from rs_biformer.raster.metadata import SCORE_LEVELS, ScoreScale
from rs_biformer.raster.paths import Location
from rs_biformer.raster.source import Source
from rs_biformer.schema import IGNORE, ClassSchema

AnyPath = str | PathLike[str]

_WRONG = 254  # a schema has at most 254 classes, 0 to 253


class ClassMap:
    """A predicted class map, read by window as class indices; a context manager.

    One band holds class indices 0, 1, 2, ... as `rs-biformer predict` writes them, whatever numbers the schema's
    labels use, with nodata or 255 where there is no prediction. Three bands hold the schema's colours. Either may have
    an alpha band as a mask.

    Raises RasterError when the file cannot be read, holds anything else, or draws its classes (by its colour table)
    in colours that belong to other classes of the schema.
    """

    def __init__(self, path: AnyPath, schema: ClassSchema, *, tolerance: int = 0) -> None:
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

    def __enter__(self) -> "ClassMap":
        return self

    def __exit__(self, *exception: object) -> None:
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
        missing = ~self.source.valid([1], [values], window) | (values == IGNORE)
        wrong = ~missing & ((values < 0) | (values >= len(self.schema)))
        if wrong.any():
            raise RasterError(
                f"prediction {self.path} holds the value {values[wrong][0]}; schema {self.schema.name!r} has the "
                f"class indices 0 to {len(self.schema) - 1}, use the --classes that the map was made with"
            )
        return np.where(missing, IGNORE, values).astype(np.uint8)

    def _byte_table(self) -> bytes:
        """What each byte of a map without a mask means: a class, IGNORE, or _WRONG. One look-up for many questions."""
        table = np.full(256, _WRONG, np.uint8)
        table[: len(self.schema)] = np.arange(len(self.schema))
        table[IGNORE] = IGNORE
        nodata = self.source.nodatavals[0]
        if nodata is not None and 0 <= nodata <= 255 and float(nodata).is_integer():
            table[int(nodata)] = IGNORE
        if self.source.palette is not None:
            table[self.source.palette[:, 3] == 0] = IGNORE
        return table.tobytes()

    def _require_order(self) -> None:
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


class Probabilities:
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

    def __enter__(self) -> "Probabilities":
        return self

    def __exit__(self, *exception: object) -> None:
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
            return values[0]
        mapped = index != IGNORE
        chosen = np.take_along_axis(values, np.where(mapped, index, 0)[None].astype(np.intp), axis=0)[0]
        return np.where(mapped, chosen, np.float32(np.nan))


def describe_unknown(unknown: Counter, schema: ClassSchema) -> str:
    """The middle of a sentence about colours or values that a schema does not know."""
    values = ", ".join(str(value) for value, _ in unknown.most_common(3))
    return (
        f"holds {values}, which schema {schema.name!r} does not know; use the right --classes, list it under ignore "
        "in the schema, or allow near colours by --tolerance"
    )
