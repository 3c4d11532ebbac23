"""What several tests import: where the real scenes lie, and the cells of a raster."""

from collections.abc import Iterator
from pathlib import Path

from rs_biformer.geometry import Window

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Real scenes beside a developer's checkout; not part of the project."""


def blocks(height: int, width: int, size: int) -> Iterator[Window]:
    """Squares of `size` without overlap that cover a raster; the last of a row or column may be smaller."""
    for row in range(0, height, size):
        for col in range(0, width, size):
            yield Window(row, col, min(size, height - row), min(size, width - col))
