"""Memory that runs out while a scene is predicted, on the host or on a GPU, said in one line."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rs_biformer.errors import RsBiformerError
from rs_biformer.predict.plan import Plan

_SAYINGS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "unable to allocate",
    "failed to allocate memory",
    "bad_alloc",
    "bad allocation",
)
"""What torch, CUDA, onnxruntime, numpy and the C library say, where they have no type of their own for it."""


@contextmanager
def memory_errors(plan: Plan, device: object | None = None) -> Iterator[None]:
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
    if isinstance(error, MemoryError) or _is_of_torch(error):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # onnxruntime's have no base but Exception
    library = isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime")
    return library and any(said in str(error).lower() for said in _SAYINGS)


def _is_of_torch(error: BaseException) -> bool:
    """Whether it is torch.OutOfMemoryError, that of any GPU; torch is not imported for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _whose(error: BaseException, device: object | None) -> str:
    if not (_is_of_torch(error) or "cuda" in str(error).lower()):
        return "this machine"
    return "the GPU" if device is None or str(device) in ("auto", "cpu") else f"the GPU ({device})"
