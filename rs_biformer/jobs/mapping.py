"""Many scenes -> their maps: all are checked before the first, and one that fails does not stop the others."""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, get_args

from rs_biformer.data.layouts import SceneFiles, pattern_scenes
from rs_biformer.errors import ConfigError, RsBiformerError
from rs_biformer.jobs.events import Advanced, Checked, Event, Failed, Mapped, Planned, Remarked, Skipped
from rs_biformer.jobs.fitting import AS_TRAINED, Fitting, parted
from rs_biformer.jobs.models import Loaded, load_model
from rs_biformer.jobs.naming import map_layers, map_paths, map_patterns
from rs_biformer.jobs.stac_maps import item_path, write_item
from rs_biformer.predict.fit import open_scenes
from rs_biformer.predict.mapping import Runner, map_scene, open_runner
from rs_biformer.predict.options import Options
from rs_biformer.predict.plan import Plan
from rs_biformer.raster.overwriting import refuse_overwriting
from rs_biformer.raster.paths import PathLike, without_access
from rs_biformer.raster.remarks import remarks
from rs_biformer.raster.scene import Scene
from rs_biformer.shares import in_order

if TYPE_CHECKING:
    from rs_biformer.checkpoint import TrainedModel

OnFailure = Literal["continue", "stop"]
Tell = Callable[[Event], None]


def quiet(event: Event) -> None:
    """What nobody listens to."""


@dataclass(frozen=True)
class MappingReport:
    """What became of the scenes, in their order."""

    mapped: tuple[Mapped, ...]
    skipped: tuple[Skipped, ...]
    failed: tuple[Failed, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "scenes": [one.to_dict() for one in self.mapped],
            "skipped": [{"name": one.name} for one in self.skipped],
            "failed": [{"name": one.name, "error": without_access(str(one.error))} for one in self.failed],
        }


class ScenesFailed(RsBiformerError):
    """Some of many scenes could not be mapped. report: what became of all."""

    def __init__(self, report: MappingReport) -> None:
        self.report = report
        failed, tried = report.failed, len(report.mapped) + len(report.failed)
        super().__init__(
            f"{len(failed)} of {tried} scenes are not mapped, the others are; "
            + "; ".join(f"{one.name}: {one.error}" for one in failed)
        )


def map_scenes(
    scenes: PathLike | Sequence[PathLike],
    model: "PathLike | TrainedModel | Loaded | Sequence[PathLike | TrainedModel | Loaded]",
    out: PathLike,
    *,
    layers: Sequence[str] = (),
    extra: Sequence[str] = (),
    exclude: Sequence[str] = (),
    name: str = "{stem}",
    skip_existing: bool = False,
    stac: bool = False,
    on_failure: OnFailure = "continue",
    tell: Tell = quiet,
    **options: Any,
) -> MappingReport:
    """Map scenes of any number and size into the folder `out`, as `rs-biformer predict` does, which calls this.

    scenes: rasters, glob patterns, folders, lists and URLs, as `data.layouts.pattern_scenes` takes them.
    model: a checkpoint or exported model by its path, or one that is loaded; several are averaged, see
        `models.load_ensemble`, and `disagreement` among the layers is theirs.
    layers: maps beside the classes: any of `predict.outputs.SCORES`.
    extra: patterns of further rasters of each scene. exclude: file names to leave out. name: a pattern for what each
        scene, and so its maps, are called.
    stac: write a STAC Item of the maps of each scene beside them, see stac_maps.py.
    skip_existing: leave scenes alone whose maps are all there, by whatever model.
    on_failure: `continue` with the other scenes when one cannot be mapped, and raise ScenesFailed at the end, or `stop`
        at once. What is wrong with the options, and so with the first scene, stops at once in any case.
    tell: called with each event, see events.py, from one thread at a time.
    options: how scenes are read, the fields of `fitting.Fitting` (bands, nodata, scale, rescale_gsd, ...), and those of
        prediction, see `predict.options` (quality, window, overlap, tta, device, ...).

    Raises ConfigError for options that cannot be meant, CheckpointError for a file that is no model, RasterError that
    names all scenes that do not fit the model before any is mapped; ScenesFailed, whose `report` tells more.
    """
    if on_failure not in get_args(OnFailure):
        raise ConfigError(f"on_failure is {on_failure!r}; it must be one of {', '.join(get_args(OnFailure))}")
    written = map_layers(layers)
    fitting, prediction = parted(options)
    inputs = [os.fspath(item) for item in ([scenes] if isinstance(scenes, str | os.PathLike) else scenes)]
    listed = pattern_scenes(inputs, None, extra, skip=[*exclude, *map_patterns(out, name, written)], name=name)
    report = map_listed(
        listed,
        load_model(model),
        out,
        read=inputs,
        layers=written,
        fitting=fitting,
        skip_existing=skip_existing,
        stac=stac,
        on_failure=on_failure,
        tell=tell,
        **prediction,
    )
    if report.failed:
        raise ScenesFailed(report)
    return report


def map_listed(
    listed: Sequence[SceneFiles],
    loaded: Loaded,
    out: PathLike,
    *,
    layers: Sequence[str] = ("classes",),
    fitting: Fitting = AS_TRAINED,
    skip_existing: bool = False,
    stac: bool = False,
    on_failure: OnFailure = "continue",
    tell: Tell = quiet,
    read: Sequence[PathLike | None] = (),
    **options: Any,
) -> MappingReport:
    """`map_scenes` for scenes that are listed and a model that is loaded; those that failed are in the report.

    read: what else is read and must stay as it is.
    """
    chosen = Options.of(**options)
    every = [map_paths(out, files.name, layers) for files in listed]
    done = _finished(every) if skip_existing else [False] * len(listed)
    todo = [place for place, there in enumerate(done) if not there]
    refuse_overwriting(
        [*(image for place in todo for image in listed[place].images), loaded.path, fitting.area, *read],
        [
            *(path for place in todo for path in every[place].values()),
            *(item_path(out, listed[place].name) for place in todo if stac),
        ],
    )
    scenes = open_scenes([listed[place].images for place in todo], **fitting.of(loaded.meta))
    tell(Checked(len(listed)))
    mapped: list[Mapped] = []
    skipped = [Skipped(files.name, maps) for files, maps, there in zip(listed, every, done, strict=True) if there]
    failed: list[Failed] = []
    for one in skipped:
        tell(one)
    with ExitStack() as stack:
        runner = None
        if todo:
            sight = loaded.sight
            runner = stack.enter_context(open_runner(loaded.model, len(loaded.schema), layers, chosen, sight=sight))

        def attempt(place: int, scene: Scene, hear: Tell) -> Outcome:
            try:
                where = (place + 1, len(listed))
                made = _map(loaded, listed[place], scene, every[place], chosen, where, hear, runner)
                if stac:
                    write_item(item_path(out, made.name), made.name, made.maps)
                return made
            except (RsBiformerError, OSError) as error:
                return error

        outcomes = stack.enter_context(closing(_outcomes(list(zip(todo, scenes, strict=True)), attempt, runner, tell)))
        for place, outcome in zip(todo, outcomes, strict=True):
            if isinstance(outcome, Mapped):
                mapped.append(outcome)
                tell(outcome)
                continue
            first = not mapped and not failed
            if on_failure == "stop" or len(listed) == 1 or (first and isinstance(outcome, ConfigError)):
                raise outcome
            failed.append(Failed(listed[place].name, outcome))
            tell(failed[-1])
    return MappingReport(tuple(mapped), tuple(skipped), tuple(failed))


Outcome = Mapped | RsBiformerError | OSError

_SMALL_PIXELS = 2**22
"""Of a scene that leaves most workers of a cluster idle."""

_SIDE_BY_SIDE = 32
"""Small scenes that are mapped at a time, at most: the caller holds the maps of each."""


def _outcomes(
    scenes: Sequence[tuple[int, Scene]],
    attempt: Callable[[int, Scene, Tell], Outcome],
    runner: Runner | None,
    tell: Tell,
) -> Generator[Outcome]:
    """What became of each scene, in their order. The events of each are told before.

    On a cluster several small scenes are mapped at a time, as each is work for one worker. Theirs are told together,
    once it is their turn, so that whoever listens hears of one scene after the other.
    """
    at_a_time = 1 if runner is None else min(runner.side_by_side, _SIDE_BY_SIDE)
    pool = ThreadPoolExecutor(at_a_time, thread_name_prefix="scene")

    def submit(item: tuple[int, Scene]) -> Any:
        heard: list[Event] = []
        if at_a_time == 1 or item[1].height * item[1].width > _SMALL_PIXELS:
            return _InTurn(lambda: (heard, attempt(*item, tell)))
        return pool.submit(lambda: (heard, attempt(*item, heard.append)))

    try:
        for heard, outcome in in_order(submit, scenes, at_a_time):
            for event in heard:
                tell(event)
            yield outcome
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _InTurn:
    """What is done by who asks for the result."""

    result: Callable[[], tuple[list[Event], Outcome]]


def _finished(every: Sequence[Mapping[str, Path]]) -> list[bool]:
    """Of each scene, whether all its maps are there: one look at each folder, however many maps lie in it."""
    names: dict[Path, set[str]] = {}
    for folder in {path.parent for maps in every for path in maps.values()}:
        names[folder] = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return [all(path.name in names[path.parent] for path in maps.values()) for maps in every]


def _map(
    loaded: Loaded,
    files: SceneFiles,
    scene: Scene,
    maps: Mapping[str, Path],
    options: Options,
    place: tuple[int, int],
    tell: Tell,
    runner: Runner | None,
) -> Mapped:
    """Map one scene. place: its number, and of how many."""
    plans: list[Plan] = []

    def planned(plan: Plan) -> None:
        plans.append(plan)
        tell(Planned(files.name, *place, plan, tuple(scene.regridded), _pixel(scene)))

    started = perf_counter()
    with scene:
        for line in remarks(scene):
            tell(Remarked(files.name, line))
        map_scene(
            loaded.model,
            scene,
            maps,
            classes=loaded.schema,
            options=options,
            on_plan=planned,
            progress=lambda done, total: tell(Advanced(files.name, done, total)),
            tags=loaded.tags,
            runner=runner,
            sight=loaded.sight,
        )
    return Mapped(
        name=files.name,
        rasters=scene.paths,
        maps=maps,
        pixels=scene.height * scene.width,
        metres_per_pixel=scene.gsd,
        windows=plans[0].window_count,
        memory_bytes=plans[0].memory.total,
        seconds=perf_counter() - started,
    )


def _pixel(scene: Scene) -> str:
    return f"{scene.gsd:.3g} m" if scene.gsd else f"{scene.height} x {scene.width}"
