"""Beginning from weights that exist: of one of our checkpoints, also with other classes or bands, or published ones."""

from collections.abc import Sequence
from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from rs_biformer.checkpoint import CheckpointMeta, network_weights, read_checkpoint
from rs_biformer.errors import CheckpointError
from rs_biformer.nn.weights import load_published_weights
from rs_biformer.train.task import SegmentationTask


def begin_from(path: str | Path, network: nn.Module, meta: CheckpointMeta) -> str:
    """Load weights from a file into a fresh network; a line that says what was taken and what stays fresh.

    From a .ckpt of ours everything is taken whose name and shape agree. Where the bands differ, first convolutions keep
    the weights of bands of the same name and give new bands their mean, scaled so that the response stays alike. Where
    the classes differ, classifiers keep the weights of classes of the same name. Any other file is taken for published
    weights of the encoder.

    Raises CheckpointError when the file cannot be read or nothing in it fits.
    """
    if Path(path).suffix != ".ckpt":
        encoder = network.encoder
        assert isinstance(encoder, nn.Module)
        return f"began from {path}: {load_published_weights(encoder, path)}; the decoder is fresh"
    content, before = read_checkpoint(path)
    own = network.state_dict()
    taken = {
        name: fitted
        for name, value in network_weights(content).items()
        if name in own and (fitted := _fit(name, value, own[name], before, meta)) is not None
    }
    if not any(name.startswith("encoder.") for name in taken):
        raise CheckpointError(
            f"{path} holds a {before.encoder} + {before.decoder}, whose weights do not fit {meta.encoder}; begin from "
            "a checkpoint of the same encoder"
        )
    network.load_state_dict(taken, strict=False)
    fresh = sum(name not in taken for name in own)
    return f"began from {path}: {len(taken)} tensors used, {fresh} kept as initialised"


def _fit(name: str, value: Tensor, own: Tensor, before: CheckpointMeta, now: CheckpointMeta) -> Tensor | None:
    """The weight for this network's classes and bands; None where its shape has nothing to do with them."""
    classes, bands = (before.schema.classes, now.schema.classes), (before.bands, now.bands)
    if name.startswith(("head.", "auxiliary.")) and _differ(value.shape[:1], own.shape[:1], classes):
        return _by_class(value, own, *classes) if value.shape[1:] == own.shape[1:] else None
    if name.startswith("encoder.") and value.ndim == 4 and _differ(value.shape[1:2], own.shape[1:2], bands):
        alike = (value.shape[0], *value.shape[2:]) == (own.shape[0], *own.shape[2:])
        return _by_band(value, *bands) if alike else None
    return value if value.shape == own.shape else None


def _differ(before: Sequence[int], now: Sequence[int], names: tuple[Sequence[str], Sequence[str]]) -> bool:
    """Whether an axis counts what these names name, and the names have changed."""
    return (*before, *now) == (len(names[0]), len(names[1])) and tuple(names[0]) != tuple(names[1])


def _by_band(value: Tensor, before: Sequence[str], now: Sequence[str]) -> Tensor:
    """(N, bands before, h, w) -> (N, bands now, h, w)."""
    mean = value.mean(1)
    parts = [value[:, before.index(band)] if band in before else mean for band in now]
    return torch.stack(parts, dim=1) * (len(before) / len(now))


def _by_class(value: Tensor, own: Tensor, before: Sequence[str], now: Sequence[str]) -> Tensor:
    """(classes before, ...) -> (classes now, ...)."""
    return torch.stack([value[before.index(name)] if name in before else own[row] for row, name in enumerate(now)])


class FreezeEncoder(Callback):
    """Keeps the encoder as it is for the first `epochs`, its batch statistics too, and trains all of it afterwards."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Freeze or unfreeze; Lightning puts all modules into training mode whenever a validation ends."""
        assert isinstance(pl_module, SegmentationTask)
        frozen = trainer.current_epoch < self.epochs
        encoder = pl_module.model.encoder
        assert isinstance(encoder, nn.Module)
        if encoder.training == frozen:
            encoder.train(not frozen).requires_grad_(not frozen)
