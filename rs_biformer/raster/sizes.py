"""Sizes that are taken for a mistake: a header of some bytes can claim pixels for years of work."""

from rs_biformer.errors import RasterError
from rs_biformer.raster.source import Grid

MOST_PIXELS = 10**11
"""Of one raster: 316,000 x 316,000. A country at 20 cm has more, in several files."""


def require_possible(grid: Grid, allow_huge: bool) -> None:
    """Say what is too large before work of that size begins. Raises RasterError, with the way to insist."""
    if not allow_huge and grid.height * grid.width > MOST_PIXELS:
        raise RasterError(
            f"{grid.path} is {grid.height} x {grid.width} pixels; more than {MOST_PIXELS:,} are taken for a mistake: "
            "cut it into parts, or insist with --allow-huge"
        )
