"""The options of Lightning's Trainer that a config may have: numbers, names and switches, never an object.

Lightning itself takes strategies, plugins, profilers and loggers as objects, and tools that fill such arguments from
files import whatever a file names. A config is data, so here everything is a number or one of the names listed.
"""

from dataclasses import dataclass
from typing import Any, Literal

Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Strategy = Literal[
    "auto",
    "ddp",
    "ddp_find_unused_parameters_true",
    "ddp_find_unused_parameters_false",
    "ddp_spawn",
    "fsdp",
    "deepspeed",
    "deepspeed_stage_1",
    "deepspeed_stage_2",
    "deepspeed_stage_3",
]
Precision = Literal[
    "32-true",
    "bf16-mixed",
    "16-mixed",
    "bf16-true",
    "16-true",
    "64-true",
    "transformer-engine",
    "transformer-engine-float16",
    "64",
    "32",
    "16",
    "bf16",
    64,
    32,
    16,
]


@dataclass(frozen=True)
class TrainerOptions:
    """What Lightning's Trainer is told; the defaults are Lightning's, except those of `config.TRAINER_DEFAULTS`.

    Args:
        accelerator: What computes: auto, cpu, gpu, cuda or mps.
        strategy: How several devices share the work, by Lightning's name: auto, ddp, ddp_find_unused_parameters_true,
            fsdp, ...
        devices: How many, which ([0, 2]), or auto for all.
        num_nodes: Machines.
        precision: 32-true, bf16-mixed, 16-mixed, ...; null is 32-true.
        fast_dev_run: Steps of a dry run; --fast does it with an estimate of the time.
        max_epochs: Epochs at most; -1 for no end.
        min_epochs: Epochs at least, whatever early stopping says.
        max_steps: Optimizer steps at most; -1 for no end.
        min_steps: Optimizer steps at least.
        max_time: Time at most, as DD:HH:MM:SS or {hours: 2}.
        limit_train_batches: Batches of an epoch at most: a number, or a share as 0.5.
        limit_val_batches: Batches of a validation at most: a number, or a share.
        limit_test_batches: Unused by this command.
        limit_predict_batches: Unused by this command.
        overfit_batches: Train on so few batches, again and again, to see whether the network can learn them.
        val_check_interval: Validate after this share of an epoch or this many batches.
        check_val_every_n_epoch: Validate after this many epochs.
        num_sanity_val_steps: Validation batches that are tried before the first step.
        log_every_n_steps: Steps between two rows of metrics.csv.
        enable_checkpointing: false writes no checkpoint.
        enable_progress_bar: false shows none.
        enable_model_summary: true prints a table of the network's parts.
        accumulate_grad_batches: Batches whose gradients make one step.
        gradient_clip_val: Largest norm (or value) of a gradient.
        gradient_clip_algorithm: norm or value.
        deterministic: true allows only operations that give the same bits again; warn says which would not.
        benchmark: Let cuDNN choose its kernels by trying them.
        inference_mode: Validate under inference mode rather than no_grad.
        use_distributed_sampler: Has no effect here, where the samplers know the devices.
        profiler: simple, advanced or pytorch.
        detect_anomaly: Find the operation that made a NaN; slow.
        barebones: Nothing but the steps, to measure their speed.
        plugins: null; plugins are objects.
        sync_batchnorm: Batch statistics over all devices.
        reload_dataloaders_every_n_epochs: 0 makes the loaders once.
        default_root_dir: Unused by this command, which writes into out.
        enable_autolog_hparams: Has no effect here.
        model_registry: Has no effect here.
    """

    accelerator: Accelerator = "auto"
    strategy: Strategy = "auto"
    devices: list[int] | int | str = "auto"
    num_nodes: int = 1
    precision: Precision | None = None
    fast_dev_run: bool | int = False
    max_epochs: int | None = None
    min_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    max_time: str | dict[str, int] | None = None
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    limit_test_batches: int | float | None = None
    limit_predict_batches: int | float | None = None
    overfit_batches: int | float = 0.0
    val_check_interval: int | float | str | dict[str, int] | None = None
    check_val_every_n_epoch: int | None = 1
    num_sanity_val_steps: int | None = None
    log_every_n_steps: int | None = None
    enable_checkpointing: bool | None = None
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: int | float | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    inference_mode: bool = True
    use_distributed_sampler: bool = True
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    detect_anomaly: bool = False
    barebones: bool = False
    plugins: None = None
    sync_batchnorm: bool = False
    reload_dataloaders_every_n_epochs: int = 0
    default_root_dir: str | None = None
    enable_autolog_hparams: bool = True
    model_registry: str | None = None


def problem_with(options: dict[str, Any]) -> str:
    """What cannot be meant among options that have the right types, or nothing."""
    for name, least in (("accumulate_grad_batches", 1), ("num_nodes", 1), ("check_val_every_n_epoch", 1)):
        value = options.get(name)
        if value is not None and value < least:
            return f"trainer.{name} is {value}; it must be {least} or more"
    for name in ("max_epochs", "max_steps"):
        value = options.get(name)
        if value is not None and (value < -1 or value == 0):
            return f"trainer.{name} is {value}; it must be 1 or more, or -1 for no end"
    for name in ("limit_train_batches", "limit_val_batches", "overfit_batches", "gradient_clip_val"):
        value = options.get(name)
        if value is not None and value < 0:
            return f"trainer.{name} is {value}; it must be 0 or more"
    interval = options.get("val_check_interval")
    if isinstance(interval, int | float) and interval <= 0:
        return f"trainer.val_check_interval is {interval}; it must be more than 0: a share of an epoch, or batches"
    if (batches := options.get("num_sanity_val_steps")) is not None and batches < -1:
        return f"trainer.num_sanity_val_steps is {batches}; it must be 0 or more, or -1 for all"
    return ""
