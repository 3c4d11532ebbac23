"""A training run from its options: checks, network, data, Lightning's Trainer, and what lies in the run folder."""

import csv
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import nn

from rs_biformer import __version__
from rs_biformer.checkpoint import CheckpointMeta, read_checkpoint, strip_checkpoint
from rs_biformer.data.datamodule import TileDataModule
from rs_biformer.data.index import Manifest, TileIndex
from rs_biformer.errors import CheckpointError, ConfigError, RasterError
from rs_biformer.files import write_text
from rs_biformer.nn.losses import create_loss
from rs_biformer.train.callbacks import SamplePredictions, SaveWhenTerminated, Speed
from rs_biformer.train.checks import CheckFirstBatch, warnings_about
from rs_biformer.train.config import TRAINER_DEFAULTS, ModelConfig, TrainConfig
from rs_biformer.train.finetune import FreezeEncoder, begin_from
from rs_biformer.train.optim import class_weights, moving_average
from rs_biformer.train.task import SegmentationTask

log = logging.getLogger(__name__)

TERMINATED = 143
"""Exit code of a process that SIGTERM ended, by the convention of shells: 128 + 15."""

DRY_STEPS = 4
"""Steps of a dry run: two to warm up and two to time."""

CONFIG_NAME, BEST_NAME, LAST_NAME, METRICS_NAME = "config.yaml", "best.ckpt", "last.ckpt", "metrics.csv"


def train(config: TrainConfig, *, fast: bool = False, say: Callable[[str], None] = log.info) -> Path:
    """Train a network and return the run folder, config.out.

    It then holds config.yaml, metrics.csv, TensorBoard events, last.ckpt (the state after the last epoch, from which
    the same command with resume: auto goes on) and best.ckpt (the weights of the highest val/mean_iou, without the
    optimizer's state once the run is over; absent without validation windows). `say` gets a few lines for people.

    fast: a dry run: all checks, a few steps and validation batches, and an estimate of the time; nothing is written.

    Raises ConfigError, RasterError or CheckpointError before the first step where the index, the options, the folder,
    the disk, the first batch or the checkpoint to resume from do not fit.
    """
    if fast:
        config = replace(config, trainer=config.trainer | {"fast_dev_run": DRY_STEPS})
    data, task, meta = assemble(config)
    out, resumed = Path(config.out), None if fast else _checkpoint_to_resume(config)
    if resumed is not None:
        _require_same_model(resumed, meta)
    if config.model.weights is not None and resumed is None:
        say(begin_from(config.model.weights, task.model, meta, config.model.weights_bands))
    if config.model.compile:
        task.model.compile()  # in place: the names of the weights stay
    if not fast:
        _prepare_folder(out, task, config)
    with quiet():
        trainer = _create_trainer(config, out, has_validation=len(data.val) > 0)
        for line in _summary(config, data, task, resumed, trainer):
            say(line)
        if resumed is not None:
            _restore_metrics(trainer, out / METRICS_NAME, resumed)
        _fit(trainer, task, data, resumed, out, say)
    if fast:
        say(_estimate(data, trainer))
    elif trainer.is_global_zero and (out / BEST_NAME).is_file():
        strip_checkpoint(out / BEST_NAME)
    return out


def _fit(
    trainer: Trainer,
    task: SegmentationTask,
    data: TileDataModule,
    resumed: Path | None,
    out: Path,
    say: Callable[[str], None],
) -> None:
    try:
        trainer.fit(task, datamodule=data, ckpt_path=resumed, weights_only=True)
    except SIGTERMException:
        say(f"terminated after step {trainer.global_step}; --resume auto goes on from there in {out}")
        raise SystemExit(TERMINATED) from None
    except SystemExit:  # what Lightning makes of Ctrl-C
        say(f"stopped; --resume auto goes on from the last whole epoch in {out}")
        raise KeyboardInterrupt from None


def assemble(config: TrainConfig) -> tuple[TileDataModule, SegmentationTask, CheckpointMeta]:
    """Data, network with loss, and the description of a run, with its seed set. Raises as `train` does."""
    if not config.data.index:
        raise ConfigError("data.index is not set; give the folder that `rs-biformer tile` wrote: --data.index DIR")
    index = TileIndex.read(config.data.index)
    meta = describe(index.manifest, config.model)
    seed_everything(config.seed, workers=True, verbose=False)
    data = _create_data(config, index)
    return data, _create_task(config, meta, data), meta


def _estimate(data: TileDataModule, trainer: Trainer) -> str:
    speed = trainer.callback_metrics.get("speed/windows_per_second")
    line = f"dry run: {DRY_STEPS} steps and a validation went through, nothing was written"
    if speed is None:
        return line
    minutes = data.samples / speed.item() / 60
    return f"{line}; {speed:.1f} windows per second, about {minutes:.1f} minutes of training per epoch"


def describe(manifest: Manifest, model: ModelConfig) -> CheckpointMeta:
    """What the checkpoints of a run carry, from the index it trains on and the network's options."""
    return CheckpointMeta(
        encoder=model.encoder,
        decoder=model.decoder,
        model_arguments=dict(model.arguments),
        schema=manifest.schema,
        bands=manifest.bands,
        dtype=manifest.dtype,
        mean=manifest.mean,
        std=manifest.std,
        window=manifest.window,
        gsd=manifest.gsd,
        version=__version__,
        reading=manifest.reading,
        shared_ground=manifest.shared_ground,
    )


def _create_data(config: TrainConfig, index: TileIndex) -> TileDataModule:
    data = config.data
    return TileDataModule(
        index,
        batch_size=data.batch_size,
        workers=data.workers,
        samples_per_epoch=data.samples_per_epoch,
        balance=data.balance,
        jitter=data.jitter,
        focus=data.focus,
        mosaic=data.mosaic,
        nearby=data.nearby,
        ignore_boundary=data.ignore_boundary,
        cache=data.cache,
        block_cache=data.block_cache,
        overlapping_validation=data.overlapping_validation,
        augment=data.augment,
        seed=config.seed,
    )


def _create_task(config: TrainConfig, meta: CheckpointMeta, data: TileDataModule) -> SegmentationTask:
    try:
        network = meta.create_network(config.model.arguments.get("encoder_weights"))
    except TypeError as error:
        raise ConfigError(f"model.arguments do not fit {meta.encoder} + {meta.decoder}: {error}") from None
    loss = create_loss(
        config.loss.terms,
        class_weights=class_weights(data.class_frequencies.tolist(), config.loss.balance),
        label_smoothing=config.loss.label_smoothing,
    )
    return SegmentationTask(
        network,
        loss,
        meta,
        optimizer=config.optimizer,
        schedule=config.schedule,
        auxiliary=config.loss.auxiliary,
    )


def _create_trainer(config: TrainConfig, out: Path, *, has_validation: bool) -> Trainer:
    options = {**TRAINER_DEFAULTS, **config.trainer}
    # In these two modes Lightning refuses loggers and checkpoints.
    bare = bool(options.get("barebones") or options.get("fast_dev_run"))
    if options.get("barebones"):
        options.pop("log_every_n_steps")
    if not has_validation:
        options["limit_val_batches"] = 0
    saves = options.get("enable_checkpointing") is not False and not bare
    callbacks: list[Callback] = [CheckFirstBatch()]
    if config.optimizer.ema:
        callbacks.append(WeightAveraging(multi_avg_fn=moving_average(config.optimizer.ema)))
    if config.images_every and not bare:
        callbacks.append(SamplePredictions(config.images_every))
    if not options.get("barebones"):
        callbacks.append(Speed())
    if config.model.freeze:
        callbacks.append(FreezeEncoder(config.model.freeze))
    if config.early_stopping and has_validation:
        callbacks.append(EarlyStopping("val/mean_iou", mode="max", patience=config.early_stopping))
    if saves:
        callbacks += _checkpoints(out, has_validation=has_validation)
    loggers = False if bare else [CSVLogger(out, name="", version=""), *_create_loggers(config.loggers, out)]
    return new_trainer(**options, logger=loggers, callbacks=callbacks)


def new_trainer(**options: Any) -> Trainer:
    """Lightning's Trainer. Raises ConfigError for options that it refuses."""
    try:
        return Trainer(**options)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from None


def _create_loggers(names: Sequence[str], out: Path) -> list[Logger]:
    create: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoardLogger(out, name="", version="tensorboard"),
        "mlflow": lambda: MLFlowLogger(out.name, tracking_uri=os.environ.get("MLFLOW_TRACKING_URI"), save_dir=str(out)),
        "wandb": lambda: WandbLogger(name=out.name, save_dir=out),
    }
    try:
        return [create[name]() for name in names]
    except ModuleNotFoundError as error:
        raise ConfigError(f"loggers: {error}; install the package or leave the logger out") from None


def _checkpoints(out: Path, *, has_validation: bool) -> list[Callback]:
    def keep(name: str, **when: Any) -> ModelCheckpoint:
        return ModelCheckpoint(
            out, Path(name).stem, auto_insert_metric_name=False, enable_version_counter=False, save_top_k=1, **when
        )

    last = keep(LAST_NAME, every_n_epochs=1, save_on_train_epoch_end=True)
    best = [keep(BEST_NAME, monitor="val/mean_iou", mode="max")] if has_validation else []
    return [*best, last, SaveWhenTerminated(out / LAST_NAME)]


def _checkpoint_to_resume(config: TrainConfig) -> Path | None:
    """The checkpoint that config.resume means. Raises ConfigError where the run folder is taken and must not be."""
    out = Path(config.out)
    if config.resume == "auto":
        last = out / LAST_NAME
        return last if last.is_file() else None
    if config.resume is not None:
        path = Path(config.resume)
        if not path.is_file():
            raise CheckpointError(f"no checkpoint {path} to resume from; --resume auto continues the run in --out")
        return path
    taken = [name for name in (LAST_NAME, BEST_NAME, METRICS_NAME) if (out / name).exists()]
    if taken:
        raise ConfigError(
            f"{out} holds another run ({taken[0]}); continue it with --resume auto, or give another --out"
        )
    return None


def _require_same_model(path: Path, meta: CheckpointMeta) -> None:
    content, saved = read_checkpoint(path)
    if "optimizer_states" not in content:
        raise CheckpointError(f"{path} holds weights alone; resume from the {LAST_NAME} of its run")
    for name in ("encoder", "decoder", "model_arguments", "schema", "bands", "dtype", "mean", "std"):
        before, now = getattr(saved, name), getattr(meta, name)
        if before != now:
            short = "" if name == "schema" else f" ({before} then, {now} now)"
            raise CheckpointError(
                f"{path} was trained with another {name}{short}; resume with the config and the index of that run, or "
                "start a new run in another --out"
            )


def _prepare_folder(out: Path, task: nn.Module, config: TrainConfig) -> None:
    """Make the run folder, see that two checkpoints fit on its disk, and write config.yaml."""
    states = {"sgd": 1, "adamw": 2}[config.optimizer.name] + (1 if config.optimizer.ema else 0)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in task.parameters())
    needed = 3 * weights * (1 + states)  # best, last, and the one being written
    try:
        out.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out).free
        if config.trainer.get("enable_checkpointing") is not False and free < needed:
            raise RasterError(
                f"{out} has {free / 2**20:.0f} MiB free and the checkpoints of this run need {needed / 2**20:.0f}; "
                "free some space or give another --out"
            )
        write_text(out / CONFIG_NAME, config.to_yaml())
    except OSError as error:
        raise ConfigError(f"cannot write the run folder {out}: {error.strerror}; give another --out") from None


def _restore_metrics(trainer: Trainer, path: Path, resumed: Path) -> None:
    """Hand the rows of metrics.csv up to the resumed step back to the CSV logger, which would start the file anew."""
    if not path.is_file():
        return
    content, _ = read_checkpoint(resumed)
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) < content["global_step"]]
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            logger.experiment.metrics = [{key: value for key, value in row.items() if value} for row in rows]


def _summary(
    config: TrainConfig, data: TileDataModule, task: SegmentationTask, resumed: Path | None, trainer: Trainer
) -> Iterator[str]:
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    device = trainer.strategy.root_device
    yield (
        f"{config.model.encoder} + {config.model.decoder}: {parameters / 1e6:.1f} M parameters on {device.type}, "
        f"precision {trainer.precision}"
    )
    manifest = data.index.manifest
    yield (
        f"{len(data.train)} training and {len(data.val)} validation windows of {manifest.window} px, "
        f"{len(manifest.schema)} classes, bands {', '.join(manifest.bands)}"
    )
    for warning in warnings_about(data):
        yield f"warning: {warning}"
    if not len(data.val):
        yield f"no val windows: no {BEST_NAME} will be chosen, only {LAST_NAME}; tile with a val split to have one"
    if resumed is not None:
        yield f"resuming from {resumed}"
    if trainer.loggers:  # a dry run leaves nothing there
        yield f"run folder: {config.out} (curves: tensorboard --logdir {config.out})"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's advice off the screen where it does not apply to this command; real warnings still show."""
    ours = {
        "does not have many workers": "how many workers pay off is data.workers; on two cores it is none",
        "Experiment logs directory": "the run folder is checked by us, and resuming keeps metrics.csv",
        "Checkpoint directory .* exists": "the same",
        "You are trying to `self.log": "trainer.barebones switches logging off, which is what was asked for",
        "The number of training batches": "few steps per epoch are what small data sets have",
        "GPU available but not used": "the user said trainer.accelerator=cpu",
        "`isinstance.treespec, LeafSpec": "inside Lightning, with newer torch",
        "You're resuming from a checkpoint that ended before the epoch ended": "TrainLoader goes on in the middle",
        "`ModelCheckpoint.monitor=.* could not find": "a run terminated during a validation goes on without it",
    }
    banners = logging.getLogger("pytorch_lightning.utilities.rank_zero")  # what hardware there is, why it stopped
    before = banners.level
    with warnings.catch_warnings():
        for message in ours:
            warnings.filterwarnings("ignore", message=f".*{message}")
        banners.setLevel(logging.WARNING)
        try:
            yield
        finally:
            banners.setLevel(before)
