"""Rasters written: maps as a stream of windows that end as a Cloud Optimized GeoTIFF, and small chips at once.

Whatever is written appears under its name complete or not at all: the bytes go to a hidden folder or file beside the
target, which is renamed at the end and removed on any error.
"""

import json
import os
import shutil
import tempfile
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import rasterio.shutil
from numpy.typing import ArrayLike, NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.windows import Window as RasterioWindow

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.gdal import gdal_env, open_raster, raster_errors, reason, writer_threads
from rs_biformer.raster.source import is_georeferenced
from rs_biformer.schema import IGNORE, ClassSchema

COMPRESSIONS = ("deflate", "lzw", "zstd", "none")

TILE = 512
_FULL = 16 * 2**20  # bytes of free space below which a disk counts as full
_STAGING_ROWS = 16
"""Rows of a block of the file that a stream is written to before it becomes a COG.

A block that is not full when GDAL's cache overflows is compressed and written twice. With low blocks the cache has to
hold 16 rows of the raster and not 512, whatever the height of the strips; the COG driver reads them 32 at a time.
"""

_SHARE_OF_RAW = {"u": 0.25, "i": 0.25, "f": 1.5}
"""Free disk space asked for, per byte of raw pixels: staging file, map and overviews together, compressed.

Class maps compress to a few per cent and probabilities to two thirds; what is asked for is a little worse than that,
so that a map that would fit is not refused. A disk that fills up all the same is an error when it happens.
"""


class MapWriter:
    """Writes a raster window by window and makes it a COG at the end; a context manager.

    A class map (`schema` given, one uint8 band) gets the schema's colours as its colour table, transparent at nodata,
    and the class names as the tag CLASS_NAMES, a JSON list. Probabilities (`schema` given, a band per class) get the
    class names as band descriptions. Overviews of integers hold the most frequent value and nodata only, so never a
    class that is not there; those of floats hold the mean.

    path: must end in .tif or .tiff; its folder is made if absent. crs, transform: as a Scene has them; `gcps` (points
    and CRS) and `rpcs` are kept where there is no transform, see Scene.georeference.
    nodata: None for none; pixels that are never written hold it (or 0). tags: text by name for the file.
    cog: False leaves the overviews and the second pass out: a tiled GeoTIFF. compress: one of COMPRESSIONS.

    Memory does not grow with the raster beyond GDAL's block cache. Nothing is left on the disk unless the `with`
    block ends without an exception.

    Raises RasterError when the file cannot be written (a full disk among the reasons), ConfigError when the options
    cannot be meant.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        height: int,
        width: int,
        crs: CRS | str | None,
        transform: Affine,
        gcps: tuple[Sequence[Any], CRS | None] | None = None,
        rpcs: Any = None,
        schema: ClassSchema | None = None,
        dtype: Any = "uint8",
        count: int = 1,
        nodata: float | None = IGNORE,
        tags: Mapping[str, str] | None = None,
        cog: bool = True,
        compress: str = "deflate",
    ) -> None:
        self.path = Path(path)
        self.height, self.width, self.count, self.dtype = height, width, count, np.dtype(dtype)
        self._cog, self._compress = cog, compress
        self._require_options()
        self._profile: dict[str, Any] = {
            "driver": "GTiff",
            "height": height,
            "width": width,
            "count": count,
            "dtype": self.dtype.name,
            "nodata": nodata,
            **_place(crs, transform, gcps, rpcs),
        }
        self._schema, self._nodata, self._tags = schema, nodata, dict(tags or {})
        self._written: list[tuple[Window, int]] = []  # what went where: window and CRC-32 of its pixels
        self._folder: Path | None = None
        self._sink: Any = None

    def _require_options(self) -> None:
        if self._compress not in COMPRESSIONS:
            raise ConfigError(f"compress is {self._compress!r}; it must be one of {', '.join(COMPRESSIONS)}")
        if self.path.suffix.lower() not in (".tif", ".tiff"):
            raise ConfigError(f"{self.path} is to be a GeoTIFF; its name must end in .tif or .tiff")
        if self.height < 1 or self.width < 1 or self.count < 1:
            raise ConfigError(f"a raster of {self.count} x {self.height} x {self.width} cannot be; each must be >= 1")
        if self.dtype.kind not in _SHARE_OF_RAW:
            raise ConfigError(f"a raster of {self.dtype} cannot be written; use integers or floats")

    def __enter__(self) -> Self:
        with raster_errors(self.path, "written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._require_space()
        with raster_errors(self.path, "written"):
            self._folder = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.partial-", dir=self.path.parent))
        try:
            self._open()
        except BaseException:
            self._discard()
            raise
        return self

    def _require_space(self) -> None:
        raw = self.height * self.width * self.count * self.dtype.itemsize
        needed = int(raw * _SHARE_OF_RAW[self.dtype.kind])
        free = shutil.disk_usage(self.path.parent).free
        if free < needed:
            raise RasterError(
                f"{self.path} cannot be written: it needs about {needed / 1e9:.3g} GB and {self.path.parent} has "
                f"{free / 1e9:.3g} GB free; make room or choose another folder"
            )

    def _open(self) -> None:
        assert self._folder is not None
        compress = "deflate" if self._cog and self._compress == "none" else self._compress
        with gdal_env(), _write_errors(self.path):
            self._sink = open_raster(
                self._folder / "stream.tif",
                "w",
                **self._profile,
                **_compression(compress, self.dtype, self.count, names=_GTIFF_PREDICTORS),
                **_photometric(self.count),
                **({"zlevel": 1} if self._cog and compress == "deflate" else {}),
                tiled=True,
                blockxsize=TILE,
                blockysize=_STAGING_ROWS if self._cog else TILE,
                interleave="band" if self._cog else "pixel",
                bigtiff="IF_SAFER",
                num_threads=writer_threads(),
            )
            self._sink.update_tags(**self._tags)
            if self._schema is not None:
                _describe(self._sink, self._schema, self._nodata)

    def write(self, window: Window, array: ArrayLike) -> None:
        """Write pixels (h, w), or (C, h, w) for several bands, at a window; in any order, but no pixel twice.

        Raises RasterError when the window leaves the raster, the shape does not fit it, a value does not fit the
        dtype, or the disk is full.
        """
        assert self._sink is not None, "MapWriter is a context manager: write inside `with`"
        pixels = np.asarray(array)
        pixels = pixels[None] if pixels.ndim == 2 else pixels
        if window.row_stop > self.height or window.col_stop > self.width:
            raise RasterError(f"{self.path} is {self.height} x {self.width} pixels; {window} leaves it")
        if pixels.shape != (self.count, window.height, window.width):
            raise RasterError(
                f"{self.path}: pixels of shape {pixels.shape} do not fit {self.count} band(s) of "
                f"{window.height} x {window.width}"
            )
        pixels = _as_dtype(pixels, self.dtype, self.path)
        with gdal_env(), _write_errors(self.path):
            self._sink.write(pixels, window=_area(window))
        self._written.append((window, zlib.crc32(pixels.data)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def _finish(self) -> None:
        assert self._folder is not None
        done = self._folder / "stream.tif"
        with gdal_env(), _write_errors(self.path):
            self._sink.close()
            if self._cog:
                done = self._folder / "cog.tif"
                rasterio.shutil.copy(
                    self._folder / "stream.tif",
                    done,
                    driver="COG",
                    **_compression(self._compress, self.dtype, self.count, names=_COG_PREDICTORS),
                    blocksize=TILE,
                    bigtiff="IF_SAFER",
                    overview_resampling="AVERAGE" if self.dtype.kind == "f" else "MODE",
                    num_threads=writer_threads(),
                )
            self._verify(done)
            done.replace(self.path)

    def _verify(self, done: Path) -> None:
        """Read everything back. GDAL reports a full disk while it closes a file, and rasterio drops that report."""
        with open_raster(done) as file:
            for window, checksum in self._written:
                if zlib.crc32(file.read(window=_area(window)).data) != checksum:
                    raise OSError(f"rows {window.row} to {window.row_stop} are not in the file as they were written")
            levels = len(file.overviews(1))
        for level in range(levels):
            with open_raster(done, overview_level=level) as file:
                for _, area in file.block_windows(1):
                    file.read(window=area)

    def _discard(self) -> None:
        """Remove the staging folder; the map itself has left it if all went well."""
        if self._sink is not None and not self._sink.closed:
            with gdal_env(), suppress(Exception):  # what cannot be flushed is thrown away in any case
                self._sink.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def write_chip(
    path: str | os.PathLike[str],
    array: NDArray,
    *,
    crs: CRS | str | None,
    transform: Affine,
    nodata: float | None = None,
    colormap: Mapping[int, Sequence[int]] | None = None,
    descriptions: Sequence[str] | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> None:
    """Write pixels (h, w) or (C, h, w) as a small compressed GeoTIFF that appears complete or not at all.

    colormap: value -> red, green, blue(, alpha), for one uint8 band. descriptions: a name per band. mask: the valid
    pixels (h, w), stored inside the file.

    Raises RasterError when the file cannot be written.
    """
    path = Path(path)
    pixels = array[None] if array.ndim == 2 else array
    count, height, width = pixels.shape
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}-{threading.get_ident()}")
    with raster_errors(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with gdal_env(), _write_errors(path):
            with open_raster(
                partial,
                "w",
                driver="GTiff",
                height=height,
                width=width,
                count=count,
                dtype=pixels.dtype.name,
                nodata=nodata,
                **_place(crs, transform, None, None),
                **_compression("deflate", pixels.dtype, count, names=_GTIFF_PREDICTORS),
                **_photometric(count),
            ) as sink:
                if colormap is not None:
                    sink.write_colormap(1, {value: tuple(colour) for value, colour in colormap.items()})
                if descriptions is not None:
                    sink.descriptions = tuple(descriptions)
                sink.write(pixels)
                if mask is not None:
                    sink.write_mask(mask)
            with open_raster(partial) as file:  # closing drops the report of a full disk, see MapWriter
                whole = np.array_equal(file.read().view(np.uint8), np.ascontiguousarray(pixels).view(np.uint8))
                if not whole or (mask is not None and not np.array_equal(file.read_masks(1) > 0, mask)):
                    raise OSError("the file does not hold what was written")
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """As `raster_errors`, and with the free space, since a full disk hides behind many of GDAL's messages."""
    try:
        with raster_errors(path, "written"):
            yield
    except RasterError as error:
        cause = error.__cause__ or error
        if not path.parent.is_dir():
            raise
        free = shutil.disk_usage(path.parent).free
        why = "the disk is full" if free < _FULL else f"{reason(cause)} (is the disk full, or a quota?)"
        raise RasterError(
            f"{path} cannot be written: {why}; {free / 1e9:.3g} GB are free in {path.parent}, "
            "make room or choose another folder"
        ) from cause


_GTIFF_PREDICTORS = ("1", "2", "3")
_COG_PREDICTORS = ("NO", "STANDARD", "FLOATING_POINT")


def _compression(compress: str, dtype: np.dtype, count: int, *, names: tuple[str, str, str]) -> dict[str, str]:
    """Creation options: floats and images compress better as differences of neighbours, class maps do not."""
    if compress == "none":
        return {"compress": "NONE"}
    kind = 2 if dtype.kind == "f" else 0 if count == 1 and dtype.itemsize == 1 else 1
    return {"compress": compress.upper(), "predictor": names[kind]}


def _photometric(count: int) -> dict[str, str]:
    """GDAL takes the last of four 8-bit bands for alpha unless told otherwise; near infrared is no mask."""
    return {"photometric": "MINISBLACK", "alpha": "NO"} if count == 4 else {}


def _place(crs: CRS | str | None, transform: Affine, gcps: Any, rpcs: Any) -> dict[str, Any]:
    """The parts of a georeference that a GeoTIFF can hold together, as rasterio's creation arguments."""
    if is_georeferenced(transform):
        return {"crs": crs, "transform": transform}
    place: dict[str, Any] = {"crs": crs}
    if gcps is not None and gcps[0]:
        place = {"gcps": list(gcps[0]), "crs": gcps[1] or crs}
    if rpcs is not None:
        place["rpcs"] = rpcs
    return place


def _describe(sink: Any, schema: ClassSchema, nodata: float | None) -> None:
    """Class names, and the colour table if the raster is a class map."""
    sink.update_tags(CLASS_NAMES=json.dumps(schema.classes))
    if sink.count == len(schema) and sink.count > 1:
        sink.descriptions = schema.classes
    if sink.count == 1 and sink.dtypes[0] == "uint8":
        colours = {index: (*colour, 255) for index, colour in enumerate(schema.colours)}
        if nodata is not None:
            colours[int(nodata)] = (0, 0, 0, 0)
        sink.write_colormap(1, colours)


def _area(window: Window) -> RasterioWindow:
    return RasterioWindow(window.col, window.row, window.width, window.height)


def _as_dtype(pixels: NDArray, dtype: np.dtype, path: Path) -> NDArray:
    """Pixels in the raster's dtype, contiguous; RasterError rather than a value that wraps around."""
    if pixels.dtype == dtype or (pixels.dtype.kind == "f" and dtype.kind == "f"):
        return np.ascontiguousarray(pixels, dtype)
    with np.errstate(invalid="ignore"):  # NaN to integer warns; it is refused below
        converted = np.ascontiguousarray(pixels, dtype)
    if not np.array_equal(converted, pixels):
        raise RasterError(f"{path}: values {pixels.min()} to {pixels.max()} ({pixels.dtype}) do not fit {dtype}")
    return converted
