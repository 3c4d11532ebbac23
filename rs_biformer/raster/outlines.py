"""From the pixels of a slab to polygons: borders are traced once, and faces put together from them.

The corners of pixels form a lattice. Lattice points where three or more faces meet are junctions; a line is the border
between two faces from one junction to the next. Because a line belongs to both of its faces, whatever is done to it is
done to both, and no gap or overlap can come up between them.

Slabs are traced one by one. The lattice row between two slabs is their seam: each point at which a border enters it
from above is made a junction, so that a line lies in one slab. A border that runs along the seam belongs to the slab
below. Coordinates are (x, y) = (column, row) of the lattice; y grows downwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import shapely
from numpy.typing import NDArray

from rs_biformer.components import components
from rs_biformer.raster.patches import Patches

_NORTH, _SOUTH, _EAST, _WEST = 1, 2, 4, 8  # bits: in which directions borders leave a lattice point
_BITS = np.array([bin(code).count("1") for code in range(16)])
_IS_STRAIGHT = np.isin(np.arange(16), [_NORTH | _SOUTH, _EAST | _WEST])
_IS_POINT = (_BITS > 0) & ~_IS_STRAIGHT
_IS_JUNCTION = (_BITS == 1) | (_BITS > 2)

DROPPED = 2
"""In `Lines.passing`: an end that cuts a straight, whatever rounding makes of it."""

# Directions of travel are numbered east 0, west 1, south 2, north 3; d ^ 1 is the opposite of d. Pixels around a
# lattice point are numbered north-west 0, north-east 1, south-west 2, south-east 3; 3 - p is the one across.
_STEP = np.array([[-1, -1], [-1, 0], [0, -1], [0, 0]])  # (row, column) of pixel p, from the point
_LEFT_AT_START = np.array([1, 2, 3, 0])
_RIGHT_AT_START = np.array([3, 0, 2, 1])
_LEFT_AT_END = np.array([0, 3, 1, 2])


@dataclass(frozen=True)
class Lines:
    """Lines of one slab; line i has the points first[i] to first[i + 1], its junctions included.

    points (n, 2): x, y from the slab's upper left corner; of a lattice, but for lines that were moved. directions
    (k, 2): of travel at start and end. passing (k, 2): whether the start (end) is a junction only because it lies on
    the seam above, with the border going straight through.
    """

    points: NDArray[Any]
    first: NDArray[np.int64]
    directions: NDArray[np.int64]
    passing: NDArray[Any]

    def __len__(self) -> int:
        return len(self.first) - 1

    def thinned(self, keep: NDArray[np.bool_]) -> "Lines":
        """The same lines with these points alone; junctions must be among them."""
        first = np.append(0, np.cumsum(keep))[self.first]
        return Lines(self.points[keep], first, self.directions, self.passing)


def trace(values: NDArray[np.uint8], above: NDArray[np.uint8] | None, *, last: bool) -> Lines:
    """The lines of a slab of class indices (h, w); the frame of the map is a border too, its corners are junctions.

    above: the last row of the slab before (w,), None for the first slab. last: whether this is the last slab.
    """
    height, width = values.shape
    codes = _border_codes(values, above, last=last)
    entered = np.zeros(width + 1, bool)  # from the slab above
    if above is not None:
        entered[0] = entered[-1] = True
        entered[1:-1] = above[1:] != above[:-1]
    is_point = _IS_POINT[codes]
    is_point[0] |= entered & (codes[0] > 0)
    place = np.flatnonzero(is_point)
    code = codes.ravel()[place]
    y, x = np.divmod(place, width + 1)
    on_seam = (y == 0) & entered[x]
    junction = _IS_JUNCTION[code] | on_seam
    junction |= np.isin(x, [0, width]) & np.isin(y, ([0] if above is None else []) + ([height] if last else []))

    tails, heads, vertical = _stretches(x, y, code)
    _, part = components(tails, heads, len(place))
    junction |= _first_of_rings(part, junction)
    order, starts = _chains(tails, heads, vertical, junction)

    tail, head = _both_ways(tails, heads)
    direction = 2 * np.repeat(vertical, 2) + np.tile([0, 1], len(tails))
    ends = np.append(starts[1:], len(order)) - 1
    visited = np.insert(tail[order], ends + 1, head[order[ends]])
    first = np.append(starts, len(order)) + np.arange(len(starts) + 1)
    through = on_seam & (code == _SOUTH)
    return Lines(
        np.stack([x, y], axis=1)[visited],
        first,
        np.stack([direction[order[starts]], direction[order[ends]]], axis=1),
        np.stack([through[visited[first[:-1]]], through[visited[first[1:] - 1]]], axis=1),
    )


def _border_codes(values: NDArray[np.uint8], above: NDArray[np.uint8] | None, *, last: bool) -> NDArray[np.uint8]:
    """Which of the four pixel edges at each lattice point (h + 1, w + 1) are borders that this slab owns."""
    height, width = values.shape
    codes = np.zeros((height + 1, width + 1), np.uint8)
    edge = np.ones((height, width + 1), bool)
    np.not_equal(values[:, 1:], values[:, :-1], out=edge[:, 1:-1])
    codes[:-1] |= edge * np.uint8(_SOUTH)
    codes[1:] |= edge * np.uint8(_NORTH)
    edge = np.ones((height + 1, width), bool)
    np.not_equal(values[1:], values[:-1], out=edge[1:-1])
    if above is not None:
        np.not_equal(values[0], above, out=edge[0])
    edge[-1] = last
    codes[:, :-1] |= edge * np.uint8(_EAST)
    codes[:, 1:] |= edge * np.uint8(_WEST)
    return codes


def _stretches(
    x: NDArray[np.int64], y: NDArray[np.int64], code: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Straight borders between lattice points, given in rows: tail, head (to the east or south), 1 where vertical.

    Along a row the stretches do not overlap, so the n-th point that one leaves is where the n-th one that arrives
    comes from.
    """
    by_column = np.lexsort((y, x))
    east, west = np.flatnonzero(code & _EAST), np.flatnonzero(code & _WEST)
    south, north = by_column[(code[by_column] & _SOUTH) > 0], by_column[(code[by_column] & _NORTH) > 0]
    vertical = np.repeat([0, 1], [len(east), len(south)])
    return np.concatenate([east, south]), np.concatenate([west, north]), vertical


def _first_of_rings(part: NDArray[np.int64], junction: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The first point of each connected part that has no junction: a ring, to be cut open there."""
    first = np.empty(part.max(initial=-1) + 1, np.int64)
    first[part[::-1]] = np.arange(len(part))[::-1]  # of equal indices the last assignment stays
    ring = np.ones(len(first), bool)
    ring[part[junction]] = False
    chosen = np.zeros(len(part), bool)
    chosen[first[ring]] = True
    return chosen


def _both_ways(tails: NDArray[np.int64], heads: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tail and head of each dart: stretch i travelled forwards is dart 2i, backwards 2i + 1."""
    return np.stack([tails, heads], axis=1).ravel(), np.stack([heads, tails], axis=1).ravel()


def _chains(
    tails: NDArray[np.int64], heads: NDArray[np.int64], vertical: NDArray[np.int64], junction: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Darts line by line from junction to junction, each line in one of its two directions, and where lines start."""
    tail, head = _both_ways(tails, heads)
    dart, upright = np.arange(len(tail)), np.repeat(vertical, 2).astype(bool)
    leaving = np.zeros((2, len(junction)), np.int64)  # at a corner: its horizontal dart, its vertical dart
    leaving[upright.astype(np.int64), tail] = dart
    following = leaving[1 - upright.astype(np.int64), head]
    following[junction[head]] = -1
    terminal, steps = _follow(following)
    forwards = np.flatnonzero(terminal < terminal[dart ^ 1])
    order = forwards[np.lexsort((-steps[forwards], terminal[forwards]))]
    return order, np.flatnonzero(junction[tail[order]])


def _follow(following: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The last element reached from each one, and the steps to it; `following` is -1 at the last. Pointer doubling."""
    terminal = np.where(following < 0, np.arange(len(following)), following)
    steps = (following >= 0).astype(np.int64)
    ended = following < 0
    walking = np.flatnonzero(~ended[terminal])
    while len(walking):
        ahead = terminal[walking]
        steps[walking] += steps[ahead]
        terminal[walking] = terminal[ahead]
        walking = walking[~ended[terminal[walking]]]
    return terminal, steps


@dataclass(frozen=True)
class Outlines:
    """Lines as their faces see them: line i bounds the face faces[i] on its left, so each line is here up to twice.

    points, first, passing: as in Lines, with points (x, y) in the whole map, int32 since they may wait for long, or
    floats where lines were moved.
    corners (k, 2): the pixel of the face beside the start and the end, one of the four around that point.
    """

    faces: NDArray[np.int64]
    points: NDArray[Any]
    first: NDArray[np.int64]
    corners: NDArray[np.int64]
    passing: NDArray[Any]

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """All lines of several."""
        lengths = np.concatenate([np.diff(part.first) for part in parts])
        return cls(
            np.concatenate([part.faces for part in parts]),
            np.concatenate([part.points for part in parts]),
            np.append(0, np.cumsum(lengths)),
            np.concatenate([part.corners for part in parts]),
            np.concatenate([part.passing for part in parts]),
        )

    def __getitem__(self, chosen: NDArray[Any]) -> Self:
        """The lines of a mask or of these indices, in that order."""
        numbers = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        lengths = np.diff(self.first)[numbers]
        points = self.points[ranges(self.first[numbers], lengths)]
        first = np.append(0, np.cumsum(lengths))
        return type(self)(self.faces[numbers], points, first, self.corners[numbers], self.passing[numbers])

    def of(self, faces: NDArray[np.int64]) -> Self:
        """The same lines with other face numbers."""
        return type(self)(faces, self.points, self.first, self.corners, self.passing)


def outlines_of(lines: Lines, face_at: NDArray[np.int64], row: int) -> Outlines:
    """Each line from both sides. row: of the slab in the map. face_at: see `beside`: (k, 2) faces left and right."""
    count, total = len(lines.first) - 1, len(lines.points)
    backwards = np.arange(total)[::-1]
    lengths = np.diff(lines.first)
    points = np.concatenate([lines.points, lines.points[backwards]]) + [0, row]
    points = points.astype(np.int32) if points.dtype.kind == "i" else points
    first = np.append(0, np.cumsum(np.concatenate([lengths, lengths[::-1]])))
    start, end = lines.directions.T
    forth = np.stack([_LEFT_AT_START[start], _LEFT_AT_END[end]], axis=1)
    back = np.stack([_LEFT_AT_START[end ^ 1], _LEFT_AT_END[start ^ 1]], axis=1)[::-1]
    faces = np.concatenate([face_at[:, 0], face_at[::-1, 1]])
    assert len(faces) == 2 * count
    return Outlines(
        faces, points, first, np.concatenate([forth, back]), np.concatenate([lines.passing, lines.passing[::-1, ::-1]])
    )


def faces_beside(lines: Lines, patches: Patches, known: int, above: NDArray[np.int64]) -> NDArray[np.int64]:
    """The face left and right of each line of a slab (k, 2), numbered as `patches.merge` takes them; -1 outside of the
    map. above: the face of each pixel of the row above (w,), one of the `known` ones; empty for the first slab.
    """
    row, column = beside(lines).transpose(2, 0, 1)
    height, width = patches.shape
    faces = np.full(row.shape, -1, np.int64)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    faces[inside] = known + patches.at(row[inside] * width + column[inside])
    if len(above):
        over = (row < 0) & (column >= 0) & (column < width)
        faces[over] = above[column[over]]
    return faces


def beside(lines: Lines) -> NDArray[np.int64]:
    """Row and column, from the slab's upper left corner, of the pixels left and right of each line: (k, 2, 2)."""
    start = lines.directions[:, 0]
    point = lines.points[lines.first[:-1]][:, None, ::-1]
    pixels: NDArray[np.int64] = point + _STEP[np.stack([_LEFT_AT_START[start], _RIGHT_AT_START[start]], axis=1)]
    return pixels


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """starts[0], starts[0] + 1, ... (lengths[0] numbers), then starts[1], ...: all in one array."""
    offsets = np.cumsum(lengths) - lengths
    numbers: NDArray[np.int64] = np.arange(int(lengths.sum())) + np.repeat(starts - offsets, lengths)
    return numbers


def polygons(outlines: Outlines, count: int) -> NDArray[np.object_]:
    """The polygon of each face 0 .. count - 1 in lattice coordinates, given all lines of these faces.

    A ring does not touch itself: where a face meets itself at a corner, a hole begins. Junctions stay in the rings as
    points, so that neighbours have the same points; those that only a seam made are left out.
    """
    following = next_lines(outlines)
    ring, order = rings_of(following)
    lines = outlines[order]
    lengths = np.diff(lines.first) - 1  # the last point of a line is the first of the next one
    points = lines.points[ranges(lines.first[:-1], lengths)]
    points = points.astype(np.int64) if points.dtype.kind == "i" else points
    of_ring = np.repeat(ring, lengths)
    before = np.empty(len(order), np.int64)
    before[following] = np.arange(len(order))
    passing = np.zeros(len(points), np.uint8)
    passing[np.cumsum(lengths) - lengths] = lines.passing[:, 0] | outlines.passing[before[order], 1]

    bounds = np.append(np.flatnonzero(np.diff(of_ring, prepend=-1)), len(points))
    ahead, behind = _neighbours_in_rings(points, bounds)
    # Bit by bit: where two lines follow each other, what one of them says of their common end holds.
    straight = (passing & DROPPED > 0) | ((passing & 1 > 0) & (_cross(points - behind, ahead - points) == 0))
    doubled = np.add.reduceat(_cross(points, ahead), bounds[:-1])
    face = lines.faces[np.flatnonzero(np.diff(ring, prepend=-1))]
    # Rings of a face: the outer one first. With the face on the left and y downwards its area is negative.
    sequence = np.lexsort((doubled, face))
    place = np.argsort(sequence)[of_ring[~straight]]
    sort = np.argsort(place, kind="stable")
    rings = shapely.linearrings(points[~straight][sort].astype(np.float64), indices=place[sort])
    made: NDArray[np.object_] = shapely.polygons(rings, indices=face[sequence])
    assert len(made) == count
    return made


def next_lines(outlines: Outlines) -> NDArray[np.int64]:
    """The line that goes on along the same face at the end of each line.

    Where a face meets itself at a corner there are two to choose from; the one beside the other pixel keeps the two
    sides of the corner apart, as if its two pixels were joined there.
    """
    head, tail = outlines.points[outlines.first[1:] - 1], outlines.points[outlines.first[:-1]]
    arriving = np.lexsort((outlines.corners[:, 1], head[:, 0], head[:, 1], outlines.faces))
    leaving = np.lexsort((3 - outlines.corners[:, 0], tail[:, 0], tail[:, 1], outlines.faces))
    following = np.empty(len(arriving), np.int64)
    following[arriving] = leaving
    return following


def rings_of(following: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The cycles of a permutation: the number of the cycle and the element, cycle by cycle, in the order of travel."""
    count = len(following)
    _, cycle = components(np.arange(count), following, count)
    last = np.empty(cycle.max(initial=-1) + 1, np.int64)
    last[cycle[::-1]] = np.arange(count)[::-1]
    cut = following.copy()
    cut[last] = -1
    _, steps = _follow(cut)
    order = np.lexsort((-steps, cycle))
    return cycle[order], order


def _neighbours_in_rings(points: NDArray[Any], bounds: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The points after and before each point of closed rings; ring i is points[bounds[i]:bounds[i + 1]]."""
    ahead, behind = np.roll(points, -1, axis=0), np.roll(points, 1, axis=0)
    ahead[bounds[1:] - 1] = points[bounds[:-1]]
    behind[bounds[:-1]] = points[bounds[1:] - 1]
    return ahead, behind


def _cross(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    cross: NDArray[Any] = one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]
    return cross
