"""Several models on the same scenes: which differences are larger than chance."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import PurePath
from typing import Any

import numpy as np

from rs_biformer.errors import ConfigError
from rs_biformer.evaluation.metrics import Metrics, SceneResult, plain
from rs_biformer.evaluation.resampling import Resampling, differences, holm

ALPHA = 0.05
"""Chance of any false alarm among all tests of a comparison below which a difference counts as real."""
TESTED = ("overall_accuracy", "mean_iou", "mean_f1")


@dataclass(frozen=True)
class Comparison:
    """One figure of two models: how far the first is above the second.

    figure: a name of TESTED, or "iou CLASS". low, high: the interval of the difference, at the level of the resampling.
    p: of the permutation test. adjusted: the same, raised for the number of tests (Holm). NaN where undefined.
    """

    first: str
    second: str
    figure: str
    value: float
    low: float
    high: float
    p: float
    adjusted: float

    @property
    def real(self) -> bool:
        """Whether the difference is larger than chance."""
        return bool(self.adjusted < ALPHA)


def compare(results: Sequence[Metrics]) -> list[Comparison]:
    """Every pair of results by every figure of TESTED and the IoU of every averaged class.

    Raises ConfigError unless all have a name of their own and are of one protocol, schema and set of labelled pixels.
    """
    require_comparable(results)
    # By label and not by the order in which the scenes were given: a unit must be the same pixels in both.
    ordered = [
        replace(metrics, scenes=tuple(scene for _, scene in sorted(_by_label(metrics).items()))) for metrics in results
    ]
    found = []
    averaged = ordered[0].protocol.averaged(ordered[0].schema)
    pairs = list(combinations(ordered, 2))
    tests = len(pairs) * (len(TESTED) + len(averaged))
    for one, other in pairs:
        apart = differences(one.units, other.units, averaged, one.resampling, tests)
        for figure in TESTED:
            found.append((one.name, other.name, figure, *_numbers(apart[figure])))
        for index in averaged:
            found.append((one.name, other.name, f"iou {one.schema.classes[index]}", *_numbers(apart["iou"], index)))
    adjusted = holm(np.array([row[-1] for row in found]))
    return [Comparison(*row, adjusted=float(p)) for row, p in zip(found, adjusted, strict=True)]


def _numbers(difference: Any, index: int | None = None) -> tuple[float, float, float, float]:
    parts = (difference.value, difference.low, difference.high, difference.p)
    value, low, high, p = (float(part if index is None else part[index]) for part in parts)
    return value, low, high, p


def require_comparable(results: Sequence[Metrics]) -> None:
    """Raise ConfigError unless the figures of the results may stand in one table."""
    first = results[0]
    if len(results) < 2:
        raise ConfigError(f"only {first.name} is there; a comparison needs two results or more")
    names = [metrics.name for metrics in results]
    if len(set(names)) < len(names):
        raise ConfigError(f"the results are called {', '.join(names)}; give each a name of its own")
    for other in results[1:]:
        _require_same_rules(first, other)
        _require_same_pixels(first, other)


def _require_same_rules(first: Metrics, other: Metrics) -> None:
    names = f"{first.name} and {other.name}"
    if first.protocol.id != other.protocol.id:
        raise ConfigError(
            f"{first.name} was measured under protocol {first.protocol.id!r} and {other.name} under "
            f"{other.protocol.id!r}; such figures cannot be compared, evaluate both under one"
        )
    if first.protocol != other.protocol:
        raise ConfigError(
            f"{names} carry two definitions of protocol {first.protocol.id!r}; evaluate both under one of them"
        )
    if first.schema.classes != other.schema.classes:
        raise ConfigError(
            f"{first.name} has the classes {', '.join(first.schema.classes)} and {other.name} "
            f"{', '.join(other.schema.classes)}; only maps of the same classes can be compared"
        )
    if first.resampling != other.resampling:
        one, two = (_drawn(metrics.resampling) for metrics in (first, other))
        raise ConfigError(f"{names} have intervals of {one} and of {two}; evaluate both with the same options")


def _drawn(resampling: Resampling) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(resampling).items())


def _by_label(metrics: Metrics) -> dict[str, SceneResult]:
    """The scenes by what names their pixels: the label's file name, with its folders where two are alike."""
    names = [PurePath(scene.label).name for scene in metrics.scenes]
    if len(set(names)) < len(names):
        names = [scene.label for scene in metrics.scenes]
    return dict(zip(names, metrics.scenes, strict=True))


def _require_same_pixels(first: Metrics, other: Metrics) -> None:
    ours, theirs = _by_label(first), _by_label(other)
    if set(ours) != set(theirs):
        only = sorted(set(ours) ^ set(theirs))[0]
        whose = first.name if only in ours else other.name
        raise ConfigError(f"label {only} is in {whose} alone; compare {first.name} and {other.name} on the same labels")
    for name, scene in ours.items():
        stacks = [metrics.counts(part).support for metrics, part in ((first, scene), (other, theirs[name]))]
        if stacks[0].shape != stacks[1].shape or (stacks[0] != stacks[1]).any():
            raise ConfigError(
                f"{first.name} and {other.name} were measured on other labelled pixels of {name}; give both the same "
                "labels and the same --scene images"
            )


def comparison_to_dict(found: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The comparisons for JSON, None for what is undefined."""
    return [
        {
            "first": row.first,
            "second": row.second,
            "figure": row.figure,
            "difference": plain(row.value),
            "interval": [plain(row.low), plain(row.high)],
            "p": plain(row.p),
            "p_adjusted": plain(row.adjusted),
            "larger_than_chance": row.real,
        }
        for row in found
    ]


def sentences(found: Sequence[Comparison], wanted: Sequence[str] = ("mean_iou",)) -> list[str]:
    """What the comparisons say of the wanted figures, in words."""
    lines = []
    for row in found:
        if row.figure not in wanted:
            continue
        figure = _WORDS.get(row.figure, row.figure)
        if np.isnan(row.p):
            lines.append(f"{row.first} and {row.second}: {figure} is undefined in one of them")
            continue
        forward = row.value >= 0
        better, worse = (row.first, row.second) if forward else (row.second, row.first)
        low, high = (row.low, row.high) if forward else (-row.high, -row.low)
        points = f"{100 * abs(row.value):.2f} points of {figure}"
        if not np.isnan(low):
            points += f", interval {100 * low:+.2f} to {100 * high:+.2f}"
        if row.real:
            lines.append(f"{better} is better than {worse} by {points}, p {row.adjusted:.2g}")
        else:
            lines.append(f"{better} and {worse} do not differ by more than chance: {points}, p {row.adjusted:.2g}")
    return lines


_WORDS = {"mean_iou": "mean IoU", "mean_f1": "mean F1", "overall_accuracy": "overall accuracy"}
