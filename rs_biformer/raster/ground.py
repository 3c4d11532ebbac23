"""Square metres on the ground, from coordinates in a CRS."""

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as reproject

from rs_biformer.errors import ConfigError
from rs_biformer.raster.gdal import gdal_env
from rs_biformer.raster.patches import sum_by
from rs_biformer.raster.source import is_georeferenced

_AXIS = 6_378_137.0  # of the WGS 84 ellipsoid, metres
_ECCENTRICITY = 0.081819190842622
_LONLAT = CRS.from_epsg(4326)


class Metres(float):
    """A length on the ground, where a plain number would be one of pixels."""


def in_pixels(length: float, crs: CRS | None, transform: Affine, shape: tuple[int, int]) -> float:
    """A length in pixels of a grid of this shape (h, w); of Metres by the side of a square as large as a middle pixel.

    Raises ConfigError for metres on a grid that lies nowhere.
    """
    if not isinstance(length, Metres):
        return length
    if crs is None or not is_georeferenced(transform):
        raise ConfigError(f"{float(length):g} m cannot be told in pixels, as the map has no CRS; give pixels")
    middle = transform * Affine.translation(0, shape[0] // 2)
    return float(length) / float(np.sqrt(pixel_areas(crs, middle, 1, shape[1])[0]))


def ground_areas(polygons: NDArray[np.object_], crs: CRS | None, transform: Affine) -> NDArray[np.float64]:
    """Area of each polygon, which lies on the grid of `transform`, in square metres.

    In degrees and in Mercator projections, which stretch areas by 1 / cos(latitude)^2, it is the area on the ellipsoid
    between straight lines of that CRS; in other projections it is that in the plane, as GIS programs give it for a
    layer. Without a CRS or a transform it is in the square units of the coordinates.

    polygons: with holes that run the other way than the outer ring.
    """
    if crs is None or not is_georeferenced(transform):
        units: NDArray[np.float64] = shapely.area(polygons)
        return units
    if crs.is_geographic or (crs.is_projected and crs.to_dict().get("proj") in ("merc", "webmerc")):
        return _on_ellipsoid(polygons, crs)
    metres = crs.linear_units_factor[1] if crs.is_projected else 1.0
    plane: NDArray[np.float64] = shapely.area(polygons) * metres**2
    return plane


def pixel_areas(crs: CRS | None, transform: Affine, height: int, width: int) -> NDArray[np.float64]:
    """Area of a pixel in the middle of each row of a grid (height,), as `ground_areas` gives it."""
    rows = np.arange(height)
    left = np.full(height, width // 2)
    corners = np.stack([[left, rows], [left + 1, rows], [left + 1, rows + 1], [left, rows + 1]], axis=0)
    x, y = corners.transpose(1, 2, 0)
    a, b, c, d, e, f = tuple(transform)[:6]
    pixels = shapely.polygons(np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1))
    return ground_areas(pixels, crs, transform)


def _on_ellipsoid(polygons: NDArray[np.object_], crs: CRS) -> NDArray[np.float64]:
    """The line integral of the zone's area over longitude, along the edges of all rings."""
    rings, of_ring = shapely.get_rings(polygons, return_index=True)
    points, of_point = shapely.get_coordinates(rings, return_index=True)
    x, y = points.T
    if not crs.is_geographic:
        with gdal_env():
            x, y = (np.asarray(values) for values in reproject(crs, _LONLAT, x, y))
    edge = np.flatnonzero(of_point[1:] == of_point[:-1])
    longitude, latitude = np.radians(x), np.radians(y)
    middle = (latitude[edge] + latitude[edge + 1]) / 2
    zone = (_zone(latitude[edge]) + 4 * _zone(middle) + _zone(latitude[edge + 1])) / 6  # Simpson
    swept = -(longitude[edge + 1] - longitude[edge]) * zone
    return np.abs(sum_by(of_ring[of_point[edge]], swept, len(polygons)))


def _zone(latitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square metres per radian of longitude between the equator and a latitude (Snyder 1987, equation 3-12)."""
    sine = _ECCENTRICITY * np.sin(latitude)
    return _AXIS**2 * (1 - _ECCENTRICITY**2) / (2 * _ECCENTRICITY) * (sine / (1 - sine**2) + np.arctanh(sine))
