"""Where a sure model and the label disagree: places whose label may be wrong, ranked, as polygons to open in QGIS.

The rule is that of confident learning (Northcutt, Jiang, Chuang, "Confident learning: estimating uncertainty in dataset
labels", JAIR 2021), for regions instead of single examples. A pixel is suspicious when its mapped class differs from
its label and is at least as probable as that class is, on average, where the label confirms it: sure by the measure of
its own class, so a class that the model finds difficult is not left out; a class that no label confirms is, as nothing
says what is sure for it. Suspicious pixels of one pair of classes that share an edge are a place; slivers along
outlines, where labels are merely drawn loosely, are removed by an opening. A place's score is its area in pixels times
the mean by which the mapped class is more probable than the label's.

With a raster per class that gap is known. With the confidence alone it is at least 2 c - 1, which is what is taken.
Two passes over the rasters, slab by slab; memory holds a slab, the open outlines and the places kept.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.evaluation.confusion import ratio
from rs_biformer.evaluation.maps import AnyPath, Numbers, Probabilities
from rs_biformer.evaluation.rasters import ImageFiles, Opened, Spelling, Subject, opened, subjects
from rs_biformer.geometry import Window, cover
from rs_biformer.raster.features import layer_name, write_layer
from rs_biformer.raster.ground import ground_areas
from rs_biformer.raster.labels import LabelOptions
from rs_biformer.raster.legend import outlines_qml
from rs_biformer.raster.overwriting import refuse_overwriting
from rs_biformer.raster.source import Grid
from rs_biformer.raster.tracing import traced
from rs_biformer.raster.vector import FaceBuilder
from rs_biformer.schema import IGNORE, ClassSchema

MOST = 1000
"""Places kept, those of the highest score."""
NARROWEST = 5
"""Pixels: what is narrower is an outline drawn loosely. Odd."""
_BAND_PIXELS = 1 << 20
_CODES = 254
"""Pairs of classes that one pass can tell apart."""


@dataclass(frozen=True)
class Suspect:
    """A place whose label may be wrong; the outline in the coordinates of its scene."""

    score: float
    pixels: int
    scene: str
    label: str
    predicted: str
    gap: float
    area: float
    outline: shapely.Polygon


@dataclass(frozen=True)
class _Place:
    """A scene while it is read: its name and its rasters."""

    name: str
    rasters: Opened

    def read(self, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
        """Label and mapped class (h, w), IGNORE where unknown, and probabilities (B, h, w)."""
        index, _ = self.rasters.label.read(window)
        valid, sure = self.rasters.valid(window), self.rasters.confidences(window)
        assert sure is not None, "every subject has a confidence"
        return index if valid is None else np.where(valid, index, np.uint8(IGNORE)), self.rasters.mapped(window), sure

    @property
    def probabilities(self) -> Probabilities:
        assert self.rasters.confidence is not None
        return self.rasters.confidence

    @property
    def grid(self) -> Grid:
        """Where outlines lie: the map's grid, as labels may tell no place, but the label's where it is the one read."""
        return self.rasters.label if self.rasters.resampled else self.rasters.prediction.source

    def slabs(self) -> list[Window]:
        """The scene from the top down, in windows of its width."""
        height, width = self.rasters.label.height, self.rasters.label.width
        rows = int(np.clip(_BAND_PIXELS // width, 16, 1024))
        return list(cover(Window(0, 0, height, width), rows))


def find_label_errors(
    predictions: AnyPath | Sequence[AnyPath],
    labels: AnyPath | Sequence[AnyPath],
    probabilities: Sequence[AnyPath],
    schema: ClassSchema,
    out: str | PathLike[str],
    *,
    scenes: Sequence[ImageFiles] | None = None,
    tolerance: int = 0,
    nodata: tuple[float | None, ...] = (),
    numbers: Numbers = "auto",
    labelling: LabelOptions | None = None,
    area: AnyPath | None = None,
    allow_huge: bool = False,
    names: Sequence[str] | None = None,
    most: int = MOST,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the places where labels may be wrong to a GeoPackage, the likeliest first, and return their number.

    predictions, labels, scenes, tolerance, nodata, numbers, labelling, area, allow_huge, names: as `evaluate` takes
    them. probabilities: one raster for each prediction, a band per class or the confidence. Each place has the
    attributes rank, score, scene, label, predicted, pixels, area (square metres, as ground.py gives it), gap. progress:
    called with (pixels done, pixels in all) of both passes.

    Raises ConfigError for options that cannot be meant and RasterError for rasters that do not fit each other.
    """
    out = Path(out)
    if out.suffix.lower() != ".gpkg":
        raise ConfigError(f"{out} is to hold places for QGIS; its name must end in .gpkg")
    files = subjects(predictions, labels, scenes, probabilities, names)
    refuse_overwriting([area, *(path for one in files for path in one.paths)], [out])
    spelling = Spelling.of(
        files,
        schema,
        tolerance=tolerance,
        numbers=numbers,
        nodata=nodata,
        labelling=labelling,
        area=area,
        allow_huge=allow_huge,
    )
    total, crs = _check(files, spelling)
    done = 0

    def advance(window: Window) -> None:
        nonlocal done
        done += window.height * window.width
        if progress is not None:
            progress(done, total)

    def places() -> Iterator[_Place]:  # one after the other: there may be thousands, and each has several files
        for subject in files:
            with opened(subject, spelling) as rasters:
                yield _Place(subject.name, rasters)

    thresholds, codes = _thresholds(places(), schema, advance)
    found = (suspect for place in places() for suspect in _suspects(place, schema, thresholds, codes, advance))
    best = heapq.nlargest(most, found, key=lambda suspect: suspect.score)
    _write(out, best, crs)
    return len(best)


def _check(files: Sequence[Subject], spelling: Spelling) -> tuple[int, CRS | None]:
    """Open all rasters once: the pixels of both passes, and the CRS of the maps.

    Raises RasterError where rasters do not fit each other, or maps are in several CRSs: a layer has one.
    """
    total, first = 0, None
    for subject in files:
        with opened(subject, spelling) as rasters:
            total += 2 * rasters.pixels
            source = rasters.prediction.source
            first = first or (source.path, source.crs)
            if source.crs != first[1]:
                raise RasterError(
                    f"{first[0]} and {source.path} are in different CRSs and a layer has one; check their labels apart"
                )
    return total, first[1] if first else None


def _thresholds(
    places: Iterable[_Place], schema: ClassSchema, advance: Callable[[Window], None]
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """What makes a class's probability high (K,), and a code for each pair of label and mapped class (K, K).

    The code is IGNORE for equal classes, and for the rarest pairs where there are more than fit a byte.
    """
    classes = len(schema)
    sums, counts, pairs = np.zeros(classes), np.zeros(classes), np.zeros((classes, classes), np.int64)
    for part in places:
        for window in part.slabs():
            label, predicted, values = part.read(window)
            # A raster per class says how probable the label's class is; the confidence only where it is the mapped one.
            of = label if part.probabilities.per_class else np.where(label == predicted, label, np.uint8(IGNORE))
            sure = part.probabilities.of_class(values, of)
            known = (of != IGNORE) & ~np.isnan(sure)
            sums += np.bincount(of[known], weights=sure[known], minlength=classes)
            counts += np.bincount(of[known], minlength=classes)
            differ = (label != predicted) & (label != IGNORE) & (predicted != IGNORE)
            np.add.at(pairs, (label[differ], predicted[differ]), 1)
            advance(window)
    codes = np.full((classes, classes), IGNORE, np.uint8)
    common = np.argsort(-pairs, axis=None, kind="stable")[:_CODES]
    common = common[pairs.flat[common] > 0]
    codes.flat[common] = np.arange(len(common))
    return ratio(sums, counts), codes


def _suspects(
    part: _Place,
    schema: ClassSchema,
    thresholds: NDArray[np.float64],
    codes: NDArray[np.uint8],
    advance: Callable[[Window], None],
) -> Iterator[Suspect]:
    """The places of one scene."""
    label_of, predicted_of = {}, {}
    for row, column in np.argwhere(codes != IGNORE):
        label_of[int(codes[row, column])] = schema.classes[row]
        predicted_of[int(codes[row, column])] = schema.classes[column]
    grid = part.grid
    height, above = part.rasters.label.height, None
    builder = FaceBuilder(height)
    for window in part.slabs():
        values, scores = _suspicious(part, window, thresholds, codes)
        outlines, found, gaps = builder.add(traced(values, above, scores, 0, last=window.row_stop == height))
        above = values[-1].copy()
        advance(window)
        placed = _placed(outlines, grid.transform)
        areas = ground_areas(placed, grid.crs, grid.transform)
        for number, code in enumerate(found.tolist()):
            pixels, gap = round(shapely.area(outlines[number])), float(gaps[number])
            if pixels < NARROWEST**2:
                continue  # what another pair of classes left of a square
            yield Suspect(
                score=pixels * gap,
                pixels=pixels,
                scene=part.name,
                label=label_of[code],
                predicted=predicted_of[code],
                gap=gap,
                area=float(areas[number]),
                outline=placed[number],
            )


def _placed(outlines: NDArray[np.object_], transform: Affine) -> NDArray[np.object_]:
    """Outlines in pixels (x = column, y = row) where the transform puts them."""
    a, b, c, d, e, f = tuple(transform)[:6]
    steps = np.array([[a, d], [b, e]])
    placed: NDArray[np.object_] = shapely.transform(outlines, lambda points: points @ steps + (c, f))
    return placed


def _suspicious(
    part: _Place, window: Window, thresholds: NDArray[np.float64], codes: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The code of each suspicious pixel of a window (h, w), IGNORE elsewhere, and its gap."""
    outer = window.grown(NARROWEST, part.rasters.label.height, part.rasters.label.width)
    label, predicted, values = part.read(outer)
    known = (label != IGNORE) & (predicted != IGNORE)
    sure = part.probabilities.of_class(values, predicted)
    gap = sure - part.probabilities.of_class(values, label) if part.probabilities.per_class else 2 * sure - 1
    code = codes[np.where(known, label, 0), np.where(known, predicted, 0)]
    with np.errstate(invalid="ignore"):
        strong = known & (code != IGNORE) & (sure >= thresholds[np.where(known, predicted, 0)]) & (gap > 0)
    strong = _opened(strong)
    inner = (
        slice(window.row - outer.row, window.row_stop - outer.row),
        slice(window.col - outer.col, window.col_stop - outer.col),
    )
    return np.where(strong, code, np.uint8(IGNORE))[inner], np.where(strong, gap, np.nan)[inner].astype(np.float64)


def _opened(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask (h, w) without what no square of NARROWEST pixels fits into; beyond the array its edge goes on."""
    from scipy import ndimage  # that the distribution without torch may do without

    values = mask.astype(np.uint8)
    for extreme in (ndimage.minimum_filter, ndimage.maximum_filter):
        values = extreme(values, NARROWEST, mode="nearest")
    return values > 0


def _write(out: Path, suspects: Sequence[Suspect], crs: CRS | None) -> None:
    """A GeoPackage with one layer, named as the file; it appears complete or not at all."""
    columns: dict[str, NDArray[Any]] = {
        "rank": np.arange(1, len(suspects) + 1, dtype=np.int32),
        "score": np.array([suspect.score for suspect in suspects]),
        "scene": np.array([suspect.scene for suspect in suspects], object),
        "label": np.array([suspect.label for suspect in suspects], object),
        "predicted": np.array([suspect.predicted for suspect in suspects], object),
        "pixels": np.array([suspect.pixels for suspect in suspects], np.int64),
        "area": np.array([suspect.area for suspect in suspects]),
        "gap": np.array([suspect.gap for suspect in suspects]),
    }
    write_layer(
        out,
        np.array([suspect.outline for suspect in suspects], object),
        columns,
        crs,
        layer=layer_name(out),
        qml=outlines_qml("rank"),
        what="label errors",
        advice="give another file",
    )
