"""Features of a vector layer of a file, by the box that they lie in.

GeoPackage, Shapefile, FlatGeobuf, GeoJSON and whatever else OGR reads, and GeoParquet.

Memory is bounded by the box where the layer has a spatial index and many features; other layers are held once for each
process, as the bytes of their geometries.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from rs_biformer.errors import RasterError
from rs_biformer.raster import geoparquet
from rs_biformer.raster.kinds import require_layer
from rs_biformer.raster.paths import Location, PathLike, gdal_name, is_remote

VECTOR_SUFFIXES = (".gpkg", ".shp", ".fgb", ".geojson", ".json", ".geojsonl", ".parquet", ".geoparquet", ".kml", ".gml")
"""What tells a vector layer from a raster."""

HELD_FEATURES = 20_000
"""A layer of no more features is held in memory even where it has a spatial index."""

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""

FARTHEST = 1e15
"""Coordinates above it are none: in metres, a light month away."""

_CHUNK = 65536  # features whose bounds are worked out at once


def is_vector(name: PathLike) -> bool:
    """Whether a file name is that of a vector layer."""
    return os.fspath(name).partition("?")[0].lower().endswith(VECTOR_SUFFIXES)


@dataclass(frozen=True)
class Features:
    """Features in the order of the file: ids (N,), geometries (N,) with None where there is none, columns by name."""

    ids: NDArray[np.int64]
    shapes: NDArray[np.object_]
    columns: dict[str, NDArray[Any]]

    def take(self, chosen: Any) -> "Features":
        """The features at these positions, or where a boolean array is true."""
        return Features(self.ids[chosen], self.shapes[chosen], {k: v[chosen] for k, v in self.columns.items()})


def plain_value(value: Any) -> Any:
    """An attribute's value as text, whole number, or whatever else it is; None for null."""
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, bool):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True)
class VectorLayer:
    """A layer of a file. fields: its attributes. bounds: of all its features, None where the file does not tell.

    indexed: features are looked up on disk, by the file's own spatial index.
    flat: `lines` or `points` where the layer is declared to have nothing else.
    """

    path: Location
    name: str | None
    crs: str | None
    fields: tuple[str, ...]
    count: int
    bounds: tuple[float, ...] | None
    indexed: bool
    stamp: tuple[int, int]
    flat: str = ""

    def within(self, box: Box, columns: tuple[str, ...]) -> Features:
        """The features whose bounds meet a box, in the order of the file."""
        if self.indexed:
            found = _from_ogr(self, columns, bbox=box)
            shapes = parsed(found.shapes)
            features = Features(found.ids, shapes, found.columns)
            features = features.take(np.argsort(features.ids, kind="stable"))
            return features.take(meets(shapely.bounds(features.shapes).reshape(-1, 4), box))
        held, bounds = _held(self, columns)
        chosen = held.take(meets(bounds, box))
        return Features(chosen.ids, parsed(chosen.shapes), chosen.columns)

    def all(self, columns: tuple[str, ...]) -> Features:
        """The features that have a geometry, wherever the file says that they lie."""
        found = _from_ogr(self, columns) if self.indexed else _held(self, columns)[0]
        features = Features(found.ids, parsed(found.shapes), found.columns)
        return features.take(~shapely.is_missing(features.shapes) & ~shapely.is_empty(features.shapes))


def none_of(columns: Sequence[str]) -> Features:
    """No features, with these columns."""
    return Features(np.zeros(0, np.int64), np.zeros(0, object), {name: np.zeros(0, object) for name in columns})


def open_layer(path: Location, name: str | None) -> VectorLayer:
    """What a layer is. Raises RasterError where the file cannot be read, or holds several layers and none is named."""
    return _layer(*_key(path), name)


def _key(path: Location) -> tuple[Location, tuple[int, int]]:
    """The file and what changes when it is written again."""
    if isinstance(path, str):
        return path, (0, 0)
    try:
        facts = path.stat()
    except OSError as error:
        raise RasterError(f"{path} cannot be opened: {error.strerror}; give the path of a vector layer") from None
    return path, (facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=64)
def _layer(path: Location, stamp: tuple[int, int], name: str | None) -> VectorLayer:
    if _is_parquet(path):
        return _parquet_layer(path, stamp, name)
    if not is_remote(path):
        require_layer(path)
    from pyogrio import __gdal_version__, list_layers, read_info, set_gdal_config_options
    from pyogrio.errors import DataSourceError

    # GDAL would ask the server that a GML names for its schema.
    schema = "GML_DOWNLOAD_SCHEMA" if __gdal_version__ >= (3, 10) else "GML_DOWNLOAD_WFS_SCHEMA"
    set_gdal_config_options({schema: "NO"})
    try:
        layers = [str(row[0]) for row in list_layers(gdal_name(path)) if row[1] is not None]
        chosen = _chosen_layer(path, layers, name)
        info = read_info(gdal_name(path), layer=chosen, force_feature_count=True, force_total_bounds=True)
    except (DataSourceError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).partition(" It might help")[0]  # to name a driver, of which CSV is one
        reason = reason.rstrip(".;") + "."
        raise RasterError(f"{path} cannot be read as polygons: {reason}") from None
    bounds = info["total_bounds"]
    fast = bool(info["capabilities"]["fast_spatial_filter"])
    return VectorLayer(
        path,
        chosen,
        info["crs"],
        tuple(map(str, info["fields"])),
        int(info["features"]),
        None if bounds is None or not np.isfinite(bounds).all() else tuple(map(float, bounds)),
        fast and info["features"] > HELD_FEATURES,
        stamp,
        _flat(info["geometry_type"]),
    )


def _flat(kind: str | None) -> str:
    """`lines` or `points` for the declared geometry of such a layer: LineString, 2.5D MultiPoint, Point Z, ..."""
    kinds = {"LineString": "lines", "Point": "points"}
    return next((plural for name, plural in kinds.items() if name in (kind or "")), "")


def _chosen_layer(path: Location, layers: list[str], name: str | None) -> str:
    if name is not None and name not in layers:
        raise RasterError(f"{path} has no layer {name!r} with geometries; it has {', '.join(layers) or 'none'}")
    if name is None and len(layers) != 1:
        what = f"{len(layers)} layers ({', '.join(layers)}); name one with --label-layer" if layers else "no layer"
        raise RasterError(f"{path} has {what}")
    return name or layers[0]


def _from_ogr(layer: VectorLayer, columns: tuple[str, ...], **filters: Any) -> Features:
    """Features with their geometries as WKB, as OGR gives them."""
    from pyogrio.raw import read

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd rings and dates: geometries are looked at by us
            facts, ids, shapes, data = read(
                gdal_name(layer.path),
                layer=layer.name,
                columns=list(columns),
                return_fids=True,
                force_2d=True,
                **filters,
            )
    except (ValueError, RuntimeError) as error:
        raise RasterError(f"{layer.path} cannot be read: {' '.join(str(error).split())}") from None
    # Releases of pyogrio differ in whether the order is the file's or ours; each says which it took.
    return Features(ids, shapes, dict(zip(map(str, facts["fields"]), data, strict=True)))


@lru_cache(maxsize=4)
def _held(layer: VectorLayer, columns: tuple[str, ...]) -> tuple[Features, NDArray[np.float64]]:
    """All features of a layer, geometries as WKB, and their bounds (N, 4)."""
    features = _from_parquet(layer, columns) if _is_parquet(layer.path) else _from_ogr(layer, columns)
    bounds = np.full((len(features.ids), 4), np.nan)
    for start in range(0, len(bounds), _CHUNK):
        part = slice(start, start + _CHUNK)
        bounds[part] = shapely.bounds(parsed(features.shapes[part])).reshape(-1, 4)
    return features, bounds


def _is_parquet(path: Location) -> bool:
    return str(path).lower().endswith((".parquet", ".geoparquet"))


def _parquet_layer(path: Location, stamp: tuple[int, int], name: str | None) -> VectorLayer:
    """A GeoParquet file. Its ids are the numbers of its rows."""
    if name is not None:
        raise RasterError(f"{path} is GeoParquet, which has one layer; leave --label-layer out")
    if is_remote(path):
        raise RasterError(f"{path} is GeoParquet, which is read from files only; download it")
    found = geoparquet.describe(Path(path))
    return VectorLayer(path, found.geometry, found.crs, found.fields, found.rows, found.bounds, False, stamp)


def _from_parquet(layer: VectorLayer, columns: tuple[str, ...]) -> Features:
    assert layer.name is not None
    shapes, values = geoparquet.read(Path(layer.path), layer.name, columns)
    return Features(np.arange(len(shapes)), shapes, values)


def meets(bounds: NDArray[np.float64], box: Box) -> NDArray[np.bool_]:
    """Which bounds (N, 4) share a point with a box; those that are NaN do not."""
    left, bottom, right, top = box
    with np.errstate(invalid="ignore"):
        return (bounds[:, 0] <= right) & (bounds[:, 2] >= left) & (bounds[:, 1] <= top) & (bounds[:, 3] >= bottom)


def parsed(wkb: NDArray[np.object_]) -> NDArray[np.object_]:
    """Geometries in the plane, None for none and for what is no geometry (a ring of two points, a point nowhere)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = shapely.from_wkb(wkb, on_invalid="ignore")
    result: NDArray[np.object_] = shapely.force_2d(shapes)
    points, owners = shapely.get_coordinates(result, return_index=True)
    # Beyond that, products of coordinates overflow in GEOS; written so that NaN is refused too.
    nowhere = ~(np.abs(points) <= FARTHEST).all(1)
    if nowhere.any():
        result[np.unique(owners[nowhere])] = None
    return result
