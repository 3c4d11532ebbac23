"""Overviews: pixels at half the resolution, from squares of 2 x 2. Numpy only."""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Overviews = Literal["mode", "average"]
"""What a pixel of an overview holds: the most frequent of the values under it (classes), or their mean (quantities)."""


def halved(pixels: NDArray[Any], overviews: Overviews, nodata: float | None = None) -> NDArray[Any]:
    """Pixels (C, h, w) at half the resolution, (C, ceil(h / 2), ceil(w / 2)) of the same dtype.

    A square is nodata where more than half of it is, so that the outline of the data keeps its place through all levels
    and does not swell by a pixel at each. Any other square holds the mode or the mean of its valid pixels: the first,
    row by row, of equally frequent values, so never a value that is not there; means of integers are rounded to even.
    In means NaN is nodata too. At odd edges the last pixels count twice.
    """
    height, width = pixels.shape[-2:]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, [(0, 0), (0, height % 2), (0, width % 2)], mode="edge")
    corners = [np.ascontiguousarray(pixels[:, row::2, col::2]) for row in (0, 1) for col in (0, 1)]
    return _mode(corners, nodata) if overviews == "mode" else _mean(corners, nodata)


def _mode(corners: list[NDArray[Any]], nodata: float | None) -> NDArray[Any]:
    alike = [np.zeros(corners[0].shape, np.int8) for _ in corners]  # for each corner: how many others are equal to it
    for one in range(len(corners)):
        for other in range(one):
            same = (corners[one] == corners[other]).view(np.int8)
            alike[one] += same
            alike[other] += same
    if nodata is not None:
        for corner, others in zip(corners, alike, strict=True):
            others[(corner == nodata) & (others < 2)] = -1
    best, most = corners[0].copy(), alike[0]
    for corner, others in zip(corners[1:], alike[1:], strict=True):
        np.copyto(best, corner, where=others > most)
        np.maximum(most, others, out=most)
    return best


def _mean(corners: list[NDArray[Any]], nodata: float | None) -> NDArray[Any]:
    dtype = corners[0].dtype
    has_gaps = dtype.kind == "f" or nodata is not None
    total = np.zeros(corners[0].shape, np.float32 if dtype.itemsize <= 2 or dtype == np.float32 else np.float64)
    valid_count = np.zeros(corners[0].shape, np.int8)
    for corner in corners:
        valid = corner == corner  # noqa: PLR0124 - false for NaN alone
        if nodata is not None and not math.isnan(nodata):
            valid &= corner != nodata
        np.add(total, corner, out=total, where=valid)
        valid_count += valid
    enough = valid_count >= 2
    np.divide(total, valid_count, out=total, where=enough)
    if dtype.kind != "f":
        np.rint(total, out=total)
    if has_gaps:
        total[~enough] = math.nan if nodata is None else nodata
    return total.astype(dtype)
