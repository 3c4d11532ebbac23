"""Rasters written: maps as a stream of windows that end as a Cloud Optimized GeoTIFF, and small chips at once.

Whatever is written appears under its name complete or not at all: the bytes go to a hidden folder or file beside the
target, which is renamed at the end and removed on any error.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

import numpy as np
from filelock import BaseFileLock
from numpy.typing import ArrayLike, NDArray
from rasterio.crs import CRS
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.files import publish, replacing, scratch_folder
from rs_biformer.geometry import Window
from rs_biformer.raster import tiff
from rs_biformer.raster.cog import COMPRESSIONS, Encoding, verify, write_cog
from rs_biformer.raster.crs import names_a_place
from rs_biformer.raster.gdal import gdal_env, open_raster, raster_errors, reason
from rs_biformer.raster.metadata import class_tags
from rs_biformer.raster.overviews import Overviews
from rs_biformer.raster.source import is_georeferenced
from rs_biformer.raster.staging import Staging, close_folder, open_folder
from rs_biformer.raster.style import write_crs
from rs_biformer.schema import IGNORE, ClassSchema

_FULL = 16 * 2**20  # bytes of free space below which a disk counts as full

_SIDE_FILES = (".aux.xml", ".ovr", ".msk")
"""Files that GDAL reads with a raster: those of the raster that was replaced would be taken for the new one's."""

_SHARE_OF_RAW = {"mode": 0.25, "average": 1.0}
"""Free disk space asked for, per byte of raw pixels: pieces, tiles and map together, compressed.

Class maps compress to a few per cent and probabilities to a third or two thirds; what is asked for is a little worse
than that, so that a map that would fit is not refused. A disk that fills up all the same is an error when it happens.
"""


class MapWriter:
    """Writes a raster window by window and makes it a COG at the end; a context manager.

    A class map (`schema` given, one uint8 band) gets the schema's colours as its colour table, transparent at nodata,
    and the class names as the tag CLASS_NAMES, a JSON list. Probabilities (`schema` given, a band per class) get the
    class names as band descriptions.

    path: must end in .tif or .tiff; its folder is made if absent. crs, transform: as a Scene has them; `gcps` (points
    and CRS) and `rpcs` are kept where there is no transform, see Scene.georeference.
    dtype: float16 is written as 16-bit floats, which readers give as float32.
    nodata: None for none; pixels that are never written hold it (or 0). tags: text by name for the file.
    descriptions: a name per band. scale: what a stored value is multiplied by to give the quantity, for readers.
    overviews: `mode` (classes) or `average` (quantities), see `overviews.halved`. Left out, it is `average` for floats
    and for a band per class, and `mode` otherwise.
    cog: False leaves the overviews out and keeps the bands of a pixel together: a scene rather than a map.
    compress: one of COMPRESSIONS.

    state: what the pixels depend on, as plain JSON values. With it, what was written survives an exception and the end
    of the process, in the folder `.NAME.partial` beside the target, and the next writer with an equal state goes on
    from there: `has` tells what is done. Without it nothing is left on the disk unless the `with` block ends without an
    exception. restart: throw away what an earlier writer left, whatever its state.

    The finished file is a function of the pixels and the options: not of the windows, their order, threads or
    interruptions. Memory does not grow with the raster.

    Raises RasterError when the file cannot be written (a full disk or another process at it among the reasons),
    ConfigError when the options cannot be meant or the folder holds the pieces of another state.
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
        descriptions: Sequence[str] | None = None,
        scale: float = 1,
        overviews: Overviews | None = None,
        cog: bool = True,
        compress: str = "deflate",
        state: Mapping[str, Any] | None = None,
        restart: bool = False,
    ) -> None:
        self.path = Path(path)
        self.height, self.width = height, width
        self._encoding = Encoding(
            np.dtype(dtype),
            count,
            compress,
            overviews or _overviews_of(np.dtype(dtype), count, schema),
            "band" if cog else "pixel",
        )
        self._require_options(descriptions)
        self._place = _place(crs, transform, gcps, rpcs)
        self._schema, self._nodata, self._tags, self._cog = schema, nodata, dict(tags or {}), cog
        self._descriptions, self._scale = descriptions, scale
        self._state, self._restart = state, restart
        self._folder: Path | None = None
        self._scratch = ExitStack()
        self._lock: BaseFileLock | None = None
        self._staging: Staging | None = None
        self._finished: Path | None = None
        self._crs_beside: CRS | None = None  # what GeoTIFF keys cannot hold

    def _require_options(self, descriptions: Sequence[str] | None) -> None:
        encoding = self._encoding
        if encoding.compress not in COMPRESSIONS:
            raise ConfigError(f"compress is {encoding.compress!r}; it must be one of {', '.join(COMPRESSIONS)}")
        if encoding.overviews not in get_args(Overviews):
            raise ConfigError(
                f"overviews is {encoding.overviews!r}; it must be one of {', '.join(get_args(Overviews))}"
            )
        if self.path.suffix.lower() not in (".tif", ".tiff"):
            raise ConfigError(f"{self.path} is to be a GeoTIFF; its name must end in .tif or .tiff")
        if self.height < 1 or self.width < 1 or encoding.count < 1:
            raise ConfigError(
                f"a raster of {encoding.count} x {self.height} x {self.width} cannot be; each must be >= 1"
            )
        if encoding.dtype.kind not in "uif":
            raise ConfigError(f"a raster of {encoding.dtype} cannot be written; use integers or floats")
        if descriptions is not None and len(descriptions) != encoding.count:
            raise ConfigError(f"{len(descriptions)} descriptions for {encoding.count} band(s); give one for each")

    def __enter__(self) -> Self:
        with raster_errors(self.path, "written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._require_space()
        with raster_errors(self.path, "written"):
            folder = self._open_folder()
        try:
            with gdal_env(), _write_errors(self.path):
                self._staging = Staging(folder, self._encoding, self._nodata)
                self._metadata = self._describe()
        except BaseException:
            self._close_folder(keep=True)
            raise
        return self

    def _open_folder(self) -> Path:
        if self._state is None:
            self._folder = self._scratch.enter_context(scratch_folder(self.path))
        else:
            self._lock = open_folder(self._kept, self._whole_state(), restart=self._restart, target=self.path)
            self._folder = self._kept
        return self._folder

    def _whole_state(self) -> dict[str, Any]:
        """What the pieces depend on: the caller's state, and how they are stored."""
        encoding = self._encoding
        return {
            **(self._state or {}),
            "raster": [encoding.count, self.height, self.width, encoding.dtype.name, repr(self._nodata)],
        }

    def _close_folder(self, keep: bool) -> None:
        assert self._folder is not None
        if self._lock is None:
            self._scratch.close()
        else:
            close_folder(self._folder, self._lock, keep=keep, target=self.path)

    @property
    def _kept(self) -> Path:
        """The folder that outlives this writer if it has a state."""
        return self.path.with_name(f".{self.path.name}.partial")

    def _require_space(self) -> None:
        raw = self.height * self.width * self._encoding.count * self._encoding.dtype.itemsize
        needed = int(raw * _SHARE_OF_RAW[self._encoding.overviews])
        if self._state is not None:
            with suppress(OSError):  # another process may just be removing it
                needed -= sum(path.stat().st_size for path in self._kept.iterdir())
        free = shutil.disk_usage(self.path.parent).free
        if free < needed:
            raise RasterError(
                f"{self.path} cannot be written: it needs about {needed / 1e9:.3g} GB and {self.path.parent} has "
                f"{free / 1e9:.3g} GB free; make room or choose another folder"
            )

    def _describe(self) -> tiff.Directory:
        """The tags of the finished file, from an empty one that GDAL makes."""
        names = self._descriptions
        if names is None and self._schema is not None and self._encoding.count == len(self._schema) > 1:
            names = self._schema.classes
        with MemoryFile() as memory:
            with open_raster(
                memory.name,
                "w",
                **self._encoding.profile,
                **self._place,
                height=self.height,
                width=self.width,
                nodata=self._nodata,
                sparse_ok=True,
            ) as sink:
                sink.update_tags(**self._tags)
                if names is not None:
                    sink.descriptions = tuple(names)
                if self._scale != 1:
                    sink.scales = (self._scale,) * self._encoding.count
                if self._schema is not None:
                    _write_schema(sink, self._schema, self._nodata)
            content = bytes(memory.getbuffer())
        self._crs_beside = _lost_crs(content, self._place.get("crs"))
        return tiff.read_directory(content)

    def has(self, window: Window) -> bool:
        """Whether a window was written, by this writer or by one before it that had the same state."""
        assert self._staging is not None, "MapWriter is a context manager: ask inside `with`"
        return window in self._staging

    def write(self, window: Window, array: ArrayLike) -> None:
        """Write pixels (h, w), or (C, h, w) for several bands, at a window; in any order, but no pixel twice.

        Raises RasterError when the window leaves the raster, the shape does not fit it, a value does not fit the
        dtype, or the disk is full.
        """
        assert self._staging is not None, "MapWriter is a context manager: write inside `with`"
        pixels = np.asarray(array)
        pixels = pixels[None] if pixels.ndim == 2 else pixels
        count = self._encoding.count
        if window.row_stop > self.height or window.col_stop > self.width:
            raise RasterError(f"{self.path} is {self.height} x {self.width} pixels; {window} leaves it")
        if pixels.shape != (count, window.height, window.width):
            raise RasterError(
                f"{self.path}: pixels of shape {pixels.shape} do not fit {count} band(s) of "
                f"{window.height} x {window.width}"
            )
        pixels = _as_dtype(pixels, self._encoding.dtype, self.path)
        with gdal_env(), _write_errors(self.path):
            self._staging.put(window, pixels)

    def complete(self) -> None:
        """Make the finished file and read it back; it gets its name when the `with` block ends.

        That happens by itself at the end of the block. Where several maps belong together, call it for each of them
        inside the block: then a full disk at the last map takes nothing from the others.
        """
        assert self._folder is not None and self._staging is not None
        self._finished = self._folder / "map.partial"
        with gdal_env(), _write_errors(self.path):
            checksums = write_cog(
                self._finished,
                self._metadata,
                self._encoding,
                self._staging.read,
                height=self.height,
                width=self.width,
                nodata=self._nodata,
                overviews=self._cog,
            )
            verify(self._finished, self._encoding, checksums)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        published = False
        try:
            if kind is None:
                self._publish()
                published = True
        finally:
            self._close_folder(keep=not published)

    def _publish(self) -> None:
        if self._finished is None:
            self.complete()
        assert self._finished is not None
        with _write_errors(self.path):
            publish(self._finished, self.path)
            for suffix in _SIDE_FILES:
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        if self._crs_beside is not None:
            write_crs(self.path, self._crs_beside)


def _overviews_of(dtype: np.dtype, count: int, schema: ClassSchema | None) -> Overviews:
    is_share_per_class = schema is not None and count == len(schema) > 1
    return "average" if dtype.kind == "f" or is_share_per_class else "mode"


def place_chip(path: str | os.PathLike[str], content: bytes) -> None:
    """Write the bytes of a chip to a file that appears complete or not at all, and make its folder.

    Raises RasterError when it cannot be written.
    """
    path = Path(path)
    with raster_errors(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _write_errors(path), replacing(path, sync=False) as partial:
        partial.write_bytes(content)


def encode_chip(
    array: NDArray[Any],
    *,
    crs: CRS | str | None,
    transform: Affine,
    nodata: float | None = None,
    colormap: Mapping[int, Sequence[int]] | None = None,
    descriptions: Sequence[str] | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> bytes:
    """Pixels (h, w) or (C, h, w) as a small compressed GeoTIFF.

    colormap: value -> red, green, blue(, alpha), for one uint8 band. descriptions: a name per band. mask: the valid
    pixels (h, w), stored inside the file.

    Raises RasterError for what a GeoTIFF cannot hold.
    """
    pixels = array[None] if array.ndim == 2 else array
    count, height, width = pixels.shape
    with gdal_env(), raster_errors("a chip", "encoded"), MemoryFile(ext=".tif") as memory:
        with open_raster(
            memory.name,
            "w",
            driver="GTiff",
            height=height,
            width=width,
            count=count,
            dtype=pixels.dtype.name,
            nodata=nodata,
            **_place(crs, transform, None, None),
            compress="deflate",
            predictor=3 if pixels.dtype.kind == "f" else 1 if count == 1 and pixels.itemsize == 1 else 2,
            **({"photometric": "MINISBLACK", "alpha": "NO"} if count == 4 else {}),  # near infrared is no mask
        ) as sink:
            if colormap is not None:
                sink.write_colormap(1, {value: tuple(colour) for value, colour in colormap.items()})
            if descriptions is not None:
                sink.descriptions = tuple(descriptions)
            sink.write(pixels)
            if mask is not None:
                sink.write_mask(mask)
        with open_raster(memory.name) as file:  # closing drops the report of what could not be written
            whole = np.array_equal(file.read().view(np.uint8), np.ascontiguousarray(pixels).view(np.uint8))
            if not whole or (mask is not None and not np.array_equal(file.read_masks(1) > 0, mask)):
                raise OSError("the file does not hold what was written")
        content: bytes = memory.read()
        return content


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


def _place(crs: CRS | str | None, transform: Affine, gcps: Any, rpcs: Any) -> dict[str, Any]:
    """The parts of a georeference that a GeoTIFF can hold together, as rasterio's creation arguments."""
    if is_georeferenced(transform):
        return {"crs": crs, "transform": transform}
    place: dict[str, Any] = {"crs": crs}
    if gcps is not None and gcps[0]:
        place = {"gcps": list(gcps[0]), "crs": gcps[1] or crs or CRS()}  # rasterio wants one, if an empty one
    if rpcs is not None:
        place["rpcs"] = rpcs
    return place


def _lost_crs(content: bytes, wanted: CRS | str | None) -> CRS | None:
    """The CRS that was wanted, where a GeoTIFF made with it has none; GDAL would write it beside the file."""
    if wanted is None:
        return None
    with MemoryFile(content) as memory, open_raster(memory.name) as file:
        found = file.crs or file.gcps[1]
    wanted = CRS.from_user_input(wanted)
    lost = found is None or (names_a_place(wanted) and not names_a_place(found))
    return wanted if lost else None


def _write_schema(sink: Any, schema: ClassSchema, nodata: float | None) -> None:
    """Class names, and the colour table if the raster is a class map."""
    sink.update_tags(**class_tags(schema.classes))
    if sink.count == 1 and sink.dtypes[0] == "uint8":
        colours = {index: (*colour, 255) for index, colour in enumerate(schema.colours)}
        if nodata is not None:
            colours[int(nodata)] = (0, 0, 0, 0)
        sink.write_colormap(1, colours)


def _as_dtype(pixels: NDArray[Any], dtype: np.dtype, path: Path) -> NDArray[Any]:
    """Pixels in the raster's dtype, contiguous; RasterError rather than a value that wraps around."""
    if pixels.dtype == dtype:
        return np.ascontiguousarray(pixels)
    with np.errstate(invalid="ignore", over="ignore"):  # what does not fit is refused below
        converted = np.ascontiguousarray(pixels, dtype)
    if pixels.dtype.kind == dtype.kind == "f":
        fits = np.array_equal(np.isinf(converted), np.isinf(pixels))
    else:
        fits = np.array_equal(converted, pixels)
    if not fits:
        raise RasterError(f"{path}: values {pixels.min()} to {pixels.max()} ({pixels.dtype}) do not fit {dtype}")
    return converted
