"""How far figures may be trusted: bootstrap intervals, and whether two maps differ by more than chance. Numpy only.

What is drawn is a *unit*: a square block of a scene, or a whole scene. Pixels are no units: neighbours are right and
wrong together, and an interval from pixels would be absurdly narrow. Every figure is computed from the summed confusion
of the units drawn, never averaged over them, so an interval belongs to the figure that is reported.

- `intervals`: percentile bootstrap (Efron & Tibshirani 1993) over units drawn with replacement.
- `differences`: of two maps of the same pixels. The interval is a bootstrap of the difference, both maps by the same
  draw; p comes from a permutation test: if the maps were equally good, swapping them within any unit would change
  nothing but chance. All 2^N swaps are tried where N units allow no more than `samples`, else random ones,
  more of them where many tests are made at once: a p cannot be smaller than one swap.

Both speak of these scenes: of which of their blocks happened to be labelled. They say nothing of other places, nor of
another training run of the same network.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

import rs_biformer.evaluation.confusion as figures
from rs_biformer.errors import ConfigError
from rs_biformer.evaluation.confusion import Confusion

UNITS = ("blocks", "scenes")
FEWEST = 5
"""Units below which no interval is given: what so few of them leave out cannot be seen from those that are there."""
SWAPS_PER_TEST = 100
"""Random swaps for each of several tests that are made at once: the least p that can come out, 1 in so many, is raised
by their number, and stays at 0.01."""
MOST_SAMPLES = 100_000
"""Draws beyond which intervals no longer change in the digits that are shown, and only time is lost."""
_CELLS = 1 << 22
"""Weights held at once, 8 bytes each."""
_TOLERANCE = 1e-12
"""Differences closer than this are equal: sums of the same counts in another order."""


@dataclass(frozen=True)
class Resampling:
    """What is drawn, how often, and for which level of confidence. The seed makes the figures reproducible."""

    unit: str = "blocks"
    samples: int = 2000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ConfigError(f"resampling draws {self.unit!r}; use {' or '.join(UNITS)}")
        if not 100 <= self.samples <= MOST_SAMPLES or not 0 < self.level < 1 or self.seed < 0:
            raise ConfigError(
                f"resampling has {self.samples} samples, level {self.level} and seed {self.seed}; use 100 to "
                f"{MOST_SAMPLES:,} samples, a share below 1 and a seed of 0 or more"
            )


@dataclass(frozen=True)
class Difference:
    """How much a figure of the first map is above that of the second, its interval, and p of no difference.

    Arrays for figures per class, else floats; NaN where the figure is undefined in either map.
    """

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    p: NDArray[np.float64]


def headline(counts: Confusion, averaged: tuple[int, ...]) -> dict[str, NDArray[np.float64]]:
    """The figures that get intervals, of one confusion or a stack: five of the set, and IoU and F1 per class."""
    iou, f1 = figures.iou(counts), figures.f1(counts)
    return {
        "overall_accuracy": figures.overall_accuracy(counts),
        "mean_iou": figures.mean_over(iou, averaged),
        "mean_f1": figures.mean_over(f1, averaged),
        "kappa": figures.kappa(counts),
        "frequency_weighted_iou": figures.frequency_weighted_iou(counts),
        "iou": iou,
        "f1": f1,
    }


def intervals(
    units: Confusion, averaged: tuple[int, ...], resampling: Resampling
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Lower and upper ends by the name of the figure; NaN with fewer than FEWEST units."""
    drawn = _each(units, resampling, lambda weights: headline(resample(units, weights), averaged))
    return {name: _ends(values, resampling.level) for name, values in drawn.items()}


def differences(
    first: Confusion, second: Confusion, averaged: tuple[int, ...], resampling: Resampling, tests: int = 1
) -> dict[str, Difference]:
    """What sets two maps of the same units apart, by the name of the figure.

    tests: how many p values will be judged together (`holm`); the more, the more swaps are tried.
    """

    def draw(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        one, other = (headline(resample(units, weights), averaged) for units in (first, second))
        return {name: one[name] - other[name] for name in one}

    drawn = _each(first, resampling, draw)
    one, other = headline(first.total, averaged), headline(second.total, averaged)
    observed = {name: one[name] - other[name] for name in one}
    swaps = replace(resampling, samples=max(resampling.samples, SWAPS_PER_TEST * tests))
    chance = _permutation(first, second, averaged, observed, swaps)
    return {name: Difference(observed[name], *_ends(drawn[name], resampling.level), chance[name]) for name in observed}


def resample(units: Confusion, weights: NDArray[np.float64]) -> Confusion:
    """The summed confusions (R, K, K) of draws in which unit n occurs weights[r, n] times; exact below 2^53."""
    classes = units.matrix.shape[-1]
    table = np.concatenate([units.matrix.reshape(len(units.matrix), -1), units.unpredicted], axis=1).astype(np.float64)
    sums = weights @ table
    return Confusion(sums[:, :-classes].reshape(-1, classes, classes), sums[:, -classes:])


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """P values of several tests, raised so that the chance of any false alarm among them is bounded (Holm 1979)."""
    adjusted = np.full(p.shape, np.nan)
    defined = np.flatnonzero(~np.isnan(p))
    order = defined[np.argsort(p[defined], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else steps
    return adjusted


def _each(
    units: Confusion,
    resampling: Resampling,
    draw: Callable[[NDArray[np.float64]], dict[str, NDArray[np.float64]]],
) -> dict[str, NDArray[np.float64]]:
    """What `draw` makes of all bootstrap weights, put together along the first axis."""
    number = len(units.matrix)
    parts = [draw(weights) for weights in bootstrap_weights(number, resampling)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return joined if number >= FEWEST else {name: np.full_like(values, np.nan) for name, values in joined.items()}


def bootstrap_weights(units: int, resampling: Resampling) -> Iterator[NDArray[np.float64]]:
    """How often each unit is drawn (r, N), in parts of R draws in all."""
    rng = np.random.default_rng(resampling.seed)
    at_once = max(1, _CELLS // max(1, units))
    for start in range(0, resampling.samples, at_once):
        rows = min(at_once, resampling.samples - start)
        yield rng.multinomial(units, np.full(units, 1 / units), size=rows).astype(np.float64)


def _ends(values: NDArray[np.float64], level: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The interval that holds the middle `level` of the draws (R, ...); draws without the figure do not count."""
    empty = np.isnan(values).all(axis=0)
    ends = np.nanquantile(np.where(empty, 0, values), [(1 - level) / 2, (1 + level) / 2], axis=0)
    low, high = (np.where(empty, np.nan, end)[()] for end in ends)
    return low, high


def _permutation(
    first: Confusion,
    second: Confusion,
    averaged: tuple[int, ...],
    observed: dict[str, NDArray[np.float64]],
    resampling: Resampling,
) -> dict[str, NDArray[np.float64]]:
    """Share of the swaps after which the maps differ at least as much as they do: two-sided p by figure."""
    total = resample(first, np.ones((1, len(first.matrix)))) + resample(second, np.ones((1, len(first.matrix))))
    exact = len(first.matrix) <= np.log2(resampling.samples)
    reached = {name: np.zeros(np.shape(value)) for name, value in observed.items()}
    tried = 0
    for swaps in _swaps(len(first.matrix), exact, resampling):
        one = resample(first, 1 - swaps) + resample(second, swaps)
        other = Confusion(total.matrix - one.matrix, total.unpredicted - one.unpredicted)
        figures_one, figures_other = headline(one, averaged), headline(other, averaged)
        for name, value in observed.items():
            apart = np.abs(figures_one[name] - figures_other[name])
            reached[name] = reached[name] + (apart >= np.abs(value) - _TOLERANCE).sum(axis=0)
        tried += len(swaps)
    more = 0 if exact else 1  # the observed one is among all swaps, but not among random ones
    return {
        name: np.where(np.isnan(observed[name]), np.nan, (count + more) / (tried + more))[()]
        for name, count in reached.items()
    }


def _swaps(units: int, exact: bool, resampling: Resampling) -> Iterator[NDArray[np.float64]]:
    """Which units are swapped (r, N) of 0 and 1: every possibility, or as many random ones as samples."""
    if exact:
        yield ((np.arange(2**units)[:, None] >> np.arange(units)) & 1).astype(np.float64)
        return
    rng = np.random.default_rng(resampling.seed)
    at_once = max(1, _CELLS // units)
    for start in range(0, resampling.samples, at_once):
        rows = min(at_once, resampling.samples - start)
        yield rng.integers(0, 2, (rows, units)).astype(np.float64)
