"""Noise that is a function of the place alone, so that it does not depend on what is drawn at once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def hashed(row: NDArray[Any], col: NDArray[Any], seed: int) -> NDArray[np.uint32]:
    """32 well-mixed bits per lattice point; `row` and `col` are integers and broadcast.

    The finalizer is "lowbias32" by C. Wellons (hash-prospector, public domain).
    """
    salt = np.uint32((seed * 0x27D4EB2F + 0x165667B1) & 0xFFFFFFFF)
    bits = row.astype(np.uint32) * np.uint32(0x9E3779B1) ^ (col.astype(np.uint32) * np.uint32(0x85EBCA77) + salt)
    bits ^= bits >> np.uint32(16)
    bits *= np.uint32(0x21F0AAAD)
    bits ^= bits >> np.uint32(15)
    bits *= np.uint32(0x735A2D97)
    bits ^= bits >> np.uint32(15)
    return bits


def value_noise(y: NDArray[Any], x: NDArray[Any], wavelength: float, seed: int) -> NDArray[np.float32]:
    """Smooth noise in [-1, 1] at the rows `y` and columns `x` (metres): a hashed lattice, interpolated."""
    row, down = np.divmod(y / wavelength, 1.0)
    col, right = np.divmod(x / wavelength, 1.0)
    rows, cols = row.astype(np.int64), col.astype(np.int64)
    lattice_rows = np.arange(rows[0], rows[-1] + 2)
    lattice_cols = np.arange(cols[0], cols[-1] + 2)
    lattice = hashed(lattice_rows[:, None], lattice_cols[None, :], seed).astype(np.float32) / np.float32(2**31) - 1
    down = (down * down * (3 - 2 * down)).astype(np.float32)[:, None]
    right = (right * right * (3 - 2 * right)).astype(np.float32)[None, :]
    above = rows - rows[0]
    across = lattice[above] * (1 - down) + lattice[above + 1] * down
    left = cols - cols[0]
    out: NDArray[np.float32] = np.take(across, left, axis=1)
    step = np.take(across, left + 1, axis=1)
    step -= out
    step *= right
    out += step
    return out
