"""A class map -> how much of each class there is: all in all, zone by zone, or what changed since another map."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rasterio.crs import CRS

from rs_biformer.errors import ConfigError
from rs_biformer.evaluation.change import Change, Pair, count_change, write_change
from rs_biformer.evaluation.zones import ZoneAreas, area_unit, class_areas, zone_areas
from rs_biformer.files import replacing, write_text
from rs_biformer.raster.features import layer_name, require_own_layer, write_layer
from rs_biformer.raster.georeference import Placing
from rs_biformer.raster.legend import Legend
from rs_biformer.raster.metadata import read_class_names
from rs_biformer.raster.overwriting import refuse_overwriting
from rs_biformer.raster.paths import PathLike
from rs_biformer.raster.polygons import PolygonOptions, Polygons
from rs_biformer.raster.source import Source

TABLES = (".csv", ".parquet")
ZONE_TABLES = (*TABLES, ".gpkg")
"""What tables of classes and of zones are written as; zones of a GeoPackage keep their polygons."""

NO_DATA = "no data"

_KNOWN_BY = ("largest",)
_WHAT, _ADVICE = "summary of zones", "choose another name with --layer, or another file"
"""How a layer of zones that is ours is known, and what is said of another of its name."""

Progress = Callable[[int, int], None]
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Output:
    """Where a table goes, and a map of changes. layer: that of a GeoPackage, the file's name unless given."""

    table: Path | None = None
    map: Path | None = None
    layer: str | None = None

    def check(self, suffixes: tuple[str, ...], inputs: list[PathLike]) -> None:
        """Raise ConfigError where a file cannot be meant, before any work."""
        if self.table is not None and self.table.suffix.lower() not in suffixes:
            raise ConfigError(f"{self.table} is to be a table; its name must end in {', '.join(suffixes)}")
        if self.map is not None and self.map.suffix.lower() not in (".tif", ".tiff"):
            raise ConfigError(f"{self.map} is to be a GeoTIFF; its name must end in .tif or .tiff")
        refuse_overwriting(inputs, [path for path in (self.table, self.map) if path is not None])


def summarise_map(
    path: PathLike, output: Output, *, allow_huge: bool = False, progress: Progress | None = None
) -> Columns:
    """The area of each class of a class map as a table: `class`, the area, and its share of what has a class.

    Raises RasterError when the map cannot be read, ConfigError for a name that cannot be meant.
    """
    output.check(TABLES, [path])
    names, areas, unit = class_areas(path, progress, allow_huge=allow_huge)
    total = areas[1:].sum()
    columns: Columns = {
        "class": np.array([NO_DATA, *names], object),
        f"area_{unit}": areas,
        "share": np.append(np.nan, areas[1:] / total if total else np.full(len(names), np.nan)),
    }
    if output.table is not None:
        write_table(output.table, columns)
    return columns


def summarise_zones(
    path: PathLike,
    zones: PathLike,
    output: Output,
    *,
    options: PolygonOptions | None = None,
    confidence: PathLike | None = None,
    fractional: bool = False,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress | None = None,
) -> Columns:
    """Areas and shares of each class in each polygon of a layer, see `evaluation.zones.zone_areas`, as a table.

    Columns: the attributes of the layer; `zone_m2`, all of the zone; `mapped_m2`, what of it has a class; for each
    class its area and its share of what is mapped (null where nothing is); `largest`, the class of the largest share;
    `confidence` if one is given.

    Raises RasterError and ConfigError as `zone_areas` does, and ConfigError where the layer has such a column already.
    """
    output.check(ZONE_TABLES, [path, zones, *([confidence] if confidence is not None else [])])
    layer = output.layer or (layer_name(output.table) if output.table is not None else "zones")
    if output.table is not None and output.table.suffix.lower() == ".gpkg":
        require_own_layer(output.table, layer, _KNOWN_BY, _WHAT, _ADVICE)
    _require_free(path, zones, options, confidence is not None)
    areas = zone_areas(path, zones, options=options, confidence=confidence, fractional=fractional, progress=progress)
    for line in (*areas.notes, *_remarks(areas)):
        say(f"note: {line}")
    columns = _plain(areas.features.columns) | zone_columns(areas)
    if output.table is None:
        return columns
    if output.table.suffix.lower() == ".gpkg":
        crs = None if areas.crs is None else CRS.from_user_input(areas.crs)
        write_layer(
            output.table,
            areas.features.shapes,
            columns,
            crs,
            layer=layer,
            what=_WHAT,
            advice=_ADVICE,
            known_by=_KNOWN_BY,
        )
    else:
        write_table(output.table, columns)
    return columns


def _remarks(areas: ZoneAreas) -> list[str]:
    """What a reader of the table should know."""
    outside = int(((areas.classes.sum(axis=1) + areas.missing) == 0).sum())
    return [f"{outside} of {len(areas.zones)} zones hold no pixel of the map"] if outside else []


def zone_columns(areas: ZoneAreas) -> Columns:
    """The figures of zones as columns of a table."""
    mapped = areas.classes.sum(axis=1)
    shares = np.divide(
        areas.classes, mapped[:, None], out=np.full(areas.classes.shape, np.nan), where=mapped[:, None] > 0
    )
    largest = np.array([*areas.names, None], object)[np.where(mapped > 0, areas.classes.argmax(axis=1), -1)]
    certain = [] if areas.confidence is None else [areas.confidence]
    values = [areas.zones, mapped, *areas.classes.T, *shares.T, largest, *certain]
    return dict(zip(_column_names(areas.names, areas.unit, bool(certain)), values, strict=True))


def _column_names(names: Sequence[str], unit: str, certain: bool) -> list[str]:
    areas, shares = [f"{name}_{unit}" for name in names], [f"{name}_share" for name in names]
    return [f"zone_{unit}", f"mapped_{unit}", *areas, *shares, "largest", *(["confidence"] if certain else [])]


def _require_free(path: PathLike, zones: PathLike, options: PolygonOptions | None, certain: bool) -> None:
    """Raise ConfigError, before the work, where the layer has attributes that are called like columns of the table."""
    with closing(Source(path)) as source:
        unit = area_unit(Placing.of(source.crs, source.transform, source.gcps))
        ours = _column_names(read_class_names(source.path) or (), unit, certain)
        clash = [name for name in Polygons(zones, source, options).layer.fields if name in ours]
    if clash:
        raise ConfigError(f"{zones} has attributes {', '.join(clash)} of its own; rename or drop them")


def summarise_change(
    before: PathLike,
    after: PathLike,
    output: Output,
    *,
    confidence: tuple[PathLike, PathLike] | None = None,
    regrid: bool = False,
    allow_huge: bool = False,
    progress: Progress | None = None,
) -> Columns:
    """What became of each class, see `evaluation.change`: a table of all transitions, and a map if one is asked for.

    Columns: `before`, `after`, the area, its share of all ground that both maps know (null where one has no data), and
    `confidence` if two are given.
    """
    output.check(TABLES, [before, after, *(confidence or ())])
    with Pair(before, after, confidence=confidence, regrid=regrid, allow_huge=allow_huge) as pair:
        change = count_change(pair, progress)
        columns = change_columns(change)
        if output.map is not None:
            write_change(pair, change, output.map, Legend.of(before, pair.names), progress)
    if output.table is not None:
        write_table(output.table, columns)
    return columns


def change_columns(change: Change) -> Columns:
    """The transitions that occur as columns of a table, ground without a class among them."""
    names = np.array([NO_DATA, *change.names], object)
    one, other = np.nonzero(change.areas)
    areas, known = change.areas[one, other], (one > 0) & (other > 0)
    total = change.areas[1:, 1:].sum()
    return {
        "before": names[one],
        "after": names[other],
        f"area_{change.unit}": areas,
        "share": np.where(known, areas / total if total else np.nan, np.nan),
        **({} if change.confidence is None else {"confidence": change.confidence[one, other]}),
    }


def write_table(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write columns as CSV or Parquet, by the file's name; NaN and None are empty cells or null."""
    if path.suffix.lower() == ".parquet":
        arrays = {name: pa.array(values, from_pandas=True) for name, values in columns.items()}
        with replacing(path) as partial:
            pq.write_table(pa.table(arrays), partial)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(
        ["" if cell is None or cell != cell else cell for cell in row]
        for row in zip(*(values.tolist() for values in columns.values()), strict=True)
    )
    write_text(path, text.getvalue())


def _plain(columns: Columns) -> Columns:
    """The attributes that a table holds: no lists, and not the boxes of a GeoParquet file."""
    return {
        name: values
        for name, values in columns.items()
        if not any(isinstance(value, dict | list | np.ndarray) for value in values.tolist())
    }
