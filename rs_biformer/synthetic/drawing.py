"""A town seen from above: drawn on a canvas, lit by the sun, taken by a camera."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from rs_biformer.geometry import Window
from rs_biformer.synthetic.noise import hashed, value_noise
from rs_biformer.synthetic.plots import HIGHEST
from rs_biformer.synthetic.things import MEADOW, Box, Colour, Disc, Surface, Thing, Yard
from rs_biformer.synthetic.town import JITTER, LAYERS, PITCH_U, PITCH_V, Town, plan_block

OVERHANG = 8.0  # metres: nothing reaches further out of its block than this
BLUR, BLUR_REACH = 0.6, 3  # pixels: the width of the blur, and how far it looks

Floats = NDArray[np.float32]
Shifts = list[tuple[int, int, float]]


class _Canvas:
    """Height above ground and surface number per pixel of a window, with the coordinates of its pixels.

    `surface` indexes `table`, which grows by one row per thing drawn.
    """

    def __init__(self, town: Town, window: tuple[int, int, int, int], gsd: float) -> None:
        row, col, height, width = window
        self.gsd = gsd
        self.y = (np.arange(row, row + height) + 0.5) * gsd
        self.x = (np.arange(col, col + width) + 0.5) * gsd
        u, v = town.to_grid(self.x[None, :], self.y[:, None])
        self.u, self.v = u.astype(np.float32), v.astype(np.float32)
        self.height: Floats = np.zeros((height, width), np.float32)
        self.surface: NDArray[np.uint32] = np.zeros((height, width), np.uint32)
        self.bumps = value_noise(self.y, self.x, 1.15, town.seed + 1) + 0.6 * value_noise(
            self.y, self.x, 0.55, town.seed + 2
        )
        self.table: list[Surface] = [MEADOW]

    def part(self, y: tuple[float, float], x: tuple[float, float]) -> tuple[slice, slice]:
        """Slices of the pixels that may lie in a box of the plane; both are empty where none does."""
        rows, cols = _span(self.y, y, self.gsd), _span(self.x, x, self.gsd)
        return (rows, cols) if rows.start < rows.stop and cols.start < cols.stop else (slice(0, 0), slice(0, 0))

    def paint(self, where: tuple[slice, slice], mask: NDArray[np.bool_], z: Any, surface: Surface) -> None:
        """Put a surface at height `z`, a number or a raster, where `mask` holds and nothing higher is there already."""
        height = self.height[where]
        mask = mask & (z >= height)
        np.copyto(height, z, where=mask)
        np.copyto(self.surface[where], len(self.table), where=mask, casting="unsafe")
        self.table.append(surface)


def _span(axis: NDArray[Any], reach: tuple[float, float], gsd: float) -> slice:
    """The pixels of one axis whose centres may lie in `reach`: at most one too many on either side."""
    first = float(axis[0])
    start, stop = math.floor((reach[0] - first) / gsd), math.ceil((reach[1] - first) / gsd) + 1
    return slice(min(max(start, 0), len(axis)), min(max(stop, 0), len(axis)))


def _draw_box(canvas: _Canvas, box: Box) -> None:
    cos, sin = math.cos(box.angle), math.sin(box.angle)
    half_length, half_width = box.length / 2, box.width / 2
    reach_x = abs(cos) * half_length + abs(sin) * half_width
    reach_y = abs(sin) * half_length + abs(cos) * half_width
    rows, cols = canvas.part((box.y - reach_y, box.y + reach_y), (box.x - reach_x, box.x + reach_x))
    if rows.stop == 0:
        return
    x = (canvas.x[cols] - box.x)[None, :]
    y = (canvas.y[rows] - box.y)[:, None]
    to_side = half_width - np.abs((y * cos).astype(np.float32) - (x * sin).astype(np.float32))
    to_end = half_length - np.abs((x * cos).astype(np.float32) + (y * sin).astype(np.float32))
    inner = np.minimum(to_side, to_end)
    z: Any = np.float32(box.height)
    if box.slope:
        z = np.float32(box.height) + np.float32(box.slope) * (inner if box.hip else to_side)
    canvas.paint((rows, cols), inner >= 0, z, box.surface)


def _draw_disc(canvas: _Canvas, disc: Disc) -> None:
    reach = disc.radius * 1.25
    rows, cols = canvas.part((disc.y - reach, disc.y + reach), (disc.x - reach, disc.x + reach))
    if rows.stop == 0:
        return
    x = ((canvas.x[cols] - disc.x) / disc.radius).astype(np.float32)[None, :]
    y = ((canvas.y[rows] - disc.y) / disc.radius).astype(np.float32)[:, None]
    bumps = canvas.bumps[rows, cols]
    dome = 1 - (x * x + y * y) + bumps * np.float32(0.22)
    z: Any = np.float32(0)
    if disc.height:
        dome_height = np.sqrt(np.maximum(dome, 0))
        z = np.float32(disc.height) * (np.float32(0.3) + np.float32(0.62) * dome_height) + bumps * np.float32(0.42)
    canvas.paint((rows, cols), dome > 0, z, disc.surface)


def _draw_yard(canvas: _Canvas, yard: Yard) -> None:
    where = canvas.part(yard.y, yard.x)
    u, v = canvas.u[where], canvas.v[where]
    if u.size:
        inside = (u >= yard.u[0]) & (u < yard.u[1]) & (v >= yard.v[0]) & (v < yard.v[1])
        canvas.paint(where, inside, np.float32(0), yard.surface)


def _draw(town: Town, canvas: _Canvas) -> None:
    """Draw every block that can reach the canvas, ground first, in an order that does not depend on the canvas."""
    blocks = [plan_block(town, i, j) for i, j in _blocks_near(canvas)]
    for layer in range(len(LAYERS)):
        for block in blocks:
            for thing in block.layers[layer]:
                _draw_thing(canvas, thing)


def _draw_thing(canvas: _Canvas, thing: Thing) -> None:
    if isinstance(thing, Box):
        _draw_box(canvas, thing)
    elif isinstance(thing, Disc):
        _draw_disc(canvas, thing)
    else:
        _draw_yard(canvas, thing)


def _blocks_near(canvas: _Canvas) -> list[tuple[int, int]]:
    def numbers(coordinate: Floats, pitch: float) -> range:
        low, high = float(coordinate.min()) - OVERHANG - JITTER, float(coordinate.max()) + OVERHANG + JITTER
        return range(math.floor(low / pitch) - 1, math.floor(high / pitch) + 1)

    return [(i, j) for i in numbers(canvas.u, PITCH_U) for j in numbers(canvas.v, PITCH_V)]


# Share of the light that comes from the sky, per band: shadows are bluish, so least in the near infrared.
SKY: Colour = (0.30, 0.36, 0.42)


def _shadow_steps(town: Town, gsd: float) -> Shifts:
    """Shifts (rows, columns) towards the sun by 1, 2, 4, ... steps of a pixel, and by how much light rises on the way.

    Together they reach as far as the shadow of the highest thing.
    """
    reach = HIGHEST / math.tan(town.sun_elevation) / gsd
    steps: Shifts = []
    length = 1
    while sum(2**n for n in range(len(steps))) < reach:
        rows, cols = round(-length * math.cos(town.sun_azimuth)), round(length * math.sin(town.sun_azimuth))
        steps.append((rows, cols, math.hypot(rows, cols) * gsd * math.tan(town.sun_elevation)))
        length *= 2
    return steps


def _shifted(array: Floats, rows: int, cols: int) -> tuple[tuple[slice, slice], Floats]:
    """The part of a raster that has a partner (rows, cols) further on, as slices, and these partners."""
    height, width = array.shape
    here = (slice(max(0, -rows), height - max(0, rows)), slice(max(0, -cols), width - max(0, cols)))
    there = (slice(max(0, rows), height + min(0, rows)), slice(max(0, cols), width + min(0, cols)))
    return here, array[there]


def _shadow_height(height: Floats, steps: Shifts) -> Floats:
    """Height up to which each pixel lies in shadow: the highest of what stands sunwards, less the rise of the light.

    By doubling: after step n a pixel has seen 2^n pixels, so a shadow of 200 pixels takes 8 passes.
    """
    shade = height.copy()
    for rows, cols, rise in steps:
        here, there = _shifted(shade, rows, cols)
        there = there - np.float32(rise)
        shade[here] = np.maximum(shade[here], there)
    return shade


def _sunlight(town: Town, canvas: _Canvas, steps: Shifts) -> Floats:
    """Direct sunlight per pixel, 1 on level ground in the sun, 0 in shadow.

    Walls are not seen from above, so a step in height counts as level.
    """
    z = canvas.height
    per_metre = np.float32(0.5 / canvas.gsd)
    slope_x, slope_y = np.zeros_like(z), np.zeros_like(z)
    slope_x[:, 1:-1] = (z[:, 2:] - z[:, :-2]) * per_metre
    slope_y[1:-1] = (z[2:] - z[:-2]) * per_metre
    steepness = slope_x * slope_x + slope_y * slope_y
    east = math.sin(town.sun_azimuth) / math.tan(town.sun_elevation)
    south = -math.cos(town.sun_azimuth) / math.tan(town.sun_elevation)
    light: Floats = (1 - slope_x * np.float32(east) - slope_y * np.float32(south)) / np.sqrt(1 + steepness)
    np.clip(light, 0, 1.3, out=light)
    light[steepness > 16] = 1
    light[_shadow_height(z, steps) > z + np.float32(0.25)] = 0
    return light


def _expose(town: Town, canvas: _Canvas, light: Floats, row: int, col: int) -> NDArray[np.uint8]:
    """Grey values (3, h, w) of a canvas whose first pixel is (row, col) of the scene."""
    seed = town.seed
    mottle = value_noise(canvas.y, canvas.x, 2.2, seed + 3) + value_noise(canvas.y, canvas.x, 8.0, seed + 4)
    grain = value_noise(canvas.y, canvas.x, 0.3, seed + 5)
    illumination = 1 + np.float32(0.06) * value_noise(canvas.y, canvas.x, 420.0, seed + 6)
    table = canvas.table
    surface = canvas.surface

    def column(values: list[float]) -> Floats:
        return np.array(values, np.float32)[surface]

    texture = 1 + column([s.mottle for s in table]) * mottle + column([s.grain for s in table]) * grain
    height, width = light.shape
    bits = hashed(np.arange(row, row + height)[:, None], np.arange(col, col + width)[None, :], seed + 7)
    # The sum of two uniform bytes is close enough to a bell curve; its standard deviation is 104.5.
    bytes_ = bits.view(np.uint8).reshape(height, width, 4).astype(np.float32)
    out = np.empty((3, height, width), np.uint8)
    for band in range(3):
        grey = column([s.colour[band] for s in table])
        grey += column([s.drift[band] for s in table]) * mottle
        grey *= texture
        sky = np.float32(SKY[band])
        grey *= sky + (1 - sky) * light
        grey *= illumination
        grey = gaussian_filter(grey, BLUR, mode="nearest", radius=BLUR_REACH)
        noise = (bytes_[..., band] + bytes_[..., band + 1] - 255) * np.float32(town.noise / 104.5)
        grey = grey * np.float32(town.gain[band]) + np.float32(town.haze[band] + 0.5) + noise
        out[band] = np.clip(grey, 0, 255)
    return out


def render(town: Town, window: Window, gsd: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw a window of the town's scene: image (3, h, w) and class index (h, w).

    The pixels of a window are the same whether it is drawn alone or as a part of a larger one.
    """
    steps = _shadow_steps(town, gsd)
    sunwards_rows, sunwards_cols = sum(step[0] for step in steps), sum(step[1] for step in steps)
    up, down = BLUR_REACH + 1 + max(0, -sunwards_rows), BLUR_REACH + 1 + max(0, sunwards_rows)
    left, right = BLUR_REACH + 1 + max(0, -sunwards_cols), BLUR_REACH + 1 + max(0, sunwards_cols)
    row, col = window.row - up, window.col - left
    canvas = _Canvas(town, (row, col, window.height + up + down, window.width + left + right), gsd)
    _draw(town, canvas)
    light = _sunlight(town, canvas, steps)
    inner = (slice(up, up + window.height), slice(left, left + window.width))
    image = _expose(town, canvas, light, row, col)
    label = np.array([surface.label for surface in canvas.table], np.uint8)[canvas.surface[inner]]
    return image[:, *inner], label
