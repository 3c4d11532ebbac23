"""The town: a bent grid of streets that follows from a seed, and the plan of each of its blocks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rs_biformer.errors import ConfigError
from rs_biformer.synthetic.plots import LAND_USES, LandUse, Plot, Street, traffic
from rs_biformer.synthetic.things import ASPHALT, PAVEMENT, Box, Colour, Thing, Yard

# The street grid, in metres. A line stands at most JITTER from its place, and waves bend the grid.
PITCH_U, PITCH_V, JITTER = 84.0, 62.0, 6.0
SIDEWALK = 1.6
WAVES = ((6.5, 310.0), (2.5, 135.0))  # amplitude and wavelength
SUN_ELEVATION = (math.radians(42), math.radians(52))


@dataclass(frozen=True)
class Town:
    """Everything that holds for a whole scene, drawn from its seed. Angles in radians, lengths in metres.

    waves: (wave vector x, y, phase, displacement along u, along v) of the waves that bend the street grid.
    gain, haze: per band, what the air and the camera make of a grey value; noise: its standard deviation.
    """

    seed: int
    heading: float
    waves: tuple[tuple[float, float, float, float, float], ...]
    sun_azimuth: float
    sun_elevation: float
    gain: Colour
    haze: Colour
    noise: float

    @classmethod
    def from_seed(cls, seed: int) -> "Town":
        """The town of a seed. Raises ConfigError for a negative seed."""
        if seed < 0:
            raise ConfigError(f"seed is {seed}; it must be 0 or more")
        rng = Random(f"town {seed}")
        waves = []
        for amplitude, length in WAVES:
            direction, displacement = rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi)
            waves.append(
                (
                    2 * math.pi / length * math.cos(direction),
                    2 * math.pi / length * math.sin(direction),
                    rng.uniform(0, 2 * math.pi),
                    amplitude * math.cos(displacement),
                    amplitude * math.sin(displacement),
                )
            )
        return cls(
            seed=seed,
            heading=rng.uniform(-0.5, 0.5),
            waves=tuple(waves),
            sun_azimuth=rng.uniform(0, 2 * math.pi),
            sun_elevation=rng.uniform(*SUN_ELEVATION),
            gain=_per_band(rng, rng.uniform(0.98, 1.10), 0.03),
            haze=_per_band(rng, rng.uniform(6, 13), 0.3),
            noise=rng.uniform(2.0, 3.5),
        )

    def rng(self, purpose: str, *place: int) -> Random:
        """Random numbers of their own for each purpose and place. Python's, because a plan draws them one by one."""
        return Random(f"{self.seed} {purpose} {place}")

    def to_grid(self, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Grid coordinates (u, v) of points in the plane; `x` and `y` broadcast."""
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        u, v = x * cos + y * sin, y * cos - x * sin
        for kx, ky, phase, along_u, along_v in self.waves:
            # sin(a + b) from sines and cosines of each axis: a raster of points costs two products, no sine.
            a, b = x * kx, y * ky + phase
            wave = np.sin(a) * np.cos(b) + np.cos(a) * np.sin(b)
            u, v = u + along_u * wave, v + along_v * wave
        return u, v

    def to_plane(self, u: NDArray[Any], v: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Points in the plane of grid coordinates: the inverse of `to_grid`, to a few millimetres."""
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        x, y = u * cos - v * sin, u * sin + v * cos
        for _ in range(6):  # the waves' slopes add up to less than 0.3, so each round divides the error by 3
            u_now, v_now = self.to_grid(x, y)
            x, y = x + (u - u_now) * cos - (v - v_now) * sin, y + (u - u_now) * sin + (v - v_now) * cos
        return x, y


LAYERS = ("sidewalks", "carriageways", "everything else")


class Block(NamedTuple):
    """What a block and its two streets hold, in LAYERS: a later layer covers the ground of an earlier one."""

    layers: tuple[tuple[Thing, ...], ...]


def _per_band(rng: Random, level: float, share: float) -> Colour:
    """A level for each band, up to `share` off the common one."""
    near_infrared, red, green = (level * (1 + share * rng.uniform(-1, 1)) for _ in range(3))
    return near_infrared, red, green


@lru_cache(maxsize=4096)
def street(town: Town, axis: int, number: int) -> Street:
    """A line of the street grid; axis 0 are those along v, at a u of their own."""
    rng = town.rng("street", axis, number)
    pitch = (PITCH_U, PITCH_V)[axis]
    (half,) = rng.choices((2.4, 2.9, 4.4), (0.5, 0.3, 0.2))
    return Street(number * pitch + rng.uniform(-JITTER, JITTER), half)


@lru_cache(maxsize=2048)
def plan_block(town: Town, i: int, j: int) -> Block:
    """Plan the block between street lines i, i + 1 and j, j + 1, with the streets at its low sides."""
    rng = town.rng("block", i, j)
    west, east = street(town, 0, i), street(town, 0, i + 1)
    north, south = street(town, 1, j), street(town, 1, j + 1)
    plot = Plot(
        west.at + west.half + SIDEWALK,
        east.at - east.half - SIDEWALK,
        north.at + north.half + SIDEWALK,
        south.at - south.half - SIDEWALK,
    )
    along_v = ((west.at - west.half, west.at + west.half), (north.at - north.half, south.at + south.half))
    along_u = ((west.at - west.half, east.at + east.half), (north.at - north.half, north.at + north.half))
    asphalt = ASPHALT.varied(rng, 0.12)
    carriageways: list[Thing] = [Yard(*along_v, asphalt), Yard(*along_u, asphalt)]
    pavement = PAVEMENT.varied(rng)
    sidewalks: list[Thing] = [
        Yard((u[0] - SIDEWALK, u[1] + SIDEWALK), (v[0] - SIDEWALK, v[1] + SIDEWALK), pavement)
        for u, v in (along_v, along_u)
    ]
    things = _land_use(town, i, j)(rng, plot)
    things += traffic(rng, west, (plot.v0, plot.v1), math.pi / 2)
    things += traffic(rng, north, (plot.u0, plot.u1), 0.0)
    return Block(_placed(town, [sidewalks, carriageways, things]))


def _placed(town: Town, layers: Sequence[Sequence[Thing]]) -> tuple[tuple[Thing, ...], ...]:
    """The same things, moved and turned from grid coordinates to the plane; yards get the box that holds them."""
    points = np.concatenate([_points(thing) for layer in layers for thing in layer])
    x, y = town.to_plane(points[:, 0], points[:, 1])
    start = 0
    placed = []
    for layer in layers:
        moved: list[Thing] = []
        for thing in layer:
            stop = start + (len(_SIDES) if isinstance(thing, Yard) else 2)
            moved.append(_moved(thing, x[start:stop], y[start:stop]))
            start = stop
        placed.append(tuple(moved))
    return tuple(placed)


# Points around a unit square: close enough to each other that a bent side leaves their box by less than a metre.
_SIDES = np.array([(a, b) for a in np.linspace(0, 1, 5) for b in np.linspace(0, 1, 5) if {a, b} & {0.0, 1.0}])


def _points(thing: Thing) -> NDArray[np.float64]:
    """The points of a thing that decide its place: those around a yard, or its centre and one a metre ahead."""
    if isinstance(thing, Yard):
        (u0, u1), (v0, v1) = thing.u, thing.v
        return _SIDES * (u1 - u0, v1 - v0) + (u0, v0)
    return np.array([(thing.x, thing.y), (thing.x + 1.0, thing.y)])


def _moved(thing: Thing, x: NDArray[np.float64], y: NDArray[np.float64]) -> Thing:
    if isinstance(thing, Yard):
        # A metre more than the points say: a bent side may bulge between two of them.
        return thing._replace(
            x=(float(x.min()) - 1.0, float(x.max()) + 1.0), y=(float(y.min()) - 1.0, float(y.max()) + 1.0)
        )
    thing = thing._replace(x=float(x[0]), y=float(y[0]))
    if isinstance(thing, Box):
        thing = thing._replace(angle=thing.angle + math.atan2(y[1] - y[0], x[1] - x[0]))
    return thing


def _land_use(town: Town, i: int, j: int) -> LandUse:
    """The use of a block, spread so evenly that a few dozen blocks already hold every use about by its share.

    Multiples of these two fractions fill [0, 1) evenly along any direction (the plastic number's, as in the R2 sequence
    of M. Roberts).
    """
    place = (town.rng("land use").random() + i * 0.7548776662 + j * 0.5698402910) % 1.0
    for use, share in LAND_USES[:-1]:
        if place < share:
            return use
        place -= share
    return LAND_USES[-1][0]
