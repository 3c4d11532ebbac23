"""A class map -> polygons, slab by slab: GeoPackage, FlatGeobuf, GeoParquet or GeoJSON.

Slabs of rows are read, sieved (patches.py), traced to lines (outlines.py), which are simplified (simplify.py), and
polygons are written (features.py) as soon as no later slab can add to them. Memory holds one slab, the outlines of the
polygons that reach its last row, and the runs of slabs in which a small patch is not settled yet.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.files import temporary_folder
from rs_biformer.geometry import Window, cover
from rs_biformer.raster.features import ClassPolygons, layer_name, require_format, write_features
from rs_biformer.raster.georeference import Placing
from rs_biformer.raster.ground import ground_areas, pixel_areas
from rs_biformer.raster.legend import Legend
from rs_biformer.raster.metadata import ScoreScale, read_class_names
from rs_biformer.raster.mosaic import join_maps
from rs_biformer.raster.outlines import Lines, Outlines, beside, outlines_of, polygons, trace
from rs_biformer.raster.overwriting import refuse_overwriting
from rs_biformer.raster.patches import Patches, find_patches, merge, sieve, sum_by
from rs_biformer.raster.paths import PathLike
from rs_biformer.raster.remarks import about_place
from rs_biformer.raster.simplify import simplified
from rs_biformer.raster.source import Source, require_same_grid
from rs_biformer.schema import IGNORE

_LOG = logging.getLogger(__name__)

_FARTHEST = 1e6  # pixels that a line may be moved
_SLAB_PIXELS = 2**22
_SLAB_ROWS = (16, 1024)
_SLAB_BORDERS = 2**20
"""Pixel edges between classes in a slab: memory grows with them, and a map of noise has two per pixel."""


def vectorize(
    maps: PathLike | Sequence[PathLike],
    out: str | os.PathLike[str],
    *,
    confidence: PathLike | Sequence[PathLike] | None = None,
    layer: str | None = None,
    min_area: float = 0.0,
    simplify: float = 1.0,
    rows: int | None = None,
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
    in patches.py); in the units of `area`. simplify: pixels by which an outline may leave the edges of the pixels; 0
    keeps every corner. The frame of the map and the points where three classes meet stay. rows: height of a slab; the
    default depends on the map alone. With `simplify=0` the polygons are the same for every height; otherwise the points
    where borders pass from one slab to the next stay as well. progress: called with rows done and all rows.

    Raises RasterError when a raster cannot be read, is no class map or not on its grid, when a map without a CRS is to
    become GeoJSON, or the disk is full; ConfigError when an option cannot be meant.
    """
    out = Path(out)
    if not (min_area >= 0 and 0 <= simplify <= _FARTHEST):
        raise ConfigError(
            f"min_area is {min_area} and simplify is {simplify}; they must be numbers of 0 or more, "
            f"and the second at most {_FARTHEST:g} pixels"
        )
    if rows is not None and rows < 1:
        raise ConfigError(f"rows is {rows}; a slab is 1 row high or more")
    maps = [maps] if isinstance(maps, str | os.PathLike) else list(maps)
    certain = [confidence] if isinstance(confidence, str | os.PathLike) else list(confidence or ())
    if not maps or len(certain) not in (0, len(maps)):
        raise ConfigError(f"{len(maps)} map(s) and {len(certain)} confidence(s); give one for each map, or none")
    refuse_overwriting([*maps, *certain], [out])
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        source = stack.enter_context(closing(Source(_joined(maps, folder / "maps.vrt"))))
        placing = Placing.of(source.crs, source.transform, source.gcps)
        placing = placing.in_metres() if out.suffix.lower() in (".gpkg", ".fgb") else placing
        require_format(out, placing.crs, maps[0])
        require_class_map(source)
        _tell(maps[0], source, placing)
        scores = None
        if certain:
            scores = Scores(stack.enter_context(closing(Source(_joined(certain, folder / "confidence.vrt")))))
            require_same_grid(source, scores.source)
        height = rows or int(np.clip(_SLAB_PIXELS // source.width, *_SLAB_ROWS))
        slabs: Iterable[NDArray[np.uint8]] = _slabs(source, height)
        if min_area > 0:
            areas = pixel_areas(source.crs, placing.transform, source.height, source.width)
            if source.crs is None and placing.crs is not None:
                areas = pixel_areas(placing.crs, placing.transform, source.height, source.width)
            slabs = sieve(slabs, areas, min_area)
        legend = Legend.of(maps[0], read_class_names(source.path))
        features = _features(source, placing, legend.names, slabs, scores, simplify, progress)
        watched = [source, *([scores.source] if scores is not None else [])]
        features = _of_unchanged(watched, features)
        return write_features(
            out,
            features,
            placing.crs,
            with_confidence=scores is not None,
            layer=layer or layer_name(out),
            legend=legend,
        )


def _of_unchanged(sources: Sequence[Source], features: Iterable[ClassPolygons]) -> Iterator[ClassPolygons]:
    """The features, if at the last of them the rasters are still those that they were."""
    yield from features
    for source in sources:
        source.require_unchanged()


def _joined(paths: Sequence[PathLike], vrt: Path) -> PathLike:
    return paths[0] if len(paths) == 1 else join_maps(paths, vrt)


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


def _slabs(source: Source, rows: int) -> Iterator[NDArray[np.uint8]]:
    """The map from the top down, IGNORE where it is masked; a slab with a great many borders comes in parts."""
    for window in cover(Window(0, 0, source.height, source.width), rows):
        pixels = source.read([1], window)
        slab = np.where(source.valid([1], pixels, window), pixels[0], np.uint8(IGNORE))
        borders = int(np.count_nonzero(slab[1:] != slab[:-1]) + np.count_nonzero(slab[:, 1:] != slab[:, :-1]))
        yield from np.array_split(slab, min(len(slab), 1 + borders // _SLAB_BORDERS))


class Scores:
    """A raster of one number per pixel, in the scale that the file declares."""

    def __init__(self, source: Source) -> None:
        if source.count != 1:
            raise RasterError(f"{source.path} has {source.count} bands; a confidence map has one, cut it out first")
        self.source = source
        self._quantity = ScoreScale(source.path)

    def read(self, window: Window) -> NDArray[np.float64]:
        """A window of the raster (h, w), NaN where it is masked."""
        pixels = self.source.read([1], window)
        values = self._quantity(pixels[0][None])[0]
        return np.where(self.source.valid([1], pixels, window), values, np.nan)


def _features(
    source: Source,
    placing: Placing,
    names: Mapping[int, str],
    slabs: Iterable[NDArray[np.uint8]],
    scores: Scores | None,
    tolerance: float,
    progress: Callable[[int, int], None] | None,
) -> Iterator[ClassPolygons]:
    builder, row = FaceBuilder(source.height, tolerance), 0
    for slab in slabs:
        rows = Window(row, 0, len(slab), source.width)
        outlines, classes, means = builder.add(slab, None if scores is None else scores.read(rows))
        row += len(slab)
        if len(outlines):
            outlines = shapely.transform(outlines, placing.ground)
            # Where rows run north, what was counterclockwise on the screen runs the other way.
            outlines = shapely.reverse(outlines) if placing.is_mirrored else outlines
            yield ClassPolygons(
                outlines,
                classes,
                [names.get(index, f"class {index}") for index in classes.tolist()],
                ground_areas(outlines, placing.crs, placing.transform),
                None if scores is None else means,
            )
        if progress is not None:
            progress(row, source.height)


class FaceBuilder:
    """Polygons of a map that comes slab by slab.

    height: rows of the map. tolerance: pixels, see `simplified`; 0 for exact outlines.
    """

    def __init__(self, height: int, tolerance: float) -> None:
        self._height, self._tolerance = height, tolerance
        self._row = 0
        self._values: NDArray[np.uint8] | None = None  # of the row above ...
        self._above = np.zeros(0, np.int64)  # ... and the number of the open face of each pixel
        self._classes = np.zeros(0, np.uint8)  # of the open faces
        self._sums, self._counts = np.zeros(0), np.zeros(0)
        self._lines: list[Outlines] = []  # of the open faces, by slab

    def add(
        self, values: NDArray[np.uint8], scores: NDArray[np.float64] | None = None
    ) -> tuple[NDArray[np.object_], NDArray[np.uint8], NDArray[np.float64]]:
        """The polygons that this slab completes, in pixels (x = column, y = row), their classes and mean scores.

        values: class index (h, w), IGNORE where masked. scores: (h, w), NaN where masked.
        """
        patches = find_patches(values)
        last = self._row + len(values) == self._height
        lines = trace(values, self._values, last=last)
        if self._tolerance > 0:
            lines = simplified(lines, patches.shape, self._tolerance, last=last)
        merged = merge(self._classes, self._above, patches, last=last)
        faces = self._faces_beside(lines, patches, merged.known)
        faces[faces >= 0] = merged.part[faces[faces >= 0]]
        new = outlines_of(lines, faces, self._row)
        new = new[(new.faces >= 0) & (merged.classes[new.faces] != IGNORE)]
        sums, counts = _score_sums(patches, scores)
        sums, counts = merged.total(self._sums, sums), merged.total(self._counts, counts)

        done = ~merged.growing & (merged.classes != IGNORE)
        lots = [*(lot.of(merged.part[lot.faces]) for lot in self._lines), new]
        finished = Outlines.join([lot[done[lot.faces]] for lot in lots])
        number = np.where(done, np.cumsum(done), np.cumsum(merged.growing)) - 1
        self._lines = [rest.of(number[rest.faces]) for lot in lots if len((rest := lot[~done[lot.faces]]).faces)]
        self._row += len(values)
        self._values, self._above = values[-1].copy(), number[merged.last_row]
        self._classes = merged.classes[merged.growing]
        self._sums, self._counts = sums[merged.growing], counts[merged.growing]

        outlines = polygons(finished.of(number[finished.faces]), int(done.sum()))
        with np.errstate(invalid="ignore"):  # no score at all gives NaN
            return outlines, merged.classes[done], sums[done] / counts[done]

    def _faces_beside(self, lines: Lines, patches: Patches, known: int) -> NDArray[np.int64]:
        """The face left and right of each line (k, 2), numbered as `merge` takes them; -1 outside of the map."""
        row, column = beside(lines).transpose(2, 0, 1)
        height, width = patches.shape
        faces = np.full(row.shape, -1, np.int64)
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        faces[inside] = known + patches.at(row[inside] * width + column[inside])
        if len(self._above):
            above = (row < 0) & (column >= 0) & (column < width)
            faces[above] = self._above[column[above]]
        return faces


def _score_sums(
    patches: Patches, scores: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the scores in each patch."""
    count = len(patches.classes)
    if scores is None:
        return np.zeros(count), np.zeros(count)
    there = np.isfinite(scores.ravel())
    sums = np.add.reduceat(np.where(there, scores.ravel(), 0), patches.starts)
    counts = np.add.reduceat(there, patches.starts, dtype=np.float64)
    return sum_by(patches.numbers, sums, count), sum_by(patches.numbers, counts, count)
