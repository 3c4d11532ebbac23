"""Prediction by the workers of a Dask cluster: they read the scene and infer, the caller writes the maps.

A task is a run of strips. It begins with the windows above it that reach into it, so every pixel is summed from the
same windows in the same order wherever a run begins, and the bytes are those of one process. The paths of the scene and
its plan travel with a task; the model is sent once to each worker, also to those that join later or are started again.
Dask repeats what a lost worker had in hand. The connection itself is that of all shares (shares/cluster.py); what
runs on a worker is in worker.py.
"""

import copy
import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from threading import Lock
from typing import Any

from numpy.typing import NDArray

from rs_biformer.errors import ConfigError
from rs_biformer.predict.backends import backend_of, is_module
from rs_biformer.predict.engine import Done
from rs_biformer.predict.ensemble import backend_names, is_movable, members_of
from rs_biformer.predict.outputs import Layers
from rs_biformer.predict.plan import Plan, Run
from rs_biformer.predict.recipe import Device, Recipe
from rs_biformer.predict.resume import model_identity
from rs_biformer.raster.scene import Scene
from rs_biformer.shares.cluster import Connection, cluster_errors, line_of, outcome
from rs_biformer.shares.cluster import connect as open_connection

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

GOES_ON = "the same command goes on from what is finished"
"""What to do when the cluster is lost."""


@dataclass(frozen=True)
class Workers:
    """What a cluster's workers are. kinds: of hardware, see `Backend.hardware`. bf16: it is fast on every one."""

    count: int
    kinds: tuple[str, ...]
    bf16: bool

    @property
    def hardware(self) -> str:
        return " and ".join(self.kinds)


class Cluster(Connection):
    """A connection to a Dask cluster that infers, too; a context manager.

    Keep one open for many scenes: it knows which models the workers have, and takes them back when it is closed.

    client: a `distributed.Client`, which stays the caller's to close.
    """

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self._models: set[str] = set()
        self._sending = Lock()  # scenes may be mapped side by side

    def __exit__(self, *_: object) -> None:
        for name in self._models:
            if self.client.status == "running":  # where the scheduler is gone, so are the models
                with suppress(Exception):  # a worker that is just starting has none
                    self.client.unregister_worker_plugin(name)
        self._models.clear()

    def survey(self, device: Device, model: Any) -> Workers:
        """Wait for the first worker and ask all there are what they are.

        device: as in `predict_scene`; `auto` is each worker's own GPU where it has one and the model can be moved.

        Raises ConfigError when no worker appears, or one has other versions or no such device.
        """
        from rs_biformer.predict.worker import describe, versions
        from rs_biformer.shares.worker import require_versions

        names = backend_names(model)
        self.wait()
        with cluster_errors(again=GOES_ON):
            found = self.client.run(describe, names, str(device), is_movable(model))
        for address, facts in found.items():
            require_versions(versions(names), facts.versions, address)
        kinds = tuple(sorted({facts.hardware for facts in found.values()}))
        return Workers(len(found), kinds, all(facts.bf16 for facts in found.values()))

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
        identity: str | None = None,
    ) -> Generator[Done]:
        """The strips `missing`, each (lane, index), with their maps, in the order in which they are finished.

        model: a callable that pickles. recipe, device: how each worker runs it. scene: its paths lead to the same
        files on the workers. layers: the maps that are made. kinds: the survey's, which a worker that joins later
        must be of as well; any will do where none are given. identity: the model's, where it was worked out before.

        Close it (`contextlib.closing`) when it is not read to its end, so that the workers stop.

        Raises what a worker raised; ConfigError for a model that cannot be sent; RsBiformerError when the cluster is
        gone, or a task was the end of every worker that had it.
        """
        from rs_biformer.predict.worker import Wanted, infer_run, versions
        from rs_biformer.shares.worker import Seen

        missing = list(missing)
        name = self._send(model, recipe, device, identity)
        runs = plan.runs(missing, run_length(plan, len(missing), self.workers(), layers.pixel_bytes))

        names = backend_names(model)
        wanted = Wanted(names, versions(names), kinds)
        files = Seen.of([path for path in (*scene.paths, scene.area) if path is not None])

        def submit(run: Run) -> Any:
            return self.client.submit(infer_run, name, scene, files, plan, layers, run, wanted, pure=False)

        for run, strips in self._stream(submit, runs):
            for index, maps in zip(range(run.first, run.stop), strips, strict=True):
                yield plan.strip(run.lane, index), maps

    def _send(self, model: Any, recipe: Recipe, device: Device, identity: str | None) -> str:
        """Give the model to the workers unless they have it; its name there."""
        from rs_biformer.predict.worker import SentModel

        identity, packed = identity or model_identity(model), b""
        if identity is None:
            packed = _packed(model, recipe, str(device))
            identity = hashlib.sha256(packed).hexdigest()
        statistics = recipe.normalisation and model_identity(recipe.normalisation)
        # With the client in the name nobody else takes the model away.
        name = f"{self.client.id} {identity} {statistics} {replace(recipe, normalisation=None)} {device}"
        with self._sending:
            if name not in self._models:
                with cluster_errors(again=GOES_ON):
                    self.client.register_plugin(SentModel(packed or _packed(model, recipe, str(device))), name=name)
                self._models.add(name)
        return name

    def _stream(self, submit: Callable[[Run], Any], runs: list[Run]) -> Iterator[tuple[Run, list[Maps]]]:
        """Runs and their results as they come. No more are sent out than the workers can soon begin."""
        from distributed import as_completed

        waiting, sent = iter(runs), as_completed([], loop=self.client.loop)
        running: dict[Any, Run] = {}

        def send() -> None:
            with cluster_errors(again=GOES_ON):
                for run in islice(waiting, max(0, IN_FLIGHT * self.workers() - len(running))):
                    future = submit(run)
                    running[future] = run
                    sent.add(future)

        try:
            send()
            for future in sent:
                result = outcome(future, GOES_ON)
                run = running.pop(future)
                del future  # or the worker would keep the result
                send()
                yield run, result
                del result
        finally:
            if running:
                self.client.cancel(list(running), force=True)


@contextmanager
def connect(cluster: Any, model: Any = None) -> Iterator[Cluster]:
    """The cluster that a user means.

    cluster: `dask`, for a process per two cores of this machine (per core where one thread is asked for, one in all
        where there is a GPU), or `dask:4`, for four; the address of a scheduler (`tcp://host:8786`, `tls://...`); a
        `distributed.Client`; or an open Cluster.
    model: that it is for, which tells how many threads a process of this machine has.

    Raises ConfigError when Dask is not installed or no scheduler answers.
    """
    here = backend_of(model)
    threads = 2 if here.threads() > 1 else 1  # as many or as few as here, see Backend.hardware
    # Workers of one machine would all take its first GPU, and without a cluster all its GPUs are used anyway.
    alone = any("cuda" in str(device) for device in here.pick_devices("auto"))
    with open_connection(cluster, Cluster, 1 if alone else None, threads) as connection:
        yield connection


@contextmanager
def connected(cluster: Any, model: Any = None) -> Iterator[Cluster | None]:
    """One connection for several jobs, as `connect` gives it; None for none."""
    if cluster is None:
        yield None
        return
    with connect(cluster, model) as connection:
        yield connection


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

    parts = [part for member in members_of(model) if is_module(member) for part in (member.parameters, member.buffers)]
    if any(tensor.device.type != "cpu" for part in parts for tensor in part()):
        model = copy.deepcopy(model)  # the workers may have no such device
        for member in filter(is_module, members_of(model)):
            member.cpu()
    try:
        packed: bytes = cloudpickle.dumps((model, recipe, device))
        return packed
    except Exception as error:  # whatever an object's own __reduce__ raises
        raise ConfigError(
            f"the model cannot be sent to the workers ({line_of(error)}); give one that pickles, such as a module"
        ) from error
