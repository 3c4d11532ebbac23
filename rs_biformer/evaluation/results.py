"""Result files: Metrics -> plain values -> Metrics.

A file is complete: from the packed counts of the blocks come all figures, intervals and tests, so results are compared
without their rasters. It names its protocol, the protocol's definition, the options, the version and its format; its
figures are for other readers and not read back.
"""

import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rs_biformer.documents import Count, Listed, Name, Part, Text, build, made_by, read_json, require_format
from rs_biformer.errors import ConfigError
from rs_biformer.evaluation.boundary import LARGEST_DISTANCE, BoundaryCounts
from rs_biformer.evaluation.calibration import BINS, CalibrationCounts
from rs_biformer.evaluation.confusion import Confusion
from rs_biformer.evaluation.metrics import BLOCK, HEADLINE, Metrics, Options, SceneResult, block_grid, plain
from rs_biformer.evaluation.protocols import Protocol, protocol_from_dict
from rs_biformer.evaluation.resampling import Resampling
from rs_biformer.schema import ClassSchema

FORMAT = 1
"""The number of a result file's format; files of before it was numbered have none."""

MAX_COUNTS = 1 << 29
"""Bytes of a file's counts in memory, whatever they are packed into: 1.6 million blocks of six classes, 418,000
megapixels."""
_MAX_VALUES = 1 << 24


def metrics_to_dict(metrics: Metrics) -> dict[str, Any]:
    """What `rs-biformer evaluate --out` writes: the figures of the set first, then where they come from.

    Plain types; None for what is undefined.
    """
    result = {
        **({"name": metrics.name} if metrics.name else {}),
        **metrics.scores.to_dict(),
        "protocol": metrics.protocol.id,
        "notes": list(metrics.cautions),
        "intervals": _intervals(metrics),
        "forms": {
            name: {figure: plain(value) for figure, value in form.headline.items()}
            for name, form in metrics.forms.items()
        },
    }
    if metrics.full is not None:
        result["full_labels"] = metrics.full.to_dict()
    if metrics.boundary is not None:
        result["boundary"] = _boundary(metrics)
    if metrics.calibration is not None:
        result["calibration"] = _calibration(metrics.calibration)
    return {
        **result,
        "per_scene": [
            {
                "name": scene.name,
                "label": scene.label,
                "prediction": scene.prediction,
                **({"made_by": dict(scene.made_by)} if scene.made_by else {}),
                **metrics.scene_scores(scene).to_dict(),
                "counts": _pack_scene(scene),
            }
            for scene in metrics.scenes
        ],
        **({"model": dict(metrics.about)} if metrics.about else {}),
        "protocol_definition": metrics.protocol.to_dict(),
        "schema": metrics.schema.to_dict(),
        "options": {**asdict(metrics.options), "boundary": list(metrics.options.boundary)},
        "version": metrics.version,
        "format": FORMAT,
    }


def _intervals(metrics: Metrics) -> dict[str, Any]:
    def ends(name: str, index: int | None = None) -> list[float | None]:
        low, high = metrics.intervals[name]
        return [plain(float(end if index is None else end[index])) for end in (low, high)]

    return {
        **asdict(metrics.resampling),
        "units": len(metrics.units.matrix),
        **{name: ends(name) for name in HEADLINE},
        "per_class": {
            name: {"iou": ends("iou", index), "f1": ends("f1", index)}
            for index, name in enumerate(metrics.schema.classes)
        },
    }


def _boundary(metrics: Metrics) -> dict[str, Any]:
    counts, means = metrics.boundary, metrics.boundary_f1
    assert counts is not None and means is not None
    return {
        "distances": list(counts.distances),
        "mean_f1": [plain(value) for value in means],
        "per_class": {
            name: {
                "f1": [plain(value) for value in counts.f1[:, index]],
                "precision": [plain(value) for value in counts.precision[:, index]],
                "recall": [plain(value) for value in counts.recall[:, index]],
            }
            for index, name in enumerate(metrics.schema.classes)
        },
    }


def _calibration(counts: CalibrationCounts) -> dict[str, Any]:
    edges = np.linspace(0, 1, len(counts.pixels) + 1)
    return {
        "expected_error": plain(counts.expected_error),
        "largest_error": plain(counts.largest_error),
        "overconfidence": plain(counts.overconfidence),
        "bins": [
            {
                "from": float(edges[place]),
                "to": float(edges[place + 1]),
                "pixels": int(counts.pixels[place]),
                "confidence": plain(counts.mean_confidence[place]),
                "accuracy": plain(counts.accuracy[place]),
            }
            for place in range(len(counts.pixels))
        ],
    }


def _pack_scene(scene: SceneResult) -> dict[str, Any]:
    """The counts of a scene; those of its blocks as one line of text each."""
    packed: dict[str, Any] = {
        "height": scene.height,
        "width": scene.width,
        "block": BLOCK,
        "encoding": "int32, label x (none, predicted classes), zlib, base64",
        "by_erosion": {
            str(radius): {
                "ignored": stack.ignored,
                "eroded": stack.eroded,
                "unknown": stack.unknown,
                "blocks": _pack(stack),
            }
            for radius, stack in scene.blocks.items()
        },
    }
    if scene.boundary is not None:
        packed["boundary"] = {name: np.asarray(value).tolist() for name, value in asdict(scene.boundary).items()}
    if scene.calibration:
        packed["calibration"] = {
            str(radius): {name: value.tolist() for name, value in asdict(counts).items()}
            for radius, counts in scene.calibration.items()
        }
    return packed


def _pack(stack: Confusion) -> str:
    table = np.concatenate([stack.unpredicted[..., None], stack.matrix], axis=-1).astype("<i4")
    return b64encode(zlib.compress(table.tobytes(), 9)).decode()


class _Blocks(Part):
    ignored: Count
    eroded: Count
    unknown: Count
    blocks: str


class _Calibration(Part):
    pixels: Annotated[Listed[Count], Field(min_length=BINS, max_length=BINS)]
    hits: Annotated[Listed[Count], Field(min_length=BINS, max_length=BINS)]
    confidence: Annotated[Listed[Annotated[float, Field(ge=0)]], Field(min_length=BINS, max_length=BINS)]


_Distance = Annotated[float, Field(ge=0, le=LARGEST_DISTANCE)]


class _Boundary(Part):
    distances: Annotated[Listed[_Distance], Field(min_length=1)]
    label: Listed[Count]
    predicted: Listed[Count]
    label_hits: Listed[Listed[Count]]
    predicted_hits: Listed[Listed[Count]]


_Side = Annotated[int, Field(ge=1, lt=1 << 31)]
_Radius = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,2})$")]


class _Counts(Part):
    height: _Side
    width: _Side
    block: Annotated[int, Field(ge=BLOCK, le=BLOCK)]
    by_erosion: dict[_Radius, _Blocks]
    boundary: _Boundary | None = None
    calibration: dict[_Radius, _Calibration] = {}


class _Scene(Part):
    name: str
    label: str
    prediction: str
    counts: _Counts
    made_by: dict[str, str] = {}


class _Drawn(Part):
    unit: Name
    samples: int
    level: float
    seed: int


class _Result(Part):
    """A result as its file has it, without the figures."""

    classes: Annotated[ClassSchema, made_by(ClassSchema, ClassSchema.from_dict)] = Field(alias="schema")
    protocol_definition: Annotated[Protocol, made_by(Protocol, protocol_from_dict)]
    per_scene: Annotated[Listed[_Scene], Field(min_length=1)]
    options: Annotated[Options, made_by(Options, lambda data: build(Options, data, "options"))]
    intervals: _Drawn
    version: Text
    name: str = ""
    model: dict[str, Any] = {}


def metrics_from_dict(data: Any, where: str = "the result") -> Metrics:
    """The Metrics that gave a result file's content.

    Raises ConfigError, in one line that begins with `where`, for missing, damaged or absurdly many counts.
    """
    require_format(data.get("format") if isinstance(data, Mapping) else None, FORMAT, where)
    try:
        found: _Result = build(_Result, data, where)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; give a file that `rs-biformer evaluate` wrote, or evaluate the maps again"
        ) from None
    try:
        schema, protocol = found.classes, found.protocol_definition
        protocol.averaged(schema)
        _require_bounded(found, len(schema))
        return Metrics(
            schema=schema,
            protocol=protocol,
            scenes=tuple(_scene(scene, protocol, len(schema)) for scene in found.per_scene),
            options=found.options,
            resampling=Resampling(**dict(found.intervals)),
            name=found.name,
            about=found.model,
            version=found.version,
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _require_bounded(found: _Result, classes: int) -> None:
    """Refuse counts that would fill the memory, before any is unpacked: zlib makes 1,000 bytes of one."""
    needed = 0
    for scene in found.per_scene:
        rows, cols = block_grid(scene.counts.height, scene.counts.width)
        needed += rows * cols * len(scene.counts.by_erosion) * _cells(classes) * 8
    if needed > MAX_COUNTS:
        raise ConfigError(
            f"its scenes are said to have counts of {needed / 2**20:,.0f} MiB and a file may have those of "
            f"{MAX_COUNTS >> 20} MiB; evaluate fewer scenes at once"
        )
    if len({_distances(scene) for scene in found.per_scene}) > 1:
        raise ConfigError("its scenes have boundaries within different distances; evaluate the maps again")


def _distances(scene: _Scene) -> tuple[float, ...] | None:
    return None if scene.counts.boundary is None else scene.counts.boundary.distances


def _cells(classes: int) -> int:
    return classes * (classes + 1)


def _scene(scene: _Scene, protocol: Protocol, classes: int) -> SceneResult:
    counts, blocks = scene.counts, {}
    rows, cols = block_grid(counts.height, counts.width)
    for radius, part in counts.by_erosion.items():
        matrix, unpredicted = _unpack(part.blocks, rows * cols, classes, scene.name)
        blocks[int(radius)] = Confusion(matrix, unpredicted, part.ignored, part.eroded, part.unknown)
    if lacking := {0, protocol.ignore_boundary} - set(blocks):
        raise ConfigError(f"{scene.name!r} has no counts of labels eroded by {min(lacking)} pixels, which it needs")
    calibration = {
        int(radius): CalibrationCounts(
            np.array(part.pixels, np.int64), np.array(part.hits, np.int64), np.array(part.confidence, np.float64)
        )
        for radius, part in counts.calibration.items()
    }
    return SceneResult(
        name=scene.name,
        label=scene.label,
        prediction=scene.prediction,
        height=counts.height,
        width=counts.width,
        blocks=blocks,
        calibration=calibration,
        boundary=None if counts.boundary is None else _outlines(counts.boundary, classes, scene.name),
        made_by=scene.made_by,
    )


def _outlines(part: _Boundary, classes: int, name: str) -> BoundaryCounts:
    hits = (part.label_hits, part.predicted_hits)
    rows = (part.label, part.predicted, *part.label_hits, *part.predicted_hits)
    if any(len(row) != classes for row in rows) or any(len(rows) != len(part.distances) for rows in hits):
        raise ConfigError(f"the boundary counts of {name!r} are not those of {classes} classes")
    label, predicted = (np.array(row, np.int64) for row in (part.label, part.predicted))
    return BoundaryCounts(part.distances, label, predicted, *(np.array(rows, np.int64) for rows in hits))


def _unpack(text: str, blocks: int, classes: int, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts of predictions (blocks, K, K) and of missing ones (blocks, K), as `_pack` wrote them."""
    needed = blocks * _cells(classes) * 4
    try:
        unpacking = zlib.decompressobj()
        content = unpacking.decompress(b64decode(text, validate=True), needed + 1)
    except (ValueError, zlib.error) as error:
        raise ConfigError(f"the counts of {name!r} are damaged ({error})") from None
    if len(content) != needed or not unpacking.eof:
        raise ConfigError(f"the counts of {name!r} are not those of {blocks:,} blocks and {classes} classes")
    table = np.frombuffer(content, "<i4").reshape(blocks, classes, classes + 1).astype(np.int64)
    if table.min() < 0 or table.sum(axis=(1, 2)).max() > BLOCK * BLOCK:
        raise ConfigError(f"the counts of {name!r} are damaged: a block has {BLOCK * BLOCK:,} pixels at most")
    return table[..., 1:], table[..., 0]


def read_results(path: str | PathLike[str]) -> list[Metrics]:
    """All results in a file that `evaluate` wrote, of one model under one protocol or of several.

    A result without a name gets that of the file. Raises ConfigError when the file is something else.
    """
    path = Path(path)
    content = read_json(path, values=_MAX_VALUES)
    parts = content.get("results", [content]) if isinstance(content, Mapping) else []
    if not isinstance(parts, list) or not parts:
        raise ConfigError(f"{path} holds no result; give a file that rs-biformer evaluate wrote")
    found = [metrics_from_dict(part, str(path)) for part in parts]
    return [metrics if metrics.name else replace(metrics, name=path.stem) for metrics in found]


def merge(parts: Sequence[Metrics]) -> Metrics:
    """One result of the scenes of several, each counted by a process of its own: what one process would have found.

    Raises ConfigError unless all are of one schema, protocol and set of options and no scene occurs twice.
    """
    first = parts[0]
    for part in parts[1:]:
        same = (part.schema, part.protocol, part.options) == (first.schema, first.protocol, first.options)
        if not same:
            raise ConfigError("results of another schema, protocol or options cannot be merged; evaluate all alike")
    scenes = tuple(scene for part in parts for scene in part.scenes)
    if len({scene.label for scene in scenes}) < len(scenes):
        raise ConfigError("a scene occurs in two of the results to be merged; give each scene to one process")
    return replace(first, scenes=scenes)
