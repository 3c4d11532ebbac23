"""Batches of a tile index for Lightning: which windows, in which order, read by how many processes."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from rs_biformer.data.augment import create_augment
from rs_biformer.data.dataset import TileDataset
from rs_biformer.data.index import TileIndex
from rs_biformer.data.options import DataConfig
from rs_biformer.data.reader import CHUNK, SceneReader
from rs_biformer.data.sampler import TrainSampler, ValidationSampler, balanced_weights
from rs_biformer.errors import ConfigError
from rs_biformer.geometry import Window
from rs_biformer.machine import machine_cores

log = logging.getLogger(__name__)


class TrainLoader(DataLoader[dict[str, Tensor]]):
    """A loader that begins an epoch where the Trainer stands in it, so that a resumed run sees the same windows.

    Lightning makes the first iterator before it has restored a checkpoint. So nothing is fetched, nor any worker
    started, before the first batch is asked for; by then epoch and progress are known.
    """

    trainer: Trainer | None = None

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        if self.trainer is not None:
            assert isinstance(self.sampler, TrainSampler) and self.batch_size is not None
            self.sampler.set_epoch(self.trainer.current_epoch)
            self.sampler.skip(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready * self.batch_size)
        yield from super().__iter__()


class TileDataModule(LightningDataModule):
    """Training and validation batches of an index.

    A batch is {"image": (B, C, S, S) in the raster's dtype, "label": (B, S, S) uint8 with IGNORE, "valid": (B, S, S)
    bool}. What a training batch holds follows from `seed` and the epoch, not from `options.workers`.

    Raises ConfigError when the index has no training windows, fewer than one batch draws, or overlapping splits.
    """

    def __init__(self, index: TileIndex, options: DataConfig | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.options = options = options or DataConfig()
        index.require_disjoint_splits()
        self.index, self.seed = index, seed
        self.train = _labelled(index.select("train"))
        self.val = _labelled(index.select("val"))
        if not options.overlapping_validation:
            self.val = without_overlap(self.val)
        if not len(self.train):
            raise ConfigError(
                f"the index has no labelled train windows ({len(index)} in all); tile again with --labels and a --split"
            )
        self.samples = options.samples_per_epoch or len(self.train)
        self.require_batches(1)
        histogram = self.train.table.histogram
        self.probabilities = balanced_weights(histogram, options.balance) if options.balance else None
        self.reader = SceneReader(index.manifest, ignore_boundary=options.ignore_boundary)
        self._kept = False

    def require_batches(self, devices: int) -> None:
        """Raise ConfigError where the share of a device in an epoch is less than a batch."""
        share, size = self.samples // devices, self.options.batch_size
        if share < size:
            each = f", {share} for each of {devices} devices," if devices > 1 else ""
            raise ConfigError(
                f"an epoch has {self.samples} windows{each} and a batch {size}; lower data.batch_size or raise "
                "data.samples_per_epoch"
            )

    @property
    def class_frequencies(self) -> NDArray[np.float64]:
        """Expected share of each class, (classes,), among the labelled pixels of the training windows as drawn."""
        histogram = self.train.table.histogram
        expected = histogram.sum(axis=0) if self.probabilities is None else self.probabilities @ histogram
        shares: NDArray[np.float64] = expected / expected.sum()
        return shares

    def setup(self, stage: str) -> None:
        """Share the memory out, and decode the scenes into it where that is asked for and fits."""
        here = 1 if self.trainer is None else self.trainer.num_devices  # processes of this machine, each with a reader
        self.reader.limit(self.options.block_cache * 2**20 // (here * max(1, self._workers)))
        if self.options.cache and not self._kept:
            self._kept = True  # or tried: once per run
            used = np.unique(np.concatenate([self.train.table.scene, self.val.table.scene])).tolist()
            if not self.reader.keep(used, processes=here):
                log.warning("the scenes are too large for data.cache; windows are read from the files instead")

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        # a last batch of one window would have no batch statistics worth the name
        loader = TrainLoader(self._train_set(), sampler=self._train_sampler(), drop_last=True, **self._loading())
        loader.trainer = self.trainer
        return loader

    def example(self, size: int | None = None) -> dict[str, Tensor]:
        """The first batch of the run, or its first `size` windows, read in this process."""
        dataset = self._train_set()
        first = islice(self._train_sampler(), size or self.options.batch_size)
        batch: dict[str, Tensor] = default_collate([dataset[draw] for draw in first])
        return batch

    def _train_set(self) -> TileDataset:
        manifest = self.index.manifest
        table = self.index.table
        return TileDataset(
            self.train,
            reader=self.reader,
            augment=create_augment(
                self.options.augment, manifest.window, np.array(manifest.mean), np.array(manifest.std)
            ),
            jitter=self.options.jitter,
            focus=self.options.focus,
            mosaic=self.options.mosaic,
            probabilities=self.probabilities,
            elsewhere=replace(self.index, table=table.take(np.flatnonzero(table.split != "train"))),
            seed=self.seed,
        )

    def _train_sampler(self) -> TrainSampler:
        return TrainSampler(
            len(self.train),
            self.samples,
            self.seed,
            probabilities=self.probabilities,
            cells=_cells(self.train) if self.options.nearby else None,
            **self._place_among_processes(),
        )

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]] | list[DataLoader[dict[str, Tensor]]]:
        if not len(self.val):
            return []
        sampler = ValidationSampler(len(self.val), **self._place_among_processes())
        return DataLoader(TileDataset(self.val, reader=self.reader), sampler=sampler, **self._loading())

    def _place_among_processes(self) -> dict[str, int]:
        if self.trainer is None:
            return {"replicas": 1, "rank": 0}
        return {"replicas": self.trainer.world_size, "rank": self.trainer.global_rank}

    def _loading(self) -> dict[str, Any]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {
            "batch_size": self.options.batch_size,
            "num_workers": self._workers,
            "pin_memory": on_gpu,
            "persistent_workers": self._workers > 0,
        }

    @property
    def _workers(self) -> int:
        """Those asked for, and no more than there are cores: recipes are made for larger machines than some have."""
        return min(self.options.workers, machine_cores())


def _labelled(index: TileIndex) -> TileIndex:
    return replace(index, table=index.table.take(np.flatnonzero(index.table.histogram.any(axis=1))))


def _cells(index: TileIndex) -> NDArray[np.int64]:
    """A number per window that those share whose centres lie in one square of two blocks a side."""
    table, side = index.table, 2 * CHUNK
    rows, cols = (table.row + table.height // 2) // side, (table.col + table.width // 2) // side
    places = np.stack([table.scene, rows, cols], axis=1)
    return np.unique(places, axis=0, return_inverse=True)[1].reshape(-1)


def without_overlap(index: TileIndex) -> TileIndex:
    """The windows, row by row, that share no pixel with one chosen before: at an overlap of 0.5 about a quarter."""
    table = index.table
    chosen: list[int] = []
    scene, near = -1, list[Window]()
    for number in np.lexsort((table.col, table.row, table.scene)).tolist():
        window = index.window(number)
        if table.scene[number] != scene:
            scene, near = int(table.scene[number]), []
        near = [one for one in near if one.row_stop > window.row]  # the others end before all that follow
        if not any(one.intersects(window) for one in near):
            near.append(window)
            chosen.append(number)
    return replace(index, table=table.take(np.sort(np.array(chosen, np.int64))))
