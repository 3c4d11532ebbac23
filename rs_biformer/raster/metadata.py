"""What our maps say of themselves, and how numbers are stored in them: written and read by the same names."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rs_biformer.documents import Listed, Text, build, parse_json
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.raster.gdal import colour_table, gdal_env, open_raster, raster_errors
from rs_biformer.raster.paths import Location

CLASS_NAMES = "CLASS_NAMES"
"""Names of the classes, a JSON list: position is index."""

LAYER = "LAYER"
"""Which of the maps of a prediction it is, see predict/outputs.py."""

MODEL, MODEL_FILE, SOFTWARE = "MODEL", "MODEL_FILE", "SOFTWARE"
"""The network, the file it came from, and the program that ran it."""

PREDICTION_WINDOW, PREDICTION_OVERLAP = "PREDICTION_WINDOW", "PREDICTION_OVERLAP"
PREDICTION_BLEND, PREDICTION_TTA, PREDICTION_SCALES = "PREDICTION_BLEND", "PREDICTION_TTA", "PREDICTION_SCALES"
"""The options of the prediction, as `predict_scene` has them."""

DATE = "TIFFTAG_DATETIME"
"""When a raster was taken, or made, as TIFF spells it: 2024:05:31 10:20:30."""

SCALE = "SCALE"
"""`value / 250`: what a stored value means, in words. GDAL's own scale says the same to programs."""

SCORE_LEVELS = 250
"""Steps of a score stored as uint8: the value v means v / 250, and 255 is nodata."""

_DATE_FORM = "%Y:%m:%d %H:%M:%S"
_OPTIONS = PREDICTION_WINDOW, PREDICTION_OVERLAP, PREDICTION_BLEND, PREDICTION_TTA, PREDICTION_SCALES


def class_tags(classes: Sequence[str]) -> dict[str, str]:
    """The names of classes as a tag."""
    return {CLASS_NAMES: json.dumps(list(classes))}


def score_tags(layer: str, dtype: Any) -> dict[str, str]:
    """The tags of a map of scores that are stored as `dtype`."""
    return {LAYER: layer} | ({SCALE: f"value / {SCORE_LEVELS}"} if np.dtype(dtype) == np.uint8 else {})


def score_scale(dtype: Any) -> float:
    """What a stored score is multiplied by to give 0 to 1."""
    return 1 / SCORE_LEVELS if np.dtype(dtype) == np.uint8 else 1.0


def date_tags(text: str) -> dict[str, str]:
    """The date that a raster tells, as a tag for maps of it: of the ground that they show, not of their making.

    Empty where it tells none, or one that is no date.
    """
    try:
        return {DATE: f"{datetime.strptime(text, _DATE_FORM):{_DATE_FORM}}"}
    except ValueError:
        return {}


def made_by(tags: Mapping[str, str]) -> dict[str, str]:
    """What a map's tags say of its making: the model and the options of its prediction, by name."""
    return {name: tags[name] for name in tags if name in (MODEL, MODEL_FILE, SOFTWARE, *_OPTIONS)}


def read_class_names(location: Location) -> tuple[str, ...] | None:
    """The names of a map's classes by index; of a VRT those of its parts; None where none are told.

    Raises RasterError when the file cannot be opened, or the parts of a VRT name their classes differently.
    """
    with gdal_env(), raster_errors(location, "opened"), open_raster(location) as file:
        own, parts = _names(file.tags()), file.files[1:] if file.driver == "VRT" else []
    if own is not None or not parts:
        return own
    found = {part: names for part in parts if (names := _names_of_part(part)) is not None}
    if len(set(found.values())) > 1:
        (one, names), (other, others) = list({names: part for part, names in found.items()}.items())[:2]
        raise RasterError(
            f"{location} is put together from maps of other classes: {names} has {', '.join(one)} and {others} has "
            f"{', '.join(other)}; give maps that one model made"
        )
    return next(iter(found.values()), None)


def _names_of_part(part: str) -> tuple[str, ...] | None:
    if Path(part).suffix.lower() in (".xml", ".ovr", ".msk", ".qml"):
        return None
    with open_raster(part) as file:
        return _names(file.tags())


def _names(tags: Mapping[str, str]) -> tuple[str, ...] | None:
    try:
        names: tuple[str, ...] = build(Listed[Text], parse_json(tags.get(CLASS_NAMES, "[]"), CLASS_NAMES), CLASS_NAMES)
    except ConfigError:
        return None
    return names or None


def describe_map(location: Location) -> dict[str, Any]:
    """What one of our maps says of itself: its kind, its classes with their colours, and how it was made.

    Empty for a raster that is none. Raises RasterError when the file cannot be opened.
    """
    names = read_class_names(location)
    with gdal_env(), raster_errors(location, "opened"), open_raster(location) as file:
        tags = file.tags()
        palette = colour_table(file)
    layer = tags.get(LAYER)
    if layer is None and names is None:
        return {}
    classes = {
        name: "#" + bytes(palette[index][:3]).hex() if index in palette else None
        for index, name in enumerate(names or ())
    }
    return {
        "kind": f"map of {layer}" if layer else "class map",
        **({"classes": classes} if classes else {}),
        **({"values": tags[SCALE]} if SCALE in tags else {}),
        "made_by": made_by(tags),
    }


class ScoreScale:
    """What the stored values of a raster of scores mean: quantity = value * scale + offset, per band (bands,).

    GDAL's own scale counts where the file has one; else our tag in words; else bytes are in steps of 1 / SCORE_LEVELS
    if `levels` says so, and all other values mean what they are.
    """

    def __init__(self, location: Location, *, levels: bool = False) -> None:
        with gdal_env(), raster_errors(location, "opened"), open_raster(location) as file:
            self.scale, self.offset = np.array(file.scales, np.float64), np.array(file.offsets, np.float64)
            tag, dtypes = file.tags().get(SCALE, "").removeprefix("value / "), file.dtypes
        if (self.scale == 1).all() and (self.offset == 0).all():
            if tag.isdecimal() and int(tag) > 0:
                self.scale /= int(tag)
            elif levels:
                self.scale *= [score_scale(dtype) for dtype in dtypes]

    def __call__(self, bands: NDArray[Any]) -> NDArray[np.float64]:
        """The quantities (B, ...) of stored bands."""
        shape = (-1,) + (1,) * (bands.ndim - 1)
        return bands * self.scale.reshape(shape) + self.offset.reshape(shape)
