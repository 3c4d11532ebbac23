"""Coordinate reference systems: whether two are the same on the map, and whether one says where a raster lies."""

from functools import lru_cache

import pyproj
from rasterio.crs import CRS


def names_a_place(crs: CRS | None) -> bool:
    """Whether a CRS is more than the placeholder (an "unknown engineering CRS") that some TIFF writers leave."""
    return crs is not None and bool(crs.is_projected or crs.is_geographic)


def local_metres(crs: CRS | None) -> float | None:
    """Metres per unit of a CRS of a site of its own, such as a quarry; None for any other, and for the placeholder."""
    return None if crs is None or names_a_place(crs) else _local_metres(crs.to_wkt())


def same_crs(one: CRS | None, other: CRS | None) -> bool:
    """Equal on the map: heights and their datum do not matter, nor how the CRS is spelt (as WKT, as a code)."""
    if one == other:
        return True
    assert one is not None and other is not None
    return _same(one.to_wkt(), other.to_wkt())


def horizontal(crs: CRS) -> CRS:
    """The CRS without its heights: the first part of a compound one, two axes of a three-dimensional one."""
    return _horizontal(crs.to_wkt())


def metres_per_height(crs: CRS | None) -> float | None:
    """Metres in a unit of the CRS's heights; None where it has no heights."""
    if crs is None:
        return None
    try:
        system = pyproj.CRS.from_wkt(crs.to_wkt())
    except pyproj.exceptions.CRSError:
        return None
    factors = [axis.unit_conversion_factor for axis in system.axis_info if axis.direction == "up"]
    return float(factors[0]) if factors else None


@lru_cache(maxsize=256)
def _same(one: str, other: str) -> bool:
    first, second = _horizontal(one), _horizontal(other)
    if first == second:
        return True
    code = first.to_epsg()
    return code is not None and code == second.to_epsg()


@lru_cache(maxsize=256)
def _local_metres(wkt: str) -> float | None:
    try:
        system = pyproj.CRS.from_wkt(wkt)
    except pyproj.exceptions.CRSError:
        return None
    nameless = system.name.strip().lower().startswith(("unknown", "unnamed", "undefined")) or not system.name.strip()
    if not system.is_engineering or nameless or len(system.axis_info) < 2:
        return None
    factors = {axis.unit_conversion_factor for axis in system.axis_info[:2]}
    angles = any("degree" in axis.unit_name or "radian" in axis.unit_name for axis in system.axis_info[:2])
    return factors.pop() if len(factors) == 1 and not angles else None


@lru_cache(maxsize=256)
def _horizontal(wkt: str) -> CRS:
    """As rasterio's CRS; what PROJ cannot read, or has no horizontal part, as it is."""
    try:
        system = pyproj.CRS.from_wkt(wkt)
    except pyproj.exceptions.CRSError:
        return CRS.from_wkt(wkt)
    if system.is_compound:
        system = system.sub_crs_list[0]
    elif len(system.axis_info) == 3 and not system.is_geocentric:
        system = system.to_2d()
    else:
        return CRS.from_wkt(wkt)
    return CRS.from_wkt(system.to_wkt())
