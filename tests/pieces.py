"""What several tests import: where the real scenes lie, the cells of a raster, and a small raster of given pixels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from rs_biformer.geometry import Window
from rs_biformer.raster.writer import encode_chip, place_chip

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Real scenes beside a developer's checkout; not part of the project."""


def blocks(height: int, width: int, size: int) -> Iterator[Window]:
    """Squares of `size` without overlap that cover a raster; the last of a row or column may be smaller."""
    for row in range(0, height, size):
        for col in range(0, width, size):
            yield Window(row, col, min(size, height - row), min(size, width - col))


def write_chip(path: Path, array: NDArray[Any], **options: Any) -> None:
    """`encode_chip` to a file."""
    place_chip(path, encode_chip(array, **options))
