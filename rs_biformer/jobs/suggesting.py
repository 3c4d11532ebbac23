"""Maps, or a model and scenes -> which windows to label next, as polygons with attributes to be filled in QGIS."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import transform as reproject

from rs_biformer.data.acquisition import PARTS, Choice, choose, class_shares, rarity
from rs_biformer.data.footprints import CRS84, footprints
from rs_biformer.data.index import FILE_NAME, TileIndex
from rs_biformer.data.layouts import pattern_scenes, require_own_names
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.evaluation.zones import class_indices
from rs_biformer.geometry import Window, Windows, grid
from rs_biformer.predict.outputs import SCORES
from rs_biformer.raster.crs import local_metres, names_a_place, same_crs
from rs_biformer.raster.features import require_own_layer, write_layer
from rs_biformer.raster.gdal import gdal_env, open_raster, raster_errors
from rs_biformer.raster.geopackage import filled_rows
from rs_biformer.raster.layer import Features, is_vector, plain_value
from rs_biformer.raster.legend import outlines_qml
from rs_biformer.raster.metadata import LAYER, PREDICTION_WINDOW, read_class_names
from rs_biformer.raster.overwriting import refuse_overwriting
from rs_biformer.raster.paths import Location, PathLike, folder_of, is_remote, stem_of
from rs_biformer.raster.polygons import Polygons
from rs_biformer.raster.source import Source, ground_sample_distance
from rs_biformer.raster.style import write_unless_edited
from rs_biformer.raster.tracing import Scores
from rs_biformer.raster.vector import require_class_map
from rs_biformer.schema import IGNORE

if TYPE_CHECKING:
    from rs_biformer.jobs.mapping import MappingReport, Tell

Measure = Literal["disagreement", "entropy", "margin", "confidence"]
"""What tells uncertainty, the first that is there: disagreement and entropy as they are, the others from 1 down."""

CLASS, NOTE = "class", "note"
"""Attributes that are to be filled: what is there, and what else there is to say."""

_DEFAULT_WINDOW = 256
_MEASURES = get_args(Measure)
_COMMON = 0.01
"""Share of a window that may lie on labelled ground: neighbours touch, and CRSs differ by roundings."""
_RADIUS = 6_371_008.8  # of a sphere with the mean radius of the WGS 84 ellipsoid, metres
_FAR = 1e12  # between scenes that do not say where they lie

Columns = dict[str, NDArray[Any]]
Say = Callable[[str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SuggestOptions:
    """Which windows, and how many of them.

    count: windows at most. window: pixels of the maps on a side; that of the prediction, as maps tell it, unless given.
    measure: what tells uncertainty; the first of Measure that lies beside all maps unless given.
    min_distance: metres between the middles of two windows at least, pixels for maps that do not say where they lie;
        two sides of a window unless given. min_valid: least share of a window that is mapped.
    parts: what counts, of `data.acquisition.PARTS`.

    Raises ConfigError for what cannot be meant.
    """

    count: int = 50
    window: int | None = None
    measure: Measure | None = None
    min_distance: float | None = None
    min_valid: float = 1.0
    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        for name, value in (("count", self.count), ("window", self.window)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be 1 or more")
        if self.measure is not None and self.measure not in _MEASURES:
            raise ConfigError(f"no measure {self.measure!r} of uncertainty; use {', '.join(_MEASURES)}")
        if self.min_distance is not None and not 0 <= self.min_distance < np.inf:
            raise ConfigError(f"min_distance is {self.min_distance}; it must be a number of metres, 0 or more")
        if not 0 < self.min_valid <= 1:
            raise ConfigError(f"min_valid is {self.min_valid}; it is a share of a window, above 0 and at most 1")
        if not self.parts or set(self.parts) - set(PARTS):
            raise ConfigError(f"parts are {', '.join(self.parts) or 'none'}; use some of {', '.join(PARTS)}")


@dataclass(frozen=True)
class _Map:
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
class _Candidates:
    """Windows of maps, all (N, ...): the map of each, pixels per class, mean uncertainty, share that is mapped."""

    scene: NDArray[np.int64]
    windows: Windows
    histogram: NDArray[np.int64]
    uncertainty: NDArray[np.float64]
    mapped: NDArray[np.float64]

    def take(self, chosen: NDArray[Any]) -> "_Candidates":
        return _Candidates(
            self.scene[chosen],
            self.windows.take(chosen),
            self.histogram[chosen],
            self.uncertainty[chosen],
            self.mapped[chosen],
        )


def suggest_from_maps(
    maps: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    score: str | None = None,
    labelled: Sequence[PathLike] = (),
    options: SuggestOptions | None = None,
    say: Say = lambda line: None,
    progress: Progress | None = None,
) -> Columns:
    """Write the windows to label next to a GeoPackage, the first first, and return its attributes as columns.

    maps: class maps as `predict` writes them: files, patterns, folders and lists.
    score: a pattern that leads from a map to the raster of its uncertainty; unless given that is the map of
        `options.measure` beside it.
    labelled: tile indices, whose windows and classes count as known, and vector layers, whose polygons are known
        ground; features of a layer with an attribute `class` count where that is filled.
    say: gets a line for each decision. progress: told the windows read and all.

    Attributes: rank; score, which is the product of uncertainty, rarity and diversity (see `data.acquisition`); scene;
    row, col, height, width in pixels of the map; largest, the class that is most of it; class and note, empty.

    Raises ConfigError for options that cannot be meant, a layer in which somebody has filled `class` or `note` already,
    and where no window is left; RasterError for what cannot be read.
    """
    options, out = options or SuggestOptions(), Path(out)
    _require_free(out)
    inputs = [maps] if isinstance(maps, str) or not isinstance(maps, Sequence) else list(maps)
    listed, measure = _listed(inputs, score, options.measure)
    read = [*inputs, *labelled, *(path for one in listed for path in (one.path, one.score))]
    refuse_overwriting(read, [out, out.with_suffix(".qml")])
    if options.measure is None:
        say(f"uncertainty is told by {measure}")
    window = options.window or _window_of([one.path for one in listed]) or _DEFAULT_WINDOW
    found, names = _candidates(listed, window, measure, progress)
    known = _Known.of(labelled, listed, names)
    kept = _kept(found, known, listed, options.min_valid, say)
    chosen, polygons, crs = _chosen(kept, known, listed, window, options, say)
    return _write(out, kept, chosen, polygons, crs, listed, names)


def suggest_from_model(
    scenes: PathLike | Sequence[PathLike],
    model: Any,
    out: PathLike,
    *,
    maps: PathLike | None = None,
    labelled: Sequence[PathLike] = (),
    options: SuggestOptions | None = None,
    say: Say = lambda line: None,
    progress: Progress | None = None,
    tell: "Tell | None" = None,
    **mapping: Any,
) -> Columns:
    """`suggest_from_maps` of scenes that are mapped first, by `map_scenes`, which also takes the options `mapping`.

    Uncertainty is the entropy of one model and the disagreement of several unless `options.measure` says otherwise.
    maps: the folder for the maps; they are removed afterwards unless one is given.
    """
    from rs_biformer.jobs.mapping import map_scenes, quiet

    options, out = options or SuggestOptions(), Path(out)
    _require_free(out)
    several = isinstance(model, Sequence) and not isinstance(model, str) and len(model) > 1
    measure: Measure = options.measure or ("disagreement" if several else "entropy")
    inputs = [scenes] if isinstance(scenes, str) or not isinstance(scenes, Sequence) else list(scenes)
    refuse_overwriting([*inputs, *labelled], [out, out.with_suffix(".qml")])
    with ExitStack() as stack:
        folder = Path(maps) if maps is not None else None
        if folder is None:
            out.parent.mkdir(parents=True, exist_ok=True)
            folder = Path(stack.enter_context(TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}.maps.")))
        report: MappingReport = map_scenes(inputs, model, folder, layers=[measure], tell=tell or quiet, **mapping)
        written = [one.maps["classes"] for one in report.mapped] + [one.maps["classes"] for one in report.skipped]
        return suggest_from_maps(
            written,
            out,
            labelled=labelled,
            options=SuggestOptions(**{**vars(options), "measure": measure}),
            say=say,
            progress=progress,
        )


def _require_free(out: Path) -> None:
    """Raise where the output cannot be meant, or holds what somebody has filled in, before any work."""
    if out.suffix.lower() != ".gpkg":
        raise ConfigError(f"{out} is to hold windows for QGIS; its name must end in .gpkg")
    require_own_layer(out, out.stem, ["rank", "score", CLASS, NOTE], "suggested windows", "give another file")
    if filled := filled_rows(out, out.stem, (CLASS, NOTE)):
        raise ConfigError(
            f"{out} has {filled} features whose {CLASS} or {NOTE} is filled, which would be lost; give another --out "
            "(and this file as --labelled, so that its ground is not suggested again)"
        )


# --- maps and their windows -------------------------------------------------------------------------------------------


def _listed(inputs: Sequence[PathLike], score: str | None, measure: Measure | None) -> tuple[list[_Map], Measure]:
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
    for layer in _MEASURES if measure is None else (measure,):
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
        if layer not in _MEASURES:
            raise ConfigError(f"{path} does not say what it measures; say so with --measure {', '.join(_MEASURES)}")
        told.add(layer)
    if len(told) > 1:
        raise ConfigError(f"--score leads to {' and '.join(sorted(told))}; all maps need one measure")
    measure: Measure = told.pop()
    return measure


def _map(name: str, path: Location, score: Location) -> _Map:
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
        return _Map(
            name,
            source.path,
            other.path,
            source.crs.to_wkt() if source.crs else None,
            tuple(source.transform)[:6],
            source.height,
            source.width,
            ground_sample_distance(source.crs, source.transform, source.height, source.width),
        )


def _window_of(maps: Sequence[Location]) -> int | None:
    """The window of the prediction, as the maps tell it; None where one does not, or they differ."""
    told = set()
    for path in maps:
        with gdal_env(), raster_errors(path, "opened"), open_raster(path) as file:
            told.add(file.tags().get(PREDICTION_WINDOW, ""))
    text = told.pop() if len(told) == 1 else ""
    return int(text) if text.isascii() and text.isdecimal() and 0 < len(text) < 6 else None


def _candidates(
    maps: Sequence[_Map], side: int, measure: Measure, progress: Progress | None
) -> tuple[_Candidates, tuple[str, ...]]:
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
        _Candidates(
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


def _names(maps: Sequence[_Map]) -> tuple[str, ...]:
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


# --- what is labelled already -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    """What is labelled: tile indices, layers of polygons, and the class pixels (M, K) of the windows of the former."""

    indices: tuple[TileIndex, ...]
    layers: tuple[PathLike, ...]
    histogram: NDArray[np.int64]

    @classmethod
    def of(cls, labelled: Sequence[PathLike], maps: Sequence[_Map], names: Sequence[str]) -> "_Known":
        indices, layers, counted = [], [], [np.zeros((0, len(names)), np.int64)]
        for one in labelled:
            path = Path(one)
            if is_vector(one) and path.name != FILE_NAME:
                layers.append(one)
                continue
            index = TileIndex.read(path)
            classes = index.manifest.schema.classes
            if len(classes) != len(names) or (read_class_names(maps[0].path) and classes != tuple(names)):
                raise ConfigError(
                    f"{one} has the classes {', '.join(classes)} and the maps have {', '.join(names)}; give an index "
                    "of the same classes"
                )
            train = index.table.split == "train"
            counted.append(index.table.histogram[train if train.any() else np.ones(len(index), bool)])
            indices.append(index)
        return cls(tuple(indices), tuple(layers), np.concatenate(counted))


def _kept(found: _Candidates, known: _Known, maps: Sequence[_Map], min_valid: float, say: Say) -> _Candidates:
    """The windows that are mapped and have no label yet."""
    mapped = (found.mapped >= min_valid) & ~np.isnan(found.uncertainty)
    left = found.take(mapped)
    taken = _is_labelled(left, known, maps)
    left_out = {"hold nodata": int((~mapped).sum()), "lie on labelled ground": int(taken.sum())}
    told = [f"{count} {what}" for what, count in left_out.items() if count]
    if told:
        say(f"of {len(mapped)} windows {' and '.join(told)}; they are left out")
    if taken.all():
        raise ConfigError(
            f"no window is left to suggest: of {len(mapped)} windows {' and '.join(told)}; give other maps, a smaller "
            "--window or a lower --min-valid"
        )
    return left.take(~taken)


def _is_labelled(found: _Candidates, known: _Known, maps: Sequence[_Map]) -> NDArray[np.bool_]:
    """Which windows (N,) have labels."""
    taken = np.zeros(len(found.scene), bool)
    polygons, crs = footprints(maps, found.scene, found.windows)
    placed = np.array([polygon is not None for polygon in polygons], bool)
    for index in known.indices:
        others, theirs = index.footprints()
        there = np.array([polygon is not None for polygon in others], bool)
        moved = others[there] if same_crs(crs, theirs) else _moved(others[there], theirs, crs)
        taken[placed] |= _covered(polygons[placed], moved)
        taken |= _same_pixels(found, maps, index)
    for path in known.layers:
        for number, one in enumerate(maps):
            rows = np.flatnonzero((found.scene == number) & ~taken)
            if len(rows):
                taken[rows] = _drawn_over(path, one, found.windows.take(rows))
    return taken


def _covered(polygons: NDArray[Any], others: NDArray[Any]) -> NDArray[np.bool_]:
    """Which polygons (N,) share more than a hair with any of the others."""
    taken = np.zeros(len(polygons), bool)
    mine, theirs = shapely.STRtree(others).query(polygons, predicate="intersects")
    shared = shapely.area(shapely.intersection(polygons[mine], others[theirs]))
    taken[mine[shared > _COMMON * shapely.area(polygons[mine])]] = True
    return taken


def _moved(polygons: NDArray[Any], crs: CRS, to: CRS) -> NDArray[Any]:
    def change(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([np.asarray(one) for one in reproject(crs, to, *points.T)[:2]], axis=1)

    with gdal_env():
        moved: NDArray[Any] = shapely.transform(polygons, change) if len(polygons) else polygons
    return moved


def _same_pixels(found: _Candidates, maps: Sequence[_Map], index: TileIndex) -> NDArray[np.bool_]:
    """Windows of scenes of the index that have the name and size of a map: where nothing says where they lie."""
    scenes = {(one.name, one.height, one.width): number for number, one in enumerate(index.manifest.scenes)}
    taken = np.zeros(len(found.scene), bool)
    for number, one in enumerate(maps):
        other = scenes.get((one.name, one.height, one.width))
        if other is None:
            continue
        theirs = index.table.windows.take(index.table.scene == other)
        for row in np.flatnonzero(found.scene == number):
            taken[row] = theirs.touching(next(iter(found.windows.take([row])))).any()
    return taken


def _drawn_over(path: PathLike, one: _Map, windows: Windows) -> NDArray[np.bool_]:
    """Which windows of a map hold pixels of polygons that are labelled."""
    with closing(Source(one.path)) as source:
        layer = Polygons(path, source)
        if CLASS in layer.layer.fields:
            layer = Polygons(path, source, columns=[CLASS])
        taken = [bool((layer.read(window, _is_filled, 0)[0] > 0).mean() > _COMMON) for window in windows]
    return np.array(taken, bool)


def _is_filled(features: Features) -> NDArray[np.int16]:
    """1 for features with a class, or of a layer that knows no classes; -1, which leaves it out, for the others."""
    if CLASS not in features.columns:
        return np.ones(len(features.ids), np.int16)
    filled = [plain_value(value) not in (None, "") for value in features.columns[CLASS].tolist()]
    return np.where(filled, 1, -1).astype(np.int16)


# --- the choice, and its file -----------------------------------------------------------------------------------------


def _chosen(
    kept: _Candidates, known: _Known, maps: Sequence[_Map], side: int, options: SuggestOptions, say: Say
) -> tuple[Choice, NDArray[Any], CRS | None]:
    """The choice, and the outlines of what is chosen."""
    polygons, crs = footprints(maps, kept.scene, kept.windows)
    counts = known.histogram.sum(axis=0) if len(known.histogram) else kept.histogram.sum(axis=0)
    shares = class_shares(kept.histogram)
    apart = options.min_distance
    if apart is None:
        apart = 2 * side * max(one.gsd or 1.0 for one in maps)
    choice = choose(
        options.count,
        uncertainty=kept.uncertainty,
        rarity=rarity(shares, counts),
        shares=shares,
        labelled=class_shares(known.histogram),
        places=_places(polygons, crs, kept),
        apart=apart,
        windows=(kept.scene, kept.windows),
        parts=options.parts,
    )
    if len(choice.chosen) < options.count:
        unit = "m" if any(one.gsd for one in maps) else "pixels"
        say(
            f"{len(choice.chosen)} windows and not {options.count}: no other is {apart:.4g} {unit} from all of them "
            "(--min-distance)"
        )
    outlines = polygons[choice.chosen]
    if all(polygon is None for polygon in outlines):
        return choice, *_in_own_coordinates(kept, maps, choice, say)
    return choice, outlines, crs


def _places(polygons: NDArray[Any], crs: CRS, kept: _Candidates) -> NDArray[np.float64]:
    """Middles of windows (N, 3) in a space of metres; of those that tell no place in pixels, scenes far apart."""
    row = kept.windows.row + kept.windows.height / 2
    col = kept.windows.col + kept.windows.width / 2
    places = np.stack([row, col, _FAR * (1 + kept.scene)], axis=1)
    placed = np.array([polygon is not None for polygon in polygons], bool)
    if not placed.any():
        return places
    x, y = shapely.get_coordinates(shapely.centroid(polygons[placed])).T
    if not (names_a_place(crs) or same_crs(crs, CRS84)):
        metres = local_metres(crs) or 1.0
        places[placed] = np.stack([x * metres, y * metres, np.zeros(len(x))], axis=1)
        return places
    with gdal_env():
        lon, lat = (np.radians(np.asarray(one)) for one in reproject(crs, CRS84, x, y)[:2])
    places[placed] = _RADIUS * np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    return places


def _in_own_coordinates(
    kept: _Candidates, maps: Sequence[_Map], choice: Choice, say: Say
) -> tuple[NDArray[Any], CRS | None]:
    """Outlines where no map tells a CRS: in the coordinates of the only map, else none."""
    scene, windows = kept.scene[choice.chosen], kept.windows.take(choice.chosen)
    if len(maps) > 1:
        say("no map says where it lies: the windows have rows and columns, but no outlines")
        return np.full(len(scene), None, object), None
    a, b, c, d, e, f = maps[0].transform
    col = windows.col[:, None] + windows.width[:, None] * np.array([0, 0, 1, 1, 0])
    row = windows.row[:, None] + windows.height[:, None] * np.array([0, 1, 1, 0, 0])
    if maps[0].transform == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0):
        e = -1.0  # as QGIS draws a raster that tells no place: rows run down from 0
    return shapely.polygons(np.stack([a * col + b * row + c, d * col + e * row + f], axis=-1)), None


def _write(
    out: Path,
    kept: _Candidates,
    choice: Choice,
    polygons: NDArray[Any],
    crs: CRS | None,
    maps: Sequence[_Map],
    names: Sequence[str],
) -> Columns:
    chosen, called = choice.chosen, np.array([one.name for one in maps], object)
    windows = kept.windows.take(chosen)
    empty = np.full(len(chosen), None, object)
    columns: Columns = {
        "rank": np.arange(1, len(chosen) + 1, dtype=np.int32),
        "score": choice.score,
        "uncertainty": choice.uncertainty,
        "rarity": choice.rarity,
        "diversity": choice.diversity,
        "scene": called[kept.scene[chosen]],
        **{key: getattr(windows, key).astype(np.int32) for key in ("row", "col", "height", "width")},
        "largest": np.array(names, object)[kept.histogram[chosen].argmax(axis=1)],
        CLASS: empty,
        NOTE: empty,
    }
    qml = outlines_qml("rank", choices={CLASS: names})
    write_layer(
        out, polygons, columns, crs, layer=out.stem, qml=qml, what="suggested windows", advice="give another file"
    )
    write_unless_edited(out.with_suffix(".qml"), qml)
    return columns
