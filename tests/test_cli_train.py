import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_index import write_tiny_index

from rs_biformer import load_checkpoint
from rs_biformer.cli import main


def test_help_has_an_example_and_the_sections():
    done = subprocess.run([sys.executable, "-m", "rs_biformer", "train", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for word in ("example", "--config", "--section.key VALUE", "optimizer", "schedule", "trainer", "resume"):
        assert word in done.stdout


def test_help_loads_no_torch():
    code = (
        "import sys; from rs_biformer.cli import build_parser; build_parser();"
        "print([n for n in ('torch', 'rasterio', 'pytorch_lightning', 'pydantic') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_print_config_shows_the_whole_config_with_overrides(capsys):
    config = Path(__file__).parents[1] / "configs/vaihingen/resnet50_biformer.yaml"
    assert main(["train", "--config", str(config), "--optimizer.learning_rate", "0.5", "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["optimizer"]["learning_rate"] == 0.5 and shown["model"]["encoder"] == "resnet50_biformer"
    assert shown["trainer"]["max_epochs"] == 100 and "strategy" in shown["trainer"]


def test_options_explains_every_key(capsys):
    assert main(["train", "--options"]) == 0
    shown = capsys.readouterr().out
    for key in ("--data.augment.scale", "--optimizer.ema", "--trainer.precision", "--resume"):
        assert key in shown
    assert "Windows per step and device" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer.learning_rat", "1"], "did you mean optimizer.learning_rate?"),
        (["--config", "nowhere.yaml"], "no config file nowhere.yaml"),
        (["--data.index", "nowhere"], "no tile index"),
        ([], "data.index is not set"),
    ],
)
def test_bad_input_gives_one_line_and_exit_code_2(arguments, message, capsys):
    assert main(["train", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("rs-biformer train: ") and message in lines[0]


def test_without_validation_windows_the_advice_names_a_checkpoint_that_is_there(tmp_path, capsys):
    index = write_tiny_index(tmp_path / "scenes", {"a": "train"})
    options = [
        *("--data.index", str(index), "--model.encoder", "mobilenet_v2", "--out", str(tmp_path / "run")),
        *("--data.batch_size", "2", "--data.workers", "0", "--optimizer.name", "sgd", "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "1"),
    ]
    assert main(["train", *options]) == 0
    advice = capsys.readouterr().err.splitlines()[-1]
    named = advice.partition("--checkpoint ")[2].split()[0]
    assert named == str(tmp_path / "run/last.ckpt") and (tmp_path / "run/last.ckpt").is_file()


def test_the_command_trains_and_continues(tmp_path, capsys):
    index = write_tiny_index(tmp_path / "scenes", {"a": "train", "b": "val"})
    options = [
        *("--data.index", str(index), "--model.encoder", "mobilenet_v2", "--out", str(tmp_path / "run")),
        *("--data.batch_size", "2", "--data.workers", "0", "--optimizer.name", "sgd", "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", "--trainer.max_epochs"),
    ]
    assert main(["train", *options, "1"]) == 0
    assert "next: rs-biformer evaluate" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "run/best.ckpt").meta.window == 64
    assert main(["train", *options, "2"]) == 2
    assert "--resume auto" in capsys.readouterr().err
    assert main(["train", *options, "2", "--resume", "auto"]) == 0
    assert "resuming from" in capsys.readouterr().err
    written = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert written["trainer"]["max_epochs"] == 2 and written["data"]["index"] == str(index)
