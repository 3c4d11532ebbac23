"""A learning rate and a batch size for a run, found by trying.

Both use the run's own network, windows, loss, optimizer and precision, and write nothing.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from scipy.signal import savgol_filter
from torch.utils.data import DataLoader

from rs_biformer.errors import ConfigError
from rs_biformer.machine import machine_memory
from rs_biformer.train.callbacks import peak_memory
from rs_biformer.train.config import ScheduleConfig, TrainConfig
from rs_biformer.train.finetune import begin_from
from rs_biformer.train.run import assemble, new_trainer, quiet
from rs_biformer.train.task import Batch

Say = Callable[[str], None]

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 100
SMOOTHING = 0.9
DIVERGED = 2.0
"""Times the lowest smoothed loss above which the test ends."""

LARGEST_BATCH = 512
GOOD_ENOUGH = 0.95
"""Share of the best throughput that a batch must reach to be proposed: larger ones only cost memory."""

MEMORY_SHARE = 0.8
"""Share of the memory that is there which a batch may take."""


class _Rising(Callback):
    """Raises the learning rate by a constant factor per step and keeps the loss of each."""

    def __init__(self, rates: Sequence[float]) -> None:
        self.rates = rates
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        groups = trainer.optimizers[0].param_groups
        highest = max(group["initial_lr"] for group in groups)
        for group in groups:  # parts of the network keep their multiples
            group["lr"] = self.rates[len(self.losses)] * group["initial_lr"] / highest

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].item())
        curve = smoothed(self.losses)
        trainer.should_stop = not curve[-1] < DIVERGED * min(curve)


def find_learning_rate(config: TrainConfig, *, steps: int = STEPS, say: Say = print) -> float:
    """A learning rate by a range test (Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017).

    Trains up to `steps` batches while the rate rises from 1e-6 to 1, until the loss diverges, says how the loss went,
    and returns the rate at which the loss fell most steeply against the logarithm of the rate. It is a
    starting point for the highest rate of a schedule. Raises ConfigError when the loss fell nowhere.
    """
    rising = _Rising(np.geomspace(LOWEST, HIGHEST, steps).tolist())
    data = replace(config.data, samples_per_epoch=steps * config.data.batch_size)
    config = replace(config, data=data, schedule=ScheduleConfig())
    options = {"max_steps": steps, "max_epochs": -1, "accumulate_grad_batches": 1}
    _run(config, None, options, rising)
    curve = smoothed(rising.losses)
    for decade in range(round(math.log10(LOWEST)), round(math.log10(HIGHEST))):
        reached = [loss for rate, loss in zip(rising.rates, curve, strict=False) if rate < 10 ** (decade + 1)]
        if len(reached) < len(curve) or decade == round(math.log10(HIGHEST)) - 1:
            say(f"up to {10.0 ** (decade + 1):.0e}  smoothed loss {reached[-1]:.4f}")
    if len(curve) < len(rising.rates):
        say(f"diverged at {rising.rates[len(curve) - 1]:.1e}")
    return steepest(rising.rates[: len(curve)], rising.losses)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Exponential moving average of the losses so far, without the pull towards its start at 0."""
    average, found = 0.0, []
    for number, loss in enumerate(losses, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        found.append(average / (1 - SMOOTHING**number))
    return found


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the losses fall most per factor of the rate, before their minimum.

    rates rise by a constant factor. Single batches are noisy: slopes are those of parabolas through a quarter of the
    curve around each step, and of its first eighth none is taken.
    """
    width = max(5, len(losses) // 4) | 1
    if len(losses) < width:
        raise ConfigError(f"the loss diverged after {len(losses)} steps; check labels, loss and trainer.precision")
    curve, slope = (savgol_filter(losses, width, 2, deriv=order) for order in (0, 1))
    first, last = width // 2, int(np.argmin(curve)) + 1
    if last <= first or not (slope[first:last] < 0).any():
        raise ConfigError(
            f"the loss only rose from a learning rate of {rates[0]:.1e} on; check labels, loss and trainer.precision"
        )
    return float(rates[first + int(np.argmin(slope[first:last]))])


@dataclass(frozen=True)
class _Tried:
    """What a batch size costs: windows per second, and gigabytes at the height of a step."""

    size: int
    speed: float
    memory: float


def find_batch_size(config: TrainConfig, *, say: Say = print) -> int:
    """The smallest batch whose throughput is within 5 % of the best that fits into 80 % of the memory.

    Doubles the batch from 2 on, three steps each, until memory or the windows of an epoch do not suffice, or two
    doublings in a row bring nothing. `say` gets a line per size. Raises ConfigError when not even 2 windows fit.
    """
    tried: list[_Tried] = []
    for size in _doubling(config):
        one = _try(config, size)
        if one is None:
            say(f"{size:4} windows per batch: out of memory")
            break
        tried.append(one)
        say(f"{size:4} windows per batch: {one.speed:.2f} windows per second, {one.memory:.2f} GB")
        if 2 * one.memory > MEMORY_SHARE * _memory(config):
            say(f"     twice as many might not fit into {_memory(config):.1f} GB")
            break
        if len(tried) > 2 and one.speed < tried[-3].speed / GOOD_ENOUGH:
            break
    if not tried:
        raise ConfigError(
            "not even 2 windows fit into memory; set model.arguments to {checkpointing: true} or tile smaller windows"
        )
    best = max(one.speed for one in tried)
    return next(one.size for one in tried if one.speed >= GOOD_ENOUGH * best)


def _doubling(config: TrainConfig) -> Iterator[int]:
    data, _, _ = assemble(replace(config, data=replace(config.data, batch_size=1)))
    size = 2
    while size <= min(LARGEST_BATCH, data.samples):
        yield size
        size *= 2


class _Watch(Callback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.memory = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.started = _now(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.seconds.append(_now(pl_module.device) - self.started)
        self.memory = peak_memory(trainer).get("speed/peak_memory_gb", 0.0)


def _try(config: TrainConfig, size: int) -> _Tried | None:
    watch = _Watch()
    data = replace(config.data, batch_size=size, samples_per_epoch=size, cache=False)
    try:
        _run(replace(config, data=data), size, {"max_steps": 3, "max_epochs": -1}, watch)
    except torch.OutOfMemoryError:
        return None
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return _Tried(size, size / median(watch.seconds[1:]), watch.memory)


def _run(config: TrainConfig, size: int | None, options: dict[str, Any], callback: Callback) -> None:
    """Train without checks, validation, logs and checkpoints; with `size`, the same windows in every step."""
    data, task, meta = assemble(config)
    if config.model.weights is not None:
        begin_from(config.model.weights, task.model, meta, config.model.weights_bands)
    quietly: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quietly |= {"enable_model_summary": False, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    with quiet():
        trainer = new_trainer(**{**config.trainer, **quietly, **options}, callbacks=[callback])
        if size is None:
            trainer.fit(task, datamodule=data)
        else:
            batches: DataLoader[Batch] = DataLoader([data.example(size)] * 3, batch_size=None)  # type: ignore[arg-type]
            trainer.fit(task, batches, batches)  # Lightning warns of a task that cannot validate


def _memory(config: TrainConfig) -> float:
    """Gigabytes of the device that the run would use."""
    if torch.cuda.is_available() and config.trainer.get("accelerator", "auto") != "cpu":
        return torch.cuda.mem_get_info()[1] / 1e9
    return machine_memory() / 1e9


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
