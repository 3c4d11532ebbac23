"""An image in small, as a screen shows it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rs_biformer.raster.pyramid import Bands, Pyramid
from rs_biformer.raster.regrid import PixelGrid
from rs_biformer.raster.source import Source

_PERCENTILES = 2, 98
_READ = 1 << 20  # pixels that are read for a picture, unless the raster has fewer


def limits(bands: Bands) -> list[tuple[float, float]]:
    """The value of each band that becomes black, and that which becomes white: two percentiles of valid pixels."""
    pixels, valid = bands
    if not valid.any():
        return [(0.0, 1.0)] * len(pixels)
    return [(float(low), float(high)) for low, high in (np.percentile(band[valid], _PERCENTILES) for band in pixels)]


def brightness(band: NDArray[np.generic], between: tuple[float, float]) -> NDArray[np.uint8]:
    """Values as 8-bit brightness, spread between two limits."""
    low, high = between
    spread = (np.nan_to_num(band.astype(np.float64)) - low) / ((high - low) or 1.0)
    return (spread.clip(0, 1) * 255).round().astype(np.uint8)


def thumbnail(source: Source, numbers: Sequence[int], side: int) -> NDArray[np.uint8] | None:
    """Red, green, blue, alpha (h, w, 4) of a raster, its longer side at most `side` pixels, from an overview.

    numbers: three bands, or one as grey; a raster with a colour table is drawn in its colours. 8-bit values stay as
    they are. None where the raster is large and has no overviews, as all of it would have to be read.

    Raises RasterError when it cannot be read.
    """
    grid = PixelGrid(source.path, source.height, source.width, source.crs, source.transform)
    with Pyramid(source, numbers if source.palette is None else [1], grid, blend=True) as pyramid:
        small = pyramid.read_small(_READ)  # the raster is opened again when it is read next
    if small is None:
        return None
    skip = -(-max(small[0].height, small[0].width) // side)
    pixels, valid = [band[skip // 2 :: skip, skip // 2 :: skip] for band in small[1][0]], small[1][1]
    valid = valid[skip // 2 :: skip, skip // 2 :: skip]
    if source.palette is not None:
        shown = source.palette[pixels[0]].copy()
    else:
        plain = all(band.dtype == np.uint8 for band in pixels)
        drawn = list(pixels) if plain else list(map(brightness, pixels, limits((pixels, valid))))
        red, green, blue = drawn if len(drawn) == 3 else drawn[:1] * 3
        shown = np.stack([red, green, blue, np.full(valid.shape, 255, np.uint8)], axis=-1)
    shown[~valid, 3] = 0
    return shown
