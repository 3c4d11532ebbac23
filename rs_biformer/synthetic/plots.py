"""What stands in a block and along its streets: functions (rng, plot) -> things, in grid coordinates and metres."""

import math
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple

from rs_biformer.synthetic.things import (
    ASPHALT,
    CAR,
    CLINKER,
    CONCRETE,
    CONTAINERS,
    CROP,
    GLASS,
    GRAVEL,
    HEDGE,
    LAWN,
    MARKING,
    MEADOW,
    PAINTS,
    PAVEMENT,
    POOL,
    ROOFS_FLAT,
    ROOFS_PITCHED,
    ROUGH,
    RUBBLE,
    SKYLIGHT,
    SOIL,
    SOLAR,
    TREES,
    VENT,
    WATER,
    Box,
    Disc,
    Surface,
    Thing,
    Yard,
)

HIGHEST = 15.0
"""Metres: no roof or crown is higher, which bounds the length of shadows."""


class Street(NamedTuple):
    """A line of the grid: its coordinate and half the width of its carriageway."""

    at: float
    half: float


class Plot(NamedTuple):
    """The inside of a block between its sidewalks, in grid coordinates."""

    u0: float
    u1: float
    v0: float
    v1: float


def _pick(rng: Random, surfaces: Sequence[Surface], share: float = 0.12) -> Surface:
    return rng.choice(surfaces).varied(rng, share)


def _steps(low: float, high: float, step: float) -> Iterator[float]:
    """low, low + step, ... below high."""
    for number in range(max(0, math.ceil((high - low) / step))):
        yield low + number * step


def _around(mean: float, rng: Random) -> int:
    """A count that is `mean` on average: up to twice as many, or none."""
    return int(rng.triangular(0, 2 * mean, mean) + 0.5)


def _on_line(angle: float, along: float, across: float) -> tuple[float, float]:
    """A point beside a line along u (angle 0) or along v."""
    return (along, across) if angle == 0.0 else (across, along)


def _cover(plot: Plot, surface: Surface) -> Yard:
    return Yard((plot.u0, plot.u1), (plot.v0, plot.v1), surface)


def _car(rng: Random, u: float, v: float, angle: float) -> list[Thing]:
    """A car: body and cabin, or one box for a van."""
    paint = Surface(CAR, rng.choice(PAINTS), 0.0, 0.02).varied(rng, 0.08)
    u, v, angle = u + rng.gauss(0, 0.15), v + rng.gauss(0, 0.15), angle + rng.gauss(0, 0.03)
    if rng.random() < 0.12:
        return [Box(u, v, angle, 5.6, 2.1, 2.2, paint)]
    length = rng.uniform(4.0, 4.8)
    return [
        Box(u, v, angle, length, 1.8, 0.9, paint),
        Box(u, v, angle, 0.56 * length, 1.6, 1.2, GLASS),
        Box(u, v, angle, 0.32 * length, 1.5, 1.4, paint),
    ]


def _tree(rng: Random, u: float, v: float, radius: float) -> Disc:
    (kind,) = rng.choices(TREES, (0.35, 0.3, 0.2, 0.15))
    height = min(radius * rng.uniform(1.9, 2.7), HIGHEST - 2)
    return Disc(u, v, radius, height, kind.varied(rng, 0.12, 0.05))


def _wood(rng: Random, plot: Plot, spacing: float = 5.0, cover: float = 1.0) -> list[Thing]:
    """Trees on a jittered lattice over the plot."""
    trees: list[Thing] = []
    for v in _steps(plot.v0 + spacing / 2, plot.v1, spacing):
        for u in _steps(plot.u0 + spacing / 2, plot.u1, spacing):
            if rng.random() < cover:
                du, dv = rng.gauss(0, spacing / 5), rng.gauss(0, spacing / 5)
                trees.append(_tree(rng, u + du, v + dv, rng.uniform(0.48, 0.8) * spacing))
    return trees


def traffic(rng: Random, street: Street, span: tuple[float, float], angle: float) -> list[Thing]:
    """Cars, trees and the centre line along one street between two crossings."""
    low, high = span

    def at(along: float, across: float) -> tuple[float, float]:
        return _on_line(angle, along, street.at + across)

    things: list[Thing] = []
    if street.half > 4:
        things += [Box(*at(along, 0.0), angle, 3.0, 0.18, 0.0, MARKING) for along in _steps(low + 6, high - 6, 7.5)]
    for side in (-1, 1):
        kerb = side * street.half
        if rng.random() < 0.65:  # parked
            for along in _steps(low + 4, high - 4, 5.8):
                if rng.random() > 0.3:
                    continue
                things += _car(rng, *at(along, kerb - side * 1.1), angle)
        if rng.random() < 0.25:  # driving
            things += _car(rng, *at(rng.uniform(low, high), kerb * 0.4), angle)
        if rng.random() < 0.55:
            step, radius = rng.uniform(7, 11), rng.uniform(2.2, 3.7)
            for along in _steps(low + 3, high - 3, step * 1.2):
                place = at(along + rng.gauss(0, 0.6), kerb + side * rng.uniform(0.8, 1.6))
                things.append(_tree(rng, *place, radius * rng.uniform(0.8, 1.25)))
    return things


def _roof(rng: Random, u: float, v: float, angle: float, length: float, width: float, storeys: float) -> list[Thing]:
    """A house: one roof or an L of two, with chimneys, skylights or solar panels."""
    eaves = 2.9 * storeys
    if rng.random() < 0.2:
        return _flat_roof(rng, u, v, angle, length, width, eaves)
    surface = _pick(rng, ROOFS_PITCHED)
    slope, hip = rng.uniform(0.5, 0.9), rng.random() < 0.3
    slope = min(slope, (HIGHEST - eaves) / (min(length, width) / 2))
    if width > length:
        length, width, angle = width, length, angle + math.pi / 2
    things: list[Thing] = [Box(u, v, angle, length, width, eaves, surface, slope, hip)]
    cos, sin = math.cos(angle), math.sin(angle)

    def at(along: float, across: float) -> tuple[float, float]:
        return u + along * cos - across * sin, v + along * sin + across * cos

    if rng.random() < 0.4:  # a wing across the ridge makes an L or a T
        along, reach = rng.uniform(-0.3, 0.3) * length, rng.uniform(0.15, 0.4) * width
        side = rng.choice([-1, 1])
        wing = 0.75 * width
        things.append(
            Box(*at(along, side * reach), angle + math.pi / 2, width + reach, wing, eaves, surface, slope, hip)
        )
    ridge = eaves + slope * width / 2
    if rng.random() < 0.7:
        things.append(Box(*at(rng.uniform(-0.35, 0.35) * length, 0.6), angle, 0.9, 0.7, ridge + 0.7, VENT))
    side = rng.choice([-1, 1])
    inset = 0.25 * width  # windows and panels lie in the roof's plane, halfway between ridge and eaves
    lying = ridge - slope * (width / 2 - inset) + 0.3
    if rng.random() < 0.2:
        size = (rng.uniform(0.4, 0.7) * length, 0.3 * width)
        things.append(Box(*at(0.0, side * inset), angle, *size, ridge - slope * inset + 0.15 * slope * width, SOLAR))
    elif rng.random() < 0.5:
        for along in (-0.3, 0.0, 0.3):
            if rng.random() < 0.6:
                things.append(Box(*at(along * length, side * inset), angle, 0.9, 1.2, lying, SKYLIGHT))
    return things


def _flat_roof(
    rng: Random, u: float, v: float, angle: float, length: float, width: float, height: float
) -> list[Thing]:
    """A flat roof with a parapet and plant on top."""
    surface = _pick(rng, ROOFS_FLAT)
    rim = surface.varied(rng, 0.2)._replace(mottle=0.02, grain=0.02, drift=(0.0, 0.0, 0.0))
    things: list[Thing] = [
        Box(u, v, angle, length, width, height, rim),
        Box(u, v, angle, length - 0.8, width - 0.8, height + 0.01, surface),
    ]
    for _ in range(_around(length * width / 160, rng)):
        du, dv = rng.uniform(-0.4, 0.4) * length, rng.uniform(-0.4, 0.4) * width
        cos, sin = math.cos(angle), math.sin(angle)
        size = rng.uniform(0.8, 2.6), rng.uniform(0.8, 2.6)
        top = _pick(rng, (VENT, SKYLIGHT, VENT))
        things.append(
            Box(
                u + du * cos - dv * sin,
                v + du * sin + dv * cos,
                angle,
                *size,
                height + rng.uniform(0.4, 1.5),
                top,
            )
        )
    return things


def _gardens(rng: Random, plot: Plot) -> list[Thing]:
    """Detached houses in gardens, in two rows back to back."""
    things: list[Thing] = [_cover(plot, LAWN.varied(rng))]
    count = max(1, round((plot.u1 - plot.u0) / rng.uniform(15, 20)))
    lot = (plot.u1 - plot.u0) / count
    middle = (plot.v0 + plot.v1) / 2
    setback = rng.uniform(2.5, 5.0)
    for row, (front, inward) in enumerate(((plot.v0, 1), (plot.v1, -1))):
        for number in range(count):
            u0 = plot.u0 + number * lot
            things += _garden(rng, u0, lot, front, inward, abs(middle - front), setback)
            if row == 0 and rng.random() < 0.4:
                things.append(Box(u0, (front + middle) / 2 + 2, math.pi / 2, abs(middle - front) - 6, 1.1, 1.3, HEDGE))
    return things


def _garden(rng: Random, u0: float, lot: float, front: float, inward: int, depth: float, setback: float) -> list[Thing]:
    """One lot: house, drive, garage, terrace, trees, and now and then a pool or beds."""
    back = front + inward * depth
    v0, v1 = sorted((front, back))
    things: list[Thing] = []
    if rng.random() < 0.7:
        ground = _pick(rng, (LAWN, LAWN, MEADOW, ROUGH))
        things.append(Yard((u0, u0 + lot), (v0, v1), ground))
    width, deep = rng.uniform(0.62, 0.76) * lot, rng.uniform(10, 13)
    u, v = u0 + lot * 0.44, front + inward * (setback + deep / 2)
    tilt = rng.gauss(0, 0.02)
    drive = _pick(rng, (CLINKER, CONCRETE, GRAVEL, ASPHALT))
    u_drive = u0 + lot - 1.9
    length = setback + rng.uniform(4, 9)
    things.append(Box(u_drive, front + inward * length / 2, math.pi / 2, length + 1, 3.2, 0.0, drive))
    things.append(Box(u, front + inward * setback / 2, math.pi / 2, setback + 1, 1.6, 0.0, drive))
    things += _roof(rng, u, v, tilt, width, deep, rng.choice([1, 1.5, 2]))
    if rng.random() < 0.6:
        things += _flat_roof(rng, u_drive - 0.1, front + inward * (length + 3), tilt + math.pi / 2, 6.5, 3.2, 2.6)
    if rng.random() < 0.45:
        things += _car(rng, u_drive, front + inward * length * 0.55, math.pi / 2)
    terrace = rng.uniform(2.5, 4.5)
    v_terrace = v + inward * (deep + terrace) / 2
    things.append(
        Box(
            u + rng.uniform(-1.5, 1.5),
            v_terrace,
            tilt,
            rng.uniform(4, 8),
            terrace + 1,
            0.0,
            _pick(rng, (CLINKER, CONCRETE, PAVEMENT)),
        )
    )
    things += _back_garden(rng, Plot(u0, u0 + lot, *sorted((v_terrace + inward * terrace / 2, back))))
    if rng.random() < 0.5:
        things.append(_tree(rng, u0 + rng.uniform(0.5, lot * 0.7), front + inward * 1.5, rng.uniform(1.3, 2.2)))
    return things


def _back_garden(rng: Random, plot: Plot) -> list[Thing]:
    if plot.v1 - plot.v0 < 3:
        return []

    def spot(margin: float) -> tuple[float, float]:
        return rng.uniform(plot.u0 + margin, plot.u1 - margin), rng.uniform(
            plot.v0 + min(margin, 1.4), plot.v1 - min(margin, 1.4)
        )

    things: list[Thing] = []
    if rng.random() < 0.35:
        things.append(Box(*spot(3.5), rng.choice([0.0, math.pi / 2]), rng.uniform(5, 8), rng.uniform(3, 4), 0.0, POOL))
    elif rng.random() < 0.3:
        things.append(Box(*spot(3), 0.0, rng.uniform(3, 6), rng.uniform(2, 4), 0.0, SOIL.varied(rng)))
    if rng.random() < 0.35:
        things += _flat_roof(rng, *spot(2), rng.gauss(0, 0.05), rng.uniform(2.5, 4), rng.uniform(2, 3), 2.2)
    for _ in range(_around(4.2, rng)):
        things.append(_tree(rng, *spot(1.0), rng.choice([rng.uniform(1.2, 2.4), rng.uniform(2.8, 5.0)])))
    return things


def _perimeter(rng: Random, plot: Plot) -> list[Thing]:
    """Old-town rows along the streets around a court."""
    court = _pick(rng, (CLINKER, ASPHALT, GRAVEL, PAVEMENT, LAWN))
    things: list[Thing] = [_cover(plot, court)]
    depth = rng.uniform(9.5, 12.5)
    for v in (plot.v0 + depth / 2, plot.v1 - depth / 2):
        things += _row(rng, 0.0, v, plot.u0, plot.u1, depth)
    for u in (plot.u0 + depth / 2, plot.u1 - depth / 2):
        things += _row(rng, math.pi / 2, u, plot.v0 + depth, plot.v1 - depth, depth)
    inner = Plot(plot.u0 + depth + 2, plot.u1 - depth - 2, plot.v0 + depth + 2, plot.v1 - depth - 2)
    if inner.u1 - inner.u0 > 14 and inner.v1 - inner.v0 > 8:
        if rng.random() < 0.5:
            things.append(Yard((inner.u0, inner.u1), (inner.v0, (inner.v0 + inner.v1) / 2), LAWN.varied(rng)))
        things += _wood(rng, inner, 7.0, 0.55)
        things += _parking(rng, Plot(inner.u0, inner.u1, inner.v1 - 6, inner.v1), 0.5)
    return things


def _row(rng: Random, angle: float, across: float, low: float, high: float, depth: float) -> list[Thing]:
    """Terraced houses wall to wall from `low` to `high`, with a gap here and there."""
    things: list[Thing] = []
    along = low
    while high - along > 6:
        length = min(rng.uniform(8, 15), high - along)
        if high - along - length < 6:
            length = high - along
        if rng.random() < 0.86:
            place = _on_line(angle, along + length / 2, across)
            things += _roof(rng, *place, angle, length, depth * rng.uniform(0.92, 1.08), rng.choice((2, 2.5, 3)))
        along += length
    return things


def _parking(rng: Random, plot: Plot, fill: float) -> list[Thing]:
    """Rows of parked cars, with an aisle between two rows."""
    things: list[Thing] = []
    for row, v in enumerate(_steps(plot.v0 + 3, plot.v1 - 2, 8.0)):
        for u in _steps(plot.u0 + 2, plot.u1 - 2, 2.8):
            things.append(Box(u - 1.4, v, math.pi / 2, 4.8, 0.14, 0.0, MARKING))
            if rng.random() < fill:
                things += _car(rng, u, v + (row % 2), math.pi / 2)
    return things


def _commerce(rng: Random, plot: Plot) -> list[Thing]:
    """A hall with a car park, and a second hall or a storage yard."""
    things: list[Thing] = [_cover(plot, _pick(rng, (ASPHALT, ASPHALT, CONCRETE, CLINKER)))]
    split = plot.u0 + rng.uniform(0.45, 0.65) * (plot.u1 - plot.u0)
    middle = ((plot.u0 + split) / 2, (plot.v0 + plot.v1) / 2)
    deep = plot.v1 - plot.v0
    things += _flat_roof(rng, *middle, 0.0, split - plot.u0 - 4, deep - 8, rng.uniform(5, 9))
    corner = Plot(split + 6, plot.u1 - 2, plot.v1 - 16, plot.v1 - 3)
    if rng.random() < 0.4:
        u, v = (corner.u0 + corner.u1) / 2, (corner.v0 + corner.v1) / 2
        things += _flat_roof(rng, u, v, 0.0, corner.u1 - corner.u0, 13, rng.uniform(4, 11))
    else:
        things += _storage(rng, corner)
    park = Plot(split + 3, plot.u1 - 2, plot.v0 + 2, plot.v1 - 18)
    things += _parking(rng, park, rng.uniform(0.2, 0.5))
    for u in _steps(park.u0, park.u1, 9.0):
        things.append(_tree(rng, u, park.v0 - 1.5, rng.uniform(1.6, 2.8)))
    things += _storage(rng, Plot(plot.u0 + 4, split - 4, plot.v1 - 3.6, plot.v1 - 0.8), 0.4)
    return things


def _storage(rng: Random, plot: Plot, cover: float = 0.7) -> list[Thing]:
    """Rows of containers, with heaps of rubble among them."""
    things: list[Thing] = []
    for v in _steps(plot.v0 + 1.3, plot.v1 - 1, 3.2):
        for u in _steps(plot.u0 + 3.5, plot.u1 - 3, 7.2):
            if rng.random() > cover:
                continue
            if rng.random() < 0.2:
                things.append(Disc(u, v, rng.uniform(1.2, 2.2), 1.2, RUBBLE.varied(rng)))
            else:
                things.append(Box(u, v, rng.gauss(0, 0.04), 6.1, 2.5, 2.6, _pick(rng, CONTAINERS)))
    return things


def _slabs(rng: Random, plot: Plot) -> list[Thing]:
    """Apartment slabs on lawns, with paths, trees and a strip of parking."""
    things: list[Thing] = [_cover(plot, _pick(rng, (LAWN, MEADOW)))]
    things.append(Yard((plot.u0, plot.u1), (plot.v0, plot.v0 + 7.5), ASPHALT.varied(rng)))
    things += _parking(rng, Plot(plot.u0, plot.u1, plot.v0, plot.v0 + 7), rng.uniform(0.3, 0.6))
    count = rng.randint(2, 3)
    step = (plot.u1 - plot.u0) / count
    deep = plot.v1 - plot.v0 - 10
    for number in range(count):
        u = plot.u0 + (number + 0.5) * step
        v = plot.v0 + 9 + deep / 2
        things.append(Box(u + step * 0.38, v, math.pi / 2, deep, 2.0, 0.0, _pick(rng, (CLINKER, CONCRETE))))
        things += _roof(
            rng, u, v, math.pi / 2, deep * rng.uniform(0.75, 0.95), rng.uniform(11, 14), rng.choice([3, 3.5, 4])
        )
        between = Plot(u + step * 0.38 - 3, u + step * 0.38 + 4, v - deep / 2, v + deep / 2)
        things += _wood(rng, between, 6.5, 0.75)
    return things


def _park(rng: Random, plot: Plot) -> list[Thing]:
    """Meadow, wood, a path and at times a pond."""
    things: list[Thing] = [_cover(plot, _pick(rng, (MEADOW, LAWN, ROUGH)))]
    v = (plot.v0 + plot.v1) / 2
    path = _pick(rng, (GRAVEL, CLINKER, ASPHALT))
    things.append(Yard((plot.u0, plot.u1), (v - 1.2, v + 1.2), path))
    edge = plot.u0 + rng.uniform(0.5, 0.85) * (plot.u1 - plot.u0)
    things += _wood(rng, Plot(plot.u0, edge, plot.v0, v - 2), 5.5, 0.9)
    things += _wood(rng, Plot(edge - 10, plot.u1, v + 2, plot.v1), 6.0, rng.uniform(0.4, 0.95))
    things.append(Disc(edge + rng.uniform(9, 12), (plot.v0 + v) / 2, rng.uniform(7, 11), 0.0, WATER))
    return things


def _fields(rng: Random, plot: Plot) -> list[Thing]:
    """Allotments and small fields in strips, a hut and a tree here and there."""
    things: list[Thing] = []
    u = plot.u0
    while u < plot.u1 - 2:
        width = min(rng.uniform(5, 16), plot.u1 - u)
        things.append(Yard((u, u + width), (plot.v0, plot.v1), _pick(rng, (CROP, LAWN, MEADOW, ROUGH, SOIL), 0.15)))
        if rng.random() < 0.35:
            things += _flat_roof(
                rng, u + width / 2, rng.uniform(plot.v0 + 4, plot.v1 - 4), 0.0, min(5.0, width - 1), 3.5, 2.4
            )
        for _ in range(_around(1.2, rng)):
            things.append(_tree(rng, u + rng.uniform(0, width), rng.uniform(plot.v0, plot.v1), rng.uniform(1.2, 3.5)))
        u += width
    return things


LandUse = Callable[[Random, Plot], list[Thing]]

LAND_USES: tuple[tuple[LandUse, float], ...] = (
    (_gardens, 0.45),
    (_perimeter, 0.22),
    (_park, 0.10),
    (_slabs, 0.10),
    (_commerce, 0.09),
    (_fields, 0.04),
)
