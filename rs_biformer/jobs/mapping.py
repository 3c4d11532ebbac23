"""Many scenes -> their maps: all are checked before the first, and one that fails does not stop the others."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, get_args

from rs_biformer.data.layouts import SceneFiles, pattern_scenes
from rs_biformer.errors import ConfigError, RsBiformerError
from rs_biformer.jobs.events import Advanced, Checked, Event, Failed, Mapped, Planned, Remarked, Skipped
from rs_biformer.jobs.fitting import AS_TRAINED, Fitting, parted
from rs_biformer.jobs.models import Loaded, load_model
from rs_biformer.jobs.naming import map_layers, map_paths, map_patterns
from rs_biformer.predict.cluster import connect
from rs_biformer.predict.fit import open_scenes
from rs_biformer.predict.mapping import map_scene
from rs_biformer.predict.options import Options
from rs_biformer.predict.plan import Plan
from rs_biformer.raster.overwriting import refuse_overwriting
from rs_biformer.raster.paths import PathLike, without_access
from rs_biformer.raster.remarks import remarks
from rs_biformer.raster.scene import Scene

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
    skip_existing: leave scenes alone whose maps are all there, by whatever model.
    on_failure: `continue` with the other scenes when one cannot be mapped, and raise ScenesFailed at the end, or `stop`
        at once. What is wrong with the options, and so with the first scene, stops at once in any case.
    tell: called with each event, see events.py, from one thread at a time.
    options: how scenes are read, the fields of `fitting.Fitting` (bands, nodata, scale, rescale_gsd, ...), and those of
        prediction, see `predict.options` (window, overlap, tta, device, ...). The window is that of training unless
        given.

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
    on_failure: OnFailure = "continue",
    tell: Tell = quiet,
    read: Sequence[PathLike | None] = (),
    **options: Any,
) -> MappingReport:
    """`map_scenes` for scenes that are listed and a model that is loaded; those that failed are in the report.

    read: what else is read and must stay as it is.
    """
    refuse_overwriting(
        [*(image for files in listed for image in files.images), loaded.path, fitting.area, *read],
        [path for files in listed for path in map_paths(out, files.name, layers).values()],
    )
    chosen = Options.of(**{"window": loaded.meta.window, **options})
    scenes = open_scenes([files.images for files in listed], **fitting.of(loaded.meta))
    tell(Checked(len(scenes)))
    mapped: list[Mapped] = []
    skipped: list[Skipped] = []
    failed: list[Failed] = []
    with ExitStack() as stack:
        if chosen.compute.cluster is not None:
            cluster = stack.enter_context(connect(chosen.compute.cluster, loaded.model))
            chosen = replace(chosen, compute=replace(chosen.compute, cluster=cluster))
        for number, (files, scene) in enumerate(zip(listed, scenes, strict=True), 1):
            maps = map_paths(out, files.name, layers)
            if skip_existing and all(path.exists() for path in maps.values()):
                skipped.append(Skipped(files.name, maps))
                tell(skipped[-1])
                continue
            try:
                mapped.append(_map(loaded, files, scene, maps, chosen, (number, len(listed)), tell))
                tell(mapped[-1])
            except (RsBiformerError, OSError) as error:
                first = not mapped and not failed
                if on_failure == "stop" or len(listed) == 1 or (first and isinstance(error, ConfigError)):
                    raise
                failed.append(Failed(files.name, error))
                tell(failed[-1])
    return MappingReport(tuple(mapped), tuple(skipped), tuple(failed))


def _map(
    loaded: Loaded,
    files: SceneFiles,
    scene: Scene,
    maps: Mapping[str, Path],
    options: Options,
    place: tuple[int, int],
    tell: Tell,
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
