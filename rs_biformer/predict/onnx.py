"""Models that `rs-biformer export` wrote, run by onnxruntime and numpy alone: the back end that needs no torch.

There is one such route, whether torch is installed or not: so the maps are the same bytes in both cases.

B batch, C bands, K classes, S window.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rs_biformer.documents import Listed, build, parse_json, shown
from rs_biformer.errors import CheckpointError, ConfigError
from rs_biformer.machine import wanted_threads
from rs_biformer.predict.arrays import Array, NumpyArrays
from rs_biformer.predict.recipe import Device, Recipe, Worker
from rs_biformer.predict.tta import average_views

METADATA_KEY = "rs_biformer"
"""The metadata entry of the file that holds what a checkpoint carries, as JSON."""

NAME = "onnxruntime"
"""Of this back end, see backends.py."""

_CPU, _GPU = "CPUExecutionProvider", "CUDAExecutionProvider"
_DEVICES = ("auto", "cpu", "cuda")

_threads: list[int] = []


class Standardised:
    """What a file does to raw values by itself. mean: (C,) float32, in raw units: what stands for no data."""

    def __init__(self, mean: Sequence[float]) -> None:
        self.mean = np.array(mean, np.float32)

    @property
    def bands(self) -> int:
        return len(self.mean)


class OnnxModel:
    """An exported model as a callable for `predict_scene`, of numpy arrays.

    (raw (B, C, S, S), valid (B, S, S) bool) -> probabilities (B, K, S, S) float32: the file ends in a softmax.

    path: of a file that `export.export_onnx` wrote.
    details: what the checkpoint carried, as plain values. window: the only size S that the file takes.
    normalisation: that of the file, which applies it itself.
    fingerprint: tells the file from every other, see resume.fingerprint. runtime: what runs it, and where.
    licence: as the file has it; nothing where nobody said.

    Raises ConfigError when onnxruntime is not installed, CheckpointError when the file is no such model.
    """

    backend = NAME

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = self.path = Path(path)
        if not self._path.is_file():
            raise CheckpointError(f"no model {os.fspath(path)}; `rs-biformer export` writes one")
        self._open(self._path.read_bytes())

    def _open(self, content: bytes) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised; its warnings are about the machine, not about the model
        options.intra_op_num_threads = threads()  # which `hardware` tells
        options.enable_mem_pattern = False  # it keeps a block of memory for every size of batch
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=_providers(onnxruntime))
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            if "External data" in str(error):
                raise CheckpointError(
                    f"{self._path} has its weights in another file, which is not read; predict with the checkpoint"
                ) from None
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(f"{self._path} is no ONNX model, or a damaged one ({reason})") from None
        metadata = self._session.get_modelmeta().custom_metadata_map
        if METADATA_KEY not in metadata:
            raise CheckpointError(
                f"{self._path} was not written by `rs-biformer export`: it does not say what it was trained on"
            )
        self.details = self._details(metadata[METADATA_KEY])
        self.licence: str = metadata.get("model_license", "")
        self.normalisation = Standardised(self.details["mean"])
        self.fingerprint = f"ONNX {hashlib.sha256(content).hexdigest()[:32]}"
        self._input = self._session.get_inputs()[0]
        bands, shape = self.normalisation.bands, list(self._input.shape)
        sides = [side for side in shape[2:] if type(side) is int and side > 0]
        if len(shape) != 4 or shape[1] != bands or len(sides) != 2 or sides[0] != sides[1]:
            raise CheckpointError(f"{self._path} takes {shown(shape)}, which are no square windows of {bands} bands")
        self.window: int = sides[0]

    def _details(self, text: str) -> dict[str, Any]:
        """What the file says it was trained on; what is read of it here is checked, the rest is a checkpoint's."""
        where = f"{self._path}: its metadata"
        try:
            details: dict[str, Any] = build(dict[str, Any], parse_json(text, where), where)
            mean: tuple[float, ...] = build(Listed[float], details.get("mean"), f"{where}: mean")
        except ConfigError as error:
            raise CheckpointError(str(error)) from None
        if not np.isfinite(np.array(mean, np.float32)).all():
            raise CheckpointError(f"{where}: mean {shown(mean)} must be finite")
        return details

    @property
    def runtime(self) -> str:
        return _runtime(self._session.get_providers()[0])

    def move(self, device: str) -> None:
        """To the CPU where a GPU would be taken; a session begins on the best that there is."""
        if device == "cpu" and self._session.get_providers()[0] != _CPU:
            self._session.set_providers([_CPU])

    def __getstate__(self) -> dict[str, Any]:
        """The file's bytes: another machine may not have the file, and a session cannot be pickled."""
        return {"path": self._path, "content": self._path.read_bytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._path = self.path = state["path"]
        self._open(state["content"])

    def __call__(self, raw: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        if raw.shape[-2:] != (self.window, self.window):
            raise ConfigError(
                f"the model was exported for windows of {self.window} and got {raw.shape[-1]}; "
                f"use --window {self.window}, or export it with another --window"
            )
        mean = self.normalisation.mean[:, None, None]
        filled = np.where(valid[:, None], np.asarray(raw, np.float32), mean)
        (found,) = self._session.run(None, {self._input.name: np.ascontiguousarray(filled)})
        probabilities: NDArray[np.float32] = np.asarray(found, np.float32)
        return probabilities


def software() -> str:
    """The library that decides the bytes beside ours; that of onnxruntime is told by `hardware`."""
    return f"numpy {np.__version__}"


def threads() -> int:
    """Threads that a model which is opened now works with."""
    return _threads[-1] if _threads else wanted_threads()


def use_threads(count: int) -> None:
    """Set their number."""
    _threads[:] = [count]


def pick_devices(names: Device | Sequence[Device], movable: bool = True) -> list[str]:
    """The one device that `names` means: `auto` (a GPU where onnxruntime has one), `cpu` or `cuda`.

    Raises ConfigError for any other, for several, and for `cuda` where this onnxruntime knows none.
    """
    several = [str(names)] if not isinstance(names, Sequence) or isinstance(names, str) else [str(one) for one in names]
    if len(several) != 1 or several[0] not in _DEVICES:
        raise ConfigError(f"device is {' '.join(several)}; an exported model takes one of {', '.join(_DEVICES)}")
    if several[0] == "cuda" and _GPU not in _providers(import_onnxruntime()):
        raise ConfigError("device 'cuda' cannot be used: this onnxruntime is for CPUs; try auto or cpu")
    return several


def good_at_bf16(device: str) -> bool:
    """Never: a file computes in the numbers that it was exported in."""
    return False


def hardware(device: str, threads: int, model: Any = None) -> str:
    """The kind of hardware: `cpu, several threads, onnxruntime 1.22.0 (CPUExecutionProvider)`.

    model: an OnnxModel, which knows what it runs on; else what it would run on here is told.
    """
    runtime = model.runtime if device != "cpu" and model is not None else None
    if runtime is None:
        runtime = _runtime(_CPU if device == "cpu" else _providers(import_onnxruntime())[0])
    return f"cpu, {'several threads' if threads > 1 else 'one thread'}, {runtime}"


def prepare(recipe: Recipe, model: OnnxModel, device: str, copy: bool = False) -> Worker:
    """The model on a device, ready to predict.

    Raises ConfigError for what only torch can do: other sizes than the file's, bfloat16, compiling, fusing.
    """
    chosen = recipe.views
    refused = {
        "--scales": any(view.scale != 1 for view in chosen),
        "--precision": recipe.precision == "bf16",
        "--compile": recipe.compile,
        "--passes": recipe.passes == "fused",
    }
    for option in (name for name, asked in refused.items() if asked):
        raise ConfigError(
            f"an exported model takes windows of one size and computes as it was exported; leave {option} out, or "
            "predict with the checkpoint"
        )
    model.move(device)

    def probabilities(image: Array, valid: Array) -> NDArray[np.float32]:
        found = model(image, valid)
        wanted = (image.shape[0], recipe.classes, *image.shape[-2:])
        if found.shape != wanted:
            raise ConfigError(f"the model gives {found.shape} for a batch {image.shape}; {wanted} are wanted")
        return found

    def predict(image: Array, valid: Array) -> Iterable[Array]:
        if len(chosen) == 1:
            return probabilities(image, valid)
        averaged: NDArray[np.float32] = average_views(probabilities, image, valid, chosen, recipe.disagreement)
        return averaged

    return Worker(predict, NumpyArrays())


def _runtime(provider: str) -> str:
    return f"onnxruntime {import_onnxruntime().__version__} ({provider})"


def _providers(onnxruntime: Any) -> list[str]:
    return [name for name in (_GPU, _CPU) if name in onnxruntime.get_available_providers()]


def import_onnxruntime() -> Any:
    """The module, or a ConfigError that says how to get it."""
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("onnxruntime is not installed; get it with: pip install 'rs_biformer[onnx]'") from None
    return onnxruntime
