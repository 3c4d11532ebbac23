"""A class map -> polygons, slab by slab: GeoPackage, FlatGeobuf, GeoParquet or GeoJSON.

Slabs of rows are read, sieved (patches.py), traced to lines (outlines.py), which are simplified (simplify.py), each by
itself (tracing.py), and polygons are written (features.py) as soon as no later slab can add to them. Memory holds one
slab, the outlines of the polygons that reach its last row, and the runs of slabs in which a small patch is not settled
yet; on a cluster, the slabs that are on their way as well.
"""

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.raster.balance import Balance
from rs_biformer.raster.features import ClassPolygons, layer_name, require_format, write_features
from rs_biformer.raster.georeference import Placing
from rs_biformer.raster.ground import ground_areas, in_pixels, pixel_areas
from rs_biformer.raster.legend import Legend
from rs_biformer.raster.metadata import read_class_names
from rs_biformer.raster.outlines import Outlines, faces_beside, outlines_of, polygons
from rs_biformer.raster.overwriting import refuse_overwriting
from rs_biformer.raster.patches import merge, sieved
from rs_biformer.raster.paths import PathLike
from rs_biformer.raster.regularise import MOST_TOLERANCE, Report, regularised
from rs_biformer.raster.remarks import about_place
from rs_biformer.raster.sizes import MOST_PIXELS
from rs_biformer.raster.source import Source, require_same_grid
from rs_biformer.raster.tracing import (
    Joined,
    Rows,
    Scores,
    Traced,
    changed_slabs,
    patches_of_rows,
    shares_of,
    trace_rows,
    trace_slab,
)
from rs_biformer.schema import IGNORE
from rs_biformer.shares import Executor, executor

_LOG = logging.getLogger(__name__)

TOLERANCE = 3.0
"""Pixels that outlines of regularised classes may move, unless given."""
BUILDINGS = ("building", "buildings", "house", "houses", "roof", "roofs")
"""Classes that are regularised where nobody says which, in any case of letters."""

_FARTHEST = 1e6  # pixels that a line may be moved
_SLAB_PIXELS = 2**22
_SLAB_ROWS = (16, 1024)
MOST_COLUMNS = 2**21
"""Of a map, unless insisted on: slabs are whole rows."""
_PIXEL_BYTES = 60  # of a slab, about


def vectorize(
    maps: PathLike | Sequence[PathLike],
    out: str | os.PathLike[str],
    *,
    confidence: PathLike | Sequence[PathLike] | None = None,
    layer: str | None = None,
    min_area: float = 0.0,
    simplify: float = 1.0,
    rows: int | None = None,
    cluster: Any = None,
    allow_huge: bool = False,
    regularise: Sequence[str] | None = None,
    tolerance: float = TOLERANCE,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the patches of a class map, or of several on one grid, as polygons and return their number.

    Pixels that share an edge and a class are one patch; masked pixels (nodata) belong to none. Each polygon has the
    attributes `class_index`, `class_name` (from the map's CLASS_NAMES, else "class N"), `area` of the outline as
    written, in square metres (see ground.py; without a CRS in the units of the transform, or in pixels), and, if asked
    for, `confidence`. Neighbours share the points of their common border: there are no gaps and no overlaps.

    maps: several are joined across their edges; where they overlap, the first one counts. A map that control points
    alone place is taken to the ground by the polynomial through them.
    out: ends in .gpkg, .fgb, .parquet or .geojson; appears complete or not at all. In a GeoPackage that exists only the
    layer is added or replaced. layer: its name, that of the file unless given.
    confidence: a raster of one band on the map's grid (one for each of several maps); a polygon gets the mean of it
    over its pixels, null where it is masked everywhere.
    min_area: smaller patches are given to the neighbour with the longest common border before anything else (`sieve`
    in patches.py); in the units of `area`. simplify: pixels by which an outline may leave the edges of the pixels;
    0 keeps every corner. It and `tolerance` may be ground.Metres. The frame of the map and the points where three
    classes meet stay. rows: height of a slab; the default depends on the map alone. With `simplify=0` the polygons
    are the same for every height; otherwise the points where borders pass from one slab to the next stay as well.
    cluster: whose workers read and trace the slabs, as `shares.executor` takes it; this process without one, with
    the same bytes. allow_huge: take maps of more than MOST_COLUMNS columns or MOST_PIXELS pixels, whatever memory
    and time that needs. regularise: names of classes whose polygons get right angles where no point of their
    outlines moves by more than `tolerance` pixels (regularise.py); those of BUILDINGS that the map has where no
    name is given; none unless asked for. say: gets a line for each class, of its area in pixels and as polygons,
    and one of what was squared. progress: called with rows done and all rows.

    Raises RasterError when a raster cannot be read, is no class map or not on its grid, when a map without a CRS is to
    become GeoJSON, or the disk is full; ConfigError when an option cannot be meant.
    """
    out = Path(out)
    if rows is not None and rows < 1:
        raise ConfigError(f"rows is {rows}; a slab is 1 row high or more")
    maps = [maps] if isinstance(maps, str | os.PathLike) else list(maps)
    certain = [confidence] if isinstance(confidence, str | os.PathLike) else list(confidence or ())
    if not maps or len(certain) not in (0, len(maps)):
        raise ConfigError(f"{len(maps)} map(s) and {len(certain)} confidence(s); give one for each map, or none")
    refuse_overwriting([*maps, *certain], [out])
    joined, scores = Joined.of(maps), Joined.of(certain) if certain else None
    with ExitStack() as stack:
        source = stack.enter_context(joined.opened())
        placing = Placing.of(source.crs, source.transform, source.gcps)
        placing = placing.in_metres() if out.suffix.lower() in (".gpkg", ".fgb") else placing
        require_format(out, placing.crs, maps[0])
        require_class_map(source)
        _require_possible(source, allow_huge)
        _tell(maps[0], source, placing)
        watched = [source]
        if scores is not None:
            watched.append(Scores(stack.enter_context(scores.opened())).source)
            require_same_grid(*watched)
        crs = placing.crs if source.crs is None else source.crs
        simplify, tolerance = (
            in_pixels(length, crs, placing.transform, (source.height, source.width)) for length in (simplify, tolerance)
        )
        _require_lengths(min_area, simplify, tolerance)
        slabs = rows or int(np.clip(_SLAB_PIXELS // source.width, *_SLAB_ROWS))
        legend = Legend.of(maps[0], read_class_names(source.path))
        exact = () if regularise is None else _indices(regularise, legend.names, maps[0])
        areas = None
        if min_area > 0 or exact:
            areas = pixel_areas(crs, placing.transform, source.height, source.width)
        tasks = list(shares_of(joined, scores, (source.height, source.width), slabs, simplify, exact))
        shares = stack.enter_context(executor(cluster))
        lines: Iterator[Traced] = stack.enter_context(
            closing(_traced(shares, tasks, areas if min_area > 0 else None, min_area))
        )
        balance, report = None, Report()
        if exact and areas is not None:
            balance = Balance(areas, "square metres" if crs is not None else "square units")
            lines = regularised(balance.counted(lines), source.height, exact, tolerance, report)
        features = _features(lines, source.height, placing, legend.names, scores is not None, progress)
        features = features if balance is None else balance.drawn(features)
        number = write_features(
            out,
            _of_unchanged(watched, features),
            placing.crs,
            with_confidence=scores is not None,
            layer=layer or layer_name(out),
            legend=legend,
        )
    if balance is not None:
        for line in balance.lines(legend.names, report, tolerance):
            say(line)
    return number


def _require_lengths(min_area: float, simplify: float, tolerance: float) -> None:
    if not (min_area >= 0 and 0 <= simplify <= _FARTHEST):
        raise ConfigError(
            f"min_area is {min_area} and simplify is {simplify}; they must be numbers of 0 or more, "
            f"and the second at most {_FARTHEST:g} pixels"
        )
    if not 0 < tolerance <= MOST_TOLERANCE:
        raise ConfigError(f"tolerance is {tolerance}; it is a number of pixels above 0, {MOST_TOLERANCE:g} at most")


def _indices(wanted: Sequence[str], names: Mapping[int, str], path: PathLike) -> tuple[int, ...]:
    """The classes of a map that are to be regularised: those of these names, of BUILDINGS unless any is given.

    Classes without a name are called "class N", as in the polygons.
    """
    known = {names.get(index, f"class {index}").casefold(): index for index in range(IGNORE)}
    chosen = [name for name in wanted or BUILDINGS if name.casefold() in known]
    if missing := [name for name in wanted if name not in chosen]:
        raise ConfigError(
            f"{path} has no class {', '.join(missing)} that could be regularised; its classes are "
            f"{', '.join(names.values()) or 'class 0, class 1, ...'}"
        )
    if not chosen:
        raise ConfigError(
            f"{path} has no class {', '.join(BUILDINGS)}; name those that are to be regularised of "
            f"{', '.join(names.values()) or 'class 0, class 1, ...'}"
        )
    return tuple(known[name.casefold()] for name in chosen)


def _traced(
    shares: Executor, tasks: Sequence[Rows], areas: NDArray[np.float64] | None, min_area: float
) -> Generator[Traced]:
    """The slabs of a map, traced by `shares`; sieved before where the areas of pixels are given, row by row."""
    if areas is None:
        with closing(shares.map(trace_rows, tasks)) as traced:
            yield from chain.from_iterable(traced)
        return
    with closing(shares.map(patches_of_rows, tasks)) as found:
        slabs = sieved(chain.from_iterable(found), areas, min_area)
        changed = changed_slabs(slabs, tasks[0].scores, len(areas), tasks[0].tolerance, tasks[0].exact)
        with closing(shares.map(trace_slab, changed)) as lines:
            yield from lines


def _of_unchanged(sources: Sequence[Source], features: Iterable[ClassPolygons]) -> Iterator[ClassPolygons]:
    """The features, if at the last of them the rasters are still those that they were."""
    yield from features
    for source in sources:
        source.require_unchanged()


def _tell(path: PathLike, source: Source, placing: Placing) -> None:
    """Say what was decided where a map does not say all."""
    if source.misplaced:
        _LOG.warning("%s", about_place(path))
    if placing.control:
        _LOG.warning("%s is placed by control points alone; polygons are moved by the polynomial through them", path)
    elif placing.crs is None:
        _LOG.warning("%s has no CRS; programs will not know where its polygons lie", path)


def require_class_map(source: Source) -> None:
    """Raise RasterError unless a raster is one band of bytes."""
    if source.count != 1 or source.dtypes[0] != "uint8":
        raise RasterError(
            f"{source.path} has {source.count} band(s) of {source.dtypes[0]}; a class map is one of uint8"
        )


def _require_possible(source: Source, allow_huge: bool) -> None:
    """Say what is too large before anything of that size is made."""
    if allow_huge or (source.width <= MOST_COLUMNS and source.height * source.width <= MOST_PIXELS):
        return
    needed = _SLAB_ROWS[0] * source.width * _PIXEL_BYTES / 1e9
    raise RasterError(
        f"{source.path} is {source.height} x {source.width} pixels; more than {MOST_COLUMNS:,} columns or "
        f"{MOST_PIXELS:,} pixels are taken for a mistake, as whole rows are in memory (here {needed:,.1f} GB and "
        "more): cut the map into parts, or insist with --allow-huge"
    )


def _features(
    slabs: Iterable[Traced],
    height: int,
    placing: Placing,
    names: Mapping[int, str],
    with_confidence: bool,
    progress: Callable[[int, int], None] | None,
) -> Iterator[ClassPolygons]:
    """The polygons of a map of so many rows, whose slabs come from the top down."""
    builder, row = FaceBuilder(height), 0
    for slab in slabs:
        outlines, classes, means = builder.add(slab)
        row += slab.patches.shape[0]
        if len(outlines):
            outlines = shapely.transform(outlines, placing.ground)
            # Where rows run north, what was counterclockwise on the screen runs the other way.
            outlines = shapely.reverse(outlines) if placing.is_mirrored else outlines
            yield ClassPolygons(
                outlines,
                classes,
                [names.get(index, f"class {index}") for index in classes.tolist()],
                ground_areas(outlines, placing.crs, placing.transform),
                means if with_confidence else None,
            )
        if progress is not None:
            progress(row, height)


class FaceBuilder:
    """Polygons of a map that comes slab by slab. height: rows of the map."""

    def __init__(self, height: int) -> None:
        self._height = height
        self._row = 0
        self._above = np.zeros(0, np.int64)  # the number of the open face of each pixel of the row above
        self._classes = np.zeros(0, np.uint8)  # of the open faces
        self._sums, self._counts = np.zeros(0), np.zeros(0)
        self._lines: list[Outlines] = []  # of the open faces, by slab

    def add(self, slab: Traced) -> tuple[NDArray[np.object_], NDArray[np.uint8], NDArray[np.float64]]:
        """The polygons that a slab completes, in pixels (x = column, y = row), their classes and mean scores."""
        patches, lines = slab.patches, slab.lines
        last = self._row + patches.shape[0] == self._height
        merged = merge(self._classes, self._above, patches, last=last)
        faces = faces_beside(lines, patches, merged.known, self._above)
        faces[faces >= 0] = merged.part[faces[faces >= 0]]
        new = outlines_of(slab.moved or lines, faces, self._row)
        new = new[(new.faces >= 0) & (merged.classes[new.faces] != IGNORE)]
        sums, counts = merged.total(self._sums, slab.sums), merged.total(self._counts, slab.counts)

        done = ~merged.growing & (merged.classes != IGNORE)
        lots = [*(lot.of(merged.part[lot.faces]) for lot in self._lines), new]
        finished = Outlines.join([lot[done[lot.faces]] for lot in lots])
        number = np.where(done, np.cumsum(done), np.cumsum(merged.growing)) - 1
        self._lines = [rest.of(number[rest.faces]) for lot in lots if len((rest := lot[~done[lot.faces]]).faces)]
        self._row += patches.shape[0]
        self._above = number[merged.last_row]
        self._classes = merged.classes[merged.growing]
        self._sums, self._counts = sums[merged.growing], counts[merged.growing]

        outlines = polygons(finished.of(number[finished.faces]), int(done.sum()))
        with np.errstate(invalid="ignore"):  # no score at all gives NaN
            return outlines, merged.classes[done], sums[done] / counts[done]
