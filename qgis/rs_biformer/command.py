"""What rs-biformer is asked to do, as lists of arguments, and what it says while it does it. No QGIS in here.

One argument is one item, so that no name has to be quoted; a value that somebody typed stands in one item with its
option, so that it is never taken for another option.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Iterable, Optional, Sequence

ClassEntry = tuple[str, tuple[int, int, int], Optional[int]]
"""A class: its name, its colour (red, green, blue), and its value in a label; None for its place in the list."""

PRESETS = ("vaihingen", "potsdam", "loveda")
SCORES = ("confidence", "probabilities", "margin", "entropy")
MAP_NAME = "map"
"""What the maps of `predict` are called in their folder: map_classes.tif, map_confidence.tif."""

_PROGRESS = ("--progress", "json")
_LEAKS = re.compile(
    r"PYTHON(HOME|PATH|STARTUP|EXECUTABLE|USERBASE|PLATLIBDIR|CASEOK|OPTIMIZE|WARNINGS)|__PYVENV_LAUNCHER__|VIRTUAL_ENV"
    r"|GDAL_(DATA|DRIVER_PATH)|PROJ_(LIB|DATA)|GEOTIFF_CSV|OGR_DRIVER_PATH|(LD|DYLD)_(LIBRARY_PATH|PRELOAD)"
    r"|DYLD_(FRAMEWORK|INSERT)_.*|QT_PLUGIN_PATH|CONDA_.*|_CONDA_.*",
    re.IGNORECASE,
)
"""Variables by which QGIS finds its own Python, GDAL and PROJ: another Python that reads them breaks or finds those."""


def clean_environment(variables: dict[str, str]) -> dict[str, str]:
    """The variables for a child that has a Python, GDAL and PROJ of its own: those of QGIS are left out."""
    kept = {name: value for name, value in variables.items() if not _LEAKS.fullmatch(name)}
    return {**kept, "PYTHONNOUSERSITE": "1", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}


def predict(
    raster: str,
    model: str,
    folder: str,
    *,
    scores: Sequence[str] = (),
    area: str | None = None,
    quality: str | None = None,
    overlap: float | None = None,
    views: str | None = None,
    bands: str | None = None,
    nodata: str | None = None,
    pixels: str = "",
    restart: bool = True,
) -> list[str]:
    """Map a raster: FOLDER/map_classes.tif, and map_SCORE.tif for each of the scores.

    quality: fast, balanced or best; it decides the overlap, too, unless one is given.
    pixels: `rescale` or `take` for a raster whose pixels have another size than those of training.
    """
    sizes = {"": [], "rescale": ["--rescale-gsd"], "take": ["--allow-gsd-mismatch"]}
    return [
        *_PROGRESS,
        "predict",
        raster,
        *("--checkpoint", model, "--out", folder),
        *_typed("name", MAP_NAME),
        *(f"--{score}" for score in scores),
        *_typed("area", area),
        *_typed("quality", quality),
        *_typed("overlap", None if overlap is None else f"{overlap:g}"),
        *_typed("tta", views),
        *_typed("bands", bands),
        *_typed("nodata", nodata),
        *sizes[pixels],
        *(["--restart"] if restart else []),
    ]


def vectorize(
    maps: Sequence[str],
    out: str,
    *,
    layer: str | None = None,
    min_area: float = 0.0,
    simplify: float | None = None,
    confidence: Sequence[str] = (),
    square: Sequence[str] | None = None,
    tolerance: str = "",
) -> list[str]:
    """Polygons of class maps.

    square: classes that get right angles, buildings where none is named. tolerance: of that, in pixels, or metres (1m).
    """
    return [
        *_PROGRESS,
        "vectorize",
        *maps,
        *("--out", out),
        *_typed("layer", layer),
        *([f"--min-area={min_area:g}"] if min_area else []),
        *_typed("simplify", None if simplify is None else f"{simplify:g}"),
        *(["--confidence", *confidence] if confidence else []),
        *([] if square is None else ["--regularise", *square]),
        *([] if square is None else _typed("tolerance", tolerance)),
    ]


def evaluate(
    map_path: str,
    label: str,
    classes: str,
    out: str,
    *,
    field: str | None = None,
    layer: str | None = None,
    report: str | None = None,
    confidence: str | None = None,
    area: str | None = None,
    protocol: str | None = None,
    boundary: Sequence[float] = (),
    suspects: str | None = None,
) -> list[str]:
    """Measure a class map against a label."""
    return [
        *_PROGRESS,
        "evaluate",
        *("--prediction", map_path, "--label", _unless_pattern(label), "--classes", classes, "--out", out),
        *_typed("label-field", field),
        *_typed("label-layer", layer),
        *_typed("report", report),
        *(["--confidence", confidence] if confidence else []),
        *_typed("area", area),
        *_typed("protocol", protocol),
        *(["--boundary", *(f"{pixels:g}" for pixels in boundary)] if boundary else []),
        *_typed("find-label-errors", suspects),
    ]


def tile(
    raster: str,
    label: str,
    classes: str,
    folder: str,
    *,
    field: str | None = None,
    layer: str | None = None,
    window: int = 256,
    overlap: float = 0.5,
    split: str = "",
    area: str | None = None,
    nodata: str | None = None,
) -> list[str]:
    """Cut a labelled raster into windows: FOLDER/tiles.parquet and tiles.gpkg."""
    split_rule = split.split()
    return [
        *_PROGRESS,
        "tile",
        raster,
        *_typed("labels", as_pattern(label)),
        *("--classes", classes, "--out", folder),
        *(f"--window={window}", f"--overlap={overlap:g}"),
        *_typed("label-field", field),
        *_typed("label-layer", layer),
        *(["--split", *split_rule] if split_rule else []),
        *_typed("area", area),
        *_typed("nodata", nodata),
    ]


def _typed(option: str, value: str | None) -> list[str]:
    """An option with its value in one item; nothing where there is no value."""
    return [] if value is None or value == "" else [f"--{option}={value}"]


def as_pattern(path: str) -> str:
    """A path where a pattern with {fields} is expected."""
    return path.replace("{", "{{").replace("}", "}}")


def _unless_pattern(path: str) -> str:
    """A path where one with a brace would be taken for a pattern."""
    return as_pattern(path) if "{" in path else path


def class_file(name: str, classes: Iterable[ClassEntry]) -> str:
    """A class file with these names, colours and values, in their order; JSON, which is YAML.

    A value of None is the class's place. What lies outside of polygons is no label.
    """
    listed = [
        {"name": text, "colour": list(colour), **({} if value is None else {"value": value})}
        for text, colour, value in classes
    ]
    return json.dumps({"name": name, "classes": listed, "outside": "ignore"}, indent=1, ensure_ascii=False)


@dataclass(frozen=True)
class Progress:
    """So much is done, 0 to 1, of what is called `label`."""

    label: str
    share: float


def parse_line(line: str) -> Progress | str:
    """What a line of the command's standard error tells: its progress, or the text itself for people."""
    text = line.strip()
    if text.startswith('{"progress"'):
        try:
            found = json.loads(text)
            done, total = float(found["done"]), float(found["total"])
            return Progress(str(found["progress"]), min(1.0, max(0.0, done / total)) if total > 0 else 0.0)
        except (ValueError, KeyError, TypeError):
            return text
    return text


def error_line(name: str, code: int, lines: Sequence[str]) -> str:
    """One line that says why a command ended with an exit code other than 0, from its standard error.

    rs-biformer writes such a line itself; a program that was killed or broke says less.
    """
    told = [line for line in (text.strip() for text in lines) if line]
    for line in reversed(told):
        if line.startswith(("rs-biformer:", "rs-biformer ")):
            return line
    last = told[-1] if told else "it said nothing"
    if code in (-9, 137):
        return f"{name} was killed from outside, mostly for want of memory: close other programs; its last line: {last}"
    return f"{name} ended with code {code}: {last}"


def figures(text: str) -> dict[str, float | None]:
    """The three figures of a result of `evaluate`, 0 to 1, by name; None for one that is not defined.

    Raises ValueError for a text that is no result.
    """
    found = json.loads(text)
    names = ("overall_accuracy", "mean_iou", "mean_f1")
    if not isinstance(found, dict) or not all(name in found for name in names):
        raise ValueError("it is no result of rs-biformer evaluate")
    return {name: None if found[name] is None else float(found[name]) for name in names}
