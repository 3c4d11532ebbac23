"""The label of a scene, be it a raster or a vector layer, on the scene's grid. How it is read is settled once.

A raster spells its classes in one of five ways (`labels.ReadAs`). What the options leave open is decided so:

1. One band without a palette holds values.
2. One band with a palette: if the palette gives every value that occurs a colour of the schema, it is read by colour;
   else if the schema has every value that occurs, by value; else as `labels.plain_reading` says. Exact colours and
   values are tried before near ones (the tolerance).
3. Three bands of bytes are colours, unless all pixels are grey and the schema has their values and not their colours,
   or the schema has three classes, the bands are never set together, and their colours are unknown.
4. As many bands as there are classes hold one class each.

A vector layer spells them by an attribute. If none is named it is the one whose values the schema knows, all of them;
a layer with none is taken whole where the schema has one class beside what is outside.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from os import PathLike
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from rs_biformer.documents import shown
from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window, cells
from rs_biformer.raster.labels import UNKNOWN, Key, LabelOptions, LabelRaster, ReadAs
from rs_biformer.raster.layer import Features, is_vector, plain_value
from rs_biformer.raster.paths import Location, locate
from rs_biformer.raster.placing import apart, placed
from rs_biformer.raster.polygons import Area, Polygons, Survey
from rs_biformer.raster.regrid import Regridded
from rs_biformer.raster.source import Closing, Grid, Source, grid_difference
from rs_biformer.schema import IGNORE, ClassSchema

_LOOKED_AT = 64  # windows of a raster that are looked at, at most
_LOOK = 512  # pixels along their sides
_FIRST_UNKNOWN = 256  # codes above class indices and IGNORE
_NAMED = 8
_NO_CLASS = {"fid", "id", "gid", "objectid", "ogc_fid", "osm_id", "uid", "uuid", "index"}
"""Attributes whose numbers are never taken for classes unless they are named."""


class Label(Grid, Protocol):
    """A label on the grid of a scene, read by window: class indices, and what the schema does not know with its pixels.

    Raises RasterError when a window leaves the grid or cannot be read.
    """

    @property
    def schema(self) -> ClassSchema: ...
    def read(self, window: Window) -> tuple[NDArray[np.uint8], Counter[Key]]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


_OF_RASTERS = {
    "read_as": "--label-as",
    "band": "--label-band",
    "nodata": "--label-nodata",
    "regrid": "--regrid-labels",
}
_OF_POLYGONS = {
    "field": "--label-field",
    "layer": "--label-layer",
    "crs": "--label-crs",
    "width": "--buffer-labels",
    "order": "--label-order",
}
"""Fields of LabelOptions that concern labels of one kind alone, and the options that give them."""


@dataclass(frozen=True)
class Note:
    """What is worth a line about a label. kind: what notes on several labels have in common."""

    path: Location
    kind: str
    text: str


def told(notes: Iterable[Note]) -> list[str]:
    """A line for each kind of note, with the first label and how many others it is about."""
    kinds: defaultdict[str, list[Note]] = defaultdict(list)
    for note in notes:
        kinds[note.kind].append(note)
    lines = []
    for group in kinds.values():
        others = len({note.path for note in group}) - 1
        more = f" (and {others} more labels)" if others else ""
        lines.append(f"{group[0].path}{more}: {group[0].text}")
    return lines


def open_label(
    path: str | PathLike[str],
    schema: ClassSchema,
    grid: Grid,
    *,
    tolerance: int = 0,
    options: LabelOptions | None = None,
    area: str | PathLike[str] | None = None,
) -> Label:
    """A label on the grid of its scene, read as the options say; outside of the polygons of `area` it is ignored.

    The options should be those that `settle` gives: what they leave open is read in the plainest way.
    Raises RasterError where the label or the area cannot be read or does not fit the grid.
    """
    label: Label
    if is_vector(path):
        label = PolygonLabel(path, schema, grid, options or LabelOptions())
    else:
        label = LabelRaster(path, schema, tolerance=tolerance, options=options, grid=grid)
    return label if area is None else WithinArea(label, Area(area, grid))


class WithinArea(Closing):
    """A label of which only what lies in an area counts."""

    def __init__(self, label: Label, area: Area) -> None:
        self._label, self._area = label, area
        self.path, self.schema = label.path, label.schema
        self.height, self.width, self.crs, self.transform = label.height, label.width, label.crs, label.transform

    def read(self, window: Window) -> tuple[NDArray[np.uint8], Counter[Key]]:
        """What the label gives, IGNORE outside of the area; what is unknown is counted in all of the window."""
        index, unknown = self._label.read(window)
        index[~self._area.inside(window)] = IGNORE
        return index, unknown

    def close(self) -> None:
        """Close the file handles of this process."""
        self._label.close()


def settle(
    path: str | PathLike[str],
    schema: ClassSchema,
    grid: Grid,
    *,
    tolerance: int = 0,
    options: LabelOptions | None = None,
    area: str | PathLike[str] | None = None,
) -> tuple[LabelOptions, list[Note]]:
    """Decide how a label is read, as the module's text says, and what there is to say about it.

    The options that come back differ from those given only where the plainest reading is not the right one, so that
    the same label read with them gives the same classes in every window.

    Raises RasterError where the label cannot be read, does not fit the grid or spells no class.
    """
    options = options or LabelOptions()
    if area is not None:
        Area(area, grid)
    if is_vector(path):
        return _settle_polygons(path, schema, grid, options)
    source = Source(path)
    try:
        chosen, notes = _settle_raster(source, schema, tolerance, options)
        reader = placed(source, grid, regrid=options.regrid)
        if isinstance(reader, Regridded):
            notes.append(Note(source.path, "regrid", f"resampled by nearest neighbour, as {apart(grid, source)}"))
        elif grid_difference(grid, source) is not None:
            cut = f"cut to its scene ({source.height} x {source.width} to {grid.height} x {grid.width} pixels)"
            notes.append(Note(source.path, "cut", cut))
        return chosen, notes
    finally:
        source.close()


def without_effect(path: str | PathLike[str], options: LabelOptions) -> list[Note]:
    """A note on options for labels of the other kind than this: of labels of both kinds each takes its own."""
    names, what = (_OF_RASTERS, "polygons") if is_vector(path) else (_OF_POLYGONS, "a raster")
    given = [name for field, name in names.items() if getattr(options, field) != getattr(LabelOptions(), field)]
    text = f"{what}, on which {', '.join(given)} {'has' if len(given) == 1 else 'have'} no effect"
    return [Note(locate(path), text, text)] if given else []


def _settle_raster(
    source: Source, schema: ClassSchema, tolerance: int, options: LabelOptions
) -> tuple[LabelOptions, list[Note]]:
    plain = LabelRaster(source.path, schema, tolerance=tolerance, options=options)
    plain.close()
    read_as = plain.read_as
    if options.read_as is None and options.band is None:
        if read_as in ("palette", "values") and source.palette is not None:
            read_as = _by_palette_or_value(source, schema, tolerance, read_as)
        elif read_as == "colours":
            read_as = _by_colours_or_else(source, schema, tolerance)
    notes = []
    if read_as != plain.read_as:
        options = replace(options, read_as=read_as)
    if read_as != plain.read_as or (source.palette is not None and read_as == "palette"):
        notes.append(Note(source.path, f"read as {read_as}", f"{_WAYS[read_as]} (--label-as says otherwise)"))
    if options.nodata is None:
        notes += _vanishing(source, schema, tolerance, replace(options, read_as=read_as))
    return options, notes


_WAYS = {
    "colours": "read by its colours",
    "palette": "read by the colours of its palette",
    "values": "read by its values, not by the colours of its palette",
    "one-hot": "read as a band for each class",
    "grey": "read by the values of three equal bands",
}


def _by_palette_or_value(source: Source, schema: ClassSchema, tolerance: int, plain: ReadAs) -> ReadAs:
    present = np.unique(np.concatenate([pixels[0] for pixels in _looked_at(source, [1])] or [np.zeros(0, np.uint8)]))
    for near in sorted({0, tolerance}):
        for read_as in ("palette", "values"):
            if _knows(source, schema, near, read_as, [present]):
                return plain if plain == read_as or _knows_alike(source, schema, near, present) else read_as
    return plain


def _knows(source: Source, schema: ClassSchema, tolerance: int, read_as: ReadAs, pixels: list[NDArray[Any]]) -> bool:
    with LabelRaster(source.path, schema, tolerance=tolerance, options=LabelOptions(read_as)) as label:
        return bool((label.index_of(pixels) != UNKNOWN).all())


def _knows_alike(source: Source, schema: ClassSchema, tolerance: int, present: NDArray[Any]) -> bool:
    """Whether both readings of a palette give the same classes."""
    found = []
    for read_as in ("palette", "values"):
        with LabelRaster(source.path, schema, tolerance=tolerance, options=LabelOptions(read_as)) as label:
            found.append(label.index_of([present]))
    return bool((found[0] == found[1]).all())


def _by_colours_or_else(source: Source, schema: ClassSchema, tolerance: int) -> ReadAs:
    """Three bands: colours, unless all pixels speak for something else. Colours show at the first glance."""
    grey, alone = True, len(schema) == source.count
    seen = []
    with LabelRaster(source.path, schema, options=LabelOptions("colours")) as label:
        # A fourth band that a writer took for alpha may be that of a fourth class.
        numbers = list(range(1, source.count + 1)) if alone else label.numbers
        for bands in _looked_at(source, numbers):
            pixels = [bands[numbers.index(number)] for number in label.numbers]
            known = label.index_of(pixels) != UNKNOWN
            equal = (pixels[0] == pixels[1]) & (pixels[1] == pixels[2])
            if (known & ~equal).any():
                return "colours"
            grey &= bool(equal.all())
            alone &= bool((np.sum([band != 0 for band in bands], axis=0) <= 1).all())
            if not grey and not alone:
                return "colours"
            seen.append(np.unique(np.stack(pixels), axis=1))
    if not seen:
        return "colours"
    triples = list(np.unique(np.concatenate(seen, axis=1), axis=1))
    for near in sorted({0, tolerance}):
        if _knows(source, schema, near, "colours", triples):
            return "colours"
        if grey and _knows(source, schema, near, "grey", triples[:1]):
            return "grey"
    return "one-hot" if alone and not grey else "colours"


def _looked_at(source: Source, numbers: Sequence[int], *, masked: bool = False) -> Iterator[list[NDArray[Any]]]:
    """Valid (or masked) pixels of bands, each (n,), from windows all over a raster: from all of one that is small."""
    windows = list(cells(Window(0, 0, source.height, source.width), _LOOK, _LOOK))
    chosen = np.unique(np.linspace(0, len(windows) - 1, min(len(windows), _LOOKED_AT)).astype(int))
    for number in chosen:
        pixels, valid = source.read_valid(numbers, windows[number])
        if masked:
            valid = ~valid
        if valid.any():
            yield [band[valid] for band in pixels]


def _vanishing(source: Source, schema: ClassSchema, tolerance: int, options: LabelOptions) -> Iterator[Note]:
    """Classes of the schema that the raster says are no data."""
    with LabelRaster(source.path, schema, tolerance=tolerance, options=options) as label:
        numbers = label.numbers
        nodata = [source.nodatavals[number - 1] for number in numbers]
        hidden: dict[str, NDArray[np.uint8]] = {}
        if options.read_as != "one-hot" and None not in nodata:
            kinds = [np.dtype(source.dtypes[number - 1]) for number in numbers]
            if all(_fits(value, kind) for value, kind in zip(nodata, kinds, strict=True)):
                values = [np.array([value], kind) for value, kind in zip(nodata, kinds, strict=True)]
                hidden["nodata value " + ",".join(f"{value:g}" for value in nodata if value is not None)] = (
                    label.index_of(values)
                )
        if source.palette is not None and (source.palette[:, 3] == 0).any():
            present = [pixels[0] for pixels in _looked_at(source, numbers, masked=True)]
            if present:
                hidden["transparent palette entry"] = label.index_of([np.unique(np.concatenate(present))])
        if ColorInterp.alpha in source.interps and options.read_as != "one-hot":
            under = [label.index_of(pixels) for pixels in _looked_at(source, numbers, masked=True)]
            shown_classes = [label.index_of(pixels) for pixels in _looked_at(source, numbers)]
            gone = set(_distinct(under)) - set(_distinct(shown_classes))
            hidden["alpha band"] = np.array(sorted(gone), np.uint8)
    for what, index in hidden.items():
        if classes := [schema.classes[number] for number in np.unique(index).tolist() if number < len(schema)]:
            text = (
                f"its {what} is the class {', '.join(classes)} of the schema, which is ignored there; "
                "--label-nodata none keeps it"
            )
            yield Note(source.path, f"vanishing {what}", text)


def _distinct(indices: list[NDArray[np.uint8]]) -> list[int]:
    found: list[int] = np.unique(np.concatenate(indices)).tolist() if indices else []
    return found


def _fits(value: float | None, dtype: np.dtype[Any]) -> bool:
    """Whether a band of this type can hold a value."""
    if value is None or np.isnan(value):
        return False
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return limits.min <= value <= limits.max and float(value).is_integer()


class PolygonLabel(Closing):
    """Polygons read by window as class indices on the grid of a scene; see `polygons` for which pixels are theirs.

    What no polygon covers is `schema.outside`, or IGNORE.
    Raises RasterError where the layer cannot be read, or has no such attribute.
    """

    def __init__(self, path: str | PathLike[str], schema: ClassSchema, grid: Grid, options: LabelOptions) -> None:
        if options.field is None:
            raise RasterError(f"{path} holds polygons; name the attribute that holds the class with --label-field")
        self.schema, self.grid, self.field = schema, grid, options.field
        self._polygons = Polygons(path, grid, options.polygons, [self.field] if self.field else [])
        self._known = attribute_classes(schema)
        self._only = the_only_class(schema) if not self.field else None

    @property
    def path(self) -> Location:
        return self._polygons.path

    @property
    def height(self) -> int:
        return self.grid.height

    @property
    def width(self) -> int:
        return self.grid.width

    @property
    def crs(self) -> CRS | None:
        return self.grid.crs

    @property
    def transform(self) -> Affine:
        return self.grid.transform

    def read(self, window: Window) -> tuple[NDArray[np.uint8], Counter[Key]]:
        """Class index per pixel (h, w) uint8, and how many pixels lie in polygons of values that the schema lacks."""
        strange: dict[Any, int] = {}
        nothing = -1 if self.schema.outside is None else IGNORE

        def code(features: Features) -> NDArray[np.int16]:
            if self._only is not None:
                return np.full(len(features.ids), self._only, np.int16)
            values = features.columns[self.field].tolist()
            return np.array(
                [nothing if is_empty(value, self._known) else self._code(value, strange) for value in values], np.int16
            )

        outside = IGNORE if self.schema.outside is None else self.schema.classes.index(self.schema.outside)
        drawn, _ = self._polygons.read(window, code, outside)
        unknown: Counter[Key] = Counter()
        for value, number in strange.items():
            if pixels := int((drawn == number).sum()):
                unknown["null" if value is None else value] += pixels
        drawn[drawn >= _FIRST_UNKNOWN] = IGNORE
        return drawn.astype(np.uint8), unknown

    def _code(self, value: Any, strange: dict[Any, int]) -> int:
        index = class_of(value, self._known)
        if index is not None:
            return index
        found = plain_value(value)
        key = found if isinstance(found, int | float | str) else str(found) if found is not None else None
        return min(strange.setdefault(key, _FIRST_UNKNOWN + len(strange)), np.iinfo(np.int16).max)

    def close(self) -> None:
        """Nothing is kept open."""


def attribute_classes(schema: ClassSchema) -> dict[Any, int]:
    """Class index, or IGNORE, of what an attribute may hold: names, words and numbers; text in small letters."""
    known: dict[Any, int] = {}
    for spelling, index in schema.class_values():
        known.setdefault(_spelt(spelling), index)
    for number in schema.ignore_values:
        known.setdefault(number, IGNORE)
    for word in schema.ignore_names:
        known.setdefault(_spelt(word), IGNORE)
    known.update({_spelt(name): index for index, name in enumerate(schema.classes)})
    return known


def class_of(value: Any, known: dict[Any, int]) -> int | None:
    """The class index of an attribute's value; None where the schema does not know it."""
    found = plain_value(value)
    return known.get("null" if found is None else _spelt(found))


def is_empty(value: Any, known: dict[Any, int]) -> bool:
    """Whether nobody gave a feature a class: it has none, or an empty text, and the schema does not know that."""
    return plain_value(value) in (None, "") and class_of(value, known) is None


def _spelt(value: Any) -> Any:
    """One spelling for what means the same: 21, 21.0 and "21"; Forest and " forest "."""
    if not isinstance(value, str):
        return value
    text = value.strip().casefold()
    return int(text) if text.isascii() and text.removeprefix("-").isdigit() and len(text) < 19 else text


def the_only_class(schema: ClassSchema) -> int | None:
    """The class of a layer that tells none apart: the one beside what is outside; None where there are several."""
    inside = [index for index, name in enumerate(schema.classes) if name != schema.outside]
    return inside[0] if len(inside) == 1 else None


def _settle_polygons(
    path: str | PathLike[str], schema: ClassSchema, grid: Grid, options: LabelOptions
) -> tuple[LabelOptions, list[Note]]:
    polygons = Polygons(path, grid, options.polygons, [options.field] if options.field else [])
    polygons.require_overlap(" (--label-crs)")
    columns = [options.field] if options.field else list(polygons.layer.fields) if options.field is None else []
    survey = polygons.survey(columns)
    where = polygons.path
    if not survey.kinds["polygons"] + survey.kinds["lines"] + survey.kinds["points"]:
        raise RasterError(
            f"{where} has no feature within {grid.path}; give the layer of this place, or leave the scene out"
        )
    if options.field is None:
        options = replace(options, field=_field_of(where, survey, schema))
    notes = [Note(where, text, text) for text in (note.removeprefix(f"{where} ") for note in polygons.notes)]
    outside = "ignored (outside: CLASS in the schema)" if schema.outside is None else f"of the class {schema.outside}"
    by = f"by the attribute {options.field}" if options.field else f"all of the class {_only_name(schema)}"
    notes.append(Note(where, f"polygons {options.field}", f"polygons are read {by}; what none covers is {outside}"))
    notes += _odd_features(where, survey, options)
    if options.field:
        notes += _unknown_values(where, survey.values[options.field], schema)
    return options, notes


def _only_name(schema: ClassSchema) -> str:
    only = the_only_class(schema)
    assert only is not None
    return schema.classes[only]


def _field_of(where: Location, survey: Survey, schema: ClassSchema) -> str:
    """The attribute that holds the classes. Raises RasterError where none does, or several do."""
    known = attribute_classes(schema)
    fitting = {
        name: values
        for name, values in survey.values.items()
        if name.casefold() not in _NO_CLASS
        and (held := [value for value in values if value not in (None, "")])
        and all(class_of(value, known) is not None for value in held)
    }
    words = [name for name, values in fitting.items() if any(isinstance(value, str) for value in values)]
    chosen = words if len(words) == 1 else list(fitting)
    if len(chosen) == 1:
        return chosen[0]
    if not fitting and the_only_class(schema) is not None:
        return ""
    names = ", ".join(survey.values) or "none"
    if chosen:
        raise RasterError(f"{where}: the attributes {', '.join(chosen)} all hold classes; name one with --label-field")
    examples = "; ".join(
        f"{name}: {', '.join(shown(value) for value in list(values)[:4])}"
        for name, values in list(survey.values.items())[:4]
    )
    raise RasterError(
        f"{where}: no attribute holds the classes of schema {schema.name!r} alone ({examples or names}); name it with "
        "--label-field, and spell the classes as it does: value: [forest, 21]"
    )


def _odd_features(where: Location, survey: Survey, options: LabelOptions) -> Iterator[Note]:
    if survey.invalid:
        ids = ", ".join(map(str, survey.invalid[:_NAMED])) + (", ..." if len(survey.invalid) > _NAMED else "")
        text = f"{len(survey.invalid)} invalid geometries were made valid, even-odd (ids {ids})"
        yield Note(where, "invalid", text)
    if survey.kinds["none"]:
        yield Note(where, "no geometry", f"{survey.kinds['none']} features have no geometry and are left out")
    thin = {kind: survey.kinds[kind] for kind in ("lines", "points") if survey.kinds[kind]}
    if thin and options.width is None:
        what = " and ".join(f"{count} {kind}" for kind, count in thin.items())
        text = f"{what} have no area and are left out; --buffer-labels METRES gives them a width"
        if not survey.kinds["polygons"]:
            raise RasterError(f"{where}: {text}")
        yield Note(where, "thin", text)


def _unknown_values(where: Location, values: Counter[Any], schema: ClassSchema) -> Iterator[Note]:
    known = attribute_classes(schema)
    if empty := sum(count for value, count in values.items() if is_empty(value, known)):
        there = "ignored" if schema.outside is not None else "as if they were not there"
        yield Note(where, "no class", f"{empty} features have no class yet and are {there}")
    strange = [
        (value, count)
        for value, count in values.most_common()
        if class_of(value, known) is None and not is_empty(value, known)
    ]
    if strange:
        named = ", ".join(
            f"{shown(value)} ({count} features{_near(value, schema)})" for value, count in strange[:_NAMED]
        )
        text = f"the schema does not know {named}{', ...' if len(strange) > _NAMED else ''}; their ground is ignored"
        yield Note(where, "unknown values", text)


def _near(value: Any, schema: ClassSchema) -> str:
    near = get_close_matches(value, schema.classes, n=1) if isinstance(value, str) else []
    return f", did you mean {near[0]}?" if near else ""
