"""A ring along the edges of pixels -> the same ring with right angles: the outline of a building.

The direction of a building is that of its long walls: edges of the simplified outline (Douglas and Peucker) are turned
to angles that are alike for parallels and perpendiculars (four times the angle), averaged by their squared lengths, and
the mean is refined by the principal axis of the pixel edges along all walls, as least squares over lines with one
direction. Each wall then lies at the mean of its pixel edges, which along a straight wall of a raster is unbiased, so
that areas stay; walls shorter than the tolerance go, and corners are where walls meet.

What comes of it counts only if no point of either outline is farther than the tolerance from the other; simpler
outlines are tried first.

Rings are closed without repeating their first point. Pixels; n points of a ring, e unit edges along it, w walls.
"""

from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_COARSE_TO_FINE = (1.0, 0.7, 0.4)
"""Shares of the tolerance by which outlines are simplified before their walls are told apart, in the order of trial."""

_LEAST = 1.1
"""Pixels: outlines of rasters are steps, which simplification by less would take for walls."""


class _Wall(NamedTuple):
    """A side of an outline. axis: 0 along the direction, 1 across. offset: from the origin along the normal of that.
    weight: pixel edges along it.
    """

    axis: int
    offset: float
    weight: float


def direction(ring: NDArray[np.int64], tolerance: float) -> float:
    """The angle of the walls of a ring (n, 2), from 0 up to a quarter turn, in radians from x to y."""
    corners = _corners(ring, max(_LEAST, 0.5 * tolerance))
    way = np.roll(ring[corners], -1, axis=0) - ring[corners]
    length2 = (way**2).sum(axis=1)
    turned = np.exp(4j * np.arctan2(way[:, 1], way[:, 0]))
    angle = float(np.angle((length2 * turned).sum())) / 4
    # Least squares: the scatter of the pixel edges of each wall around their mean, those across turned to lie along.
    middles, of_edge = _unit_edges(ring, corners)
    frame = _frame(angle)
    along = np.abs(way @ frame[0]) >= np.abs(way @ frame[1])
    scatter = np.zeros((2, 2))
    for wall in np.flatnonzero(length2 >= max(9.0, 0.04 * length2.max())):
        offset = middles[of_edge == wall] - middles[of_edge == wall].mean(axis=0)
        offset = offset if along[wall] else offset @ np.array([[0.0, -1.0], [1.0, 0.0]])
        scatter += offset.T @ offset
    refined = 0.5 * np.arctan2(2 * scatter[0, 1], scatter[0, 0] - scatter[1, 1])
    # Of equal directions the one nearest to the first guess; a refinement that turns far is none.
    turn = (refined - angle + np.pi / 4) % (np.pi / 2) - np.pi / 4
    return float((angle + (turn if abs(turn) < np.radians(10) else 0.0)) % (np.pi / 2))


def squared(ring: NDArray[np.int64], angle: float, tolerance: float) -> Floats | None:
    """The corners (w, 2) of the ring with walls along and across the angle, or None where that moves a point too far.

    ring: (n, 2) corners of pixels. tolerance: pixels, between any point of either outline and the other outline.
    """
    for share in _COARSE_TO_FINE:
        corners = _corners(ring, max(_LEAST, share * tolerance))
        if len(corners) < 4:
            continue
        walls = _without_steps(_walls(ring, corners, angle), share * tolerance)
        if walls is None:
            continue
        found = _drawn(walls, angle)
        if shapely.is_valid(shapely.Polygon(found)) and apart(ring, found) <= tolerance:
            return found
    return None


def apart(one: NDArray[np.int64] | Floats, other: NDArray[np.int64] | Floats) -> float:
    """The farthest that a point of either closed ring (n, 2) is from the other, to a quarter of a pixel."""
    first, second = (shapely.linearrings(ring.astype(np.float64)) for ring in (one, other))
    there = shapely.distance(shapely.points(shapely.get_coordinates(shapely.segmentize(first, 0.5))), second).max()
    back = shapely.distance(shapely.points(shapely.get_coordinates(shapely.segmentize(second, 0.5))), first).max()
    return float(max(there, back))


def _corners(ring: NDArray[np.int64], tolerance: float) -> NDArray[np.int64]:
    """Which points of a ring are left when it is simplified, ascending."""
    points = ring.astype(np.float64)
    # A ring is simplified from its first point on, which stays: it had better be a corner.
    start = int(((points - points.mean(axis=0)) ** 2).sum(axis=1).argmax())
    turned = np.roll(points, -start, axis=0)
    closed = shapely.linestrings(np.concatenate([turned, turned[:1]]))
    left = shapely.get_coordinates(shapely.simplify(closed, tolerance, preserve_topology=False))[:-1]
    # The points come in order; a ring may pass a point twice, then the next one in order is meant.
    corners, place = [], 0
    for point in left:
        place += int((turned[place:] == point).all(axis=1).argmax())
        corners.append(place)
        place += 1
    return np.sort((np.array(corners, np.int64) + start) % len(ring))


def _unit_edges(ring: NDArray[np.int64], corners: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """The middles (e, 2) of the pixel edges along a ring, from its first corner on, and the wall of each (e,)."""
    turned = np.roll(ring, -int(corners[0]), axis=0)
    way = np.roll(turned, -1, axis=0) - turned
    steps = np.abs(way).sum(axis=1)
    edge = np.repeat(np.arange(len(turned)), steps)
    number = np.arange(len(edge)) - np.repeat(np.cumsum(steps) - steps, steps)
    middles = turned[edge] + np.sign(way)[edge] * (number[:, None] + 0.5)
    return middles, np.searchsorted(corners - corners[0], edge, "right") - 1


def _frame(angle: float) -> Floats:
    """Unit vectors along and across an angle, as rows (2, 2)."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _walls(ring: NDArray[np.int64], corners: NDArray[np.int64], angle: float) -> list[_Wall]:
    """The walls between the corners of a ring, each with the nearer axis; one without weight between two alike."""
    middles, of_edge = _unit_edges(ring, corners)
    frame = _frame(angle)
    way = np.roll(ring[corners], -1, axis=0) - ring[corners]
    axes = (np.abs(way @ frame[0]) < np.abs(way @ frame[1])).astype(np.int64)
    place, ends = middles @ frame.T, np.roll(ring[corners], -1, axis=0) @ frame.T  # along and across
    count = np.bincount(of_edge, minlength=len(corners))
    means = [np.bincount(of_edge, place[:, 1 - axis], len(corners)) / count for axis in (0, 1)]
    walls = []
    for number, axis in enumerate(axes.tolist()):
        walls.append(_Wall(axis, float(means[axis][number]), float(count[number])))
        if axis == axes[(number + 1) % len(axes)]:
            walls.append(_Wall(1 - axis, float(ends[number, axis]), 0.0))
    return walls


def _without_steps(walls: list[_Wall], least: float) -> list[_Wall] | None:
    """The walls, of which the shortest go until none is shorter than `least`; None where fewer than four are left.

    The neighbours of a wall that goes become one, at their mean.
    """
    while len(walls) >= 4:
        lengths = [abs(walls[place - 1].offset - walls[(place + 1) % len(walls)].offset) for place in range(len(walls))]
        shortest = int(np.argmin(lengths))
        if lengths[shortest] >= least:
            return walls
        walls = walls[shortest:] + walls[:shortest]
        before, after = walls[-1], walls[1]
        weight = before.weight + after.weight
        share = before.weight / weight if weight else 0.5
        walls = [*walls[2:-1], _Wall(before.axis, share * before.offset + (1 - share) * after.offset, weight)]
    return None


def _drawn(walls: list[_Wall], angle: float) -> Floats:
    """The corners (w, 2) where walls meet; the first ends the first wall."""
    frame = _frame(angle)
    corners = []
    for wall, following in zip(walls, [*walls[1:], walls[0]], strict=True):
        across, along = (wall, following) if wall.axis == 0 else (following, wall)
        corners.append(along.offset * frame[0] + across.offset * frame[1])
    return np.array(corners)
