import csv
import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from lightning_fabric.loggers import tensorboard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_index import write_tiny_index

from rs_biformer.checkpoint import load_checkpoint, read_checkpoint
from rs_biformer.data.augment import Augmentation
from rs_biformer.data.dataset import TileDataset
from rs_biformer.data.index import TileIndex
from rs_biformer.data.reader import SceneReader
from rs_biformer.errors import CheckpointError, ConfigError, RasterError, RsBiformerError
from rs_biformer.nn.model import create_encoder
from rs_biformer.train import folder, run
from rs_biformer.train.config import DataConfig, LossConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from rs_biformer.train.run import train

AUGMENT = Augmentation(d4=True, scale=0.2, brightness=0.1)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    return write_tiny_index(tmp_path_factory.mktemp("scenes"), {"a": "train", "b": "val"})


def config_of(
    index: Path, out: Path, *, encoder: str = "mobilenet_v2", samples_per_epoch: int | None = None, **options
) -> TrainConfig:
    """Two epochs of two steps of two windows of 64 px."""
    data = dict(index=str(index), batch_size=2, workers=options.pop("workers", 0), samples_per_epoch=samples_per_epoch)
    trainer = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
    return TrainConfig(
        model=ModelConfig(encoder=encoder),
        data=DataConfig(**data, balance=0.5, jitter=0.3, augment=AUGMENT),
        loss=LossConfig(terms={"cross_entropy": 1.0, "dice": 1.0}, balance=0.5),
        trainer=trainer | options.pop("trainer", {}),
        out=str(out),
        **{"optimizer": OptimizerConfig(name="sgd", learning_rate=0.01), "images_every": 0} | options,
    )


def column(out: Path, name: str) -> list[str]:
    with (out / "metrics.csv").open(newline="") as file:
        return [row[name] for row in csv.DictReader(file) if row.get(name)]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).network.state_dict()


def assert_same_weights(one: Path, other: Path) -> None:
    for (name, first), second in zip(weights(one).items(), weights(other).values(), strict=True):
        assert torch.equal(first, second), name


def test_a_run_leaves_everything_in_its_folder(index, tmp_path):
    lines: list[str] = []
    out = train(config_of(index, tmp_path / "run", encoder="resnet18_biformer", images_every=1), say=lines.append)
    assert {"config.yaml", "metrics.csv", "best.ckpt", "last.ckpt"} <= {path.name for path in out.iterdir()}
    assert len(column(out, "train/loss")) == 4 and len(column(out, "val/mean_iou")) == 2
    assert set(column(out, "epoch")) == {"0", "1"}
    assert any("4 training and 4 validation windows" in line for line in lines)
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    assert "val/iou/middle" in events.Tags()["scalars"] and events.Tags()["images"] == ["val/samples"]

    model = load_checkpoint(out / "best.ckpt")
    assert model.meta.encoder == "resnet18_biformer" and model.bands == ("b0", "b1", "b2")
    best = max(float(value) for value in column(out, "val/mean_iou"))
    assert model.meta.metrics["mean_iou"] == pytest.approx(best) and model.meta.protocol == "validation-windows"
    assert model(torch.zeros(1, 3, 50, 70, dtype=torch.uint8)).shape == (1, 3, 50, 70)
    assert "optimizer_states" not in read_checkpoint(out / "best.ckpt")[0]


def test_a_run_without_tensorboard_keeps_its_figures_and_says_how_to_have_curves(index, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "_TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr(tensorboard, "_TENSORBOARDX_AVAILABLE", False)
    lines: list[str] = []
    config = config_of(index, tmp_path / "run", images_every=1, trainer={"max_epochs": 1})
    assert config.loggers == ["tensorboard"]
    out = train(config, say=lines.append)
    assert len(column(out, "val/mean_iou")) == 1 and not (out / "tensorboard").exists()
    assert sum("metrics.csv; for curves: pip install 'rs_biformer[tensorboard]'" in line for line in lines) == 1
    assert not any("--logdir" in line for line in lines)


def test_an_auxiliary_head_is_trained_and_its_checkpoint_predicts_without_it(index, tmp_path):
    config = config_of(index, tmp_path / "run", trainer={"max_epochs": 1})
    config = replace(config, model=replace(config.model, arguments={"auxiliary": True}))
    out = train(config)
    other = train(replace(config, out=str(tmp_path / "other"), loss=replace(config.loss, auxiliary=0.0)))
    assert column(out, "train/loss")[0] > column(other, "train/loss")[0]
    network = load_checkpoint(out / "last.ckpt").network
    network.auxiliary.register_forward_hook(lambda *_: pytest.fail("the auxiliary head ran"))
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_the_same_seed_gives_the_same_losses_whatever_the_workers(index, tmp_path):
    one = train(config_of(index, tmp_path / "one"))
    other = train(config_of(index, tmp_path / "other", workers=2))
    assert column(one, "train/loss") == column(other, "train/loss") and len(set(column(one, "train/loss"))) == 4
    assert_same_weights(one / "last.ckpt", other / "last.ckpt")


def test_another_seed_gives_other_losses(index, tmp_path):
    one = train(config_of(index, tmp_path / "one", trainer={"max_epochs": 1}))
    other = train(config_of(index, tmp_path / "other", trainer={"max_epochs": 1}, seed=1))
    assert column(one, "train/loss") != column(other, "train/loss")


@pytest.mark.parametrize(("workers", "ema", "stopped_at"), [(0, 0.9, 2), (2, 0.0, 3), (2, 0.0, 4), (0, 0.0, 5)])
def test_a_terminated_run_goes_on_after_its_last_step(index, tmp_path, monkeypatch, workers, ema, stopped_at):
    """Steps 1 to 4 make the first epoch; stopped after the fourth, its validation is left out."""
    options = dict(workers=workers, optimizer=OptimizerConfig(learning_rate=0.01, ema=ema))
    options |= dict(schedule=ScheduleConfig(name="cosine"), samples_per_epoch=8)
    whole = train(config_of(index, tmp_path / "whole", **options))
    step = run.SegmentationTask.training_step

    def terminated(self, batch, batch_idx):
        if self.global_step == stopped_at - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    broken, lines = config_of(index, tmp_path / "broken", **options, resume="auto"), []
    with monkeypatch.context() as patch:
        patch.setattr(run.SegmentationTask, "training_step", terminated)
        with pytest.raises(SystemExit) as stopped:
            train(broken, say=lines.append)
    assert stopped.value.code == 143 and f"terminated after step {stopped_at}" in lines[-1]
    out = train(broken)
    for name in ("train/loss", "train/learning_rate"):
        assert column(out, name) == column(whole, name), name
    assert column(out, "val/mean_iou") == column(whole, "val/mean_iou")[stopped_at == 4 :]
    assert_same_weights(out / "last.ckpt", whole / "last.ckpt")


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_run_terminated_during_a_validation_goes_on_with_the_same_weights(index, tmp_path, monkeypatch, ema):
    options = dict(optimizer=OptimizerConfig(learning_rate=0.01, ema=ema), trainer={"num_sanity_val_steps": 0})
    whole = train(config_of(index, tmp_path / "whole", **options))
    broken = config_of(index, tmp_path / "broken", **options)
    step = run.SegmentationTask.validation_step

    def terminated(self, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(run.SegmentationTask, "validation_step", terminated)
        with pytest.raises(SystemExit):
            train(broken)
    out = train(broken)
    assert column(out, "train/loss") == column(whole, "train/loss")
    assert column(out, "val/mean_iou")[-1] == column(whole, "val/mean_iou")[-1]
    assert_same_weights(out / "last.ckpt", whole / "last.ckpt")


@pytest.mark.parametrize(("ema", "workers"), [(0.0, 0), (0.9, 0), (0.0, 2)])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(index, tmp_path, monkeypatch, ema, workers):
    options = dict(
        workers=workers, optimizer=OptimizerConfig(learning_rate=0.01, ema=ema), schedule=ScheduleConfig(name="cosine")
    )
    whole = train(config_of(index, tmp_path / "whole", **options))

    broken = config_of(index, tmp_path / "broken", **options, resume="auto")
    step = run.SegmentationTask.training_step

    def fails_in_the_second_epoch(self, batch, batch_idx):
        if self.current_epoch == 1 and batch_idx == 1:
            raise RsBiformerError("the power went")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(run.SegmentationTask, "training_step", fails_in_the_second_epoch)
        with pytest.raises(RsBiformerError, match="the power went"):
            train(broken)
    lines: list[str] = []
    out = train(broken, say=lines.append)  # the same command continues
    assert f"resuming from {out / 'last.ckpt'}" in lines
    for name in ("train/loss", "train/learning_rate", "val/mean_iou", "epoch", "step"):
        assert column(out, name) == column(whole, name), name
    assert_same_weights(out / "last.ckpt", whole / "last.ckpt")
    assert_same_weights(out / "best.ckpt", whole / "best.ckpt")


def test_averaged_weights_are_what_checkpoints_hold_and_validation_measures(index, tmp_path):
    options = dict(trainer={"max_epochs": 1}, images_every=0)
    plain = train(config_of(index, tmp_path / "plain", **options))
    ema = OptimizerConfig(name="sgd", learning_rate=0.01, ema=0.999)
    averaged = train(config_of(index, tmp_path / "averaged", optimizer=ema, **options))
    assert column(plain, "train/loss") == column(averaged, "train/loss")
    assert column(plain, "val/loss") != column(averaged, "val/loss")
    content, _ = read_checkpoint(averaged / "last.ckpt")
    current = {name.removeprefix("model."): value for name, value in content["current_model_state"].items()}
    raw, mean = weights(plain / "last.ckpt"), weights(averaged / "last.ckpt")
    changed = [name for name in raw if name.endswith("weight") and not torch.equal(raw[name], mean[name])]
    assert len(changed) > 10 and all(torch.equal(raw[name], current[name]) for name in raw)
    assert_same_weights(averaged / "best.ckpt", averaged / "last.ckpt")


def test_without_validation_windows_only_the_last_checkpoint_is_kept(tmp_path):
    index = write_tiny_index(tmp_path / "scenes", {"a": "train"})
    lines: list[str] = []
    out = train(config_of(index, tmp_path / "run", trainer={"max_epochs": 1}), say=lines.append)
    assert (out / "last.ckpt").is_file() and not (out / "best.ckpt").exists()
    assert any("no val windows" in line for line in lines)


def test_a_folder_that_holds_a_run_is_not_overwritten(index, tmp_path):
    (tmp_path / "metrics.csv").touch()
    with pytest.raises(ConfigError, match="holds another run.*--resume auto"):
        train(config_of(index, tmp_path))


def test_a_run_of_another_model_is_not_resumed(index, tmp_path):
    out = train(config_of(index, tmp_path / "run", trainer={"max_epochs": 1}))
    with pytest.raises(CheckpointError, match="another encoder .mobilenet_v2 then, resnet18 now"):
        train(config_of(index, out, encoder="resnet18", resume="auto"))
    with pytest.raises(CheckpointError, match="holds weights alone.*last.ckpt"):
        train(config_of(index, out, resume=str(out / "best.ckpt")))
    with pytest.raises(CheckpointError, match="no checkpoint .*nowhere.ckpt"):
        train(config_of(index, out, resume="nowhere.ckpt"))


def test_the_same_command_continues_an_unfinished_run_and_nothing_else(index, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(run, "_finish", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config_of(index, out))
    lines: list[str] = []
    with pytest.raises(ConfigError, match="an unfinished run of another config.*--resume auto"):
        train(config_of(index, out, seed=1))
    train(config_of(index, out), say=lines.append)
    assert f"resuming from {out / 'last.ckpt'}" in lines
    with pytest.raises(ConfigError, match="holds another run.*--resume auto"):  # it has ended
        train(config_of(index, out))
    longer = config_of(index, out, trainer={"max_epochs": 3}, resume="auto")
    train(longer)
    assert len(column(out, "val/mean_iou")) == 3


def test_a_config_in_the_run_folder_keeps_its_comments_and_its_link(index, tmp_path):
    out, theirs = tmp_path / "run", tmp_path / "mine.yaml"
    config = config_of(index, out, trainer={"max_epochs": 1})
    out.mkdir()
    (out / "config.yaml").write_text("# by hand\n" + config.to_yaml())
    train(config)
    assert (out / "config.yaml").read_text().startswith("# by hand")
    train(replace(config, trainer=config.trainer | {"max_epochs": 2}, resume="auto"))
    assert (out / "config.1.yaml").read_text().startswith("# by hand")
    assert yaml.safe_load((out / "config.yaml").read_text())["trainer"]["max_epochs"] == 2
    theirs.write_text("# linked\nseed: 3\n")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").symlink_to(theirs)
    train(replace(config, out=str(other)))
    assert theirs.read_text() == "# linked\nseed: 3\n" and (other / "config.1.yaml").read_text() == theirs.read_text()


@pytest.mark.parametrize("tail", ["0.5,1,", "0.5\n", "\0\0\0\0", "7", '"half', "é".encode("latin-1").decode("latin-1")])
def test_a_torn_row_of_metrics_is_left_out(index, tmp_path, tail):
    whole = train(config_of(index, tmp_path / "whole"))
    out = train(config_of(index, tmp_path / "run", trainer={"max_epochs": 1}))
    with (out / "metrics.csv").open("a", newline="") as file:
        file.write(tail)
    train(config_of(index, out, resume="auto"))
    for name in ("train/loss", "val/mean_iou", "step"):
        assert column(out, name) == column(whole, name), name


@pytest.mark.parametrize("place", ["run/notes", "run/../precious", "precious"])
def test_paths_in_a_checkpoint_are_not_believed(index, tmp_path, place):
    """Lightning removes the file that a checkpoint says was the best so far, or the folder, when a better one comes."""
    out = train(config_of(index, tmp_path / "run", trainer={"max_epochs": 1}))
    precious = Path(os.path.realpath(tmp_path)) / place
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    content = torch.load(out / "last.ckpt", weights_only=True)
    for key, state in content["callbacks"].items():
        if "ModelCheckpoint" in key:
            state |= dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path"), str(precious))
            state |= {"best_k_models": {str(precious): torch.tensor(-1.0)}, "dirpath": str(precious.parent)}
            if state["best_model_score"] is not None:
                state |= {"best_model_score": torch.tensor(-1.0), "kth_value": torch.tensor(-1.0)}
            state["dirpath"] = os.path.realpath(out)
    torch.save(content, out / "last.ckpt")
    train(config_of(index, out, resume="auto"))
    assert (precious / "thesis.txt").read_text() == "years of work"
    assert len(column(out, "val/mean_iou")) == 2


def test_a_resumed_run_keeps_the_best_checkpoint_it_has(index, tmp_path):
    out = train(config_of(index, tmp_path / "run", trainer={"max_epochs": 1}))
    content = torch.load(out / "last.ckpt", weights_only=True)
    for key, state in content["callbacks"].items():
        if "ModelCheckpoint" in key and state["best_model_score"] is not None:
            state["best_model_score"] = torch.tensor(2.0)  # nothing can be better
    torch.save(content, out / "last.ckpt")
    train(config_of(index, out, resume="auto"))
    assert read_checkpoint(out / "best.ckpt")[0]["global_step"] == 2  # of the first epoch, not of the second


def test_a_resumed_run_needs_nothing_of_what_it_began_from(index, tmp_path):
    begun = tmp_path / "resnet18.pth"
    torch.save(create_encoder("resnet18").state_dict(), begun)
    config = config_of(index, tmp_path / "run", encoder="resnet18", trainer={"max_epochs": 1})
    config = replace(config, model=replace(config.model, arguments={"encoder_weights": str(begun)}))
    train(config)
    begun.unlink()
    out = train(replace(config, trainer=config.trainer | {"max_epochs": 2}, resume="auto"))
    assert len(column(out, "val/mean_iou")) == 2 and load_checkpoint(out / "best.ckpt")


def test_two_runs_in_one_folder_do_not_meet(index, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_PATIENCE", 0.2)
    out = tmp_path / "run"
    with folder.held(out):
        with pytest.raises(ConfigError, match="another process is training into .*run; wait"):
            train(config_of(index, out))
        assert not (out / "config.yaml").exists()
    train(config_of(index, out, trainer={"max_epochs": 1}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainer": {"val_check_interval": 50}}, "val_check_interval is 50 batches and an epoch has 2"),
        ({"samples_per_epoch": 1}, "an epoch has 1 windows and a batch 2"),
        ({"optimizer": OptimizerConfig(multipliers={"tail": 1.0})}, "multipliers names tail"),
        ({"schedule": ScheduleConfig(name="cosine"), "trainer": {"max_epochs": -1}}, "the run has no last step"),
    ],
)
def test_a_refused_run_leaves_no_folder(index, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        train(config_of(index, tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()


def test_a_disk_too_small_for_the_checkpoints_is_told_before_training(index, tmp_path, monkeypatch):
    monkeypatch.setattr(run.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**20}))
    with pytest.raises(RasterError, match="1 MiB free and the checkpoints of this run need"):
        train(config_of(index, tmp_path / "run"))


def test_an_index_without_training_windows_is_told_before_training(tmp_path):
    index = write_tiny_index(tmp_path / "scenes", {"a": "val"})
    with pytest.raises(ConfigError, match="no labelled train windows"):
        train(config_of(index, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_missing_index_is_told(tmp_path):
    with pytest.raises(ConfigError, match="data.index is not set"):
        train(TrainConfig(out=str(tmp_path)))
    with pytest.raises(ConfigError, match="no tile index"):
        train(config_of(tmp_path / "nowhere", tmp_path / "run"))


def test_arguments_that_the_model_does_not_know_are_told(index, tmp_path):
    config = config_of(index, tmp_path / "run")
    with pytest.raises(ConfigError, match="widht"):
        train(replace(config, model=ModelConfig(encoder="resnet18_biformer", arguments={"widht": 3})))


def test_trainer_options_that_contradict_each_other_are_told(index, tmp_path):
    with pytest.raises(ConfigError, match="trainer: "):
        train(config_of(index, tmp_path / "run", trainer={"devices": 0}))


def test_a_loss_that_is_no_number_stops_the_run(index, tmp_path):
    config = config_of(index, tmp_path / "run", optimizer=OptimizerConfig(name="sgd", learning_rate=1e30))
    with pytest.raises(RsBiformerError, match="lower optimizer.learning_rate"):
        train(config)


@pytest.mark.parametrize("option", [{"fast_dev_run": True}, {"barebones": True, "enable_progress_bar": False}])
def test_trial_modes_of_the_trainer_work(index, tmp_path, option):
    out = train(config_of(index, tmp_path / "run", trainer={"max_epochs": 1, **option}, images_every=1))
    assert not (out / "last.ckpt").exists()


def test_an_interrupted_run_says_how_it_goes_on(index, tmp_path, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)

    def interrupted(self, batch, batch_idx):
        raise KeyboardInterrupt

    monkeypatch.setattr(run.SegmentationTask, "training_step", interrupted)
    lines: list[str] = []
    try:
        with pytest.raises(KeyboardInterrupt):
            train(config_of(index, tmp_path / "run"), say=lines.append)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further Ctrl-C
    assert "the same command goes on from the last whole epoch" in lines[-1]


def test_a_logger_whose_package_is_missing_is_told_before_training(index, tmp_path):
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    with pytest.raises(ConfigError, match="loggers: .*wandb.*install the package"):
        train(config_of(index, tmp_path / "run", loggers=["wandb"]))


def test_a_run_stops_when_validation_no_longer_improves(index, tmp_path):
    options = dict(optimizer=OptimizerConfig(name="sgd", learning_rate=1e-20), trainer={"max_epochs": 9})
    out = train(config_of(index, tmp_path / "run", early_stopping=2, **options))
    assert len(column(out, "val/mean_iou")) == 3  # the first, and two that were no better


def test_speed_memory_and_waiting_are_logged(index, tmp_path):
    out = train(config_of(index, tmp_path / "run", samples_per_epoch=16, trainer={"max_epochs": 1}))
    (waiting,), (speed,), (memory,) = (
        [float(value) for value in column(out, f"speed/{name}")]
        for name in ("waiting_for_data", "windows_per_second", "peak_memory_gb")
    )
    assert 0 < waiting < 1 and speed > 0 and 0.1 < memory < 100


def test_a_run_that_waits_for_data_says_so(index, tmp_path, monkeypatch, caplog):
    read = SceneReader.read
    monkeypatch.setattr(SceneReader, "read", lambda self, *place: time.sleep(0.3) or read(self, *place))
    train(config_of(index, tmp_path / "run", samples_per_epoch=8, trainer={"max_epochs": 1}))
    assert "of the time was spent waiting for data; try data.cache" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.7, 1.5])
def test_the_same_command_goes_on_after_a_kill(index, tmp_path, seconds):
    def command(out: Path) -> list[str]:
        options = {
            "data.index": index, "out": out, "model.encoder": "mobilenet_v2", "data.batch_size": 2, "data.workers": 1,
            "trainer.max_epochs": 6, "trainer.accelerator": "cpu", "trainer.log_every_n_steps": 1, "images_every": 0,
            "trainer.enable_progress_bar": "false", "optimizer.ema": 0.9,
        }  # fmt: skip
        return [sys.executable, "-m", "rs_biformer", "train"] + [
            part for key, value in options.items() for part in (f"--{key}", str(value))
        ]

    whole, out = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, capture_output=True, timeout=200)
    with subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        deadline = time.monotonic() + 150
        while not (out / "last.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(seconds)
        killed.kill()
    again = subprocess.run(command(out), capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr
    for name in ("train/loss", "val/mean_iou", "step"):
        assert column(out, name) == column(whole, name), name
    assert_same_weights(out / "last.ckpt", whole / "last.ckpt")
    assert not (out / ".unfinished").exists()


def _measured(index: Path, out: Path, processes: int) -> list[tuple[str, list[str]]]:
    options = {
        "data.index": index, "out": out, "model.encoder": "mobilenet_v2", "optimizer.learning_rate": "1e-30",
        "data.batch_size": 1, "data.workers": 0, "trainer.max_epochs": 1, "trainer.accelerator": "cpu",
        "trainer.devices": processes, "trainer.strategy": "ddp" if processes > 1 else "auto", "images_every": 0,
        "model.arguments": "{}",
    }  # fmt: skip
    command = [sys.executable, "-m", "rs_biformer", "train"]
    command += [part for key, value in options.items() for part in (f"--{key}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert load_checkpoint(out / "best.ckpt")
    return [(name, column(out, name)) for name in ("val/mean_iou", "val/overall_accuracy", "val/loss")]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("labelled", [5, 1])
def test_processes_without_windows_or_labels_keep_nobody_waiting(tmp_path, processes, labelled):
    """Five validation windows on two and three processes, and one alone; another has no label at all."""
    folder_of = write_tiny_index(tmp_path / "scenes", {"a": "train", "b": "val"}, size=(64, 64 * 6))
    index = TileIndex.read(folder_of)
    keep = (index.table.split == "train") | (index.table.col < 64 * labelled)
    index = replace(index, table=index.table.take(np.flatnonzero(keep)))
    with rasterio.open(index.manifest.scenes[1].label, "r+") as label:
        values = label.read(1)
        if labelled > 1:
            values[:, 64:128] = 255  # its row of the index still says otherwise
        label.write(values, 1)
    index.write(folder_of)
    found = _measured(folder_of, tmp_path / "run", processes)
    assert all(len(values) == 1 for _, values in found)
    windows = [n for n in np.flatnonzero(index.table.split == "val").tolist()]
    data = TileDataset(index)
    model = load_checkpoint(tmp_path / "run/last.ckpt")
    matrix = np.zeros((3, 3), np.int64)
    with torch.no_grad():
        for number in windows:
            item = data[number]
            guess = model(item["image"][None], item["valid"][None]).argmax(1)[0].numpy()
            known = item["label"].numpy() != 255
            np.add.at(matrix, (item["label"].numpy()[known], guess[known]), 1)
    assert float(dict(found)["val/overall_accuracy"][0]) == pytest.approx(np.trace(matrix) / matrix.sum(), abs=1e-6)


@pytest.mark.slow
def test_two_processes_validate_like_one(index, tmp_path):
    """Layer and group norms only, and a learning rate that moves nothing, so that both measure the same weights."""

    def figures(processes: int) -> list[tuple[str, ...]]:
        out = tmp_path / f"with_{processes}"
        command = [sys.executable, "-m", "rs_biformer", "train", "--data.index", str(index), "--out", str(out)]
        options = {
            "model.encoder": "mit_b0", "model.decoder": "fpn", "optimizer.learning_rate": "1e-30",
            "data.batch_size": "2", "data.workers": "0", "trainer.max_epochs": "1", "trainer.accelerator": "cpu",
            "trainer.devices": str(processes), "trainer.strategy": "ddp" if processes > 1 else "auto",
        }  # fmt: skip
        parts = [part for key, value in options.items() for part in (f"--{key}", value)]
        subprocess.run([*command, *parts], check=True, capture_output=True, timeout=250)
        return [column(out, f"val/{name}") for name in ("mean_iou", "overall_accuracy", "mean_f1", "iou/middle")]

    one, two = figures(1), figures(2)
    assert one == two and len(one[0]) == 1
