"""Areas of classes inside of zones: the pixels of a class map in each polygon of a layer.

A pixel belongs to the zone that holds its centre, as for labels and areas (`raster.polygons`), or to each zone by the
share of it that the zone covers (exactextract; Baston 2018-). Zones may overlap: each is counted by itself.
"""

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.transform import Affine

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window, cells
from rs_biformer.raster.gdal import gdal_env
from rs_biformer.raster.georeference import Placing
from rs_biformer.raster.ground import ground_areas, pixel_areas
from rs_biformer.raster.layer import Features
from rs_biformer.raster.metadata import read_class_names
from rs_biformer.raster.paths import PathLike
from rs_biformer.raster.polygons import PolygonOptions, Polygons
from rs_biformer.raster.sizes import require_possible
from rs_biformer.raster.source import Source, is_georeferenced, require_same_grid
from rs_biformer.raster.tracing import Scores
from rs_biformer.raster.vector import require_class_map
from rs_biformer.schema import IGNORE

_BLOCK = 512, 1024  # rows and columns that are counted at once
_ANYWHERE = Affine.scale(2)  # a georeference

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ZoneAreas:
    """What lies in each of Z zones, in the order of their layer.

    names: of the K classes. classes: (Z, K) the area of each class. missing: (Z,) ground of the zone that is on the
    map's frame but has no class (nodata). zones: (Z,) the whole area of each zone, on the map or not.
    confidence: (Z,) mean confidence over the pixels with a class, weighed by area; NaN where there are none; None where
    none was given. unit: `m2`; for a map without a CRS `px`, or `units2` of its coordinates. crs: of the layer, as WKT.
    """

    features: Features
    names: tuple[str, ...]
    classes: NDArray[np.float64]
    missing: NDArray[np.float64]
    zones: NDArray[np.float64]
    confidence: NDArray[np.float64] | None
    unit: str
    crs: str | None
    notes: tuple[str, ...]


def zone_areas(
    path: PathLike,
    zones: PathLike,
    *,
    options: PolygonOptions | None = None,
    confidence: PathLike | None = None,
    fractional: bool = False,
    progress: Progress | None = None,
) -> ZoneAreas:
    """The area of each class of a class map in each polygon of a vector layer.

    Memory is bounded by a block of the map and by the layer. confidence: a raster of one band on the map's grid.
    fractional: a pixel counts by the share of it that a zone covers, which needs exactextract; else by its centre.
    progress: called with the pixels done and all.

    Raises RasterError when a raster or the layer cannot be read or they do not overlap, ConfigError without
    exactextract where that is needed.
    """
    cover = _fractions if fractional else _centres
    if fractional:
        _require_exactextract()
    with ExitStack() as stack:
        source = stack.enter_context(closing(Source(path)))
        require_class_map(source)
        scores = None if confidence is None else Scores(stack.enter_context(closing(Source(confidence))))
        if scores is not None:
            require_same_grid(source, scores.source)
        layer = Polygons(zones, source, options)
        layer.require_overlap()
        features, names = layer.everything(), read_class_names(source.path) or ()
        thin = int((shapely.get_dimensions(features.shapes) < 2).sum())
        if thin == len(features.ids):
            raise RasterError(f"{zones} holds lines or points and no polygons; zones are polygons")
        table, pixels = _Table(features.ids, len(names)), placed_areas(source)
        placing = Placing.of(source.crs, source.transform, source.gcps)
        for block in cells(Window(0, 0, source.height, source.width), *_BLOCK):
            covered = cover(*layer.outlines(block), block)
            if len(covered.cells):
                index = class_indices(source, block)
                certain = None if scores is None else scores.read(block)
                table.add(covered, pixels[block.row : block.row_stop], index, certain)
            if progress is not None:
                progress(block.row * source.width + block.height * block.col_stop, source.height * source.width)
        return ZoneAreas(
            features,
            _names(names, table.classes),
            table.area[:, 1:],
            table.area[:, 0],
            _whole(features.shapes, layer, placing),
            None if scores is None else table.confidence,
            area_unit(placing),
            None if layer.crs is None else layer.crs.to_wkt(),
            (
                *layer.notes,
                *([f"{thin} of {len(features.ids)} zones are lines or points, without an area"] if thin else []),
            ),
        )


def class_areas(
    path: PathLike, progress: Progress | None = None, *, allow_huge: bool = False
) -> tuple[tuple[str, ...], NDArray[np.float64], str]:
    """Names of the classes of a class map, the area of ground without a class and of each class (K + 1,), the unit.

    Memory is bounded by a block. progress: called with the pixels done and all. allow_huge: take a map of more than
    `sizes.MOST_PIXELS`.

    Raises RasterError when the map cannot be read, is none, or is too large.
    """
    with closing(Source(path)) as source:
        require_class_map(source)
        require_possible(source, allow_huge)
        names = read_class_names(source.path) or ()
        table, pixels = _Table(np.zeros(1, np.int64), len(names)), placed_areas(source)
        for block in cells(Window(0, 0, source.height, source.width), *_BLOCK):
            number = block.height * block.width
            everything = _Covered(np.zeros(number, np.int64), np.arange(number), np.ones(number))
            table.add(everything, pixels[block.row : block.row_stop], class_indices(source, block), None)
            if progress is not None:
                progress(block.row * source.width + block.height * block.col_stop, source.height * source.width)
        placing = Placing.of(source.crs, source.transform, source.gcps)
        return _names(names, table.classes), table.area[0], area_unit(placing)


def _names(names: tuple[str, ...], classes: int) -> tuple[str, ...]:
    return tuple(names) or tuple(f"class {number}" for number in range(classes))


def area_unit(placing: Placing) -> str:
    """The unit of areas on such a grid, as part of a column's name."""
    if placing.crs is not None:
        return "m2"
    return "units2" if is_georeferenced(placing.transform) else "px"


def placed_areas(source: Source) -> NDArray[np.float64]:
    """The area of a pixel of each row (height,), see `area_unit`."""
    placing = Placing.of(source.crs, source.transform, source.gcps)
    if placing.crs is None and not is_georeferenced(placing.transform):
        return np.ones(source.height)
    return pixel_areas(placing.crs, placing.transform, source.height, source.width)


def class_indices(source: Source, window: Window) -> NDArray[np.uint8]:
    """The classes of a window of a class map (h, w), IGNORE where it is masked."""
    pixels = source.read([1], window)
    index: NDArray[np.uint8] = np.where(source.valid([1], pixels, window), pixels[0], np.uint8(IGNORE))
    return index


@dataclass(frozen=True)
class _Covered:
    """Which zones cover which pixels of a block: ids of zones, places of pixels in the block, and the share covered."""

    zones: NDArray[np.int64]
    cells: NDArray[np.int64]
    shares: NDArray[np.float64]


class _Table:
    """Areas that add up, a row for each zone: without a class, of class 0, of class 1, ..."""

    def __init__(self, ids: NDArray[np.int64], classes: int) -> None:
        self._ids, self._order = np.sort(ids), np.argsort(ids)
        self._named = classes > 0
        self.area = np.zeros((len(ids), classes + 1))
        self._certain = np.zeros((2, len(ids)))

    @property
    def classes(self) -> int:
        return self.area.shape[1] - 1

    @property
    def confidence(self) -> NDArray[np.float64]:
        """The mean of each zone (Z,), NaN where nothing was added."""
        total, area = self._certain
        mean: NDArray[np.float64] = np.divide(total, area, out=np.full(len(area), np.nan), where=area > 0)
        return mean

    def add(
        self,
        covered: _Covered,
        rows: NDArray[np.float64],
        index: NDArray[np.uint8],
        certain: NDArray[np.float64] | None,
    ) -> None:
        """Add a block: the area of a pixel of each row (h,), classes (h, w) and confidences (h, w), NaN for none."""
        codes = (index.reshape(-1)[covered.cells] + np.uint8(1)).astype(np.int64)  # IGNORE, 255, becomes 0
        if len(codes) and codes.max() > self.classes:
            if self._named:
                raise RasterError(
                    f"the map holds class {codes.max() - 1} and names {self.classes}; give a map as `predict` writes it"
                )
            self.area = np.pad(self.area, [(0, 0), (0, int(codes.max()) - self.classes)])
        area = covered.shares * rows[covered.cells // index.shape[1]]
        place = self._order[np.searchsorted(self._ids, covered.zones)]
        local, position = np.unique(place, return_inverse=True)
        width = self.area.shape[1]
        self.area[local] += np.bincount(position * width + codes, area, len(local) * width).reshape(len(local), width)
        if certain is None:
            return
        values = certain.reshape(-1)[covered.cells]
        area = np.where(np.isnan(values) | (codes == 0), 0, area)
        for sums, weights in zip(self._certain, (np.nan_to_num(values) * area, area), strict=True):
            sums[local] += np.bincount(position, weights, len(local))


def _centres(outlines: NDArray[np.object_], ids: NDArray[np.int64], block: Window) -> _Covered:
    """A pixel belongs to every zone that holds its centre."""
    zones, places = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    move = Affine.translation(block.col, block.row)
    groups = _apart(outlines, ids)
    for group in range(groups.max(initial=-1) + 1):
        members = np.flatnonzero(groups == group)
        with gdal_env():
            drawn = rasterize(
                zip(outlines[members], (members + 1).tolist(), strict=True),
                out_shape=(block.height, block.width),
                transform=move,
                dtype="int32",
            ).reshape(-1)
        cells_in = np.flatnonzero(drawn)
        zones.append(ids[drawn[cells_in] - 1])
        places.append(cells_in)
    covered = np.concatenate(places)
    return _Covered(np.concatenate(zones), covered, np.ones(len(covered)))


def _apart(outlines: NDArray[np.object_], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """A group for each outline (N,), such that no two of a group share ground, unless they are of one zone."""
    one, other = shapely.STRtree(outlines).query(outlines, predicate="intersects")
    later = (one > other) & (ids[one] != ids[other])
    one, other = one[later], other[later]
    shared = shapely.relate_pattern(outlines[one], outlines[other], "T********")  # the insides meet
    groups = np.zeros(len(outlines), np.int64)
    neighbours: dict[int, list[int]] = {}
    for later_one, earlier in zip(one[shared].tolist(), other[shared].tolist(), strict=True):
        neighbours.setdefault(later_one, []).append(earlier)
    for number in sorted(neighbours):
        taken = {int(groups[earlier]) for earlier in neighbours[number]}
        groups[number] = next(group for group in range(len(taken) + 1) if group not in taken)
    return groups


def _fractions(outlines: NDArray[np.object_], ids: NDArray[np.int64], block: Window) -> _Covered:
    """A pixel belongs to each zone by the share of it that the zone covers."""
    from exactextract import exact_extract
    from exactextract.raster import NumPyRasterSource

    # Rows run down and exactextract's y runs up.
    upright = shapely.transform(outlines, lambda points: points * (1, -1))
    grid = NumPyRasterSource(
        np.zeros((block.height, block.width), np.uint8),
        xmin=block.col,
        xmax=block.col_stop,
        ymin=-block.row_stop,
        ymax=-block.row,
    )
    shapes = [
        {"type": "Feature", "properties": {"zone": int(zone)}, "geometry": shapely.geometry.mapping(outline)}
        for zone, outline in zip(ids, upright, strict=True)
    ]
    found = exact_extract(grid, shapes, ["cell_id", "coverage"], include_cols=["zone"]) if shapes else []
    parts = [feature["properties"] for feature in found]
    sizes = [len(part["cell_id"]) for part in parts]
    return _Covered(
        np.repeat(np.array([part["zone"] for part in parts], np.int64), sizes),
        np.concatenate([np.zeros(0, np.int64), *(part["cell_id"] for part in parts)]),
        np.concatenate([np.zeros(0), *(part["coverage"] for part in parts)]),
    )


def _require_exactextract() -> None:
    if find_spec("exactextract") is None:
        raise ConfigError(
            'shares of pixels need exactextract: pip install "rs_biformer[zones]"; or leave --fractional out'
        )


def _whole(shapes: NDArray[np.object_], layer: Polygons, placing: Placing) -> NDArray[np.float64]:
    """The area of each zone itself (Z,), in the layer's CRS or, where it says none, the map's."""
    crs = placing.crs if layer.crs is None else CRS.from_wkt(layer.crs.to_wkt())
    parts, owners = shapely.get_parts(shapely.make_valid(shapes), return_index=True)
    areal = shapely.get_dimensions(parts) == 2
    parts, deeper = shapely.get_parts(parts[areal], return_index=True)  # a collection may hold several
    owners = owners[areal][deeper]
    polygons = shapely.get_type_id(parts) == shapely.GeometryType.POLYGON
    outlines = shapely.orient_polygons(parts[polygons])
    placed = placing.transform if is_georeferenced(placing.transform) else _ANYWHERE
    areas: NDArray[Any] = np.bincount(owners[polygons], ground_areas(outlines, crs, placed), len(shapes))
    return areas
