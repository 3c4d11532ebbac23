"""The LightningModule: one training step, one validation step, one confusion matrix over the whole validation set."""

import math
from dataclasses import replace
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from rs_biformer.checkpoint import META_KEY, CheckpointMeta
from rs_biformer.errors import ConfigError, RsBiformerError
from rs_biformer.evaluation.confusion import Confusion
from rs_biformer.evaluation.metrics import Scores
from rs_biformer.nn.losses import unknown_label
from rs_biformer.nn.normalise import Normalisation
from rs_biformer.schema import IGNORE
from rs_biformer.train.config import OptimizerConfig, ScheduleConfig
from rs_biformer.train.optim import create_optimizer, create_schedule

PROTOCOL = "validation-windows"
"""Id of the figures logged here: one confusion matrix over the validation windows, each predicted by itself, mean over
all classes that occur. `evaluate` measures blended maps of whole scenes instead."""

FINITE_EVERY = 20
"""Steps between two looks at whether the loss is still a number: each look waits for the GPU."""

Batch = dict[str, Tensor]


class SegmentationTask(LightningModule):
    """Trains `model`, logits (B, K, H, W) from normalised bands (B, C, H, W).

    A batch is {"image": raw (B, C, S, S), "label": (B, S, S) uint8 with IGNORE, "valid": (B, S, S) bool}. Normalisation
    happens here, on the device. Checkpoints carry `meta` with the figures of the last validation.
    auxiliary: weight of the loss of the model's auxiliary head, where it has one.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        meta: CheckpointMeta,
        *,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        auxiliary: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        self.loss = loss
        self.auxiliary = auxiliary if getattr(model, "auxiliary", None) is not None else 0.0
        self.normalisation = Normalisation(meta.mean, meta.std)
        self.meta = meta
        self.optimizer_options, self.schedule_options = optimizer, schedule
        self.confusion = MulticlassConfusionMatrix(len(meta.schema), ignore_index=IGNORE, validate_args=False)
        # Two sums, as torchmetrics' mean forgets the weights where it does not wait for the GPU to look for NaN.
        self.validation_loss, self.validation_pixels = (SumMetric(nan_strategy="disable") for _ in range(2))

    def forward(self, image: Tensor, valid: Tensor | None = None) -> Tensor:
        logits: Tensor = self.model(self._normalised(image, valid))
        return logits

    def _normalised(self, image: Tensor, valid: Tensor | None) -> Tensor:
        normalised: Tensor = self.normalisation(image, valid).contiguous(memory_format=torch.channels_last)
        return normalised

    def training_loss(self, batch: Batch) -> Tensor:
        label = batch["label"].long()
        if not self.auxiliary:
            loss: Tensor = self.loss(self(batch["image"], batch["valid"]), label)
            return loss
        x = self._normalised(batch["image"], batch["valid"])
        logits, second = self.model.forward_with_auxiliary(x)  # type: ignore[operator]
        both: Tensor = self.loss(logits, label) + self.auxiliary * self.loss(second, label)
        return both

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.training_loss(batch)
        looks = batch_idx % FINITE_EVERY == 0 or self.trainer.is_last_batch
        if looks and not torch.isfinite(loss):
            label = batch["label"].long()  # on a GPU the loss cannot complain of them
            if problem := unknown_label(label, label != IGNORE, len(self.meta.schema)):
                raise ConfigError(problem)
            raise RsBiformerError(
                f"the loss is {loss.item()} at step {self.global_step}; lower optimizer.learning_rate, raise "
                "schedule.warmup, set trainer.gradient_clip_val, or use trainer.precision 32-true"
            )
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.meta.metrics:  # the weights are about to be others than those that were measured
            self.meta = replace(self.meta, metrics={}, protocol="")

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self(batch["image"], batch["valid"])
        label = batch["label"].long()
        prediction: Tensor = logits.argmax(1)
        self.confusion.update(prediction, label)
        # Every process updates at every step, also where nothing is labelled: compute() waits for all of them.
        labelled = (label != IGNORE).sum()
        self.validation_loss.update(self.loss(logits, label) * labelled)
        self.validation_pixels.update(labelled)
        return prediction

    def on_validation_epoch_end(self) -> None:
        matrix = self.confusion.compute().cpu().numpy().astype("int64")
        loss = self.validation_loss.compute() / self.validation_pixels.compute()
        for metric in (self.confusion, self.validation_loss, self.validation_pixels):
            metric.reset()
        if self.trainer.sanity_checking:
            return
        classes = self.meta.schema.classes
        scores = Scores(classes, tuple(range(len(classes))), Confusion(matrix, matrix[:, 0] * 0))
        figures = {
            "overall_accuracy": scores.overall_accuracy,
            "mean_iou": scores.mean_iou,
            "mean_f1": scores.mean_f1,
        }
        of_classes = {f"iou/{name}": float(iou) for name, iou in zip(classes, scores.iou, strict=True)}
        present = {name: value for name, value in {**figures, **of_classes}.items() if not math.isnan(value)}
        self.meta = replace(self.meta, metrics=present, protocol=PROTOCOL)
        # The figures are the same in every process: compute() has summed the matrices of all.
        for name, value in present.items():
            self.log(f"val/{name}", value, prog_bar=name == "mean_iou", sync_dist=False)
        self.log("val/loss", loss, sync_dist=False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = create_optimizer(self.model, self.optimizer_options)
        schedule = create_schedule(optimizer, self.trainer.estimated_stepping_batches, self.schedule_options)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[META_KEY] = self.meta.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        known = checkpoint[META_KEY]  # until the next validation the figures are those of the weights just loaded
        self.meta = replace(self.meta, metrics=known["metrics"], protocol=known["protocol"])
