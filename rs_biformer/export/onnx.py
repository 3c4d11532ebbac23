"""A trained model as one ONNX file that runs without this package, in QGIS (Deepness) for instance.

Deepness runs onnxruntime 1.17 at most, which sets the versions that are written. Coarser precisions are made of the
graph in float32 by onnxruntime's own tools: float16 for weights and computation, or 8-bit integers for the inputs and
weights of convolutions and matrix products, with scales found on real windows. What turns raw values into what the
network sees, what turns logits into probabilities, and what picks the regions of routed attention stay in float32.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rs_biformer.checkpoint import TrainedModel
from rs_biformer.checkpoint.meta import require_licence
from rs_biformer.errors import ConfigError
from rs_biformer.export.check import CHANGED, Run, compare, require_classes, require_equal
from rs_biformer.export.deployed import INPUT, OUTPUT, Deployed, example, first_line, metadata, tracing
from rs_biformer.export.graph import join_casts, keep_padding, kept
from rs_biformer.export.samples import Samples, Trial
from rs_biformer.export.writing import Exported, prepared, published
from rs_biformer.predict.onnx import import_onnxruntime
from rs_biformer.raster.overwriting import refuse_overwriting

OPSET = 20
"""Operators of the newest set that onnxruntime 1.17 knows."""

IR_VERSION = 9
"""Newest form of the file that onnxruntime 1.17 opens; nothing that later forms brought is used here."""

LARGEST = 2**31 - 2**20
"""Bytes of weights beyond which they lie in a file beside the model, as Protocol Buffers end at 2 GiB."""

Precision = Literal["fp32", "fp16", "int8"]


def export_onnx(
    model: TrainedModel,
    path: str | Path,
    *,
    window: int | None = None,
    overlap: float = 0.5,
    precision: Precision = "fp32",
    trial: Trial | None = None,
    max_changed: float | None = None,
    licence: str = "",
) -> Exported:
    """Write a model as ONNX, for any batch size and windows of `window` pixels (those of training unless given).

    The file takes raw band values (B, C, S, S) as float32 and gives probabilities (B, K, S, S) as float32, whatever
    the precision inside. overlap: the share of a window that tools which read the metadata should let neighbours have
    in common. trial: the scenes whose windows calibrate int8, which needs them, and check the file. max_changed: the
    share of pixels that may get another class than the checkpoint gives, see `check.CHANGED`.
    licence: of the model, an SPDX identifier, for the file's metadata.

    The file is checked before it appears under its name: in float32 onnxruntime must give what torch gives.

    Raises ConfigError when the optional packages are missing or the network cannot be exported, RasterError for scenes
    that do not fit, CheckpointError when the exported model computes something else. Nothing is written then.
    """
    require_licence(licence)
    trial = trial or Trial()
    refuse_overwriting([model.path, *trial.files], [path])
    onnxruntime = import_onnxruntime()
    _require_onnxscript()
    if precision not in CHANGED:
        raise ConfigError(f"precision is {precision!r}; it must be one of {', '.join(CHANGED)}")
    if max_changed is not None and not 0 <= max_changed <= 1:
        raise ConfigError(f"max_changed is {max_changed}; it is a share of the pixels, from 0 to 1")
    if precision == "int8" and not trial.scenes:
        raise ConfigError("int8 finds its scales on real windows; give --scene IMAGE..., some of the training scenes")
    deployed, path, size = prepared(model, path, ".onnx", window, overlap)
    samples = trial.windows(model, size)
    deployed.probabilities(torch.from_numpy(samples.image[:1]))  # what cannot run is told before minutes of tracing
    with tracing("to ONNX", deployed.name):
        program = _trace(deployed, size)
    with published(path) as (folder, files):
        target = folder / path.name
        _save(program, target, metadata(model, size, overlap, licence))
        del program
        calibration, measured = _halves(samples) if precision == "int8" else (samples, samples)
        _coarsen(target, precision, calibration, deployed.name)
        agreement = compare(deployed, _runner(onnxruntime, target), measured, exact=precision == "fp32")
        if precision == "fp32":
            require_equal(agreement, deployed.name)
        require_classes(agreement, precision, max_changed, deployed.name)
    return Exported(tuple(files), precision, agreement)


def _require_onnxscript() -> None:
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it and says so only deep inside
    except ImportError:
        raise ConfigError("onnxscript is not installed; get it with: pip install 'rs_biformer[onnx]'") from None


def _trace(deployed: Deployed, size: int) -> Any:
    with _attention_in_parts(deployed):
        program = torch.onnx.export(
            deployed,
            (example(deployed, size),),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    program.model.ir_version = IR_VERSION
    keep_padding(program.model.graph)
    return program


@contextmanager
def _attention_in_parts(network: torch.nn.Module) -> Iterator[None]:
    """Let timm's attention be two products and a softmax, which it has as well as torch's one function.

    Torch's exporter takes that function apart all the same, but only for tensors of four axes: Hiera has five.
    """
    fused: list[Any] = [part for part in network.modules() if getattr(part, "fused_attn", False)]
    try:
        for part in fused:
            part.fused_attn = False
        yield
    finally:
        for part in fused:
            part.fused_attn = True


def _save(program: Any, target: Path, entries: dict[str, str]) -> None:
    program.model.metadata_props.update(entries)
    weights = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    program.save(target, external_data=weights > LARGEST)


def _runner(onnxruntime: Any, path: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
        (found,) = session.run(None, {INPUT: image})
        probabilities: NDArray[np.float32] = found
        return probabilities

    return run


def _halves(samples: Samples) -> tuple[Samples, Samples]:
    """Windows to find scales on, and others to measure on; the same where there is one alone."""
    return (samples[::2], samples[1::2]) if len(samples) > 1 else (samples, samples)


def _coarsen(target: Path, precision: str, calibration: Samples, name: str) -> None:
    """Exchange the file in float32 by one of another precision. Raises ConfigError where the tools cannot."""
    if precision == "fp32":
        return
    noisy = logging.getLogger()
    level = noisy.level
    noisy.setLevel(logging.CRITICAL)  # advice on preparing graphs that other exporters wrote
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about weights that float16 rounds to zero
            (_halve if precision == "fp16" else _quantise)(target, calibration)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # of several packages
        raise ConfigError(f"{name} cannot be made {precision}; nothing was written ({first_line(error)})") from error
    finally:
        noisy.setLevel(level)


def _halve(target: Path, _: Samples) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(target)
    halved = convert_float_to_float16(
        model,
        keep_io_types=True,
        node_block_list=kept(model.graph, head=False),
        disable_shape_infer=_weights(model) > LARGEST,  # which ends at 2 GiB, too
    )
    join_casts(halved.graph)
    _write(halved, target)


def _quantise(target: Path, calibration: Samples) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Windows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(calibration.image)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self.left, None)
            return None if image is None else {INPUT: image[None]}

    model = onnx.load(target)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    written = target.with_name("quantised.onnx")
    quantize_static(
        target,
        written,
        Windows(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        per_channel=True,
        reduce_range=True,  # processors without 8-bit dot products add pairs of them in 16 bits, which would overflow
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=kept(model.graph, head=True),
        use_external_data_format=_weights(model) > LARGEST,
    )
    quantised = onnx.load(written)
    onnx.helper.set_model_props(quantised, entries)
    _write(quantised, target)


def _write(model: Any, target: Path) -> None:
    """Save a model in place of another, its weights beside it where they are too many."""
    import onnx

    model.ir_version = IR_VERSION
    for old in target.parent.iterdir():
        old.unlink()
    if _weights(model) > LARGEST:
        onnx.save(model, target, save_as_external_data=True, location=f"{target.name}.data")
    else:
        onnx.save(model, target)


def _weights(model: Any) -> int:
    return sum(len(value.raw_data) for value in model.graph.initializer)
