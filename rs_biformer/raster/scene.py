"""A Scene: one image or several co-registered ones, read by window, with its validity mask."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.coords import BoundingBox
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import Affine, array_bounds

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.paths import Location, PathLike, stem_of, without_access
from rs_biformer.raster.polygons import Area
from rs_biformer.raster.regrid import PixelGrid, Regridded
from rs_biformer.raster.source import Closing, Source, grid_difference, ground_sample_distance, is_oblong, pixel_sides
from rs_biformer.raster.unchanged import Watched
from rs_biformer.raster.values import AS_IT_IS, RAW, Reading, Scaling, describe

_SHOWN = 480  # pixels of the longer side of a picture in a notebook
SAME_GSD = 1.001
"""A scene whose pixels differ from the wanted size by less than this factor is read as it is."""


@dataclass(frozen=True)
class _Band:
    """Where an image band comes from: the source's index, the band's number in it, a palette's channel or None."""

    source: int
    number: int
    channel: int | None
    interp: ColorInterp
    name: str


class Scene(Closing):
    """One raster or several, their bands stacked in the order of the paths, read by window on one grid of pixels.

    The grid is that of the first raster. Those that lie on another (another resolution, origin, extent or CRS) are
    resampled to it while they are read, as `regrid.Regridded` says; those on the same grid are read as they are.

    paths: files, URLs (https://, s3://, gs://, az://), or anything else that GDAL opens by name.
    bands: which bands, by 1-based number or by name, in the order wanted; all image bands unless given. Numbers count
    through the files in order (a DSM after a three-band image is band 4); a raster with a colour table counts as its
    three colours. Names are the descriptions in the file, else the colour interpretation (`red`, `nir`), else
    `band1`, ...; a name that occurs twice gets its number appended (`gray_2`).

    Alpha bands are no image bands but part of the validity mask, unless selected: four-band imagery such as Potsdam's
    RGBIR is often written with the fourth band marked as alpha, and `bands=[1, 2, 3, 4]` takes it for what it is.

    gsd: metres per pixel to read the scene at, instead of those that the first raster has: all rasters are resampled
    to pixels of that size, with the same upper left corner.

    reading: what is nodata where a file does not say, and whether the files' own scale and offset are applied; the
    numbers in the files unless asked for.

    height, width in pixels; crs and transform as the first file has them that has any and is on the first one's grid,
    None and the identity otherwise; dtype is the common one of the bands (`numpy.result_type`), a float where scales
    are applied.

    Handles are opened when first needed, one per process and thread, so a Scene can be shared between threads, sent
    to a worker by pickling, and survives a fork. It can be read again after `close`.

    Raises RasterError when a file is missing or no raster, when the files do not overlap or lie on different grids and
    do not say where, when the size of the pixels is not known that `gsd` is to change, or a band is unknown.
    Raises ConfigError where `reading` has values of no data for another number of files.
    """

    def __init__(
        self,
        paths: PathLike | Sequence[PathLike],
        *,
        bands: Sequence[int | str] | None = None,
        gsd: float | None = None,
        reading: Reading = RAW,
    ) -> None:
        listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        if not listed:
            raise RasterError("a scene needs at least one raster; no path was given")
        reading.require_rasters(listed)
        self.reading = reading
        self.area: Location | None = None
        """The layer of polygons that the scene is limited to, see `limit`."""
        self._area: Area | None = None
        self._area_file: Watched | None = None
        self._sources = [Source(path, nodata=reading.nodata_of(number)) for number, path in enumerate(listed)]
        self._grid = _grid(self._sources)
        if gsd is not None:
            self._grid = _at_gsd(self._grid, gsd)
        self._readers = [
            Regridded(source, self._grid) if grid_difference(self._grid, source) else source for source in self._sources
        ]
        available = _bands(self._sources)
        self._bands = [_find(available, band, self.path) for band in bands] if bands is not None else available
        self._bands = [b for b in self._bands if bands is not None or b.interp != ColorInterp.alpha]
        if reading.scaled and not all(isfinite(scale * offset) and scale for scale, offset in self.scalings):
            raise RasterError(
                f"{self.path} declares {describe(self.scalings)}, which gives no values; see --scale ignore"
            )
        if not self._bands:
            raise RasterError(f"{self.path} has no image band but alpha; select bands by number if it holds image data")

    def limit(self, area: PathLike) -> None:
        """From now on only pixels whose centre lies in a polygon of the layer `area` are valid.

        Raises RasterError where the layer cannot be read, does not overlap the scene, or one of them has no place.
        """
        self._area_file = Watched([area])
        self._area = Area(area, self._grid)
        self.area = self._area.path

    def __getstate__(self) -> dict[str, Any]:
        area = self.area.absolute() if isinstance(self.area, Path) else self.area
        return {**vars(self), "area": area, "_area": None}  # opened again by who needs it, wherever that is

    def _inside(self, window: Window) -> NDArray[np.bool_] | None:
        if self.area is None:
            return None
        if self._area is None:
            self._area = Area(self.area, self._grid)
        return self._area.inside(window)

    @property
    def paths(self) -> tuple[Location, ...]:
        """The rasters, in the order of their bands: a Path for a file, text for a URL and the like."""
        return tuple(source.path for source in self._sources)

    @property
    def regridded(self) -> tuple[Location, ...]:
        """Those of `paths` that are resampled while they are read."""
        return tuple(reader.source.path for reader in self._readers if isinstance(reader, Regridded))

    @property
    def path(self) -> Location:
        """The first raster, which names the scene in messages."""
        return self._sources[0].path

    @property
    def name(self) -> str:
        """The stem of the first file."""
        return stem_of(self.path)

    @property
    def height(self) -> int:
        return self._grid.height

    @property
    def width(self) -> int:
        return self._grid.width

    @property
    def count(self) -> int:
        """Number of selected bands."""
        return len(self._bands)

    @property
    def band_names(self) -> tuple[str, ...]:
        return tuple(band.name for band in self._bands)

    @property
    def dtype(self) -> np.dtype:
        """The dtype that `read` returns."""
        return np.result_type(self.source_dtype, np.float32) if self.reading.scaled else self.source_dtype

    @property
    def source_dtype(self) -> np.dtype:
        """The common dtype of the numbers in the files."""
        dtypes = [
            np.dtype(np.uint8 if b.channel is not None else self._sources[b.source].dtypes[b.number - 1])
            for b in self._bands
        ]
        return np.result_type(*dtypes)

    @property
    def band_numbers(self) -> tuple[int, ...]:
        """The selected bands as numbers, counted through the files."""
        available = _bands(self._sources)
        return tuple(available.index(band) + 1 for band in self._bands)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The rasters as files, in order."""
        return tuple(self._sources)

    def numbers_of(self, source: Source) -> set[int]:
        """The bands of one of `sources` that are selected, by their number in it."""
        return {band.number for band in self._bands if self._sources[band.source] is source}

    @property
    def scalings(self) -> tuple[Scaling, ...]:
        """Scale and offset that the files declare for the selected bands, applied or not."""
        return tuple(
            AS_IT_IS if b.channel is not None else self._sources[b.source].scalings[b.number - 1] for b in self._bands
        )

    @property
    def crs(self) -> CRS | None:
        return self._grid.crs

    @property
    def transform(self) -> Affine:
        return self._grid.transform

    @cached_property
    def gsd(self) -> float | None:
        """Metres per pixel on the ground at the scene's centre; None where nothing says where the scene lies."""
        return ground_sample_distance(self.crs, self.transform, self.height, self.width)

    @cached_property
    def pixel_sides(self) -> tuple[float, float] | None:
        """Width and height of a pixel on the ground in metres; None like `gsd`."""
        return pixel_sides(self.crs, self.transform, self.height, self.width)

    @property
    def bounds(self) -> BoundingBox:
        """The box around the scene in units of the CRS (for rotated rasters larger than the scene)."""
        return BoundingBox(*array_bounds(self.height, self.width, self.transform))

    @property
    def georeference(self) -> dict[str, Any]:
        """Keyword arguments that give a MapWriter this scene's place: crs, transform, gcps, rpcs."""
        grid = self._grid
        return {"crs": grid.crs, "transform": grid.transform, "gcps": grid.gcps, "rpcs": grid.rpcs}

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The pixels of a window (C, h, w) in `dtype`, and which of them are valid (h, w).

        Invalid are pixels that any of the rasters masks (see `Source.valid`; of nodata values, masks and so on only
        those of selected bands count) and those that a resampled raster does not reach. Their values are left as the
        raster has them.

        Raises RasterError when the window leaves the scene or a block cannot be read.
        """
        image = np.empty((self.count, window.height, window.width), self.dtype)
        scalings = self.scalings if self.reading.scaled else (AS_IT_IS,) * self.count
        valid = np.ones((window.height, window.width), bool)
        for index, (source, reader) in enumerate(zip(self._sources, self._readers, strict=True)):
            places = [(place, band) for place, band in enumerate(self._bands) if band.source == index]
            numbers = list(dict.fromkeys(band.number for _, band in places))
            if not numbers:
                continue
            pixels, known = reader.read_valid(numbers, window)
            valid &= known
            for place, band in places:
                values = pixels[numbers.index(band.number)]
                if band.channel is not None:
                    assert source.palette is not None
                    values = source.palette[values, band.channel]
                image[place] = _scaled(values, scalings[place])
        inside = self._inside(window)
        return image, valid if inside is None else valid & inside

    def require_unchanged(self) -> None:
        """Raise RasterError where a file of the scene was changed since it was opened."""
        for source in self._sources:
            source.require_unchanged()
        if self._area_file is not None:
            self._area_file.require_unchanged()

    def close(self) -> None:
        """Close the file handles of this process."""
        for source in self._sources:
            source.close()

    def _repr_html_(self) -> str:
        """What a notebook shows: a picture of the first raster, and what the scene is."""
        from rs_biformer.notebook import facts, picture, stacked
        from rs_biformer.raster.thumbnail import thumbnail

        first = [band.number for band in self._bands if band.source == 0]
        shown = thumbnail(self._sources[0], first[: 3 if len(first) >= 3 else 1], _SHOWN) if first else None
        listed = {
            "rasters": without_access(", ".join(map(str, self.paths))),
            "size": f"{self.width:,} x {self.height:,} pixels",
            "bands": ", ".join(self.band_names),
            "type": str(self.dtype),
            "CRS": None if self.crs is None else self.crs.to_string(),
            "pixel": None if self.gsd is None else f"{self.gsd:.4g} m",
        }
        return stacked(
            facts(listed),
            "too large to be shown without overviews" if shown is None else picture(shown, without_access(self.name)),
        )

    def __repr__(self) -> str:
        return f"Scene({', '.join(map(str, self.paths))}: {self.count} x {self.height} x {self.width} {self.dtype})"


def _scaled(values: NDArray[Any], scaling: Scaling) -> NDArray[Any]:
    if scaling == AS_IT_IS:
        return values
    with np.errstate(over="ignore", invalid="ignore"):  # nodata such as -3.4e38, which is not valid anyway
        return values.astype(np.float64) * scaling[0] + scaling[1]


def _grid(sources: Sequence[Source]) -> PixelGrid:
    """The first raster's grid, with the place that the first raster on that grid has which has one."""
    first = sources[0]
    placed = (source for source in sources if source.crs is not None or source.gcps[0])
    place = next((source for source in placed if grid_difference(first, source) is None), first)
    return PixelGrid(first.path, first.height, first.width, place.crs, place.transform, place.gcps, place.rpcs)


def _at_gsd(grid: PixelGrid, gsd: float) -> PixelGrid:
    """The grid with pixels of `gsd` metres on the ground; oblong ones become square."""
    if gsd <= 0:
        raise RasterError(f"{grid.path} is to be read at {gsd} metres per pixel; that must be more than 0")
    own = ground_sample_distance(grid.crs, grid.transform, grid.height, grid.width)
    if own is None:
        raise RasterError(
            f"{grid.path} does not tell the size of its pixels (it has no CRS or no transform), so it cannot be "
            f"resampled to {gsd:g} m; georeference it first, or read it as it is"
        )
    sides = pixel_sides(grid.crs, grid.transform, grid.height, grid.width)
    if sides is not None and is_oblong(sides):
        return grid.scaled(gsd / sides[0], gsd / sides[1])
    factor = gsd / own
    return grid if 1 / SAME_GSD < factor < SAME_GSD else grid.scaled(factor, factor)


def _bands(sources: Sequence[Source]) -> list[_Band]:
    """Every band of every source, alpha included, in order, with unique names."""
    bands: list[_Band] = []
    for index, source in enumerate(sources):
        if source.palette is not None:
            channels = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
            bands += [_Band(index, 1, channel, interp, interp.name) for channel, interp in enumerate(channels)]
            continue
        for number, (interp, description) in enumerate(zip(source.interps, source.descriptions, strict=True), 1):
            known = interp not in (ColorInterp.undefined, ColorInterp.palette)
            name = description or (interp.name if known else f"band{len(bands) + 1}")
            bands.append(_Band(index, number, None, interp, name))
    seen: set[str] = set()
    for place, band in enumerate(bands):
        if band.name in seen:
            bands[place] = _Band(band.source, band.number, band.channel, band.interp, f"{band.name}_{place + 1}")
        seen.add(bands[place].name)
    return bands


def _find(available: Sequence[_Band], wanted: int | str, path: Location) -> _Band:
    if isinstance(wanted, int):
        if 1 <= wanted <= len(available):
            return available[wanted - 1]
    else:
        exact = [band for band in available if band.name == wanted]
        loose = [band for band in available if band.name.casefold() == wanted.casefold()]
        if exact or len(loose) == 1:
            return (exact or loose)[0]
    names = ", ".join(f"{number} {band.name}" for number, band in enumerate(available, 1))
    raise RasterError(f"{path} has no band {wanted!r}; it has {names}")
