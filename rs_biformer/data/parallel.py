"""Work spread over processes, with the results in the order of the tasks."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from rs_biformer.errors import ConfigError, RasterError

Task = TypeVar("Task")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """`function` of each task, in their order, so that what is made of the results does not depend on `workers`.

    With one worker everything happens in this process. Processes, because decoding labels holds Python's lock; started
    afresh, because a fork would copy the threads' locks of GDAL and torch. What is left is given up on an exception.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}; it must be 1 or more")
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(function, tasks)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield from pool.map(function, tasks)
    except BrokenProcessPool:
        raise RasterError("a worker process was killed, most likely for want of memory; use fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)
