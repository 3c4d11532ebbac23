"""From a scene of any size and any model to its maps: plan, infer here or on a cluster, write what is missing."""

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rs_biformer.background import WriteBehind
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.machine import machine_memory
from rs_biformer.predict.backends import backend_of, eval_mode, needing_torch
from rs_biformer.predict.cluster import Cluster, connect
from rs_biformer.predict.engine import Done, infer_runs
from rs_biformer.predict.ensemble import is_movable, members_of
from rs_biformer.predict.options import Compute, Options, Windows
from rs_biformer.predict.outputs import Layers
from rs_biformer.predict.plan import Blocks, Plan, Strip, make_plan
from rs_biformer.predict.quality import Seen, Sight, choices, keeps_regions
from rs_biformer.predict.recipe import Device, Model, Recipe, Worker
from rs_biformer.predict.resume import fingerprint, model_identity
from rs_biformer.predict.shortage import memory_errors
from rs_biformer.raster import metadata
from rs_biformer.raster.gdal import CACHE_BYTES, set_cache
from rs_biformer.raster.overwriting import refuse_overwriting
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.style import write_score_qml, write_style
from rs_biformer.raster.writer import MapWriter
from rs_biformer.schema import ClassSchema

if TYPE_CHECKING:
    from rs_biformer.nn.normalise import Normalisation

PathLike = str | os.PathLike[str]
Place = tuple[int, int]  # lane and index of a strip

SHARE = 0.25
"""Of the machine's memory that prediction allocates at most, unless told otherwise."""

ENOUGH = 2 * 10**9
"""Bytes for each device beyond which more memory changes nothing with common options."""


def predict_scene(
    model: Model,
    scene: PathLike | Sequence[PathLike] | Scene,
    out: PathLike,
    *,
    classes: int | ClassSchema,
    normalisation: "Normalisation | tuple[Sequence[float], Sequence[float]] | None" = None,
    probabilities: PathLike | None = None,
    confidence: PathLike | None = None,
    margin: PathLike | None = None,
    entropy: PathLike | None = None,
    disagreement: PathLike | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    tags: Mapping[str, str] | None = None,
    **options: Any,
) -> Path:
    """Map a scene of any size by a sliding window and return the path of the class map.

    model: gives logits (B, K, S, S). Any callable (B, C, S, S) -> logits will do; it gets float32 batches of the raw
        band values with 0 where the scene has no valid pixel, or, when `normalisation` is given, standardised ones. A
        model with an attribute `normalisation` (`load_checkpoint` gives one) is called as model(raw, valid) with raw
        in the raster's own type and valid (B, S, S) bool, and normalises by itself. Modules are moved to the device,
        and predict in eval mode whatever mode they are in, which they have again afterwards. One logit is taken for
        two classes: that of the second, by a sigmoid. An `OnnxModel` is run by onnxruntime, without torch.
    scene: a raster, several co-registered ones, or an open Scene.
    out: the class map: uint8 with nodata 255 where the scene is invalid. An existing file is replaced, and only once
        the new one is complete.
    classes: the schema, which also colours and names the map, or only the number of classes.
    normalisation: Normalisation, or (mean, std) per band in raw units.
    probabilities, confidence, margin, entropy, disagreement: more maps to write in the same pass, see outputs.py.
    on_plan: called with the plan before anything is read; `str(plan)` says in a line what was chosen.
    progress: called as progress(windows done, windows in all), from one thread at a time.
    tags: more metadata for the maps.
    options: the fields of `options.Windows` (window, overlap, quality, blend, tta,
        scales), of `options.Compute` (batch_size, device, precision, max_memory, compile, passes, cluster) and of
        `options.Output` (probability_dtype, style, resume, restart), each with its default unless given.

    The result depends on the scene, the model and the options alone; running again gives the same bytes, on one kind of
    hardware. Another batch size or bound on memory may change pixels where two classes tie within rounding.

    Raises ConfigError for options that cannot be meant and a model that does not give logits of the stated shape,
    RasterError for a scene or map that cannot be read or written, RsBiformerError when the model gives NaN or a window
    does not fit the device. What the model itself raises passes through.
    """
    asked = {
        "classes": out,
        "probabilities": probabilities,
        "confidence": confidence,
        "margin": margin,
        "entropy": entropy,
        "disagreement": disagreement,
    }
    paths = {name: path for name, path in asked.items() if path is not None}
    if isinstance(normalisation, Sequence):
        with needing_torch("a normalisation"):
            from rs_biformer.nn.normalise import Normalisation
        normalisation = Normalisation(*normalisation)
    map_scene(
        model,
        scene,
        paths,
        classes=classes,
        options=Options.of(**options),
        normalisation=normalisation,
        on_plan=on_plan,
        progress=progress,
        tags=tags,
    )
    return Path(out)


def map_scene(
    model: Model,
    scene: PathLike | Sequence[PathLike] | Scene,
    paths: Mapping[str, PathLike],
    *,
    classes: int | ClassSchema,
    options: Options,
    normalisation: "Normalisation | None" = None,
    on_plan: Callable[[Plan], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    tags: Mapping[str, str] | None = None,
    runner: "Runner | None" = None,
    sight: Sight | None = None,
) -> None:
    """`predict_scene` with its maps by name, `classes` and any of outputs.SCORES, and its options in their groups.

    runner: that of `open_runner` for the same model, layers and options, where several scenes are mapped.
    sight: what windows the model was trained with, where that is known; see quality.py.
    """
    windows, compute, output = options.windows, options.compute, options.output
    count = classes if isinstance(classes, int) else len(classes)
    models = len(members_of(model))
    recipe = _recipe(model, count, tuple(paths), options, normalisation, sight)
    layers = Layers(tuple(paths), count, output.probability_dtype)
    schema = classes if isinstance(classes, ClassSchema) else None
    devices = _devices(model, compute) if runner is None else runner.devices

    with ExitStack() as stack:
        source = scene if isinstance(scene, Scene) else stack.enter_context(Scene(scene))
        refuse_overwriting([*source.paths, source.area, getattr(model, "path", None)], paths.values())
        _require_bands(source, getattr(model, "normalisation", None) or normalisation)
        seen, plan = _plan(source, layers, windows, compute, models, devices, sight)
        _require_memory(plan, len(devices), compute.max_memory)
        stack.enter_context(memory_errors(plan, devices[0] if devices else None))
        if runner is None:
            runner = stack.enter_context(_opened(model, recipe, devices, compute))
        plan = replace(plan, batch_size=runner.largest_batch(source, plan), passes=str(runner.recipe))
        if on_plan is not None:
            on_plan(plan)
        set_cache(plan.memory.cache)
        stack.callback(set_cache, CACHE_BYTES)
        notes = _tags(plan, seen, windows) | metadata.date_tags(source.sources[0].dated) | dict(tags or {})
        known = runner.recipe, runner.hardware, runner.identity
        state = fingerprint(source, model, plan, *known) if output.resume else None
        maps = _open_maps(stack, source, paths, layers, schema, notes, state, output.restart)
        _fill(maps, runner, source, plan, layers, progress)
        source.require_unchanged()
        for writer in maps.values():  # all of them before the first staging folder goes
            writer.complete()
    if output.style and schema is not None:
        write_style(paths["classes"], schema)
        for layer in paths.keys() - {"classes"}:
            write_score_qml(paths[layer])


def _plan(
    source: Scene,
    layers: Layers,
    windows: Windows,
    compute: Compute,
    models: int,
    devices: Sequence[Any],
    sight: Sight | None,
) -> tuple[Seen, Plan]:
    """The first way to look at the scene that keeps to the bound on memory, and its plan.

    Raises ConfigError where none does.
    """
    bound = default_memory() if compute.max_memory is None else compute.max_memory
    batch_size = default_batch(devices) if compute.batch_size is None else compute.batch_size
    blocks = _blocks(source)
    ways = list(choices(windows, batch_size, sight, source.height, source.width))
    for seen in ways:
        windows.require_distinct(seen.window)
        try:
            return seen, make_plan(
                source.height,
                source.width,
                planes=layers.planes,
                bands=source.count,
                itemsize=source.dtype.itemsize,
                window=seen.window,
                overlap=seen.overlap,
                blend=windows.blend,
                batch_size=seen.batch_size,
                layer_bytes=layers.pixel_bytes,
                views=len(windows.views),
                models=models,
                largest_view=max(view.side(seen.window) for view in windows.views),
                blocks=blocks,
                max_memory=bound,
                rule=seen.rule,
            )
        except ConfigError:
            if seen is ways[-1]:
                raise
    raise AssertionError("there is a way to look at any scene")


@contextmanager
def open_runner(
    model: Model,
    count: int,
    layers: Sequence[str],
    options: Options,
    normalisation: "Normalisation | None" = None,
    sight: Sight | None = None,
) -> "Iterator[Runner]":
    """What infers, for many scenes: the model is looked through, put into eval mode and brought to its devices once.

    count: of classes. layers: the maps that are made of each scene. Raises like `map_scene`.
    """
    recipe = _recipe(model, count, layers, options, normalisation, sight)
    with _opened(model, recipe, _devices(model, options.compute), options.compute) as runner:
        yield runner


def _recipe(
    model: Model,
    count: int,
    layers: Sequence[str],
    options: Options,
    normalisation: "Normalisation | None",
    sight: Sight | None,
) -> Recipe:
    windows, compute, models = options.windows, options.compute, len(members_of(model))
    differing = "disagreement" in layers
    return Recipe(
        count,
        normalisation,
        compute.precision,
        windows.tta,
        windows.scales,
        differing,
        compute.compile,
        models,
        compute.passes,
        keeps_regions(windows, sight),
    )


def _devices(model: Model, compute: Compute) -> list[Any]:
    """Of this machine; none where a cluster's are used."""
    return [] if compute.cluster is not None else backend_of(model).pick_devices(compute.device, is_movable(model))


@contextmanager
def _opened(model: Model, recipe: Recipe, devices: Sequence[Any], compute: Compute) -> "Iterator[Runner]":
    with ExitStack() as stack:
        for member in members_of(model):
            stack.enter_context(eval_mode(member))
        if compute.cluster is None:
            yield _Here(model, recipe, devices)
        else:
            yield _Away(model, recipe, compute.device, stack.enter_context(connect(compute.cluster, model)))


def _blocks(scene: Scene) -> Blocks:
    """The largest blocks of the scene's rasters."""
    sizes = [(source.decoded, source.block) for source in scene.sources if scene.numbers_of(source)]
    decoded, (height, width) = max(sizes)
    return Blocks(height, width, decoded)


class _Here:
    """Inference by the devices of this machine."""

    side_by_side = 1
    """Scenes that may be mapped at a time: one keeps the machine busy."""

    def __init__(self, model: Model, recipe: Recipe, devices: Sequence[Any]) -> None:
        backend = backend_of(model)
        self.recipe = recipe.settled(model, all(map(backend.good_at_bf16, devices)))
        threads = backend.threads()
        self.hardware = " and ".join(sorted({backend.hardware(device, threads, model) for device in devices}))
        self._model, self.devices, self._backend = model, devices, backend

    @cached_property
    def identity(self) -> str | None:
        """The model's, which takes as long as to read its weights once."""
        return model_identity(self._model)

    @cached_property
    def _workers(self) -> list[Worker]:
        """The model on each device: itself on the first, a copy on the others."""
        return [
            self._backend.prepare(self.recipe, self._model, device, copy=number > 0)
            for number, device in enumerate(self.devices)
        ]

    def largest_batch(self, source: Scene, plan: Plan) -> int:
        """Windows for which every GPU has memory at a time, of the plan's; a CPU is taken to have it."""
        size, image = plan.batch_size, np.zeros((source.count, plan.size, plan.size), source.dtype)
        for worker in self._workers:
            if worker.arrays.gathers:  # a GPU, on which only torch computes
                from rs_biformer.predict.forward import largest_batch

                size = largest_batch(worker, size, image, np.ones(image.shape[1:], bool))
        return size

    def infer(
        self, source: Scene, plan: Plan, layers: Layers, missing: Sequence[Place], tick: Callable[[int], None]
    ) -> Generator[Done]:
        share = -(-len(missing) // len(self.devices))
        runs = plan.runs(missing, at_most=share if len(self.devices) > 1 else None)
        return infer_runs(source, plan, self._workers[: len(runs)], runs, layers, tick)


class _Away:
    """Inference by the workers of a cluster."""

    def __init__(self, model: Model, recipe: Recipe, device: Device | Sequence[Device], cluster: Cluster) -> None:
        if isinstance(device, Sequence) and not isinstance(device, str):
            raise ConfigError(f"device is {device!r}; on a cluster name one for each worker, such as auto or cuda")
        found = cluster.survey(device, model)
        self.recipe, self.hardware = recipe.settled(model, found.bf16), found.hardware
        self._kinds = found.kinds
        self._model, self._device, self._cluster = model, device, cluster
        self.devices: list[Any] = []

    @property
    def side_by_side(self) -> int:
        """Scenes that may be mapped at a time, if each is work for one worker."""
        return 2 * self._cluster.workers()

    @cached_property
    def identity(self) -> str | None:
        """The model's."""
        return model_identity(self._model)

    def largest_batch(self, source: Scene, plan: Plan) -> int:
        """The plan's: what a worker cannot hold it tells."""
        return plan.batch_size

    def infer(
        self, source: Scene, plan: Plan, layers: Layers, missing: Sequence[Place], tick: Callable[[int], None]
    ) -> Generator[Done]:
        of_workers = self._cluster.infer(
            self._model, self.recipe, self._device, source, plan, layers, missing, self._kinds, self.identity
        )
        with closing(of_workers) as finished:
            for strip, made in finished:
                tick(len(strip.windows))
                yield strip, made


Runner = _Here | _Away
"""What infers the strips of scenes."""


def _fill(
    maps: dict[str, MapWriter],
    runner: Runner,
    source: Scene,
    plan: Plan,
    layers: Layers,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Infer and write the strips that are not there yet."""
    done = 0

    def tick(windows: int) -> None:
        nonlocal done
        done += windows
        if progress is not None:
            progress(done, plan.window_count)

    missing: list[Place] = []
    for lane in range(len(plan.columns)):
        for strip in plan.strips(lane):
            if all(one.has(strip.output) for one in maps.values()):
                tick(len(strip.windows))
            else:
                missing.append((strip.lane, strip.index))
    if not missing:
        return
    with ExitStack() as stack:
        finished = stack.enter_context(closing(runner.infer(source, plan, layers, missing, tick)))
        write: Callable[..., None] = _write
        if len(missing) > 1:  # of a single strip nothing is inferred meanwhile
            behind = stack.enter_context(WriteBehind(plan.write_behind))
            write = partial(behind.submit, _write)
        for strip, made in finished:
            write(maps, strip, made)
            del made


def _write(maps: dict[str, MapWriter], strip: Strip, made: dict[str, NDArray[np.generic]]) -> None:
    for name, layer in made.items():
        if not maps[name].has(strip.output):
            maps[name].write(strip.output, layer)


def _open_maps(
    stack: ExitStack,
    source: Scene,
    paths: Mapping[str, PathLike],
    layers: Layers,
    schema: ClassSchema | None,
    tags: dict[str, str],
    state: dict[str, str] | None,
    restart: bool,
) -> dict[str, MapWriter]:
    """A writer per map, by the name of its layer. They close when the stack does."""
    opened = {}
    for name, path in paths.items():
        options = layers.writer_options(name, schema)
        options["tags"] = tags | options.get("tags", {})
        options["state"] = state and {**state, "map": name}
        size: dict[str, Any] = {"height": source.height, "width": source.width, **source.georeference}
        opened[name] = stack.enter_context(MapWriter(path, restart=restart, **size, **options))
    return opened


def _require_memory(plan: Plan, devices: int, bound: int | None) -> None:
    """Raise ConfigError when the workers of several devices do not fit a bound that was asked for."""
    if bound is not None and devices > 1 and devices * plan.memory.total > bound:
        raise ConfigError(
            f"{devices} devices need {devices * plan.memory.total // 10**6 + 1} MB between them, got a bound of "
            f"{bound // 10**6} MB; raise it, or name fewer devices"
        )


def default_batch(devices: Sequence[Any]) -> int:
    """Windows per forward pass unless told otherwise: 64 where torch computes on GPUs alone, else 8.

    An H100 maps 4.3 times as many windows of 256 pixels in a second by 64 as by 8 (RESULTS.md): its time went into
    starting kernels. A CPU gains nothing from more.
    """
    on_gpus = bool(devices) and all(getattr(device, "type", "cpu") != "cpu" for device in devices)
    return 64 if on_gpus else 8


def default_memory() -> int:
    """Bytes that prediction may allocate for each device unless told otherwise: a share of the machine's memory."""
    return min(ENOUGH, int(SHARE * machine_memory()))


def _require_bands(scene: Scene, normalisation: Any) -> None:
    wanted = getattr(normalisation, "bands", scene.count)
    if wanted != scene.count:
        raise RasterError(
            f"{scene.paths[0]} has {scene.count} bands ({', '.join(scene.band_names)}); the model takes {wanted}"
        )


def _tags(plan: Plan, seen: Seen, windows: Windows) -> dict[str, str]:
    """How a map was made, as metadata. No date of its making, no machine: the same run gives the same bytes."""
    return {
        metadata.PREDICTION_WINDOW: str(plan.size),
        metadata.PREDICTION_OVERLAP: f"{seen.overlap:g}",
        metadata.PREDICTION_BLEND: plan.blend,
        metadata.PREDICTION_TTA: windows.tta,
        metadata.PREDICTION_SCALES: " ".join(f"{scale:g}" for scale in windows.scales),
    }
