"""Where the pixels of a raster lie on the ground: by a transform, or by control points alone."""

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyproj
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine, GCPTransformer, from_gcps

from rs_biformer.raster.gdal import gdal_env
from rs_biformer.raster.source import is_georeferenced, matrix

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placing:
    """The way from pixels to coordinates in a CRS.

    transform: the whole of it, or where control points place the raster, the plane of least squares through them.
    control: those points (`rasterio.control.GroundControlPoint`), none where the transform says it all.
    factor: coordinates are multiplied by it, see `in_metres`.
    """

    crs: CRS | None
    transform: Affine
    control: tuple[Any, ...] = ()
    factor: float = 1.0

    @classmethod
    def of(cls, crs: CRS | None, transform: Affine, gcps: tuple[list[Any], CRS | None]) -> "Placing":
        """That of a raster: its transform, and its control points only where it has none."""
        points, control_crs = gcps
        if is_georeferenced(transform) or len(points) < 3:
            return cls(crs, transform)
        return cls(control_crs or crs, from_gcps(points), tuple(points))

    def ground(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Coordinates (n, 2) of points (n, 2) in pixels: column and row, 0, 0 the upper left corner of the raster."""
        if not self.control:
            a, b, c, d, e, f = tuple(self.transform)[:6]
            found: NDArray[np.float64] = pixels @ np.array([[a, d], [b, e]]) + (c, f)
            return found * self.factor if self.factor != 1 else found
        with gdal_env():
            x, y = self._transformer.xy(pixels[:, 1], pixels[:, 0], offset="ul")
        return np.stack([x, y], axis=1) * self.factor

    @cached_property
    def _transformer(self) -> GCPTransformer:
        return GCPTransformer(list(self.control))

    @property
    def is_mirrored(self) -> bool:
        """Whether rows run north where columns run east: what turns left in pixels turns left on the ground."""
        return float(np.linalg.det(matrix(self.transform)[:2, :2])) > 0

    def in_metres(self) -> "Placing":
        """The same places in the same projection counted in metres, where its own unit has no code that says so.

        GDAL's vector drivers take a UTM zone in feet or kilometres for the zone in metres, and write its code.
        """
        if self.crs is None or not self.crs.is_projected:
            return self
        factor = float(self.crs.linear_units_factor[1])
        system = pyproj.CRS.from_wkt(self.crs.to_wkt(version="WKT2_2019"))
        if factor == 1 or system.to_authority(min_confidence=100) is not None:
            return self
        described = system.to_json_dict()
        for axis in described["coordinate_system"]["axis"]:
            axis["unit"] = "metre"
        metres = pyproj.CRS.from_json_dict(described)
        _LOG.warning("the unit of the map's CRS is %s; polygons are written in metres", system.axis_info[0].unit_name)
        return Placing(CRS.from_wkt(metres.to_wkt()), self.transform, self.control, self.factor * factor)
