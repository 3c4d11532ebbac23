import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rs_biformer.data.augment import Augmentation
from rs_biformer.errors import ConfigError
from rs_biformer.train.config import DataConfig, OptimizerConfig, ScheduleConfig, TrainConfig, known_keys, parse

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


def test_every_option_of_the_trainer_is_there_with_its_default_but_logger_and_callbacks():
    import inspect

    from pytorch_lightning import Trainer

    from rs_biformer.train.trainer_options import TrainerOptions

    theirs = {name: item.default for name, item in inspect.signature(Trainer).parameters.items()}
    assert vars(TrainerOptions()) == {name: value for name, value in theirs.items() if name not in OURS}
    assert {key for key in known_keys() if key.startswith("trainer.")} == {f"trainer.{key}" for key in theirs} - {
        f"trainer.{name}" for name in OURS
    }


OURS = {"logger", "callbacks"}


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
        (["--config"], "--config has no value"),
        (["--data.cache", "--seed", "1"], "--data.cache has no value"),
        (["stray"], "'stray' is no option"),
        (["--seed", "-1"], "seed is -1; it must be a whole number from 0"),
        (["--data.focus", "null"], "data.focus is null"),
        (["--loss.terms", "null"], "loss.terms is null"),
        (["--loss.terms.dice", "much"], "loss.terms.dice is 'much'"),
        (["--loggers", "null"], "loggers is null"),
        (["--loggers", "[file]"], "loggers is file; it must be a list of tensorboard"),
        (["--trainer.accumulate_grad_batches", "0"], "trainer.accumulate_grad_batches is 0; it must be 1 or more"),
        (["--trainer.val_check_interval", "0"], "trainer.val_check_interval is 0; it must be more than 0"),
        (["--trainer.num_sanity_val_steps", "-5"], "trainer.num_sanity_val_steps is -5; it must be 0 or more"),
        (["--trainer.accelerator", "tpu"], "trainer.accelerator is 'tpu'.*'cpu'"),
        (["--trainer.limit_val_batches=.nan"], "trainer.limit_val_batches is nan"),
        (["--optimizer.learning_rate", ".inf"], "optimizer.learning_rate is inf"),
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
        ("data: 3", "config.yaml: data is 3; it must be a mapping"),
        ("data:", "config.yaml: data is null; it must be a mapping"),
        ("seed: -1", "config.yaml: seed is -1"),
        ("data: {batch_size: many}", "config.yaml: data.batch_size is 'many'"),
        ("data: {augment: {d4: 3}}", "config.yaml: data.augment.d4 is 3"),
        ("trainer: {max_epochs: []}", "config.yaml: trainer.max_epochs is"),
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


KEYS = sorted(known_keys())
CALLS = [
    {"class_path": "os.system", "init_args": {"command": "touch {mark}"}},
    {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "{mark}"]}},
    {"x": {"class_path": "os.system", "init_args": {"command": "touch {mark}"}}},
    [{"class_path": "os.system", "init_args": {"command": "touch {mark}"}}],
    "os.system",
    "evil_module.Evil",
    "${{oc.env:HOME}}",
    "$HOME",
]
TAGS = [
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/name:os.system",
    "!!python/module:evil_module",
    "!!python/object/new:subprocess.Popen [['touch', '{mark}']]",
    "!include /etc/passwd",
    "!ENV ${{HOME}}",
]


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A file that must never appear, and a module that must never be imported."""
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RS_BIFORMER_SEED", "7")
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "7")
    yield tmp_path / "mark"
    assert not (tmp_path / "mark").exists() and "evil_module" not in sys.modules


def _marked(value, mark):
    if isinstance(value, str):
        return value.format(mark=mark)
    if isinstance(value, dict):
        return {key: _marked(item, mark) for key, item in value.items()}
    return [_marked(item, mark) for item in value]


@pytest.mark.parametrize("key", KEYS)
def test_nothing_that_a_config_names_is_imported_or_called(key, tmp_path, trap):
    for call in CALLS:
        value = _marked(call, trap)
        nested = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        for arguments in (
            ["--config", write(tmp_path, yaml.safe_dump(nested))],
            [f"--{key}", value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True)],
        ):
            try:
                config = parse(arguments)
            except ConfigError as error:
                assert "\n" not in str(error)
            else:  # text where text is meant, or a free mapping: kept as it is
                assert yaml.safe_load(config.to_yaml())
    for tag in TAGS:
        head, _, last = key.rpartition(".")
        text = f"{last}: {tag.format(mark=trap)}"
        for part in reversed(head.split(".") if head else []):
            text = f"{part}: {{{text}}}"
        with pytest.raises(ConfigError, match="tag|YAML"):
            parse(["--config", write(tmp_path, text)])


def test_arguments_of_the_network_are_handed_on_as_data(tmp_path, trap):
    value = {"x": {"class_path": "os.system", "init_args": {"command": f"touch {trap}"}}}
    config = parse(["--config", write(tmp_path, yaml.safe_dump({"model": {"arguments": value}}))])
    assert config.model.arguments == value


def test_the_environment_changes_nothing(trap):
    assert parse([]) == TrainConfig(trainer=parse([]).trainer) and parse([]).trainer["max_epochs"] == 100


@pytest.mark.parametrize("data", ["czech", "vaihingen"])
def test_the_recipe_with_weights_is_that_without_but_for_the_network(data):
    folder = Path(__file__).parents[2] / "configs" / data
    without, with_weights = (
        parse(["--config", str(folder / f"{name}.yaml")]) for name in ("recommended", "pretrained")
    )
    assert (without.model.weights, with_weights.model.weights) == (None, "imagenet")
    assert replace(with_weights, model=without.model, out=without.out) == without


def test_a_config_of_the_project_is_found_in_the_wheel_where_the_folder_has_none(tmp_path, monkeypatch):
    name = "configs/vaihingen/recommended.yaml"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"no config file {name}; see configs/ for complete ones, or write"):
        parse(["--config", name])
    monkeypatch.setattr("rs_biformer.train.config._BROUGHT", Path(__file__).parents[2])
    assert parse(["--config", name]).model.encoder == "resnet50_biformer"
    with pytest.raises(ConfigError, match=f"no config file nowhere.yaml; .* such as .*{name}"):
        parse(["--config", "nowhere.yaml"])
    (tmp_path / "configs/vaihingen").mkdir(parents=True)
    (tmp_path / name).write_text("model: {encoder: resnet18_biformer}", encoding="utf-8")
    assert parse(["--config", name]).model.encoder == "resnet18_biformer"
