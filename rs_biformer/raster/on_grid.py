"""Between the coordinates of a vector layer and the pixels of a grid.

Pixels are rounded to 2**-32, so that moving them by whole pixels is exact.
"""

from collections.abc import Callable
from math import hypot, inf, isfinite, pi
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import GCPTransformer

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.crs import horizontal, names_a_place, same_crs
from rs_biformer.raster.source import Grid, is_georeferenced

Points = NDArray[np.float64]
"""Positions (N, 2)."""

_SAG = 1 / 32  # pixels by which a straight edge may leave the curve that it is in the grid's CRS
_LATTICE = 17
_SNAP = 2.0**32


class Placement:
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
        pixels = lattice(Window(0, 0, grid.height, grid.width), 0.0).reshape(_LATTICE, _LATTICE, 2)
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


def lattice(window: Window, margin: float) -> Points:
    """Positions (N, 2) over a window and `margin` pixels around it: column, row."""
    cols = np.linspace(window.col - margin, window.col_stop + margin, _LATTICE)
    rows = np.linspace(window.row - margin, window.row_stop + margin, _LATTICE)
    return np.stack([axis.ravel() for axis in np.meshgrid(cols, rows)], axis=1)
