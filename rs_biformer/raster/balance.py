"""What polygons cover of each class against what its pixels cover, summed while both pass by."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from rs_biformer.raster.features import ClassPolygons
from rs_biformer.raster.regularise import Report
from rs_biformer.raster.tracing import Traced
from rs_biformer.schema import IGNORE


class Balance:
    """Areas of the classes of one map. row_areas: of a pixel in each row (height,). unit: of areas, in words."""

    def __init__(self, row_areas: NDArray[np.float64], unit: str) -> None:
        self._row_areas, self._unit = row_areas, unit
        self._pixels, self._polygons = np.zeros(256), np.zeros(256)

    def counted(self, slabs: Iterable[Traced]) -> Iterator[Traced]:
        """The slabs of the map, from the top down, whose pixels are counted."""
        row = 0
        for slab in slabs:
            patches = slab.patches
            areas = patches.lengths * self._row_areas[row + patches.starts // patches.shape[1]]
            self._pixels += np.bincount(patches.classes[patches.numbers], areas, 256)
            row += patches.shape[0]
            yield slab

    def drawn(self, features: Iterable[ClassPolygons]) -> Iterator[ClassPolygons]:
        """The polygons of the map, whose areas are summed."""
        for some in features:
            self._polygons += np.bincount(some.classes, some.areas, 256)
            yield some

    def lines(self, names: Mapping[int, str], report: Report, tolerance: float) -> Iterator[str]:
        """What was regularised, and both areas of each class."""
        of_pixels = self._pixels.sum() - self._pixels[IGNORE]
        left = sum(report.left.values())
        yield (
            f"{report.squared} of {report.squared + left} polygons have right angles, within {tolerance:g} pixels of "
            f"where they were; {report.swept:.0f} pixels changed sides"
        )
        if left:
            yield "left as they were: " + ", ".join(f"{count} {why}" for why, count in report.left.most_common())
        for index in np.flatnonzero(self._pixels[:IGNORE]).tolist():
            pixels, polygons = self._pixels[index], self._polygons[index]
            name = names.get(index, f"class {index}")
            yield (
                f"{name}: {pixels:.6g} {self._unit} in pixels, {polygons:.6g} as polygons "
                f"({polygons / pixels - 1:+.2%}; {(polygons - pixels) / of_pixels:+.3%} of the map)"
            )
