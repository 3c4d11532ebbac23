"""Every option of a training run: plain dataclasses, YAML, and the command line that overrides it.

`parse` turns arguments and a YAML file into a `TrainConfig`; `train.run.train` takes one, so a script can build it
without either. Importing this module loads neither torch nor Lightning; parsing does, because the trainer section is
Lightning's own `Trainer` signature, type-checked.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from rs_biformer.data.augment import Augmentation
from rs_biformer.documents import read_yaml
from rs_biformer.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


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
        trainer.strategy
            ddp_find_unused_parameters_true.
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
        _require(self.freeze >= 0, "model.freeze", self.freeze, "0 or more epochs")


@dataclass(frozen=True)
class DataConfig:
    """The windows and the batches.

    Args:
        index: Folder or file that `rs-biformer tile` wrote.
        batch_size: Windows per step and device.
        workers: Processes that read windows; 0 reads in the training process. The result does not depend on it.
        samples_per_epoch: Windows drawn per epoch; null draws as many as there are training windows.
        balance: Strength of class-balanced sampling: 0 draws every window alike without repetition; s > 0 draws a
            window by the mean of frequency ** -s over its labelled pixels, so 1 makes rare classes about as frequent
            as common ones.
        jitter: Furthest shift of a training window from its indexed place, as a share of the window. A shift that
            would touch a window of another split is not made.
        focus: How often a window is moved to show, near its centre, one of the classes that its place has, each as
            likely as the others, instead of being shifted at random.
        mosaic: How often a training window is put together from the quarters of four.
        nearby: Draw the windows of an epoch area by area, 16 areas of 1024 pixels mixed at a time, so that compressed
            blocks of data sets larger than memory are decoded once and not several times.
        ignore_boundary: Pixels around class boundaries that get no label, in training and validation; 3 is the ISPRS
            rule.
        cache: Keep the decoded scenes in memory, shared by the workers, where they fit into 40 % of it; otherwise
            they are read from their files by block.
        block_cache: MiB of decoded blocks that all workers together keep when the scenes are not.
        overlapping_validation: Score all validation windows. By default only those that do not overlap, which cost a
            quarter at an overlap of 0.5 and count no pixel twice.
        augment: Random changes of training windows; all are off by default.
    """

    index: str = ""
    batch_size: int = 8
    workers: int = 2
    samples_per_epoch: int | None = None
    balance: float = 0.0
    jitter: float = 0.0
    focus: float = 0.0
    mosaic: float = 0.0
    nearby: bool = False
    ignore_boundary: int = 0
    cache: bool = False
    block_cache: int = 512
    overlapping_validation: bool = False
    augment: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, "data.batch_size", self.batch_size, "1 or more")
        _require(self.workers >= 0, "data.workers", self.workers, "0 or more")
        samples = self.samples_per_epoch
        _require(samples is None or samples >= 1, "data.samples_per_epoch", samples, "null, or 1 or more")
        _require(0 <= self.balance <= 2, "data.balance", self.balance, "between 0 (off) and 2")
        _require(0 <= self.jitter <= 1, "data.jitter", self.jitter, "between 0 (off) and 1 (a whole window)")
        for name in ("focus", "mosaic"):
            _require(0 <= getattr(self, name) <= 1, f"data.{name}", getattr(self, name), "between 0 (never) and 1")
        _require(0 <= self.ignore_boundary <= 64, "data.ignore_boundary", self.ignore_boundary, "0 to 64 pixels")
        _require(self.block_cache >= 0, "data.block_cache", self.block_cache, "0 MiB or more")


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
        _require(0 <= self.balance <= 2, "loss.balance", self.balance, "between 0 (off) and 2")
        _require(self.auxiliary >= 0, "loss.auxiliary", self.auxiliary, "0 or more, such as 0.4")


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
        ema: Decay of an exponential moving average of the weights, such as 0.999, that validation, best.ckpt and
            last.ckpt then hold; 0 keeps none. Early on the decay is lower, so that short runs forget their start.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    momentum: float = 0.9
    multipliers: dict[str, float] = field(default_factory=dict)
    ema: float = 0.0

    def __post_init__(self) -> None:
        _require(self.name in ("adamw", "sgd"), "optimizer.name", self.name, "adamw or sgd")
        _require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "positive")
        _require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
        _require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "in [0, 1)")
        for name, multiple in self.multipliers.items():
            _require(multiple >= 0, f"optimizer.multipliers.{name}", multiple, "0 (frozen) or more")
        _require(0 <= self.ema < 1, "optimizer.ema", self.ema, "in [0, 1), such as 0.999")


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
        _require(self.name in names, "schedule.name", self.name, ", ".join(names))
        _require(0 <= self.warmup < 1, "schedule.warmup", self.warmup, "a share of the run in [0, 1), such as 0.1")
        _require(self.power > 0, "schedule.power", self.power, "positive")
        _require(0 <= self.final <= 1, "schedule.final", self.final, "between 0 and 1")


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run.

    Args:
        out: Run folder: config.yaml, metrics.csv, best.ckpt, last.ckpt and TensorBoard events go there.
        seed: Of the initial weights, the sampling and the augmentation.
        resume: auto continues out/last.ckpt where there is one and starts afresh otherwise; or a checkpoint to
            continue. null refuses a folder that holds a run.
        images_every: Epochs between sample predictions in TensorBoard; 0 draws none.
        early_stopping: Validations without a better val/mean_iou after which the run ends; 0 never ends it.
        loggers: Where figures go besides metrics.csv: tensorboard, mlflow, wandb (the last two need their packages).
        trainer: Options of Lightning's Trainer except logger and callbacks, which are the command's.
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
        _require(self.early_stopping >= 0, "early_stopping", self.early_stopping, "0 (off) or more validations")
        for name in self.loggers:
            _require(name in LOGGERS, "loggers", name, f"a list of {', '.join(LOGGERS)}")

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


def create_parser() -> "ArgumentParser":
    """The jsonargparse parser of `rs-biformer train`: --config, --print_config and every --section.key."""
    from jsonargparse import ArgumentParser
    from pytorch_lightning import Trainer

    parser = ArgumentParser(prog="rs-biformer train", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of these options")
    top = [item.name for item in fields(TrainConfig) if item.name not in (*SECTIONS, "trainer")]
    parser.add_class_arguments(TrainConfig, skip={*SECTIONS, "trainer"}, instantiate=False)
    for name, section in SECTIONS.items():
        parser.add_class_arguments(section, name)
    parser.add_class_arguments(Trainer, "trainer", skip=_OURS, instantiate=False)
    parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})
    assert all(name in parser.get_defaults() for name in top)
    return parser


def parse(arguments: Sequence[str]) -> TrainConfig:
    """A run from command line arguments: `--config FILE`, then `--section.key VALUE` that override it.

    Raises ConfigError for a file that is missing or no YAML, for an unknown key (naming the nearest known one) and for
    a value of the wrong type. `--print_config` prints and exits, as argparse's actions do.
    """
    from argparse import ArgumentError

    parser = create_parser()
    _require_known(parser, arguments)
    try:
        parsed = parser.parse_args(list(arguments))
        built = parser.instantiate(parsed)
    except ArgumentError as error:
        raise ConfigError(_one_line(str(error))) from None
    sections = {name: getattr(built, name) for name in SECTIONS}
    plain = {
        item.name: getattr(built, item.name) for item in fields(TrainConfig) if item.name not in (*SECTIONS, "trainer")
    }
    return TrainConfig(**sections, **plain, trainer=built.trainer.as_dict())


def _require_known(parser: "ArgumentParser", arguments: Sequence[str]) -> None:
    """Refuse keys that no section has, before jsonargparse, which would not say what they are near to."""
    known = {key: value for key, value in parser.get_defaults().items() if key != "config"}
    for number, argument in enumerate(arguments):
        option, _, inline = argument.partition("=")
        if not option.startswith("--") or option.startswith("--print_config") or option == "--help":
            continue
        if option != "--config":
            _require_key(option.removeprefix("--"), known, "")
            continue
        following = arguments[number + 1 : number + 2]
        for path in [inline] if inline else following:
            for key, value in _leaves(_read_yaml(Path(path)), set(known)):
                if key not in known and not isinstance(value, dict) and _holds_keys(key, known):
                    raise ConfigError(f"{path}: {key} is {value!r}; it must be a mapping of keys to values")
                _require_key(key, known, f"{path}: ")


def _require_key(key: str, known: Mapping[str, Any], where: str) -> None:
    section = key.split(".")[0]
    if key in known or _holds_keys(key, known):
        return
    if any(key.startswith(f"{name}.") and isinstance(value, dict) for name, value in known.items()):
        return  # an entry of a free mapping, such as loss.terms.dice
    if section == "trainer" and key.split(".")[-1] in _OURS:
        raise ConfigError(f"{where}{key} is set by the command (CSV and TensorBoard, best and last); leave it out")
    near = get_close_matches(key, known, n=1, cutoff=0.5) or get_close_matches(
        key.split(".")[-1], [name.split(".")[-1] for name in known], n=1, cutoff=0.6
    )
    hint = next((name for name in known if near and name.endswith(near[0])), None)
    advice = f"did you mean {hint}?" if hint else f"sections are {', '.join((*SECTIONS, 'trainer'))}"
    raise ConfigError(f"{where}unknown key {key}; {advice} (--print_config shows them all)")


def _holds_keys(key: str, known: Mapping[str, Any]) -> bool:
    """Whether it is a section or a part of one, such as data.augment."""
    return any(name.startswith(f"{key}.") for name in known)


def _leaves(data: Any, known: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of the entries of nested mappings, not looking inside a known key."""
    for name, value in data.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value and key not in known:
            yield from _leaves(value, known, f"{key}.")
        else:
            yield key, value


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"no config file {path}; see configs/ for complete ones, or write one with --print_config")
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no mapping of sections; see configs/ for complete files")
    return data


def _require(condition: bool, key: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{key} is {value}; it must be {allowed}")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _is_plain(value: Any) -> bool:
    """Whether YAML can hold it: an instantiated profiler or plugin cannot be written back."""
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
