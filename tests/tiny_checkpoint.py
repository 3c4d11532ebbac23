"""A trained model small enough for tests: a real checkpoint file, written without training."""

from pathlib import Path

import torch
from torch import nn

from rs_biformer.checkpoint import META_KEY, NETWORK_PREFIX, CheckpointMeta, TrainedModel
from rs_biformer.schema import PRESETS


def tiny_meta(encoder: str = "resnet18_biformer", window: int = 64, **changes: object) -> CheckpointMeta:
    """RGB uint8 scenes at 0.5 m with Vaihingen's classes."""
    facts: dict = {
        "encoder": encoder,
        "decoder": "unet_fusion",
        "model_arguments": {},
        "schema": PRESETS["vaihingen"],
        "bands": ("red", "green", "blue"),
        "dtype": "uint8",
        "mean": (120.0, 115.0, 110.0),
        "std": (60.0, 55.0, 50.0),
        "window": window,
        "gsd": 0.5,
        "version": "0.1.0",
    }
    return CheckpointMeta(**(facts | changes))


def write_checkpoint(path: Path, meta: CheckpointMeta | None = None) -> Path:
    """The file that training would write, with the weights that the seed gives."""
    meta = meta or tiny_meta()
    torch.manual_seed(0)
    state = {NETWORK_PREFIX + name: value for name, value in meta.create_network().state_dict().items()}
    torch.save({META_KEY: meta.to_dict(), "state_dict": state}, path)
    return path


def pointwise_model(meta: CheckpointMeta | None = None) -> TrainedModel:
    """A model of one 1x1 convolution: quick, and its map can be worked out without windows."""
    meta = meta or tiny_meta(window=32)
    torch.manual_seed(0)
    network = nn.Conv2d(len(meta.bands), len(meta.schema), 1)
    nn.init.normal_(network.weight, std=3)
    return TrainedModel(network, meta)
