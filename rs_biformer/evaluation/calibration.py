"""Calibration: is a map right as often as its confidence says? Numpy only.

Pixels are sorted into M bins of equal width by the probability of their predicted class; the reliability curve sets the
share of right pixels of a bin against its mean confidence. The expected calibration error is the mean distance of the
two, each bin weighed by its pixels (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017). Bin m holds the
confidences in ((m-1)/M, m/M], the first one 0 as well.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rs_biformer.evaluation.confusion import ratio

BINS = 15


@dataclass(frozen=True)
class CalibrationCounts:
    """Labelled pixels with a prediction and a confidence, by bin (M,); two of them add.

    pixels, hits: all of them and the right ones, int64. confidence: the sum of their confidences, float64.
    """

    pixels: NDArray[np.int64]
    hits: NDArray[np.int64]
    confidence: NDArray[np.float64]

    def __add__(self, other: "CalibrationCounts") -> "CalibrationCounts":
        return CalibrationCounts(self.pixels + other.pixels, self.hits + other.hits, self.confidence + other.confidence)

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of right pixels per bin (M,), NaN in empty ones."""
        return ratio(self.hits, self.pixels)

    @property
    def mean_confidence(self) -> NDArray[np.float64]:
        """Mean confidence per bin (M,), NaN in empty ones."""
        return ratio(self.confidence, self.pixels)

    @property
    def expected_error(self) -> float:
        """The expected calibration error; NaN without pixels."""
        gaps = np.abs(self.hits - self.confidence).sum()
        return float(gaps / self.pixels.sum()) if self.pixels.any() else float("nan")

    @property
    def largest_error(self) -> float:
        """The largest distance of accuracy and confidence in any bin; NaN without pixels."""
        return float(np.nanmax(np.abs(self.accuracy - self.mean_confidence))) if self.pixels.any() else float("nan")

    @property
    def overconfidence(self) -> float:
        """Mean confidence less accuracy: above 0 the map promises too much; NaN without pixels."""
        return (
            float((self.confidence.sum() - self.hits.sum()) / self.pixels.sum()) if self.pixels.any() else float("nan")
        )


def no_calibration(bins: int = BINS) -> CalibrationCounts:
    """The counts of no pixels."""
    return CalibrationCounts(np.zeros(bins, np.int64), np.zeros(bins, np.int64), np.zeros(bins))


def count_calibration(
    confidence: NDArray[np.floating], right: NDArray[np.bool_], bins: int = BINS
) -> CalibrationCounts:
    """Sort pixels (n,) into bins by their confidence, 0 to 1."""
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    place = np.searchsorted(edges, confidence)
    return CalibrationCounts(
        np.bincount(place, minlength=bins),
        np.bincount(place[right], minlength=bins),
        np.bincount(place, weights=confidence, minlength=bins).astype(np.float64),
    )
