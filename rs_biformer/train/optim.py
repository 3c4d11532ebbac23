"""Optimizer, learning rate schedule and class weights, as functions of the options."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rs_biformer.errors import ConfigError
from rs_biformer.nn.encoders.plain import layer_depths
from rs_biformer.train.config import OptimizerConfig, ScheduleConfig


def create_optimizer(network: nn.Module, options: OptimizerConfig) -> Optimizer:
    """AdamW or SGD in which only matrices and kernels decay: norms, biases, scales and class tokens do not.

    The group of the highest learning rate comes first. Raises ConfigError for a multiplier of no part of the network.
    """
    depths = layer_depths(network) if options.layer_decay != 1 else {}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    unused = set(options.multipliers)
    for name, parameter in network.named_parameters():
        part = _part(name, options.multipliers)
        unused.discard(part)
        if parameter.requires_grad:
            rate = options.learning_rate * options.multipliers.get(part, 1.0)
            rate *= options.layer_decay ** depths.get(name, 0)
            is_vector = sum(side > 1 for side in parameter.shape) < 2  # a class token is 1 x 1 x C
            groups.setdefault((rate, 0.0 if is_vector else options.weight_decay), []).append(parameter)
    if unused:
        parts = ", ".join(name for name, _ in network.named_children())
        raise ConfigError(
            f"optimizer.multipliers names {min(unused)}, which nothing in the network begins with; it has {parts}"
        )
    ordered = [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in sorted(groups.items(), key=lambda group: group[0], reverse=True)
    ]
    if options.name == "sgd":
        return torch.optim.SGD(ordered, lr=options.learning_rate, momentum=options.momentum)
    return torch.optim.AdamW(ordered, lr=options.learning_rate, betas=(options.momentum, 0.999))


def _part(name: str, parts: Iterable[str]) -> str:
    """The longest of `parts` that the dotted name begins with, '' for none."""
    return max((part for part in parts if f"{name}.".startswith(f"{part}.")), key=len, default="")


def learning_rate_factor(step: int, steps: int, options: ScheduleConfig) -> float:
    """What the learning rate is multiplied by at `step` of a run of `steps`; later steps keep the last factor."""
    rising = round(options.warmup * steps)
    if step < rising:
        risen = (step + 1) / (rising + 1)
        return (1 - math.cos(math.pi * risen)) / 2 if options.name == "onecycle" else risen
    passed = min(1.0, (step - rising) / max(1, steps - rising))
    shapes: dict[str, Callable[[], float]] = {
        "constant": lambda: 1.0,
        "poly": lambda: (1 - passed) ** options.power,
        "cosine": lambda: (1 + math.cos(math.pi * passed)) / 2,
        "onecycle": lambda: (1 + math.cos(math.pi * passed)) / 2,
    }
    shape = shapes[options.name]()
    return shape if options.name == "constant" else options.final + (1 - options.final) * shape


def create_schedule(optimizer: Optimizer, steps: float, options: ScheduleConfig) -> LambdaLR:
    """The schedule over `steps` optimizer steps. Raises ConfigError for a run without an end that needs one."""
    if not math.isfinite(steps) and (options.name != "constant" or options.warmup):
        raise ConfigError(
            f"schedule.name is {options.name} with warmup {options.warmup}, and the run has no last step; give "
            "trainer.max_epochs or trainer.max_steps, or use a constant schedule without warmup"
        )
    total = int(steps) if math.isfinite(steps) else 1
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, total, options))


def class_weights(frequencies: Sequence[float], strength: float) -> list[float] | None:
    """Weight of each class, frequency ** -strength, scaled to a mean of 1 over the pixels; None for strength 0.

    A class that never occurs gets the weight of the rarest that does: its weight can matter to no pixel, but must be a
    positive number.
    """
    if not strength:
        return None
    rarest = min(frequency for frequency in frequencies if frequency > 0)
    raw = [max(frequency, rarest) ** -strength for frequency in frequencies]
    mean = sum(frequency * weight for frequency, weight in zip(frequencies, raw, strict=True))
    return [weight / mean for weight in raw]


def moving_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """The averaging function of an exponential moving average whose decay grows towards `decay`.

    It takes tensors of one dtype and device, averaged ones first, and changes these in place: all at once, because a
    network has hundreds of small ones. At its n-th update the decay is at most (1 + n) / (10 + n), so that the random
    start is forgotten in time also by a run of a few hundred steps.
    """

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            share = 1 - min(decay, (1 + int(updates)) / (10 + int(updates)))
            torch._foreach_lerp_(averaged, current, share)
        else:
            torch._foreach_copy_(averaged, current)  # a count of batches has no average

    return update
