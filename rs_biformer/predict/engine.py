"""The stages in one process: read | cut | infer | blend, overlapped, for runs of strips and for one device or several.

Threads read the scene ahead and cut it into batches; the thread of a device runs the model and blends softmax
probabilities in float32. What is held at a time follows from the plan (plan.py) and does not grow with the scene.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from rs_biformer.background import read_ahead, side_by_side
from rs_biformer.predict.blending import Sweep
from rs_biformer.predict.outputs import Layers
from rs_biformer.predict.plan import Plan, Run, Strip
from rs_biformer.predict.reading import Batch, Readable, read_run
from rs_biformer.predict.recipe import Worker

Done = tuple[Strip, dict[str, NDArray[np.generic]]]
"""A finished strip and its maps on the host, (h, w) or (K, h, w), with nodata where the scene has no valid pixel."""


def infer_strips(
    source: Readable,
    plan: Plan,
    worker: Worker,
    run: Run,
    layers: Layers,
    tick: Callable[[int], None] | None = None,
) -> Generator[Done]:
    """The finished strips of a run, from top to bottom.

    tick: called with the number of windows that are done since the last call; with all of the run's in the end.

    The bytes of a strip are the same in whichever run it is made: the run begins with the batches of the strips above
    it whose windows reach into it.

    Raises what reading and the model raise, and RsBiformerError when the model gives NaN.
    """
    return worker.arrays.inferring(_strips)(source, plan, worker, run, layers, tick)


def _strips(
    source: Readable, plan: Plan, worker: Worker, run: Run, layers: Layers, tick: Callable[[int], None] | None
) -> Generator[Done]:
    arrays = worker.arrays
    sweep = Sweep(plan, run.lane, layers, arrays)
    begun: Strip | None = None
    inferred = 0
    items = read_run(source, plan, run, arrays.staged)
    if plan.window_count > plan.batch_size:  # of a single batch there is nothing to read ahead of
        items = read_ahead(items, plan.read_ahead)
    with closing(items):
        for item in items:
            if item.strip is not begun:
                begun, inferred = item.strip, 0
                sweep.begin(begun, wanted=begun.index >= run.first)
            if isinstance(item, Batch):
                sweep.add(item.windows, worker.predict(arrays.placed(item.image), arrays.placed(item.valid)))
                inferred += len(item.windows)
                if tick and begun.index >= run.first:
                    tick(len(item.windows))
                continue
            maps = {name: arrays.on_host(layer) for name, layer in sweep.finish().items()}
            if begun.index < run.first:
                continue
            if tick and inferred < len(begun.windows):
                tick(len(begun.windows) - inferred)  # those without a valid pixel
            layers.mask(maps, item.valid)
            yield begun, maps


def infer_runs(
    source: Readable,
    plan: Plan,
    workers: Sequence[Worker],
    runs: Iterable[Run],
    layers: Layers,
    tick: Callable[[int], None] | None = None,
) -> Generator[Done]:
    """The finished strips of all runs, each of which is taken by the next worker that is free.

    workers: one thread for each where there are several; `source` is read from all of them.
    """
    waiting, counting = Lock(), Lock()
    queue = iter(runs)

    def count(windows: int) -> None:
        with counting:
            if tick is not None:
                tick(windows)

    def work(worker: Worker) -> Generator[Done]:
        while True:
            with waiting:
                run = next(queue, None)
            if run is None:
                return
            yield from infer_strips(source, plan, worker, run, layers, count)

    if len(workers) == 1:
        return work(workers[0])
    return side_by_side([work(worker) for worker in workers])
