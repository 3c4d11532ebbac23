"""The result of an evaluation: counts, the protocol that made them, and the figures that follow from both."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from operator import add
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

import rs_biformer.evaluation.confusion as figures
from rs_biformer import __version__
from rs_biformer.documents import Count, Listed
from rs_biformer.errors import ConfigError
from rs_biformer.evaluation.boundary import BoundaryCounts
from rs_biformer.evaluation.calibration import CalibrationCounts
from rs_biformer.evaluation.confusion import Confusion
from rs_biformer.evaluation.protocols import Protocol
from rs_biformer.evaluation.resampling import Resampling, intervals
from rs_biformer.geometry import Window
from rs_biformer.raster.metadata import MODEL, MODEL_FILE, PREDICTION_OVERLAP, PREDICTION_WINDOW
from rs_biformer.schema import ClassSchema

HEADLINE = ("overall_accuracy", "mean_iou", "mean_f1", "kappa", "frequency_weighted_iou")
BLOCK = 512
"""Pixels on a side of the blocks that are counted apart: what intervals are drawn from, and the worst of which a report
shows. Long enough that errors in one say little about errors in the next."""


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
        return float(figures.overall_accuracy(self.confusion))

    @property
    def mean_iou(self) -> float:
        return float(figures.mean_over(self.iou, self.averaged))

    @property
    def mean_f1(self) -> float:
        return float(figures.mean_over(self.f1, self.averaged))

    @property
    def kappa(self) -> float:
        return float(figures.kappa(self.confusion))

    @property
    def frequency_weighted_iou(self) -> float:
        return float(figures.frequency_weighted_iou(self.confusion))

    @property
    def present(self) -> tuple[int, ...]:
        """The classes that the means really go over: averaged ones that occur in label or prediction."""
        return tuple(index for index in self.averaged if not math.isnan(self.iou[index]))

    @property
    def headline(self) -> dict[str, float]:
        """The five figures of the set, by name."""
        return {name: float(getattr(self, name)) for name in HEADLINE}

    def to_dict(self) -> dict[str, Any]:
        """Figures by name, in plain types: floats, ints, lists, and None for what is undefined."""
        counts = self.confusion
        return {
            **{name: plain(value) for name, value in self.headline.items()},
            "mean_over": [self.classes[index] for index in self.present],
            "per_class": {
                name: {
                    "iou": plain(self.iou[index]),
                    "f1": plain(self.f1[index]),
                    "precision": plain(self.precision[index]),
                    "recall": plain(self.recall[index]),
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
            "padded_pixels": counts.padded,
        }


@dataclass(frozen=True)
class SceneResult:
    """One scene's share of the set, as counted: before the protocol leaves out classes or scores padding.

    blocks: by erosion radius, the counts of the scene's blocks of BLOCK x BLOCK pixels, a stack (N, K, K) in rows from
        the top left, those at the right and bottom cut. Radius 0, the full labels, is always among them.
    calibration: by erosion radius, where confidences were given. boundary: where distances were.
    made_by: what the map says of its making, by name.
    """

    name: str
    label: str
    prediction: str
    height: int
    width: int
    blocks: Mapping[int, Confusion]
    calibration: Mapping[int, CalibrationCounts] = field(default_factory=dict)
    boundary: BoundaryCounts | None = None
    made_by: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What was asked for, beside the protocol.

    tolerance: how far a label's colour might lie from the schema's, per channel; max_unknown: the share of a label's
        pixels that the schema might lack; boundary: distances in pixels of the boundary F1.

    Raises ConfigError for others.
    """

    tolerance: Count = 0
    max_unknown: Annotated[float, Field(ge=0, le=1)] = 0.01
    boundary: Listed[float] = ()

    def __post_init__(self) -> None:
        if self.tolerance < 0 or not 0 <= self.max_unknown <= 1:
            raise ConfigError(
                f"tolerance is {self.tolerance} and max_unknown {self.max_unknown}; give a difference of 0 or more and "
                "a share from 0 to 1"
            )


@dataclass(frozen=True)
class WorstBlock:
    """A block of a scene that is mapped badly: where it is, and the share of its labelled pixels that are right."""

    scene: str
    window: Window
    accuracy: float


@dataclass(frozen=True)
class Metrics:
    """Everything an evaluation found; its headline figures are attributes, the rest is in `scores`.

    name: of the model or set of maps, where several are compared. about: facts about the model, by name.
    """

    schema: ClassSchema
    protocol: Protocol
    scenes: tuple[SceneResult, ...]
    options: Options = field(default_factory=Options)
    resampling: Resampling = field(default_factory=Resampling)
    name: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    version: str = __version__

    def _repr_html_(self) -> str:
        """What a notebook shows: the figures of each class, and their means."""
        from rs_biformer.notebook import percent, stacked, swatch, table

        scores = self.scores
        columns = (scores.iou, scores.f1, scores.precision, scores.recall)
        rows = [
            [swatch(colour, name), *(percent(float(column[index])) for column in columns)]
            for index, (name, colour) in enumerate(zip(self.schema.classes, self.schema.colours, strict=True))
        ]
        foot = ["mean", percent(scores.mean_iou), percent(scores.mean_f1), "", ""]
        name = self.name or ", ".join(scene.name for scene in self.scenes[:3]) + ", ..." * (len(self.scenes) > 3)
        line = f"{name}: accuracy {percent(scores.overall_accuracy)}"
        return stacked(line, table(["", "IoU", "F1", "precision", "recall"], rows, foot))

    def scores_of(self, confusion: Confusion) -> Scores:
        """The figures of any counts of these classes under this protocol."""
        return Scores(self.schema.classes, self.protocol.averaged(self.schema), confusion)

    def counts(self, scene: SceneResult, protocol: Protocol | None = None) -> Confusion:
        """What the protocol makes of a scene's blocks: a stack (N, K, K)."""
        rules = protocol or self.protocol
        return rules.apply(scene.blocks[rules.ignore_boundary], self.schema, scene.height, scene.width)

    def scene_scores(self, scene: SceneResult) -> Scores:
        """The figures of one scene."""
        return self.scores_of(self.counts(scene).total)

    @cached_property
    def scores(self) -> Scores:
        """The figures over all scenes, from their summed counts."""
        return self._form(self.protocol)

    @cached_property
    def full(self) -> Scores | None:
        """The figures over all scenes on labels that were not eroded; None where the protocol does not erode."""
        return self._form(replace(self.protocol, ignore_boundary=0)) if self.protocol.ignore_boundary else None

    @cached_property
    def forms(self) -> dict[str, Scores]:
        """The figures on eroded and full labels, over the averaged classes and over all, by what they are called."""
        rules = {
            f"{'eroded' if radius else 'full'} labels": replace(self.protocol, ignore_boundary=radius)
            for radius in dict.fromkeys((self.protocol.ignore_boundary, 0))
        }
        found = {}
        for name, protocol in rules.items():
            for variant in dict.fromkeys((protocol, replace(protocol, exclude=(), excluded_labels="count"))):
                found[f"{name}, {len(variant.averaged(self.schema))} classes"] = self._form(variant)
        return found

    def _form(self, protocol: Protocol) -> Scores:
        total = self._sum(self.counts(scene, protocol).total for scene in self.scenes)
        return Scores(self.schema.classes, protocol.averaged(self.schema), total)

    @cached_property
    def units(self) -> Confusion:
        """What intervals and tests draw from: the blocks of all scenes that have labels, or the scenes."""
        stacks = [self.counts(scene) for scene in self.scenes]
        if self.resampling.unit == "scenes":
            totals = [stack.total for stack in stacks]
            stacks = [replace(t, matrix=t.matrix[None], unpredicted=t.unpredicted[None]) for t in totals]
        matrix = np.concatenate([stack.matrix for stack in stacks])
        unpredicted = np.concatenate([stack.unpredicted for stack in stacks])
        labelled = Confusion(matrix, unpredicted).support.any(axis=-1)
        return Confusion(matrix[labelled], unpredicted[labelled])

    @cached_property
    def intervals(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Lower and upper ends by figure, as `resampling.headline` names them; NaN with too few units."""
        return intervals(self.units, self.protocol.averaged(self.schema), self.resampling)

    @cached_property
    def boundary(self) -> BoundaryCounts | None:
        """The outlines of all scenes, on full labels; None where no distances were asked for."""
        found = [scene.boundary for scene in self.scenes if scene.boundary is not None]
        return reduce(add, found) if found else None

    @property
    def boundary_f1(self) -> NDArray[np.float64] | None:
        """Boundary F1 per distance (D,), mean over the averaged classes."""
        if self.boundary is None:
            return None
        return figures.mean_over(self.boundary.f1, self.protocol.averaged(self.schema))

    @cached_property
    def calibration(self) -> CalibrationCounts | None:
        """Confidences against hits over all scenes, on the protocol's labels; None where none were given."""
        radius = self.protocol.ignore_boundary
        found = [scene.calibration[radius] for scene in self.scenes if radius in scene.calibration]
        return reduce(add, found) if found else None

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of the model: what the caller said, and what all maps say of their making."""
        said = [scene.made_by for scene in self.scenes]
        common = {
            _TAGS.get(name, name.lower().replace("_", " ")): value
            for name, value in (said[0].items() if said else ())
            if all(other.get(name) == value for other in said)
        }
        return {**common, **self.about}

    def worst_blocks(self, most: int) -> list[WorstBlock]:
        """The blocks with the lowest accuracy, worst first, of those that are labelled over a quarter of their area."""
        found = []
        for scene in self.scenes:
            stack = scene.blocks[self.protocol.ignore_boundary]
            accuracy, labelled = figures.overall_accuracy(stack), stack.support.sum(axis=-1)
            for place in np.flatnonzero(4 * labelled >= BLOCK * BLOCK):
                found.append(WorstBlock(scene.name, block_window(int(place), scene), float(accuracy[place])))
        return sorted(found, key=lambda block: block.accuracy)[:most]

    @property
    def cautions(self) -> tuple[str, ...]:
        """All that a reader must know before trusting the figures.

        What its protocol does, which scenes are missing, how maps were made, and pixels that could not be used.
        """
        counts = self.scores.confusion
        found = list(self.protocol.cautions)
        if counts.padded:
            share = 100 * counts.padded / counts.evaluated
            found.append(f"{counts.padded:,} of the scored pixels ({share:.1f} %) are padding and in no scene")
        found += self.protocol.check_scenes([scene.name for scene in self.scenes])
        found += self._stitching()
        if missing := int(counts.unpredicted.sum()):
            share = 100 * missing / counts.evaluated
            found.append(f"{missing:,} labelled pixels ({share:.2f} %) have no prediction and count as errors")
        if counts.unknown:
            found.append(f"{counts.unknown:,} pixels have a label that the class schema lacks and are ignored")
        return tuple(found)

    def _stitching(self) -> list[str]:
        """A note for each way of stitching among the maps that is not the protocol's; maps that do not say pass."""
        if not self.protocol.window:
            return []
        wanted = (f"{self.protocol.window}", f"{self.protocol.overlap:g}")
        ways: dict[tuple[str, str], int] = {}
        for scene in self.scenes:
            way = scene.made_by.get(PREDICTION_WINDOW, ""), scene.made_by.get(PREDICTION_OVERLAP, "")
            if all(way) and way != wanted:
                ways[way] = ways.get(way, 0) + 1
        return [
            f"{number} of {len(self.scenes)} maps were made from windows of {window} pixels with overlap {overlap}, "
            f"where the protocol asks for {wanted[0]} and {wanted[1]}"
            for (window, overlap), number in ways.items()
        ]

    @property
    def overall_accuracy(self) -> float:
        return self.scores.overall_accuracy

    @property
    def mean_iou(self) -> float:
        return self.scores.mean_iou

    @property
    def mean_f1(self) -> float:
        return self.scores.mean_f1

    def _sum(self, counts: Iterable[Confusion]) -> Confusion:
        return sum(counts, start=figures.empty(len(self.schema)))


_TAGS = {MODEL: "network", MODEL_FILE: "checkpoint"}


def block_grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a scene's blocks."""
    return -(-height // BLOCK), -(-width // BLOCK)


def block_window(place: int, scene: SceneResult) -> Window:
    """Where a block of a scene lies."""
    row, col = divmod(place, block_grid(scene.height, scene.width)[1])
    top, left = row * BLOCK, col * BLOCK
    return Window(top, left, min(BLOCK, scene.height - top), min(BLOCK, scene.width - left))


def plain(value: float) -> float | None:
    """A float for JSON, which has no NaN: None where it is undefined."""
    return None if math.isnan(value) else float(value)
