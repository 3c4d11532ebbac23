"""What a trained model carries, and its files.

What a model says of itself is read without torch (meta.py), its network is built with it (trained.py): the names below
are imported on first use.
"""

from typing import TYPE_CHECKING

from rs_biformer.lazy import names_from

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

__getattr__ = names_from(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
