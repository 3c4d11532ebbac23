"""What the machine has."""

import os
from contextlib import suppress
from pathlib import Path

UNKNOWN_MEMORY = 8 * 2**30
"""Bytes of memory supposed where the system does not tell (Windows)."""


def machine_memory() -> int:
    """Bytes of memory of this machine, or what a container allows of it."""
    try:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        return UNKNOWN_MEMORY
    with suppress(OSError, ValueError):  # "max" is no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(limits)
