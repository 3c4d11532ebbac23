"""GeoParquet (1.1) as a layer of polygons, read by pyarrow: GDAL is seldom built to read it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyproj
from numpy.typing import NDArray

from rs_biformer.documents import Listed, Part, build, parse_json
from rs_biformer.errors import RasterError


class _Column(Part):
    encoding: str
    crs: Any = "OGC:CRS84"
    bbox: Listed[float | int] = ()


class _Geo(Part):
    primary_column: str
    columns: dict[str, Any]


class Described(NamedTuple):
    """The column of the geometries, its CRS as WKT or None, all other columns, rows, bounds where the file tells."""

    geometry: str
    crs: str | None
    fields: tuple[str, ...]
    rows: int
    bounds: tuple[float, ...] | None


def describe(path: Path) -> Described:
    """What a GeoParquet file says of itself. Raises RasterError where it is none or contradicts itself."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema, count = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RasterError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    metadata = schema.metadata or {}
    if b"geo" not in metadata:
        raise RasterError(f"{path} is no GeoParquet (it has no geo metadata); write it with geopandas, GDAL or QGIS")
    where = f"{path}, its geo metadata"
    geo: _Geo = build(_Geo, parse_json(metadata[b"geo"], where), where, RasterError)
    name = geo.primary_column
    if name not in geo.columns or name not in schema.names:
        raise RasterError(f"{where}: there is no column {name!r}, which primary_column names; write the file anew")
    column: _Column = build(_Column, geo.columns[name], where, RasterError)
    if column.encoding != "WKB" or not _is_binary(schema.field(name).type):
        what = column.encoding if column.encoding != "WKB" else schema.field(name).type
        raise RasterError(f"{path} has geometries in {what}; write them as WKB")
    bounds = column.bbox if len(column.bbox) == 4 and np.isfinite(column.bbox).all() else None
    return Described(name, _wkt(column.crs, where), tuple(one for one in schema.names if one != name), count, bounds)


def read(path: Path, geometry: str, columns: Sequence[str]) -> tuple[NDArray[np.object_], dict[str, NDArray[Any]]]:
    """Geometries as WKB (N,), None where there is none, and the values of columns. Raises RasterError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=[geometry, *columns])
        shapes = _objects(table[geometry].to_pylist())
        return shapes, {name: _objects(table[name].to_pylist()) for name in columns}
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        raise RasterError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def _objects(values: list[Any]) -> NDArray[np.object_]:
    column = np.empty(len(values), object)
    column[:] = values
    return column


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _wkt(crs: Any, where: str) -> str | None:
    if crs is None:
        return None
    try:
        return pyproj.CRS.from_user_input(crs).to_wkt()
    except (pyproj.exceptions.CRSError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise RasterError(f"{where}: the CRS is not understood ({said}); say what it is with --label-crs") from None
