"""What a network would do, without memory for it where that can be: torch's meta device, which knows shapes alone."""

from collections.abc import Callable
from typing import TypeVar

import torch

from rs_biformer.errors import ConfigError

Result = TypeVar("Result")

_ITS_OWN = ("meta", "unsupported scalarType")
"""What is in messages on the device and not on the network; the latter is torch 2.11's, on autocast for it."""


def without_memory(work: Callable[[], Result]) -> Result:
    """What `work` gives on the meta device, or on the CPU where that device cannot do it.

    Some networks look at numbers while they are made (RegNets at their widths), and each release of torch lacks some
    operation there, so that such a failure says nothing about the network. Any other is told at once: a network that
    asks for too much should fail before it takes memory. Random numbers are left as they were.
    Raises what `work` raises.
    """
    try:
        with torch.device("meta"):
            return work()
    except (RuntimeError, ConfigError) as error:
        if not _says_nothing(error.__cause__ if isinstance(error, ConfigError) else error):
            raise
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return work()


def _says_nothing(error: BaseException | None) -> bool:
    """Whether an error comes from the meta device and not from what was tried there."""
    if isinstance(error, NotImplementedError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _ITS_OWN)
