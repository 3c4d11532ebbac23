"""What runs on a worker of a Dask cluster: one inference at a time, by a model that was sent once.

Imports Dask, so only cluster.py imports this, where a cluster was asked for.
"""

import ctypes
import os
import pickle
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker
from numpy.typing import NDArray

from rs_biformer.errors import ConfigError
from rs_biformer.predict.backends import backend, backend_of
from rs_biformer.predict.engine import infer_strips
from rs_biformer.predict.ensemble import is_movable, named_backend
from rs_biformer.predict.outputs import Layers
from rs_biformer.predict.plan import Plan, Run
from rs_biformer.predict.recipe import Worker as Prepared
from rs_biformer.predict.shortage import memory_errors
from rs_biformer.raster.gdal import set_cache
from rs_biformer.raster.scene import Scene
from rs_biformer.shares.worker import Seen, errors_alone, require_versions
from rs_biformer.shares.worker import versions as of_shares

_Ready = tuple[Prepared, Any, Any]  # the model made ready, its device, itself

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@dataclass(frozen=True)
class Facts:
    """A worker's versions of what must be the same everywhere, its kind of hardware, and whether bfloat16 is fast."""

    versions: dict[str, str]
    hardware: str
    bf16: bool


@dataclass(frozen=True)
class Wanted:
    """What a worker must be to take part: the caller's versions, and one of the kinds of hardware of the survey.

    backends: that run the model, by name, see `ensemble.backend_names`. kinds: none where any will do.
    """

    backends: tuple[str, ...]
    versions: dict[str, str]
    kinds: tuple[str, ...] = ()


class SentModel(WorkerPlugin):
    """A model in a worker, made ready when it is first used.

    packed: (model, recipe, name of the device), pickled. The scheduler keeps it for workers that join later.
    """

    idempotent = True  # what has the same name is the same model and is not sent again

    def __init__(self, packed: bytes) -> None:
        self._packed: bytes | None = packed

    def setup(self, worker: Worker) -> None:
        if "MALLOC_TRIM_THRESHOLD_" in os.environ:
            _keep_memory()
        self._lock = threading.Lock()
        self._ready: _Ready | None = None

    @contextmanager
    def in_hand(self) -> Iterator[_Ready]:
        """The model for one task at a time: a worker's threads share the work of one run and the memory it takes."""
        with self._lock:
            if self._ready is None:
                assert self._packed is not None
                model, recipe, name = pickle.loads(self._packed)
                run_by = backend_of(model)
                device = run_by.pick_devices(name, is_movable(model))[0]
                self._ready = run_by.prepare(recipe, model, device), device, model
                self._packed = None  # not before: the next task must be able to try again
            yield self._ready


def _keep_memory() -> None:
    """Set glibc's allocator to what it arrives at by itself in a process that frees large blocks.

    Dask sets MALLOC_TRIM_THRESHOLD_ for its workers. That fixes all thresholds at their lowest, so that each layer of a
    network gets its memory from the kernel, page by page, and gives it back.
    """
    with suppress(OSError, AttributeError, TypeError):  # another C library, or Windows, where None names none
        set_option = ctypes.CDLL(None).mallopt
        set_option(_M_MMAP_THRESHOLD, 32 * 2**20)
        set_option(_M_TRIM_THRESHOLD, 64 * 2**20)


def infer_run(
    model: str, scene: Scene, files: Seen, plan: Plan, layers: Layers, run: Run, wanted: Wanted
) -> list[dict[str, NDArray[Any]]]:
    """A task: the maps of the strips of a run, by the model that was sent under this name. files: of the scene.

    Raises ConfigError on a worker that joined after the survey and is not what the others are.
    """
    worker = get_worker()
    run_by, threads = named_backend(wanted.backends), worker.state.nthreads
    require_versions(wanted.versions, versions(wanted.backends), worker.address)
    sent = worker.plugins[model]
    assert isinstance(sent, SentModel)
    files.require(worker.address)
    set_cache(plan.memory.cache)
    run_by.use_threads(threads)
    with errors_alone(), scene, sent.in_hand() as (prepared, device, itself):
        require_kind(wanted.kinds, backend_of(itself).hardware(device, threads, itself), worker.address)
        with memory_errors(plan, device):
            return [maps for _, maps in infer_strips(scene, plan, prepared, run, layers)]


def describe(names: tuple[str, ...], device: str, movable: bool, dask_worker: Worker) -> Facts:
    """What this worker is, as an answer to the survey of the cluster. Dask fills in `dask_worker` by its name.

    names: of the back ends that are to run the model. movable: whether the model can go to a GPU.
    """
    run_by = named_backend(names)
    place = run_by.pick_devices(device, movable)[0]
    return Facts(versions(names), run_by.hardware(place, dask_worker.state.nthreads), run_by.good_at_bf16(place))


def versions(names: Sequence[str]) -> dict[str, str]:
    """What both ends must have alike: what all shares need (`shares.worker.versions`), and the back ends."""
    found = dict(of_shares())
    for name in names:
        library, own = backend(name).software().split()
        found[library] = own
    return found


def require_kind(kinds: tuple[str, ...], found: str, address: str) -> None:
    """Raise ConfigError when a worker's hardware is none of the kinds on which the map was begun."""
    if kinds and found not in kinds:
        raise ConfigError(
            f"the worker at {address} joined with {found}, and the map was begun on {' and '.join(kinds)}, whose last "
            "bits differ; stop it and the same command goes on, or start over with all workers there (--restart)"
        )
