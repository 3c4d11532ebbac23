"""Published checkpoints -> our parameters.

Each architecture says beside itself what the published names are called here (`published_key`); this file opens the
checkpoint, finds the state dict in it, and insists that it fits.
"""

import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from rs_biformer.errors import CheckpointError
from rs_biformer.nn.attention import bra, msda
from rs_biformer.nn.blocks import IRFFN, irffn_published_key
from rs_biformer.nn.encoders import biformer, coat, cswin, resnet_hybrid
from rs_biformer.nn.encoders.library import library_encoder

CONTAINERS = ("state_dict_ema", "model", "state_dict")
"""Keys under which authors keep the state dict in a file, best first: where there are two, they publish the average."""

BACKBONE = re.compile(r"^(?:.*\.)?backbone\.")
"""Where mmsegmentation, mmdetection and detectron2 keep the encoder; beside it are necks and heads."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of a checkpoint: names as in the file for used and left, as in the module for missing."""

    used: tuple[str, ...]
    left: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.used)} tensors used, {len(self.left)} left, {len(self.missing)} kept as initialised"


class Layout(NamedTuple):
    """How published names map to a module's, and which of the module's parameters published files do not hold."""

    translate: Callable[[str], str | None]
    may_lack: str = r"(?!)"


def _library_key(key: str) -> str | None:
    return None if key.startswith(("fc.", "head.", "classifier.", "last_linear.")) else key


LAYOUTS: dict[type[nn.Module], Layout] = {
    bra.BiLevelRoutingAttention: Layout(bra.published_key),
    msda.MultiScaleDilatedAttention: Layout(msda.published_key),
    IRFFN: Layout(irffn_published_key),
    biformer.BiFormer: Layout(biformer.published_key, r"norms\..*"),
    cswin.CSWin: Layout(cswin.published_key, r"stages\.[012]\.norm\..*"),
    coat.CoaT: Layout(coat.published_key),
    resnet_hybrid.ResNetHybrid: Layout(resnet_hybrid.published_key, r"stages\..*"),
}
"""For other modules, such as smp's encoders, names are taken as they are and classifiers are left."""

LOOKALIKES: dict[str, Callable[[], nn.Module]] = {
    **biformer.VARIANTS,
    **cswin.VARIANTS,
    **coat.VARIANTS,
    **{name: partial(library_encoder, name) for name in ("resnet18", "resnet34", "resnet50", "resnet101")},
}
"""Architectures that a file which does not fit is compared with."""


def load_published_weights(
    module: nn.Module, state_dict_or_path: Mapping[str, Tensor] | str | PathLike[str]
) -> LoadReport:
    """Fill an encoder, or an attention or feed-forward module alone, from weights in their authors' layout.

    state_dict_or_path: a state dict, or a .pth or .safetensors file of one, bare or in one of CONTAINERS; of an
    ImageNet classifier, or of a segmenter or detector of OpenMMLab's or Detectron2's code, whose backbone is taken.
    Files are opened with weights_only=True: nothing in them is executed. Classifiers, necks and heads are left. The
    first convolution of 3-band weights is fitted to any number of bands by repeating the bands, scaled to keep the
    response.
    Raises CheckpointError, and changes nothing, when the file is unreadable or does not fit, saying what it looks like.
    """
    source = "the state dict" if isinstance(state_dict_or_path, Mapping) else str(state_dict_or_path)
    published = _state_dict(state_dict_or_path, source)
    matched, report, problem = _match(module, published)
    if problem:
        raise CheckpointError(
            f"{source} does not fit {type(module).__name__}: {problem}; it looks like {_looks_like(published)}"
        )
    module.load_state_dict(matched, strict=False)
    return report


def _state_dict(source: Mapping[str, Tensor] | str | PathLike[str], name: str) -> dict[str, Tensor]:
    content = source if isinstance(source, Mapping) else _read(Path(source))
    for container in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            content = content[container]
            break
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{name} holds a {type(content).__name__}; a state dict of tensors is needed")
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{name} holds no tensors, bare or under {', '.join(CONTAINERS)}; give a state dict")
    return tensors


def _read(path: Path) -> object:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give the path of a .pth or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with safe_globals([(_NotATensor, name) for name in _other_types(path)]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]  # torch goes on with advice that would run the file
        raise CheckpointError(f"{path} cannot be read as weights alone ({reason}); save its state dict anew") from error


class _NotATensor:
    """Stands for what authors save beside the weights, such as their command line; what it was is never looked up."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _other_types(path: Path) -> list[str]:
    """Names of the types and functions in a file that are not those of weights; none are imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols of files that are no checkpoints anyway
        try:
            return get_unsafe_globals_in_checkpoint(path)
        except ValueError:  # a file from before torch 1.6, or none of torch's at all
            return []


def _bare(keys: Iterable[str]) -> dict[str, str]:
    """Names of an encoder's parameters -> those in the file, without what wrappers put before them.

    In the file of a whole detector or segmenter these are the names below its backbone alone.
    """
    keys = list(keys)
    below = {BACKBONE.sub("", key): key for key in keys if BACKBONE.match(key)}
    return below or {key.removeprefix("module."): key for key in keys}


def _match(module: nn.Module, published: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport, str]:
    """The tensors for `module` by its own names, the report, and why the file does not fit ('' where it does)."""
    layout = LAYOUTS.get(type(module), Layout(_library_key))
    ours = module.state_dict()
    matched: dict[str, Tensor] = {}
    used, strange = [], []
    for bare, key in _bare(published).items():
        name, value = layout.translate(bare), published[key]
        if name is not None and name not in ours and f"model.{name}" in ours:  # smp's wrapper around timm
            name = f"model.{name}"
        if name is None:
            continue
        if name not in ours or (fitted := _fit(value, ours[name].shape)) is None:
            strange.append(f"{key} {tuple(value.shape)}")
        else:
            matched[name] = fitted
            used.append(key)
    missing = [name for name in ours if name not in matched and not name.endswith("num_batches_tracked")]
    lacking = [name for name in missing if not re.fullmatch(layout.may_lack, name)]
    problem = ""
    if strange:
        problem = f"{len(strange)} of its tensors have no place, such as {strange[0]}"
    elif lacking:
        problem = f"it lacks {len(lacking)} tensors, such as {lacking[0]}"
    left = published.keys() - set(used)
    report = LoadReport(tuple(used), tuple(key for key in published if key in left), tuple(missing))
    return matched, report, problem


def _fit(value: Tensor, shape: torch.Size) -> Tensor | None:
    """`value` in the shape wanted, None where it cannot be: 1x1 convolutions are linear layers, 3 bands may be more."""
    if value.shape == shape:
        return value
    if value.numel() == shape.numel() and value.squeeze().shape == torch.Size(n for n in shape if n != 1):
        return value.reshape(shape)
    if value.ndim == 4 and value.shape[1] == 3 and shape == (len(value), shape[1], *value.shape[2:]):
        bands = shape[1]
        return value[:, torch.arange(bands) % 3] * (3 / bands)
    return None


def _looks_like(published: Mapping[str, Tensor]) -> str:
    for name, build in {**_operators(published), **LOOKALIKES}.items():
        with torch.device("meta"):
            module = build()
        if not _match(module, published)[2]:
            return f"{name}; make that instead"
    return "no architecture known here"


def _operators(published: Mapping[str, Tensor]) -> dict[str, Callable[[], nn.Module]]:
    """Attention and feed-forward modules of the widths that occur in a file."""
    widths = sorted({value.shape[1] for value in published.values() if value.ndim > 1 and value.shape[1] > 1})
    if len(widths) > 2:
        return {}
    operators: dict[str, Callable[[], nn.Module]] = {}
    for dim in widths:
        operators[f"BiLevelRoutingAttention({dim}, num_heads)"] = partial(bra.BiLevelRoutingAttention, dim, 1)
        operators[f"MultiScaleDilatedAttention({dim}, num_heads)"] = partial(
            msda.MultiScaleDilatedAttention, dim, 1, dilations=(1,)
        )
    for dim, hidden in permutations(widths, 2):
        operators[f"IRFFN({dim}, {hidden})"] = partial(IRFFN, dim, hidden)
    return operators
