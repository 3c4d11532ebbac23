"""Polygons of a vector layer on a pixel grid, read by window: labels that people draw, and areas.

A pixel belongs to the polygon that holds its centre, which is GDAL's rule (`rasterio.features.rasterize`). A window's
result is that part of the whole grid's, whatever the window: pixels are drawn in blocks that lie on the grid, and
coordinates are rounded so that moving them by whole pixels is exact (`on_grid`). Memory is bounded as `layer` says.

What is made of odd geometries: heights are dropped, curves become lines as OGR draws them, the parts of a collection
count each for itself, and an invalid polygon is what the even-odd rule fills (`shapely.make_valid`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any, Literal, get_args

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.transform import Affine

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window, cells
from rs_biformer.raster.gdal import gdal_env
from rs_biformer.raster.layer import Box, Features, meets, none_of, open_layer, plain_value
from rs_biformer.raster.on_grid import Placement, lattice
from rs_biformer.raster.paths import Location, PathLike, locate
from rs_biformer.raster.source import Grid

Order = Literal["last", "first", "smallest", "schema"]
"""Which polygon counts where several overlap: the later or the earlier one in the file, the smallest, or the one whose
class comes last in the schema (the later one among equals)."""

_BLOCK = 256, 512  # rows and columns that are drawn at once
_SURVEY_ROWS = 1024
_FEW_POINTS = 1024  # a polygon of more, densified, is cut to each block first
_MARGIN = 8.0  # pixels around a block within which what is cut must still be right
_AREAS, _LINES, _POINTS = (3, 6), (1, 2, 5), (0, 4)  # shapely's type ids


@dataclass(frozen=True)
class PolygonOptions:
    """How a vector layer is read.

    layer: its name; may be left out where the file has one. crs: what the coordinates are in, whatever the file says.
    width: metres that lines and points are wide; they are left out without one.
    order: which polygon counts where several overlap, see Order.

    Raises ConfigError for a width that is not above 0 or an order that there is not.
    """

    layer: str | None = None
    crs: str | None = None
    width: float | None = None
    order: Order = "last"

    def __post_init__(self) -> None:
        if self.width is not None and not 0 < self.width < inf:
            raise ConfigError(f"lines and points are to be {self.width} m wide; it must be more than 0")
        if self.order not in get_args(Order):
            raise ConfigError(f"no order {self.order!r} of polygons; use {', '.join(get_args(Order))}")


@dataclass
class Survey:
    """What a layer holds within a grid, feature by feature.

    kinds: how many polygons, lines, points there are, and how many have no geometry. invalid: ids of geometries that
    had to be made valid. values: for each column, how many features have each value (None for null).
    """

    kinds: Counter[str] = field(default_factory=Counter)
    invalid: list[int] = field(default_factory=list)
    values: dict[str, Counter[Any]] = field(default_factory=dict)


class Polygons:
    """The features of a layer on a pixel grid.

    Raises RasterError where the file or layer cannot be read, or one of the two does not say where it lies; ConfigError
    for a CRS that there is not.
    """

    def __init__(
        self, path: PathLike, grid: Grid, options: PolygonOptions | None = None, columns: Sequence[str] = ()
    ) -> None:
        self.path: Location = locate(path)
        self.grid, self.options = grid, options or PolygonOptions()
        self.layer = open_layer(self.path, self.options.layer)
        self.columns = tuple(columns)
        for name in self.columns:
            if name not in self.layer.fields:
                raise RasterError(
                    f"{self.path} has no attribute {name!r}; it has {', '.join(self.layer.fields) or 'none'}"
                )
        self.notes: tuple[str, ...] = ()
        self.crs = crs = self._layer_crs()
        self._place = Placement(grid, crs)
        self._whole = Window(0, 0, grid.height, grid.width)
        self._degrees = crs is not None and crs.is_geographic
        box = self._box(self._whole)
        self._reach = None if box is None else _grown(box)

    def _layer_crs(self) -> pyproj.CRS | None:
        """What the coordinates of the layer are in; None for what the grid is in."""
        if self.options.crs is not None:
            try:
                return pyproj.CRS.from_user_input(self.options.crs)
            except pyproj.exceptions.CRSError:
                raise ConfigError(f"no CRS {self.options.crs!r}; write it as EPSG:32633 or as WKT") from None
        if self.layer.crs is None:
            self.notes += (f"{self.path} does not say what its coordinates are in; taken for the CRS of the scene",)
            return None
        crs = pyproj.CRS.from_user_input(self.layer.crs)
        bounds = self.layer.bounds
        if crs.is_geographic and bounds is not None and max(map(abs, bounds)) > 400:
            self.notes += (
                f"{self.path} says that its coordinates are degrees and has {max(bounds, key=abs):.0f}; taken for the "
                "CRS of the scene (--label-crs says otherwise)",
            )
            return None
        return crs

    def require_overlap(self, hint: str = "") -> None:
        """Raise RasterError, with both boxes, where no feature can lie on the grid. hint: ends the message."""
        box, bounds = self._box(self._whole, self._widest()), self.layer.bounds
        if self.layer.count and box and (bounds is None or meets(np.array([bounds]), box)[0]):
            return
        there = "nothing" if not self.layer.count or bounds is None else _box_text(bounds)
        here = "not in its CRS" if box is None else f"at {_box_text(box)} in its CRS"
        raise RasterError(
            f"{self.path} does not overlap {self.grid.path}: it holds {there}, and the scene lies {here}; check the "
            f"file and what its coordinates are in{hint}"
        )

    def survey(self, columns: Sequence[str]) -> Survey:
        """What the layer holds within the grid, and the values of these columns."""
        survey, seen = Survey(values={name: Counter() for name in columns}), set[int]()
        for strip in cells(self._whole, _SURVEY_ROWS, self.grid.width):
            features = self._features(strip, columns)
            fresh = np.array([number not in seen for number in features.ids.tolist()], bool)
            features = features.take(fresh)
            seen.update(features.ids.tolist())
            _look(features, survey)
        return survey

    def read(
        self, window: Window, code: Callable[[Features], NDArray[np.int16]], fill: int
    ) -> tuple[NDArray[np.int16], Features]:
        """The code of each pixel of a window (h, w) int16, `fill` where there is none, and the features around it.

        code: gives each feature its number, above 0 or not; -1 leaves it out.
        Raises RasterError when the window leaves the grid or the layer cannot be read.
        """
        if window.row_stop > self.grid.height or window.col_stop > self.grid.width:
            raise RasterError(f"{self.grid.path} is {self.grid.height} x {self.grid.width} pixels; {window} leaves it")
        drawn = np.full((window.height, window.width), fill, np.int16)
        outer = window.aligned(*_BLOCK, self.grid.height, self.grid.width)
        features = self._features(outer, self.columns)
        codes = code(features)
        shapes = self._shapes(features, np.flatnonzero(codes >= 0), codes)
        for block in cells(outer, *_BLOCK):
            common = block.intersection(window)
            if common is not None and len(shapes.owners):
                burnt = self._burn(shapes, codes, block, fill)
                drawn[common.within(window)] = burnt[common.within(block)]
        return drawn, features

    def _features(self, window: Window, columns: Sequence[str]) -> Features:
        box = self._box(window, self._widest())
        if box is None:
            return none_of(columns)
        return self.layer.within(box, tuple(columns))

    def _widest(self) -> float:
        """Pixels around a window within which something outside of it may reach into it."""
        if self.options.width is None:
            return 0.0
        return self.options.width / self._place.metres_per_pixel() * 1.5

    def _box(self, window: Window, margin: float = 0.0) -> Box | None:
        """The box around a window in the layer's coordinates; None where they do not reach it."""
        points = self._place.backward(lattice(window, margin + _MARGIN))
        points = points[np.isfinite(points).all(axis=1)]
        if not len(points):
            return None
        (left, bottom), (right, top) = points.min(axis=0), points.max(axis=0)
        if self._degrees and right - left > 180:  # across the antimeridian
            left, right = -180.0, 180.0
        return float(left), float(bottom), float(right), float(top)

    def _shapes(self, features: Features, chosen: NDArray[np.intp], codes: NDArray[np.int16]) -> "_Shapes":
        """The polygons of features, in the order in which they are drawn."""
        polygons, owners, metric = self._polygonal(features, chosen)
        order = _drawing_order(self.options.order, polygons, owners, codes)
        return self._sorted(polygons[order], owners[order], metric[order])

    def _polygonal(
        self, features: Features, chosen: NDArray[np.intp]
    ) -> tuple[NDArray[np.object_], NDArray[np.intp], NDArray[np.bool_]]:
        """Simple polygons, the feature that each belongs to, and whether it is in the metric plane."""
        parts, owners = _parts(_repaired(features.shapes[chosen])[0], chosen)
        kinds = shapely.get_type_id(parts)
        areas = np.isin(kinds, _AREAS)
        polygons, of_polygon = parts[areas], owners[areas]
        if self._degrees:
            self._require_unbroken(polygons, features.ids[of_polygon])
        if self.options.width is None or areas.all():
            return polygons, of_polygon, np.zeros(len(polygons), bool)
        thin = self._place.to_metric(parts[~areas])
        wide = shapely.buffer(thin, self.options.width / self._place.metre / 2)
        wide, of_wide = _parts(wide, owners[~areas])
        return (
            np.concatenate([polygons, wide]),
            np.concatenate([of_polygon, of_wide]),
            np.arange(len(polygons) + len(wide)) >= len(polygons),
        )

    def _require_unbroken(self, polygons: NDArray[np.object_], ids: NDArray[np.int64]) -> None:
        """Refuse what jumps over the antimeridian; a ring once around the globe is no jump."""
        bounds = shapely.bounds(polygons).reshape(-1, 4)
        for number in np.flatnonzero(bounds[:, 2] - bounds[:, 0] > 180):
            x = shapely.get_coordinates(polygons[number])[:, 0]
            if ((abs(np.diff(x)) > 180) & (abs(np.diff(x)) < 360)).any():
                raise RasterError(
                    f"{self.path}: feature {ids[number]} has an edge of more than 180 degrees of longitude, as if it "
                    "crossed the antimeridian; cut it there into two parts (RFC 7946, 3.1.9)"
                )

    def _sorted(self, polygons: NDArray[np.object_], owners: NDArray[np.intp], metric: NDArray[np.bool_]) -> "_Shapes":
        """Small polygons placed on the grid at once, large ones left to be cut for each block."""
        points = shapely.get_num_coordinates(polygons).astype(np.float64)
        if isfinite(self._place.longest):
            points += shapely.length(polygons) / self._place.longest * ~metric
        bounds = shapely.bounds(polygons).reshape(-1, 4)
        assert self._reach is not None
        left, bottom, right, top = self._reach
        near = (bounds[:, :2] >= (left, bottom)).all(axis=1) & (bounds[:, 2:] <= (right, top)).all(axis=1)
        small = metric | ((points <= _FEW_POINTS) & near)
        placed = np.full(len(polygons), None, object)
        placed[small & ~metric] = self._place.placed(polygons[small & ~metric])
        placed[metric] = self._place.placed_metric(polygons[metric])
        placed_bounds = np.full((len(polygons), 4), np.nan)
        placed_bounds[small] = shapely.bounds(placed[small]).reshape(-1, 4)
        return _Shapes(owners, polygons, bounds, placed, placed_bounds)

    def everything(self) -> Features:
        """All features of the layer that have a geometry, on the grid or not, with all attributes."""
        return self.layer.all(self.layer.fields)

    def outlines(self, block: Window) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
        """Simple polygons that may lie on a block, in pixels of the grid (N,), and the ids of their features (N,).

        What reaches far beyond the block is cut around it. Raises RasterError when the layer cannot be read.
        """
        features = self._features(block, ())
        everything = np.arange(len(features.ids))
        chosen = self._chosen(self._shapes(features, everything, np.zeros(len(everything), np.int16)), block)
        outlines = np.full(len(chosen), None, object)
        outlines[:] = [shape for shape, _ in chosen]
        return outlines, features.ids[np.array([owner for _, owner in chosen], np.intp)]

    def _burn(self, shapes: "_Shapes", codes: NDArray[np.int16], block: Window, fill: int) -> NDArray[np.int16]:
        """A block of the grid (h, w), drawn."""
        size = (block.height, block.width)
        chosen = [(shape, int(codes[owner])) for shape, owner in self._chosen(shapes, block)]
        if not chosen:
            return np.full(size, fill, np.int16)
        with gdal_env():
            burnt: NDArray[np.int16] = rasterize(
                chosen, out_shape=size, fill=fill, transform=Affine.translation(block.col, block.row), dtype="int16"
            )
        return burnt

    def _chosen(self, shapes: "_Shapes", block: Window) -> list[tuple[Any, int]]:
        """What may lie on a block, placed on the grid, in drawing order, each with the position of its feature."""
        chosen: list[tuple[Any, int]] = []
        bounds = shapes.placed_bounds
        with np.errstate(invalid="ignore"):
            here = (bounds[:, 0] <= block.col_stop) & (bounds[:, 2] >= block.col)
            here &= (bounds[:, 1] <= block.row_stop) & (bounds[:, 3] >= block.row)
        large = np.isnan(bounds[:, 0])
        box = self._box(block) if large.any() else None
        if box is not None:
            here |= large & meets(shapes.bounds, box)
        for number in np.flatnonzero(here):
            owner = int(shapes.owners[number])
            if large[number]:
                assert box is not None
                cut, _ = _parts(
                    np.array([shapely.clip_by_rect(shapes.polygons[number], *box)], object), np.zeros(1, int)
                )
                areas = cut[np.isin(shapely.get_type_id(cut), _AREAS)]
                chosen += [(shape, owner) for shape in self._place.placed(areas) if not shape.is_empty]
            else:
                chosen.append((shapes.placed[number], owner))
        return chosen


class Area:
    """The inside of the polygons of a layer, on a grid, by window.

    Raises RasterError where the layer cannot be read, holds only lines or points, or does not overlap the grid.
    """

    def __init__(self, path: PathLike, grid: Grid, options: PolygonOptions | None = None) -> None:
        self._polygons = Polygons(path, grid, options)
        self.path, self.notes = self._polygons.path, self._polygons.notes
        if self._polygons.layer.flat:
            raise RasterError(f"{self.path} holds {self._polygons.layer.flat} and no polygons; an area needs polygons")
        self._polygons.require_overlap()

    def inside(self, window: Window) -> NDArray[np.bool_]:
        """Which pixels of a window of the grid have their centre in a polygon (h, w)."""
        drawn, _ = self._polygons.read(window, lambda features: np.ones(len(features.ids), np.int16), 0)
        result: NDArray[np.bool_] = drawn > 0
        return result


@dataclass(frozen=True)
class _Shapes:
    """Polygons in drawing order: which feature each is of; itself and its bounds in the layer's coordinates; placed on
    the grid with its bounds there, None and NaN where it is large.
    """

    owners: NDArray[np.intp]
    polygons: NDArray[np.object_]
    bounds: NDArray[np.float64]
    placed: NDArray[np.object_]
    placed_bounds: NDArray[np.float64]


def _box_text(box: Sequence[float]) -> str:
    return "x {0:.7g} to {2:.7g}, y {1:.7g} to {3:.7g}".format(*box)


def _grown(box: Box) -> Box:
    """The box with its own size around it."""
    left, bottom, right, top = box
    width, height = right - left, top - bottom
    return left - width, bottom - height, right + width, top + height


def _repaired(shapes: NDArray[np.object_]) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
    """The geometries with the invalid ones made valid, and which those were."""
    invalid = ~shapely.is_valid(shapes) & ~shapely.is_missing(shapes)
    if invalid.any():
        shapes = shapes.copy()
        shapes[invalid] = shapely.make_valid(shapes[invalid])
    return shapes, invalid


def _parts(shapes: NDArray[np.object_], owners: NDArray[Any]) -> tuple[NDArray[np.object_], NDArray[np.intp]]:
    """The single parts of geometries and the owner of each, in order; nothing of what is empty or missing."""
    while True:
        parts, index = shapely.get_parts(shapes, return_index=True)
        owners, shapes = owners[index], parts
        if not (shapely.get_type_id(shapes) > _AREAS[0]).any():
            filled = ~shapely.is_empty(shapes)
            return shapes[filled], owners[filled]


def _drawing_order(
    order: Order, polygons: NDArray[np.object_], owners: NDArray[np.intp], codes: NDArray[np.int16]
) -> NDArray[np.intp]:
    """Positions of polygons in the order in which they are drawn, later ones over earlier ones."""
    if order == "first":
        return np.argsort(-owners, kind="stable")
    if order == "smallest":
        return np.lexsort((owners, -shapely.area(polygons)))
    if order == "schema":
        return np.lexsort((owners, codes[owners]))
    return np.argsort(owners, kind="stable")


def _look(features: Features, survey: Survey) -> None:
    """Add features to a survey."""
    missing = shapely.is_missing(features.shapes) | shapely.is_empty(features.shapes)
    shapes, invalid = _repaired(features.shapes)
    survey.invalid += features.ids[invalid].tolist()
    survey.kinds["none"] += int(missing.sum())
    parts, owners = _parts(shapes, np.arange(len(shapes)))
    kinds = shapely.get_type_id(parts)
    for name, ids in (("polygons", _AREAS), ("lines", _LINES), ("points", _POINTS)):
        survey.kinds[name] += len(np.unique(owners[np.isin(kinds, ids)]))
    for name, counts in survey.values.items():
        counts.update(map(plain_value, features.columns[name].tolist()))
