"""Class maps and their scores -> the windows that might be labelled next, and what each holds."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rs_biformer.data.layouts import pattern_scenes, require_own_names
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.evaluation.zones import class_indices
from rs_biformer.geometry import Window, Windows, grid
from rs_biformer.predict.outputs import SCORES
from rs_biformer.raster.gdal import gdal_env, open_raster, raster_errors
from rs_biformer.raster.metadata import LAYER, PREDICTION_WINDOW, read_class_names
from rs_biformer.raster.paths import Location, PathLike, folder_of, is_remote, stem_of
from rs_biformer.raster.source import Source, ground_sample_distance
from rs_biformer.raster.tracing import Scores
from rs_biformer.raster.vector import require_class_map
from rs_biformer.schema import IGNORE

Measure = Literal["disagreement", "entropy", "margin", "confidence"]
"""What tells uncertainty, the first that is there: disagreement and entropy as they are, the others from 1 down."""

MEASURES = get_args(Measure)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Map:
    """A class map and its score; the frame of the map, for footprints."""

    name: str
    path: Location
    score: Location
    crs: str | None
    transform: tuple[float, float, float, float, float, float]
    height: int
    width: int
    gsd: float | None


@dataclass(frozen=True)
class Candidates:
    """Windows of maps, all (N, ...): the map of each, pixels per class, mean uncertainty, share that is mapped."""

    scene: NDArray[np.int64]
    windows: Windows
    histogram: NDArray[np.int64]
    uncertainty: NDArray[np.float64]
    mapped: NDArray[np.float64]

    def take(self, chosen: NDArray[Any]) -> "Candidates":
        return Candidates(
            self.scene[chosen],
            self.windows.take(chosen),
            self.histogram[chosen],
            self.uncertainty[chosen],
            self.mapped[chosen],
        )


def listed_maps(inputs: Sequence[PathLike], score: str | None, measure: Measure | None) -> tuple[list[Map], Measure]:
    """The maps with their scores, and what these are."""
    layers = [f"*_{layer}.tif" for layer in SCORES]
    found = [files.images[0] for files in pattern_scenes([str(one) for one in inputs], None, [], skip=layers)]
    named = [(_scene_name(path), path) for path in found]
    require_own_names(named)
    if score is not None:
        pairs = pattern_scenes([str(path) for path in found], None, [score])
        scores = {str(files.images[0]): files.images[1] for files in pairs}
        wanted: Measure = measure or _told(list(scores.values()))
    else:
        wanted = _beside(found, measure)
        scores = {str(path): _neighbour(path, wanted) for path in found}
    return [_map(name, path, scores[str(path)]) for name, path in named], wanted


def _scene_name(path: Location) -> str:
    return stem_of(path).removesuffix("_classes")


def _neighbour(path: Location, layer: str) -> Location:
    """Where `predict` writes a layer beside a class map."""
    name = f"{_scene_name(path)}_{layer}.tif"
    return f"{folder_of(path)}/{name}" if isinstance(path, str) else path.with_name(name)


def _beside(maps: Sequence[Location], measure: Measure | None) -> Measure:
    """The measure whose rasters lie beside all maps."""
    for layer in MEASURES if measure is None else (measure,):
        if all(is_remote(str(one)) or Path(one).is_file() for one in (_neighbour(path, layer) for path in maps)):
            found: Measure = layer
            return found
    wanted = measure or "entropy"
    missing = next(one for path in maps if not Path(one := _neighbour(path, wanted)).is_file())
    raise ConfigError(
        f"nothing tells how uncertain the maps are: there is no {missing}; map with `predict --{wanted}`, or name the "
        "rasters with --score PATTERN"
    )


def _told(scores: Sequence[Location]) -> Measure:
    """What rasters of scores say that they are, by their metadata or their names."""
    told: set[Any] = set()
    for path in scores:
        with gdal_env(), raster_errors(path, "opened"), open_raster(path) as file:
            layer = file.tags().get(LAYER) or stem_of(path).rpartition("_")[2]
        if layer not in MEASURES:
            raise ConfigError(f"{path} does not say what it measures; say so with --measure {', '.join(MEASURES)}")
        told.add(layer)
    if len(told) > 1:
        raise ConfigError(f"--score leads to {' and '.join(sorted(told))}; all maps need one measure")
    measure: Measure = told.pop()
    return measure


def _map(name: str, path: Location, score: Location) -> Map:
    """Raises RasterError where the map is none, or its score lies on another grid."""
    with closing(Source(path)) as source, closing(Source(score)) as other:
        require_class_map(source)
        with gdal_env(), raster_errors(path, "opened"), open_raster(path) as file:
            if (layer := file.tags().get(LAYER, "classes")) != "classes":
                raise RasterError(f"{path} is a map of {layer}; give class maps, and such a raster as --score")
        if (source.height, source.width) != (other.height, other.width):
            raise RasterError(
                f"{score} has {other.height} x {other.width} pixels and {path} {source.height} x {source.width}; a "
                "score has the pixels of its map"
            )
        return Map(
            name,
            source.path,
            other.path,
            source.crs.to_wkt() if source.crs else None,
            tuple(source.transform)[:6],
            source.height,
            source.width,
            ground_sample_distance(source.crs, source.transform, source.height, source.width),
        )


def predicted_window(maps: Sequence[Location]) -> int | None:
    """The window of the prediction, as the maps tell it; None where one does not, or they differ."""
    told = set()
    for path in maps:
        with gdal_env(), raster_errors(path, "opened"), open_raster(path) as file:
            told.add(file.tags().get(PREDICTION_WINDOW, ""))
    text = told.pop() if len(told) == 1 else ""
    return int(text) if text.isascii() and text.isdecimal() and 0 < len(text) < 6 else None


def candidates_of(
    maps: Sequence[Map], side: int, measure: Measure, progress: Progress | None
) -> tuple[Candidates, tuple[str, ...]]:
    """All windows of the maps, and the names of their classes."""
    names = _names(maps)
    windows = [Windows.of(grid(one.height, one.width, side, side)) for one in maps]
    total, done = sum(map(len, windows)), 0
    histogram = np.zeros((total, IGNORE), np.int64)
    uncertainty = np.full(total, np.nan)
    for one, inside in zip(maps, windows, strict=True):
        with closing(Source(one.path)) as source, closing(Source(one.score)) as other:
            scores = Scores(other)
            for window in inside:
                histogram[done], uncertainty[done] = _counted(source, scores, window, measure)
                done += 1
                if progress is not None:
                    progress(done, total)
    used = int(np.flatnonzero(histogram.any(axis=0)).max(initial=-1)) + 1
    if names and used > len(names):
        raise RasterError(f"{maps[0].path} names {len(names)} classes and a map holds class {used - 1}")
    names = names or tuple(f"class {number}" for number in range(used))
    joined = Windows(*(np.concatenate([vars_of(one) for one in windows]) for vars_of in _PARTS_OF_WINDOWS))
    pixels = joined.height * joined.width
    return (
        Candidates(
            np.repeat(np.arange(len(maps)), [len(one) for one in windows]),
            joined,
            histogram[:, : len(names)],
            uncertainty,
            histogram.sum(axis=1) / pixels,
        ),
        names,
    )


_PARTS_OF_WINDOWS: tuple[Callable[[Windows], NDArray[np.int64]], ...] = (
    lambda windows: windows.row,
    lambda windows: windows.col,
    lambda windows: windows.height,
    lambda windows: windows.width,
)


def _names(maps: Sequence[Map]) -> tuple[str, ...]:
    """Those of the classes of all maps, empty where they tell none. Raises ConfigError where maps differ."""
    told = {read_class_names(one.path) or (): one.path for one in maps}
    if len(told) > 1:
        (one, names), (other, others) = [(path, names) for names, path in told.items()][:2]
        ours, theirs = (", ".join(these) or "(not named)" for these in (names, others))
        raise ConfigError(f"{one} has the classes {ours} and {other} {theirs}; give maps of one model")
    return next(iter(told))


def _counted(source: Source, scores: Scores, window: Window, measure: Measure) -> tuple[NDArray[np.int64], float]:
    """Pixels of each class (IGNORE,), and the mean uncertainty over them, NaN without any."""
    index = class_indices(source, window)
    values = scores.read(window)
    values = values if measure in ("disagreement", "entropy") else 1 - values
    told = (index != IGNORE) & ~np.isnan(values)
    mean = float(values[told].mean()) if told.any() else np.nan
    return np.bincount(index.reshape(-1), minlength=IGNORE + 1)[:IGNORE], float(np.clip(mean, 0, 1))
