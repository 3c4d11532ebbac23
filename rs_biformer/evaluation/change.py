"""What became of each class between two class maps of one place, in areas and as a map."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from os import PathLike as AnyPath

import numpy as np
from numpy.typing import NDArray

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.evaluation.zones import area_unit, class_indices, placed_areas
from rs_biformer.geometry import Window, cells
from rs_biformer.raster.georeference import Placing
from rs_biformer.raster.legend import Legend
from rs_biformer.raster.metadata import ScoreScale, read_class_names
from rs_biformer.raster.paths import PathLike, locate
from rs_biformer.raster.placing import Reader, placed
from rs_biformer.raster.sizes import require_possible
from rs_biformer.raster.source import Source, grid_difference
from rs_biformer.raster.style import write_style
from rs_biformer.raster.vector import require_class_map
from rs_biformer.raster.writer import MapWriter
from rs_biformer.schema import IGNORE, ClassSchema, Colour

_BLOCK = 512, 1024
_UNCHANGED: Colour = (235, 235, 235)
_MOST = 253  # transitions that a map of bytes can tell, besides `unchanged` and `other change`

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Change:
    """Areas of ground by its class before (rows) and after (columns).

    names: of the K classes. areas: (K + 1, K + 1), row and column 0 are ground without a class (nodata).
    confidence: (K + 1, K + 1) the mean of the product of both maps' confidences, which is the probability of the
    transition if the two are right independently of each other; NaN where there are none; None where none were given.
    unit: of the areas, see `zones.area_unit`.
    """

    names: tuple[str, ...]
    areas: NDArray[np.float64]
    confidence: NDArray[np.float64] | None
    unit: str

    def transitions(self) -> list[tuple[int, int]]:
        """Class before and after of all ground that changed, the largest area first."""
        found = [
            (one, other)
            for one in range(len(self.names))
            for other in range(len(self.names))
            if one != other and self.areas[one + 1, other + 1] > 0
        ]
        return sorted(found, key=lambda pair: -self.areas[pair[0] + 1, pair[1] + 1])


class Pair:
    """Two class maps of one place, and their confidences, read block by block; a context manager.

    regrid: read the later one on the pixels of the earlier one, by nearest neighbour, where they do not lie on them.
    allow_huge: take an earlier one of more than `sizes.MOST_PIXELS`.

    Raises RasterError when a raster cannot be read, is too large or no class map, names other classes than the other,
    or does not lie on the pixels of the earlier one.
    """

    def __init__(
        self,
        before: PathLike,
        after: PathLike,
        *,
        confidence: tuple[PathLike, PathLike] | None = None,
        regrid: bool = False,
        allow_huge: bool = False,
    ) -> None:
        with ExitStack() as stack:
            self.grid = stack.enter_context(closing(Source(before)))
            later = stack.enter_context(closing(Source(after)))
            require_possible(self.grid, allow_huge)
            for source in (self.grid, later):
                require_class_map(source)
            self.names, self._renumbered = _one_naming(before, after)
            self._later = _on_grid(self.grid, later, regrid)
            self._scores: list[tuple[Reader, ScoreScale]] = []
            for path in confidence or ():
                scores = stack.enter_context(closing(Source(path)))
                if scores.count != 1:
                    raise RasterError(f"{path} has {scores.count} bands; a confidence map has one")
                self._scores.append((_on_grid(self.grid, scores, regrid), ScoreScale(locate(path))))
            self._open = stack.pop_all()

    def __enter__(self) -> "Pair":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @property
    def pixels(self) -> int:
        """How many pixels a map has."""
        return self.grid.height * self.grid.width

    def blocks(self) -> Iterator[Window]:
        """The windows in which the maps are read."""
        return cells(Window(0, 0, self.grid.height, self.grid.width), *_BLOCK)

    def read(self, block: Window) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Classes before and after (h, w), in the order of `names`, IGNORE where there is none."""
        before = class_indices(self.grid, block)
        (values,), valid = self._later.read_valid([1], block)
        after = self._renumbered[np.where(valid, values, IGNORE)]
        for index in (before, after):
            beyond = index[(index >= len(self.names)) & (index != IGNORE)]
            if beyond.size:
                raise RasterError(f"a map holds class {beyond[0]} and names {len(self.names)}: {', '.join(self.names)}")
        return before, after

    def read_confidence(self, block: Window) -> NDArray[np.float64] | None:
        """The product of both confidences (h, w), NaN where one has none; None where none were given."""
        if not self._scores:
            return None
        product = np.ones((block.height, block.width))
        for reader, quantity in self._scores:
            (values,), valid = reader.read_valid([1], block)
            product *= np.where(valid, quantity(values[None])[0], np.nan)
        return product


def count_change(pair: Pair, progress: Progress | None = None) -> Change:
    """The areas of all transitions. Memory is bounded by a block. progress: called with the pixels done and all."""
    side, width = len(pair.names) + 1, pair.grid.width
    areas, certain, weights = np.zeros((3, side * side))
    pixels = placed_areas(pair.grid)
    for block in pair.blocks():
        before, after = pair.read(block)
        codes = ((before + np.uint8(1)).astype(np.int64) * side + (after + np.uint8(1))).reshape(-1)
        area = np.repeat(pixels[block.row : block.row_stop], block.width)
        areas += np.bincount(codes, area, side * side)
        confidence = pair.read_confidence(block)
        if confidence is not None:
            known = np.isfinite(confidence.reshape(-1))
            certain += np.bincount(codes[known], (confidence.reshape(-1) * area)[known], side * side)
            weights += np.bincount(codes[known], area[known], side * side)
        if progress is not None:
            progress(block.row * width + block.height * block.col_stop, pair.pixels)
    means = np.divide(certain, weights, out=np.full(side * side, np.nan), where=weights > 0)
    placing = Placing.of(pair.grid.crs, pair.grid.transform, pair.grid.gcps)
    return Change(
        pair.names,
        areas.reshape(side, side),
        means.reshape(side, side) if pair.read_confidence(Window(0, 0, 1, 1)) is not None else None,
        area_unit(placing),
    )


def write_change(
    pair: Pair, change: Change, out: str | AnyPath[str], legend: Legend, progress: Progress | None = None
) -> ClassSchema:
    """Write the map of what changed and return what its values mean.

    0 is unchanged ground, 1, 2, ... are the transitions, the largest area first; what comes after the 253rd is one
    class, `other change`. No data where one of the maps has none. A transition has the colour of what it became, a
    little changed where several became the same. legend: colours of the classes.

    Raises RasterError when it cannot be written.
    """
    schema, value_of = _legend_of(change, legend)
    grid = pair.grid
    with MapWriter(
        out,
        height=grid.height,
        width=grid.width,
        crs=grid.crs,
        transform=grid.transform,
        gcps=grid.gcps,
        schema=schema,
    ) as writer:
        for block in pair.blocks():
            before, after = pair.read(block)
            missing = (before == IGNORE) | (after == IGNORE)
            codes = value_of[np.where(missing, 0, before), np.where(missing, 0, after)]
            writer.write(block, np.where(missing, np.uint8(IGNORE), codes))
            if progress is not None:
                progress(block.row * grid.width + block.height * block.col_stop, pair.pixels)
    write_style(out, schema)
    return schema


def _legend_of(change: Change, legend: Legend) -> tuple[ClassSchema, NDArray[np.uint8]]:
    """What the values of a map of changes mean, and the value of each transition (K, K)."""
    found = change.transitions()
    names, colours = ["unchanged"], [_UNCHANGED]
    side = len(change.names)
    value_of = np.full((side, side), min(len(found), _MOST) + 1, np.uint8)
    np.fill_diagonal(value_of, 0)
    for value, (one, other) in enumerate(found[:_MOST], 1):
        value_of[one, other] = value
        names.append(f"{change.names[one]} to {change.names[other]}")
        colours.append(_free(legend.colour(other), colours))
    if len(found) > _MOST:
        names.append("other change")
        colours.append(_free((0, 0, 0), colours))
    return ClassSchema("change", tuple(names), tuple(colours)), value_of


def _free(colour: Colour, taken: Sequence[Colour]) -> Colour:
    """A colour near this one that is not taken: darker in steps, and brighter where it cannot be."""
    step = -18 if max(colour) > 127 else 18
    for number in range(256):
        red, green, blue = (int(np.clip(part + number * step, 0, 255)) for part in colour)
        found = (red, green, (blue + number // 14) % 256)
        if found not in taken:
            return found
    raise ConfigError("no colours are left")  # at most 255 are taken


def _one_naming(before: PathLike, after: PathLike) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """The names of the classes, and the index among them of each value of the later map (256,)."""
    names, later = read_class_names(locate(before)), read_class_names(locate(after))
    if names is None or later is None:
        path = before if names is None else after
        raise RasterError(f"{path} does not name its classes, so that it cannot be compared; write it by `predict`")
    if set(names) != set(later):
        ours, theirs = (", ".join(sorted(set(a) - set(b))) or "none" for a, b in ((names, later), (later, names)))
        raise RasterError(
            f"{before} and {after} have other classes: only the first has {ours}, only the second {theirs}; map both "
            "by models of the same classes"
        )
    table = np.full(256, IGNORE, np.uint8)
    table[len(later) : IGNORE] = np.arange(len(later), IGNORE)  # refused when it is read
    table[: len(later)] = [names.index(name) for name in later]
    return names, table


def _on_grid(grid: Source, source: Source, regrid: bool) -> Reader:
    difference = grid_difference(grid, source)
    if difference is None or regrid:
        return placed(source, grid, regrid=regrid)
    raise RasterError(f"{difference}; --regrid reads it on those pixels by nearest neighbour")
