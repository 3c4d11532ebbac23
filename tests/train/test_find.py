import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_index import write_tiny_index

from rs_biformer.cli import main
from rs_biformer.errors import ConfigError
from rs_biformer.train import find
from rs_biformer.train.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from rs_biformer.train.find import find_batch_size, find_learning_rate, smoothed, steepest


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("scenes")
    index = write_tiny_index(folder, {"a": "train", "b": "val"}, size=(256, 256))
    return TrainConfig(
        model=ModelConfig(encoder="resnet18_biformer"),
        data=DataConfig(index=str(index), batch_size=2, workers=0),
        trainer={"accelerator": "cpu"},
        out=str(folder / "run"),
    )


def test_the_steepest_fall_of_a_curve_is_found():
    rates = np.geomspace(1e-6, 1, 121)
    losses = 2 - np.tanh(2 * (np.log10(rates) + 3)) + np.where(rates > 0.1, 5 * (rates - 0.1), 0)  # steepest at 1e-3
    for noise in (0.0, 0.05):
        noisy = losses + noise * np.random.default_rng(0).normal(size=len(losses))
        assert np.log10(steepest(rates.tolist(), noisy.tolist())) == pytest.approx(-3, abs=0.5)
    with pytest.raises(ConfigError, match="the loss only rose"):
        steepest(rates.tolist(), np.linspace(1, 3, len(rates)).tolist())
    with pytest.raises(ConfigError, match="the loss diverged after 3 steps"):
        steepest([1e-6, 1e-5, 1e-4], [1.0, 2.0, 3.0])


def test_smoothing_weighs_the_losses_so_far_by_a_power_of_their_age():
    losses = [3.0, 1.0, 2.0, 5.0]
    ages = 0.9 ** np.arange(4)[::-1]
    assert smoothed(losses)[-1] == pytest.approx(np.average(losses, weights=ages))
    assert smoothed(losses)[0] == 3.0


def test_the_range_test_raises_the_rate_of_each_part_by_its_multiple(config, monkeypatch):
    seen: list[list[float]] = []
    rising = find._Rising.on_train_batch_start

    def watched(self, trainer, *rest):
        rising(self, trainer, *rest)
        seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    monkeypatch.setattr(find._Rising, "on_train_batch_start", watched)
    lines: list[str] = []
    optimizer = OptimizerConfig(learning_rate=1e-3, multipliers={"encoder": 0.1})
    rate = find_learning_rate(replace(config, optimizer=optimizer), steps=8, say=lines.append)
    highest = [max(rates) for rates in seen]
    np.testing.assert_allclose(highest, np.geomspace(1e-6, 1, 8)[: len(seen)])
    assert all(min(rates) == pytest.approx(max(rates) / 10) for rates in seen)
    assert 1e-6 <= rate <= 1 and lines


def test_the_batch_size_stops_at_the_windows_of_an_epoch_and_at_memory(config, monkeypatch):
    speeds = {2: 10.0, 4: 18.0, 8: 20.0, 16: 20.5}
    monkeypatch.setattr(find, "_try", lambda _, size: find._Tried(size, speeds[size], size / 10))
    monkeypatch.setattr(find, "_memory", lambda _: 100.0)
    assert find_batch_size(config, say=lambda _: None) == 8  # 16 windows; 8 is within 5 % of 16
    monkeypatch.setattr(find, "_memory", lambda _: 0.9)
    lines: list[str] = []
    assert find_batch_size(config, say=lines.append) == 4  # 8 would take 0.8, more than 80 % of 0.9
    assert "might not fit" in lines[-1]


def test_a_batch_that_runs_out_of_memory_ends_the_search(config, monkeypatch):
    def run(config, size, options, watch):
        if size > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        watch.seconds = [1.0, size / 10, size / 10]

    monkeypatch.setattr(find, "_run", run)
    lines: list[str] = []
    assert find_batch_size(config, say=lines.append) == 2  # both reach 10 windows per second
    assert "out of memory" in lines[-1]

    monkeypatch.setattr(find, "_try", lambda *_: None)
    with pytest.raises(ConfigError, match="not even 2 windows fit"):
        find_batch_size(config, say=lines.append)


def test_a_trial_measures_real_steps(config):
    tried = find._try(config, 4)
    assert tried is not None and tried.size == 4 and 0 < tried.speed < math.inf and tried.memory > 0


@pytest.mark.parametrize(("what", "option"), [("learning_rate", "optimizer"), ("batch_size", "data")])
def test_the_command_prints_an_option_to_copy_and_writes_nothing(config, tmp_path, capsys, monkeypatch, what, option):
    monkeypatch.setattr(find, f"find_{what}", lambda _, say: 4)
    out = tmp_path / "run"
    assert main(["train", "--find", what, "--data.index", config.data.index, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"--{option}.{what} 4\n" and not out.exists()


def test_trainer_options_that_contradict_each_other_are_told(config):
    with pytest.raises(ConfigError, match="trainer: "):
        find_learning_rate(replace(config, trainer={"accelerator": "cpu", "devices": 0}), steps=8)
