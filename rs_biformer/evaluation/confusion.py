"""One confusion matrix, and the figures that follow from it. Numpy only: no rasters, no state.

Shapes: K classes; the matrix is (K, K) int64 with rows = label and columns = prediction.

A pixel is *ignored* when its label is IGNORE: it counts nowhere but in `ignored`. A pixel that is labelled but has no
prediction (IGNORE, the nodata of a class map) is *unpredicted*: it must not vanish, or a map with holes at the
difficult places would score better than a complete one. It counts as an error: it lowers the overall accuracy and the
recall of its class, like any other wrong answer, and is no false positive of any class. This is what scikit-learn
computes when the missing prediction is handed to it as one more predicted label.

Figures are float64. A figure whose denominator is empty is NaN, never zero: a class that occurs in neither label nor
prediction has no IoU and no F1, one that is never predicted has no precision, one without labels no recall.
"""

from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from rs_biformer.errors import ConfigError
from rs_biformer.schema import IGNORE

_CHUNK = 1 << 20
"""Pixels counted at once: numpy widens what it counts to 8 bytes each."""


@dataclass(frozen=True)
class Confusion:
    """Pixel counts of one scene or of a whole set; two of them add.

    matrix: (K, K) int64, rows = label, columns = prediction.
    unpredicted: (K,) int64, labelled pixels without a prediction, by their label.
    ignored: pixels without a label, those of eroded boundaries among them.
    eroded: how many of the ignored ones had a label before a protocol eroded it.
    unknown: how many of the ignored ones had a label colour or value that the schema lacks.
    """

    matrix: NDArray[np.int64]
    unpredicted: NDArray[np.int64]
    ignored: int = 0
    eroded: int = 0
    unknown: int = 0

    def __post_init__(self) -> None:
        classes = len(self.matrix)
        if self.matrix.shape != (classes, classes) or self.unpredicted.shape != (classes,):
            raise ConfigError(
                f"a confusion needs a square matrix and one unpredicted count per class, got shapes "
                f"{self.matrix.shape} and {self.unpredicted.shape}"
            )

    def __add__(self, other: "Confusion") -> "Confusion":
        return Confusion(
            self.matrix + other.matrix,
            self.unpredicted + other.unpredicted,
            self.ignored + other.ignored,
            self.eroded + other.eroded,
            self.unknown + other.unknown,
        )

    @property
    def support(self) -> NDArray[np.int64]:
        """Labelled pixels per class (K,), predicted or not."""
        return self.matrix.sum(axis=1) + self.unpredicted

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Labelled pixels given to each class (K,)."""
        return self.matrix.sum(axis=0)

    @property
    def evaluated(self) -> int:
        """All labelled pixels."""
        return int(self.support.sum())


def empty(classes: int) -> Confusion:
    """The confusion of no pixels."""
    return Confusion(np.zeros((classes, classes), np.int64), np.zeros(classes, np.int64))


def count(label: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int) -> Confusion:
    """Count two uint8 arrays of class indices of the same shape, in which IGNORE means none.

    Raises ConfigError for shapes that differ and for an index that is neither a class nor IGNORE.
    """
    if label.shape != prediction.shape:
        raise ConfigError(f"label {label.shape} and prediction {prediction.shape} differ in shape; cut both alike")
    # The joint histogram of all 256 x 256 byte pairs needs no mask and shows illegal indices for free.
    pairs = (label.astype(np.uint16).ravel() << 8) | prediction.ravel()
    joint = reduce(
        add,
        (np.bincount(pairs[at : at + _CHUNK], minlength=1 << 16) for at in range(0, pairs.size, _CHUNK)),
        np.zeros(1 << 16, np.int64),
    ).reshape(256, 256)
    for what, seen in (("label", joint.sum(axis=1)), ("prediction", joint.sum(axis=0))):
        illegal = np.flatnonzero(seen[classes:IGNORE])
        if illegal.size:
            raise ConfigError(
                f"the {what} holds class index {classes + illegal[0]}; with {classes} classes it may hold "
                f"0 to {classes - 1}, and {IGNORE} for none"
            )
    return Confusion(
        matrix=joint[:classes, :classes].copy(),
        unpredicted=joint[:classes, IGNORE].copy(),
        ignored=int(joint[IGNORE].sum()),
    )


def _ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> NDArray[np.float64]:
    """Elementwise quotient, NaN where the denominator is zero."""
    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result


def iou(confusion: Confusion) -> NDArray[np.float64]:
    """Intersection over union per class (K,); NaN for a class in neither label nor prediction."""
    hits = confusion.matrix.diagonal()
    return _ratio(hits, confusion.support + confusion.predicted - hits)


def f1(confusion: Confusion) -> NDArray[np.float64]:
    """F1, which is the Dice coefficient, per class (K,); NaN for a class in neither label nor prediction."""
    return _ratio(2 * confusion.matrix.diagonal(), confusion.support + confusion.predicted)


def precision(confusion: Confusion) -> NDArray[np.float64]:
    """Share of the pixels given to a class that are of it (K,); NaN for a class that is never predicted."""
    return _ratio(confusion.matrix.diagonal(), confusion.predicted)


def recall(confusion: Confusion) -> NDArray[np.float64]:
    """Share of a class's labelled pixels that were found (K,); NaN for a class without labels."""
    return _ratio(confusion.matrix.diagonal(), confusion.support)


def overall_accuracy(confusion: Confusion) -> float:
    """Share of all labelled pixels that are right, whatever their class; NaN when none is labelled."""
    total = confusion.evaluated
    return float(np.trace(confusion.matrix) / total) if total else float("nan")


def kappa(confusion: Confusion) -> float:
    """Cohen's kappa: the accuracy beyond what two raters with these class shares reach by chance.

    NaN when chance alone is always right (one class everywhere) and when no pixel is labelled.
    """
    total = confusion.evaluated
    # Floats before the product: counts of 10^10 pixels squared do not fit 64 bits.
    chance = float((confusion.support / total) @ (confusion.predicted / total)) if total else 1.0
    return (overall_accuracy(confusion) - chance) / (1 - chance) if chance < 1 else float("nan")


def frequency_weighted_iou(confusion: Confusion) -> float:
    """IoU averaged with each class weighed by its share of the labelled pixels; NaN when none is labelled."""
    total = confusion.evaluated
    return float(np.nansum(confusion.support / total * iou(confusion))) if total else float("nan")
