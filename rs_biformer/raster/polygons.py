"""Polygons of a vector layer on a pixel grid, read by window: labels that people draw, and areas.

GeoPackage, Shapefile, FlatGeobuf, GeoJSON and whatever else OGR reads, and GeoParquet. A pixel belongs to the polygon
that holds its centre, which is GDAL's rule (`rasterio.features.rasterize`). A window's result is that part of the
whole grid's, whatever the window: pixels are drawn in blocks that lie on the grid, and coordinates are rounded to
2**-32 pixel so that moving them by whole pixels is exact.

Memory is bounded by the window where the layer has a spatial index and many features; other layers are held once for
each process, as the bytes of their geometries.

What is made of odd geometries: heights are dropped, curves become lines as OGR draws them, the parts of a collection
count each for itself, and an invalid polygon is what the even-odd rule fills (`shapely.make_valid`).
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import hypot, inf, isfinite, pi
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.transform import Affine, GCPTransformer

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window, cells
from rs_biformer.raster import geoparquet
from rs_biformer.raster.crs import horizontal, names_a_place, same_crs
from rs_biformer.raster.gdal import gdal_env
from rs_biformer.raster.kinds import require_layer
from rs_biformer.raster.paths import Location, PathLike, gdal_name, is_remote, locate
from rs_biformer.raster.source import Grid, is_georeferenced

VECTOR_SUFFIXES = (".gpkg", ".shp", ".fgb", ".geojson", ".json", ".geojsonl", ".parquet", ".geoparquet", ".kml", ".gml")
"""What tells a vector layer from a raster."""

Order = Literal["last", "first", "smallest", "schema"]
"""Which polygon counts where several overlap: the later or the earlier one in the file, the smallest, or the one whose
class comes last in the schema (the later one among equals)."""

HELD_FEATURES = 20_000
"""A layer of no more features is held in memory even where it has a spatial index."""

_BLOCK = 256, 512  # rows and columns that are drawn at once
_SURVEY_ROWS = 1024
_FEW_POINTS = 1024  # a polygon of more, densified, is cut to each block first
_MARGIN = 8.0  # pixels around a block within which what is cut must still be right
_SAG = 1 / 32  # pixels by which a straight edge may leave the curve that it is in the grid's CRS
_LATTICE = 17
_SNAP = 2.0**32
_CHUNK = 65536
_AREAS, _LINES, _POINTS = (3, 6), (1, 2, 5), (0, 4)  # shapely's type ids

Points = NDArray[np.float64]
"""Positions (N, 2)."""


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


def is_vector(name: PathLike) -> bool:
    """Whether a file name is that of a vector layer."""
    return os.fspath(name).partition("?")[0].lower().endswith(VECTOR_SUFFIXES)


@dataclass(frozen=True)
class Features:
    """Features in the order of the file: ids (N,), geometries (N,) with None where there is none, columns by name."""

    ids: NDArray[np.int64]
    shapes: NDArray[np.object_]
    columns: dict[str, NDArray[Any]]

    def take(self, chosen: Any) -> "Features":
        """The features at these positions, or where a boolean array is true."""
        return Features(self.ids[chosen], self.shapes[chosen], {k: v[chosen] for k, v in self.columns.items()})


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
        self.layer = _layer(*_key(self.path), self.options.layer)
        self.columns = tuple(columns)
        for name in self.columns:
            if name not in self.layer.fields:
                raise RasterError(
                    f"{self.path} has no attribute {name!r}; it has {', '.join(self.layer.fields) or 'none'}"
                )
        self.notes: tuple[str, ...] = ()
        self.crs = crs = self._layer_crs()
        self._place = _Placement(grid, crs)
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
        if self.layer.count and box and (bounds is None or _meets(np.array([bounds]), box)[0]):
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
            return _none(columns)
        return self.layer.within(box, tuple(columns))

    def _widest(self) -> float:
        """Pixels around a window within which something outside of it may reach into it."""
        if self.options.width is None:
            return 0.0
        return self.options.width / self._place.metres_per_pixel() * 1.5

    def _box(self, window: Window, margin: float = 0.0) -> tuple[float, float, float, float] | None:
        """The box around a window in the layer's coordinates; None where they do not reach it."""
        points = self._place.backward(_lattice(window, margin + _MARGIN))
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
            here |= large & _meets(shapes.bounds, box)
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


class _Placement:
    """Between the coordinates of a layer and the pixels (column, row) of a grid.

    longest: how long a straight edge may be, in units of the layer, so that it leaves the curve that it is on the grid
        by less than _SAG pixels; infinite where straight lines stay straight.
    metre: units of the metric plane in a metre. That plane is the grid's CRS where it is a projection that is taken at
        its word, else a transverse Mercator about the middle of the grid.
    """

    def __init__(self, grid: Grid, crs: pyproj.CRS | None) -> None:
        self._grid = grid
        points, gcp_crs = _gcps(grid)
        own = gcp_crs if points else grid.crs
        self._transformer: pyproj.Transformer | None = None
        if not points and (not is_georeferenced(grid.transform) or grid.transform.is_degenerate):
            raise RasterError(
                f"{grid.path} does not say where it lies, so polygons cannot be drawn on it; georeference it first"
            )
        if crs is not None and own is not None and names_a_place(own):
            if not same_crs(CRS.from_wkt(crs.to_wkt()), own):
                to = pyproj.CRS.from_wkt(horizontal(own).to_wkt())
                self._transformer = pyproj.Transformer.from_crs(crs, to, always_xy=True)
        self._own = own
        self._gcps = points
        self.longest = inf if self._transformer is None and not points else self._longest()
        self._metric = self._metric_plane()
        self.metre = 1.0 if self._metric is not None or own is None else own.linear_units_factor[1]

    def forward(self, points: Points) -> Points:
        """Coordinates of the layer (N, 2) -> pixels (N, 2): column, row."""
        if self._transformer is not None:
            points = np.stack(self._transformer.transform(points[:, 0], points[:, 1]), axis=1)
        return self._pixels(points)

    def backward(self, points: Points) -> Points:
        """Pixels (N, 2) -> coordinates of the layer (N, 2), not finite where there are none."""
        points = self._coordinates(points)
        if self._transformer is not None:
            x, y = self._transformer.transform(points[:, 0], points[:, 1], direction="INVERSE")
            points = np.stack([x, y], axis=1)
        return points

    def placed(self, polygons: NDArray[np.object_]) -> NDArray[np.object_]:
        """Polygons of the layer in pixels."""
        if isfinite(self.longest):
            polygons = shapely.segmentize(polygons, self.longest)
        return _transformed(polygons, lambda points: _snapped(self.forward(points)))

    def to_metric(self, shapes: NDArray[np.object_]) -> NDArray[np.object_]:
        """Shapes of the layer in the metric plane."""
        if isfinite(self.longest):
            shapes = shapely.segmentize(shapes, self.longest)

        def change(points: Points) -> Points:
            if self._transformer is not None:
                points = np.stack(self._transformer.transform(points[:, 0], points[:, 1]), axis=1)
            if self._metric is not None:
                points = np.stack(self._metric.transform(points[:, 0], points[:, 1]), axis=1)
            return points

        return _transformed(shapes, change)

    def placed_metric(self, polygons: NDArray[np.object_]) -> NDArray[np.object_]:
        """Polygons of the metric plane in pixels."""

        def change(points: Points) -> Points:
            if self._metric is not None:
                x, y = self._metric.transform(points[:, 0], points[:, 1], direction="INVERSE")
                points = np.stack([x, y], axis=1)
            return _snapped(self._pixels(points))

        return _transformed(polygons, change)

    def metres_per_pixel(self) -> float:
        """The shorter side of a pixel on the ground, in metres."""
        grid = self._grid
        middle = np.array([[grid.width / 2, grid.height / 2]])
        corners = self._coordinates(np.concatenate([middle, middle + (1, 0), middle + (0, 1)]))
        if self._metric is not None:
            corners = np.stack(self._metric.transform(corners[:, 0], corners[:, 1]), axis=1)
        along, down = corners[1] - corners[0], corners[2] - corners[0]
        return float(min(hypot(*along), hypot(*down)) * self.metre)

    def _pixels(self, points: Points) -> Points:
        """Coordinates of the grid's CRS -> pixels."""
        if self._gcps:
            with GCPTransformer(self._gcps) as transformer:
                rows, cols = transformer.rowcol(points[:, 0], points[:, 1], op=np.asarray)
            return np.stack([cols, rows], axis=1).astype(np.float64)
        a, b, c, d, e, f = tuple(self._grid.transform)[:6]
        x, y = points.T
        if b == 0 and d == 0:  # in the order of GDAL's arithmetic, so that ties fall to the same side
            return np.stack([-c / a + x * (1 / a), -f / e + y * (1 / e)], axis=1)
        x, y = x - c, y - f
        pixels: NDArray[np.float64] = np.stack([e * x - b * y, a * y - d * x], axis=1) / (a * e - b * d)
        return pixels

    def _coordinates(self, points: Points) -> Points:
        """Pixels -> coordinates of the grid's CRS."""
        if self._gcps:
            with GCPTransformer(self._gcps) as transformer:
                x, y = transformer.xy(points[:, 1], points[:, 0], offset="ul")
            return np.stack([x, y], axis=1).astype(np.float64)
        a, b, c, d, e, f = tuple(self._grid.transform)[:6]
        return np.stack([a * points[:, 0] + b * points[:, 1] + c, d * points[:, 0] + e * points[:, 1] + f], axis=1)

    def _longest(self) -> float:
        grid = self._grid
        pixels = _lattice(Window(0, 0, grid.height, grid.width), 0.0).reshape(_LATTICE, _LATTICE, 2)
        there = self.backward(pixels.reshape(-1, 2)).reshape(pixels.shape)
        best, step = inf, _LATTICE // 4
        for down, right in ((step, 0), (0, step), (step, step)):
            one, other = there[: _LATTICE - down, : _LATTICE - right], there[down:, right:]
            straight = (pixels[: _LATTICE - down, : _LATTICE - right] + pixels[down:, right:]) / 2
            middle = self.forward(((one + other) / 2).reshape(-1, 2)).reshape(straight.shape)
            sag = np.linalg.norm(middle - straight, axis=-1)
            with np.errstate(divide="ignore", invalid="ignore"):
                # The sag grows with the square of the length.
                longest = np.linalg.norm(one - other, axis=-1) * np.sqrt(_SAG / sag)
            longest = longest[np.isfinite(longest) & (sag > 1e-6)]
            best = min(best, float(longest.min()) if longest.size else inf)
        return best

    def _metric_plane(self) -> pyproj.Transformer | None:
        """From the grid's CRS to metres about its middle, None where the grid's CRS will do."""
        own = self._own
        if own is None or not names_a_place(own):
            return None
        projection = own.to_dict(projjson=False).get("proj") if own.is_projected else None
        if own.is_projected and projection not in ("merc", "webmerc"):
            return None
        to = pyproj.CRS.from_wkt(horizontal(own).to_wkt())
        geographic = to.geodetic_crs or to
        middle = self._coordinates(np.array([[self._grid.width / 2, self._grid.height / 2]]))
        lon, lat = pyproj.Transformer.from_crs(to, geographic, always_xy=True).transform(*middle[0])
        unit = geographic.axis_info[0].unit_conversion_factor * 180 / pi
        plane = pyproj.CRS.from_proj4(
            f"+proj=tmerc +lat_0={lat * unit:.12f} +lon_0={lon * unit:.12f} +k=1 +units=m +ellps=WGS84"
        )
        return pyproj.Transformer.from_crs(to, plane, always_xy=True)


def _gcps(grid: Any) -> tuple[list[Any], CRS | None]:
    """The ground control points that place a grid without a transform."""
    if is_georeferenced(grid.transform):
        return [], None
    given: Any = getattr(grid, "gcps", None) or getattr(grid, "georeference", {}).get("gcps") or ([], None)
    return list(given[0]), given[1]


def _snapped(points: Points) -> Points:
    return np.rint(points * _SNAP) / _SNAP


def _transformed(shapes: NDArray[np.object_], change: Callable[[Points], Points]) -> NDArray[np.object_]:
    if not len(shapes):
        return shapes
    result: NDArray[np.object_] = shapely.transform(shapes, change)
    return result


def _lattice(window: Window, margin: float) -> Points:
    """Positions (N, 2) over a window and `margin` pixels around it: column, row."""
    cols = np.linspace(window.col - margin, window.col_stop + margin, _LATTICE)
    rows = np.linspace(window.row - margin, window.row_stop + margin, _LATTICE)
    return np.stack([axis.ravel() for axis in np.meshgrid(cols, rows)], axis=1)


def _box_text(box: Sequence[float]) -> str:
    return "x {0:.7g} to {2:.7g}, y {1:.7g} to {3:.7g}".format(*box)


def _grown(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """The box with its own size around it."""
    left, bottom, right, top = box
    width, height = right - left, top - bottom
    return left - width, bottom - height, right + width, top + height


def _meets(bounds: NDArray[np.float64], box: tuple[float, float, float, float]) -> NDArray[np.bool_]:
    """Which bounds (N, 4) share a point with a box; those that are NaN do not."""
    left, bottom, right, top = box
    with np.errstate(invalid="ignore"):
        return (bounds[:, 0] <= right) & (bounds[:, 2] >= left) & (bounds[:, 1] <= top) & (bounds[:, 3] >= bottom)


def _parsed(wkb: NDArray[np.object_]) -> NDArray[np.object_]:
    """Geometries in the plane, None for none and for what is no geometry (a ring of two points)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = shapely.from_wkb(wkb, on_invalid="ignore")
    result: NDArray[np.object_] = shapely.force_2d(shapes)
    return result


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


def plain_value(value: Any) -> Any:
    """An attribute's value as text, whole number, or whatever else it is; None for null."""
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, bool):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True)
class _Layer:
    """A layer of a file. fields: its attributes. bounds: of all its features, None where the file does not tell.

    indexed: features are looked up on disk, by the file's own spatial index.
    flat: `lines` or `points` where the layer is declared to have nothing else.
    """

    path: Location
    name: str | None
    crs: str | None
    fields: tuple[str, ...]
    count: int
    bounds: tuple[float, ...] | None
    indexed: bool
    stamp: tuple[int, int]
    flat: str = ""

    def within(self, box: tuple[float, float, float, float], columns: tuple[str, ...]) -> Features:
        """The features whose bounds meet a box, in the order of the file."""
        if self.indexed:
            found = _from_ogr(self, columns, bbox=box)
            shapes = _parsed(found.shapes)
            features = Features(found.ids, shapes, found.columns)
            features = features.take(np.argsort(features.ids, kind="stable"))
            return features.take(_meets(shapely.bounds(features.shapes).reshape(-1, 4), box))
        held, bounds = _held(self, columns)
        chosen = held.take(_meets(bounds, box))
        return Features(chosen.ids, _parsed(chosen.shapes), chosen.columns)

    def all(self, columns: tuple[str, ...]) -> Features:
        """The features that have a geometry, wherever the file says that they lie."""
        found = _from_ogr(self, columns) if self.indexed else _held(self, columns)[0]
        features = Features(found.ids, _parsed(found.shapes), found.columns)
        return features.take(~shapely.is_missing(features.shapes) & ~shapely.is_empty(features.shapes))


def _none(columns: Sequence[str]) -> Features:
    return Features(np.zeros(0, np.int64), np.zeros(0, object), {name: np.zeros(0, object) for name in columns})


def _key(path: Location) -> tuple[Location, tuple[int, int]]:
    """The file and what changes when it is written again."""
    if isinstance(path, str):
        return path, (0, 0)
    try:
        facts = path.stat()
    except OSError as error:
        raise RasterError(f"{path} cannot be opened: {error.strerror}; give the path of a vector layer") from None
    return path, (facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=64)
def _layer(path: Location, stamp: tuple[int, int], name: str | None) -> _Layer:
    """What a layer is. Raises RasterError where the file cannot be read, or holds several layers and none is named."""
    if _is_parquet(path):
        return _parquet_layer(path, stamp, name)
    if not is_remote(path):
        require_layer(path)
    from pyogrio import __gdal_version__, list_layers, read_info, set_gdal_config_options
    from pyogrio.errors import DataSourceError

    # GDAL would ask the server that a GML names for its schema.
    schema = "GML_DOWNLOAD_SCHEMA" if __gdal_version__ >= (3, 12) else "GML_DOWNLOAD_WFS_SCHEMA"
    set_gdal_config_options({schema: "NO"})
    try:
        layers = [str(row[0]) for row in list_layers(gdal_name(path)) if row[1] is not None]
        chosen = _chosen_layer(path, layers, name)
        info = read_info(gdal_name(path), layer=chosen, force_feature_count=True, force_total_bounds=True)
    except (DataSourceError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).partition(" It might help")[0]  # to name a driver, of which CSV is one
        reason = reason.rstrip(".;") + "."
        raise RasterError(f"{path} cannot be read as polygons: {reason}") from None
    bounds = info["total_bounds"]
    fast = bool(info["capabilities"]["fast_spatial_filter"])
    return _Layer(
        path,
        chosen,
        info["crs"],
        tuple(map(str, info["fields"])),
        int(info["features"]),
        None if bounds is None or not np.isfinite(bounds).all() else tuple(map(float, bounds)),
        fast and info["features"] > HELD_FEATURES,
        stamp,
        _flat(info["geometry_type"]),
    )


def _flat(kind: str | None) -> str:
    """`lines` or `points` for the declared geometry of such a layer: LineString, 2.5D MultiPoint, Point Z, ..."""
    kinds = {"LineString": "lines", "Point": "points"}
    return next((plural for name, plural in kinds.items() if name in (kind or "")), "")


def _chosen_layer(path: Location, layers: list[str], name: str | None) -> str:
    if name is not None and name not in layers:
        raise RasterError(f"{path} has no layer {name!r} with geometries; it has {', '.join(layers) or 'none'}")
    if name is None and len(layers) != 1:
        what = f"{len(layers)} layers ({', '.join(layers)}); name one with --label-layer" if layers else "no layer"
        raise RasterError(f"{path} has {what}")
    return name or layers[0]


def _from_ogr(layer: _Layer, columns: tuple[str, ...], **filters: Any) -> Features:
    """Features with their geometries as WKB, as OGR gives them."""
    from pyogrio.raw import read

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd rings and dates: geometries are looked at by us
            facts, ids, shapes, data = read(
                gdal_name(layer.path),
                layer=layer.name,
                columns=list(columns),
                return_fids=True,
                force_2d=True,
                **filters,
            )
    except (ValueError, RuntimeError) as error:
        raise RasterError(f"{layer.path} cannot be read: {' '.join(str(error).split())}") from None
    # Releases of pyogrio differ in whether the order is the file's or ours; each says which it took.
    return Features(ids, shapes, dict(zip(map(str, facts["fields"]), data, strict=True)))


@lru_cache(maxsize=4)
def _held(layer: _Layer, columns: tuple[str, ...]) -> tuple[Features, NDArray[np.float64]]:
    """All features of a layer, geometries as WKB, and their bounds (N, 4)."""
    features = _from_parquet(layer, columns) if _is_parquet(layer.path) else _from_ogr(layer, columns)
    bounds = np.full((len(features.ids), 4), np.nan)
    for start in range(0, len(bounds), _CHUNK):
        part = slice(start, start + _CHUNK)
        bounds[part] = shapely.bounds(_parsed(features.shapes[part])).reshape(-1, 4)
    return features, bounds


def _is_parquet(path: Location) -> bool:
    return str(path).lower().endswith((".parquet", ".geoparquet"))


def _parquet_layer(path: Location, stamp: tuple[int, int], name: str | None) -> _Layer:
    """A GeoParquet file. Its ids are the numbers of its rows."""
    if name is not None:
        raise RasterError(f"{path} is GeoParquet, which has one layer; leave --label-layer out")
    if is_remote(path):
        raise RasterError(f"{path} is GeoParquet, which is read from files only; download it")
    found = geoparquet.describe(Path(path))
    return _Layer(path, found.geometry, found.crs, found.fields, found.rows, found.bounds, False, stamp)


def _from_parquet(layer: _Layer, columns: tuple[str, ...]) -> Features:
    assert layer.name is not None
    shapes, values = geoparquet.read(Path(layer.path), layer.name, columns)
    return Features(np.arange(len(shapes)), shapes, values)
