"""Work done beside the caller's own: reading ahead of it and writing behind it, each in one thread.

Both raise in the caller what was raised in the thread, hold no more than a stated number of items, and end their
thread before they return, whatever ends them.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_END: Any = object()


def read_ahead(items: Iterator[_Item], depth: int) -> Generator[_Item]:
    """The items in their order, with up to `depth` of them made in a thread before they are asked for.

    Close it (`contextlib.closing`) when it is not read to its end, so that the thread stops at once.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
    try:
        waiting = deque(pool.submit(next, items, _END) for _ in range(depth))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(pool.submit(next, items, _END))
            yield item
            del item  # not held while the next one is waited for
    finally:
        pool.shutdown(cancel_futures=True)


class WriteBehind:
    """Calls made in order, in a thread; no more than `depth` of them wait.

    A context manager. On a clean exit every call has returned; what a call raises is raised by a later `submit` or by
    the exit. After an error in the `with` block the calls that wait are dropped.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._waiting: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write-behind")

    def submit(self, call: Callable[..., None], *arguments: Any) -> None:
        """Queue `call(*arguments)`; waits while the queue is full."""
        while len(self._waiting) >= self._depth:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(call, *arguments))

    def __enter__(self) -> "WriteBehind":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while self._waiting and kind is None:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)
