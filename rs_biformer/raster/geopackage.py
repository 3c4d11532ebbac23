"""One layer put into a GeoPackage that others may share, in one transaction: the rest of the file is left as it is.

A GeoPackage is an SQLite database. To replace the whole file would take other layers with it, and would leave a program
that has it open, or a write-ahead log beside it, with pages of another file. SQLite itself knows how to change a file
that is in use: either all of the layer is there afterwards, or nothing has changed.

GeoPackage 1.3, https://www.geopackage.org/spec130/; the table `layer_styles` is that of QGIS.
"""

import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from rs_biformer.errors import RasterError

_BUSY = 5.0
"""Seconds to wait for another program to finish its own transaction."""

_STYLES = """CREATE TABLE IF NOT EXISTS layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256),
    f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
    useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30),
    update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))"""

_OURS = "rs_biformer "
"""What the description of a style begins with as long as nobody has changed it; the checksum follows."""


def layers(path: Path) -> list[str]:
    """The tables that a GeoPackage lists. Raises RasterError when the file is none."""
    with _errors(path), closing(_connect(path)) as database:
        return [name for (name,) in database.execute("SELECT table_name FROM gpkg_contents")]


def is_written_by_us(path: Path, layer: str, columns: Iterable[str]) -> bool:
    """Whether a layer of this name, if there is one, has the columns that ours have."""
    with _errors(path), closing(_connect(path)) as database:
        found = {row[1] for row in database.execute(f"PRAGMA table_info({_quoted(layer)})")}
    return not found or set(columns) <= found


def filled_rows(path: Path, layer: str, columns: Iterable[str]) -> int:
    """How many features of a layer have something in one of these columns; 0 where there is no such file or layer."""
    if not path.is_file() or not path.stat().st_size or layer not in layers(path):
        return 0
    with _errors(path), closing(_connect(path)) as database:
        there = {row[1] for row in database.execute(f"PRAGMA table_info({_quoted(layer)})")}
        filled = " OR ".join(f"{_quoted(name)} <> ''" for name in columns if name in there)  # NULL <> '' is not true
        (count,) = database.execute(f"SELECT count(*) FROM {_quoted(layer)} WHERE {filled or 0}").fetchone()
    return int(count)


def put_layer(source: Path, target: Path, layer: str, qml: str | None = None) -> bool:
    """Copy a layer with its index and reference system from one GeoPackage into another that exists.

    A layer of this name is replaced. qml: its style, see `put_style`, which tells what is returned. Raises RasterError
    when the target is no GeoPackage, or another program is writing to it; then nothing has changed.
    """
    with _errors(target), _transaction(target, source) as database:
        _drop(database, layer)
        _copy(database, layer)
        return qml is None or _put_style(database, layer, qml)


def put_style(path: Path, layer: str, qml: str, called: Path | None = None) -> bool:
    """Make a QGIS style the default of a layer; False, and nothing is changed, where somebody has edited it.

    called: what messages call the file. Raises RasterError when the file cannot be written.
    """
    with _errors(called or path), _transaction(path) as database:
        return _put_style(database, layer, qml)


@contextmanager
def _transaction(path: Path, source: Path | None = None) -> Iterator[sqlite3.Connection]:
    """A GeoPackage to be changed as a whole or not at all; `source` is another one to read from."""
    with closing(_connect(path)) as database:
        if source is not None:
            database.execute("ATTACH ? AS source", [str(source)])
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:  # SQLite itself has given up where the disk is full
                database.execute("ROLLBACK")
            raise


def _put_style(database: sqlite3.Connection, layer: str, qml: str) -> bool:
    if not _has(database, "main", "layer_styles"):
        database.execute(_STYLES)
        # GDAL finds tables that are not listed, unless others without a geometry are.
        if database.execute("SELECT 1 FROM gpkg_contents WHERE data_type = 'attributes'").fetchone():
            about = {"table_name": "layer_styles", "data_type": "attributes", "identifier": "layer_styles"}
            _insert(database, "gpkg_contents", about)
    kept = database.execute("SELECT description, styleQML FROM main.layer_styles WHERE f_table_name = ?", [layer])
    if any(description != _OURS + _checksum(text) for description, text in kept.fetchall()):
        return False
    database.execute("DELETE FROM main.layer_styles WHERE f_table_name = ?", [layer])
    found = database.execute("SELECT column_name FROM main.gpkg_geometry_columns WHERE table_name = ?", [layer])
    style = {"f_table_catalog": "", "f_table_schema": "", "f_table_name": layer}
    style |= {"f_geometry_column": found.fetchone()[0], "styleName": layer[:30], "styleQML": qml, "styleSLD": ""}
    _insert(database, "layer_styles", style | {"description": _OURS + _checksum(qml), "owner": "", "useAsDefault": 1})
    return True


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_BUSY, isolation_level=None)
    try:
        if not _has(database, "main", "gpkg_contents"):
            raise RasterError(f"{path} is a database and no GeoPackage; remove it, or choose another name")
    except BaseException:
        database.close()
        raise
    return database


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        busy = "locked" in str(error) or "busy" in str(error)
        advice = "another program is writing to it; end its edits there" if busy else str(error)
        raise RasterError(f"{path} cannot be written: {advice}, or choose another name") from error
    except sqlite3.DatabaseError as error:
        raise RasterError(f"{path} is no GeoPackage ({error}); remove it, or choose another name") from error


def _has(database: sqlite3.Connection, schema: str, table: str) -> bool:
    found = database.execute(f"SELECT 1 FROM {schema}.sqlite_master WHERE name = ?", [table])
    return found.fetchone() is not None


def _drop(database: sqlite3.Connection, layer: str) -> None:
    """Remove a layer with everything that the file says of it, but its style."""
    if _has(database, "main", "gpkg_geometry_columns"):
        columns = database.execute("SELECT column_name FROM main.gpkg_geometry_columns WHERE table_name = ?", [layer])
        for (column,) in columns.fetchall():
            database.execute(f"DROP TABLE IF EXISTS main.{_quoted(f'rtree_{layer}_{column}')}")
    database.execute(f"DROP TABLE IF EXISTS main.{_quoted(layer)}")
    for table in ("gpkg_extensions", "gpkg_ogr_contents", "gpkg_geometry_columns", "gpkg_contents"):
        if _has(database, "main", table):
            database.execute(f"DELETE FROM main.{table} WHERE table_name = ?", [layer])


def _copy(database: sqlite3.Connection, layer: str) -> None:
    column, number = database.execute(
        "SELECT column_name, srs_id FROM source.gpkg_geometry_columns WHERE table_name = ?", [layer]
    ).fetchone()
    system = _reference_system(database, number)
    made = "SELECT sql FROM source.sqlite_master WHERE type = ? AND tbl_name = ? AND sql IS NOT NULL"
    for (sql,) in database.execute(made, ["table", layer]).fetchall():
        database.execute(sql)
    names = [row[1] for row in database.execute(f"PRAGMA source.table_info({_quoted(layer)})")]
    # The header of a geometry repeats the number of its reference system.
    database.create_function("renumbered", 1, lambda blob: blob and _renumbered(blob, system), deterministic=True)
    values = [f"renumbered({_quoted(name)})" if name == column else _quoted(name) for name in names]
    listed = ", ".join(map(_quoted, names))
    table = _quoted(layer)
    database.execute(f"INSERT INTO main.{table} ({listed}) SELECT {', '.join(values)} FROM source.{table}")
    index = f"rtree_{layer}_{column}"
    if _has(database, "source", index):
        database.execute(f"CREATE VIRTUAL TABLE {_quoted(index)} USING rtree(id, minx, maxx, miny, maxy)")
        database.execute(f"INSERT INTO main.{_quoted(index)} SELECT * FROM source.{_quoted(index)}")
    for (sql,) in database.execute(made, ["trigger", layer]).fetchall():  # now, as they count what is inserted
        if "gpkg_ogr_contents" not in sql or _has(database, "main", "gpkg_ogr_contents"):
            database.execute(sql)
    for about in ("gpkg_contents", "gpkg_geometry_columns", "gpkg_extensions", "gpkg_ogr_contents"):
        _copy_rows(database, about, layer, system)


def _copy_rows(database: sqlite3.Connection, table: str, layer: str, system: int) -> None:
    if not _has(database, "source", table):
        return
    if not _has(database, "main", table):
        if table == "gpkg_ogr_contents":  # GDAL's own, which another program's file need not have
            return
        (sql,) = database.execute("SELECT sql FROM source.sqlite_master WHERE name = ?", [table]).fetchone()
        database.execute(sql)
    cursor = database.execute(f"SELECT * FROM source.{table} WHERE table_name = ?", [layer])
    names = [part[0] for part in cursor.description]
    for row in cursor.fetchall():
        values = dict(zip(names, row, strict=True))
        if "srs_id" in values:
            values["srs_id"] = system
        if table == "gpkg_contents" and _is_taken(database, values["identifier"]):
            values["identifier"] = f"{layer} (polygons)"
        _insert(database, table, values)


def _is_taken(database: sqlite3.Connection, identifier: str) -> bool:
    found = database.execute("SELECT 1 FROM main.gpkg_contents WHERE identifier = ?", [identifier])
    return found.fetchone() is not None


def _reference_system(database: sqlite3.Connection, number: int) -> int:
    """The number of the source's reference system in the target, where it is added unless it is known."""
    cursor = database.execute("SELECT * FROM source.gpkg_spatial_ref_sys WHERE srs_id = ?", [number])
    values = dict(zip([part[0] for part in cursor.description], cursor.fetchone(), strict=True))
    own = {row[1] for row in database.execute("PRAGMA main.table_info(gpkg_spatial_ref_sys)")}
    values = {name: value for name, value in values.items() if name in own}
    same = "organization = :organization AND organization_coordsys_id = :organization_coordsys_id"
    if values["organization"].upper() != "EPSG":  # a number of one's own means something else in every file
        same = "definition = :definition"
    found = database.execute(f"SELECT srs_id FROM main.gpkg_spatial_ref_sys WHERE {same}", values).fetchone()
    if found is not None:
        return int(found[0])
    taken = {one for (one,) in database.execute("SELECT srs_id FROM main.gpkg_spatial_ref_sys")}
    if number in taken:
        number = max(taken | {99_999}) + 1
        values |= {"srs_id": number} | (
            {} if values["organization"].upper() == "EPSG" else {"organization_coordsys_id": number}
        )
    _insert(database, "gpkg_spatial_ref_sys", values)
    return number


def _renumbered(blob: bytes, system: int) -> bytes:
    order = "little" if blob[3] & 1 else "big"
    return blob[:4] + system.to_bytes(4, order, signed=True) + blob[8:]  # type: ignore[arg-type]


def _insert(database: sqlite3.Connection, table: str, values: Mapping[str, object]) -> None:
    names = ", ".join(map(_quoted, values))
    database.execute(f"INSERT INTO main.{table} ({names}) VALUES ({', '.join('?' * len(values))})", [*values.values()])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _checksum(text: str) -> str:
    return f"{zlib.crc32((text or '').encode()):08x}"
