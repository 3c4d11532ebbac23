"""Maps or models -> figures: every set of maps against the same labels, and what sets them apart."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from rs_biformer.errors import ConfigError
from rs_biformer.evaluation import (
    Comparison,
    Metrics,
    Protocol,
    Resampling,
    compare,
    evaluate_protocols,
    load_protocol,
    read_results,
)
from rs_biformer.evaluation.maps import Numbers
from rs_biformer.files import scratch_folder
from rs_biformer.jobs.fitting import parted
from rs_biformer.jobs.mapping import Tell, map_listed, quiet
from rs_biformer.jobs.models import Loaded, load_model
from rs_biformer.jobs.naming import map_layers
from rs_biformer.jobs.truths import Say, Truths, silent
from rs_biformer.predict.cluster import Cluster, connected
from rs_biformer.raster.labelling import settle
from rs_biformer.raster.labels import LabelOptions
from rs_biformer.raster.paths import Location, PathLike, absolute, locate
from rs_biformer.raster.scene import Scene
from rs_biformer.schema import ClassSchema
from rs_biformer.shares import executor

Progress = Callable[[str, str], AbstractContextManager[Callable[[int, int], None] | None]]
"""(label, unit) -> a context that gives a callback (done, total)."""


def no_progress(label: str, unit: str) -> AbstractContextManager[None]:
    """Show nothing."""
    return nullcontext(None)


@dataclass(frozen=True)
class MapSet:
    """The maps of one model, one for each label: their name, the files, and what is known of the model.

    kept: whether the maps stay after the evaluation.
    """

    name: str
    maps: tuple[Location, ...]
    confidences: tuple[Location, ...] | None = None
    kept: bool = True
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rules:
    """How maps are measured; the fields are those of `evaluation.evaluate_protocols`."""

    protocols: Sequence[Protocol | str] = ("all-classes",)
    boundary: Sequence[float] = ()
    resampling: Resampling = field(default_factory=Resampling)
    tolerance: int = 0
    max_unknown: float = 0.01
    nodata: tuple[float | None, ...] = ()
    numbers: Numbers = "auto"
    labelling: LabelOptions = LabelOptions()
    area: PathLike | None = None
    allow_huge: bool = False

    def loaded(self) -> list[Protocol]:
        """The protocols. Raises ConfigError for one that is none, and for two of one id."""
        found = [rule if isinstance(rule, Protocol) else load_protocol(rule) for rule in self.protocols]
        for place, rule in enumerate(found):
            if rule.id in [other.id for other in found[:place]]:
                raise ConfigError(f"the protocol {rule.id!r} is asked for twice; name each once")
        return found


@dataclass(frozen=True)
class Evaluation:
    """Results, one for each set of maps and protocol; by protocol what sets the sets apart; and what was measured."""

    results: tuple[Metrics, ...]
    comparisons: Mapping[str, Sequence[Comparison]]
    sets: tuple[MapSet, ...] = ()
    truths: Truths = field(default_factory=lambda: Truths(()))
    rules: Rules = field(default_factory=Rules)
    results_read: tuple[PathLike, ...] = ()

    @property
    def files_read(self) -> list[PathLike | None]:
        """All that was read for it, by name."""
        rasters = [path for part in self.sets for path in (*part.maps, *(part.confidences or ()))]
        return [*self.results_read, *rasters, *self.truths.files, self.rules.area]


def evaluate_maps(
    sets: Sequence[MapSet],
    truths: Truths,
    schema: ClassSchema,
    rules: Rules,
    cluster: Any = None,
    *,
    progress: Progress = no_progress,
    say: Say = silent,
) -> Evaluation:
    """Measure sets of maps against the same labels, and compare them where there are several.

    cluster: whose workers read and count, as `shares.executor` takes it; this process without one.

    Raises ConfigError and RasterError like `evaluation.evaluate`, and ConfigError for sets without names of their own.
    """
    require_own_names([part.name for part in sets])
    results = []
    for part in sets:
        with executor(cluster) as shares, progress(part.name or "evaluate", "px") as update:
            found = evaluate_protocols(
                part.maps,
                truths.labels,
                schema,
                rules.loaded(),
                scenes=truths.images,
                confidences=part.confidences,
                boundary=rules.boundary,
                resampling=rules.resampling,
                tolerance=rules.tolerance,
                max_unknown=rules.max_unknown,
                nodata=rules.nodata,
                numbers=rules.numbers,
                labelling=rules.labelling,
                area=rules.area,
                allow_huge=rules.allow_huge,
                names=truths.names,
                say=say,
                progress=update,
                shares=shares,
            )
        results += [_of_set(metrics, part) for metrics in found]
    return Evaluation(tuple(results), _compared(results), tuple(sets), truths, rules)


def _of_set(metrics: Metrics, part: MapSet) -> Metrics:
    """What was measured, told to be of a set; maps that do not stay have no place, which would be another each time."""
    scenes = metrics.scenes
    if not part.kept:
        scenes = tuple(replace(scene, prediction=Path(scene.prediction).name) for scene in scenes)
    return replace(metrics, name=part.name, about=part.about, scenes=scenes)


def evaluate_models(
    models: Mapping[str, "PathLike | Loaded"],
    truths: Truths,
    maps: PathLike,
    *,
    schema: ClassSchema | None = None,
    rules: Rules | None = None,
    layer: str | None = None,
    kept: bool = True,
    tell: Tell = quiet,
    progress: Progress = no_progress,
    say: Say = silent,
    **options: Any,
) -> Evaluation:
    """Map the scenes by each model into the folder `maps`, by several into a folder each, and measure the maps.

    models: checkpoints and exported models by the names that they go by; each is loaded once.
    schema: of the labels; that of the models unless given. layer: a map to write as well, for calibration.
    kept: whether the maps stay, so that a page may link to them. tell, progress, say: what happens, as in `map_scenes`
    and `evaluate_maps`. options: as `map_scenes` takes them.

    Raises ConfigError where protocols, options and models contradict each other, before anything is mapped.
    """
    rules = rules or Rules()
    if truths.images is None:
        raise ConfigError("models map images: give them as --scene, or in a list of pairs")
    require_own_names(list(models))
    loaded = {name: load_model(source) for name, source in models.items()}
    schema = common_schema({str(one.path or name): one.schema for name, one in loaded.items()}, schema)
    for rule in rules.loaded():
        rule.averaged(schema)  # refuses classes that do not fit before anything is mapped
    fitting, prediction = parted({**options, **_stitching(rules.loaded(), options)})
    rules = replace(rules, numbers="indices", nodata=fitting.nodata or next(iter(loaded.values())).meta.reading.nodata)
    pixels = _check_pairs(truths, schema, rules)
    layers = map_layers([layer] if layer else [])
    read = [*truths.labels, rules.area, *(one.path for one in loaded.values())]
    cluster = prediction.pop("cluster", None)
    with connected(cluster, next(iter(loaded.values())).model) as connection:
        sets = []
        for name in list(loaded):
            one = loaded.pop(name)  # held no longer than needed: it may fill a GPU
            if one.meta.shared_ground:
                ground = one.meta.shared_ground
                say(f"note: {one.path or name} was trained on splits that overlap on the ground: {ground}")
            started = perf_counter()
            report = map_listed(
                truths.scenes,
                one,
                Path(maps) / name if len(models) > 1 else maps,
                layers=layers,
                fitting=fitting,
                on_failure="stop",
                tell=tell,
                read=read,
                cluster=connection,
                **prediction,
            )
            seconds = perf_counter() - started
            speed = f"{pixels / seconds / 1e6:.2f} Mpx/s, reading and writing included ({seconds:.0f} s)"
            certain = tuple(done.maps[layer] for done in report.mapped) if layer else None
            classes = tuple(done.maps["classes"] for done in report.mapped)
            sets.append(MapSet(name, classes, certain, kept, {**one.facts, "speed here": speed}))
        seeing = _seeing(connection, Path(maps), truths, say)
        return evaluate_maps(sets, truths, schema, rules, cluster=seeing, progress=progress, say=say)


def _seeing(connection: Cluster | None, maps: Path, truths: Truths, say: Say) -> Cluster | None:
    """The cluster, if its workers see the maps that were made and the labels; else nothing, and a line about it.

    A folder of this name may well be another one on each machine, so a file is looked for that has no other's name.
    """
    if connection is None:
        return None
    with scratch_folder(maps / "probe") as folder:
        probe = folder / "probe"
        probe.touch()
        labels = [locate(absolute(locate(path))) for path in truths.labels]
        why_not = connection.unseen([probe, *labels])
        if why_not is None:
            return connection
        what = why_not if str(probe) not in why_not else f"workers do not see the folder {maps}"
    say(f"note: the maps are compared here and not on the cluster: {what}")
    return None


def compare_results(
    paths: Sequence[PathLike], protocols: Sequence[str] = (), resampling: Mapping[str, Any] | None = None
) -> Evaluation:
    """Results from files that evaluations wrote, compared without their rasters.

    protocols: those that all must have been measured under, where given. resampling: what to draw anew, as `Resampling`
    takes it. Raises ConfigError for results of other protocols.
    """
    results = [metrics for path in paths for metrics in read_results(path)]
    if protocols:
        _require_protocols(results, [load_protocol(name) for name in protocols])
    if resampling:
        results = [replace(metrics, resampling=Resampling(**resampling)) for metrics in results]
    return Evaluation(tuple(results), _compared(results), results_read=tuple(paths))


def common_schema(known: Mapping[str, ClassSchema], given: ClassSchema | None = None) -> ClassSchema:
    """The class schema of all. known: by the name of the file. Raises ConfigError when two name other classes."""
    first, schema = next(iter(known.items()))
    if given is not None:
        first, schema = f"--classes {given.name}", given
    for other, theirs in known.items():
        if theirs.classes != schema.classes:
            raise ConfigError(
                f"{other} knows the classes {', '.join(theirs.classes)}, but {first} has "
                f"{', '.join(schema.classes)}; leave --classes out or give the schema of the training"
            )
    return schema


def require_own_names(names: Sequence[str]) -> None:
    """Raise ConfigError unless several sets of maps or models have names of their own."""
    if len(names) > 1 and not all(names):
        raise ConfigError("several sets of maps need names: --prediction old=a/*.tif --prediction new=b/*.tif")
    if len(set(names)) < len(names):
        raise ConfigError(f"the sets are called {', '.join(names)}; give each a name of its own, NAME=FILE")


def _check_pairs(truths: Truths, schema: ClassSchema, rules: Rules) -> int:
    """The pixels of all scenes. Raises RasterError where a scene and its label do not fit, before hours of mapping."""
    pixels = 0
    for images, label in zip(truths.images or [], truths.labels, strict=True):
        with Scene(images) as scene:
            settle(label, schema, scene, tolerance=rules.tolerance, options=rules.labelling)
            pixels += scene.height * scene.width
    return pixels


def _stitching(protocols: Sequence[Protocol], options: Mapping[str, Any]) -> dict[str, Any]:
    """Window and overlap as the protocols want them. Raises ConfigError where they, or the options, disagree."""
    wanted = {(rule.window, rule.overlap): rule.id for rule in protocols if rule.window}
    if not wanted:
        return {}
    if len(wanted) > 1:
        raise ConfigError(
            f"protocols {' and '.join(wanted.values())} stitch maps in different ways; evaluate the model under each "
            "alone"
        )
    ((window, overlap), rule), *_ = wanted.items()
    for name, value in (("window", window), ("overlap", overlap)):
        asked = options.get(name)
        if asked is not None and asked != value:
            raise ConfigError(f"--{name} is {asked}, but protocol {rule!r} asks for {value}; leave --{name} out")
    return {"window": window, "overlap": overlap}


def _require_protocols(results: Sequence[Metrics], protocols: Sequence[Protocol]) -> None:
    for protocol in protocols:
        if protocol not in [metrics.protocol for metrics in results]:
            held = ", ".join(dict.fromkeys(metrics.protocol.id for metrics in results))
            raise ConfigError(
                f"--protocol {protocol.id} is in none of the results, which hold {held}; figures of several "
                "protocols are never mixed, evaluate the maps under it"
            )
    wanted = {protocol.id for protocol in protocols}
    foreign = [metrics for metrics in results if metrics.protocol.id not in wanted]
    if foreign:
        raise ConfigError(
            f"{foreign[0].name} was measured under protocol {foreign[0].protocol.id!r} and --protocol asks for "
            f"{', '.join(sorted(wanted))}; such figures cannot be compared"
        )


def _compared(results: Sequence[Metrics]) -> dict[str, list[Comparison]]:
    """By protocol, what sets the models apart. Raises ConfigError where a model lacks a protocol of the others."""
    protocols = list(dict.fromkeys(metrics.protocol.id for metrics in results))
    names = list(dict.fromkeys(metrics.name for metrics in results))
    if len(names) == 1:
        return {}
    for protocol in protocols:
        there = [metrics.name for metrics in results if metrics.protocol.id == protocol]
        missing = [name for name in names if name not in there]
        if missing:
            other = next(metrics.protocol.id for metrics in results if metrics.name == missing[0])
            raise ConfigError(
                f"{there[0]} was measured under protocol {protocol!r} and {missing[0]} under {other!r}; such figures "
                "cannot be compared, evaluate both under one"
            )
    return {
        protocol: compare([metrics for metrics in results if metrics.protocol.id == protocol]) for protocol in protocols
    }
