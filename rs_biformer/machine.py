"""What the machine has, or what a container, a batch system or `taskset` allows of it."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

UNKNOWN_MEMORY = 8 * 2**30
"""Bytes of memory supposed where the system does not tell (Windows)."""

_GROUPS, _OURS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Linux's control groups, and which of them this process is in."""


def machine_memory() -> int:
    """Bytes of memory of this machine, or what its control groups allow of it."""
    try:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        return UNKNOWN_MEMORY
    for folder in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):  # "max" is no limit
                limits.append(int((folder / name).read_text(encoding="ascii")))
    return min(limits)


def machine_cores() -> int:
    """Cores that this process may keep busy: those it may run on, and no more than a quota of time pays for.

    A quota of two and a half cores counts as two: a third thread would be put to sleep half of the time, and the others
    with it where they wait for each other.
    """
    return max(1, int(min([_cores_to_run_on(), *_quotas()])))


def limit_threads() -> None:
    """Tell OpenMP of a quota, which it cannot see, unless the user has said a number: before torch is loaded."""
    if machine_cores() < _cores_to_run_on():
        os.environ.setdefault("OMP_NUM_THREADS", str(machine_cores()))


def wanted_threads() -> int:
    """Threads for one that asks: what the user told OpenMP (OMP_NUM_THREADS), or a thread for each core."""
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(told) if told.isdecimal() and int(told) > 0 else machine_cores()


def _cores_to_run_on() -> int:
    try:
        return len(os.sched_getaffinity(0))  # type: ignore[attr-defined, unused-ignore]
    except (AttributeError, OSError):  # macOS and Windows have none
        return os.cpu_count() or 1


def _quotas() -> Iterator[float]:
    """Cores' worth of time that each control group allows."""
    for folder in _groups("cpu"):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            yield int(quota) / int(period)
        with suppress(OSError, ValueError):
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text("ascii") for name in ("quota", "period"))
            if int(quota) > 0:  # -1 is no limit
                yield int(quota) / int(period)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of the control groups of this process that have a say in `controller`, each with those above it.

    Version 2 has one tree for all, version 1 one for each. In a container the path that Linux tells may be the host's,
    and what is mounted the container's own: then the folder does not exist, and the top one is the right one.
    """
    with suppress(OSError):
        for line in _OURS.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            top = _GROUPS / controllers if controllers else _GROUPS
            folder = top / path.strip("/")
            yield from dict.fromkeys([folder, *(above for above in folder.parents if above.is_relative_to(top))])
            if controllers not in ("", controller):  # cpu,cpuacct is also called cpu
                yield _GROUPS / controller / path.strip("/")
                yield _GROUPS / controller
