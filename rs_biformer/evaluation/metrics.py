"""The result of an evaluation: counts, the protocol that made them, and the figures, ready for JSON."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rs_biformer.evaluation.confusion as figures
from rs_biformer import __version__
from rs_biformer.evaluation.confusion import Confusion
from rs_biformer.evaluation.protocols import Protocol
from rs_biformer.schema import ClassSchema


@dataclass(frozen=True)
class Scores:
    """The figures of one confusion, their means taken over the classes `averaged`, by index.

    A mean goes over those of the averaged classes whose figure is defined; figures that are undefined are NaN here and
    None in `to_dict`.
    """

    classes: tuple[str, ...]
    averaged: tuple[int, ...]
    confusion: Confusion

    @cached_property
    def iou(self) -> NDArray[np.float64]:
        return figures.iou(self.confusion)

    @cached_property
    def f1(self) -> NDArray[np.float64]:
        return figures.f1(self.confusion)

    @cached_property
    def precision(self) -> NDArray[np.float64]:
        return figures.precision(self.confusion)

    @cached_property
    def recall(self) -> NDArray[np.float64]:
        return figures.recall(self.confusion)

    @property
    def overall_accuracy(self) -> float:
        return figures.overall_accuracy(self.confusion)

    @property
    def mean_iou(self) -> float:
        return self._mean(self.iou)

    @property
    def mean_f1(self) -> float:
        return self._mean(self.f1)

    @property
    def kappa(self) -> float:
        return figures.kappa(self.confusion)

    @property
    def frequency_weighted_iou(self) -> float:
        return figures.frequency_weighted_iou(self.confusion)

    @property
    def present(self) -> tuple[int, ...]:
        """The classes that the means really go over: averaged ones that occur in label or prediction."""
        return tuple(index for index in self.averaged if not math.isnan(self.iou[index]))

    def _mean(self, values: NDArray[np.float64]) -> float:
        return float(values[list(self.present)].mean()) if self.present else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Figures by name, in plain types: floats, ints, lists, and None for what is undefined."""
        counts = self.confusion
        return {
            "overall_accuracy": _plain(self.overall_accuracy),
            "mean_iou": _plain(self.mean_iou),
            "mean_f1": _plain(self.mean_f1),
            "kappa": _plain(self.kappa),
            "frequency_weighted_iou": _plain(self.frequency_weighted_iou),
            "mean_over": [self.classes[index] for index in self.present],
            "per_class": {
                name: {
                    "iou": _plain(self.iou[index]),
                    "f1": _plain(self.f1[index]),
                    "precision": _plain(self.precision[index]),
                    "recall": _plain(self.recall[index]),
                    "support": int(counts.support[index]),
                    "unpredicted": int(counts.unpredicted[index]),
                }
                for index, name in enumerate(self.classes)
            },
            "confusion_matrix": counts.matrix.tolist(),
            "evaluated_pixels": counts.evaluated,
            "ignored_pixels": counts.ignored,
            "eroded_pixels": counts.eroded,
            "unknown_label_pixels": counts.unknown,
            "unpredicted_pixels": int(counts.unpredicted.sum()),
        }


@dataclass(frozen=True)
class SceneResult:
    """One scene's share of the set. `full` counts the labels before erosion, where the protocol erodes."""

    name: str
    label: str
    prediction: str
    confusion: Confusion
    full: Confusion | None = None


@dataclass(frozen=True)
class Metrics:
    """Everything an evaluation found; its headline figures are attributes, the rest is in `scores`.

    notes: what a reader must know before comparing the figures with others made under the protocol.
    tolerance: how far a label's colour might lie from the schema's, per channel; max_unknown: the share of a
        label's pixels that the schema might lack.
    """

    schema: ClassSchema
    protocol: Protocol
    scenes: tuple[SceneResult, ...]
    notes: tuple[str, ...] = ()
    tolerance: int = 0
    max_unknown: float = 0.01

    def scores_of(self, confusion: Confusion) -> Scores:
        """The figures of any counts of these classes under this protocol."""
        return Scores(self.schema.classes, self.protocol.averaged(self.schema), confusion)

    @cached_property
    def scores(self) -> Scores:
        """The figures over all scenes, from their summed counts."""
        return self.scores_of(self._total(scene.confusion for scene in self.scenes))

    @cached_property
    def full(self) -> Scores | None:
        """The figures over all scenes on labels that were not eroded; None where the protocol does not erode."""
        if not self.protocol.ignore_boundary:
            return None
        return self.scores_of(self._total(scene.full for scene in self.scenes if scene.full is not None))

    @property
    def cautions(self) -> tuple[str, ...]:
        """All that a reader must know before trusting the figures: the notes, and pixels that could not be used."""
        counts = self.scores.confusion
        found = list(self.notes)
        if missing := int(counts.unpredicted.sum()):
            share = 100 * missing / counts.evaluated
            found.append(f"{missing:,} labelled pixels ({share:.2f} %) have no prediction and count as errors")
        if counts.unknown:
            found.append(f"{counts.unknown:,} pixels have a label that the class schema lacks and are ignored")
        return tuple(found)

    @property
    def overall_accuracy(self) -> float:
        return self.scores.overall_accuracy

    @property
    def mean_iou(self) -> float:
        return self.scores.mean_iou

    @property
    def mean_f1(self) -> float:
        return self.scores.mean_f1

    def _total(self, counts: Iterable[Confusion]) -> Confusion:
        return sum(counts, start=figures.empty(len(self.schema)))

    def to_dict(self) -> dict[str, Any]:
        """What `rs-biformer evaluate --out` writes: the figures of the set first, then where they come from."""
        result = {**self.scores.to_dict(), "protocol": self.protocol.id, "notes": list(self.cautions)}
        if self.full is not None:
            result["full_labels"] = self.full.to_dict()
        return {
            **result,
            "per_scene": [
                {
                    "name": scene.name,
                    "label": scene.label,
                    "prediction": scene.prediction,
                    **self.scores_of(scene.confusion).to_dict(),
                }
                for scene in self.scenes
            ],
            "protocol_definition": self.protocol.to_dict(),
            "schema": self.schema.to_dict(),
            "options": {"tolerance": self.tolerance, "max_unknown": self.max_unknown},
            "version": __version__,
        }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
