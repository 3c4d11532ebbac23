"""Heights above the ground (nDSM) from heights above the sea (DSM): what stands out, on slopes too.

The ground is a terrain model where there is one. Otherwise it is found in the surface model itself by the progressive
morphological filter of Zhang et al. ("A Progressive Morphological Filter for Removing Nonground Measurements from
Airborne LIDAR Data", IEEE TGRS 41(4), 2003) on cells of about a metre: openings with growing windows take away what is
narrower than the window, and what they lower by more than the slope of the ground explains is no ground.
"""

import math
import os
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from rasterio.fill import fillnodata
from scipy.ndimage import grey_opening

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window, cover
from rs_biformer.raster.crs import metres_per_height
from rs_biformer.raster.overwriting import refuse_overwriting
from rs_biformer.raster.paths import PathLike
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.source import Source
from rs_biformer.raster.values import Reading
from rs_biformer.raster.writer import MapWriter

NODATA = -9999.0

CELL = 1.0
"""Metres along a side of the cells on which the ground is sought."""

LOW = 0.1
"""The height of a cell is that below which this share of its pixels lies: low outliers are rarer than walls."""

STEP, HIGHEST_STEP = 0.3, 2.5
"""Metres by which the smallest opening may lower ground, and the largest: the paper's range for urban scenes."""

UNITS = {"m": 1.0, "ft": 0.3048, "us-ft": 1200 / 3937, "dm": 0.1, "cm": 0.01, "mm": 0.001, "km": 1000.0}
"""Units of height, in metres."""

_SPELT = {
    **dict.fromkeys(("metre", "meter", "metres", "meters", "mtr"), "m"),
    **dict.fromkeys(("foot", "feet", "international foot", "international feet"), "ft"),
    **dict.fromkeys(("us survey foot", "us survey feet", "us_survey_foot", "ftus", "us foot", "sft"), "us-ft"),
    **dict.fromkeys(("decimetre", "decimeter", "decimetres", "decimeters"), "dm"),
    **dict.fromkeys(("centimetre", "centimeter", "centimetres", "centimeters"), "cm"),
    **dict.fromkeys(("millimetre", "millimeter", "millimetres", "millimeters"), "mm"),
    **dict.fromkeys(("kilometre", "kilometer", "kilometres", "kilometers"), "km"),
}

_STRIP = 1024  # rows and columns of a window, about

MOST_CELLS = 2**28
"""Unless insisted on; 270 square kilometres."""
_CELL_BYTES = 20  # about

_FINEST = 1e-3
"""Metres of a pixel: a cell of a metre is then a window of a thousand by a thousand."""


def write_ndsm(
    dsm: PathLike,
    out: str | os.PathLike[str],
    *,
    terrain: PathLike | None = None,
    largest: float = 60.0,
    slope: float = 0.3,
    unit: str | None = None,
    allow_huge: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the heights of a DSM above the ground in metres, float32, 0 where it is the ground or below.

    dsm: heights in metres, one band. terrain: a terrain model, on any grid; its heights are taken away. Without one the
    ground is found in the DSM: what is narrower than `largest` metres and rises by more than `slope` (rise over run)
    explains stands on it. Pixels without a height, in either file, have none (-9999).
    unit: that of the heights in both files, one of UNITS; what each band declares unless given, else that of the
        heights of its CRS, else metres. Scale and offset that the files declare are applied before.
    allow_huge: find the ground on more than MOST_CELLS cells of a metre, which are in memory at once.
    progress: called with rows done and rows in all.

    Memory is a few windows and the cells of a metre; the file is a COG. Raises RasterError where a file cannot be read,
    does not say how large its pixels are, or has heights in an unknown unit, ConfigError for numbers that cannot be
    meant.
    """
    if not (largest > 0 and slope >= 0):
        raise ConfigError(f"largest is {largest} and slope {slope}; they must be above 0, and 0 or more")
    if unit is not None and unit not in UNITS:
        raise ConfigError(f"unit is {unit!r}; it must be one of {', '.join(UNITS)}")
    refuse_overwriting([dsm, terrain], [out])
    with Scene([dsm] if terrain is None else [dsm, terrain], reading=Reading(scaled=True)) as scene:
        _require_heights(scene, 1 if terrain is None else 2)
        metres = [UNITS[unit] if unit else _metres(source) for source in scene.sources]
        cell = cell_side(scene) if terrain is None else 1
        if terrain is None and not allow_huge:
            _require_possible(scene, cell)
        side = max(1, _STRIP // cell) * cell  # whole cells
        windows = list(cover(Window(0, 0, scene.height, scene.width), side, side))
        with MapWriter(
            out,
            height=scene.height,
            width=scene.width,
            **scene.georeference,
            dtype="float32",
            nodata=NODATA,
            descriptions=["ndsm"],
            tags={"HEIGHT": "metres above the ground", "GROUND": "found in the DSM" if terrain is None else "given"},
        ) as writer:
            ground = None
            if terrain is None:
                ground = find_ground(metres[0] * _cells(scene, windows, cell), cell * _gsd(scene), largest, slope)
            for window in windows:
                pixels, valid = scene.read(window)
                below = metres[-1] * pixels[1] if ground is None else on_pixels(ground, cell, window)
                with np.errstate(over="ignore", invalid="ignore"):  # numbers of a damaged file: no heights
                    height = np.maximum(np.float32(metres[0]) * pixels[0].astype(np.float32) - below, 0)
                writer.write(window, np.where(valid & np.isfinite(height), height, np.float32(NODATA)))
                if progress is not None:
                    progress(window.row_stop, scene.height)


def _require_possible(scene: Scene, cell: int) -> None:
    """Say what is too large before anything of that size is made."""
    cells = -(-scene.height // cell) * -(-scene.width // cell)
    if cells > MOST_CELLS:
        raise RasterError(
            f"{scene.path} is {scene.height} x {scene.width} pixels, {cells:,} cells on which the ground is sought at "
            f"once ({cells * _CELL_BYTES / 1e9:,.0f} GB of memory); more than {MOST_CELLS:,} are taken for a mistake: "
            "cut the model into parts, give a --terrain, or insist with --allow-huge"
        )


def _require_heights(scene: Scene, bands: int) -> None:
    if scene.count != bands:
        raise RasterError(
            f"{' and '.join(map(str, scene.paths))} have {scene.count} bands; heights have one band per file"
        )


def _metres(source: Source) -> float:
    """Metres in a unit of the heights of a raster, as its band says, or its CRS."""
    said = (source.units[0] or "").strip()
    if not said:
        return metres_per_height(source.crs) or 1.0
    name = _SPELT.get(said.casefold(), said.casefold())
    if name not in UNITS:
        raise RasterError(
            f"{source.path} has heights in {said!r}, which is no unit known here; say which they are with --unit "
            f"({', '.join(UNITS)})"
        )
    return UNITS[name]


def _gsd(scene: Scene) -> float:
    if scene.gsd is None:
        raise RasterError(f"{scene.path} has no georeference, so the size of what stands on the ground is not known")
    if scene.gsd < _FINEST:
        raise RasterError(
            f"{scene.path} has pixels of {scene.gsd:g} m by its georeference; below {_FINEST:g} m that is taken for a "
            "mistake, set it anew with gdal_edit.py -a_ullr"
        )
    return scene.gsd


def cell_side(scene: Scene) -> int:
    """Pixels along the side of a cell."""
    return max(1, round(CELL / _gsd(scene)))


def _cells(scene: Scene, windows: list[Window], cell: int) -> NDArray[np.float32]:
    """The low height of each cell, (rows, columns); NaN where a cell has no pixel."""
    found = np.full((-(-scene.height // cell), -(-scene.width // cell)), np.nan, np.float32)
    for window in windows:
        pixels, valid = scene.read(window)
        low = low_heights(np.where(valid, pixels[0], np.nan).astype(np.float32), cell)
        found[window.row // cell :, window.col // cell :][: low.shape[0], : low.shape[1]] = low
    return found


def low_heights(heights: NDArray[np.float32], cell: int) -> NDArray[np.float32]:
    """Heights (h, w) with NaN -> of each cell of `cell` x `cell` the one at the share LOW; NaN where there is none."""
    frame = [(0, -side % cell) for side in heights.shape]
    padded = np.pad(heights, frame, constant_values=np.nan)
    rows, cols = (side // cell for side in padded.shape)
    by_cell = padded.reshape(rows, cell, cols, cell).swapaxes(1, 2).reshape(rows, cols, -1)
    rising = np.sort(by_cell, axis=-1)  # NaN last
    rank = np.floor(LOW * np.maximum(np.isfinite(rising).sum(axis=-1) - 1, 0)).astype(np.int64)
    return np.take_along_axis(rising, rank[..., None], axis=-1)[..., 0]


def find_ground(cells: NDArray[np.float32], size: float, largest: float, slope: float) -> NDArray[np.float32]:
    """Heights of the ground on every cell (rows, columns) of `size` metres, from heights with NaN.

    Cells that are no ground, or have no height, are filled from those around them. Raises RasterError without any.
    """
    known = np.isfinite(cells)
    if not known.any():
        raise RasterError("the surface model has no pixel with a height")
    reach = min(largest / size, 2.0 * max(cells.shape))  # wider than all changes nothing
    plane = _plane(cells, known)  # without it an opening would cut off what rises towards an edge
    above = _filled(cells - plane, known, reach)
    ground, before = known.copy(), 1
    for window in _window_sides(reach):
        opened = grey_opening(above, size=(window, window), mode="nearest")
        step = min(STEP + slope * (window - before) * size, HIGHEST_STEP)
        ground &= above - opened <= step
        above, before = opened, window
    return _filled(cells - plane, ground, reach) + plane


def _plane(heights: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The plane of least squares through what is known, (rows, columns)."""
    down, right = (np.linspace(-1, 1, side) for side in heights.shape)
    z, rows, cols = np.where(known, heights, 0).astype(np.float64), known.sum(1), known.sum(0)
    both = down @ known @ right
    moments = [
        [down**2 @ rows, both, down @ rows],
        [both, right**2 @ cols, right @ cols],
        [down @ rows, right @ cols, known.sum()],
    ]
    slopes = np.linalg.lstsq(np.array(moments), [down @ z.sum(1), z.sum(0) @ right, z.sum()], rcond=None)[0]
    plane: NDArray[np.float32] = (slopes[0] * down[:, None] + slopes[1] * right + slopes[2]).astype(np.float32)
    return plane


def _filled(heights: NDArray[np.float32], known: NDArray[np.bool_], reach: float) -> NDArray[np.float32]:
    """What is not known from what is known around it; 0 far away from that."""
    zeroed = np.where(known, heights, 0).astype(np.float32)
    filled: NDArray[np.float32] = fillnodata(zeroed, mask=known, max_search_distance=4 * reach)
    return filled


def _window_sides(largest: float) -> Iterator[int]:
    """3, 5, 9, 17, ... cells up to one that is wider than `largest`."""
    for power in range(1, max(1, math.ceil(math.log2(max(largest, 2)))) + 1):
        yield 2**power + 1


def on_pixels(ground: NDArray[np.float32], cell: int, window: Window) -> NDArray[np.float32]:
    """The ground at the centres of the pixels of a window, bilinear between the centres of cells."""
    rows, below, down = _between(window.row, window.height, cell, ground.shape[0])
    cols, beside, right = _between(window.col, window.width, cell, ground.shape[1])
    upper = ground[rows][:, cols] * (1 - right) + ground[rows][:, beside] * right
    lower = ground[below][:, cols] * (1 - right) + ground[below][:, beside] * right
    between = upper * (1 - down[:, None]) + lower * down[:, None]
    return between.astype(np.float32, copy=False)


def _between(
    first: int, length: int, cell: int, cells: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Per pixel of a stretch the cells before and after its centre, and how far it is on the way; (length,) each."""
    place = np.clip((np.arange(first, first + length) + 0.5) / cell - 0.5, 0, cells - 1)
    before = place.astype(np.int64)
    return before, np.minimum(before + 1, cells - 1), (place - before).astype(np.float32)
