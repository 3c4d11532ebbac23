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
            # No product of vectors: BLAS adds up in an order that depends on how many threads it has.
            m2[number] = np.square(values, out=values).sum()
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


@dataclass(frozen=True)
class Extremes:
    """How many of some sampled pixels hold exactly the lowest or highest value, which may mean that there is no data.

    statistics: of the sample. low, high: the extreme values per band (C,); at_low, at_high: pixels that hold them.
    blank: pixels that are 0, and that are the highest value of their type, in all bands; rim: the same among pixels on
    the frame of their scene; frame: how many of those there were.
    """

    statistics: BandStatistics
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    at_low: NDArray[np.int64]
    at_high: NDArray[np.int64]
    blank: NDArray[np.int64]
    rim: NDArray[np.int64]
    frame: int

    @classmethod
    def empty(cls, bands: int) -> Self:
        """Of no pixels, the neutral element of `merged`."""
        nothing, none, pair = np.zeros(bands), np.zeros(bands, np.int64), np.zeros(2, np.int64)
        return cls(BandStatistics.empty(bands), nothing + np.inf, nothing - np.inf, none, none, pair, pair, 0)

    @classmethod
    def of(cls, image: NDArray[Any], valid: NDArray[np.bool_], rim: NDArray[np.bool_]) -> Self:
        """Of the pixels of an image (C, h, w) where `valid` (h, w); rim: those on the frame of the scene."""
        if not valid.any():
            return cls.empty(len(image))
        pixels = image[:, valid]
        low, high = pixels.min(axis=1), pixels.max(axis=1)
        top = np.iinfo(image.dtype).max if image.dtype.kind == "u" else np.inf
        blank = np.stack([(pixels == value).all(axis=0) for value in (0, top)])
        return cls(
            BandStatistics.of(image, valid),
            low.astype(np.float64),
            high.astype(np.float64),
            (pixels == low[:, None]).sum(axis=1),
            (pixels == high[:, None]).sum(axis=1),
            blank.sum(axis=1),
            (blank & rim[valid]).sum(axis=1),
            int((rim & valid).sum()),
        )

    def merged(self, other: "Extremes") -> "Extremes":
        """The extremes of both parts together."""
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return Extremes(
            self.statistics.merged(other.statistics),
            low,
            high,
            self.at_low * (self.low == low) + other.at_low * (other.low == low),
            self.at_high * (self.high == high) + other.at_high * (other.high == high),
            self.blank + other.blank,
            self.rim + other.rim,
            self.frame + other.frame,
        )

    def outliers(self) -> list[tuple[int, float, float]]:
        """Bands in which one extreme value, far from all others, is held by many pixels: number, value and share.

        Many are more than a thousandth, but not most of them; far is more than half of the mean of all others away, and
        where the standard deviation without them is less than a fifth.
        """
        found = []
        count = self.statistics.count
        for number in range(len(self.low)):
            ends = ((self.low[number], self.at_low[number]), (self.high[number], self.at_high[number]))
            for value, held in ends:
                rest = count - held
                if held < _MANY * count or held > rest or abs(value) < _PLAUSIBLE:
                    continue
                apart = value - self.statistics.mean[number]
                with np.errstate(over="ignore", invalid="ignore"):
                    m2 = self.statistics.m2[number]
                    without = max(0.0, m2 - held * apart**2 * count / rest) / rest
                    others = self.statistics.mean[number] - apart * held / rest
                    far = abs(value - others) > abs(others) / 2
                    if far and not without * _FAR**2 >= m2 / count:
                        found.append((number, float(value), float(held / count)))
        return found

    def frames(self) -> list[tuple[bool, float, float]]:
        """Blank pixels that may be the frame around an image: whether white (else black), their share, that of the rim.

        They are, where a tenth of all pixels and a quarter of those on the frame are blank.
        """
        count = max(1, self.statistics.count)
        shares = [
            (white, float(self.blank[white] / count), float(self.rim[white] / max(1, self.frame))) for white in (0, 1)
        ]
        return [(bool(white), share, rim) for white, share, rim in shares if share >= 0.1 and rim >= 0.25]


_MANY = 1e-3
_FAR = 5.0
_PLAUSIBLE = 256  # smaller values, of masks and classes, are often far from the others
