"""Maps, or a model and scenes -> which windows to label next, as polygons with attributes to be filled in QGIS."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import transform as reproject

from rs_biformer.data.acquisition import PARTS, Choice, choose, class_shares, rarity
from rs_biformer.data.footprints import CRS84, footprints
from rs_biformer.errors import ConfigError
from rs_biformer.files import scratch_folder
from rs_biformer.jobs.candidates import (
    MEASURES,
    Candidates,
    Map,
    Measure,
    Progress,
    candidates_of,
    listed_maps,
    predicted_window,
)
from rs_biformer.jobs.known import CLASS, Known, Say, without_labels
from rs_biformer.raster.crs import local_metres, names_a_place, same_crs
from rs_biformer.raster.features import require_own_layer, write_layer
from rs_biformer.raster.gdal import gdal_env
from rs_biformer.raster.geopackage import filled_rows
from rs_biformer.raster.legend import outlines_qml
from rs_biformer.raster.overwriting import refuse_overwriting
from rs_biformer.raster.paths import PathLike
from rs_biformer.raster.style import write_unless_edited

if TYPE_CHECKING:
    from rs_biformer.jobs.mapping import MappingReport, Tell

NOTE = "note"
"""The attribute for what else there is to say, to be filled like CLASS."""

_DEFAULT_WINDOW = 256
_RADIUS = 6_371_008.8  # of a sphere with the mean radius of the WGS 84 ellipsoid, metres
_FAR = 1e12  # between scenes that do not say where they lie

Columns = dict[str, NDArray[Any]]


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
        if self.measure is not None and self.measure not in MEASURES:
            raise ConfigError(f"no measure {self.measure!r} of uncertainty; use {', '.join(MEASURES)}")
        if self.min_distance is not None and not 0 <= self.min_distance < np.inf:
            raise ConfigError(f"min_distance is {self.min_distance}; it must be a number of metres, 0 or more")
        if not 0 < self.min_valid <= 1:
            raise ConfigError(f"min_valid is {self.min_valid}; it is a share of a window, above 0 and at most 1")
        if not self.parts or set(self.parts) - set(PARTS):
            raise ConfigError(f"parts are {', '.join(self.parts) or 'none'}; use some of {', '.join(PARTS)}")


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
    listed, measure = listed_maps(inputs, score, options.measure)
    read = [*inputs, *labelled, *(path for one in listed for path in (one.path, one.score))]
    refuse_overwriting(read, [out, out.with_suffix(".qml")])
    if options.measure is None:
        say(f"uncertainty is told by {measure}")
    window = options.window or predicted_window([one.path for one in listed]) or _DEFAULT_WINDOW
    found, names = candidates_of(listed, window, measure, progress)
    known = Known.of(labelled, listed, names)
    kept = without_labels(found, known, listed, options.min_valid, say)
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
            folder = stack.enter_context(scratch_folder(out.with_name(f"{out.stem}.maps")))
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


def _chosen(
    kept: Candidates, known: Known, maps: Sequence[Map], side: int, options: SuggestOptions, say: Say
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


def _places(polygons: NDArray[Any], crs: CRS, kept: Candidates) -> NDArray[np.float64]:
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
    kept: Candidates, maps: Sequence[Map], choice: Choice, say: Say
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
    kept: Candidates,
    choice: Choice,
    polygons: NDArray[Any],
    crs: CRS | None,
    maps: Sequence[Map],
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
