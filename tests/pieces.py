"""Cells of a raster, for tests that read or write one piece by piece."""

from collections.abc import Iterator

from rs_biformer.geometry import Window


def blocks(height: int, width: int, size: int) -> Iterator[Window]:
    """Squares of `size` without overlap that cover a raster; the last of a row or column may be smaller."""
    for row in range(0, height, size):
        for col in range(0, width, size):
            yield Window(row, col, min(size, height - row), min(size, width - col))
