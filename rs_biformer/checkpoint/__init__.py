"""What a trained model carries, and its files.

What a model says of itself is read without torch (meta.py), its network is built with it (trained.py): the names below
are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rs_biformer.checkpoint.meta import FORMAT, META_KEY, CheckpointMeta
    from rs_biformer.checkpoint.trained import (
        NETWORK_PREFIX,
        TrainedModel,
        load_checkpoint,
        network_weights,
        read_checkpoint,
        strip_checkpoint,
        write_safetensors,
    )

_HOMES = {
    "FORMAT": "meta",
    "META_KEY": "meta",
    "CheckpointMeta": "meta",
    "NETWORK_PREFIX": "trained",
    "TrainedModel": "trained",
    "load_checkpoint": "trained",
    "network_weights": "trained",
    "read_checkpoint": "trained",
    "strip_checkpoint": "trained",
    "write_safetensors": "trained",
}

__all__ = [
    "FORMAT",
    "META_KEY",
    "NETWORK_PREFIX",
    "CheckpointMeta",
    "TrainedModel",
    "load_checkpoint",
    "network_weights",
    "read_checkpoint",
    "strip_checkpoint",
    "write_safetensors",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
