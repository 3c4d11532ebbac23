"""A trained model as one ONNX file that runs without this package, in QGIS (Deepness) for instance.

The file takes raw band values as float32 and gives probabilities: normalisation and softmax are inside. Its metadata
tell Deepness all it asks for. Deepness divides values by 255 and standardises them, so it is told a mean of 0 and a
deviation of 1/255, which undoes the division and leaves the raw values that the file expects. It runs onnxruntime 1.17
at most, which sets the versions that are written.
"""

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rs_biformer.checkpoint import TrainedModel
from rs_biformer.errors import CheckpointError, ConfigError
from rs_biformer.files import replacing
from rs_biformer.geometry import stride_of
from rs_biformer.predict.onnx import METADATA_KEY, import_onnxruntime

OPSET = 20
"""Operators of the newest set that onnxruntime 1.17 knows."""
IR_VERSION = 9
"""Newest form of the file that onnxruntime 1.17 opens; nothing that later forms brought is used here."""
TOLERANCE = 1e-3
"""Mean absolute difference of probabilities between onnxruntime and torch at which an export is refused.

Not the largest: routing picks regions by rank, and where two tie within float error the two may pick differently.
"""


class _Deployed(nn.Module):
    """Raw band values (B, C, S, S) float32 -> probabilities (B, K, S, S)."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.model(image).softmax(1)
        return scores


def export_onnx(
    model: TrainedModel, path: str | os.PathLike[str], *, window: int | None = None, overlap: float = 0.5
) -> Path:
    """Write a model as ONNX, for any batch size and windows of `window` pixels (those of training unless given).

    overlap: the share of a window that tools which read the metadata should let neighbours have in common.

    The file is checked before it appears under its name: onnxruntime must give what torch gives.

    Raises ConfigError when the optional packages are missing or the network cannot be exported, CheckpointError when
    the exported model computes something else.
    """
    onnxruntime = import_onnxruntime()
    path, size = Path(path), model.meta.window if window is None else window
    stride_of(size, overlap)  # refuses what no tool could use
    deployed = _Deployed(model).eval().cpu()
    program = _trace(deployed, torch.zeros(2, len(model.bands), size, size))
    program.model.ir_version = IR_VERSION
    program.model.metadata_props.update(metadata(model, size, overlap))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        program.save(partial, external_data=False)
        _verify(onnxruntime, partial, deployed, size)
    return path


def metadata(model: TrainedModel, window: int, overlap: float) -> dict[str, str]:
    """The metadata of the file: the keys of Deepness, and all that our checkpoint carries under one key of ours."""
    meta, bands = model.meta, len(model.bands)
    entries: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": {str(index): name for index, name in enumerate(meta.schema.classes)},
        "tile_size": window,
        "tiles_overlap": round(100 * overlap),
        "standardization_mean": [0.0] * bands,
        "standardization_std": [1 / 255] * bands,
        "seg_thresh": 0.0,  # Deepness drops what is below before it picks the best class
        "seg_small_segment": 0,  # and filters its map by a median, which takes cars away, unless this is 0
        METADATA_KEY: meta.to_dict() | {"window": window},
    }
    if meta.gsd is not None:
        entries["resolution"] = round(100 * meta.gsd, 4)  # centimetres per pixel
    return {key: json.dumps(value) for key, value in entries.items()}


def _trace(module: nn.Module, example: Tensor) -> Any:
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it and says so only deep inside
    except ImportError:
        raise ConfigError("onnxscript is not installed; get it with: pip install 'rs_biformer[onnx]'") from None
    noisy = logging.getLogger("torch.onnx")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about torch's own code
            return torch.onnx.export(
                module,
                (example,),
                input_names=["image"],
                output_names=["probabilities"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ConfigError(f"the network cannot be exported to ONNX: {reason}") from error
    finally:
        noisy.setLevel(level)


def _verify(onnxruntime: Any, path: Path, deployed: _Deployed, size: int) -> None:
    """Run both on the same windows: noise of the mean and deviation that the model was trained on, another batch."""
    normalisation = deployed.model.normalisation
    noise = torch.randn(3, normalisation.bands, size, size, generator=torch.Generator().manual_seed(0))
    image = noise * normalisation.std[:, None, None] + normalisation.mean[:, None, None]
    with torch.inference_mode():
        wanted = deployed(image)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": image.numpy()})
    difference = (torch.from_numpy(found) - wanted).abs().mean().item()
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"the exported model differs by {difference:.2g} per probability, where {TOLERANCE:g} is allowed; "
            "nothing was written: please report the encoder and decoder"
        )
