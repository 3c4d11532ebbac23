"""A class map -> polygons, strip by strip, as GeoPackage or GeoJSON.

A strip of rows is polygonised by GDAL; polygons that reach its last row stay open and are joined to those below them
when no later strip can add to them. So memory holds one strip and the polygons that cross its edge, and the result
covers the same pixels with the same corners as polygonising the whole map at once.

Both formats are written with the standard library and shapely, because rasterio writes no vectors. GeoPackage keeps the
map's CRS (OGC 12-128r18, without the optional spatial index); GeoJSON is longitude and latitude (RFC 7946).
"""

import json
import os
import sqlite3
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from math import cos, pi, radians
from pathlib import Path

import numpy as np
import rasterio.features
import shapely
import shapely.affinity
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as reproject
from shapely.geometry.polygon import orient

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.gdal import gdal_env, open_raster, raster_errors
from rs_biformer.raster.source import Source, is_georeferenced

_EARTH_RADIUS = 6_371_008.8  # mean, metres
_WGS84 = 4326


@dataclass(frozen=True)
class ClassPolygon:
    """A connected patch of one class: its index, its name, its area and its outline in the map's CRS."""

    index: int
    name: str
    area: float
    outline: shapely.Polygon


def vectorize(
    map_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    min_area: float = 0.0,
    rows: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the patches of a class map as polygons and return their number.

    Pixels that share an edge and a class are one patch; masked pixels (nodata) belong to none. Each polygon has the
    attributes `class_index`, `class_name` (from the map's CLASS_NAMES, else "class N") and `area`: in square metres
    for a map with a CRS, otherwise in the units of its transform, or in pixels without one.

    out: ends in .gpkg or .geojson; appears complete or not at all. min_area: smaller patches are left out, in the
    units of `area`; the gaps stay. rows: height of a strip. progress: called with rows done and all rows.

    Raises RasterError when the map cannot be read or is no class map, when a map without a CRS is to become GeoJSON,
    or the disk is full; ConfigError when an option cannot be meant.
    """
    out = Path(out)
    writers = {".gpkg": _write_geopackage, ".geojson": _write_geojson, ".json": _write_geojson}
    if out.suffix.lower() not in writers:
        raise ConfigError(f"{out} is to hold polygons; its name must end in .gpkg or .geojson")
    if not min_area >= 0 or rows < 1:
        raise ConfigError(f"min_area is {min_area} and rows is {rows}; they must be >= 0 and >= 1")
    source = Source(map_path)
    if source.count != 1 or source.dtypes[0] != "uint8":
        raise RasterError(
            f"{source.path} has {source.count} band(s) of {source.dtypes[0]}; a class map is one of uint8"
        )
    if out.suffix.lower() != ".gpkg" and source.crs is None:
        raise RasterError(f"{source.path} has no CRS and GeoJSON is longitude and latitude; write a .gpkg instead")
    polygons = _class_polygons(source, rows, min_area, progress)
    with closing(source), raster_errors(out, "written"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.partial-", dir=out.parent) as folder:
            partial = Path(folder) / "polygons"
            try:
                number = writers[out.suffix.lower()](partial, polygons, source.crs, out.stem)
            except sqlite3.Error as error:
                raise RasterError(f"{out} cannot be written: {error}; make room or choose another folder") from error
            partial.replace(out)
    return number


def _class_polygons(
    source: Source, rows: int, min_area: float, progress: Callable[[int, int], None] | None
) -> Iterator[ClassPolygon]:
    names = _class_names(source.path)

    def strips() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
        for row in range(0, source.height, rows):
            window = Window(row, 0, min(rows, source.height - row), source.width)
            pixels = source.read([1], window)
            yield pixels[0], source.valid([1], pixels, window)
            if progress is not None:
                progress(window.row_stop, source.height)

    matrix = tuple(source.transform)[:6]
    for index, patch in patches(strips()):
        outline = shapely.affinity.affine_transform(patch, (*matrix[:2], *matrix[3:5], matrix[2], matrix[5]))
        area = outline.area * _square_metres(source.crs, source.transform, outline)
        if area >= min_area:
            name = names[index] if index < len(names) else f"class {index}"
            yield ClassPolygon(index, name, area, outline)


def _class_names(path: Path) -> list[str]:
    with gdal_env(), raster_errors(path, "opened"), open_raster(path) as file:
        text = file.tags().get("CLASS_NAMES", "[]")
    try:
        names = json.loads(text)
    except ValueError:
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _square_metres(crs: CRS | None, transform: Affine, outline: shapely.Polygon) -> float:
    """Square metres per square unit of the CRS, at the polygon for degrees; 1 where nothing is known."""
    if crs is None or not is_georeferenced(transform):
        return 1.0
    if crs.is_geographic:
        west, south, east, north = outline.bounds
        return (_EARTH_RADIUS * pi / 180) ** 2 * max(0.0, cos(radians((south + north) / 2)))
    return crs.linear_units_factor[1] ** 2 if crs.is_projected else 1.0


def patches(
    strips: Iterable[tuple[NDArray[np.uint8], NDArray[np.bool_]]],
) -> Iterator[tuple[int, shapely.Polygon]]:
    """Class index and outline, in pixels (x = column, y = row), of each patch of a map given strip by strip.

    strips: class index (h, w) and valid pixels (h, w), from the top down, all of one width.
    """
    top, count = 0, 0
    above: NDArray[np.uint8] | None = None  # the last row of the strip before: class index ...
    above_numbers = np.zeros(0, np.int64)  # ... and the number of the open patch that each pixel belongs to, or -1
    pieces: dict[int, list[shapely.Polygon]] = {}  # of each open patch, by its number
    classes: dict[int, int] = {}
    for values, valid in strips:
        bottom = top + len(values)
        first, last = np.full((2, values.shape[1]), -1, np.int64)
        for index, piece in _polygonise(values, valid, top):
            pieces[count], classes[count] = [piece], index
            _mark(first, piece, top, count)
            _mark(last, piece, bottom, count)
            count += 1
        if above is not None:
            meet = (above_numbers >= 0) & (first >= 0) & (above == values[0])
            merged = _merge(pieces, np.unique(np.stack([above_numbers[meet], first[meet]]), axis=1).T.tolist())
            numbers, place = np.unique(last, return_inverse=True)
            last = np.array([merged.get(number, number) for number in numbers.tolist()])[place]
        still_open = set(last.tolist())
        for number in [number for number in pieces if number not in still_open]:
            yield classes.pop(number), _dissolve(pieces.pop(number))
        above, above_numbers, top = values[-1], last, bottom
    for number, parts in pieces.items():
        yield classes[number], _dissolve(parts)


def _polygonise(values: NDArray[np.uint8], valid: NDArray[np.bool_], top: int) -> Iterator[tuple[int, shapely.Polygon]]:
    shift = Affine(1, 0, 0, 0, 1, top)
    for shape, value in rasterio.features.shapes(values, mask=valid, connectivity=4, transform=shift):
        outline, *holes = shape["coordinates"]
        yield int(value), shapely.Polygon(outline, holes)


def _mark(line: NDArray[np.int64], piece: shapely.Polygon, y: int, number: int) -> None:
    """Write a piece's number over the columns in which its outline runs along the row boundary at y."""
    _, low, _, high = piece.bounds
    if y not in (low, high):
        return
    x, height = shapely.get_coordinates(piece.exterior).T
    for start in np.flatnonzero((height[:-1] == y) & (height[1:] == y)):
        line[int(min(x[start : start + 2])) : int(max(x[start : start + 2]))] = number


def _merge(pieces: dict[int, list[shapely.Polygon]], pairs: list[list[int]]) -> dict[int, int]:
    """Merge the patches of each pair, in place; the number under which each merged patch is now found."""
    merged: dict[int, int] = {}

    def find(number: int) -> int:
        while number in merged:
            number = merged[number]
        return number

    for pair in pairs:
        keep, drop = sorted(map(find, pair), key=lambda number: (-len(pieces[number]), number))
        if keep != drop:
            pieces[keep] += pieces.pop(drop)
            merged[drop] = keep
    return {number: find(number) for number in merged}


def _dissolve(parts: list[shapely.Polygon]) -> shapely.Polygon:
    """One polygon from pieces that share edges; coordinates are whole numbers, so the union is exact."""
    if len(parts) == 1:
        return parts[0]
    whole = shapely.union_all(parts)
    return shapely.Polygon(_corners(whole.exterior), [_corners(hole) for hole in whole.interiors])


def _corners(ring: shapely.LinearRing) -> NDArray[np.float64]:
    """The corners of a ring of horizontal and vertical edges, without the points that a seam left on an edge."""
    points = shapely.get_coordinates(ring)[:-1]
    straight = (points == np.roll(points, 1, 0)) & (points == np.roll(points, -1, 0))
    return points[~straight.any(axis=1)]


def _write_geojson(path: Path, polygons: Iterable[ClassPolygon], crs: CRS | None, layer: str) -> int:
    """A FeatureCollection in longitude and latitude, a feature per line; outer rings run counterclockwise."""
    number = 0
    with path.open("w", encoding="utf-8") as file:
        file.write(f'{{"type": "FeatureCollection", "name": {json.dumps(layer)}, "features": [')
        for polygon in polygons:
            outline = orient(_to_lonlat(polygon.outline, crs))
            feature = {
                "type": "Feature",
                "properties": {
                    "class_index": polygon.index,
                    "class_name": polygon.name,
                    "area": round(polygon.area, 6),
                },
                "geometry": shapely.geometry.mapping(outline),
            }
            file.write(("," if number else "") + "\n" + json.dumps(feature))
            number += 1
        file.write("\n]}\n")
    return number


def _to_lonlat(outline: shapely.Polygon, crs: CRS | None) -> shapely.Polygon:
    def convert(points: NDArray[np.float64]) -> NDArray[np.float64]:
        with gdal_env():
            lonlat = np.stack(reproject(crs, CRS.from_epsg(_WGS84), points[:, 0], points[:, 1]), axis=1)
        if not np.isfinite(lonlat).all():
            raise RasterError(f"{crs} has no longitude and latitude at {points[0].tolist()}; write a .gpkg instead")
        return np.round(lonlat, 8)  # a millimetre

    return shapely.transform(outline, convert)


def _write_geopackage(path: Path, polygons: Iterable[ClassPolygon], crs: CRS | None, layer: str) -> int:
    """A GeoPackage 1.3 with one table named `layer`, in the map's CRS (-1, undefined, without one)."""
    with closing(sqlite3.connect(path, isolation_level=None)) as base:
        base.execute("PRAGMA journal_mode = OFF")  # the file is thrown away if anything fails
        base.execute("PRAGMA synchronous = OFF")
        base.execute(f"PRAGMA application_id = {int.from_bytes(b'GPKG')}")
        base.execute("PRAGMA user_version = 10300")
        base.executescript(_GEOPACKAGE_TABLES)
        base.execute("BEGIN")
        srs = _add_crs(base, crs)
        table = '"' + layer.replace('"', '""') + '"'
        base.execute(
            f"CREATE TABLE {table} (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, geom POLYGON, "
            "class_index INTEGER, class_name TEXT, area REAL)"
        )
        number, box = 0, np.array([np.inf, np.inf, -np.inf, -np.inf])
        for polygon in polygons:
            bounds = polygon.outline.bounds
            base.execute(
                f"INSERT INTO {table} (geom, class_index, class_name, area) VALUES (?, ?, ?, ?)",
                (_geopackage_blob(polygon.outline, srs), polygon.index, polygon.name, polygon.area),
            )
            box = np.concatenate([np.minimum(box[:2], bounds[:2]), np.maximum(box[2:], bounds[2:])])
            number += 1
        extent = box.tolist() if number else [None] * 4
        base.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier, min_x, min_y, max_x, max_y, srs_id) "
            "VALUES (?, 'features', ?, ?, ?, ?, ?, ?)",
            (layer, layer, *extent, srs),
        )
        base.execute("INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', 'POLYGON', ?, 0, 0)", (layer, srs))
        base.execute("COMMIT")
    return number


_GEOPACKAGE_TABLES = """
CREATE TABLE gpkg_spatial_ref_sys (
    srs_name TEXT NOT NULL, srs_id INTEGER NOT NULL PRIMARY KEY, organization TEXT NOT NULL,
    organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, description TEXT);
CREATE TABLE gpkg_contents (
    table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT UNIQUE, description TEXT DEFAULT '',
    last_change DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER,
    CONSTRAINT fk_gc_r_srs_id FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys (srs_id));
CREATE TABLE gpkg_geometry_columns (
    table_name TEXT NOT NULL, column_name TEXT NOT NULL, geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL,
    z TINYINT NOT NULL, m TINYINT NOT NULL,
    CONSTRAINT pk_geom_cols PRIMARY KEY (table_name, column_name),
    CONSTRAINT uk_gc_table_name UNIQUE (table_name),
    CONSTRAINT fk_gc_tn FOREIGN KEY (table_name) REFERENCES gpkg_contents (table_name),
    CONSTRAINT fk_gc_srs FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys (srs_id));
"""

_UNDEFINED_CARTESIAN = -1
_FIRST_OWN_SRS = 100_000  # for a CRS without an EPSG code


def _add_crs(base: sqlite3.Connection, crs: CRS | None) -> int:
    """Register the three systems that every GeoPackage lists, and the map's; the id of the map's."""
    rows = [
        ("Undefined Cartesian SRS", -1, "NONE", -1, "undefined", None),
        ("Undefined geographic SRS", 0, "NONE", 0, "undefined", None),
        ("WGS 84", _WGS84, "EPSG", _WGS84, CRS.from_epsg(_WGS84).to_wkt(), None),
    ]
    srs = _UNDEFINED_CARTESIAN
    if crs is not None:
        code = crs.to_epsg()
        srs = code or _FIRST_OWN_SRS
        if srs != _WGS84:
            name = crs.to_wkt().split('"')[1]
            rows.append((name, srs, "EPSG" if code else "NONE", srs, crs.to_wkt(), None))
    base.executemany("INSERT INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, ?)", rows)
    return srs


def _geopackage_blob(outline: shapely.Polygon, srs: int) -> bytes:
    """The GeoPackage form of a geometry: a header with its box, then well-known binary, both little-endian."""
    west, south, east, north = outline.bounds
    little_endian_with_box = 0b0000_0011
    header = struct.pack("<2sBBi4d", b"GP", 0, little_endian_with_box, srs, west, east, south, north)
    return header + shapely.to_wkb(outline, byte_order=1)
