"""A ring along the edges of pixels -> the same ring with right angles: the outline of a building.

The direction of a building is that of its long walls: edges of the simplified outline (Douglas and Peucker) are turned
to angles that are alike for parallels and perpendiculars (four times the angle), averaged by their squared lengths, and
the mean is refined by the principal axis of the pixel edges along all walls, as least squares over lines with one
direction. Each wall then lies at the mean of its pixel edges, which along a straight wall of a raster is unbiased, so
that areas stay; walls shorter than the tolerance go, and corners are where walls meet. Where that moves a point too
far, a side that runs aslant for longer than the tolerance allows becomes a wall along itself, as long as two thirds of
the outline are square.

What comes of it counts only if no point of either outline is farther than the tolerance from the other; simpler
outlines are tried first.

Rings are closed without repeating their first point. Pixels; n points of a ring, e unit edges along it, w walls.
"""

import math
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_COARSE_TO_FINE = (1.0, 0.7, 0.4)
"""Shares of the tolerance by which outlines are simplified before their walls are told apart, in the order of trial."""

_ASLANT = (np.inf, 1.0, 0.5)
"""Shares of the tolerance by which the ends of a side may move for it to be square, in the order of trial."""

_SQUARE = 2 / 3
"""Of an outline: so much of its length at least lies along or across its direction, or it is not squared."""

_LEAST = 1.1
"""Pixels: outlines of rasters are steps, which simplification by less would take for walls."""


class _Wall(NamedTuple):
    """A side of an outline: a line. normal: of unit length. offset: of the line from the origin, along the normal.
    weight: pixel edges along it.
    """

    normal: tuple[float, float]
    offset: float
    weight: float

    @classmethod
    def through(cls, point: Floats, angle: float, weight: float) -> "_Wall":
        """The wall at an angle, in radians from x to y, through a point (2,)."""
        normal = (-math.sin(angle), math.cos(angle))
        return cls(normal, float(normal[0] * point[0] + normal[1] * point[1]), weight)

    def is_parallel(self, other: "_Wall") -> bool:
        return abs(_sine(self, other)) < 1e-3

    def meet(self, other: "_Wall") -> tuple[float, float]:
        """Where two walls meet that are not parallel."""
        (a, b), (c, d), sine = self.normal, other.normal, _sine(self, other)
        return (d * self.offset - b * other.offset) / sine, (a * other.offset - c * self.offset) / sine

    def merged(self, other: "_Wall") -> "_Wall":
        """One wall at the mean of two that are parallel."""
        same = self.normal[0] * other.normal[0] + self.normal[1] * other.normal[1] > 0
        weight, offset = self.weight + other.weight, other.offset if same else -other.offset
        share = self.weight / weight if weight else 0.5
        return _Wall(self.normal, share * self.offset + (1 - share) * offset, weight)


def _sine(one: _Wall, other: _Wall) -> float:
    """Of the angle between two walls."""
    return one.normal[0] * other.normal[1] - one.normal[1] * other.normal[0]


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
    turned = np.abs(way @ frame.T)
    along = turned[:, 0] >= turned[:, 1]
    straight = turned.min(axis=1) ** 2 < 0.07 * length2  # within 15 degrees
    scatter = np.zeros((2, 2))
    for wall in np.flatnonzero(straight & (length2 >= max(9.0, 0.04 * length2.max()))):
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
    for aslant in _ASLANT:
        for share in _COARSE_TO_FINE:
            corners = _corners(ring, max(_LEAST, share * tolerance))
            if len(corners) < 3:
                continue
            walls = _without_steps(_walls(ring, corners, angle, aslant * tolerance), share * tolerance)
            found = np.zeros((0, 2)) if walls is None else _drawn(walls)
            if len(found) and _is_square(found, angle) and _is_simple(found) and close(ring, found, tolerance):
                return found
    return None


def close(one: NDArray[np.int64] | Floats, other: NDArray[np.int64] | Floats, distance: float) -> bool:
    """Whether no point of either closed ring (n, 2) is farther than that from the other, to a quarter of a pixel."""
    rings = [shapely.linearrings(ring.astype(np.float64)) for ring in (one, other)]
    shapely.prepare(rings)
    for some, others in (rings, rings[::-1]):
        points = shapely.points(shapely.get_coordinates(shapely.segmentize(some, 0.5)))
        if not shapely.dwithin(others, points, distance).all():
            return False
    return True


def _corners(ring: NDArray[np.int64], tolerance: float) -> NDArray[np.int64]:
    """Which points of a ring are left when it is simplified, ascending."""
    points = ring.astype(np.float64)
    # A ring is simplified from its first point on, which stays: it had better be a corner.
    start = int(((points - points.mean(axis=0)) ** 2).sum(axis=1).argmax())
    turned = np.roll(points, -start, axis=0)
    closed = shapely.linestrings(np.concatenate([turned, turned[:1]]))
    left = shapely.get_coordinates(shapely.simplify(closed, tolerance, preserve_topology=False))[:-1]
    # The points come in order; a ring may pass a point twice, then the next one in order is meant.
    keys, wanted = (one[:, 1] * 2.0**26 + one[:, 0] for one in (turned, left))
    order = np.argsort(keys, kind="stable")
    low, high = np.searchsorted(keys, wanted, "left", order), np.searchsorted(keys, wanted, "right", order)
    corners, place = [], 0
    for first, last in zip(low.tolist(), high.tolist(), strict=True):
        place = int(order[first + np.searchsorted(order[first:last], place)])
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


def _walls(ring: NDArray[np.int64], corners: NDArray[np.int64], angle: float, most: float) -> list[_Wall]:
    """The walls between the corners of a ring, each along the nearer axis; one without weight between two alike.

    A side whose ends would move by more than `most` pixels by that is a wall along itself.
    """
    middles, of_edge = _unit_edges(ring, corners)
    count = np.bincount(of_edge, minlength=len(corners))
    centres = np.stack([np.bincount(of_edge, some, len(corners)) / count for some in middles.T], axis=1)
    ends = np.roll(ring[corners], -1, axis=0)
    way = ends - ring[corners]
    turned = way @ _frame(angle).T
    across = np.abs(turned[:, 0]) < np.abs(turned[:, 1])
    angles = angle + np.where(across, np.pi / 2, 0.0)
    aslant = np.abs(turned).min(axis=1) > 2 * most
    angles[aslant] = np.arctan2(way[aslant, 1], way[aslant, 0])
    walls = []
    for number, (along, centre, end) in enumerate(zip(angles.tolist(), centres, ends, strict=True)):
        walls.append(_Wall.through(centre, along, float(count[number])))
        following = float(angles[(number + 1) % len(angles)])
        if abs(math.sin(following - along)) < 1e-3:
            walls.append(_Wall.through(end, along + np.pi / 2, 0.0))
    return walls


def _without_steps(walls: list[_Wall], least: float) -> list[_Wall] | None:
    """The walls, of which the shortest go until none is shorter than `least`; None where fewer than four are left.

    The neighbours of a wall that goes meet; those that are parallel become one, at their mean.
    """
    lengths = np.array([_length(walls, place) for place in range(len(walls))])
    while len(walls) >= 4:
        shortest = int(np.argmin(lengths))
        if lengths[shortest] >= least:
            return walls
        # The wall that goes comes first, its neighbours stand at the end and next to it.
        walls, lengths = walls[shortest:] + walls[:shortest], np.roll(lengths, -shortest)
        before, after = walls[-1], walls[1]
        if before.is_parallel(after):
            walls, lengths = [*walls[2:-1], before.merged(after)], np.append(lengths[2:-1], 0.0)
        else:
            walls, lengths = walls[1:], lengths[1:]
        for place in (-2, -1, 0, 1):
            lengths[place] = _length(walls, place % len(walls))
    return None


def _length(walls: list[_Wall], place: int) -> float:
    """Of one of some walls, between its neighbours."""
    before, wall, after = walls[place - 1], walls[place], walls[(place + 1) % len(walls)]
    if wall.is_parallel(before) or wall.is_parallel(after):
        return 0.0
    return math.dist(wall.meet(before), wall.meet(after))


def _drawn(walls: list[_Wall]) -> Floats:
    """The corners (w, 2) where walls meet; the first ends the first wall."""
    return np.array([wall.meet(after) for wall, after in zip(walls, [*walls[1:], walls[0]], strict=True)])


def _is_simple(ring: Floats) -> bool:
    return bool(shapely.is_valid(shapely.Polygon(ring)))


def _is_square(ring: Floats, angle: float) -> bool:
    """Whether most of an outline (w, 2) runs along or across the angle."""
    way = np.abs((np.roll(ring, -1, axis=0) - ring) @ _frame(angle).T)
    lengths = np.hypot(*way.T)
    return bool(lengths[way.min(axis=1) < 1e-3 * lengths].sum() >= _SQUARE * lengths.sum())
