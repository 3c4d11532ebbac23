"""The options of the windows and batches that training gets: one home for `train.config` and `TileDataModule`."""

from dataclasses import dataclass, field
from typing import Any

from rs_biformer.data.augment import Augmentation
from rs_biformer.errors import ConfigError


@dataclass(frozen=True)
class DataConfig:
    """The windows and the batches.

    Args:
        index: Folder or file that `rs-biformer tile` wrote.
        batch_size: Windows per step and device.
        workers: Processes that read windows, no more than there are cores; 0 reads in the training process. The result
            does not depend on it.
        samples_per_epoch: Windows drawn per epoch; null draws as many as there are training windows.
        balance: Strength of class-balanced sampling: 0 draws every window alike without repetition; s > 0 draws a
            window by the mean of frequency ** -s over its labelled pixels, so 1 makes rare classes about as frequent
            as common ones.
        jitter: Furthest shift of a training window from its indexed place, as a share of the window. A shift that
            would touch a window of another split is not made.
        focus: How often a window is moved to show, near its centre, one of the classes that its place has, each as
            likely as the others, instead of being shifted at random.
        mosaic: How often a training window is put together from the quarters of four.
        nearby: Draw the windows of an epoch area by area, 16 areas of 1024 pixels mixed at a time, so that compressed
            blocks of data sets larger than memory are decoded once and not several times.
        ignore_boundary: Pixels around class boundaries that get no label, in training and validation; 3 is the ISPRS
            rule.
        cache: Keep the decoded scenes in memory, shared by the workers, where they fit into 40 % of it; otherwise
            they are read from their files by block.
        block_cache: MiB of decoded blocks that all workers together keep when the scenes are not.
        overlapping_validation: Score all validation windows. By default only those that do not overlap, which cost a
            quarter at an overlap of 0.5 and count no pixel twice.
        augment: Random changes of training windows; all are off by default.
    """

    index: str = ""
    batch_size: int = 8
    workers: int = 2
    samples_per_epoch: int | None = None
    balance: float = 0.0
    jitter: float = 0.0
    focus: float = 0.0
    mosaic: float = 0.0
    nearby: bool = False
    ignore_boundary: int = 0
    cache: bool = False
    block_cache: int = 512
    overlapping_validation: bool = False
    augment: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "data.batch_size", self.batch_size, "1 or more")
        require(self.workers >= 0, "data.workers", self.workers, "0 or more")
        samples = self.samples_per_epoch
        require(samples is None or samples >= 1, "data.samples_per_epoch", samples, "null, or 1 or more")
        require(0 <= self.balance <= 2, "data.balance", self.balance, "between 0 (off) and 2")
        require(0 <= self.jitter <= 1, "data.jitter", self.jitter, "between 0 (off) and 1 (a whole window)")
        for name in ("focus", "mosaic"):
            require(0 <= getattr(self, name) <= 1, f"data.{name}", getattr(self, name), "between 0 (never) and 1")
        require(0 <= self.ignore_boundary <= 64, "data.ignore_boundary", self.ignore_boundary, "0 to 64 pixels")
        require(self.block_cache >= 0, "data.block_cache", self.block_cache, "0 MiB or more")


def require(condition: bool, key: str, value: Any, allowed: str) -> None:
    """Raise ConfigError, naming the key, unless the condition holds."""
    if not condition:
        raise ConfigError(f"{key} is {value}; it must be {allowed}")
