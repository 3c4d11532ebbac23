"""Arrays that go back to the system when they are let go of.

What several threads allocate and free by the megabyte for hours leaves the C library's heap in pieces: it grew to twice
what was in use on a scene of 24,576 x 24,576 pixels. Memory that is mapped for one array alone has no such history.
"""

import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

LEAST = 2**20
"""Bytes below which an array comes from the heap: a mapping costs a call and its last page."""

_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}


def buffer(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array to be written to; what it holds before is not defined."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < LEAST:
        return np.empty(shape, dtype)
    return np.frombuffer(mmap.mmap(-1, size, **_PRIVATE), dtype).reshape(shape)
