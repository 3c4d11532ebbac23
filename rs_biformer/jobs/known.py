"""Which windows have labels already: by tile indices, and by the polygons of vector layers."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import transform as reproject

from rs_biformer.data.footprints import footprints
from rs_biformer.data.index import FILE_NAME, TileIndex
from rs_biformer.errors import ConfigError
from rs_biformer.geometry import Windows
from rs_biformer.jobs.candidates import Candidates, Map
from rs_biformer.raster.crs import same_crs
from rs_biformer.raster.gdal import gdal_env
from rs_biformer.raster.layer import Features, is_vector, plain_value
from rs_biformer.raster.metadata import read_class_names
from rs_biformer.raster.paths import PathLike
from rs_biformer.raster.polygons import Polygons
from rs_biformer.raster.source import Source

CLASS = "class"
"""The attribute that says what is there; ground is labelled where it is filled."""

_COMMON = 0.01
"""Share of a window that may lie on labelled ground: neighbours touch, and CRSs differ by roundings."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Known:
    """What is labelled: tile indices, layers of polygons, and the class pixels (M, K) of the windows of the former."""

    indices: tuple[TileIndex, ...]
    layers: tuple[PathLike, ...]
    histogram: NDArray[np.int64]

    @classmethod
    def of(cls, labelled: Sequence[PathLike], maps: Sequence[Map], names: Sequence[str]) -> "Known":
        indices, layers, counted = [], [], [np.zeros((0, len(names)), np.int64)]
        for one in labelled:
            path = Path(one)
            if is_vector(one) and path.name != FILE_NAME:
                layers.append(one)
                continue
            index = TileIndex.read(path)
            classes = index.manifest.schema.classes
            if len(classes) != len(names) or (read_class_names(maps[0].path) and classes != tuple(names)):
                raise ConfigError(
                    f"{one} has the classes {', '.join(classes)} and the maps have {', '.join(names)}; give an index "
                    "of the same classes"
                )
            train = index.table.split == "train"
            counted.append(index.table.histogram[train if train.any() else np.ones(len(index), bool)])
            indices.append(index)
        return cls(tuple(indices), tuple(layers), np.concatenate(counted))


def without_labels(found: Candidates, known: Known, maps: Sequence[Map], min_valid: float, say: Say) -> Candidates:
    """The windows that are mapped and have no label yet."""
    mapped = (found.mapped >= min_valid) & ~np.isnan(found.uncertainty)
    left = found.take(mapped)
    taken = _is_labelled(left, known, maps)
    left_out = {"hold nodata": int((~mapped).sum()), "lie on labelled ground": int(taken.sum())}
    told = [f"{count} {what}" for what, count in left_out.items() if count]
    if told:
        say(f"of {len(mapped)} windows {' and '.join(told)}; they are left out")
    if taken.all():
        raise ConfigError(
            f"no window is left to suggest: of {len(mapped)} windows {' and '.join(told)}; give other maps, a smaller "
            "--window or a lower --min-valid"
        )
    return left.take(~taken)


def _is_labelled(found: Candidates, known: Known, maps: Sequence[Map]) -> NDArray[np.bool_]:
    """Which windows (N,) have labels."""
    taken = np.zeros(len(found.scene), bool)
    polygons, crs = footprints(maps, found.scene, found.windows)
    placed = np.array([polygon is not None for polygon in polygons], bool)
    for index in known.indices:
        others, theirs = index.footprints()
        there = np.array([polygon is not None for polygon in others], bool)
        moved = others[there] if same_crs(crs, theirs) else _moved(others[there], theirs, crs)
        taken[placed] |= _covered(polygons[placed], moved)
        taken |= _same_pixels(found, maps, index)
    for path in known.layers:
        for number, one in enumerate(maps):
            rows = np.flatnonzero((found.scene == number) & ~taken)
            if len(rows):
                taken[rows] = _drawn_over(path, one, found.windows.take(rows))
    return taken


def _covered(polygons: NDArray[Any], others: NDArray[Any]) -> NDArray[np.bool_]:
    """Which polygons (N,) share more than a hair with any of the others."""
    taken = np.zeros(len(polygons), bool)
    mine, theirs = shapely.STRtree(others).query(polygons, predicate="intersects")
    shared = shapely.area(shapely.intersection(polygons[mine], others[theirs]))
    taken[mine[shared > _COMMON * shapely.area(polygons[mine])]] = True
    return taken


def _moved(polygons: NDArray[Any], crs: CRS, to: CRS) -> NDArray[Any]:
    def change(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([np.asarray(one) for one in reproject(crs, to, *points.T)[:2]], axis=1)

    with gdal_env():
        moved: NDArray[Any] = shapely.transform(polygons, change) if len(polygons) else polygons
    return moved


def _same_pixels(found: Candidates, maps: Sequence[Map], index: TileIndex) -> NDArray[np.bool_]:
    """Windows of scenes of the index that have the name and size of a map: where nothing says where they lie."""
    scenes = {(one.name, one.height, one.width): number for number, one in enumerate(index.manifest.scenes)}
    taken = np.zeros(len(found.scene), bool)
    for number, one in enumerate(maps):
        other = scenes.get((one.name, one.height, one.width))
        if other is None:
            continue
        theirs = index.table.windows.take(index.table.scene == other)
        for row in np.flatnonzero(found.scene == number):
            taken[row] = theirs.touching(next(iter(found.windows.take([row])))).any()
    return taken


def _drawn_over(path: PathLike, one: Map, windows: Windows) -> NDArray[np.bool_]:
    """Which windows of a map hold pixels of polygons that are labelled."""
    with closing(Source(one.path)) as source:
        layer = Polygons(path, source)
        if CLASS in layer.layer.fields:
            layer = Polygons(path, source, columns=[CLASS])
        taken = [bool((layer.read(window, _is_filled, 0)[0] > 0).mean() > _COMMON) for window in windows]
    return np.array(taken, bool)


def _is_filled(features: Features) -> NDArray[np.int16]:
    """1 for features with a class, or of a layer that knows no classes; -1, which leaves it out, for the others."""
    if CLASS not in features.columns:
        return np.ones(len(features.ids), np.int16)
    filled = [plain_value(value) not in (None, "") for value in features.columns[CLASS].tolist()]
    return np.where(filled, 1, -1).astype(np.int16)
