"""Turning, zooming and blurring of windows by scipy: the geometry of augmentation without albumentations.

What a `Motion` does is stated here and is that of albumentations' Affine, CenterCrop and D4, which the tests compare;
the sequence of random draws is another.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rs_biformer.schema import IGNORE

TURNS = 8
"""Of a square: four quarters, each as it is and mirrored."""


@dataclass(frozen=True)
class Motion:
    """What becomes of a window.

    turn: 0 to 7, quarters to the left, from 4 on of the transposed window. zoom: above 1 things become larger. angle:
    degrees to the left, about the middle. blur: standard deviation of a Gaussian in pixels, 0 for none.
    """

    turn: int = 0
    zoom: float = 1.0
    angle: float = 0.0
    blur: float = 0.0


def moved(bands: NDArray[Any], masks: NDArray[Any], motion: Motion, size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The inner `size` x `size` pixels after a motion.

    bands: (C, T, T); float32 where they are zoomed, turned by an angle or blurred: interpolated linearly, 0 beyond the
    edges. masks: (N, T, T) uint8, of the nearest pixel, IGNORE beyond the edges.
    """
    if motion.zoom != 1 or motion.angle:
        bands, masks = _warped(bands, motion, size, 1, 0.0), _warped(masks, motion, size, 0, IGNORE)
    else:
        margin = (bands.shape[-1] - size) // 2
        inner = (..., slice(margin, margin + size), slice(margin, margin + size))
        bands, masks = bands[inner], masks[inner]
    bands, masks = (np.rot90(_transposed(one, motion), motion.turn % 4, (-2, -1)) for one in (bands, masks))
    return _blurred(bands, motion.blur), masks


def _transposed(layers: NDArray[Any], motion: Motion) -> NDArray[Any]:
    return layers.swapaxes(-2, -1) if motion.turn >= TURNS // 2 else layers


def _warped(layers: NDArray[Any], motion: Motion, size: int, order: int, fill: float) -> NDArray[Any]:
    from scipy.ndimage import affine_transform

    angle = np.deg2rad(motion.angle)
    back = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / motion.zoom
    length = layers.shape[-1]
    middle = np.full(2, (length - 1) / 2)
    offset = middle + back @ ((length - size) // 2 - middle)
    result = np.empty((len(layers), size, size), layers.dtype)
    for one, found in zip(layers, result, strict=True):
        affine_transform(one, back, offset, (size, size), found, order=order, mode="grid-constant", cval=fill)
    return result


def _blurred(bands: NDArray[Any], sigma: float) -> NDArray[Any]:
    """With a kernel that ends at 3.5 standard deviations, and the picture mirrored about its outermost pixels."""
    from scipy.ndimage import correlate1d

    reach = int(3.5 * sigma)
    if not reach:
        return bands
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    for axis in (-2, -1):
        bands = correlate1d(bands, kernel / kernel.sum(), axis, mode="mirror")
    return bands
