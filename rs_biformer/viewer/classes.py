"""What the classes of a map are: as it says itself, as the user says, or as its numbers and colours suggest."""

import colorsys
from collections.abc import Iterable

import numpy as np

from rs_biformer.errors import RasterError
from rs_biformer.raster.labels import UNKNOWN, LabelRaster
from rs_biformer.raster.metadata import read_class_names
from rs_biformer.raster.paths import PathLike, locate
from rs_biformer.raster.pyramid import Pyramid
from rs_biformer.raster.source import Source
from rs_biformer.schema import IGNORE, PRESETS, ClassSchema, Colour, load_schema
from rs_biformer.viewer.frame import Frame, frame_of
from rs_biformer.viewer.layers import ClassLayer, look

_MOST = 254


def map_schema(path: PathLike, classes: str | None) -> ClassSchema:
    """The classes of a map, the first of these that there is: those asked for, those that it names, its values.

    Where its names are those of a preset it is the preset, which knows the values of labels too.

    Raises RasterError for a raster that is no map of classes, or one of other classes than asked for; ConfigError for
    classes that there are not.
    """
    names = read_class_names(locate(path))
    if classes is not None:
        asked = load_schema(classes)
        if names is not None and names != asked.classes:
            raise RasterError(
                f"{path} names the classes {', '.join(names)}, not those of --classes {classes}: "
                f"{', '.join(asked.classes)}; leave --classes out"
            )
        return asked
    source = Source(path)
    try:
        if names is None:
            return _by_value(source)
        known = next((preset for preset in PRESETS.values() if preset.classes == names), None)
        return known or ClassSchema("map", names, _colours(source, range(len(names))))
    finally:
        source.close()


def class_layer(key: str, role: str, path: PathLike, frame: Frame, schema: ClassSchema) -> ClassLayer:
    """A layer of a map, or of a label, in the classes of a schema.

    A raster that names its classes is a map, whose numbers are their indices; they may stand in another order than the
    schema's. Any other spells them as labels of the schema do.

    Raises RasterError for one that names other classes, or holds none of the schema.
    """
    names = read_class_names(locate(path))
    if names is None:
        layer = ClassLayer(key, role, LabelRaster(path, schema), frame, schema)
        _require_classes(layer)
        return layer
    if set(names) != set(schema.classes):
        raise RasterError(
            f"{path} has the classes {', '.join(names)}, and the map {', '.join(schema.classes)}; give rasters of the "
            "same classes"
        )
    own = ClassSchema("map", names, tuple(schema.colours[schema.classes.index(name)] for name in names))
    moved = [schema.classes.index(name) for name in names]
    return ClassLayer(key, role, LabelRaster(path, own), frame, schema, moved)


def _require_classes(layer: ClassLayer) -> None:
    """Raise RasterError, naming what it holds, for a raster in which no pixel is of the schema."""
    bands = look(layer.pyramids[0])
    if (layer.index(bands) != IGNORE).any():
        return
    spelt = layer.raster.index_of(bands[0])
    strange = bands[1] & (spelt == UNKNOWN)
    if strange.any():
        found = np.unique(np.stack([band[strange] for band in bands[0]], -1), axis=0)[:4].tolist()
        shown = "; ".join(", ".join(f"{value:g}" for value in values) for values in found)
        raise RasterError(
            f"{layer.raster.path} holds {shown}, none of which is of the classes {', '.join(layer.schema.classes)}; "
            "say how labels spell them with --classes"
        )


def _by_value(source: Source) -> ClassSchema:
    """A class for each value of a raster that names none."""
    if source.count != 1:
        raise RasterError(
            f"{source.path} has {source.count} bands and names no classes; a map has one band of class indices, a map "
            "in colours needs --classes, and the scene stands after the map: view MAP SCENE"
        )
    if np.dtype(source.dtypes[0]).kind not in "iu":
        raise RasterError(
            f"{source.path} holds {source.dtypes[0]}; a class map holds whole numbers (a score goes with --confidence)"
        )
    pyramid = Pyramid(source, [1], frame_of(source).grid, blend=False)
    (band,), valid = look(pyramid)
    values = [value for value in np.unique(band[valid]).tolist() if value != IGNORE]
    if len(values) > _MOST:
        raise RasterError(
            f"{source.path} holds {len(values)} different values; a class map has {_MOST} classes at most, and the "
            "scene stands after the map: view MAP SCENE"
        )
    if not values:
        raise RasterError(f"{source.path} has no pixel with a class: all of it is no data")
    colours = _colours(source, values)
    return ClassSchema("values", tuple(f"class {value}" for value in values), colours, values=tuple(values))


def _colours(source: Source, values: Iterable[int]) -> tuple[Colour, ...]:
    """The colours of values in the file's palette; others for those that it lacks or draws in the same colour."""
    taken: list[Colour] = []
    for value in values:
        red, green, blue = (
            source.palette[value, :3].tolist()
            if source.palette is not None and 0 <= value < len(source.palette)
            else _distinct(len(taken))
        )
        colour, number = (red, green, blue), len(taken)
        while colour in taken:
            number += 1
            colour = _distinct(number)
        taken.append(colour)
    return tuple(taken)


def _distinct(number: int) -> Colour:
    """A colour for a class that has none: hues a golden section apart, so that neighbours differ."""
    red, green, blue = colorsys.hls_to_rgb((number * 0.618034) % 1, (0.45, 0.62, 0.3)[number // 8 % 3], 0.65)
    return round(red * 255), round(green * 255), round(blue * 255)
