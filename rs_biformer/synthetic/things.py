"""What a town is made of: boxes, discs and yards, and the surfaces seen from above."""

from random import Random
from typing import NamedTuple

from rs_biformer.schema import PRESETS

SCHEMA = PRESETS["vaihingen"]
IMPERVIOUS, BUILDING, LOW_VEGETATION, TREE, CAR, CLUTTER = range(len(SCHEMA))

Colour = tuple[float, float, float]


class Surface(NamedTuple):
    """What is seen from above: class index and grey values in full sun (near infrared, red, green).

    mottle, grain: shares by which patches of some metres, and single pixels, are brighter or darker.
    drift: grey values by which the colour of such a patch moves: fresh and dry grass.
    """

    label: int
    colour: Colour
    mottle: float = 0.05
    grain: float = 0.04
    drift: Colour = (0.0, 0.0, 0.0)

    def varied(self, rng: Random, share: float = 0.1, hue: float = 0.04) -> "Surface":
        """The same surface, brighter or darker by about `share`, each band by about `hue` on top."""
        level = 1 + share * rng.uniform(-1, 1)
        near_infrared, red, green = (grey * level * (1 + hue * rng.uniform(-1, 1)) for grey in self.colour)
        return self._replace(colour=(near_infrared, red, green))


class Box(NamedTuple):
    """A cuboid with a flat, gable or hip roof; with height 0, a rectangle on the ground. Metres and radians.

    slope: rise of the roof per metre from the eaves; a gable falls to the long sides, a hip to all four.
    """

    x: float
    y: float
    angle: float
    length: float
    width: float
    height: float
    surface: Surface
    slope: float = 0.0
    hip: bool = False


class Disc(NamedTuple):
    """A tree crown, or with height 0 a pond: a disc with a ragged edge. Metres."""

    x: float
    y: float
    radius: float
    height: float
    surface: Surface


class Yard(NamedTuple):
    """A piece of ground that follows the bent streets: a rectangle in grid coordinates, and its box in the plane."""

    u: tuple[float, float]
    v: tuple[float, float]
    surface: Surface
    x: tuple[float, float] = (0.0, 0.0)
    y: tuple[float, float] = (0.0, 0.0)


Thing = Box | Disc | Yard

ASPHALT = Surface(IMPERVIOUS, (100, 108, 110), 0.07, 0.05)
PAVEMENT = Surface(IMPERVIOUS, (128, 130, 127), 0.06, 0.06)
CONCRETE = Surface(IMPERVIOUS, (150, 152, 147), 0.06, 0.04)
CLINKER = Surface(IMPERVIOUS, (150, 128, 103), 0.06, 0.06)
GRAVEL = Surface(IMPERVIOUS, (162, 153, 138), 0.06, 0.08)
MARKING = Surface(IMPERVIOUS, (198, 200, 198))

ROOFS_PITCHED = (
    Surface(BUILDING, (168, 142, 102), 0.05, 0.06),  # red tiles, bright in the near infrared
    Surface(BUILDING, (148, 124, 97), 0.06, 0.06),
    Surface(BUILDING, (118, 104, 90), 0.06, 0.06),
    Surface(BUILDING, (90, 96, 99), 0.05, 0.05),  # slate: asphalt in colour
)
ROOFS_FLAT = (
    Surface(BUILDING, (104, 111, 112), 0.07, 0.05),  # bitumen: asphalt in colour
    Surface(BUILDING, (130, 132, 128), 0.06, 0.05),
    Surface(BUILDING, (166, 160, 148), 0.05, 0.07),  # gravel
    Surface(BUILDING, (196, 199, 197), 0.04, 0.03),  # sheet metal
    Surface(BUILDING, (74, 104, 116), 0.04, 0.03),  # the same, painted: a container in colour
    Surface(BUILDING, (158, 112, 98), 0.10, 0.08, (12.0, -8.0, -6.0)),  # planted
)
SKYLIGHT = Surface(BUILDING, (58, 72, 82), 0.02, 0.02)
SOLAR = Surface(BUILDING, (42, 52, 66), 0.02, 0.02)
VENT = Surface(BUILDING, (160, 162, 160), 0.02, 0.02)

LAWN = Surface(LOW_VEGETATION, (178, 104, 102), 0.07, 0.06, (6.0, -5.0, -4.0))
MEADOW = Surface(LOW_VEGETATION, (172, 122, 112), 0.08, 0.09, (7.0, -8.0, -6.0))
ROUGH = Surface(LOW_VEGETATION, (146, 88, 87), 0.12, 0.12, (9.0, -6.0, -5.0))
CROP = Surface(LOW_VEGETATION, (192, 98, 99), 0.05, 0.05, (5.0, -4.0, -4.0))
SOIL = Surface(LOW_VEGETATION, (146, 128, 108), 0.07, 0.07)
HEDGE = Surface(LOW_VEGETATION, (156, 84, 87), 0.10, 0.12)

TREES = (
    Surface(TREE, (180, 100, 99), 0.08, 0.07),
    Surface(TREE, (162, 90, 91), 0.08, 0.07),
    Surface(TREE, (190, 114, 108), 0.08, 0.07),
    Surface(TREE, (124, 80, 84), 0.08, 0.07),  # conifer
)

PAINTS = ((208, 210, 208), (208, 210, 208), (46, 48, 52), (60, 62, 66), (136, 140, 140), (172, 164, 62), (66, 80, 118))
GLASS = Surface(CAR, (44, 52, 58), 0.0, 0.02)
POOL = Surface(CLUTTER, (54, 128, 150), 0.03, 0.02)
WATER = Surface(CLUTTER, (26, 50, 62), 0.05, 0.02)
CONTAINERS = (
    Surface(CLUTTER, (66, 98, 118), 0.03, 0.03),
    Surface(CLUTTER, (158, 116, 62), 0.03, 0.03),
    Surface(CLUTTER, (128, 76, 70), 0.03, 0.03),
)
RUBBLE = Surface(CLUTTER, (122, 118, 108), 0.12, 0.16)
