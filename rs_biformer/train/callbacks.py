"""Sample predictions as images in the log."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from rs_biformer.raster.labels import encode_colours
from rs_biformer.schema import IGNORE, ClassSchema
from rs_biformer.train.task import Batch, SegmentationTask

SAMPLES = 4


class SamplePredictions(Callback):
    """Draws the first validation windows as image | label | prediction into TensorBoard.

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
    """One picture (3, B * S, 3 * S) uint8 with a row of image | label | prediction per window.

    bands: (B, C, S, S) in standard deviations from the mean, of which -2 to 2 are shown; the first three as red, green
    and blue, or the first in grey.
    """
    shown = bands[:, :3] if bands.shape[1] >= 3 else bands[:, :1].repeat(3, axis=1)
    pictures = np.clip((shown + 2) / 4 * 255, 0, 255).astype(np.uint8)
    rows = [
        np.concatenate([picture, encode_colours(label, schema), encode_colours(prediction, schema)], axis=2)
        for picture, label, prediction in zip(pictures, labels, predictions, strict=True)
    ]
    return np.concatenate(rows, axis=1)
