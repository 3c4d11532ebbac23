"""Which training windows an epoch sees, in which order: a function of the seed and the epoch alone."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, DistributedSampler

from rs_biformer.errors import ConfigError

MIXED = 16
"""Cells that training visits at a time when it reads nearby windows together."""


class Draw(NamedTuple):
    """One window drawn for training.

    number: its row in the index. draw: counts all draws of the run, so that whatever is random about this one can be
    derived from it, in whichever process it is read.
    """

    number: int
    draw: int


class Filler(NamedTuple):
    """A window that is looked at without its label, so that all processes of a run take as many steps."""

    number: int


def balanced_weights(histogram: NDArray[np.int64], strength: float) -> NDArray[np.float64]:
    """Probability of each window, (windows,), from its class histogram (windows, classes).

    A window counts by the mean of frequency ** -strength over its labelled pixels, frequency being the class's share
    of all labelled pixels: 0 makes all windows alike, 1 makes the classes as equal as mixing windows can.
    Windows without a labelled pixel get 0. Raises ConfigError when no window has one.
    """
    pixels = histogram.sum(axis=1)
    total = histogram.sum(axis=0)
    if not total.any():
        raise ConfigError("no training window has a labelled pixel; check the labels and the schema, and tile again")
    worth = np.zeros(len(total))
    present = total > 0
    worth[present] = (total[present] / total.sum()) ** -strength
    weights = np.divide(histogram @ worth, pixels, out=np.zeros(len(pixels)), where=pixels > 0)
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def nearby_order(cells: NDArray[np.int64], mixed: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """An order of draws, (draws,), that visits their cells one after the other while about `mixed` are in work.

    cells: of each draw, any number that draws from one place share. Each cell gets a random rank, each draw is put off
    by up to `mixed` ranks, so blocks decoded for a cell serve all its draws before they are forgotten, and a batch
    still mixes many places.
    """
    names, own = np.unique(cells, return_inverse=True)
    rank = rng.permutation(len(names))
    return np.argsort(rank[own] + rng.uniform(0, mixed, len(cells)), kind="stable")


class _Sized(Dataset[None]):
    """What a DistributedSampler wants to see of a data set: its length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length


class TrainSampler(DistributedSampler[Any]):
    """Draws windows for training; every process of a distributed run gets an equal share of each epoch.

    windows: how many there are. samples: how many an epoch draws, over all processes; rounded down to a multiple of
        their number. probabilities: (windows,) for drawing with repetition, or None for shuffled passes over all
        windows, which go on from one epoch to the next without repeating a window before all were seen.

    A DistributedSampler only so that Lightning leaves it in place and tells it the epoch.
    """

    def __init__(
        self,
        windows: int,
        samples: int,
        seed: int,
        *,
        probabilities: NDArray[np.float64] | None = None,
        cells: NDArray[np.int64] | None = None,
        replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(_Sized(samples), num_replicas=replicas, rank=rank, shuffle=True, seed=seed)
        self.windows = windows
        self.samples = samples - samples % replicas
        self.probabilities = probabilities
        self.cells = cells
        self._done = 0

    def __len__(self) -> int:
        return self.samples // self.num_replicas

    def skip(self, draws: int) -> None:
        """Leave out the first `draws` of this process in the next iteration."""
        self._done = draws

    def __iter__(self) -> Iterator[Draw]:
        done, self._done = self._done, 0
        start = self.epoch * self.samples
        numbers = self._drawn() if self.probabilities is not None else self._shuffled(start)
        if self.cells is not None:
            rng = np.random.default_rng((self.seed, self.epoch, MIXED))
            numbers = numbers[nearby_order(self.cells[numbers], MIXED, rng)]
        for place in range(self.rank + done * self.num_replicas, self.samples, self.num_replicas):
            yield Draw(int(numbers[place]), start + place)

    def _drawn(self) -> NDArray[np.int64]:
        rng = np.random.default_rng((self.seed, self.epoch))
        return rng.choice(self.windows, size=self.samples, p=self.probabilities)

    def _shuffled(self, start: int) -> NDArray[np.int64]:
        first, last = start // self.windows, (start + self.samples - 1) // self.windows
        passes = [
            np.random.default_rng((self.seed, number)).permutation(self.windows) for number in range(first, last + 1)
        ]
        return np.concatenate(passes)[start - first * self.windows :][: self.samples]


class ValidationSampler(DistributedSampler[Any]):
    """All windows once and in order, dealt out to the processes; fillers make their shares equal.

    A process that took fewer steps than the others, or none, would leave them waiting for it.
    """

    def __init__(self, windows: int, *, replicas: int = 1, rank: int = 0) -> None:
        super().__init__(_Sized(windows), num_replicas=replicas, rank=rank, shuffle=False)
        self.windows = windows

    def __len__(self) -> int:
        return -(-self.windows // self.num_replicas)

    def __iter__(self) -> Iterator[int | Filler]:
        for place in range(self.rank, len(self) * self.num_replicas, self.num_replicas):
            yield place if place < self.windows else Filler(place % self.windows)
