import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rs_biformer.data.augment import Augmentation
from rs_biformer.errors import ConfigError
from rs_biformer.train.config import DataConfig, OptimizerConfig, ScheduleConfig, TrainConfig, create_parser, parse

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*/*.yaml"))
EXPERIMENTS = [path for path in CONFIGS if path.parent.name != "classes"]


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def flat(data: dict, prefix: str = "") -> set[str]:
    keys = set()
    for name, value in data.items():
        nested = isinstance(value, dict) and name not in ("arguments", "terms", "trainer")
        keys |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}"}
    return keys


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_experiment_is_complete_and_says_what_it_means(path):
    text = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = parse(["--config", str(path)])
    parsed = yaml.safe_load(config.to_yaml())
    assert flat(text) == flat(parsed)
    trainer = text.pop("trainer")
    assert {key: parsed["trainer"][key] for key in trainer} == trainer
    parsed.pop("trainer")
    assert text == parsed


def test_the_three_experiments_are_as_published():
    for name in ("resnet50_biformer", "resnet50_biformer2_msda2", "resnet50_biformer_msda"):
        config = parse(["--config", str(next(p for p in EXPERIMENTS if p.stem == name))])
        assert config.model.encoder == name and config.model.arguments == {}
        assert (config.optimizer.name, config.optimizer.learning_rate) == ("sgd", 0.01)
        assert config.trainer["max_epochs"] == 100
        assert config.data.augment == Augmentation() and config.data.jitter == 0


@pytest.mark.parametrize(
    ("name", "drop_path", "optimizer", "schedule", "steps"),
    [
        ("semantic_fpn_small", 0.15, (2e-4, 1e-4), ("cosine", 1000), 80_000),
        ("semantic_fpn_base", 0.3, (2e-4, 1e-4), ("cosine", 1000), 80_000),
        ("upernet_small", 0.3, (6e-5, 0.01), ("poly", 1500), 160_000),
        ("upernet_base", 0.4, (6e-5, 0.01), ("poly", 1500), 160_000),
    ],
)
def test_biformer_s_segmentation_recipes_are_as_published(name, drop_path, optimizer, schedule, steps):
    config = parse(["--config", str(next(p for p in EXPERIMENTS if p.stem == name))])
    assert config.model.encoder == f"biformer_{name.rpartition('_')[2]}"
    assert config.model.arguments["drop_path"] == drop_path
    assert (config.optimizer.name, config.optimizer.momentum) == ("adamw", 0.9)
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == optimizer
    assert (config.schedule.name, config.schedule.warmup * steps) == schedule
    assert (config.trainer["max_steps"], config.trainer["max_epochs"]) == (steps, -1)
    assert steps * config.data.batch_size == 2_560_000  # images seen: 127 times ADE20K's 20 210
    assert config.loss.terms == {"cross_entropy": 1.0}
    if "upernet" in name:
        assert config.model.arguments["auxiliary"] and config.loss.auxiliary == 0.4
        assert config.schedule.power == 1.0


def test_options_override_the_file(tmp_path):
    path = write(tmp_path, "data: {batch_size: 3, workers: 1}\nloss: {terms: {dice: 1.0}}\ntrainer: {max_epochs: 7}\n")
    config = parse(["--config", path, "--data.batch_size", "5", "--trainer.max_steps=9", "--data.augment.d4", "true"])
    assert (config.data.batch_size, config.data.workers, config.data.augment.d4) == (5, 1, True)
    assert (config.trainer["max_epochs"], config.trainer["max_steps"]) == (7, 9)
    assert config.loss.terms == {"dice": 1.0}


def test_single_loss_terms_can_be_set_from_the_command_line():
    assert parse(["--loss.terms.lovasz", "0.5"]).loss.terms["lovasz"] == 0.5


def test_what_is_written_reads_back_as_the_same_run(tmp_path):
    config = parse(["--data.augment.scale", "0.2", "--model.encoder", "coat_mini", "--trainer.max_time", "00:00:30:00"])
    again = parse(["--config", write(tmp_path, config.to_yaml())])
    assert again == config


def test_every_option_of_the_trainer_is_there_but_logger_and_callbacks():
    import inspect

    from pytorch_lightning import Trainer

    known = {
        key.removeprefix("trainer.") for key in create_parser().get_defaults().keys() if key.startswith("trainer.")
    }
    assert known == set(inspect.signature(Trainer).parameters) - {"logger", "callbacks"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--optimizer.learning_rat", "1"],
            "unknown key optimizer.learning_rat; did you mean optimizer.learning_rate?",
        ),
        (["--trainer.max_epoch=3"], "did you mean trainer.max_epochs?"),
        (["--learning_rate", "1"], "did you mean optimizer.learning_rate?"),
        (["--data.augment.brightnes", "1"], "did you mean data.augment.brightness?"),
        (["--trainer.callbacks", "x"], "trainer.callbacks is set by the command"),
        (["--trainer.max_epochs", "many"], "trainer.max_epochs.*many"),
        (["--data.batch_size", "1.5"], "data.batch_size.*1.5"),
        (["--trainer.precision", "bf17"], "trainer.precision.*bf17"),
        (["--optimizer.name", "adam"], "optimizer.name.*adam"),
        (["--data.batch_size", "0"], "data.batch_size is 0; it must be 1 or more"),
        (["--data.augment.scale", "-1"], "scale is -1"),
        (["--config", "nowhere.yaml"], "no config file nowhere.yaml"),
        (["--config"], "expected"),
        (["stray"], "stray"),
    ],
)
def test_a_wrong_argument_gives_one_line_that_helps(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimiser: {name: sgd}", "unknown key optimiser.name; did you mean optimizer.name?"),
        ("optimizer: {lerning_rate: 0.1}", "did you mean optimizer.learning_rate?"),
        ("data: {augment: {d5: true}}", "data.augment.d5; did you mean data.augment.d4?"),
        ("trainer: {logger: true}", "trainer.logger is set by the command"),
        ("sed: 3", "did you mean seed?"),
        ("[1, 2]", "no mapping"),
        ("a: [", "no valid YAML"),
        ("data: 3", "data"),
    ],
)
def test_a_wrong_file_gives_one_line_that_names_it(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse(["--config", write(tmp_path, text)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: DataConfig(balance=-1),
        lambda: OptimizerConfig(learning_rate=0),
        lambda: OptimizerConfig(name="adam"),
        lambda: ScheduleConfig(warmup=1.0),
        lambda: ScheduleConfig(name="linear"),
    ],
)
def test_a_config_built_in_python_is_checked_as_well(build):
    with pytest.raises(ConfigError, match="must be"):
        build()


def test_importing_the_config_loads_neither_torch_nor_lightning():
    code = (
        "import sys, rs_biformer.train.config;"
        "print([n for n in ('torch', 'pytorch_lightning', 'albumentations', 'rasterio') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_instantiated_option_is_left_out_of_the_written_config():
    assert "plugins" not in yaml.safe_load(TrainConfig(trainer={"plugins": [object()]}).to_yaml())["trainer"]
