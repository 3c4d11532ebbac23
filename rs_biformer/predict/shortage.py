"""Memory that runs out while a scene is predicted, on the host or on a GPU, said in one line."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rs_biformer.errors import RsBiformerError
from rs_biformer.predict.plan import Plan

_SAYINGS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "unable to allocate",
)
"""What torch, CUDA, numpy and the C library say, where they have no type of their own for it."""


@contextmanager
def memory_errors(plan: Plan, device: torch.device | None = None) -> Iterator[None]:
    """Turn what is raised for want of memory into an RsBiformerError that says whose, and what helps."""
    try:
        yield
    except RsBiformerError:
        raise
    except Exception as error:
        if not is_shortage(error):
            raise
        whose = _whose(error, device)
        raise RsBiformerError(
            f"{whose} ran out of memory; the plan takes {plan.memory.total // 10**6 + 1} MB of the host beside the "
            f"model, in batches of {plan.batch_size}. Take a smaller --max-memory or --batch-size or fewer maps, or "
            "close other programs; with the same options the same command goes on from what is finished"
        ) from error


def is_shortage(error: BaseException) -> bool:
    """Whether an exception means that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _SAYINGS)


def _whose(error: BaseException, device: torch.device | None) -> str:
    on_gpu = isinstance(error, torch.OutOfMemoryError) or "cuda" in str(error).lower()
    return (
        f"the GPU ({device})"
        if on_gpu and device is not None and device.type != "cpu"
        else ("the GPU" if on_gpu else "this machine")
    )
