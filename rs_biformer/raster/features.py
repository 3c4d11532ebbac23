"""Polygons with attributes -> a vector file, batch by batch: GeoPackage, FlatGeobuf, GeoJSON by GDAL, GeoParquet.

Batches travel as Arrow record batches, so that no format needs more than one of them in memory; GDAL's vector drivers
come with pyogrio, since rasterio is built without them.
"""

import json
import logging
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.files import publish, scratch_folder
from rs_biformer.raster.gdal import raster_errors
from rs_biformer.raster.geopackage import is_written_by_us, layers, put_layer, put_style
from rs_biformer.raster.legend import Legend
from rs_biformer.raster.paths import PathLike
from rs_biformer.raster.style import write_unless_edited

_LOG = logging.getLogger(__name__)

_DRIVERS = {".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".geojson": "GeoJSON", ".json": "GeoJSON"}
_FORMATS = (*_DRIVERS, ".parquet")
GPKG_VERSION = "1.3"
"""Of 1.4, which GDAL writes by itself, the programs that people have warn."""
_GROUP_BYTES = 32 * 2**20
"""Of a row group of GeoParquet: a reader skips whole groups by their box."""
_LAYER = re.compile(r"(?!gpkg|sqlite_|rtree_|layer_styles$)\w[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{0,199}", re.IGNORECASE)
"""What a layer of a GeoPackage may be called: what GDAL and SQLite take, and QGIS shows."""
_ROOM = 2**20  # bytes without which nothing can be written
_BATCH = 2000
"""Polygons read back at a time; GDAL prepares several such batches ahead."""


@dataclass(frozen=True)
class ClassPolygons:
    """Polygons in the map's CRS, counterclockwise, with their class (index and name), area and mean confidence."""

    outlines: NDArray[np.object_]
    classes: NDArray[np.uint8]
    names: list[str]
    areas: NDArray[np.float64]
    confidences: NDArray[np.float64] | None

    def record_batch(self) -> pa.RecordBatch:
        """The attributes, with the outlines as well-known binary in the column `geometry`."""
        columns = {
            "class_index": pa.array(self.classes, pa.int32()),
            "class_name": pa.array(self.names, pa.string()),
            "area": pa.array(self.areas, pa.float64()),
        }
        if self.confidences is not None:
            columns["confidence"] = pa.array(self.confidences, pa.float64(), from_pandas=True)  # NaN is null
        columns["geometry"] = pa.array(shapely.to_wkb(self.outlines), pa.binary())
        return pa.RecordBatch.from_pydict(columns, schema=_schema(self.confidences is not None))


def _schema(with_confidence: bool) -> pa.Schema:
    fields = [("class_index", pa.int32()), ("class_name", pa.string()), ("area", pa.float64())]
    if with_confidence:
        fields.append(("confidence", pa.float64()))
    geometry = pa.field("geometry", pa.binary(), metadata={"ARROW:extension:name": "geoarrow.wkb"})
    return pa.schema([*(pa.field(*field) for field in fields), geometry])


def require_format(out: Path, crs: CRS | None, path: PathLike) -> None:
    """Raise unless a file of this name can hold polygons of the map at `path`.

    ConfigError, or RasterError for want of a CRS, or where a GeoPackage of that name is none.
    """
    suffix = out.suffix.lower()
    if suffix not in _FORMATS:
        raise ConfigError(f"{out} is to hold polygons; its name must end in {', '.join(_FORMATS)}")
    if crs is None and _DRIVERS.get(suffix) == "GeoJSON":
        raise RasterError(f"{path} has no CRS and GeoJSON is longitude and latitude; write a .gpkg instead")


def layer_name(out: Path) -> str:
    """What the layer of a file is called where nobody says: as the file, without what no layer may begin with.

    >>> layer_name(Path("a/roofs.gpkg")), layer_name(Path("-#gpkg_1.gpkg"))
    ('roofs', '_gpkg_1')
    """
    name = re.sub(r"^[^\w]+", "", out.stem)[:200] or "polygons"
    return name if _LAYER.fullmatch(name) else f"_{name[:199]}"


def _not_written(out: Path, folder: Path, error: Exception) -> RasterError:
    """What to say where GDAL or Arrow could not write; an interruption, which both take for an error, goes on."""
    text = str(error).replace(f"{folder}/", "")
    if re.search("KeyboardInterrupt|Terminated", text.replace(str(out), "").replace(out.name, "")):
        raise KeyboardInterrupt from None
    text = re.sub(r"sqlite3_exec\(.*\) failed", "SQLite failed", text, flags=re.DOTALL)  # tells pages of SQL
    full = shutil.disk_usage(folder).free < _ROOM or re.search("disk|space left|polygons are in the file", text)
    advice = "make room or choose another folder" if full else "choose another name or folder"
    return RasterError(f"{out} cannot be written: {text}; {advice}")


def write_features(
    out: Path,
    batches: Iterable[ClassPolygons],
    crs: CRS | None,
    *,
    with_confidence: bool,
    layer: str,
    legend: Legend | None = None,
) -> int:
    """Write polygons in the format that the file's name asks for and return their number.

    GeoJSON is longitude and latitude (RFC 7946), the others keep the CRS. The file appears complete, with its spatial
    index, or not at all; of a GeoPackage that exists only the layer of this name is added or replaced. legend: how GIS
    programs are to draw the classes: a style in the GeoPackage, or a .qml beside a FlatGeobuf.

    Raises RasterError when the file cannot be written, a full disk among the reasons, and whatever `batches` raises.
    """
    source = _Batches(batches)
    if out.suffix.lower() == ".gpkg":
        advice = "choose another name with --layer, or another file"
        require_own_layer(out, layer, _schema(False).names[:-1], "polygons of a map", advice)
    with raster_errors(out, "written"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(out) as folder:
            partial = folder / out.name
            reader = pa.RecordBatchReader.from_batches(_schema(with_confidence), source.record_batches())
            try:
                if out.suffix.lower() == ".parquet":
                    _write_geoparquet(partial, reader, crs)
                else:
                    _write_by_gdal(partial, reader, crs, layer)
                    _verify(partial, source.count)
            except Exception as error:
                source.reraise()
                if not isinstance(error, (RuntimeError, OSError, pa.ArrowException)):  # what GDAL and Arrow raise
                    raise
                raise _not_written(out, folder, error) from error
            qml = legend.qml if legend is not None and legend.names else None
            if not hand_over(partial, out, layer, qml):
                _LOG.warning("the style of %s was edited and is kept", out)
    return source.count


def write_layer(
    out: Path,
    outlines: NDArray[np.object_],
    columns: Mapping[str, NDArray[Any]],
    crs: CRS | None,
    *,
    layer: str,
    what: str,
    advice: str,
    qml: str | None = None,
    known_by: Iterable[str] | None = None,
) -> None:
    """Write polygons with attributes as a layer of a GeoPackage, which appears complete, with its index, or not at all.

    outlines: (multi)polygons; None for a row without a place. columns: equally long, by name. qml: the layer's style in
    QGIS. what, advice: what a layer of ours holds, and what to do about another of its name, for the message; known_by:
    the columns that tell one of ours, all of them unless given. Of a GeoPackage that exists only the layer of this name
    is added or replaced.

    Raises RasterError when the file cannot be written.
    """
    from pyogrio.raw import write  # a second build of GDAL: loaded when it is needed

    require_own_layer(out, layer, columns if known_by is None else known_by, what, advice)
    in_parts = bool((shapely.get_type_id(outlines) == shapely.GeometryType.MULTIPOLYGON).any())
    with raster_errors(out, "written"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(out) as folder:
            partial = folder / out.name
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="'crs' was not provided")  # no CRS is no fault here
                try:
                    write(
                        partial,
                        shapely.to_wkb(outlines),
                        list(columns.values()),
                        list(columns),
                        layer=layer,
                        driver="GPKG",
                        geometry_type="MultiPolygon" if in_parts else "Polygon",
                        promote_to_multi=in_parts,
                        dataset_options={"VERSION": GPKG_VERSION},
                        crs=None if crs is None else crs.to_wkt(version="WKT2_2019"),
                    )
                    _verify(partial, len(outlines))
                except (RuntimeError, OSError, pa.ArrowException) as error:  # what GDAL and Arrow raise
                    raise _not_written(out, folder, error) from error
            if not hand_over(partial, out, layer, qml):
                _LOG.warning("the style of %s was edited and is kept", out)


def hand_over(partial: Path, out: Path, layer: str, qml: str | None) -> bool:
    """Give the finished file its name and its style, or its layer to the GeoPackage that has that name.

    Whether the style was taken, too.
    """
    suffix = out.suffix.lower()
    if suffix == ".gpkg" and _is_there(out):
        return put_layer(partial, out, layer, qml)
    if suffix == ".gpkg" and qml is not None:
        put_style(partial, layer, qml, called=out)
    publish(partial, out)
    return suffix != ".fgb" or qml is None or write_unless_edited(out.with_suffix(".qml"), qml)


def _is_there(out: Path) -> bool:
    return out.is_file() and out.stat().st_size > 0


def require_own_layer(out: Path, layer: str, columns: Iterable[str], what: str, advice: str) -> None:
    """Raise RasterError where a GeoPackage cannot take the layer, before the work is done.

    columns: that a layer of ours has; what: it holds; advice: for the message. Raises ConfigError where the name is
    none for a layer of any GeoPackage.
    """
    if out.suffix.lower() == ".gpkg" and not _LAYER.fullmatch(layer):
        raise ConfigError(
            f"a layer is to be called {layer!r}; in a GeoPackage a name begins with a letter, a digit or _, has no "
            "control character and at most 200 characters, and does not begin with gpkg, sqlite_ or rtree_, nor is it "
            "layer_styles: choose another --layer"
        )
    if _is_there(out) and layer in layers(out) and not is_written_by_us(out, layer, columns):
        raise RasterError(f"{out} has a layer {layer} that holds no {what}; {advice}")


class _Batches:
    """Record batches, with their number of rows and the exception that ended them, which Arrow's C stream loses."""

    def __init__(self, batches: Iterable[ClassPolygons]) -> None:
        self._batches = batches
        self._error: BaseException | None = None
        self.count = 0

    def record_batches(self) -> Iterator[pa.RecordBatch]:
        try:
            for features in self._batches:
                self.count += len(features.outlines)
                yield features.record_batch()
        except BaseException as error:
            self._error = error
            raise

    def reraise(self) -> None:
        if self._error is not None:
            raise self._error


def _write_by_gdal(path: Path, reader: pa.RecordBatchReader, crs: CRS | None, layer: str) -> None:
    from pyogrio.raw import write_arrow  # a second build of GDAL: loaded when it is needed

    driver = _DRIVERS[path.suffix.lower()]
    options = {"RFC7946": "YES", "COORDINATE_PRECISION": "8"} if driver == "GeoJSON" else {}  # 8 decimals: a millimetre
    whole = {"VERSION": GPKG_VERSION} if driver == "GPKG" else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")  # no CRS is no fault here
        write_arrow(
            reader,
            path,
            layer=layer,
            driver=driver,
            geometry_name="geometry",
            geometry_type="Polygon",
            crs=None if crs is None else crs.to_wkt(version="WKT2_2019"),
            layer_options=options,
            dataset_options=whole,
        )


def _verify(path: Path, count: int) -> None:
    """Read everything back: a disk that is full when GDAL closes a file costs its tail or its index, unreported."""
    from pyogrio import read_info
    from pyogrio.raw import open_arrow

    with open_arrow(path, use_pyarrow=True, batch_size=_BATCH) as (_, reader):
        found = sum(batch.num_rows for batch in reader)
    indexed = _DRIVERS[path.suffix.lower()] == "GeoJSON" or read_info(path)["capabilities"]["fast_spatial_filter"]
    if found != count or (count and not indexed):
        raise OSError(f"{found} of {count} polygons are in the file, {'with' if indexed else 'without'} their index")


def _write_geoparquet(path: Path, reader: pa.RecordBatchReader, crs: CRS | None) -> None:
    """GeoParquet 1.1: a box per row, which lets a reader skip row groups, and the CRS as PROJJSON."""
    box = pa.struct([(name, pa.float64()) for name in ("xmin", "ymin", "xmax", "ymax")])
    schema = reader.schema.append(pa.field("bbox", box)).remove_metadata()
    extent = np.array([np.inf, np.inf, -np.inf, -np.inf])
    # Beside a stored Arrow schema, metadata that is added at the end would not show in the schema that readers see.
    with pq.ParquetWriter(path, schema, compression="zstd", store_schema=False) as writer:
        for table in _grouped(reader):
            bounds = shapely.bounds(shapely.from_wkb(np.asarray(table["geometry"], object)))
            extent[:2] = np.minimum(extent[:2], bounds[:, :2].min(axis=0))
            extent[2:] = np.maximum(extent[2:], bounds[:, 2:].max(axis=0))
            boxes = pa.StructArray.from_arrays(list(bounds.T), fields=list(box))
            writer.write_table(pa.Table.from_arrays([*table.columns, boxes], schema=schema))
        writer.add_key_value_metadata({"geo": json.dumps(_geo_metadata(crs, extent))})


def _grouped(reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
    group: list[pa.RecordBatch] = []
    for batch in reader:
        group.append(batch)
        if sum(part.nbytes for part in group) >= _GROUP_BYTES:
            yield pa.Table.from_batches(group)
            group = []
    if sum(map(len, group)):
        yield pa.Table.from_batches(group)


def _geo_metadata(crs: CRS | None, extent: NDArray[np.float64]) -> dict[str, Any]:
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": None if crs is None else crs.to_dict(projjson=True),
        "orientation": "counterclockwise",
        "edges": "planar",
        "covering": {"bbox": {name: ["bbox", name] for name in ("xmin", "ymin", "xmax", "ymax")}},
    }
    if np.isfinite(extent).all():
        column["bbox"] = extent.tolist()
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
