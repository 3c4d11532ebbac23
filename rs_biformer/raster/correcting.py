"""Labels that were corrected: where a later one names a class it replaces what those before it say.

A correction is a label raster or a vector layer, of any part of a scene. What it ignores or does not cover leaves the
label as it is, also where the schema gives the ground outside of polygons a class; features without a class correct
nothing.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rs_biformer.geometry import Window
from rs_biformer.raster.labelling import Label, Note, WithinArea, open_label, settle
from rs_biformer.raster.labels import Key, LabelOptions
from rs_biformer.raster.layer import is_vector
from rs_biformer.raster.paths import Location, PathLike
from rs_biformer.raster.placing import fits
from rs_biformer.raster.polygons import Area, Polygons
from rs_biformer.raster.source import Closing, Grid, Source
from rs_biformer.schema import IGNORE, ClassSchema


@dataclass(frozen=True)
class Correction:
    """A later label and how it is read."""

    path: str
    labelling: LabelOptions = LabelOptions()


class Corrected(Closing):
    """A label with its corrections, in their order."""

    def __init__(self, label: Label, corrections: Sequence[Label]) -> None:
        self._label, self._corrections = label, corrections
        self.path, self.schema = label.path, label.schema
        self.height, self.width, self.crs, self.transform = label.height, label.width, label.crs, label.transform

    def read(self, window: Window) -> tuple[NDArray[np.uint8], Counter[Key]]:
        """The last class that is given to each pixel, and what is unknown in any of the labels with its pixels."""
        index, unknown = self._label.read(window)
        for correction in self._corrections:
            later, strange = correction.read(window)
            index = np.where(later == IGNORE, index, later)
            unknown = unknown + strange
        return index, unknown

    def close(self) -> None:
        """Close the file handles of this process."""
        for one in (self._label, *self._corrections):
            one.close()


def open_corrected(
    path: PathLike,
    corrections: Sequence[Correction],
    schema: ClassSchema,
    grid: Grid,
    *,
    tolerance: int = 0,
    options: LabelOptions | None = None,
    area: PathLike | None = None,
) -> Label:
    """`labelling.open_label` of a label with its corrections; those that `settle_corrections` gives."""
    label = open_label(path, schema, grid, tolerance=tolerance, options=options)
    if corrections:
        inside = replace(schema, outside=None)
        later = [open_label(one.path, inside, grid, tolerance=tolerance, options=one.labelling) for one in corrections]
        label = Corrected(label, later)
    return label if area is None else WithinArea(label, Area(area, grid))


def settle_corrections(
    paths: Sequence[Location],
    schema: ClassSchema,
    grid: Grid,
    *,
    tolerance: int = 0,
    options: LabelOptions | None = None,
) -> tuple[tuple[Correction, ...], list[Note]]:
    """Those corrections that lie on a grid, each with how it is read, and what there is to say.

    Rasters may cover a part of the grid or lie on other pixels: they are read by nearest neighbour. The options are
    those of labels; an attribute or layer that a correction does not have is found out.

    Raises RasterError where one cannot be read.
    """
    found, notes = [], []
    inside = replace(schema, outside=None)
    for path in paths:
        chosen = _fitting(path, grid, replace(options or LabelOptions(), regrid=True))
        if chosen is not None:
            labelling, said = settle(path, inside, grid, tolerance=tolerance, options=chosen)
            found.append(Correction(str(path), labelling))
            notes += [Note(path, f"correction {note.kind}", f"a correction; {note.text}") for note in said]
    return tuple(found), notes


def _fitting(path: Location, grid: Grid, options: LabelOptions) -> LabelOptions | None:
    """The options for a correction; None where it does not lie on the grid."""
    if not is_vector(path):
        with closing(Source(path)) as source:
            return options if fits(source, grid, regrid=True) else None
    layer = Polygons(path, grid, options.polygons)
    if options.field is not None and options.field not in layer.layer.fields:
        options = replace(options, field=None)
    kinds = layer.survey([]).kinds
    return options if kinds["polygons"] + kinds["lines"] + kinds["points"] else None
