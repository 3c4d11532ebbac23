"""A model as a STAC Item with the machine learning model extension (MLM 1.5), which catalogues understand.

https://github.com/stac-extensions/mlm. Where the training scenes lie is not in a checkpoint, so the Item says the whole
world and all times, as the extension's best practices have it. Classes are told by the classification extension, size
and digest of the file by the file extension, bands by the raster extension: STAC 1.1 has bands of its own, but where it
wants them the schema of MLM does not look. All that our checkpoint carries stands under `rs_biformer:card`.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

from rs_biformer import __version__
from rs_biformer.checkpoint import CheckpointMeta

_EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.5.2/schema.json",
    "https://stac-extensions.github.io/classification/v1.1.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
)
_WORLD = (-180.0, -90.0, 180.0, 90.0)
_KINDS = {
    ".onnx": ("onnx", "ONNX", "application/octet-stream; framework=onnx; profile=onnx"),
    ".ckpt": ("torch.save", "PyTorch", "application/octet-stream; application=pytorch"),
    ".safetensors": ("safetensors", "PyTorch", "application/octet-stream; application=safetensors"),
}
_MULTIHASH_SHA256 = "1220"


def artefact(path: Path, href: str) -> dict[str, Any]:
    """The asset that a file of a model is. href: where the reader of the Item finds it."""
    kind, _, media = _KINDS[path.suffix.lower()]
    return {
        "href": href.replace("\\", "/"),
        "type": media,
        "title": path.name,
        "roles": ["mlm:model", "mlm:weights", "data"],
        "mlm:artifact_type": kind,
        "file:size": path.stat().st_size,
        "file:checksum": _MULTIHASH_SHA256 + hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def stac_item(meta: CheckpointMeta, asset: dict[str, Any], parameters: int = 0, licence: str = "") -> dict[str, Any]:
    """The Item, as plain values. asset: from `artefact`. parameters: how many the network has, 0 where unknown.

    licence: of the model, an SPDX identifier; nothing where nobody said.
    """
    onnx = asset["mlm:artifact_type"] == "onnx"
    name = f"{meta.encoder} + {meta.decoder}"
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": list(_EXTENSIONS),
        "id": _identifier(asset["title"]),
        "geometry": {"type": "Polygon", "coordinates": [_ring(*_WORLD)]},
        "bbox": list(_WORLD),
        "properties": {
            "title": name,
            "description": _description(meta),
            **({"license": licence} if licence else {}),
            "datetime": None,
            "start_datetime": "1900-01-01T00:00:00Z",
            "end_datetime": "9999-12-31T23:59:59Z",
            **({"gsd": meta.gsd} if meta.gsd is not None else {}),
            "mlm:name": re.sub(r"[^0-9A-Za-z_.-]+", " ", name),
            "mlm:architecture": name,
            "mlm:tasks": ["semantic-segmentation"],
            "mlm:framework": "ONNX" if onnx else "PyTorch",
            **({"mlm:total_parameters": parameters} if parameters else {}),
            "mlm:pretrained": True,
            "mlm:accelerator_constrained": False,
            "mlm:hyperparameters": {"window": meta.window, **meta.model_arguments},
            "mlm:input": [_input(meta, onnx)],
            "mlm:output": [_output(meta, onnx)],
            "rs_biformer:card": meta.to_json(),
        },
        "links": [],
        "assets": {"model": asset | {"raster:bands": [_band(meta, place) for place in range(len(meta.bands))]}},
    }


def _identifier(title: str) -> str:
    return re.sub(r"[^0-9A-Za-z._-]+", "-", Path(title).stem) or "model"


def _ring(west: float, south: float, east: float, north: float) -> list[list[float]]:
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]


def _description(meta: CheckpointMeta) -> str:
    where = f" at {meta.gsd:g} m per pixel" if meta.gsd is not None else ""
    figures = ", ".join(f"{name} {value:.4f}" for name, value in meta.metrics.items() if type(value) is float)
    return (
        f"Semantic segmentation of {', '.join(meta.bands)}{where} into {', '.join(meta.schema.classes)}."
        + (f" {figures} by the protocol {meta.protocol}." if figures else "")
        + f" Written by rs_biformer {__version__}, whose predict command runs it."
    )


def _band(meta: CheckpointMeta, place: int) -> dict[str, Any]:
    statistics = {"mean": meta.mean[place], "stddev": meta.std[place]}
    return {"name": meta.bands[place], "data_type": meta.dtype, "statistics": statistics}


def _input(meta: CheckpointMeta, onnx: bool) -> dict[str, Any]:
    scaling = [{"type": "z-score", "mean": mean, "stddev": std} for mean, std in zip(meta.mean, meta.std, strict=True)]
    return {
        "name": "image",
        "description": "raw values of the bands"
        if onnx
        else "standardised values of the bands, 0 where there is no data",
        "bands": list(meta.bands),
        "input": {
            "shape": [-1, len(meta.bands), meta.window, meta.window],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": "float32",
        },
        "value_scaling": None if onnx else scaling,
    }


def _output(meta: CheckpointMeta, onnx: bool) -> dict[str, Any]:
    return {
        "name": "probabilities" if onnx else "logits",
        "description": "probabilities of the classes"
        if onnx
        else "logits, whose softmax over the classes is probabilities",
        "tasks": ["semantic-segmentation"],
        "result": {
            "shape": [-1, len(meta.schema), meta.window, meta.window],
            "dim_order": ["batch", "classes", "height", "width"],
            "data_type": "float32",
        },
        "classification:classes": [_class(meta, index) for index in range(len(meta.schema))],
    }


def _class(meta: CheckpointMeta, index: int) -> dict[str, Any]:
    name, colour = meta.schema.classes[index], meta.schema.colours[index]
    return {
        "value": index,
        "name": re.sub(r"[^0-9A-Za-z_-]+", "_", name) or f"class_{index}",
        "description": name,
        "color_hint": bytes(colour).hex().upper(),
    }
