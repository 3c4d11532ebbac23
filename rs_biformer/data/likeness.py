"""Whether two scenes that claim the same place show it.

Tools that cut or convert images often leave one georeference in all of them: chips with the same upper left corner
that lie kilometres apart. Two photographs of one place agree better pixel upon pixel than displaced, whatever the
season; two of different places do not.
"""

import numpy as np
from numpy.typing import NDArray

from rs_biformer.geometry import Window
from rs_biformer.raster.scene import Scene

_SIDE = 8  # patches along each side of what the scenes share
_LARGEST = 128  # pixels along a patch
_DEVIATIONS = 4.0
_PLAIN = 0.8  # a correlation that needs no comparison: tiny scenes have few places to displace them to


def same_view(one: Scene, other: Scene) -> bool:
    """Whether two scenes on one grid agree in place better than displaced; True where nothing can be told.

    Patches spread over both are correlated (Pearson, over the mean of the bands) as they lie, and with the patches of
    `other` moved around in all ways: agreement in place must stand out by four standard deviations of those.
    """
    height, width = min(one.height, other.height), min(one.width, other.width)
    patches = [_patches(scene, height, width) for scene in (one, other)]
    agreed = np.array(
        [
            [_correlation(patches[0], np.roll(patches[1], (down, right), (0, 1))) for right in range(_SIDE)]
            for down in range(_SIDE)
        ]
    )
    here, displaced = agreed[0, 0], agreed.ravel()[1:]
    displaced = displaced[np.isfinite(displaced)]
    if not np.isfinite(here) or len(displaced) < _SIDE:
        return True
    return bool(abs(here) > _PLAIN or abs(here - displaced.mean()) > _DEVIATIONS * displaced.std())


def _patches(scene: Scene, height: int, width: int) -> NDArray[np.float64]:
    """The mean of the bands in patches spread over the scene, (side, side, h, w); NaN where invalid."""
    rows, cols = (min(_LARGEST, max(1, length // _SIDE)) for length in (height, width))
    found = np.empty((_SIDE, _SIDE, rows, cols))
    for down, row in enumerate(np.linspace(0, height - rows, _SIDE).astype(int).tolist()):
        for right, col in enumerate(np.linspace(0, width - cols, _SIDE).astype(int).tolist()):
            pixels, valid = scene.read(Window(row, col, rows, cols))
            with np.errstate(all="ignore"):
                found[down, right] = np.where(valid, pixels.astype(np.float64).mean(axis=0), np.nan)
    return found


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    both = np.isfinite(one) & np.isfinite(other)
    first, second = (part[both] - part[both].mean() if both.any() else part[both] for part in (one, other))
    spread = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / spread) if spread > 0 else float("nan")
