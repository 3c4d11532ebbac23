"""Outlines of buildings get right angles while all borders stay shared, slab by slab, between tracing and polygons.

A border line belongs to both of its faces (outlines.py), so a face is squared by exchanging the points of its lines:
whoever lies beside it follows. Each ring of a face is squared by itself (squaring.py), with the direction of the outer
one. Where a third face meets the ring, the point slides to the nearest one of the new ring, and the lines that end
there follow with their last point. Faces are taken in the order in which they end, each against the lines as they are
by then, and a ring stays as it was where

- it has no right angles within the tolerance, or lies at the edge of what is mapped, which stays,
- a new line would meet another one elsewhere than at a common end, or pass over another one,
- a neighbour that was squared before has moved a point of it.

So the lines stay a plane graph with the same faces after each step, and the polygons a coverage without gaps and
overlaps, whatever the map.

Slabs wait until no face that reaches into them, or near to them, can change any more. Faces taller or wider than MOST
stay as they are, which bounds how many slabs wait, and what a face takes.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from rs_biformer.raster.outlines import DROPPED, Lines, Outlines, faces_beside, next_lines, outlines_of, rings_of
from rs_biformer.raster.patches import merge
from rs_biformer.raster.squaring import Floats, direction, squared
from rs_biformer.raster.tracing import Traced
from rs_biformer.schema import IGNORE

MOST = 2048
"""Rows, and columns, of a face that is squared."""

MOST_TOLERANCE = 100.0
"""Pixels: so much of a map waits above and below each face."""

_FINEST = 1024
"""Coordinates are multiples of one over this, so that the row of a slab is added and taken away without rounding."""

_APART = 1 / 64
"""Pixels along a ring between two ends of lines, at least."""

_AT_ENDS, _INSIDE, _OUTSIDE = "FF*F*****", "T********", "******T**"
"""Of two lines: they meet at common ends alone. Of a polygon and a line: some of the line is inside, outside."""

Line = tuple[int, int]
"""Number of a slab, and of a line in it."""


@dataclass
class Report:
    """What became of the faces that were to be squared. swept: pixels that changed sides."""

    squared: int = 0
    left: Counter[str] = field(default_factory=Counter)
    swept: float = 0.0


def regularised(
    slabs: Iterable[Traced], height: int, classes: Sequence[int], tolerance: float, report: Report
) -> Iterator[Traced]:
    """The slabs of a map of so many rows, from the top down, with the faces of these classes squared.

    The lines of these classes have all their points, see `tracing.traced`. tolerance: pixels that an outline may move.
    """
    work = _Squaring(height, classes, tolerance, report)
    for slab in slabs:
        work.add(slab)
        yield from work.settled()


@dataclass
class _Face:
    """A face that is to be squared, as far as it is known: its lines, seen from it, and what each of them is."""

    parts: list[Outlines]
    lines: list[NDArray[np.int64]]  # (k, 4): number of the slab, line, whether it runs backwards, whether at the edge
    top: int

    def join(self, other: "_Face") -> None:
        self.parts += other.parts
        self.lines += other.lines
        self.top = min(self.top, other.top)


class _Held:
    """A slab that waits. drawn: its lines as they are by now, in the whole map."""

    def __init__(self, number: int, row: int, slab: Traced) -> None:
        self.number, self.row, self.slab = number, row, slab
        lines = slab.lines
        plain = lines if slab.kept is None else lines.thinned(slab.kept)
        self._plain = plain
        self.drawn = shapely.linestrings(
            (plain.points + [0, row]).astype(np.float64), indices=np.repeat(np.arange(len(plain)), np.diff(plain.first))
        )
        self.changed: set[int] = set()
        self._passing = plain.passing.astype(np.uint8)
        self._tree = shapely.STRtree(self.drawn)
        ends = np.stack([plain.points[plain.first[:-1]], plain.points[plain.first[1:] - 1]], axis=1) + [0, row]
        order = np.lexsort((ends[..., 0].ravel(), ends[..., 1].ravel()))
        self._ends = ends.reshape(-1, 2)[order]
        self._keys = _key(self._ends)
        self._line_at = order

    @property
    def row_stop(self) -> int:
        return self.row + self.slab.patches.shape[0]

    def near(self, box: shapely.Geometry) -> list[Line]:
        """Lines whose boxes, before anything moved, meet this one."""
        return [(self.number, int(line)) for line in self._tree.query(box)]

    def ends_at(self, point: NDArray[Any]) -> list[tuple[Line, int]]:
        """Lines that end at a lattice point, and 0 for their start or 1 for their end."""
        key = _key(np.asarray(point, np.int64)[None])[0]
        first, last = np.searchsorted(self._keys, [key, key + 1])
        return [((self.number, int(at) // 2), int(at) % 2) for at in self._line_at[first:last]]

    def change(self, line: int, points: Floats, passing: tuple[int, int] | None = None) -> None:
        self.drawn[line] = shapely.linestrings(points)
        self.changed.add(line)
        if passing is not None:
            self._passing[line] = passing

    def finished(self) -> Traced:
        """The slab with its lines as they are."""
        if not self.changed:
            return replace(self.slab, lines=self._plain, kept=None)
        points, of_line = shapely.get_coordinates(self.drawn, return_index=True)
        first = np.append(0, np.cumsum(np.bincount(of_line, minlength=len(self.drawn))))
        moved = Lines(points - [0, self.row], first, self._plain.directions, self._passing)
        return replace(self.slab, lines=self._plain, kept=None, moved=moved)


def _key(points: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each lattice point (n, 2), ascending by row, then column."""
    key: NDArray[np.int64] = points[:, 1] * 2**32 + points[:, 0]
    return key


class _Squaring:
    """Slabs that wait, faces that are open, and faces that are complete and not squared yet."""

    def __init__(self, height: int, classes: Sequence[int], tolerance: float, report: Report) -> None:
        self._height, self._tolerance, self._report = height, tolerance, report
        self._wanted = np.zeros(256, bool)
        self._wanted[list(classes)] = True
        self._margin = int(np.ceil(2 * tolerance)) + 2
        self._row, self._number = 0, 0
        self._above = np.zeros(0, np.int64)
        self._classes = np.zeros(0, np.uint8)
        self._open: dict[int, _Face | None] = {}  # None: too large
        self._complete: list[_Face] = []
        self._held: deque[_Held] = deque()

    def add(self, slab: Traced) -> None:
        """Take the next slab, and square what can be."""
        held = _Held(self._number, self._row, slab)
        self._held.append(held)
        last = held.row_stop == self._height
        merged = merge(self._classes, self._above, slab.patches, last=last)
        faces = faces_beside(slab.lines, slab.patches, merged.known, self._above)
        faces[faces >= 0] = merged.part[faces[faces >= 0]]
        opened: dict[int, _Face | None] = {}
        for old, face in self._open.items():
            _put(opened, int(merged.part[old]), face)
        for new, face in self._faces_of(held, faces, merged.classes):
            _put(opened, new, face)
        number = np.cumsum(merged.growing) - 1
        self._open = {}
        for part, known in opened.items():
            if merged.growing[part]:
                too_large = known is None or held.row_stop - known.top > MOST
                self._open[int(number[part])] = None if too_large else known
            elif known is None:
                self._report.left["too large"] += 1
            else:
                self._complete.append(known)
        self._above = number[merged.last_row]
        self._classes = merged.classes[merged.growing]
        self._row, self._number = held.row_stop, self._number + 1
        self._square(last)

    def _faces_of(
        self, held: _Held, faces: NDArray[np.int64], classes: NDArray[np.uint8]
    ) -> Iterator[tuple[int, _Face]]:
        """The faces that are to be squared, as far as they lie in a slab."""
        count = len(held.slab.lines)
        both = outlines_of(held.slab.lines, faces, held.row)
        wanted = np.flatnonzero((both.faces >= 0) & self._wanted[classes[both.faces]])
        wanted = wanted[np.argsort(both.faces[wanted], kind="stable")]
        bounds = np.flatnonzero(np.diff(both.faces[wanted])) + 1
        for part in np.split(wanted, bounds) if len(wanted) else []:
            own = both[part]
            line = np.where(part < count, part, 2 * count - 1 - part)
            other = both.faces[2 * count - 1 - part]
            edge = (other < 0) | (classes[other] == IGNORE)
            about = np.stack([np.full(len(part), held.number), line, part >= count, edge], axis=1)
            yield int(own.faces[0]), _Face([own], [about], int(own.points[:, 1].min()))

    def settled(self) -> Iterator[Traced]:
        """The slabs that nothing can change any more."""
        tops = [face.top for face in [*self._open.values(), *self._complete] if face is not None]
        first = min([self._row, *tops]) - self._margin
        while self._held and (self._held[0].row_stop <= first or self._row == self._height):
            yield self._held.popleft().finished()

    def _square(self, last: bool) -> None:
        waiting = []
        for face in self._complete:
            bottom = max(int(part.points[:, 1].max()) for part in face.parts)
            if last or bottom + self._margin <= self._row:
                self._square_face(face)
            else:
                waiting.append(face)
        self._complete = waiting

    def _square_face(self, face: _Face) -> None:
        joined = Outlines.join(face.parts)
        joined = joined.of(np.zeros(len(joined.faces), np.int64))
        about = np.concatenate(face.lines)
        ring, order = rings_of(next_lines(joined))
        rings = [order[ring == number] for number in range(int(ring.max()) + 1)]
        points = [np.concatenate([_line(joined, place)[:-1] for place in one]) for one in rings]
        sizes = [_doubled_area(one) for one in points]
        outer = int(np.argmax(np.abs(sizes)))
        if np.ptp(points[outer], axis=0).max() > MOST:
            self._report.left["too large"] += 1
            return
        angle = direction(points[outer], self._tolerance)
        # The outer ring first: courtyards of a building that stays as it is stay, too.
        for place in sorted(range(len(rings)), key=lambda place: place != outer):
            numbers, lines, backward, edge = about[rings[place]].T.tolist()
            names = list(zip(numbers, lines, strict=True))
            one = _Ring(names, backward, [_line(joined, line) for line in rings[place]], place == outer)
            reason = "at the edge of what is mapped" if any(edge) else self._square_ring(one, points[place], angle)
            if place == outer:
                if reason:
                    self._report.left[reason] += 1
                    return
                self._report.squared += 1

    def _square_ring(self, ring: "_Ring", points: NDArray[np.int64], angle: float) -> str:
        """Exchange the lines of a ring; why not, in a word, where that is not done."""
        if any(line in self._at(number).changed for number, line in ring.lines):
            return "beside another"
        corners = squared(points, angle, self._tolerance)
        if corners is None:
            return "not rectangular"
        own = set(ring.lines)
        met = [self._ends_at(piece[0]) for piece in ring.pieces]
        aside = [[one for one in ends if one[0] not in own] for ends in met]
        for reach in (0.0, self._tolerance, 2 * self._tolerance):
            exits = [self._exit(piece[0], ends, corners, reach) for piece, ends in zip(ring.pieces, aside, strict=True)]
            drawn = ring.along(corners, [len(ends) != 2 for ends in met], np.array([point for point, _ in exits]))
            if drawn is None:
                continue
            changes = self._changes(ring, drawn, aside, [cut for _, cut in exits])
            swept = self._swept(ring, drawn, changes)
            if swept is not None:
                for line, new in changes.items():
                    self._at(line[0]).change(line[1], new, drawn.passing.get(line))
                self._report.swept += swept
                return ""
        return "in the way"

    def _exit(
        self, point: NDArray[np.int64], ends: Sequence[tuple[Line, int]], corners: Floats, reach: float
    ) -> tuple[NDArray[Any], float]:
        """Where a line that ends at a ring is to meet the new one, and how much of the line goes, at least `reach`.

        That is where it leaves the new ring for good, or is nearest to it at the end that it has.
        """
        if len(ends) != 1:
            return point, reach
        (line, end), closed = ends[0], shapely.linearrings(corners)
        way = self._oriented(line, end)
        crossings = shapely.get_coordinates(shapely.intersection(shapely.linestrings(way), closed))
        if not len(crossings):
            return point, reach
        gone = shapely.line_locate_point(shapely.linestrings(way), shapely.points(crossings))
        last = int(np.argmax(gone))
        if gone[last] > 3 * self._tolerance:
            return point, reach
        return crossings[last], max(reach, float(gone[last]))

    def _changes(
        self, ring: "_Ring", drawn: "_Drawn", aside: Sequence[list[tuple[Line, int]]], cuts: Sequence[float]
    ) -> dict[Line, Floats]:
        """The new points of the lines of a ring, and of the lines that end at it, without as much of them as goes."""
        changes = dict(zip(ring.lines, drawn.points, strict=True))
        for piece, ends, cut in zip(drawn.forward, aside, cuts, strict=True):
            for line, end in ends:
                points = changes[line] if line in changes else self._points(line)
                points = points[::-1] if end else points
                behind = np.cumsum(np.hypot(*np.diff(points, axis=0).T))[:-1]
                points = np.concatenate([piece[:1], points[1:-1][behind > cut], points[-1:]])
                changes[line] = points[::-1] if end else points
        return changes

    def _swept(self, ring: "_Ring", drawn: "_Drawn", changes: dict[Line, Floats]) -> float | None:
        """The area that changes sides; None where that would change which faces there are."""
        old = _polygon([self._oriented(line, back) for line, back in zip(ring.lines, ring.backward, strict=True)])
        new = _polygon(drawn.forward)
        aside = [line for line in changes if line not in drawn.passing]
        ends = {line: shapely.linestrings(changes[line]) for line in aside}
        moved = np.array([*drawn.walls(), *ends.values()], object)
        if not (old.is_valid and new.is_valid and all(_is_line(line) for line in moved)):
            return None
        swept = shapely.symmetric_difference(old, new)
        sweeps = [one for one in (swept, *(_between(self._points(line), changes[line]) for line in aside)) if one.area]
        low = np.array([one.bounds for one in (old, new, *sweeps)])
        box = shapely.box(*(low[:, :2].min(axis=0) - self._margin), *(low[:, 2:].max(axis=0) + self._margin))
        around = [line for held in self._held for line in held.near(box) if line not in changes]
        others = np.array([self._at(number).drawn[line] for number, line in around], object)
        crossed = (
            _hold(sweeps, others)
            or _meet(moved, others)
            or _meet_each_other(moved)
            # Lines that end at the ring stay on their side of it.
            or any(shapely.relate_pattern(new, end, _INSIDE if ring.is_outer else _OUTSIDE) for end in ends.values())
        )
        return None if crossed else float(swept.area)

    def _at(self, number: int) -> _Held:
        return self._held[number - self._held[0].number]

    def _points(self, line: Line) -> Floats:
        points: Floats = shapely.get_coordinates(self._at(line[0]).drawn[line[1]])
        return points

    def _oriented(self, line: Line, backward: int) -> Floats:
        points = self._points(line)
        return points[::-1] if backward else points

    def _ends_at(self, point: NDArray[Any]) -> list[tuple[Line, int]]:
        return [found for held in self._held if held.row <= point[1] <= held.row_stop for found in held.ends_at(point)]


def _put(faces: dict[int, _Face | None], number: int, face: _Face | None) -> None:
    """Add what is known of a face to what is known already; None, which is too large, stays that."""
    if number not in faces:
        faces[number] = face
        return
    known = faces[number]
    if known is None or face is None:
        faces[number] = None
    else:
        known.join(face)


@dataclass(frozen=True)
class _Drawn:
    """A ring with its new points. forward: of each of its lines, in the order of travel; points: in that of the line.

    dropped: whether the start of each line only cuts a straight. passing: see Lines, for each line.
    """

    forward: list[Floats]
    points: list[Floats]
    dropped: list[int]
    passing: dict[Line, tuple[int, int]]

    def walls(self) -> list[shapely.LineString]:
        """The lines as polygons will have them: two that a cut parts are one, whose rounding is gone with it."""
        start = next((place for place, dropped in enumerate(self.dropped) if not dropped), 0)
        walls: list[Floats] = []
        for place in range(len(self.forward)):
            at = (start + place) % len(self.forward)
            piece = self.forward[at]
            if place and self.dropped[at]:
                walls[-1] = np.concatenate([walls[-1][:-1], piece[1:]])
            else:
                walls.append(piece)
        return [shapely.linestrings(wall) for wall in walls]


@dataclass(frozen=True)
class _Ring:
    """The lines of a ring in the order of travel, which of them run backwards, and all points of each (k, 2)."""

    lines: list[Line]
    backward: list[int]
    pieces: list[NDArray[np.int64]]
    is_outer: bool

    def along(self, corners: Floats, met: Sequence[bool], wanted: NDArray[Any]) -> _Drawn | None:
        """The lines along a ring with these corners (w, 2), None where their ends have another order there.

        met: whether other lines end at the start of each line. Such ends lie at the point of the new ring that is
        nearest to where they are wanted (k, 2); those between, where a seam alone cuts the ring, where as much of the
        way is behind as before.
        """
        closed = shapely.linestrings(np.concatenate([corners, corners[:1]]))
        total = float(closed.length)
        bends = np.append(0, np.cumsum(np.hypot(*(np.roll(corners, -1, axis=0) - corners).T)))[:-1]
        anchors = np.flatnonzero(met)
        if len(anchors):
            places = shapely.line_locate_point(closed, shapely.points(wanted[anchors]))
        else:
            anchors, places = np.array([0]), bends[[int(np.hypot(*(corners - wanted[0]).T).argmin())]]
        # From the first of these ends on: how far each line begins from it, on the new ring and on the old one.
        behind = np.append((places - places[0]) % total, total)
        lengths = np.roll([np.abs(np.diff(piece, axis=0)).sum() for piece in self.pieces], -anchors[0])
        way = np.append(0, np.cumsum(lengths))
        if (np.diff(behind) < _APART).any():
            return None
        begins = np.interp(way, way[np.append(anchors - anchors[0], len(lengths))], behind)
        turned = (bends - places[0]) % total
        begins, at_bend = _snapped(begins, np.append(turned, total))
        if (np.diff(begins) < _APART).any():
            return None
        ends = shapely.get_coordinates(shapely.line_interpolate_point(closed, (places[0] + begins) % total))
        order = np.argsort(turned)
        forward = []
        for place, (begin, end) in enumerate(pairwise(begins.tolist())):
            inner = order[(turned[order] > begin + _APART / 2) & (turned[order] < end - _APART / 2)]
            points = np.concatenate([ends[[place]], corners[inner], ends[[place + 1]]])
            forward.append(np.round(points * _FINEST) / _FINEST)
        forward[-1][-1] = forward[0][0]
        forward = forward[-anchors[0] :] + forward[: -anchors[0]] if anchors[0] else forward
        dropped = [
            0 if other or bend else DROPPED for other, bend in zip(met, np.roll(at_bend[:-1], anchors[0]), strict=True)
        ]
        return self._oriented(forward, dropped)

    def _oriented(self, forward: list[Floats], dropped: list[int]) -> "_Drawn":
        points, passing = [], {}
        for place, (line, back) in enumerate(zip(self.lines, self.backward, strict=True)):
            flags = (dropped[place], dropped[(place + 1) % len(dropped)])
            points.append(forward[place][::-1] if back else forward[place])
            passing[line] = flags[::-1] if back else flags
        return _Drawn(forward, points, dropped, passing)


def _snapped(places: Floats, bends: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Places along a ring (n,), those that are next to a bend at the bend, and which these are (n,)."""
    nearest = bends[np.abs(places[:, None] - bends).argmin(axis=1)]
    near = np.abs(places - nearest) < _APART
    return np.where(near, nearest, places), near


def _line(outlines: Outlines, number: int) -> NDArray[np.int64]:
    """All points of a line (k, 2)."""
    return outlines.points[outlines.first[number] : outlines.first[number + 1]].astype(np.int64)


def _doubled_area(ring: NDArray[np.int64]) -> int:
    x, y = ring.T
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())


def _polygon(lines: Sequence[Floats]) -> shapely.Polygon:
    """The ring of lines that follow each other, filled."""
    return shapely.Polygon(np.concatenate([line[:-1] for line in lines]))


def _is_line(line: shapely.LineString) -> bool:
    """Whether a line does not meet itself, and has something inside where its ends are one point."""
    return line.is_simple and (not line.is_closed or len(line.coords) > 3)


def _between(old: Floats, new: Floats) -> shapely.Geometry:
    """A face that holds all between two forms (n, 2) of a line that differ towards their ends."""
    same = (old[:, None] == new).all(axis=2)
    if not same.any():
        return shapely.convex_hull(shapely.multipoints(np.concatenate([old, new])))
    first, last = np.argwhere(same)[[0, -1]]
    ends = [(old[: first[0] + 1], new[: first[1] + 1]), (old[last[0] :], new[last[1] :])]
    return shapely.union_all([shapely.convex_hull(shapely.multipoints(np.concatenate(pair))) for pair in ends])


def _hold(faces: Sequence[shapely.Geometry], lines: NDArray[np.object_]) -> bool:
    """Whether anything of some lines lies inside any of some faces."""
    parts = shapely.get_parts(np.array(faces, object))
    part, line = _touching(parts, lines)
    return bool(shapely.relate_pattern(parts[part], lines[line], "T********").any())


def _meet(some: NDArray[np.object_], others: NDArray[np.object_]) -> bool:
    """Whether any of some lines meets any of others elsewhere than both end."""
    one, other = _touching(some, others)
    return bool((~shapely.relate_pattern(some[one], others[other], _AT_ENDS)).any())


def _meet_each_other(lines: NDArray[np.object_]) -> bool:
    one, other = _touching(lines, lines)
    one, other = one[one < other], other[one < other]
    return bool((~shapely.relate_pattern(lines[one], lines[other], _AT_ENDS)).any())


def _touching(some: NDArray[np.object_], others: NDArray[np.object_]) -> NDArray[np.int64]:
    """Pairs (2, k) of those that have a point in common."""
    pairs: NDArray[np.int64] = shapely.STRtree(others).query(some, predicate="intersects")
    return pairs
