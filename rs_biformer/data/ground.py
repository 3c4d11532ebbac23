"""Which scenes show the same ground: two dates of one place, neighbours that overlap, chips cut with an overlap.

A split is only worth something when what it measures on lies elsewhere, so ground is compared and not files. A scene's
ground is its frame: the four edges of its pixels, by its transform or the plane through its control points, reprojected
where two scenes are in different CRSs. Scenes without a CRS or without a place (rational polynomials) are taken to lie
apart from all others: nothing says where they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.transform import Affine, from_gcps
from rasterio.warp import transform as reproject

from rs_biformer.components import components
from rs_biformer.data.index import SPLITS
from rs_biformer.geometry import Window, Windows
from rs_biformer.raster.crs import horizontal, names_a_place, same_crs
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.source import MAX_SHIFT, ground_sample_distance, is_georeferenced, matrix, places_pixels

_STEPS = 16  # positions along each side of a frame that is reprojected


@dataclass(frozen=True)
class Frame:
    """The ground of a scene: its size in pixels, and where they lie. crs: None where that is not known."""

    height: int
    width: int
    crs: CRS | None
    transform: Affine

    @classmethod
    def of(cls, scene: Scene) -> "Frame":
        """The frame of an open scene."""
        place = scene.georeference
        points, system = place["gcps"]
        crs, transform = scene.crs, scene.transform
        if points and not is_georeferenced(transform) and len(points) >= 3:
            crs, transform = system, from_gcps(points)
        frame = cls(scene.height, scene.width, crs, transform)
        known = names_a_place(crs) and is_georeferenced(transform) and places_pixels(transform, *frame.size)
        return replace(frame, crs=horizontal(crs) if known and crs is not None else None)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.height, self.width

    def outline(self, crs: CRS, *, shrunk: float = 0.0) -> shapely.Polygon | None:
        """The frame as a polygon in a CRS, `shrunk` pixels smaller on each side; None where the CRS does not reach."""
        polygon: shapely.Polygon | None = self.outlines(self.whole, crs, shrunk=shrunk)[0]
        return polygon

    def outlines(self, windows: Windows, crs: CRS, *, shrunk: float = 0.0) -> NDArray[Any]:
        """Windows of the scene as polygons in a CRS, (n,) objects; None where the CRS does not reach."""
        x, y = self.rings(windows, crs, shrunk)
        rings = np.stack([x, y], axis=-1)
        known = np.isfinite(rings).all(axis=(1, 2))
        found = np.full(len(rings), None, dtype=object)
        found[known] = shapely.make_valid(shapely.polygons(rings[known]))
        return found

    def rings(self, windows: Windows, crs: CRS, shrunk: float = 0.0) -> tuple[NDArray[Any], NDArray[Any]]:
        """The edges of windows in a CRS: x and y, (n, points); NaN where it does not reach."""
        assert self.crs is not None
        here = same_crs(self.crs, crs)
        steps = 1 if here else _STEPS
        along = np.arange(steps) / steps
        right = np.concatenate([along, np.ones(steps), 1 - along, np.zeros(steps), [0]])
        down = np.concatenate([np.zeros(steps), along, np.ones(steps), 1 - along, [0]])
        col = (windows.col + shrunk)[:, None] + (windows.width - 2 * shrunk)[:, None] * right
        row = (windows.row + shrunk)[:, None] + (windows.height - 2 * shrunk)[:, None] * down
        x, y = _apply(self.transform, col, row)
        return (x, y) if here else _reprojected(self.crs, crs, x, y)

    def pixels(self, windows: Windows, other: "Frame") -> Windows:
        """The smallest windows in pixels of `other`, also beyond its edges, around windows of this scene.

        Where the CRS of `other` does not reach a window has no pixels.
        """
        if self == other:
            return windows
        assert other.crs is not None
        x, y = self.rings(windows, other.crs)
        inverse = np.linalg.inv(matrix(other.transform))
        col = inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]
        row = inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]
        known = np.isfinite(col).all(axis=1) & np.isfinite(row).all(axis=1)
        left, top = (np.floor(np.where(known, axis.min(1), 0) + _ROUNDING).astype(np.int64) for axis in (col, row))
        right, bottom = (np.ceil(np.where(known, axis.max(1), 0) - _ROUNDING).astype(np.int64) for axis in (col, row))
        return Windows(top, left, bottom - top, right - left)

    @property
    def whole(self) -> Windows:
        """All of it as one window."""
        return Windows.of([Window(0, 0, self.height, self.width)])

    @property
    def gsd(self) -> float:
        """Metres along a pixel, 0 where that is not known."""
        return ground_sample_distance(self.crs, self.transform, self.height, self.width) or 0.0


_ROUNDING = 1e-3  # pixels by which two grids that are meant to be one may differ


def _apply(transform: Affine, col: NDArray[Any], row: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    a, b, c, d, e, f = tuple(transform)[:6]
    return a * col + b * row + c, d * col + e * row + f


def _reprojected(crs: CRS, other: CRS, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        there = np.array(reproject(crs, other, x.ravel(), y.ravel())[:2])
    except (RasterioError, CPLE_BaseError):  # rasterio refuses all where it cannot do one
        there = np.array([_reprojected_row(crs, other, *ring) for ring in zip(x, y, strict=True)]).swapaxes(0, 1)
    there = np.where(np.isfinite(there), there, np.nan).reshape(2, *x.shape)
    return there[0], there[1]


def _reprojected_row(crs: CRS, other: CRS, x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    try:
        return np.array(reproject(crs, other, x, y)[:2])
    except (RasterioError, CPLE_BaseError):
        return np.full((2, len(x)), np.nan)


@dataclass(frozen=True)
class Overlap:
    """Two scenes, by their numbers, and the ground that they share, a polygon in the CRS of the first."""

    first: int
    second: int
    ground: shapely.Geometry


def overlaps(frames: Sequence[Frame]) -> list[Overlap]:
    """All pairs of scenes that share ground, more than a quarter of a pixel along each edge.

    Two rasters that are meant to abut may overlap by a rounding of their headers.
    """
    systems: list[tuple[CRS, list[int]]] = []
    for number, frame in enumerate(frames):
        if frame.crs is None:
            continue
        known = next((members for system, members in systems if same_crs(system, frame.crs)), None)
        if known is None:
            systems.append((frame.crs, [number]))
        else:
            known.append(number)
    found: list[Overlap] = []
    for place, (crs, members) in enumerate(systems):
        found += (overlap for overlap in _between(frames, members, members, crs) if overlap.first < overlap.second)
        for other, theirs in systems[place + 1 :]:
            for overlap in _between(frames, members, theirs, crs):
                # far from its zone a projection may fold: what overlaps there must overlap in the other CRS too
                one, two = (frames[n].outline(other, shrunk=MAX_SHIFT) for n in (overlap.first, overlap.second))
                if one is not None and two is not None and one.intersects(two):
                    found.append(overlap)
    return sorted(found, key=lambda overlap: (overlap.first, overlap.second))


def _between(frames: Sequence[Frame], ones: Sequence[int], others: Sequence[int], crs: CRS) -> Iterator[Overlap]:
    """Overlaps of scenes `ones`, which are in the CRS, with scenes `others`."""
    numbers, cores = _cores(frames, ones, crs)
    theirs, their_cores = _cores(frames, others, crs)
    if not cores or not their_cores:
        return
    found = shapely.STRtree(their_cores).query(cores, predicate="intersects")
    for one, two in found.T.tolist():
        first, second = numbers[one], theirs[two]
        if first != second and shapely.intersection(cores[one], their_cores[two]).area > 0:
            ground = shapely.intersection(frames[first].outline(crs), frames[second].outline(crs))
            yield Overlap(first, second, ground)


def _cores(frames: Sequence[Frame], numbers: Sequence[int], crs: CRS) -> tuple[list[int], list[shapely.Polygon]]:
    """Outlines of scenes without their rim, with their numbers; those that the CRS reaches."""
    outlines = [(number, frames[number].outline(crs, shrunk=MAX_SHIFT)) for number in numbers]
    known = [(number, outline) for number, outline in outlines if outline is not None]
    return [number for number, _ in known], [outline for _, outline in known]


def sites(count: int, shared: Sequence[Overlap]) -> list[tuple[int, ...]]:
    """The numbers of `count` scenes, those together that are linked by shared ground; in order of their first."""
    links = np.array([(overlap.first, overlap.second) for overlap in shared], np.int64).reshape(-1, 2)
    labels = components(links[:, 0], links[:, 1], count)[1]
    groups: dict[int, list[int]] = {}
    for number, label in enumerate(labels.tolist()):
        groups.setdefault(label, []).append(number)
    return [tuple(members) for members in groups.values()]


def square_metres(polygon: shapely.Geometry, crs: CRS) -> float:
    """The area of a polygon on the ground; that of the plane where the CRS is projected."""
    if crs.is_geographic:
        geod = pyproj.CRS.from_wkt(crs.to_wkt()).get_geod()
        assert geod is not None
        return float(sum(abs(geod.geometry_area_perimeter(part)[0]) for part in _polygons(polygon)))
    return float(polygon.area * crs.linear_units_factor[1] ** 2)


def _polygons(geometry: shapely.Geometry) -> Iterator[shapely.Polygon]:
    for part in shapely.get_parts(geometry):
        if part.geom_type == "Polygon":
            yield part
        elif part.geom_type in ("MultiPolygon", "GeometryCollection"):
            yield from _polygons(part)


@dataclass(frozen=True)
class Shared:
    """Ground that two splits have in common: square metres, the share of the smaller split, and whose it is."""

    splits: tuple[str, str]
    area: float
    share: float
    pairs: tuple[tuple[int, int], ...]

    def describe(self, names: Sequence[str]) -> str:
        """`train and val share 3.8 ha of ground, 64% of the smaller: a and b, c and d and 3 more pairs`."""
        shown = ", ".join(f"{names[one]} and {names[two]}" for one, two in self.pairs[:3])
        more = f" and {len(self.pairs) - 3} more pairs" if len(self.pairs) > 3 else ""
        return (
            f"{' and '.join(self.splits)} share {area_text(self.area)} of ground, {self.share:.0%} of the smaller: "
            f"{shown}{more}"
        )


def shared_between(frames: Sequence[Frame], splits: Sequence[str | None], found: Sequence[Overlap]) -> list[Shared]:
    """What scenes of different splits share, by pair of splits; a scene of no split shares nothing."""
    by_splits: dict[tuple[str, str], list[Overlap]] = {}
    for overlap in found:
        one, two = splits[overlap.first], splits[overlap.second]
        if one and two and one != two:
            pair = (one, two) if SPLITS.index(one) < SPLITS.index(two) else (two, one)
            by_splits.setdefault(pair, []).append(overlap)
    result = []
    for pair, own in sorted(by_splits.items(), key=lambda item: [SPLITS.index(split) for split in item[0]]):
        area = _union_area([(frames[overlap.first].crs, overlap.ground) for overlap in own])
        sizes = [_split_area(frames, splits, split) for split in pair]
        pairs = tuple((overlap.first, overlap.second) for overlap in own)
        result.append(Shared(pair, area, min(1.0, area / min(sizes)), pairs))
    return result


def _split_area(frames: Sequence[Frame], splits: Sequence[str | None], split: str) -> float:
    own = [frame for frame, its in zip(frames, splits, strict=True) if its == split and frame.crs is not None]
    return _union_area([(frame.crs, frame.outline(frame.crs)) for frame in own if frame.crs is not None])


def _union_area(parts: Sequence[tuple[CRS | None, shapely.Geometry]]) -> float:
    by_crs: dict[str, tuple[CRS, list[shapely.Geometry]]] = {}
    for crs, polygon in parts:
        assert crs is not None
        by_crs.setdefault(crs.to_wkt(), (crs, []))[1].append(polygon)
    return sum(square_metres(shapely.union_all(polygons), crs) for crs, polygons in by_crs.values())


def area_text(metres: float) -> str:
    """An area as people say it: 640 m², 1.2 ha, 3.4 km²."""
    if metres >= 1e6:
        return f"{metres / 1e6:.3g} km²"
    if metres >= 1e4:
        return f"{metres / 1e4:.3g} ha"
    return f"{metres:,.0f} m²" if metres >= 100 else f"{metres:.3g} m²"
