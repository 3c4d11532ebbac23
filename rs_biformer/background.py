"""Work done beside the caller's own: reading ahead of it and writing behind it, each in one thread, or side by side.

All raise in the caller what was raised in a thread, hold no more than a stated number of items, and end their threads
before they return, whatever ends them.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from queue import Queue
from threading import Event, Thread
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


def side_by_side(sources: Sequence[Generator[_Item]]) -> Generator[_Item]:
    """The items of several generators as they come, each worked through in a thread of its own.

    A thread goes on when its item has been taken. The first error ends them all. Close it (`contextlib.closing`) when
    it is not read to its end, so that the threads stop at once.
    """
    made: Queue[_Made] = Queue()
    stop = Event()
    gates = [Event() for _ in sources]
    threads = [
        Thread(target=_work, args=(source, made, gate, stop), name=f"side-by-side-{number}")
        for number, (source, gate) in enumerate(zip(sources, gates, strict=True))
    ]
    for thread in threads:
        thread.start()
    running = len(threads)
    try:
        while running:
            gate, item, error = made.get()
            if error is not None:
                raise error
            if gate is None:
                running -= 1
                continue
            gate.set()
            yield item
            del item
    finally:
        stop.set()
        for gate in gates:
            gate.set()
        for thread in threads:
            thread.join()


_Made = tuple[Event | None, Any, BaseException | None]  # the gate its thread waits at, an item or None, an error


def _work(source: Generator[Any], made: Queue[_Made], gate: Event, stop: Event) -> None:
    try:
        with closing(source) as items:
            for item in items:
                made.put((gate, item, None))
                del item
                gate.wait()
                gate.clear()
                if stop.is_set():
                    return
    except BaseException as error:
        made.put((None, None, error))
    else:
        made.put((None, None, None))


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
