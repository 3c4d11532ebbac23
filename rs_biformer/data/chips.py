"""The tiles of an index written out as georeferenced GeoTIFF chips, for those who want files.

FOLDER/chips/images/SPLIT/NAME_rROW_cCOL.tif and the label beside it under labels/; FOLDER/chips/tiles.parquet is itself
a tile index whose scenes are the chips, so that training needs no second code path.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.windows import Window as RasterioWindow
from rasterio.windows import transform as window_transform

from rs_biformer.data.index import FILE_NAME, Manifest, SceneRecord, TileIndex, TileTable
from rs_biformer.documents import build, read_json
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.files import write_text
from rs_biformer.geometry import Window
from rs_biformer.raster.labels import LabelOptions
from rs_biformer.raster.paths import Location, is_remote
from rs_biformer.raster.writer import encode_chip, place_chip
from rs_biformer.schema import IGNORE, ClassSchema
from rs_biformer.shares import executor

FOLDER_NAME = "chips"
STATE_NAME = "chips.json"
_CHIPS_AT_ONCE = 64
_PIXELS_AT_ONCE = 2**24  # of the chips of a share
_CHIP_NAME = re.compile(r"^\.?.+_r\d+_c\d+\.tif")


@dataclass(frozen=True)
class _State:
    """What chips.json says: whose chips are in the folder."""

    fingerprint: str


@dataclass(frozen=True)
class _Row:
    """A share: windows of one scene that begin in the same row, and where their image and label chips go."""

    record: SceneRecord
    manifest: Manifest
    windows: tuple[Window, ...]
    images: tuple[Path, ...]
    labels: tuple[Path, ...]

    @property
    def files(self) -> list[Location]:
        """What the chips are made from."""
        return self.record.files

    def missing(self) -> "_Row":
        """Those of the windows that have not both chips yet."""
        there = [image.is_file() and label.is_file() for image, label in zip(self.images, self.labels, strict=True)]
        left = [number for number, done in enumerate(there) if not done]
        return replace(
            self,
            windows=tuple(self.windows[number] for number in left),
            images=tuple(self.images[number] for number in left),
            labels=tuple(self.labels[number] for number in left),
        )


def write_chips(
    index: TileIndex,
    folder: Path,
    *,
    workers: int = 1,
    cluster: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> TileIndex:
    """Write the chips of an index to FOLDER/chips and return the index of the chips.

    workers: processes that make them; cluster: whose workers do instead, as `shares.executor` takes it. The bytes are
    the same.

    A chip appears under its name complete or not at all. Chips that an earlier, perhaps interrupted call for the same
    index and the same files has written are kept; those of another index are removed first.

    Raises ConfigError when chips lie there that this function did not write, RasterError when reading or writing fails.
    """
    target = folder / FOLDER_NAME
    labels = index.manifest.schema.plainly_numbered()
    records = tuple(_chip_records(index, target))
    _prepare(target, _fingerprint(index, target))
    rows = [row for row in (row.missing() for row in _rows(index, records)) if row.windows]
    total = len(index)
    done = total - sum(len(row.windows) for row in rows)
    with executor(cluster, workers) as shares, closing(shares.map(_chips_of_row, rows)) as made:
        for row, chips in zip(rows, made, strict=True):
            for image, label, contents in zip(row.images, row.labels, chips, strict=True):
                place_chip(image, contents[0])
                place_chip(label, contents[1])
            done += len(row.windows)
            if progress:
                progress(done, total)
    table = index.table
    zero = np.zeros(total, np.int64)
    found = TileIndex(
        replace(index.manifest, schema=labels, tolerance=0, scenes=records),
        TileTable(
            np.arange(total), zero, zero, table.height, table.width, table.split, table.histogram, table.valid_share
        ),
        target,
    )
    found.write(target)
    return found


def _chip_records(index: TileIndex, target: Path) -> Iterator[SceneRecord]:
    for number in range(len(index)):
        scene, window, split = index.scene(number), index.window(number), str(index.table.split[number])
        name = f"{scene.name}_r{window.row}_c{window.col}"
        yield SceneRecord(
            name,
            (str(target.absolute() / "images" / split / f"{name}.tif"),),
            str(target.absolute() / "labels" / split / f"{name}.tif"),
            window.height,
            window.width,
            scene.crs,
            tuple(_place(scene, window))[:6],
            source=scene.source
            or Path(os.path.relpath(os.path.realpath(scene.images[0]), target.resolve())).as_posix(),
            source_row=scene.source_row + window.row,
            source_col=scene.source_col + window.col,
        )


def _place(scene: SceneRecord, window: Window) -> Affine:
    area = RasterioWindow(window.col, window.row, window.width, window.height)
    return window_transform(area, Affine(*scene.transform))


def _fingerprint(index: TileIndex, target: Path) -> str:
    """A digest of all that the chips depend on: the index and the size and date of the files."""
    digest = hashlib.sha256()
    scenes = index.manifest.scenes
    digest.update(json.dumps(replace(index.manifest, scenes=()).to_dict(), sort_keys=True).encode())
    for scene in scenes:
        later = [one.path for one in scene.corrections]
        for path in (*scene.images, scene.label or "", *([scene.area] if scene.area else []), *later):
            facts = Path(path).stat() if path and not is_remote(path) else None
            seen = (os.path.relpath(path, target) if path else "", facts and (facts.st_size, facts.st_mtime_ns))
            digest.update(repr((scene.name, scene.crs, scene.transform, seen, *_labelling(scene))).encode())
    for column in vars(index.table).values():
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def _labelling(scene: SceneRecord) -> tuple[LabelOptions, ...]:
    """How labels are read, where that is not as their bands suggest; chips that were written before stay known."""
    own = () if scene.labelling == LabelOptions() else (scene.labelling,)
    return (*own, *(one.labelling for one in scene.corrections))


def _prepare(target: Path, fingerprint: str) -> None:
    """Make the folder ready for the chips of this index; what is left after it belongs to them."""
    state = target / STATE_NAME
    _require_no_links(target)
    try:
        if state.is_file():
            known = _known_fingerprint(state)
        elif any((target / part).exists() for part in ("images", "labels")):
            raise ConfigError(f"{target} holds chips of unknown origin; remove them or choose another --out")
        else:
            known = None
        # An index of chips that are not all there yet must not be found.
        if known != fingerprint:
            (target / FILE_NAME).unlink(missing_ok=True)
        for path in [path for part in ("images", "labels") for path in (target / part).glob("*/*")]:
            if _CHIP_NAME.match(path.name) and (known != fingerprint or path.name.startswith(".")):
                _remove(path)
        target.mkdir(parents=True, exist_ok=True)
        write_text(state, json.dumps({"fingerprint": fingerprint}) + "\n")
    except (OSError, ValueError) as error:
        raise RasterError(f"cannot prepare {target} for chips: {' '.join(str(error).split())}") from error


def _require_no_links(target: Path) -> None:
    """What is removed must lie in the folder itself."""
    parts = [target / part for part in ("images", "labels")]
    for path in (target, target / STATE_NAME, *parts, *(split for part in parts for split in part.glob("*"))):
        if path.is_symlink():
            raise ConfigError(
                f"{path} is a link, and chips are removed only where they were written; choose another --out"
            )


def _known_fingerprint(state: Path) -> str:
    """Whose chips are there. Raises ConfigError where the file does not tell."""
    try:
        return build(_State, read_json(state, limit=4096), str(state)).fingerprint
    except ConfigError as error:
        raise ConfigError(f"{error}; remove the chips and {state.name}, or choose another --out") from None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _rows(index: TileIndex, records: tuple[SceneRecord, ...]) -> Iterator[_Row]:
    table = index.table
    order = np.lexsort((table.col, table.row, table.scene))
    keys = np.stack([table.scene[order], table.row[order]])
    cuts = np.flatnonzero((np.diff(keys) != 0).any(axis=0)) + 1
    bare = replace(index.manifest, scenes=())
    at_once = max(1, min(_CHIPS_AT_ONCE, _PIXELS_AT_ONCE // index.manifest.window**2))
    for group in np.split(order, cuts):
        for start in range(0, len(group), at_once):
            part = [int(number) for number in group[start : start + at_once]]
            yield _Row(
                index.scene(part[0]),
                bare,
                tuple(index.window(number) for number in part),
                tuple(Path(records[number].images[0]) for number in part),
                tuple(Path(str(records[number].label)) for number in part),
            )


def _chips_of_row(task: _Row) -> list[tuple[bytes, bytes]]:
    """The files of the image and label chip of each window."""
    record, manifest, windows = task.record, task.manifest, task.windows
    # Windows of a row overlap: the stretch that they span is decoded once.
    left = min(window.col for window in windows)
    height, width = max(w.height for w in windows), max(w.col_stop for w in windows) - left
    with (
        record.open(manifest.bands, manifest.reading) as scene,
        record.open_label(scene, manifest.schema, manifest.tolerance) as raster,
    ):
        span = Window(windows[0].row, left, height, width)
        pixels, valid = scene.read(span)
        index, _ = raster.read(span)
    index[~valid] = IGNORE
    return [
        _encoded(task, window, pixels[:, *window.within(span)], valid[window.within(span)], index[window.within(span)])
        for window in windows
    ]


def _encoded(
    task: _Row, window: Window, pixels: NDArray[Any], valid: NDArray[np.bool_], label: NDArray[np.uint8]
) -> tuple[bytes, bytes]:
    record, manifest = task.record, task.manifest
    crs = CRS.from_wkt(record.crs) if record.crs else None
    place = _place(record, window)
    mask = None if valid.all() else valid
    return (
        encode_chip(pixels, crs=crs, transform=place, descriptions=manifest.bands, mask=mask),
        encode_chip(label, crs=crs, transform=place, nodata=IGNORE, colormap=_colour_table(manifest.schema)),
    )


def _colour_table(schema: ClassSchema) -> dict[int, tuple[int, int, int, int]]:
    return {**{n: (*colour, 255) for n, colour in enumerate(schema.colours)}, IGNORE: (0, 0, 0, 0)}
