"""Per-band mean and standard deviation, streamed: each part of the data is seen once and parts are merged.

Merging by Chan, Golub and LeVeque (1983): counts, means and sums of squared deviations of two parts give those of the
whole without the cancellation of sum(x**2) - n * mean**2, which ruins 16-bit and elevation data.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class BandStatistics:
    """count: pixels; mean and m2 (sum of squared deviations from it): float64 per band (C,)."""

    count: int
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]

    @classmethod
    def empty(cls, bands: int) -> Self:
        """Statistics of no pixels, the neutral element of `merged`."""
        return cls(0, np.zeros(bands), np.zeros(bands))

    @classmethod
    def of(cls, image: NDArray[Any], counted: NDArray[np.bool_]) -> Self:
        """Statistics of the pixels of an image (C, h, w) of any dtype where `counted` (h, w) is true."""
        everything = bool(counted.all())
        count = int(counted.sum())
        if not count:
            return cls.empty(len(image))
        mean, m2 = np.empty(len(image)), np.empty(len(image))
        for number, band in enumerate(image):
            values = (band.reshape(-1) if everything else band[counted]).astype(np.float64)
            mean[number] = values.mean()
            values -= mean[number]
            m2[number] = values @ values
        return cls(count, mean, m2)

    def merged(self, other: "BandStatistics") -> "BandStatistics":
        """The statistics of both parts together."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        m2 = self.m2 + other.m2 + apart**2 * (self.count * (other.count / count))
        return BandStatistics(count, mean, m2)

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation of the population; 0 for a band that never varies."""
        return np.sqrt(self.m2 / max(self.count, 1))
