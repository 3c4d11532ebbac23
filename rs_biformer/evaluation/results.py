"""Result files -> Metrics: a file holds the counts of all blocks, so results are compared without their rasters."""

import zlib
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from rs_biformer.documents import read_json
from rs_biformer.errors import ConfigError
from rs_biformer.evaluation.boundary import BoundaryCounts
from rs_biformer.evaluation.calibration import CalibrationCounts
from rs_biformer.evaluation.confusion import Confusion
from rs_biformer.evaluation.metrics import BLOCK, Metrics, Options, SceneResult
from rs_biformer.evaluation.protocols import protocol_from_dict
from rs_biformer.evaluation.resampling import Resampling
from rs_biformer.schema import ClassSchema


def _unpack(text: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    table = np.frombuffer(zlib.decompress(b64decode(text)), "<i4").reshape(-1, classes, classes + 1).astype(np.int64)
    return table[..., 1:], table[..., 0]


def metrics_from_dict(data: Mapping[str, Any]) -> Metrics:
    """The Metrics that gave a result file's content. Raises ConfigError where the counts are missing or damaged."""
    try:
        schema = ClassSchema.from_dict(data["schema"])
        drawn = data["intervals"]
        return Metrics(
            schema=schema,
            protocol=protocol_from_dict(data["protocol_definition"]),
            scenes=tuple(_scene(scene, len(schema)) for scene in data["per_scene"]),
            options=Options(**{**data["options"], "boundary": tuple(data["options"]["boundary"])}),
            resampling=Resampling(**{name: drawn[name] for name in ("unit", "samples", "level", "seed")}),
            name=data.get("name", ""),
            about=data.get("model", {}),
            version=data["version"],
        )
    except (KeyError, TypeError, ValueError, AttributeError, zlib.error) as error:
        raise ConfigError(
            f"it is no result of rs-biformer evaluate that can be compared ({type(error).__name__}: {error}); "
            "evaluate the maps again"
        ) from None


def _scene(data: Mapping[str, Any], classes: int) -> SceneResult:
    counts = data["counts"]
    if counts["block"] != BLOCK:
        raise ValueError(f"blocks of {counts['block']} pixels, now {BLOCK}")
    boundary = counts.get("boundary")
    return SceneResult(
        name=data["name"],
        label=data["label"],
        prediction=data["prediction"],
        height=counts["height"],
        width=counts["width"],
        blocks={
            int(radius): Confusion(
                *_unpack(part["blocks"], classes),
                ignored=part["ignored"],
                eroded=part["eroded"],
                unknown=part["unknown"],
            )
            for radius, part in counts["by_erosion"].items()
        },
        calibration={
            int(radius): CalibrationCounts(
                np.array(part["pixels"], np.int64), np.array(part["hits"], np.int64), np.array(part["confidence"])
            )
            for radius, part in counts.get("calibration", {}).items()
        },
        boundary=None
        if boundary is None
        else BoundaryCounts(
            tuple(boundary["distances"]),
            *(np.array(boundary[name]) for name in ("label", "predicted", "label_hits", "predicted_hits")),
        ),
        made_by=data.get("made_by", {}),
    )


def read_results(path: str | PathLike[str]) -> list[Metrics]:
    """All results in a file that `evaluate` wrote, of one model under one protocol or of several.

    A result without a name gets that of the file. Raises ConfigError when the file is something else.
    """
    path = Path(path)
    content = read_json(path)
    parts = content.get("results", [content]) if isinstance(content, Mapping) else []
    try:
        found = [metrics_from_dict(part) for part in parts]
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not found:
        raise ConfigError(f"{path} holds no result; give a file that rs-biformer evaluate wrote")
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
