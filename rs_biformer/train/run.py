"""A training run from its options: checks, network, data, Lightning's Trainer, and what lies in the run folder."""

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import nn

from rs_biformer import __version__
from rs_biformer.checkpoint import CheckpointMeta, strip_checkpoint
from rs_biformer.data.datamodule import TileDataModule
from rs_biformer.data.index import Manifest, TileIndex
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.nn.losses import create_loss
from rs_biformer.train import folder
from rs_biformer.train.callbacks import (
    Averaging,
    BeginFolder,
    OneCheckpoint,
    SamplePredictions,
    SaveWhenTerminated,
    Speed,
)
from rs_biformer.train.checks import CheckFirstBatch, warnings_about
from rs_biformer.train.config import TRAINER_DEFAULTS, ModelConfig, TrainConfig
from rs_biformer.train.finetune import FreezeEncoder, begin_from
from rs_biformer.train.folder import BEST_NAME, LAST_NAME, METRICS_NAME
from rs_biformer.train.optim import class_weights
from rs_biformer.train.resuming import Restored, Resumed, one_line, read_resumed
from rs_biformer.train.task import SegmentationTask
from rs_biformer.train.writing import Metrics, WholeCheckpoints, keep_rows

log = logging.getLogger(__name__)

TERMINATED = 143
"""Exit code of a process that SIGTERM ended, by the convention of shells: 128 + 15."""

DRY_STEPS = 4
"""Steps of a dry run: two to warm up and two to time."""


def train(config: TrainConfig, *, fast: bool = False, say: Callable[[str], None] = log.info) -> Path:
    """Train a network and return the run folder, config.out.

    It then holds config.yaml, metrics.csv, events of TensorBoard if there is one, last.ckpt (the state after the last
    epoch, from which the same command goes on) and best.ckpt (the weights of the highest val/mean_iou, without the
    optimizer's state once the run is over; absent without validation windows). `say` gets a few lines for people.

    fast: a dry run: all checks, a few steps and validation batches, and an estimate of the time; nothing is written.

    Raises ConfigError, RasterError or CheckpointError before the first step where the index, the options, the folder,
    the disk, the first batch or the checkpoint to resume from do not fit.
    """
    if fast:
        config = replace(config, trainer=config.trainer | {"fast_dev_run": DRY_STEPS})
    out = Path(config.out)
    with quiet(), nullcontext() if fast else folder.held(out):
        path = None if fast else folder.checkpoint_to_resume(config)
        data, task, meta = assemble(config, resuming=path is not None)
        resumed = None if path is None else read_resumed(path, meta)
        if resumed is None and config.model.weights is not None:
            say(begin_from(config.model.weights, task.model, meta, config.model.weights_bands))
        if config.model.compile:
            task.model.compile()  # in place: the names of the weights stay
        if not fast:
            _require_room(out, task, config)
        trainer = _create_trainer(config, out, has_validation=len(data.val) > 0)
        _require_steps(data, trainer)
        for line in _summary(config, data, task, resumed, trainer):
            say(line)
        if trainer.is_global_zero and not fast:
            keep_rows(out / METRICS_NAME, 0 if resumed is None else resumed.steps)
        _fit(trainer, task, data, resumed, config, say)
        if fast:
            say(_estimate(data, trainer))
        elif trainer.is_global_zero:
            _finish(out)
    return out


def _finish(out: Path) -> None:
    if (out / BEST_NAME).is_file():
        strip_checkpoint(out / BEST_NAME)
    folder.finish(out)


def _fit(
    trainer: Trainer,
    task: SegmentationTask,
    data: TileDataModule,
    resumed: Resumed | None,
    config: TrainConfig,
    say: Callable[[str], None],
) -> None:
    goes_on = "the same command" if config.resume in (None, "auto") else "--resume auto"
    try:
        with one_line(resumed, trainer):
            path = None if resumed is None else resumed.path
            trainer.fit(task, datamodule=data, ckpt_path=path, weights_only=True)
    except SIGTERMException:
        say(f"terminated after step {trainer.global_step}; {goes_on} goes on from there in {config.out}")
        raise SystemExit(TERMINATED) from None
    except SystemExit:  # what Lightning makes of Ctrl-C
        say(f"stopped; {goes_on} goes on from the last whole epoch in {config.out}")
        raise KeyboardInterrupt from None
    except MisconfigurationException as error:  # options that it looks at only here
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from None


def assemble(config: TrainConfig, *, resuming: bool = False) -> tuple[TileDataModule, SegmentationTask, CheckpointMeta]:
    """Data, network with loss, and the description of a run, with its seed set. Raises as `train` does.

    resuming: the network gets its weights from a checkpoint, so what it once began from need not be there any more.
    """
    if not config.data.index:
        raise ConfigError("data.index is not set; give the folder that `rs-biformer tile` wrote: --data.index DIR")
    index = TileIndex.read(config.data.index)
    meta = describe(index.manifest, config.model)
    seed_everything(config.seed, workers=True, verbose=False)
    data = TileDataModule(index, config.data, seed=config.seed)
    beginning = None if resuming else config.model.arguments.get("encoder_weights")
    return data, _create_task(config, meta, data, beginning), meta


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


def _create_task(
    config: TrainConfig, meta: CheckpointMeta, data: TileDataModule, encoder_weights: str | None
) -> SegmentationTask:
    try:
        network = meta.create_network(encoder_weights)
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
    callbacks: list[Callback] = [Restored(), CheckFirstBatch()]
    if not options.get("fast_dev_run"):
        callbacks.append(BeginFolder(config))
    if config.optimizer.ema:
        callbacks.append(Averaging(config.optimizer.ema))
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
    loggers = False if bare else [Metrics(out), *_create_loggers(config.loggers, out)]
    return new_trainer(**options | _plugins(options), logger=loggers, callbacks=callbacks)


def _plugins(options: Mapping[str, Any]) -> dict[str, Any]:
    """How checkpoints are written, where it is not for the strategy to say."""
    if not str(options.get("strategy") or "auto").startswith(("auto", "ddp")):
        return {}
    return {"plugins": [*(options.get("plugins") or ()), WholeCheckpoints()]}


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
    loggers = []
    for name in names:
        try:
            loggers.append(create[name]())
        except ModuleNotFoundError as error:
            if name != "tensorboard":  # which configs name by default: a run without its package says so and goes on
                raise ConfigError(f"loggers: {error}; install the package or leave the logger out") from None
    return loggers


def _checkpoints(out: Path, *, has_validation: bool) -> list[Callback]:
    last = OneCheckpoint(out / LAST_NAME, every_n_epochs=1, save_on_train_epoch_end=True)
    best = [OneCheckpoint(out / BEST_NAME, monitor="val/mean_iou", mode="max")] if has_validation else []
    return [*best, last, SaveWhenTerminated(out / LAST_NAME)]


def _require_room(out: Path, task: nn.Module, config: TrainConfig) -> None:
    """Raise RasterError unless two checkpoints fit on the disk, beside the one that is being written."""
    states = {"sgd": 1, "adamw": 2}[config.optimizer.name] + (1 if config.optimizer.ema else 0)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in task.parameters())
    needed = 3 * weights * (1 + states)
    free = shutil.disk_usage(out).free
    if config.trainer.get("enable_checkpointing") is not False and free < needed:
        raise RasterError(
            f"{out} has {free / 2**20:.0f} MiB free and the checkpoints of this run need {needed / 2**20:.0f}; "
            "free some space or give another --out"
        )


def _require_steps(data: TileDataModule, trainer: Trainer) -> None:
    """Raise ConfigError where an epoch has no batch for some device, or ends before it is to be validated."""
    data.require_batches(trainer.world_size)
    steps = data.samples // trainer.world_size // data.options.batch_size
    every = trainer.val_check_interval
    if isinstance(every, int) and trainer.check_val_every_n_epoch is not None and every > steps and len(data.val):
        raise ConfigError(
            f"trainer.val_check_interval is {every} batches and an epoch has {steps}; lower it, or set "
            "trainer.check_val_every_n_epoch to null to count across epochs"
        )


def _summary(
    config: TrainConfig, data: TileDataModule, task: SegmentationTask, resumed: Resumed | None, trainer: Trainer
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
        yield f"resuming from {resumed.path}"
    if trainer.loggers:  # a dry run leaves nothing there
        yield f"run folder: {config.out}{_where_curves_are(config, trainer)}"


def _where_curves_are(config: TrainConfig, trainer: Trainer) -> str:
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        return f" (curves: tensorboard --logdir {config.out})"
    if "tensorboard" in config.loggers:
        return (
            " (figures in metrics.csv; for curves: pip install 'rs_biformer[tensorboard]' and start the command again)"
        )
    return ""


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
