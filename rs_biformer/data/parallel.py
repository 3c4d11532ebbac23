"""Work spread over processes, with the results in the order of the tasks."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import TypeVar

from rs_biformer.errors import ConfigError, RasterError

Task = TypeVar("Task")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """`function` of each task, in their order, so that what is made of the results does not depend on `workers`.

    With one worker everything happens in this process. Processes, because decoding labels holds Python's lock; started
    afresh, because a fork would copy the threads' locks of GDAL and torch. What is left is given up on an exception,
    and workers end with this process, however it ends.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}; it must be 1 or more")
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(function, tasks)
        return
    spawn = get_context("spawn")
    going, ours = spawn.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with, initargs=(going,))
    try:
        yield from pool.map(function, tasks)
    except BrokenProcessPool:
        raise RasterError("a worker process was killed, most likely for want of memory; use fewer --workers") from None
    except (KeyboardInterrupt, GeneratorExit):
        ours.close()  # what workers have in hand may take minutes
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        ours.close()
        going.close()


def _end_with(going: Connection) -> None:
    """Let this worker end when the process that began it does, however that ends, or closes its end of the pipe.

    A worker waits for tasks on a pipe of which it holds both ends, so it would not notice and wait for ever.
    """
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel, going])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
