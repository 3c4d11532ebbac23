"""Shares done by the workers of a Dask cluster.

Tasks travel as paths and small values, results come back, and the caller alone writes. Dask repeats what a lost worker
had in hand. It is an optional extra, imported only where a cluster is asked for; what runs on a worker is in worker.py.
"""

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

from rs_biformer.errors import ConfigError, RsBiformerError
from rs_biformer.machine import machine_cores
from rs_biformer.shares.here import IN_FLIGHT, Executor, Here, Result, Task

PATIENCE = 600
"""Seconds that the first worker may take to appear: a batch system starts it when it can."""

AGAIN = "run the same command again"
"""What to do when the cluster is lost."""


class Connection:
    """A connection to a Dask cluster; a context manager.

    client: a `distributed.Client`, which stays the caller's to close.
    """

    def __init__(self, client: Any) -> None:
        self.client = client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Generator[Result]:
        """As `Executor.map`, for a function that workers can import and tasks that name their `files`.

        Raises what a share raised; RasterError that names the worker and the file for one that it cannot see;
        ConfigError for a worker with other versions; RsBiformerError when the cluster is gone, or a share was the end
        of every worker that had it.
        """
        from rs_biformer.shares.worker import Seen, do_share, versions

        wanted = versions()
        self.wait()
        coming, waiting = iter(tasks), deque[Any]()
        try:
            while True:
                for task in islice(coming, max(0, IN_FLIGHT * self.workers() - len(waiting))):
                    files = Seen.of(getattr(task, "files", ()))
                    with cluster_errors():
                        waiting.append(self.client.submit(do_share, function, task, files, wanted, pure=False))
                if not waiting:
                    return
                yield _awaited(waiting)
        finally:
            if waiting:
                self.client.cancel(list(waiting), force=True)

    def unseen(self, files: Sequence[Path | str]) -> str | None:
        """A line on a file that a worker which is there now does not have as it is here; None where all have all."""
        from rs_biformer.shares.worker import Seen, difference

        self.wait()
        with cluster_errors():
            found = self.client.run(difference, Seen.of(files))
        return next(filter(None, found.values()), None)

    def wait(self) -> None:
        """Wait for the first worker. Raises ConfigError when none appears."""
        with cluster_errors():
            try:
                self.client.wait_for_workers(1, timeout=PATIENCE)
            except TimeoutError:
                address = self.client.scheduler.address
                raise ConfigError(
                    f"{address} has no worker after {PATIENCE} s; start some with: dask worker {address}"
                ) from None

    def workers(self) -> int:
        """How many there are, at least 1."""
        return max(1, len(self.client.nthreads()))


_Connection = TypeVar("_Connection", bound=Connection)


@contextmanager
def connect(
    cluster: Any, make: type[_Connection], processes: int | None = None, threads: int = 1
) -> Iterator[_Connection]:
    """The cluster that a user means.

    cluster: `dask`, for processes of this machine, or `dask:4`, for four; the address of a scheduler
        (`tcp://host:8786`, `tls://...`); a `distributed.Client`; or an open Connection.
    make: the kind of connection. processes: of `dask`; one per core, or per `threads` of them, unless given.

    Raises ConfigError when Dask is not installed or no scheduler answers.
    """
    distributed = _import_distributed()
    with ExitStack() as stack:
        if isinstance(cluster, Connection):
            if isinstance(cluster, make):
                yield cluster
                return
            cluster = cluster.client
        if isinstance(cluster, str):
            address = cluster
            if cluster.partition(":")[0] == "dask":
                count = _processes(cluster, max(1, machine_cores() // threads) if processes is None else processes)
                address = stack.enter_context(_local_cluster(distributed, count, threads))
            cluster = stack.enter_context(_client(distributed, address))
        if not isinstance(cluster, distributed.Client):
            raise ConfigError(f"cluster is {cluster!r}; it must be dask, tcp://host:port or a distributed.Client")
        made = make(cluster)
        stack.enter_context(made)
        yield made


@contextmanager
def connected(cluster: Any) -> Iterator[Connection | None]:
    """One connection for several jobs, as `connect` gives it; None for none."""
    if cluster is None:
        yield None
        return
    with connect(cluster, Connection) as connection:
        yield connection


@contextmanager
def executor(cluster: Any = None, workers: int = 1) -> Iterator[Executor]:
    """What does shares: the cluster, as `connect` takes it, or without one this many processes of this machine."""
    with connected(cluster) as connection:
        yield Here(workers) if connection is None else connection


def outcome(future: Any, again: str = AGAIN) -> Any:
    """The result of a finished task, or an error that says whose it is: the task's own, or the cluster's."""
    from distributed import KilledWorker

    raised = future.status == "error"
    try:
        with cluster_errors(raised, again):
            return future.result()
    except KilledWorker as error:
        raise RsBiformerError(
            f"{error.allowed_failures + 1} workers died one after the other at the same share, most likely for want "
            f"of memory: give them more, and {again}"
        ) from None


@contextmanager
def cluster_errors(own: bool = False, again: str = AGAIN) -> Iterator[None]:
    """Say in one line what happened to the cluster. `own`: errors are those of the work, and pass through."""
    from concurrent.futures import CancelledError

    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the workers cannot import {error.name}: install the same packages there, and the one with your model"
        ) from error
    except (OSError, CancelledError, RuntimeError) as error:
        if own:
            raise
        why = getattr(error, "reason", None) or line_of(error)
        raise RsBiformerError(f"the cluster was lost ({why}); {again}") from error


# A terminal sends Ctrl-C to the workers as well. It is for the command to end them.
_LEAVE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


def _awaited(waiting: deque[Any]) -> Any:
    """The result of the first task that waits, which is then let go of, or the worker would keep it."""
    with cluster_errors():
        waiting[0].exception()  # waits
    return outcome(waiting.popleft())


def _processes(name: str, unless_given: int) -> int:
    count = name.partition(":")[2] or str(unless_given)
    if not count.isdecimal() or int(count) < 1:
        raise ConfigError(f"cluster is {name!r}; write dask, or dask:4 for four workers")
    return int(count)


@contextmanager
def _local_cluster(distributed: Any, processes: int, threads: int) -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=processes,
        threads_per_worker=threads,
        processes=True,
        memory_limit=None,  # what a worker takes is bounded by what it is given
        dashboard_address="127.0.0.1:0",
        preload=[_LEAVE_CTRL_C],
        silence_logs=logging.CRITICAL,
    ) as cluster:
        yield cluster


@contextmanager
def _client(distributed: Any, address: Any) -> Iterator[Any]:
    log = logging.getLogger("distributed.client")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what it tells in many lines is raised in one
    try:
        with _connected(distributed, address) as client:
            yield client
    finally:
        log.setLevel(level)


def _connected(distributed: Any, address: Any) -> Any:
    try:
        return distributed.Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no Dask scheduler answers at {address} ({line_of(error)}); start one with: dask scheduler"
        ) from None


def _import_distributed() -> Any:
    try:
        import distributed
    except ImportError:
        raise ConfigError("Dask is not installed; get it with: pip install 'rs_biformer[cluster]'") from None
    return distributed


def line_of(error: BaseException) -> str:
    """What an error says, in a line."""
    return " ".join(str(error).split())[:160] or type(error).__name__
