"""One confusion matrix, and the figures that follow from it. Numpy only: no rasters, no state.

Shapes: K classes; the matrix is (K, K) int64 with rows = label and columns = prediction. A *stack* of confusions has
leading axes, (..., K, K): one per block of a scene, or one per resample of a bootstrap. Every figure works on both.

A pixel is *ignored* when its label is IGNORE: it counts nowhere but in `ignored`. A pixel that is labelled but has no
prediction (IGNORE, the nodata of a class map) is *unpredicted*: it must not vanish, or a map with holes at the
difficult places would score better than a complete one. It counts as an error: it lowers the overall accuracy and the
recall of its class, like any other wrong answer, and is no false positive of any class. This is what scikit-learn
computes when the missing prediction is handed to it as one more predicted label.

Figures are float64. A figure whose denominator is empty is NaN, never zero: a class that occurs in neither label nor
prediction has no IoU and no F1, one that is never predicted has no precision, one without labels no recall.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rs_biformer.errors import ConfigError
from rs_biformer.schema import IGNORE

_CHUNK = 1 << 18
"""Pixels counted at once: numpy widens what it counts to 8 bytes each, and 2 MB of them stay in a core's cache."""


@dataclass(frozen=True)
class Confusion:
    """Pixel counts of one scene, of a whole set, or of a stack of blocks; two of them add.

    matrix: (..., K, K) int64, rows = label, columns = prediction.
    unpredicted: (..., K) int64, labelled pixels without a prediction, by their label.
    ignored: pixels without a label, those of eroded boundaries among them; of a stack, all in all.
    eroded: how many of the ignored ones had a label before a protocol eroded it.
    unknown: how many of the ignored ones had a label colour or value that the schema lacks.
    padded: pixels that are in no scene but in the matrix, because a protocol scores padding.
    """

    matrix: NDArray[Any]
    unpredicted: NDArray[Any]
    ignored: int = 0
    eroded: int = 0
    unknown: int = 0
    padded: int = 0

    def __post_init__(self) -> None:
        classes = self.matrix.shape[-1] if self.matrix.ndim else 0
        if self.matrix.shape[-2:] != (classes, classes) or self.unpredicted.shape != self.matrix.shape[:-1]:
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
            self.padded + other.padded,
        )

    @property
    def support(self) -> NDArray[Any]:
        """Labelled pixels per class (..., K), predicted or not."""
        support: NDArray[Any] = self.matrix.sum(axis=-1) + self.unpredicted
        return support

    @property
    def predicted(self) -> NDArray[Any]:
        """Labelled pixels given to each class (..., K)."""
        predicted: NDArray[Any] = self.matrix.sum(axis=-2)
        return predicted

    @property
    def hits(self) -> NDArray[Any]:
        """Labelled pixels given to their own class (..., K)."""
        return self.matrix.diagonal(axis1=-2, axis2=-1)

    @property
    def evaluated(self) -> int:
        """All labelled pixels."""
        return int(self.support.sum())

    @property
    def total(self) -> "Confusion":
        """The sum of a stack."""
        return replace(
            self,
            matrix=self.matrix.sum(axis=tuple(range(self.matrix.ndim - 2))),
            unpredicted=self.unpredicted.sum(axis=tuple(range(self.unpredicted.ndim - 1))),
        )


def empty(classes: int, *stack: int) -> Confusion:
    """The confusion of no pixels, or a stack of them."""
    return Confusion(np.zeros((*stack, classes, classes), np.int64), np.zeros((*stack, classes), np.int64))


def count(label: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int) -> Confusion:
    """Count two uint8 arrays of class indices of the same shape, in which IGNORE means none.

    Raises ConfigError for shapes that differ and for an index that is neither a class nor IGNORE.
    """
    if label.shape != prediction.shape:
        raise ConfigError(f"label {label.shape} and prediction {prediction.shape} differ in shape; cut both alike")
    table = joint(label, prediction, classes)
    return Confusion(table[1:, 1:].copy(), table[1:, 0].copy(), ignored=int(table[0].sum()))


def joint(label: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """How often label and prediction meet (K + 1, K + 1); row and column 0 are IGNORE, class k is k + 1.

    Raises ConfigError for an index that is neither a class nor IGNORE.
    """
    # One more than the index, in 8 bits: IGNORE, 255, becomes 0, and the codes of a pair are dense.
    rows, columns = label + np.uint8(1), prediction + np.uint8(1)
    for what, codes in (("label", rows), ("prediction", columns)):
        if codes.size and codes.max() > classes:
            illegal = int(codes[codes > classes].min()) - 1
            raise ConfigError(
                f"the {what} holds class index {illegal}; with {classes} classes it may hold "
                f"0 to {classes - 1}, and {IGNORE} for none"
            )
    side = classes + 1
    pairs: NDArray[Any] = rows if side * side <= 256 else rows.astype(np.uint16)
    np.multiply(pairs, side, out=pairs)
    np.add(pairs, columns, out=pairs)
    flat = pairs.reshape(-1)
    found = np.zeros(side * side, np.int64)
    for at in range(0, flat.size, _CHUNK):
        found += _histogram(flat[at : at + _CHUNK], side * side)
    return found.reshape(side, side)


def _histogram(codes: NDArray[Any], number: int) -> NDArray[np.int64]:
    """How often each of the codes below `number` occurs among these (n,), in one block of memory."""
    even = codes.size & ~1
    if codes.dtype != np.uint8 or not even:
        return np.bincount(codes, minlength=number)
    # Two bytes at a time are half as many counts, of neighbours, which a map has in long runs: half the time.
    pairs = np.bincount(codes[:even].view(np.uint16), minlength=number << 8)[: number << 8].reshape(number, 256)
    last = np.bincount(codes[even:], minlength=number)
    found: NDArray[np.int64] = pairs.sum(axis=1) + pairs.sum(axis=0)[:number] + last
    return found


def ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> NDArray[np.float64]:
    """Elementwise quotient, NaN where the denominator is zero."""
    result = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=result, where=np.asarray(denominator) > 0)
    return result


def iou(confusion: Confusion) -> NDArray[np.float64]:
    """Intersection over union per class (..., K); NaN for a class in neither label nor prediction."""
    return ratio(confusion.hits, confusion.support + confusion.predicted - confusion.hits)


def f1(confusion: Confusion) -> NDArray[np.float64]:
    """F1, which is the Dice coefficient, per class (..., K); NaN for a class in neither label nor prediction."""
    return ratio(2 * confusion.hits, confusion.support + confusion.predicted)


def precision(confusion: Confusion) -> NDArray[np.float64]:
    """Share of the pixels given to a class that are of it (..., K); NaN for a class that is never predicted."""
    return ratio(confusion.hits, confusion.predicted)


def recall(confusion: Confusion) -> NDArray[np.float64]:
    """Share of a class's labelled pixels that were found (..., K); NaN for a class without labels."""
    return ratio(confusion.hits, confusion.support)


def overall_accuracy(confusion: Confusion) -> NDArray[np.float64]:
    """Share of all labelled pixels that are right, whatever their class (...); NaN when none is labelled."""
    return ratio(confusion.hits.sum(axis=-1), confusion.support.sum(axis=-1))[()]


def kappa(confusion: Confusion) -> NDArray[np.float64]:
    """Cohen's kappa (...): the accuracy beyond what two raters with these class shares reach by chance.

    NaN when chance alone is always right (one class everywhere) and when no pixel is labelled.
    """
    total = confusion.support.sum(axis=-1, keepdims=True)
    # Floats before the product: counts of 10^10 pixels squared do not fit 64 bits.
    shares = [
        ratio(counts, np.broadcast_to(total, counts.shape)) for counts in (confusion.support, confusion.predicted)
    ]
    chance = (shares[0] * shares[1]).sum(axis=-1)
    return ratio(np.asarray(overall_accuracy(confusion) - chance), 1 - chance)[()]


def frequency_weighted_iou(confusion: Confusion) -> NDArray[np.float64]:
    """IoU averaged with each class weighed by its share of the labelled pixels (...); NaN when none is labelled."""
    total = confusion.support.sum(axis=-1)
    return ratio(np.nansum(confusion.support * iou(confusion), axis=-1), total)[()]


def mean_over(values: NDArray[np.float64], classes: tuple[int, ...]) -> NDArray[np.float64]:
    """Mean of a figure per class (..., K) over those of `classes` for which it is defined (...); NaN without any."""
    chosen = values[..., list(classes)]
    defined = ~np.isnan(chosen)
    return ratio(np.where(defined, chosen, 0).sum(axis=-1), defined.sum(axis=-1))[()]
