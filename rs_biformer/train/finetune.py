"""Beginning from weights that exist: of one of our checkpoints, also with other classes or bands, or published ones.

And what of a network that began so is to stay as it is for a while.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from rs_biformer.checkpoint import META_KEY, CheckpointMeta, network_weights, read_checkpoint
from rs_biformer.checkpoint.hub import fetch, is_hub_name
from rs_biformer.errors import CheckpointError
from rs_biformer.nn.bands import by_name
from rs_biformer.nn.model import load_encoder_weights
from rs_biformer.nn.tensor_files import SUFFIX, read_tensors
from rs_biformer.nn.weight_files import is_file_name, read_file
from rs_biformer.train.task import SegmentationTask


def begin_from(
    weights: str | Path, network: nn.Module, meta: CheckpointMeta, weights_bands: Sequence[str] | None = None
) -> str:
    """Load weights into a fresh network; a line that says what was taken, what was adapted and what stays fresh.

    weights: a file, a model on the hub (hf://owner/name), or the name of published weights, which are downloaded. From
    a checkpoint of ours everything is taken whose name and shape agree. Where the bands differ, first convolutions keep
    the weights of bands of the same name and give new bands their mean, scaled so that the response stays alike. Where
    the classes differ, classifiers keep the weights of classes of the same name. Any other file is taken for weights of
    the encoder, of whatever origin. weights_bands: names of the bands that such weights were trained on, where their
    number does not tell; see `nn.bands.fit_bands`.

    Raises CheckpointError when the file cannot be read or nothing in it fits, ConfigError for a name of no weights.
    """
    if is_hub_name(weights):
        weights = fetch(weights)
    encoder = network.encoder
    assert isinstance(encoder, nn.Module)
    if not (is_file_name(weights) and _is_ours(weights)):
        report = load_encoder_weights(encoder, weights, meta.encoder, meta.bands, weights_bands)
        return f"began from {weights}: {report}; the decoder is fresh"
    path = weights
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


def _is_ours(path: str | Path) -> bool:
    """Whether a file is a model of this package; Lightning's and safetensors of others have the same suffixes."""
    if Path(path).suffix.lower() == SUFFIX and Path(path).is_file():
        return bool(read_tensors(Path(path), META_KEY)[1])
    return META_KEY in read_file(path)


def _fit(name: str, value: Tensor, own: Tensor, before: CheckpointMeta, now: CheckpointMeta) -> Tensor | None:
    """The weight for this network's classes and bands; None where its shape has nothing to do with them."""
    classes, bands = (before.schema.classes, now.schema.classes), (before.bands, now.bands)
    if name.startswith(("head.", "auxiliary.")) and _differ(value.shape[:1], own.shape[:1], classes):
        return _by_class(value, own, *classes) if value.shape[1:] == own.shape[1:] else None
    if name.startswith("encoder.") and value.ndim == 4 and _differ(value.shape[1:2], own.shape[1:2], bands):
        alike = (value.shape[0], *value.shape[2:]) == (own.shape[0], *own.shape[2:])
        return by_name(value, *bands) if alike else None
    return value if value.shape == own.shape else None


def _differ(before: Sequence[int], now: Sequence[int], names: tuple[Sequence[str], Sequence[str]]) -> bool:
    """Whether an axis counts what these names name, and the names have changed."""
    return (*before, *now) == (len(names[0]), len(names[1])) and tuple(names[0]) != tuple(names[1])


def _by_class(value: Tensor, own: Tensor, before: Sequence[str], now: Sequence[str]) -> Tensor:
    """(classes before, ...) -> (classes now, ...)."""
    return torch.stack([value[before.index(name)] if name in before else own[row] for row, name in enumerate(now)])


def pretrained_part(encoder: nn.Module) -> nn.Module:
    """What published weights fill: of a hybrid its CNN, of a pyramid of a plain transformer the transformer."""
    part = getattr(encoder, "published_part", None)
    return encoder if part is None else encoder.get_submodule(part)


class FreezeEncoder(Callback):
    """Keeps the pretrained part of the encoder as it is for the first `epochs`, its batch statistics too.

    Afterwards all of it trains that would have without: adapters' frozen weights stay frozen.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.learning: list[nn.Parameter] | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Freeze or unfreeze; Lightning puts all modules into training mode whenever a validation ends."""
        assert isinstance(pl_module, SegmentationTask)
        frozen = trainer.current_epoch < self.epochs
        encoder = pl_module.model.encoder
        assert isinstance(encoder, nn.Module)
        part = pretrained_part(encoder)
        if self.learning is None:
            self.learning = [parameter for parameter in part.parameters() if parameter.requires_grad]
        if part.training == frozen:
            part.train(not frozen)
            for parameter in self.learning:
                parameter.requires_grad_(not frozen)
