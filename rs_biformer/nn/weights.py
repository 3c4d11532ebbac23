"""Published checkpoints -> our parameters.

Each architecture says beside itself what the published names are called here (`published_key`; for smp's and timm's,
`encoders/published.py`). This file finds the part of a state dict that is the encoder's, whatever wrappers called it,
and insists that it fits.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from os import PathLike
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rs_biformer.errors import CheckpointError
from rs_biformer.nn.attention import bra, msda
from rs_biformer.nn.bands import fit_bands
from rs_biformer.nn.blocks import IRFFN, irffn_published_key
from rs_biformer.nn.encoders import biformer, coat, cswin
from rs_biformer.nn.encoders.library import library_encoder
from rs_biformer.nn.encoders.published import converters, inner_names, whole_network
from rs_biformer.nn.weight_files import read_state_dict

DEEPEST_PREFIX = 4
"""Names that wrappers put before those of an encoder, at most: model.module.encoder.model."""

AVERAGED = re.compile(r"teacher|ema|momentum|target")
"""In the name of the better of two alike parts of a file: authors publish the average of the weights in training."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of a checkpoint: names as in the file for used and left, as in the module for missing.

    adapted: in words, what had to be changed to fit. prefix: what the names used have before them in the file.
    """

    used: tuple[str, ...]
    left: tuple[str, ...]
    missing: tuple[str, ...]
    adapted: tuple[str, ...] = ()
    prefix: str = ""

    def __str__(self) -> str:
        below = f" (below {self.prefix.rstrip('.')})" if self.prefix else ""
        parts = [f"{len(self.used)} tensors used{below}"]
        if self.adapted:
            parts.append(f"adapted {'; '.join(self.adapted)}")
        parts.append(f"{len(self.left)} left{_tops(self.left)}")
        parts.append(f"{len(self.missing)} kept as initialised{_tops(self.missing)}")
        return ", ".join(parts)


def _tops(names: Sequence[str]) -> str:
    """The parts that names are of, in brackets; of many the first few."""
    tops = list(dict.fromkeys(name.split(".")[0] for name in names))
    return f" ({', '.join(tops[:4])}{', ...' if len(tops) > 4 else ''})" if tops else ""


class Layout(NamedTuple):
    """How published names map to a module's, and which of the module's parameters published files do not hold.

    converters: see `encoders.published`; tried where the names do not fit as they are.
    """

    translate: Callable[[str], str | None]
    may_lack: str = r"(?!)"
    converters: Sequence[Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]] = ()


def _library_layout(encoder: nn.Module) -> Layout:
    """Of smp's and timm's encoders. Heads are what timm's whole network has besides, or what lies beside all parts."""
    names, whole = inner_names(encoder), whole_network(encoder)
    heads = set() if whole is None else whole.state_dict().keys() - names.keys()
    parts = {name.split(".")[0] for name in names}
    own = set(names.values())

    def translate(key: str) -> str | None:
        if key in names:
            return names[key]
        if key in own:  # as the encoder itself calls it
            return key
        return None if key in heads or key.split(".")[0] not in parts else key

    return Layout(translate, may_lack=r".*\.lora_[AB]\..*", converters=converters(encoder))


def _part_layout(module: nn.Module, part: str) -> Layout:
    """Of a module around an encoder of smp's or timm's: published weights are those of the part."""
    inner = _layout(module.get_submodule(part))

    def translate(key: str) -> str | None:
        if key in own:
            return key
        name = inner.translate(key)
        return None if name is None else f"{part}.{name}"

    own = set(module.state_dict())
    return Layout(translate, rf"(?!{part}\.).*|{part}\.({inner.may_lack})", inner.converters)


LAYOUTS: dict[type[nn.Module], Layout] = {
    bra.BiLevelRoutingAttention: Layout(bra.published_key),
    msda.MultiScaleDilatedAttention: Layout(msda.published_key),
    IRFFN: Layout(irffn_published_key),
    biformer.BiFormer: Layout(biformer.published_key, r"norms\..*"),
    cswin.CSWin: Layout(cswin.published_key, r"stages\.[012]\.norm\..*"),
    coat.CoaT: Layout(coat.published_key),
}
"""For other modules see `_layout`."""


def _layout(module: nn.Module) -> Layout:
    if type(module) in LAYOUTS:
        return LAYOUTS[type(module)]
    part = getattr(module, "published_part", None)
    return _library_layout(module) if part is None else _part_layout(module, part)


LOOKALIKES: dict[str, Callable[[], nn.Module]] = {
    **biformer.VARIANTS,
    **cswin.VARIANTS,
    **coat.VARIANTS,
    **{name: partial(library_encoder, name) for name in ("resnet18", "resnet34", "resnet50", "resnet101")},
}
"""Architectures that a file which does not fit is compared with."""


def load_published_weights(
    module: nn.Module,
    state_dict_or_path: Mapping[str, Tensor] | str | PathLike[str],
    bands: Sequence[str] | None = None,
    weights_bands: Sequence[str] | None = None,
) -> LoadReport:
    """Fill an encoder, or an attention or feed-forward module alone, from weights in their authors' layout.

    state_dict_or_path: a state dict, or a .pth, .ckpt or .safetensors file of one, bare or in a container
    (`weight_files.CONTAINERS`): of a classifier as timm, torchvision, smp and the authors publish it, of a whole
    segmenter or detector, or of self-supervised training. The encoder's tensors are found below whatever prefix most of
    them have. Nothing in a file is executed. Classifiers, necks and heads are left.
    bands, weights_bands: names of the module's and of the file's bands; the first convolution is fitted to the former
    as `bands.fit_bands` says.
    Raises CheckpointError, and changes nothing, when the file is unreadable or does not fit, saying what it looks like.
    """
    source = "the state dict" if isinstance(state_dict_or_path, Mapping) else str(state_dict_or_path)
    published = read_state_dict(state_dict_or_path, source)
    matched, report, problem = _match(module, published, bands, weights_bands)
    if problem:
        raise CheckpointError(
            f"{source} does not fit {_called(module)}: {problem}; it looks like {_looks_like(published)}"
        )
    # Not the module's own: smp's encoders have load_state_dict overridden, each in its own way.
    nn.Module.load_state_dict(module, matched, strict=False)
    return report


def _called(module: nn.Module) -> str:
    name = getattr(module, "name", None)
    return name if isinstance(name, str) else type(module).__name__


Match = tuple[dict[str, Tensor], LoadReport, str]


def _match(
    module: nn.Module,
    published: Mapping[str, Tensor],
    bands: Sequence[str] | None = None,
    weights_bands: Sequence[str] | None = None,
) -> Match:
    """The tensors for `module` by its own names, the report, and why the file does not fit ('' where it does)."""
    layout, ours = _layout(module), module.state_dict()
    fit = partial(_fit, count=_bands_of(module), bands=bands, before=weights_bands)
    prefix = _prefix(published, layout, ours)
    first = _match_below(published, published, prefix, layout, ours, fit)
    if not first[2]:
        return first
    for below in dict.fromkeys((prefix, *_large_prefixes(published))):
        state = {key.removeprefix(below): value for key, value in published.items() if key.startswith(below)}
        for convert in layout.converters:
            try:
                converted = {key: value for key, value in convert(state).items() if isinstance(value, Tensor)}
            except Exception:  # written for the files of one author, they fail on others in any way
                continue
            found = _match_below(converted, state, "", layout, ours, fit)
            if not found[2]:
                return found[0], _with_prefix(found[1], below, published), ""
    return first


def _match_below(
    published: Mapping[str, Tensor],
    original: Mapping[str, Tensor],
    prefix: str,
    layout: Layout,
    ours: Mapping[str, Tensor],
    fit: Callable[[str, Tensor, Tensor], tuple[Tensor, str] | None],
) -> Match:
    """As `_match`, for names below a prefix; `original` is the state dict before anything was converted."""
    matched: dict[str, Tensor] = {}
    used, strange, adapted = [], [], []
    for key, value in published.items():
        name = layout.translate(key.removeprefix(prefix)) if key.startswith(prefix) else None
        if name is None:
            continue
        fitted = fit(name, value, ours[name]) if name in ours else None
        if fitted is None:
            strange.append(f"{key} {tuple(value.shape)}")
            continue
        matched[name], how = fitted
        used.append(key)
        if key in original and original[key].shape != value.shape:
            how = f"{tuple(original[key].shape)} resampled to {tuple(value.shape)}"
        adapted += [f"{key}: {how}"] if how else []
    missing = [name for name in ours if name not in matched and not name.endswith("num_batches_tracked")]
    lacking = [name for name in missing if not re.fullmatch(layout.may_lack, name)]
    problem = ""
    if strange:
        problem = f"{len(strange)} of its tensors have no place, such as {strange[0]}"
    elif lacking:
        problem = f"it lacks {len(lacking)} tensors, such as {lacking[0]}"
    elif not used:
        problem = "none of its tensors has a place"
    taken = set(used)
    left = tuple(key for key in published if key not in taken)
    return matched, LoadReport(tuple(used), left, tuple(missing), tuple(adapted), prefix), problem


def _with_prefix(report: LoadReport, prefix: str, published: Mapping[str, Tensor]) -> LoadReport:
    beside = tuple(key for key in published if not key.startswith(prefix))
    return LoadReport(report.used, (*report.left, *beside), report.missing, report.adapted, prefix)


def _prefix(published: Mapping[str, Tensor], layout: Layout, ours: Mapping[str, Tensor]) -> str:
    """What stands before the encoder's names in a file: the prefix below which most of them are found."""
    found: dict[str, int] = {"": 0}
    for key, value in published.items():
        parts = key.split(".")
        for depth in range(min(DEEPEST_PREFIX, len(parts) - 1) + 1):
            name = layout.translate(".".join(parts[depth:]))
            if name is not None and name in ours and ours[name].shape[2:] == value.shape[2:]:
                prefix = ".".join([*parts[:depth], ""]) if depth else ""
                found[prefix] = found.get(prefix, 0) + 1
    return max(found, key=lambda prefix: (found[prefix], bool(AVERAGED.search(prefix)), -len(prefix)))


def _large_prefixes(published: Mapping[str, Tensor]) -> list[str]:
    """Prefixes below which most of a file lies, for names that are not known yet."""
    counts: dict[str, int] = {"": len(published)}
    for key in published:
        parts = key.split(".")[:-1][:DEEPEST_PREFIX]
        for depth in range(1, len(parts) + 1):
            prefix = ".".join([*parts[:depth], ""])
            counts[prefix] = counts.get(prefix, 0) + 1
    return [prefix for prefix, count in counts.items() if 2 * count >= len(published)]


def _bands_of(module: nn.Module) -> int | None:
    """How many bands an encoder takes; None for a module that is none."""
    count = getattr(module, "_in_channels", None)
    if count is None and hasattr(module, "out_channels"):
        count = list(module.out_channels)[0]  # type: ignore[arg-type]
    return count if isinstance(count, int) else None


def _fit(
    name: str,
    value: Tensor,
    own: Tensor,
    count: int | None,
    bands: Sequence[str] | None,
    before: Sequence[str] | None,
) -> tuple[Tensor, str] | None:
    """`value` in the shape of `own` and how it was changed, None where it cannot be.

    1x1 convolutions are linear layers; a first convolution may be fitted to other bands.
    """
    alike = value.ndim == own.ndim == 4 and (len(value), *value.shape[2:]) == (len(own), *own.shape[2:])
    if alike and own.shape[1] == count and (value.shape[1] != 1 or count == 1):
        return fit_bands(value, count, bands, before)
    if value.shape == own.shape:
        return value, ""
    if value.numel() == own.numel() and value.squeeze().shape == own.squeeze().shape:
        return value.reshape(own.shape), ""
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
