"""A checkpoint: a network with what it was trained on, and how to load it without executing anything from the file.

A checkpoint is Lightning's own `.ckpt`, so that training resumes from it, with a mapping of plain values beside the
weights that says everything prediction needs (meta.py). Loading unpickles tensors and plain types only
(`weights_only=True`) and rebuilds the network from our own dict of names, never from an import path.

The same in a form for others is a file of safetensors, with the mapping as JSON in its header: one file that can be
moved alone. What stands in the file counts; a card beside it is for people.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rs_biformer.checkpoint.hub import located
from rs_biformer.checkpoint.meta import META_KEY, CheckpointMeta
from rs_biformer.documents import shown
from rs_biformer.errors import CheckpointError
from rs_biformer.files import replacing
from rs_biformer.nn.archive import require_intact, write_archive
from rs_biformer.nn.attention.bra import BiLevelRoutingAttention, keep_region_size
from rs_biformer.nn.context import sees_alike
from rs_biformer.nn.meta_device import without_memory
from rs_biformer.nn.normalise import Normalisation
from rs_biformer.nn.tensor_files import SUFFIX, read_tensors, write_tensors
from rs_biformer.schema import ClassSchema

NETWORK_PREFIX = "model."
"""What the names of the network's weights begin with in the checkpoint's state dict."""

_SMALL = 64
"""Side of an image that no network pads."""

_LIGHTNING_KEYS = ("epoch", "global_step", "pytorch-lightning_version")


class TrainedModel(nn.Module):
    """A network together with what it was trained on; in eval mode.

    forward(raw (B, C, H, W) of any dtype, in the units of the rasters, valid (B, H, W) bool or None) -> logits
    (B, classes, H, W). path: the file that it was read from, if there was one.
    """

    def __init__(self, network: nn.Module, meta: CheckpointMeta, path: Path | None = None) -> None:
        super().__init__()
        self.network = network
        self.normalisation = Normalisation(meta.mean, meta.std)
        self.meta, self.path = meta, path
        self.eval()

    @property
    def schema(self) -> ClassSchema:
        return self.meta.schema

    @property
    def bands(self) -> tuple[str, ...]:
        return self.meta.bands

    @property
    def sees_further(self) -> bool:
        """Whether it may look through larger windows than it was trained with, see nn/context.py."""
        return sees_alike(self.network)

    @property
    def routes(self) -> bool:
        """Whether it has attention to regions, whose size may be kept in larger windows."""
        return any(isinstance(part, BiLevelRoutingAttention) for part in self.network.modules())

    def with_regions_of_training(self) -> "TrainedModel":
        """The same model, and the same weights, whose routed attention has regions as large in images of any size as
        in those of training. See `predict/quality.py` for what it is worth.
        """
        image = torch.zeros(1, len(self.bands), _SMALL, _SMALL, device=self.normalisation.mean.device)
        return TrainedModel(keep_region_size(self.network, self.meta.window, image), self.meta, self.path)

    def _repr_html_(self) -> str:
        """What a notebook shows: the network, what it was trained on, and its classes."""
        from markupsafe import Markup

        from rs_biformer.notebook import facts, stacked, swatch

        meta = self.meta
        listed = {
            "network": f"{meta.encoder}, {meta.decoder}",
            "parameters": f"{sum(weights.numel() for weights in self.network.parameters()):,}",
            "bands": f"{', '.join(meta.bands)} ({meta.dtype})",
            "window": f"{meta.window} x {meta.window} pixels",
            "pixel": None if meta.gsd is None else f"{meta.gsd:.4g} m",
            "classes": Markup("<br>").join(map(swatch, meta.schema.colours, meta.schema.classes)),
        }
        return stacked(facts(listed))

    def forward(self, raw: Tensor, valid: Tensor | None = None) -> Tensor:
        logits: Tensor = self.network(self.normalisation(raw, valid))
        return logits


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], CheckpointMeta]:
    """The content of one of our checkpoints, on the CPU, and what it carries. Executes nothing from the file.

    path: of a Lightning checkpoint, or of a file of safetensors (by its suffix) that `write_safetensors` wrote; or
        hf://owner/name, which is fetched.

    Raises CheckpointError when the file is missing, no checkpoint, changed since it was written, holds more than
    tensors and plain values, or was not written by this package.
    """
    path = located(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}; `rs-biformer train` writes best.ckpt and last.ckpt")
    content = _safetensors_content(path) if path.suffix.lower() == SUFFIX else _archive_content(path)
    if not isinstance(content, dict) or not isinstance(content.get(META_KEY), dict):
        raise CheckpointError(
            f"{path} was not written by `rs-biformer train`; bare weights are loaded by load_published_weights"
        )
    meta = CheckpointMeta.from_dict(content[META_KEY], str(path))
    _require_tensors(content.get("state_dict"), path)
    return content, meta


def _archive_content(path: Path) -> Any:
    require_intact(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what the file would have if it were loaded otherwise
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle is a small program, which can fail in any way
        raise CheckpointError(
            f"{path} holds objects that could execute code, or is damaged; nothing was loaded ({_first_line(error)})"
        ) from None
    return content


def _safetensors_content(path: Path) -> dict[str, Any]:
    tensors, card = read_tensors(path, META_KEY)
    if not card:
        raise CheckpointError(
            f"{path} has no card of rs_biformer in its header; `rs-biformer export --format safetensors` writes files "
            "that have, and `rs-biformer convert` makes one of a folder that smp saved"
        )
    return {META_KEY: card, "state_dict": {NETWORK_PREFIX + name: value for name, value in tensors.items()}}


def write_safetensors(model: TrainedModel, path: str | Path) -> None:
    """Write a model as a file of safetensors, with all that its checkpoint carries as JSON in the header.

    The names of its weights are those of the network. `read_checkpoint` reads it, and a map made with it has the bytes
    of one made with the checkpoint.
    """
    write_tensors(Path(path), model.network.state_dict(), META_KEY, model.meta.to_json())


def _require_tensors(state: Any, path: Path) -> None:
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} has no weights: its state_dict is {shown(state)}")
    for name, value in state.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path} has weights that are called {shown(name)}; a name is text")
        if type(value) is not Tensor or value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise CheckpointError(f"{path} has a {type(value).__name__} for {shown(name)}; weights are dense tensors")


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> TrainedModel:
    """The model of a checkpoint, ready to predict.

    Raises CheckpointError with one line that says what is wrong with the file, or which part this version cannot build.
    """
    content, meta = read_checkpoint(path)
    weights, title = network_weights(content), f"{meta.encoder} + {meta.decoder}"
    try:
        network = _create_to_hold(weights, meta)
        network.load_state_dict(weights)
        model = TrainedModel(network, meta, Path(path))
    except _Misfit as error:
        raise CheckpointError(f"{path}: the weights do not fit {title}: {error}") from None
    except Exception as error:  # arguments from the file, handed to constructors of three libraries
        raise CheckpointError(f"{path} holds a {title} that cannot be built: {_first_line(error)}") from None
    return model.to(device)


class _Misfit(Exception):
    """Weights are not those of the network that they are said to be of."""


def _create_to_hold(weights: Mapping[str, Tensor], meta: CheckpointMeta) -> nn.Module:
    """The network with any weights, seen to have a place for these before it takes any memory. Raises _Misfit."""
    network = without_memory(meta.create_network)
    own = network.state_dict()
    if missing := [name for name in own if name not in weights]:
        raise _Misfit(f"{len(missing)} are missing, such as {missing[0]}")
    if strange := [name for name in weights if name not in own]:
        raise _Misfit(f"{len(strange)} have no place, such as {shown(strange[0])}")
    for name, value in own.items():
        given = weights[name]
        if given.shape != value.shape or given.is_floating_point() != value.is_floating_point() or given.is_complex():
            raise _Misfit(
                f"{name} is {given.dtype} {list(given.shape)} where it takes {value.dtype} {list(value.shape)}"
            )
    return network.to_empty(device="cpu") if _is_its_state(network) else meta.create_network()


def _is_its_state(network: nn.Module) -> bool:
    """Whether a network that knows its state dict knows everything: it has no other tensors, and none twice."""
    names = [name for name, _ in network.named_parameters(remove_duplicate=False)]
    names += [name for name, _ in network.named_buffers(remove_duplicate=False)]
    tensors = [*network.parameters(), *network.buffers()]
    if len(tensors) != len(names) or set(names) != set(network.state_dict()):
        return False
    return not any(_holds_tensors(value) for part in network.modules() for value in _own(part))


def _own(part: nn.Module) -> list[Any]:
    """Attributes of a module that are no registered ones."""
    return [value for name, value in vars(part).items() if name not in ("_parameters", "_buffers", "_modules")]


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_holds_tensors, value)))


def strip_checkpoint(path: str | Path) -> None:
    """Leave only what prediction needs in a checkpoint: a quarter of the size where Adam trained it.

    Raises CheckpointError like `read_checkpoint`. The file is replaced at once or not at all.
    """
    path = Path(path)
    content, _ = read_checkpoint(path)
    if path.suffix.lower() == SUFFIX:
        return  # it holds nothing else
    kept = {name: content[name] for name in (META_KEY, "state_dict", *_LIGHTNING_KEYS) if name in content}
    with replacing(path) as partial:
        write_archive(kept, partial)


def network_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's state dict out of the content of a checkpoint that `read_checkpoint` gave."""
    return {
        name.removeprefix(NETWORK_PREFIX): value
        for name, value in content["state_dict"].items()
        if name.startswith(NETWORK_PREFIX)
    }


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:160] or type(error).__name__
