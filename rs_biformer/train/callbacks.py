"""What a run does besides training: pictures in the log, figures of its speed, a checkpoint when it is stopped."""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from rs_biformer.raster.labels import encode_colours
from rs_biformer.schema import IGNORE, ClassSchema
from rs_biformer.train import folder
from rs_biformer.train.config import TrainConfig
from rs_biformer.train.optim import moving_average
from rs_biformer.train.task import Batch, SegmentationTask

log = logging.getLogger(__name__)

SAMPLES = 4

ERROR = np.array([[[220]], [[30]], [[30]]], np.uint8)
"""Red, (3, 1, 1)."""

WAITING_TOO_LONG = 0.1
"""Share of the time spent waiting for data above which a run says so."""


class SaveWhenTerminated(Callback):
    """Writes the checkpoint to go on from when the process is told to end (SIGTERM, as SLURM does before it preempts).

    Lightning raises between two steps, so what is written is a whole step. A validation that is cut short is not made
    up for: the resumed run goes on with the next epoch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save where it was SIGTERM that ended the run."""
        if isinstance(exception, SIGTERMException) and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)


class BeginFolder(Callback):
    """Describes the run in its folder once all checks have passed; stands behind them in the list of callbacks."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write config.yaml."""
        if trainer.is_global_zero:
            folder.begin(Path(self.config.out), self.config)


class Averaging(WeightAveraging):
    """Lightning's weight averaging, of which a validation that is cut short leaves the right weights in place.

    During a validation the network holds the averages and the callback the weights that learn; what is saved then must
    have them back in their places.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=moving_average(decay))
        self._swapped = False

    @property
    def state_key(self) -> str:
        """What its state is called in a checkpoint: as Lightning calls it, so that runs of version 0.1.0 go on."""
        return "WeightAveraging"

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the averages."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._swapped = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on learning."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._swapped = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the weights back, whatever ended the validation."""
        if self._swapped:
            self.on_validation_epoch_end(trainer, pl_module)


class OneCheckpoint(ModelCheckpoint):
    """Writes one file of the run folder again and again.

    Of the state in a checkpoint only the score is believed: Lightning would also take the paths of earlier files from
    it, which may name anything, and remove what lies there when a better one comes.
    """

    def __init__(self, path: Path, **when: Any) -> None:
        super().__init__(
            path.parent,
            path.stem,
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_top_k=1,
            **when,
        )

    @property
    def state_key(self) -> str:
        """What its state is called in a checkpoint: as Lightning calls it, so that runs of version 0.1.0 go on."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The score of the file that is there, if it is there."""
        score = state_dict.get("best_model_score")
        path = os.path.join(str(self.dirpath), f"{self.filename}{self.FILE_EXTENSION}")  # noqa: PTH118 - as it does
        if isinstance(score, Tensor) and score.numel() == 1 and torch.isfinite(score).all() and os.path.isfile(path):  # noqa: PTH113
            self.best_model_score = self.kth_value = score
            self.best_model_path = self.kth_best_model_path = path
            self.best_k_models = {path: score}


class Speed(Callback):
    """Logs windows per second, the share of time spent waiting for data, and peak memory.

    The first steps of an epoch are left out: there workers start and kernels are chosen.
    """

    WARM_UP = 2

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._waited = self._worked = 0.0
        self._windows = self._steps = 0
        self._last = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """The batch is there."""
        now = time.perf_counter()
        if self._steps >= self.WARM_UP:
            self._waited += now - self._last
        self._last = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """The step is done."""
        now = time.perf_counter()
        if self._steps >= self.WARM_UP:
            self._worked += now - self._last
            self._windows += len(batch["label"]) * trainer.world_size
        self._steps += 1
        self._last = now

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the figures of the epoch, and warn where data are what it waited for."""
        if not self._windows:
            return self._start()
        spent = self._waited + self._worked
        share = self._waited / spent
        figures = {"speed/windows_per_second": self._windows / spent, "speed/waiting_for_data": share}
        pl_module.log_dict(figures | peak_memory(trainer), sync_dist=False)
        if share > WAITING_TOO_LONG:
            log.warning(
                "%.0f %% of the time was spent waiting for data; try data.cache=true, data.nearby=true or more "
                "data.workers",
                100 * share,
            )
        self._start()


def peak_memory(trainer: Trainer) -> dict[str, float]:
    """Gigabytes at most so far, of the GPU where there is one, else of this process; nothing on Windows."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return {"speed/peak_memory_gb": torch.cuda.max_memory_allocated(device) / 1e9}
    if sys.platform == "win32":
        return {}
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return {"speed/peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}


class SamplePredictions(Callback):
    """Draws the first validation windows as image | label | prediction | errors into TensorBoard.

    every: epochs between two drawings; the first validation is always drawn.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._drawn = -every

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first batch where it is time to."""
        due = trainer.current_epoch >= self._drawn + self.every
        if batch_idx or trainer.sanity_checking or not trainer.is_global_zero or not due:
            return
        self._drawn = trainer.current_epoch
        assert isinstance(pl_module, SegmentationTask)
        prediction: Tensor = outputs
        raw, valid = batch["image"][:SAMPLES], batch["valid"][:SAMPLES]
        bands = pl_module.normalisation(raw, valid).cpu().numpy()
        panel = draw(
            bands,
            batch["label"][:SAMPLES].cpu().numpy(),
            torch.where(valid, prediction[:SAMPLES].to(torch.uint8), IGNORE).cpu().numpy(),
            pl_module.meta.schema,
        )
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("val/samples", panel, trainer.global_step)


def draw(
    bands: NDArray[np.float32], labels: NDArray[np.uint8], predictions: NDArray[np.uint8], schema: ClassSchema
) -> NDArray[np.uint8]:
    """One picture (3, B * S, 4 * S) uint8 with a row of image | label | prediction | errors per window.

    bands: (B, C, S, S) in standard deviations from the mean, of which -2 to 2 are shown; the first three as red, green
    and blue, or the first in grey. labels, predictions: (B, S, S) class indices with IGNORE. Errors are red on a dim
    image; where there is no label, none is shown.
    """
    shown = bands[:, :3] if bands.shape[1] >= 3 else bands[:, :1].repeat(3, axis=1)
    pictures = np.clip((shown + 2) / 4 * 255, 0, 255).astype(np.uint8)
    rows = [
        np.concatenate(
            [
                picture,
                encode_colours(label, schema),
                encode_colours(prediction, schema),
                np.where((label != prediction) & (label != IGNORE), ERROR, picture // 2),
            ],
            axis=2,
        )
        for picture, label, prediction in zip(pictures, labels, predictions, strict=True)
    ]
    return np.concatenate(rows, axis=1)
