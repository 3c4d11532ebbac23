"""Where the windows of scenes lie on the ground, as polygons.

Scenes that share one CRS are drawn in it: a window is then the rectangle of its pixels, to the last digit, and no
program has to choose among the datum transformations between two CRSs, which differ by metres. Scenes in several CRSs
are drawn in longitude and latitude.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform as reproject

from rs_biformer.geometry import Windows
from rs_biformer.raster.crs import horizontal, same_crs

CRS84 = CRS.from_user_input("OGC:CRS84")
_GLOBE = (540.0, 90.0 + 1e-6)  # degrees of longitude, which may be unrolled, and latitude that there are
_NOWHERE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # what rasterio gives for a file without a transform


class Placed(Protocol):
    """The frame of a scene: its CRS as WKT, a, b, c, d, e, f of its transform, and its size in pixels."""

    @property
    def crs(self) -> str | None: ...
    @property
    def transform(self) -> tuple[float, float, float, float, float, float]: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...


def footprints(scenes: Sequence[Placed], scene: NDArray[np.int64], windows: Windows) -> tuple[NDArray[Any], CRS]:
    """Polygons (N,) of windows, each of the scene with the number in `scene` (N,), and their CRS.

    The CRS is that of the scenes, without heights, where they share one; OGC:CRS84 where they do not. In that, windows
    across the antimeridian are cut there. None where the scene's place is unknown.
    """
    col = windows.col[:, None] + windows.width[:, None] * np.array([0, 0, 1, 1, 0])
    row = windows.row[:, None] + windows.height[:, None] * np.array([0, 1, 1, 0, 0])
    affine = np.array([one.transform for one in scenes], np.float64).reshape(-1, 6)[scene, :, None]
    x = affine[:, 0] * col + affine[:, 1] * row + affine[:, 2]
    y = affine[:, 3] * col + affine[:, 4] * row + affine[:, 5]
    polygons = np.full(len(scene), None, dtype=object)
    # A CRS without a transform says nothing of the place: it may belong to rational polynomials (RPCs).
    systems = [None if one.transform == _NOWHERE or off_the_globe(one) else one.crs for one in scenes]
    spelt = list(dict.fromkeys(system for system in systems if system is not None))
    if (shared := _shared(spelt)) is not None:
        placed = np.array([system is not None for system in systems])[scene]
        polygons[placed] = shapely.polygons(np.stack([x[placed], y[placed]], axis=-1))
        return polygons, shared
    for wkt in spelt:
        rows = np.array([system == wkt for system in systems])[scene]
        polygons[rows] = lonlat_polygons(wkt, x[rows], y[rows])
    return polygons, CRS84


def _shared(spelt: Sequence[str]) -> CRS | None:
    """The one CRS that all of the texts mean, if they do."""
    systems = [CRS.from_wkt(wkt) for wkt in spelt]
    if not systems or not all(same_crs(systems[0], other) for other in systems[1:]):
        return None
    return horizontal(systems[0])


def off_the_globe(scene: Placed) -> bool:
    """Whether a scene says where it lies, and there is no such place on the globe: UTM metres taken for degrees."""
    if scene.crs is None or scene.transform == _NOWHERE:
        return False
    a, b, c, d, e, f = scene.transform
    col, row = scene.width * np.array([0, 0, 1, 1, 0]), scene.height * np.array([0, 1, 1, 0, 0])
    x, y = a * col + b * row + c, d * col + e * row + f
    if lonlat_polygons(scene.crs, x[None], y[None])[0] is None:
        return True
    # A northing of 5e9 metres goes around the globe a few times; it does not come back as what it was.
    system = CRS.from_wkt(scene.crs)
    back = np.array(reproject(CRS84, system, *reproject(system, CRS84, x, y)[:2])[:2])
    apart = abs(back - [x, y]).max()
    return not system.is_geographic and not apart <= np.hypot(np.ptp(x), np.ptp(y))


def lonlat_polygons(wkt: str, x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    """Polygons in longitude and latitude for closed rings (N, points) in the CRS; None where the CRS cannot tell.

    Those across the antimeridian are cut there, as RFC 7946 (3.1.9) wants.
    """
    polygons = np.full(len(x), None, dtype=object)
    try:
        system = CRS.from_wkt(wkt)
        lon, lat = reproject(system, CRS84, x.ravel(), y.ravel())
    except (RasterioError, CPLE_BaseError):  # another planet, an engineering CRS, a missing datum grid
        return polygons
    rings = np.stack([lon, lat], axis=-1).reshape(*x.shape, 2)
    known = np.isfinite(rings).all(axis=(1, 2)) & (abs(rings) <= _GLOBE).all(axis=(1, 2))
    rings = rings[known]
    if not len(rings):
        return polygons
    # A projected ring that jumps by more than half the globe crosses the antimeridian: unroll it, then cut it there.
    if system.is_projected:
        rings[..., 0] = np.unwrap(rings[..., 0], period=360, axis=1)
    drawn = shapely.polygons(rings)
    around = np.round((rings[:, -1, 0] - rings[:, 0, 0]) / 360)
    for number in np.flatnonzero(around):
        drawn[number] = _over_pole(rings[number])
    wide = (abs(rings[..., 0]) > 180).any(axis=1) | (around != 0)
    for number in np.flatnonzero(wide | ~shapely.is_valid(drawn)):
        whole = shapely.make_valid(drawn[number])
        globe = shapely.box(-180, -90, 180, 90)
        parts = [shapely.intersection(_shifted(whole, turn), globe) for turn in (-360, 0, 360)]
        areas = [one for part in parts for one in shapely.get_parts(part) if one.geom_type == "Polygon" and one.area]
        drawn[number] = _together(areas)
    polygons[known] = drawn
    return polygons


def _together(areas: list[shapely.Polygon]) -> shapely.Geometry | None:
    if not areas:
        return None
    several = shapely.multipolygons(areas)
    return several if shapely.is_valid(several) else shapely.union_all(areas)  # halves around a pole touch


def _over_pole(ring: NDArray[np.float64]) -> shapely.Polygon:
    """The ground inside a ring that goes once around the globe: up to the pole that is nearer."""
    pole = 90.0 if ring[:, 1].mean() > 0 else -90.0
    return shapely.Polygon([*ring, (ring[-1, 0], pole), (ring[0, 0], pole)])


def _shifted(polygon: shapely.Polygon, degrees: float) -> shapely.Polygon:
    return shapely.transform(polygon, lambda points: points + [degrees, 0.0])
