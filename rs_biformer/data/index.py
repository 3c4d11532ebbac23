"""The tile index: which windows of which scenes belong to which split, and what they hold.

A table of windows and a manifest that says how to read them; no pixels. On disk it is one GeoParquet file (1.1), whose
footprints show where the windows lie, with the manifest as JSON in the file's key-value metadata.
The scenes stay where they are; their paths are stored relative to the index, so a folder that is moved as a whole
still works.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pydantic import Field, Strict
from rasterio.crs import CRS

from rs_biformer.data.footprints import CRS84, footprints
from rs_biformer.documents import (
    Count,
    Listed,
    Text,
    build,
    known_part,
    known_parts,
    made_by,
    parse_json,
    require_format,
    shown,
)
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.files import replacing
from rs_biformer.geometry import Window, Windows
from rs_biformer.raster.correcting import Correction, open_corrected
from rs_biformer.raster.labelling import Label
from rs_biformer.raster.labels import LabelOptions
from rs_biformer.raster.paths import Location, is_remote, locate
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.source import Grid
from rs_biformer.raster.values import RAW, Reading
from rs_biformer.schema import ClassSchema

SPLITS = ("train", "val", "test")
FILE_NAME = "tiles.parquet"
FORMAT_VERSION = 2
"""1 where no scene has corrections, which older versions would not see."""
_MAX_VALUES = 1 << 24  # in a manifest: some 600,000 scenes or chips
_MAX_ROWS = 10_000_000  # windows: a few bytes of Parquet may claim any number of equal ones
_Side = Annotated[int, Field(ge=1, lt=1 << 31)]

_MANIFEST_KEY = "rs_biformer"
_HISTOGRAM_PREFIX = "pixels_"
_GROUP_ROWS = 1 << 17


@dataclass(frozen=True, slots=True)
class SceneRecord:
    """One scene of an index: its files and its georeference.

    images: one file, or several co-registered ones whose bands are stacked in this order.
    label: None where the scene has no label.
    crs: WKT, None when unknown. transform: a, b, c, d, e, f of the affine map from (col, row) to (x, y).
    bands: the numbers of the manifest's bands in the images; empty where they are found by name.
    labelling: how the label is read. area: polygons outside of which the label is ignored; None for none.
    corrections: later labels, each of which replaces what those before it say.
    source, source_row, source_col: for a chip, the scene that it was cut from and where, so that overlapping chips
        are still recognised as such.
    """

    name: str
    images: Annotated[Listed[str], Field(min_length=1)]
    label: str | None
    height: _Side
    width: _Side
    crs: str | None
    transform: Annotated[tuple[float, float, float, float, float, float], Strict(False)]
    source: str | None = None
    source_row: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    source_col: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    bands: Listed[Annotated[int, Field(ge=1)]] = ()
    labelling: LabelOptions = LabelOptions()
    area: str | None = None
    corrections: Listed[Correction] = ()

    @property
    def files(self) -> list[Location]:
        """All that its windows are read from."""
        later = [one.path for one in self.corrections]
        return [locate(path) for path in (*self.images, self.label, *later, self.area) if path]

    def open_label(self, grid: Grid, schema: ClassSchema, tolerance: int) -> Label:
        """The label on the grid of the images. Raises RasterError where there is none."""
        if self.label is None:
            raise RasterError(f"scene {self.name} has no label; tile it with --labels to train or validate on it")
        return open_corrected(
            self.label,
            self.corrections,
            schema,
            grid,
            tolerance=tolerance,
            options=self.labelling,
            area=self.area,
        )

    def open(self, bands: Sequence[str], reading: Reading) -> Scene:
        """The images with the bands of the manifest, read as it says."""
        return Scene(self.images, bands=self.bands or bands, reading=reading)


@dataclass(frozen=True)
class Manifest:
    """How to read the windows of an index, and what a model must know about them.

    bands: band names in the order in which a scene gives them; dtype: the numpy name of their common type.
    mean, std: per band in raw units over the valid pixels of the split `statistics_of`, each pixel once.
    gsd: metres per pixel, None when unknown. tolerance: colour tolerance of the labels, see LabelRaster.
    reading: what is nodata and whether scales are applied. shared_ground: what the splits have in common of the ground,
        in words, where that was insisted on; empty where they have nothing in common.
    """

    schema: Annotated[ClassSchema, made_by(ClassSchema, ClassSchema.from_dict)]
    window: Annotated[int, Field(ge=1, le=1 << 16)]
    overlap: Annotated[float, Field(ge=0, lt=1)]
    bands: Annotated[Listed[Text], Field(min_length=1)]
    dtype: Text
    mean: Listed[float]
    std: Listed[Annotated[float, Field(ge=0)]]
    gsd: Annotated[float, Field(gt=0)] | None
    tolerance: Count
    scenes: tuple[SceneRecord, ...]
    statistics_of: Text = "train"
    version: int = 1
    reading: Annotated[Reading, made_by(Reading, Reading.from_dict)] = RAW
    shared_ground: Text = ""

    def __post_init__(self) -> None:
        if not len(self.bands) == len(self.mean) == len(self.std):
            raise ConfigError(
                f"{len(self.bands)} bands need as many means ({len(self.mean)}) and stds ({len(self.std)})"
            )
        names = Counter(scene.name for scene in self.scenes)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ConfigError(f"{names[twice[0]]} scenes are called {twice[0]!r}; scene names must be unique")

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, as JSON stores them. Each CRS is written once, however many scenes share it."""
        systems = list(dict.fromkeys(scene.crs for scene in self.scenes if scene.crs is not None))
        data = {key: value for key, value in vars(self).items() if key not in ("schema", "scenes", "reading")}
        if not self.shared_ground:
            del data["shared_ground"]
        if self.reading != RAW:
            data["reading"] = self.reading.to_dict()
        scenes = [
            {**_without_defaults(scene), "crs": None if scene.crs is None else systems.index(scene.crs)}
            for scene in self.scenes
        ]
        return {**data, "schema": self.schema.to_dict(), "crs": systems, "scenes": scenes}

    @classmethod
    def from_dict(cls, data: Any, where: str = "its manifest") -> "Manifest":
        """The reverse of `to_dict`, from JSON, of every format up to FORMAT_VERSION.

        Raises ConfigError, in one line that begins with `where`, when it was not written by this package.
        """
        values: dict[str, Any] = build(dict[str, Any], data, where)
        if not require_format(values.get("version"), FORMAT_VERSION, where):
            raise ConfigError(f"{where} does not tell its format version; tile again")
        systems: tuple[str, ...] = build(Listed[str], values.pop("crs", None), f"{where}: crs")
        records: tuple[dict[str, Any], ...] = build(Listed[dict[str, Any]], values.get("scenes"), f"{where}: scenes")
        values["scenes"] = tuple(
            build(SceneRecord, _record_values(part, systems, where), f"{where}: scenes[{number}]")
            for number, part in enumerate(known_parts(SceneRecord, records, where))
        )
        return build(cls, known_part(cls, values, where), where)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _record_values(part: dict[str, Any], systems: Sequence[str], where: str) -> dict[str, Any]:
    """What a SceneRecord is made of, from what a manifest holds for a scene."""
    values = {**part, "crs": _crs_of(part.get("crs"), systems, where)}
    if "labelling" in part:
        values["labelling"] = build(LabelOptions, part["labelling"], f"{where}: labelling")
    if "corrections" in part:
        listed: tuple[dict[str, Any], ...] = build(Listed[dict[str, Any]], part["corrections"], f"{where}: corrections")
        values["corrections"] = tuple(_correction(one, f"{where}: corrections") for one in listed)
    return values


def _correction(data: dict[str, Any], where: str) -> Correction:
    path, how = data.get("path"), data.get("labelling", {})
    return Correction(build(Text, path, f"{where}: path"), build(LabelOptions, how, f"{where}: labelling"))


def _crs_of(number: Any, systems: Sequence[str], where: str) -> str | None:
    if number is None:
        return None
    if type(number) is not int or not 0 <= number < len(systems):
        raise ConfigError(f"{where}: a scene has the crs {shown(number)}; it must be null or 0 to {len(systems) - 1}")
    return systems[number]


@dataclass(frozen=True)
class TileTable:
    """One row per window, as numpy columns of equal length.

    scene: position in Manifest.scenes. row, col, height, width: the window in pixels of that scene.
    split: "train", "val" or "test". histogram: (windows, classes), valid labelled pixels of each class.
    valid_share: the share of the window's pixels that have image data and a class.
    """

    scene: NDArray[np.int64]
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    split: NDArray[np.str_]
    histogram: NDArray[np.int64]
    valid_share: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scene)

    @property
    def windows(self) -> Windows:
        return Windows(self.row, self.col, self.height, self.width)

    def take(self, rows: NDArray[Any]) -> "TileTable":
        """The rows at these positions, or where a boolean array is true."""
        return TileTable(**{name: column[rows] for name, column in vars(self).items()})


@dataclass(frozen=True)
class TileIndex:
    """Windows of scenes with their splits. Scene paths are absolute here; `write` makes them relative."""

    manifest: Manifest
    table: TileTable
    folder: Path = field(default=Path(), compare=False)

    def __len__(self) -> int:
        return len(self.table)

    def _repr_html_(self) -> str:
        """What a notebook shows: windows per split, and the share of each class in them."""
        from rs_biformer.notebook import facts, percent, stacked, swatch, table

        known, schema = self.manifest, self.manifest.schema
        splits = [split for split in SPLITS if (self.table.split == split).any()]
        pixels = np.stack([self.table.histogram[self.table.split == split].sum(axis=0) for split in splits] or [[]])
        with np.errstate(invalid="ignore"):
            shares = pixels / pixels.sum(axis=1, keepdims=True)
        rows = [
            [swatch(colour, name), *(percent(float(share[index])) for share in shares[: len(splits)])]
            for index, (name, colour) in enumerate(zip(schema.classes, schema.colours, strict=True))
        ]
        windows = ", ".join(f"{split} {int((self.table.split == split).sum()):,}" for split in splits)
        listed = {
            "windows": f"{windows} of {known.window} x {known.window} pixels",
            "scenes": f"{len(known.scenes):,}",
            "bands": f"{', '.join(known.bands)} ({known.dtype})",
            "pixel": None if known.gsd is None else f"{known.gsd:.4g} m",
        }
        return stacked(facts(listed), table(["", *splits], rows))

    def window(self, number: int) -> Window:
        """The window in the given row of the table."""
        table = self.table
        return Window(*(int(part[number]) for part in (table.row, table.col, table.height, table.width)))

    def scene(self, number: int) -> SceneRecord:
        """The scene of the window in the given row of the table."""
        return self.manifest.scenes[int(self.table.scene[number])]

    def select(self, split: str) -> "TileIndex":
        """The windows of one split, in the same order, with the same manifest."""
        if split not in SPLITS:
            raise ConfigError(f"no split {split!r}; use {', '.join(SPLITS)}")
        return replace(self, table=self.table.take(self.table.split == split))

    def require_disjoint_splits(self) -> None:
        """Raise ConfigError if a pixel of one scene lies in windows of two splits.

        Scenes are told apart by their first file, links resolved, and chips by what they were cut from: the same
        raster under two names counts as one.
        """
        origins: dict[str, list[int]] = {}
        for number, scene in enumerate(self.manifest.scenes):
            origins.setdefault(scene.source or os.path.realpath(scene.images[0]), []).append(number)
        group_of = np.empty(len(self.manifest.scenes), np.int64)
        shift = np.array([(scene.source_row, scene.source_col) for scene in self.manifest.scenes]).reshape(-1, 2)
        for group, members in enumerate(origins.values()):
            group_of[members] = group
        groups = group_of[self.table.scene]
        order = np.argsort(groups, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
            part = self.table.take(rows)
            if len(np.unique(part.split)) > 1:
                clash = _first_clash(part.windows.moved(*shift[part.scene].T), part.split)
                if clash:
                    first, second = (self._describe(int(rows[number])) for number in clash)
                    raise ConfigError(
                        f"splits overlap: {first} and {second} share pixels; split by scene, or by blocks with a buffer"
                    )

    def _describe(self, number: int) -> str:
        window = self.window(number)
        return (
            f"the {self.table.split[number]} window at row {window.row}, col {window.col} of {self.scene(number).name}"
        )

    def write(self, folder: Path | str) -> Path:
        """Write FOLDER/tiles.parquet and return its path. It appears under its name complete or not at all.

        The same index gives the same bytes. Raises RasterError when the disk refuses.
        """
        folder = Path(folder)
        real = folder.resolve()
        scenes = tuple(
            replace(
                scene,
                images=tuple(_relative(path, real) for path in scene.images),
                label=None if scene.label is None else _relative(scene.label, real),
                area=None if scene.area is None else _relative(scene.area, real),
                corrections=tuple(replace(one, path=_relative(one.path, real)) for one in scene.corrections),
            )
            for scene in self.manifest.scenes
        )
        for text in (text for scene in scenes for text in (scene.name, *scene.images, scene.label or "")):
            if not text.isprintable() and not _is_unicode(text):
                raise ConfigError(f"{text!a} is no text in UTF-8; rename it, as no table can hold the name")
        manifest = json.dumps(replace(self.manifest, scenes=scenes).to_dict(), ensure_ascii=False)
        polygons, crs = self.footprints()
        columns = {
            "scene": pa.array([scene.name for scene in scenes], pa.string()).take(pa.array(self.table.scene)),
            **{key: pa.array(getattr(self.table, key), pa.int32()) for key in ("row", "col", "height", "width")},
            "split": pa.array(self.table.split.tolist(), pa.string()),
            "valid_share": pa.array(self.table.valid_share, pa.float64()),
            **{
                _HISTOGRAM_PREFIX + name: pa.array(self.table.histogram[:, number], pa.int64())
                for number, name in enumerate(self.manifest.schema.classes)
            },
            "geometry": pa.array(shapely.to_wkb(polygons).tolist(), pa.binary()),
        }
        table = pa.table(columns)
        metadata = {_MANIFEST_KEY: manifest, "geo": json.dumps(_geo_metadata(polygons, crs))}
        path = folder / FILE_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Without the Arrow schema, which would hold the manifest a second time.
            with (
                replacing(path) as temporary,
                pq.ParquetWriter(temporary, table.schema, compression="zstd", store_schema=False) as sink,
            ):
                sink.write_table(table, row_group_size=_GROUP_ROWS)
                sink.add_key_value_metadata(metadata)
        except OSError as error:
            raise RasterError(f"cannot write {path}: {error.strerror or error}") from error
        return path

    @classmethod
    def read(cls, path: Path | str) -> "TileIndex":
        """An index from its folder or file. Raises ConfigError when there is none or it is no tile index."""
        path = Path(path)
        file = path / FILE_NAME if path.is_dir() else path
        if not file.is_file():
            raise ConfigError(f"no tile index {file}; make one with: rs-biformer tile SCENE... --out {file.parent}")
        try:
            manifest = _manifest_of(pq.read_metadata(file))
            table = _table_of(file, manifest)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None
        # Arrow says in many ways, some of them Python's, that bytes are nonsense.
        except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
            raise ConfigError(f"{file} is no readable Parquet file: {' '.join(str(error).split())[:300]}") from None
        real = file.parent.resolve()
        scenes = tuple(
            replace(
                scene,
                images=tuple(_absolute(image, real) for image in scene.images),
                label=None if scene.label is None else _absolute(scene.label, real),
                area=None if scene.area is None else _absolute(scene.area, real),
                corrections=tuple(replace(one, path=_absolute(one.path, real)) for one in scene.corrections),
            )
            for scene in manifest.scenes
        )
        return cls(replace(manifest, scenes=scenes), table, file.parent)

    def footprints(self) -> tuple[NDArray[Any], CRS]:
        """Polygons of the windows and their CRS, see `data.footprints`; None where a scene's place is unknown."""
        return footprints(self.manifest.scenes, self.table.scene, self.table.windows)


def concatenate(tables: list[TileTable]) -> TileTable:
    """The rows of several tables, in order."""
    return TileTable(**{name: np.concatenate([vars(table)[name] for table in tables]) for name in vars(tables[0])})


def _without_defaults(part: SceneRecord | LabelOptions | Correction) -> dict[str, Any]:
    values = {key.name: (getattr(part, key.name), key.default) for key in fields(part)}
    return {key: _plain(value) for key, (value, default) in values.items() if value != default}


def _plain(value: Any) -> Any:
    if isinstance(value, LabelOptions | Correction):
        return _without_defaults(value)
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _relative(path: str, folder: Path) -> str:
    """`path` from `folder` (resolved), with forward slashes; as it is for a URL and the like or on another drive."""
    if is_remote(path):
        return path
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path


def _absolute(path: str, folder: Path) -> str:
    return path if is_remote(path) else os.path.normpath(folder / path)


def _geo_metadata(polygons: NDArray[Any], crs: CRS) -> dict[str, Any]:
    """The "geo" entry of GeoParquet 1.1."""
    drawn = polygons[polygons != None]  # noqa: E711 - element by element
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": sorted({polygon.geom_type for polygon in drawn}),
        "edges": "planar",
    }
    if crs != CRS84:  # which is how GeoParquet says longitude and latitude
        column["crs"] = crs.to_dict(projjson=True)
    if len(drawn):
        column["bbox"] = shapely.total_bounds(drawn).tolist()
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _manifest_of(parquet: pq.FileMetaData) -> Manifest:
    text = (parquet.metadata or {}).get(_MANIFEST_KEY.encode())
    if text is None:
        raise ConfigError("it is no tile index (it has no manifest); make one with: rs-biformer tile")
    return Manifest.from_dict(parse_json(text, "its manifest", values=_MAX_VALUES))


def _table_of(file: Path, manifest: Manifest) -> TileTable:
    """The windows of a file, seen to be windows of the manifest's scenes. Raises ConfigError."""
    counts = [_HISTOGRAM_PREFIX + name for name in manifest.schema.classes]
    wanted = ["scene", "row", "col", "height", "width", "split", "valid_share", *counts]
    there = pq.read_schema(file).names
    if lacking := [name for name in wanted if name not in there]:
        raise ConfigError(f"it lacks the column {shown(lacking[0])}; tile again")
    with pq.ParquetFile(file, read_dictionary=["scene", "split"]) as source:  # a long name is held once
        if source.metadata.num_rows > _MAX_ROWS:
            raise ConfigError(f"it claims {source.metadata.num_rows:,} windows; at most {_MAX_ROWS:,} are allowed")
        table = source.read(columns=wanted)
    for name in wanted:
        text, share = name in ("scene", "split"), name == "valid_share"
        kind = pa.types.is_dictionary if text else pa.types.is_floating if share else pa.types.is_integer
        if not kind(table[name].type) or table[name].null_count:
            raise ConfigError(f"its column {shown(name)} is {table[name].type} with {table[name].null_count} nulls")
    found = TileTable(
        scene=_places(table["scene"], [scene.name for scene in manifest.scenes]),
        **{name: table[name].to_numpy().astype(np.int64) for name in ("row", "col", "height", "width")},
        split=np.array(SPLITS)[_places(table["split"], list(SPLITS))],
        histogram=np.stack([table[name].to_numpy() for name in counts], axis=1).astype(np.int64),
        valid_share=table["valid_share"].to_numpy().astype(np.float64),
    )
    _require_windows_inside(found, manifest)
    return found


def _places(column: pa.ChunkedArray, names: list[str]) -> NDArray[np.int64]:
    """Where each entry of a column of text stands among the names."""
    places = pc.index_in(column, pa.array(names, pa.string()))
    if places.null_count:
        foreign = column.filter(pc.is_null(places))[0].as_py()
        raise ConfigError(f"a window is of {shown(foreign)}, which is none of {', '.join(map(shown, names[:5]))}")
    return np.asarray(places.to_numpy(), np.int64)


def _require_windows_inside(table: TileTable, manifest: Manifest) -> None:
    sizes = np.array([(scene.height, scene.width) for scene in manifest.scenes], np.int64).reshape(-1, 2)[table.scene]
    inside = (table.row >= 0) & (table.col >= 0) & (table.height > 0) & (table.width > 0)
    # Not their sums, which may be beyond 64 bits.
    inside &= (table.row <= sizes[:, 0] - table.height) & (table.col <= sizes[:, 1] - table.width)
    if not inside.all():
        number = int(np.argmin(inside))
        row, col, height, width = (int(part[number]) for part in (table.row, table.col, table.height, table.width))
        name = manifest.scenes[int(table.scene[number])].name
        raise ConfigError(f"window {number}, {height} x {width} at row {row}, col {col}, is not inside of {name}")
    # In floats, as counts may be any number of 64 bits.
    pixels = table.histogram.astype(np.float64).sum(axis=1)
    counted = (table.histogram >= 0).all(axis=1) & (pixels <= table.height * table.width)
    counted &= (table.valid_share >= 0) & (table.valid_share <= 1)
    if not counted.all():
        number = int(np.argmin(counted))
        raise ConfigError(f"window {number} has counts of its classes that cannot be: {shown(table.histogram[number])}")


def _first_clash(windows: Windows, split: NDArray[np.str_]) -> tuple[int, int] | None:
    """Positions of two windows of different splits that share a pixel, or None.

    All windows are painted on the coarse grid that their own edges span: the work grows with windows + edges
    squared, and windows laid on a grid have few distinct edges.
    """
    rows, cols = np.unique([windows.row, windows.row_stop]), np.unique([windows.col, windows.col_stop])
    painted = np.zeros((len(rows) - 1, len(cols) - 1), bool)
    for name in np.unique(split):
        own = split == name
        covered = windows.take(own).covered(rows, cols)
        if (covered & painted).any():
            r, c = np.argwhere(covered & painted)[0]
            here = windows.touching(Window(int(rows[r]), int(cols[c]), 1, 1))
            return int(np.flatnonzero(here & ~own)[0]), int(np.flatnonzero(here & own)[0])
        painted |= covered
    return None
