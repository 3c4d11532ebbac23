"""A training that was begun: for tests of what goes on from its last.ckpt."""

from pathlib import Path
from typing import Any

import torch

from rs_biformer.checkpoint import CheckpointMeta, read_checkpoint
from rs_biformer.train.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from rs_biformer.train.run import train


def run_of(index: Path, out: Path, *, epochs: int = 1, **options: Any) -> TrainConfig:
    """Two steps of two windows an epoch, of a network of 0.3 million parameters, with averaged weights."""
    trainer = {"max_epochs": epochs, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
    return TrainConfig(
        model=ModelConfig(encoder="lcnet_035", decoder="segformer"),
        data=DataConfig(index=str(index), batch_size=2, workers=0),
        optimizer=OptimizerConfig(learning_rate=0.01, ema=0.9),
        trainer=trainer,
        out=str(out),
        images_every=0,
        **options,
    )


def begun_run(index: Path, out: Path) -> tuple[CheckpointMeta, dict[str, Any]]:
    """What a run of one epoch is of, and the content of its last.ckpt."""
    path = train(run_of(index, out)) / "last.ckpt"
    return read_checkpoint(path)[1], torch.load(path, weights_only=True)
