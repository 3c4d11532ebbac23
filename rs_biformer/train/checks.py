"""What is looked at before the first step, so that a run of hours does not find out at its end.

Splits that share pixels, room on the disk and what to resume from are checked where they are used (`data.datamodule`,
`train.run`).
"""

from collections.abc import Iterator

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from rs_biformer.data.datamodule import TileDataModule
from rs_biformer.errors import ConfigError
from rs_biformer.schema import IGNORE, ClassSchema
from rs_biformer.train.task import Batch, SegmentationTask

FAR_OFF = 6.0
"""Standard deviations between the mean of a batch and that of the index above which the index is of other data."""


def warnings_about(data: TileDataModule) -> Iterator[str]:
    """Lines about what an index shows: classes that cannot be learned, or not be measured, splits that overlap."""
    classes = data.index.manifest.schema.classes
    train, val = (one.table.histogram.sum(axis=0) for one in (data.train, data.val))
    missing = [name for name, count in zip(classes, train, strict=True) if not count]
    if missing:
        yield f"no training pixel is {' or '.join(missing)}: such a class cannot be learned"
    unseen = [name for name, here, there in zip(classes, train, val, strict=True) if here and not there]
    if len(data.val) and unseen:
        yield f"no validation pixel is {' or '.join(unseen)}: val/mean_iou says nothing about it"
    if shared := data.index.manifest.shared_ground:
        yield f"the splits overlap on the ground, so that figures flatter: {shared}"


class CheckFirstBatch(Callback):
    """Sends one training batch through network, loss and backward pass before training begins, and leaves no trace.

    Weights, batch statistics and random numbers are afterwards what they were, so a run is the same with and without.
    Raises ConfigError where pixels or labels do not fit the index, where the loss or a gradient is not finite, and
    where the batch does not fit into the GPU's memory.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check, where the run begins at its beginning."""
        assert isinstance(pl_module, SegmentationTask)
        data = getattr(trainer, "datamodule", None)
        whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)  # others split the network up
        if trainer.global_step or not whole or not isinstance(data, TileDataModule):
            return
        batch = data.example()
        check_batch(batch, data.index.manifest.mean, data.index.manifest.std, data.index.manifest.schema)
        with trainer.precision_plugin.forward_context():
            try_step(pl_module, {name: value.to(pl_module.device) for name, value in batch.items()})


def check_batch(batch: Batch, mean: tuple[float, ...], std: tuple[float, ...], schema: ClassSchema) -> None:
    """Raise ConfigError where a batch does not look like the data that the index describes."""
    valid = batch["valid"]
    for band, (expected, deviation) in enumerate(zip(mean, std, strict=True)):
        values = batch["image"][:, band][valid].double()
        found = values.mean().item() if len(values) else expected
        if not abs(found - expected) <= FAR_OFF * deviation:
            raise ConfigError(
                f"band {band + 1} has a mean of {found:.4g} in the first batch and of {expected:.4g} in the index, "
                f"{abs(found - expected) / deviation:.0f} standard deviations apart; the files have changed since they "
                "were tiled: tile again"
            )
    label = batch["label"]
    if ((label >= len(schema)) & (label != IGNORE)).any():
        raise ConfigError(
            f"a label is {label[label != IGNORE].max().item()} and the schema has {len(schema)} classes; tile again"
        )


def try_step(task: SegmentationTask, batch: Batch) -> None:
    """Forward, loss and backward pass of a batch; everything is as before afterwards."""
    kept = {name: buffer.clone() for name, buffer in task.named_buffers()}
    devices = [task.device] if task.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.enable_grad():
            loss = task.training_loss(batch)
            loss.backward()
        broken = _not_finite(task.model)
    except torch.OutOfMemoryError:
        raise ConfigError(
            f"a batch of {len(batch['label'])} windows does not fit into the memory of the GPU; lower data.batch_size "
            "(--find batch_size), or set model.arguments to {checkpointing: true}"
        ) from None
    finally:
        task.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in task.named_buffers():
                buffer.copy_(kept[name])
    if not torch.isfinite(loss):
        raise ConfigError(f"the loss of the first batch is {loss.item()}; use trainer.precision 32-true")
    if broken:
        raise ConfigError(f"the gradient of {broken} is not finite in the first batch; use trainer.precision 32-true")


def _not_finite(network: nn.Module) -> str | None:
    """The first parameter whose gradient holds infinity or NaN."""
    gradients: dict[str, Tensor] = {
        name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None
    }
    return next((name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()), None)
