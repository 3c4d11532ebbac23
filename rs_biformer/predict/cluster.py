"""Prediction by the workers of a Dask cluster: they read the scene and infer, the caller writes the maps.

A task is a run of strips. It begins with the windows above it that reach into it, so every pixel is summed from the
same windows in the same order wherever a run begins, and the bytes are those of one process. The paths of the scene and
its plan travel with a task; the model is sent once to each worker, also to those that join later or are started again.
Dask repeats what a lost worker had in hand.

Dask is an optional extra, imported only where a cluster is asked for; what runs on a worker is in worker.py.
"""

import copy
import hashlib
import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, Self

from numpy.typing import NDArray

from rs_biformer.errors import ConfigError, RsBiformerError
from rs_biformer.machine import machine_cores
from rs_biformer.predict.backends import backend_of, is_module
from rs_biformer.predict.engine import Done
from rs_biformer.predict.outputs import Layers
from rs_biformer.predict.plan import Plan, Run
from rs_biformer.predict.recipe import Device, Recipe
from rs_biformer.predict.resume import model_identity
from rs_biformer.raster.scene import Scene

Maps = dict[str, NDArray[Any]]

SHORTEST, LONGEST = 10, 20
"""Strips of a task for each that it infers besides: a longer one wastes less, a shorter one loses less when it is lost.

Shorter ones than SHORTEST only keep workers busy that would stand idle otherwise.
"""

TASKS_PER_WORKER = 4
"""Tasks for each worker in the course of a scene, where they are long enough: the slowest must not hold up its end."""

IN_FLIGHT = 2
"""Tasks per worker that are sent out at a time: one in hand, one that waits."""

RESULT_BYTES = 256 * 2**20
"""Bytes of a task's result, at most, or one strip."""

PATIENCE = 600
"""Seconds that the first worker may take to appear: a batch system starts it when it can."""


@dataclass(frozen=True)
class Workers:
    """What a cluster's workers are. kinds: of hardware, see `Backend.hardware`. bf16: it is fast on every one."""

    count: int
    kinds: tuple[str, ...]
    bf16: bool

    @property
    def hardware(self) -> str:
        return " and ".join(self.kinds)


class Cluster:
    """A connection to a Dask cluster; a context manager.

    Keep one open for many scenes: it knows which models the workers have, and takes them back when it is closed.

    client: a `distributed.Client`, which stays the caller's to close.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._models: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._models:
            if self._client.status == "running":  # where the scheduler is gone, so are the models
                with suppress(Exception):  # a worker that is just starting has none
                    self._client.unregister_worker_plugin(name)
        self._models.clear()

    def survey(self, device: Device, model: Any) -> Workers:
        """Wait for the first worker and ask all there are what they are.

        device: as in `predict_scene`; `auto` is each worker's own GPU where it has one and the model can be moved.

        Raises ConfigError when no worker appears, or one has other versions or no such device.
        """
        from rs_biformer.predict.worker import describe, require_versions, versions

        name = backend_of(model).NAME
        with _cluster_errors():
            self._wait()
            found = self._client.run(describe, name, str(device), is_module(model))
        for address, facts in found.items():
            require_versions(versions(name), facts.versions, address)
        kinds = tuple(sorted({facts.hardware for facts in found.values()}))
        return Workers(len(found), kinds, all(facts.bf16 for facts in found.values()))

    def _wait(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            address = self._client.scheduler.address
            raise ConfigError(
                f"{address} has no worker after {PATIENCE} s; start some with: dask worker {address}"
            ) from None

    def infer(
        self,
        model: Any,
        recipe: Recipe,
        device: Device,
        scene: Scene,
        plan: Plan,
        layers: Layers,
        missing: Iterable[tuple[int, int]],
        kinds: tuple[str, ...] = (),
    ) -> Generator[Done]:
        """The strips `missing`, each (lane, index), with their maps, in the order in which they are finished.

        model: a callable that pickles. recipe, device: how each worker runs it. scene: its paths lead to the same
        files on the workers. layers: the maps that are made. kinds: the survey's, which a worker that joins later
        must be of as well; any will do where none are given.

        Close it (`contextlib.closing`) when it is not read to its end, so that the workers stop.

        Raises what a worker raised; ConfigError for a model that cannot be sent; RsBiformerError when the cluster is
        gone, or a task was the end of every worker that had it.
        """
        from rs_biformer.predict.worker import Wanted, infer_run, versions

        missing = list(missing)
        name = self._send(model, recipe, device)
        runs = plan.runs(missing, run_length(plan, len(missing), self._workers(), layers.pixel_bytes))

        run_by = backend_of(model).NAME
        wanted = Wanted(run_by, versions(run_by), kinds)

        def submit(run: Run) -> Any:
            return self._client.submit(infer_run, name, scene, plan, layers, run, wanted, pure=False)

        for run, strips in self._stream(submit, runs):
            for index, maps in zip(range(run.first, run.stop), strips, strict=True):
                yield plan.strip(run.lane, index), maps

    def _send(self, model: Any, recipe: Recipe, device: Device) -> str:
        """Give the model to the workers unless they have it; its name there."""
        from rs_biformer.predict.worker import SentModel

        identity, packed = model_identity(model), b""
        if identity is None:
            packed = _packed(model, recipe, str(device))
            identity = hashlib.sha256(packed).hexdigest()
        statistics = recipe.normalisation and model_identity(recipe.normalisation)
        # With the client in the name nobody else takes the model away.
        name = f"{self._client.id} {identity} {statistics} {replace(recipe, normalisation=None)} {device}"
        if name not in self._models:
            with _cluster_errors():
                self._client.register_plugin(SentModel(packed or _packed(model, recipe, str(device))), name=name)
            self._models.add(name)
        return name

    def _workers(self) -> int:
        return max(1, len(self._client.nthreads()))

    def _stream(self, submit: Callable[[Run], Any], runs: list[Run]) -> Iterator[tuple[Run, list[Maps]]]:
        """Runs and their results as they come. No more are sent out than the workers can soon begin."""
        from distributed import as_completed

        waiting, sent = iter(runs), as_completed([], loop=self._client.loop)
        running: dict[Any, Run] = {}

        def send() -> None:
            with _cluster_errors():
                for run in islice(waiting, max(0, IN_FLIGHT * self._workers() - len(running))):
                    future = submit(run)
                    running[future] = run
                    sent.add(future)

        try:
            send()
            for future in sent:
                result = _result(future)
                run = running.pop(future)
                del future  # or the worker would keep the result
                send()
                yield run, result
                del result
        finally:
            if running:
                self._client.cancel(list(running), force=True)


@contextmanager
def connect(cluster: Any, model: Any = None) -> Iterator[Cluster]:
    """The cluster that a user means.

    cluster: `dask`, for a process per two cores of this machine (per core where one thread is asked for, one in all
        where there is a GPU), or `dask:4`, for four; the address of a scheduler (`tcp://host:8786`, `tls://...`); a
        `distributed.Client`; or an open Cluster.
    model: that it is for, which tells how many threads a process of this machine has.

    Raises ConfigError when Dask is not installed or no scheduler answers.
    """
    distributed = _import_distributed()
    with ExitStack() as stack:
        if isinstance(cluster, Cluster):
            yield cluster
            return
        if isinstance(cluster, str):
            address = cluster
            if cluster.partition(":")[0] == "dask":
                address = stack.enter_context(_local_cluster(distributed, cluster, model))
            cluster = stack.enter_context(_client(distributed, address))
        if not isinstance(cluster, distributed.Client):
            raise ConfigError(f"cluster is {cluster!r}; it must be dask, tcp://host:port or a distributed.Client")
        yield stack.enter_context(Cluster(cluster))


def run_length(plan: Plan, strips: int, workers: int, pixel_bytes: int) -> int:
    """Strips of a task: few enough for even loads and a small result, enough to make up for what it infers besides.

    strips: that are to be made. pixel_bytes: of all maps, per pixel.
    """
    middle = plan.strip_count // 2
    besides = max(1, middle - plan.lead_in(0, middle))  # to begin a task is never free
    wanted = min(max(-(-strips // (TASKS_PER_WORKER * workers)), SHORTEST * besides), LONGEST * besides)
    output = plan.strip(0, middle).output
    most = RESULT_BYTES // (output.height * output.width * pixel_bytes)
    return max(1, min(wanted, -(-strips // workers), most))


def _packed(model: Any, recipe: Recipe, device: str) -> bytes:
    import cloudpickle

    if is_module(model) and any(one.device.type != "cpu" for one in chain(model.parameters(), model.buffers())):
        model = copy.deepcopy(model).cpu()  # the workers may have no such device
    try:
        packed: bytes = cloudpickle.dumps((model, recipe, device))
        return packed
    except Exception as error:  # whatever an object's own __reduce__ raises
        raise ConfigError(
            f"the model cannot be sent to the workers ({_line(error)}); give one that pickles, such as a module"
        ) from error


def _result(future: Any) -> Any:
    """The result of a finished task, or an error that says whose it is: the task's own, or the cluster's."""
    from distributed import KilledWorker

    raised = future.status == "error"
    try:
        with _cluster_errors(raised):
            return future.result()
    except KilledWorker as error:
        raise RsBiformerError(
            f"{error.allowed_failures + 1} workers died one after the other at the same strips, most likely for want "
            "of memory: give them more and the same command goes on, or start over with a smaller --batch-size"
        ) from None


@contextmanager
def _cluster_errors(own: bool = False) -> Iterator[None]:
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
        why = getattr(error, "reason", None) or _line(error)
        raise RsBiformerError(
            f"the cluster was lost ({why}); the same command goes on from what is finished"
        ) from error


# A terminal sends Ctrl-C to the workers as well. It is for the command to end them.
_LEAVE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


@contextmanager
def _local_cluster(distributed: Any, name: str, model: Any) -> Iterator[Any]:
    here = backend_of(model)
    threads = 2 if here.threads() > 1 else 1  # as many or as few as here, see Backend.hardware
    # Workers of one machine would all take its first GPU, and without a cluster all its GPUs are used anyway.
    alone = any("cuda" in str(device) for device in here.pick_devices("auto"))
    count = name.partition(":")[2] or str(1 if alone else max(1, machine_cores() // threads))
    if not count.isdecimal() or int(count) < 1:
        raise ConfigError(f"cluster is {name!r}; write dask, or dask:4 for four workers")
    with distributed.LocalCluster(
        n_workers=int(count),
        threads_per_worker=threads,
        processes=True,
        memory_limit=None,  # the plan bounds what a worker takes
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
            f"no Dask scheduler answers at {address} ({_line(error)}); start one with: dask scheduler"
        ) from None


def _import_distributed() -> Any:
    try:
        import distributed
    except ImportError:
        raise ConfigError("Dask is not installed; get it with: pip install 'rs_biformer[cluster]'") from None
    return distributed


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
