"""What timm, torchvision and smp call the parameters of encoders that are theirs.

smp wraps most of timm's networks for their features, and timm's wrappers drop what gives no feature and rename what is
left: `stages.0.blocks` of a ConvNeXt becomes `stages_0.blocks`, a Hiera lies below `model`. The published files have
the names of the whole network. Which of them an encoder knows, and which belong to a head, is asked of timm itself.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import timm
from torch import Tensor, nn

from rs_biformer.nn.meta_device import without_memory

State = Mapping[str, Tensor]


def inner_names(encoder: nn.Module) -> dict[str, str]:
    """The published name of each tensor of an smp or timm encoder -> its name in the encoder's state dict.

    peft puts the layers that it adapts below names of its own.
    """
    whole = whole_network(encoder)
    ours = {name.removeprefix(_wrapper(encoder)).replace(".base_layer.", "."): name for name in encoder.state_dict()}
    if whole is None:
        return ours
    candidates = ((key, form) for key in whole.state_dict() for form in _forms(key))
    return {key: ours[form] for key, form in candidates if form in ours}


def _forms(key: str) -> Iterator[str]:
    """What timm's wrappers may call a parameter of the whole network."""
    yield key
    yield key.replace(".", "_", 1)
    yield f"model.{key}"
    yield f"body.{key}"


def _wrapper(encoder: nn.Module) -> str:
    return "model." if _timm_name(encoder) is not None else ""


def _timm_name(encoder: nn.Module) -> str | None:
    """The name of the network inside smp's wrapper of timm's."""
    name = getattr(encoder, "name", None)
    return name if isinstance(getattr(encoder, "model", None), nn.Module) and isinstance(name, str) else None


def whole_network(encoder: nn.Module) -> nn.Module | None:
    """The classifier that timm publishes weights of, without memory for them; None where the encoder is not timm's."""
    name = _timm_name(encoder)
    return None if name is None else _whole_network(name, getattr(encoder, "img_size", None))


@cache
def _whole_network(name: str, img_size: int | None) -> nn.Module:
    arguments: dict[str, Any] = {} if img_size is None else {"img_size": img_size}
    network: nn.Module = without_memory(lambda: timm.create_model(name, **arguments))
    return network.to("meta")


def converters(encoder: nn.Module) -> list[Callable[[State], State]]:
    """Functions that give a state dict in other authors' names those of timm's, or raise whatever they like.

    timm has one for most of its networks, for the files of their authors: DINO, MAE, CLIP and so on. Position
    embeddings come out resampled to the network's own grid.
    """
    by_itself = encoder if type(encoder).__module__.startswith("timm.models.") else None
    whole = whole_network(encoder) or by_itself
    found: list[Callable[[State], State]] = [
        lambda state: efficientnet_names(state, list(inner_names(encoder))),
        densenet_names,
    ]
    if isinstance(whole, nn.Module):
        module = sys.modules[type(whole).__module__]
        names = ("checkpoint_filter_fn", "_filter_fn")
        by_timm = next((getattr(module, name) for name in names if hasattr(module, name)), None)
        if by_timm is not None:
            found.append(lambda state: by_timm(dict(state), whole))
    return found


def densenet_names(state: State) -> State:
    """Torchvision's files of DenseNets say norm.1 where its networks, since Python modules may not, say norm1."""
    return {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d\.)", r"\1\2", key): value for key, value in state.items()}


def efficientnet_names(state: State, names: list[str]) -> State:
    """The names of lukemelas' EfficientNets, which many files of TensorFlow's weights have, as timm's.

    There blocks are numbered through, and the batch norms of a block are _bn0 to _bn2 whether or not the first is
    there. names: timm's names, whose stages and blocks are counted.
    """
    if not any(key.startswith("_blocks.") for key in state):
        return state
    places = list(dict.fromkeys(match[0] for name in names if (match := re.match(r"blocks\.\d+\.\d+", name))))
    expanded = {key.split(".")[1] for key in state if "_expand_conv" in key}
    renamed = {}
    for key, value in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(.+)", key)
        if block is None:
            top, _, leaf = key.partition(".")
            renamed[f"{EFFICIENTNET_ENDS.get(top, top)}.{leaf}"] = value
        elif int(block[1]) < len(places):
            part, _, leaf = block[2].rpartition(".")
            parts = EFFICIENTNET_PARTS if block[1] in expanded else EFFICIENTNET_PARTS | WITHOUT_EXPANSION
            renamed[f"{places[int(block[1])]}.{parts.get(part, part)}.{leaf}"] = value
        else:
            renamed[key] = value  # a deeper network: to be refused under its own name
    return renamed


EFFICIENTNET_ENDS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
EFFICIENTNET_PARTS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
}
WITHOUT_EXPANSION = {"_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
