"""Models that `rs-biformer export` wrote, run by onnxruntime: no torch model is built and no checkpoint needed."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rs_biformer.documents import Listed, build, parse_json, shown
from rs_biformer.errors import CheckpointError, ConfigError
from rs_biformer.nn.normalise import Normalisation

METADATA_KEY = "rs_biformer"
"""The metadata entry of the file that holds what a checkpoint carries, as JSON."""


class OnnxModel:
    """An exported model as a callable for `predict_scene`: (raw (B, C, S, S), valid (B, S, S)) -> logits (B, K, S, S).

    path: of a file that `export.export_onnx` wrote.
    details: what the checkpoint carried, as plain values. window: the only size S that the file takes.
    normalisation: that of the file, which applies it itself; here it tells what to put where nothing is valid.
    fingerprint: tells the file from every other, see resume.fingerprint. runtime: what runs it, and where.

    Raises ConfigError when onnxruntime is not installed, CheckpointError when the file is no such model.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        if not self._path.is_file():
            raise CheckpointError(f"no model {os.fspath(path)}; `rs-biformer export` writes one")
        self._open(self._path.read_bytes())

    def _open(self, content: bytes) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; its warnings are about the machine, not about the model
        options.intra_op_num_threads = torch.get_num_threads()  # which `resume.hardware` tells
        providers = _providers(onnxruntime)
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=providers)
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(f"{self._path} is no ONNX model, or a damaged one ({reason})") from None
        metadata = self._session.get_modelmeta().custom_metadata_map
        if METADATA_KEY not in metadata:
            raise CheckpointError(
                f"{self._path} was not written by `rs-biformer export`: it does not say what it was trained on"
            )
        self.details = self._details(metadata[METADATA_KEY])
        self.normalisation = Normalisation(self.details["mean"], self.details["std"])
        self.fingerprint = f"ONNX {hashlib.sha256(content).hexdigest()[:32]}"
        self.runtime = _runtime(onnxruntime, self._session.get_providers()[0])
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
            for name in ("mean", "std"):
                build(Listed[float], details.get(name), f"{where}: {name}")
            Normalisation(details["mean"], details["std"])
        except ConfigError as error:
            raise CheckpointError(str(error)) from None
        return details

    def __getstate__(self) -> dict[str, Any]:
        """The file's bytes: another machine may not have the file, and a session cannot be pickled."""
        return {"path": self._path, "content": self._path.read_bytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._path = state["path"]
        self._open(state["content"])

    def __call__(self, raw: Tensor, valid: Tensor) -> Tensor:
        if tuple(raw.shape[-2:]) != (self.window, self.window):
            raise ConfigError(
                f"the model was exported for windows of {self.window} and got {raw.shape[-1]}; "
                f"use --window {self.window}, or export it with another --window"
            )
        mean = self.normalisation.mean[:, None, None]
        filled = torch.where(valid[:, None].cpu(), raw.cpu().to(torch.float32), mean)
        (probabilities,) = self._session.run(None, {self._input.name: filled.contiguous().numpy()})
        # The file ends in a softmax; that of the engine undoes the logarithm.
        return torch.from_numpy(probabilities).log().to(raw.device)


def runtime_of(model: Any) -> str:
    """What runs a model, where that is not torch: `onnxruntime 1.22.0 (CPUExecutionProvider)`; else nothing."""
    return str(getattr(model, "runtime", ""))


def onnx_runtime() -> str:
    """The `runtime` of a model that is opened here. Raises ConfigError when onnxruntime is not installed."""
    onnxruntime = import_onnxruntime()
    return _runtime(onnxruntime, _providers(onnxruntime)[0])


def _runtime(onnxruntime: Any, provider: str) -> str:
    return f"onnxruntime {onnxruntime.__version__} ({provider})"


def _providers(onnxruntime: Any) -> list[str]:
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    return [name for name in wanted if name in onnxruntime.get_available_providers()]


def import_onnxruntime() -> Any:
    """The module, or a ConfigError that says how to get it."""
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("onnxruntime is not installed; get it with: pip install 'rs_biformer[onnx]'") from None
    return onnxruntime
