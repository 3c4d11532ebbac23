import csv
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from tiny_index import SCHEMA, write_tiny_index

from rs_biformer.checkpoint import CheckpointMeta
from rs_biformer.data.datamodule import TileDataModule
from rs_biformer.data.index import TileIndex
from rs_biformer.errors import ConfigError
from rs_biformer.nn.losses import create_loss
from rs_biformer.train.checks import check_batch, try_step, warnings_about
from rs_biformer.train.config import DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from rs_biformer.train.run import describe, train
from rs_biformer.train.task import SegmentationTask


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write_tiny_index(tmp_path_factory.mktemp("scenes"), {"a": "train", "b": "val"})


def config_of(index, out, **trainer) -> TrainConfig:
    quietly = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1, "max_epochs": 1}
    return TrainConfig(
        model=ModelConfig(encoder="resnet18_biformer", arguments={"drop_path": 0.5}),
        data=DataConfig(index=str(index), batch_size=2, workers=0),
        trainer=quietly | trainer,
        out=str(out),
        images_every=0,
    )


def make_task(index) -> tuple[SegmentationTask, dict[str, torch.Tensor]]:
    meta: CheckpointMeta = describe(TileIndex.read(index).manifest, ModelConfig("resnet18_biformer", arguments={}))
    task = SegmentationTask(
        meta.create_network(),
        create_loss({"cross_entropy": 1.0}),
        meta,
        optimizer=OptimizerConfig(),
        schedule=ScheduleConfig(),
    )
    return task.train(), TileDataModule(TileIndex.read(index), DataConfig(batch_size=2, workers=0)).example()


def losses(out) -> list[str]:
    with (out / "metrics.csv").open(newline="") as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row.get("train/loss")]


def test_the_first_batch_is_tried_and_leaves_no_trace(index, tmp_path, monkeypatch):
    tried = []
    with_check = train(config_of(index, tmp_path / "with"))
    monkeypatch.setattr("rs_biformer.train.checks.try_step", lambda *_: tried.append(1))
    without = train(config_of(index, tmp_path / "without"))
    assert tried == [1] and len(losses(with_check)) == 2
    assert losses(with_check) == losses(without)  # drop_path draws random numbers in every step


def test_a_trial_step_restores_batch_statistics_and_gradients(index):
    task, batch = make_task(index)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    state = torch.random.get_rng_state()
    try_step(task, batch)
    assert torch.equal(state, torch.random.get_rng_state())
    for name, value in task.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in task.parameters())


def test_a_loss_or_a_gradient_that_is_not_finite_is_told(index):
    task, batch = make_task(index)
    next(task.model.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(ConfigError, match="the gradient of encoder.* is not finite"):
        try_step(task, batch)
    with torch.no_grad():
        next(task.model.parameters()).fill_(torch.nan)
    with pytest.raises(ConfigError, match="the loss of the first batch is nan"):
        try_step(task, batch)


def test_a_batch_that_the_device_cannot_hold_says_what_to_lower(index, monkeypatch):
    task, batch = make_task(index)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(task, "training_loss", full)
    with pytest.raises(ConfigError, match="a batch of 2 windows does not fit .* lower data.batch_size"):
        try_step(task, batch)


def test_files_that_changed_after_tiling_are_told_before_training(tmp_path):
    index = write_tiny_index(tmp_path / "scenes", {"a": "train", "b": "val"})
    with rasterio.open(tmp_path / "scenes" / "a.tif", "r+") as scene:
        scene.write(np.full((3, 128, 128), 255, np.uint8))
        scene.write(np.zeros((128, 128), np.uint8), 2)
    with pytest.raises(ConfigError, match=r"band 1 has a mean of 255 .* tile again") as found:
        narrow = TileIndex.read(index)
        replace(narrow, manifest=replace(narrow.manifest, std=(10.0,) * 3)).write(index)
        train(config_of(index, tmp_path / "run"))
    assert "standard deviations apart" in str(found.value)
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_labels_beyond_the_schema_are_told(index):
    batch = TileDataModule(TileIndex.read(index), DataConfig(batch_size=2, workers=0)).example()
    check_batch(batch, (120.0,) * 3, (50.0,) * 3, SCHEMA)
    batch["label"][0, 0, 0] = 3
    with pytest.raises(ConfigError, match="a label is 3 and the schema has 3 classes"):
        check_batch(batch, (120.0,) * 3, (50.0,) * 3, SCHEMA)


def test_classes_that_cannot_be_learned_or_measured_are_named(index):
    whole = TileIndex.read(index)
    is_train = whole.table.split == "train"
    histogram = whole.table.histogram.copy()
    histogram[is_train, 1] = 0
    histogram[~is_train, 2] = 0
    data = TileDataModule(
        replace(whole, table=replace(whole.table, histogram=histogram)), DataConfig(batch_size=2, workers=0)
    )
    assert list(warnings_about(data)) == [
        "no training pixel is middle: such a class cannot be learned",
        "no validation pixel is bright: val/mean_iou says nothing about it",
    ]
    assert not list(warnings_about(TileDataModule(whole, DataConfig(batch_size=2, workers=0))))
    overlapping = replace(whole, manifest=replace(whole.manifest, shared_ground="train and val share 1 ha"))
    (line,) = warnings_about(TileDataModule(overlapping, DataConfig(batch_size=2, workers=0)))
    assert line.endswith("figures flatter: train and val share 1 ha")


def test_a_dry_run_goes_through_everything_and_writes_nothing(tmp_path):
    index = write_tiny_index(tmp_path / "scenes", {"a": "train", "b": "val"}, size=(192, 256))
    lines: list[str] = []
    train(config_of(index, tmp_path / "run"), fast=True, say=lines.append)
    assert not (tmp_path / "run").exists()
    assert "nothing was written" in lines[-1] and "minutes of training per epoch" in lines[-1]
