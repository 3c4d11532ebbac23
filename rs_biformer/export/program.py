"""A trained model as a program of torch (.pt2) that runs without this package, in Python or compiled into C++."""

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rs_biformer.checkpoint import TrainedModel
from rs_biformer.checkpoint.meta import require_licence
from rs_biformer.export.check import compare, require_classes, require_equal
from rs_biformer.export.deployed import INPUT, example, metadata, tracing
from rs_biformer.export.samples import Trial
from rs_biformer.export.writing import Exported, prepared, published
from rs_biformer.raster.overwriting import refuse_overwriting


def export_program(
    model: TrainedModel,
    path: str | Path,
    *,
    window: int | None = None,
    overlap: float = 0.5,
    trial: Trial | None = None,
    licence: str = "",
) -> Exported:
    """Write a model as a `torch.export` program: raw values (B, C, S, S) float32 -> probabilities (B, K, S, S).

    The arguments are those of `onnx.export_onnx`, whose metadata lie in the archive as further files, one for each
    key, which `torch.export.load(path, extra_files=...)` gives. Checked before it appears under its name.

    Raises as `onnx.export_onnx` does.
    """
    require_licence(licence)
    trial = trial or Trial()
    refuse_overwriting([model.path, *trial.files], [path])
    deployed, path, size = prepared(model, path, ".pt2", window, overlap)
    samples = trial.windows(model, size)
    deployed.probabilities(torch.from_numpy(samples.image[:1]))
    with tracing("by torch.export", deployed.name):
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(deployed, (example(deployed, size),), dynamic_shapes={INPUT: {0: batch}})
    with published(path) as (folder, files):
        archive = io.BytesIO()  # where the disk is full, torch's own writing to a file ends the process
        with tracing("by torch.export", deployed.name):
            torch.export.save(program, archive, extra_files=metadata(model, size, overlap, licence))
        (folder / path.name).write_bytes(archive.getbuffer())
        with tracing("by torch.export", deployed.name):
            loaded = torch.export.load(folder / path.name).module()

        def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.inference_mode():
                found: NDArray[np.float32] = loaded(torch.from_numpy(image)).numpy()
            return found

        agreement = compare(deployed, run, samples)
        require_equal(agreement, deployed.name)
        require_classes(agreement, "fp32", None, deployed.name)
    return Exported(tuple(files), "fp32", agreement)
