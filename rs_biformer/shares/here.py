"""Shares done on this machine: in this process, or spread over several."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rs_biformer.errors import ConfigError, RasterError

Task = TypeVar("Task")
Result = TypeVar("Result")

IN_FLIGHT = 4
"""Tasks for each worker that are handed out and not yet taken back: one that takes long must not leave others idle."""


class Share(Protocol):
    """A task, as far as whoever hands it out knows it. files: what it is made from, by absolute paths or as URLs."""

    @property
    def files(self) -> "Sequence[Path | str]": ...


class Executor(Protocol):
    """What does shares."""

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Generator[Result]:
        """`function` of each task, in their order. Tasks are asked for as they can be begun; close it to give up."""


@dataclass(frozen=True)
class Here:
    """The machine that the caller runs on. workers: processes; with one everything happens in the caller's.

    Raises ConfigError for fewer than one.
    """

    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers is {self.workers}; it must be 1 or more")

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Generator[Result]:
        """As `Executor.map`.

        Processes, because decoding labels holds Python's lock; started afresh, because a fork would copy the threads'
        locks of GDAL and torch. What is left is given up on an exception, and workers end with this process, however
        it ends.
        """
        coming = iter(tasks)
        first = list(islice(coming, self.workers))  # no more processes than there are tasks
        if len(first) <= 1:
            yield from map(function, chain(first, coming))
            return
        spawn = get_context("spawn")
        going, ours = spawn.Pipe(duplex=False)
        pool = ProcessPoolExecutor(len(first), mp_context=spawn, initializer=_end_with, initargs=(going,))
        try:
            yield from in_order(
                lambda task: pool.submit(_interruptibly, function, task), chain(first, coming), IN_FLIGHT * len(first)
            )
        except BrokenProcessPool:
            raise RasterError(
                "a worker process was killed, most likely for want of memory; use fewer --workers"
            ) from None
        except (KeyboardInterrupt, GeneratorExit):
            ours.close()  # what workers have in hand may take minutes
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            ours.close()
            going.close()


def in_order(submit: "Callable[[Task], Future[Result]]", tasks: Iterable[Task], at_most: int) -> Iterator[Result]:
    """The results of tasks that are handed out by `submit`, `at_most` of them at a time, in their order."""
    coming, waiting = iter(tasks), deque[Future[Result]]()
    while True:
        waiting.extend(map(submit, islice(coming, at_most - len(waiting))))
        if not waiting:
            return
        yield waiting.popleft().result()


def whole(function: Callable[[Task], Result], task: Task) -> Result:
    """The result of a share, to be sent from one process to another: parts that come one by one as a list.

    A function that yields costs the memory of one part here; elsewhere all of them are sent together.
    """
    found: Any = function(task)
    return list(found) if isinstance(found, Iterator) else found  # type: ignore[return-value]


class _Work:
    """Whether this worker is at a task: only then may it end at once.

    One that ended while it sent a result would leave half a message in the pipe, for the rest of which the process that
    began it would wait for ever.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.going = False
        self.over = False


_work = _Work()


def _interruptibly(function: Callable[[Task], Result], task: Task) -> Result:
    with _work.lock:
        if _work.over:
            os._exit(1)
        _work.going = True
    try:
        return whole(function, task)
    finally:
        with _work.lock:
            _work.going = False


def _end_with(going: Connection) -> None:
    """Let this worker end when the process that began it does, however that ends, or closes its end of the pipe.

    A worker waits for tasks on a pipe of which it holds both ends, so it would not notice and wait for ever. Ctrl-C
    in a terminal comes to all processes; it is for the one that began them to act on.
    """
    parent = parent_process()
    assert parent is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        wait([parent.sentinel, going])
        with _work.lock:
            if _work.going:
                os._exit(1)
            _work.over = True
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
