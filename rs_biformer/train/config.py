"""Every option of a training run: plain dataclasses, YAML, and the command line that overrides it.

`parse` turns arguments and a YAML file into a `TrainConfig`; `train.run.train` takes one, so a script can build it
without either. A config is data: no value of it is imported, called or looked up in the environment. Neither importing
this module nor parsing loads torch or Lightning.
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from rs_biformer.data.augment import Augmentation
from rs_biformer.data.options import DataConfig as DataConfig
from rs_biformer.data.options import require
from rs_biformer.documents import build, parse_yaml, read_yaml, shown
from rs_biformer.errors import ConfigError
from rs_biformer.train.trainer_options import TrainerOptions, problem_with


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    Args:
        encoder: Name of an encoder: ours (`rs-biformer models` lists them), smp's or timm's.
        decoder: Name of a decoder: unet_fusion, unet, fpn, upernet, deeplabv3plus or segformer.
        arguments: Further arguments of create_model, such as those of the encoder.
        weights: What to begin from: a .ckpt of an earlier run, also of other classes or bands; a file of the encoder's
            weights as anyone publishes them; or the name of weights to download, such as imagenet or timm's tags.
        weights_bands: Names of the bands that such weights were trained on, where their number (3 red, green, blue; 13
            Sentinel-2) does not tell; a first convolution for other bands is put together by name.
        freeze: Epochs in which the pretrained part of the encoder stays as it began. With several devices this needs
            trainer.strategy ddp_find_unused_parameters_true.
        compile: Compile the network with torch.compile; takes a minute or more before the first step.
    """

    encoder: str = "resnet50_biformer"
    decoder: str = "unet_fusion"
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    weights_bands: list[str] | None = None
    freeze: int = 0
    compile: bool = False

    def __post_init__(self) -> None:
        require(self.freeze >= 0, "model.freeze", self.freeze, "0 or more epochs")


@dataclass(frozen=True)
class LossConfig:
    """The loss.

    Args:
        terms: Weight of each loss term; terms are cross_entropy, dice, lovasz, focal and boundary.
        balance: Strength s of the class weights frequency ** -s of cross_entropy and focal; 0 weighs all alike, 0.5 is
            the inverse square root. Frequencies are those of the windows as drawn: what data.balance has evened out
            already is not corrected twice.
        label_smoothing: Share of the label that is spread over all classes, in [0, 1); cross_entropy only.
        auxiliary: Weight of the same loss of the auxiliary head, where model.arguments has auxiliary: true.
    """

    terms: dict[str, float] = field(default_factory=lambda: {"cross_entropy": 1.0})
    balance: float = 0.0
    label_smoothing: float = 0.0
    auxiliary: float = 0.4

    def __post_init__(self) -> None:
        require(0 <= self.balance <= 2, "loss.balance", self.balance, "between 0 (off) and 2")
        require(self.auxiliary >= 0, "loss.auxiliary", self.auxiliary, "0 or more, such as 0.4")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer. Norms, biases, class tokens and other vectors are never decayed.

    Args:
        name: adamw or sgd.
        learning_rate: Its highest value; the schedule multiplies it.
        weight_decay: Decoupled for adamw, an L2 penalty for sgd.
        momentum: Of sgd; the first beta of adamw.
        multipliers: Multiples of learning_rate for parts of the network, by the beginning of their parameters' names;
            the longest that fits counts. {encoder: 0.1} trains a pretrained encoder at a tenth.
        layer_decay: Multiple of the rate from each layer of a plain vision transformer to the one before it, such as
            0.75, so that the first change least; 1 trains all alike.
        ema: Decay of an exponential moving average of the weights, such as 0.999, that validation, best.ckpt and
            last.ckpt then hold; 0 keeps none. Early on the decay is lower, so that short runs forget their start.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    momentum: float = 0.9
    multipliers: dict[str, float] = field(default_factory=dict)
    layer_decay: float = 1.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        require(self.name in ("adamw", "sgd"), "optimizer.name", self.name, "adamw or sgd")
        require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "positive")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
        require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "in [0, 1)")
        for name, multiple in self.multipliers.items():
            require(multiple >= 0, f"optimizer.multipliers.{name}", multiple, "0 (frozen) or more")
        require(0 < self.layer_decay <= 1, "optimizer.layer_decay", self.layer_decay, "above 0, up to 1 (none)")
        require(0 <= self.ema < 1, "optimizer.ema", self.ema, "in [0, 1), such as 0.999")


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the steps of the run, as a multiple of optimizer.learning_rate.

    Args:
        name: constant; poly, (1 - share of the run) ** power; cosine; or onecycle, a cosine up and a cosine down.
        warmup: Share of the steps in which the rate rises from near 0: linearly, for onecycle along a cosine.
        power: Of poly.
        final: Where poly, cosine and onecycle end.
    """

    name: Literal["constant", "poly", "cosine", "onecycle"] = "constant"
    warmup: float = 0.0
    power: float = 0.9
    final: float = 0.0

    def __post_init__(self) -> None:
        names = ("constant", "poly", "cosine", "onecycle")
        require(self.name in names, "schedule.name", self.name, ", ".join(names))
        require(0 <= self.warmup < 1, "schedule.warmup", self.warmup, "a share of the run in [0, 1), such as 0.1")
        require(self.power > 0, "schedule.power", self.power, "positive")
        require(0 <= self.final <= 1, "schedule.final", self.final, "between 0 and 1")


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run.

    Args:
        out: Run folder: config.yaml, metrics.csv, best.ckpt, last.ckpt, events of TensorBoard if there is one.
        seed: Of the initial weights, the sampling and the augmentation.
        resume: null continues an unfinished run of this very config in out, and refuses a folder that holds any other;
            auto continues out/last.ckpt whatever it was trained with, as long as it fits; or a checkpoint to continue.
        images_every: Epochs between sample predictions in TensorBoard; 0 draws none.
        early_stopping: Validations without a better val/mean_iou after which the run ends; 0 never ends it.
        loggers: Where figures go besides metrics.csv: tensorboard (left out where it is not installed), mlflow, wandb.
        trainer: Options of Lightning's Trainer, see trainer_options.py. From Python an option may also be an object.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: dict[str, Any] = field(default_factory=dict)
    out: str = "runs/train"
    seed: int = 0
    resume: str | None = None
    images_every: int = 5
    early_stopping: int = 0
    loggers: list[str] = field(default_factory=lambda: ["tensorboard"])

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "seed", self.seed, "a whole number from 0 to 4294967295")
        require(self.images_every >= 0, "images_every", self.images_every, "0 (none) or more epochs")
        require(self.early_stopping >= 0, "early_stopping", self.early_stopping, "0 (off) or more validations")
        if problem := problem_with(self.trainer):
            raise ConfigError(problem)
        for name in self.loggers:
            require(name in LOGGERS, "loggers", name, f"a list of {', '.join(LOGGERS)}")

    def to_yaml(self) -> str:
        """The run as YAML that `rs-biformer train --config` reads."""
        plain = asdict(self)
        plain["trainer"] = {key: value for key, value in plain["trainer"].items() if _is_plain(value)}
        return yaml.safe_dump(plain, sort_keys=False)


LOGGERS = ("tensorboard", "mlflow", "wandb")

SECTIONS = {
    "model": ModelConfig,
    "data": DataConfig,
    "loss": LossConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
}

TRAINER_DEFAULTS: dict[str, Any] = {"max_epochs": 100, "log_every_n_steps": 10, "enable_model_summary": False}
"""Where this command differs from Lightning: 1000 epochs, a row of metrics per 50 steps, a table of modules."""

_OURS = {"logger", "callbacks"}


def parse(arguments: Sequence[str]) -> TrainConfig:
    """A run from command line arguments: `--config FILE`, then `--section.key VALUE` that override it.

    What stands further right wins. A mapping that is free (loss.terms, optimizer.multipliers, model.arguments) replaces
    the one before; `--loss.terms.lovasz 0.5` changes a single entry.

    Raises ConfigError for a file that is missing or no YAML, for an unknown key (naming the nearest known one) and for
    a value of the wrong type.
    """
    known = known_keys()
    values: dict[str, Any] = {f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()}
    origins: dict[str, str] = {}
    for origin, key, value in _given(arguments, known):
        free = next((name for name, item in known.items() if key.startswith(f"{name}.") and _is_free(item)), None)
        if free is not None:
            key, value = free, _with_entry(values.get(free, _default(known[free])), key.removeprefix(f"{free}."), value)
        values[key], origins[key] = value, origin
    augment = _section(Augmentation, "data.augment", values, origins)
    sections = {name: _section(kind, name, values, origins, augment=augment) for name, kind in SECTIONS.items()}
    trainer = asdict(_section(TrainerOptions, "trainer", values, origins))
    config: TrainConfig = _section(TrainConfig, "", values, origins, **sections, trainer=trainer)
    return config


def known_keys() -> dict[str, Field[Any]]:
    """Every key of a config by its dotted name, in the order of `--print_config`."""
    keys: dict[str, Field[Any]] = {}
    parts = {**SECTIONS, "trainer": TrainerOptions}
    for item in fields(TrainConfig):
        for inner in fields(parts[item.name]) if item.name in parts else ():
            if inner.name == "augment":
                keys |= {f"data.augment.{field.name}": field for field in fields(Augmentation)}
            else:
                keys[f"{item.name}.{inner.name}"] = inner
        if item.name not in parts:
            keys[item.name] = item
    return keys


def explain_options() -> str:
    """Every option with its default and what it means, for a terminal."""
    kinds = {**SECTIONS, "data.augment": Augmentation, "trainer": TrainerOptions, "": TrainConfig}
    texts = {name: _explained(kind) for name, kind in kinds.items()}
    lines = ["options of the config, as keys of YAML sections or on the command line:", ""]
    for key, item in known_keys().items():
        section, _, name = key.rpartition(".")
        default = TRAINER_DEFAULTS.get(name, _default(item)) if section == "trainer" else _default(item)
        lines += [f"--{key} ({shown(default)})", f"    {texts[section][name]}"]
    return "\n".join(lines)


def _explained(kind: type[Any]) -> dict[str, str]:
    """What the docstring says of each argument, in one line."""
    text = (inspect.getdoc(kind) or "").partition("Args:")[2]  # Python 3.13 strips the indent itself
    entries = re.split(r"\n    (?=\w+: )", text.rstrip())[1:]
    return {name: " ".join(said.split()) for name, _, said in (entry.partition(": ") for entry in entries)}


def _given(arguments: Sequence[str], known: Mapping[str, Field[Any]]) -> Iterator[tuple[str, str, Any]]:
    """(file or nothing, dotted key, value) of every value that arguments and the files they name give, in order."""
    hints = _hints()
    rest = list(arguments)
    while rest:
        option, sign, text = rest.pop(0).partition("=")
        if not option.startswith("--"):
            raise ConfigError(f"{option!r} is no option; options are written --section.key VALUE")
        key = option.removeprefix("--")
        if key != "config":
            _require_key(key, known, "")
        if not sign:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{option} has no value; expected {option} VALUE")
            text = rest.pop(0)
        where = "" if key != "config" else text
        found = _read_yaml(Path(text)) if key == "config" else {key: _value(text, key, hints.get(key))}
        yield from ((where, name, value) for name, value in _leaves(found, known, where))


def _value(text: str, key: str, hint: Any) -> Any:
    """A value from the command line: YAML, but text as it stands where text is what the key holds."""
    if hint == str or (hint == str | None and text not in ("null", "~")):  # noqa: E721 - a union is no class
        return text
    return parse_yaml(text, f"--{key}")


def _hints() -> dict[str, Any]:
    kinds = {**SECTIONS, "data.augment": Augmentation, "trainer": TrainerOptions, "": TrainConfig}
    return {
        f"{section}.{name}".removeprefix("."): hint
        for section, kind in kinds.items()
        for name, hint in get_type_hints(kind).items()
    }


def _section(kind: type[Any], name: str, values: Mapping[str, Any], origins: Mapping[str, str], **parts: Any) -> Any:
    """An object of the values of a section. parts: what its fields may be that are sections themselves."""
    own = {item.name for item in fields(kind)}
    found = {part: value for part, value in parts.items() if part in own}
    found |= {
        key.removeprefix(f"{name}.") if name else key: value
        for key, value in values.items()
        if key.rpartition(".")[0] == name
    }
    try:
        return build(kind, found, "")
    except ConfigError as error:
        message = str(error).removeprefix(": ")
        if name and not message.startswith((f"{name}.", "augment.")):
            message = f"{name}.{message}"
        key = re.split(r"[ \[]", message)[0]
        origin = next((file for given, file in origins.items() if key == given or key.startswith(f"{given}.")), "")
        raise ConfigError(f"{origin}: {message}" if origin else message) from None


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _is_free(item: Field[Any]) -> bool:
    """Whether the key holds a mapping whose entries have names of their own, such as loss.terms."""
    return item.default_factory is dict or isinstance(_default(item), dict)


def _with_entry(mapping: Any, key: str, value: Any) -> dict[str, Any]:
    """A copy of a nested mapping with the entry of a dotted key."""
    first, _, rest = key.partition(".")
    whole = dict(mapping) if isinstance(mapping, dict) else {}
    return whole | {first: _with_entry(whole.get(first), rest, value) if rest else value}


def _require_key(key: str, known: Mapping[str, Any], where: str) -> None:
    section = key.split(".")[0]
    if key in known or _holds_keys(key, known):
        return
    if _in_free(key, known):
        return  # an entry of a free mapping, such as loss.terms.dice
    if section == "trainer" and key.split(".")[-1] in _OURS:
        raise ConfigError(f"{where}{key} is set by the command (CSV and TensorBoard, best and last); leave it out")
    near = get_close_matches(key, known, n=1, cutoff=0.5) or get_close_matches(
        key.split(".")[-1], [name.split(".")[-1] for name in known], n=1, cutoff=0.6
    )
    hint = next((name for name in known if near and name.endswith(near[0])), None)
    advice = f"did you mean {hint}?" if hint else f"sections are {', '.join((*SECTIONS, 'trainer'))}"
    raise ConfigError(f"{where}unknown key {shown(key)[1:-1]}; {advice} (--print_config shows them all)")


def _holds_keys(key: str, known: Mapping[str, Any]) -> bool:
    """Whether it is a section or a part of one, such as data.augment."""
    return any(name.startswith(f"{key}.") for name in known)


def _leaves(
    data: Mapping[Any, Any], known: Mapping[str, Any], where: str, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of the entries of nested mappings, not looking inside a known key."""
    begin = f"{where}: " if where else ""
    for name, value in data.items():
        key = f"{prefix}{name}"
        if key not in known and _holds_keys(key, known):
            if not isinstance(value, dict):
                raise ConfigError(f"{begin}{key} is {shown(value)}; it must be a mapping of keys to values")
            yield from _leaves(value, known, where, f"{key}.")
        elif isinstance(value, dict) and value and key not in known and not _in_free(key, known):
            yield from _leaves(value, known, where, f"{key}.")
        else:
            _require_key(key, known, begin)
            yield key, value


def _in_free(key: str, known: Mapping[str, Any]) -> bool:
    return any(key.startswith(f"{name}.") and _is_free(item) for name, item in known.items())


_BROUGHT = Path(__file__).parents[1]
"""Where a wheel puts the project's configs/: what the pages tell to type works without a checkout."""


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.parts[:1] == ("configs",) and not path.exists() and (_BROUGHT / path).is_file():
        path = _BROUGHT / path
    if not path.is_file():
        known = sorted(file.relative_to(_BROUGHT).as_posix() for file in _BROUGHT.glob("configs/*/recommended.yaml"))
        examples = f", such as {' or '.join(known)}" if known else ""
        raise ConfigError(
            f"no config file {path}; see configs/ for complete ones{examples}, or write one with --print_config"
        )
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no mapping of sections; see configs/ for complete files")
    return data


def _is_plain(value: Any) -> bool:
    """Whether YAML can hold it: an instantiated profiler or plugin cannot be written back."""
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
