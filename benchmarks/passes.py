"""Forward passes of networks on a CPU, by what may make them faster: throughput at equal windows, and what changes.

    nice -n -10 python benchmarks/passes.py [--networks NAME ...] [--ways NAME ...] [--window 256] [--batch 8]

Networks with random weights on noise. Mpx/s are those of processor time (user and system) of the
passes alone, the best of --rounds after two that warm up, every window with its softmax, as prediction takes it. "same"
is the share of pixels with the class that float32 by torch gives. For int8, scales are found on windows of the kind
that is then measured.

openvino is optional: a way whose library is not there is left out. The ways are those of WAYS.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rs_biformer.checkpoint import CheckpointMeta, TrainedModel
from rs_biformer.predict.folding import folded
from rs_biformer.predict.fusing import fused
from rs_biformer.schema import PRESETS

Run = Callable[[NDArray[Any], NDArray[np.bool_]], NDArray[np.float32]]
"""(raw (B, C, S, S), valid (B, S, S) bool) -> probabilities (B, K, S, S)."""

NETWORKS = {
    "unet_resnet18": ("resnet18", "unet"),
    "hybrid_resnet50": ("resnet50_biformer", "unet_fusion"),
    "biformer_small_fpn": ("biformer_small", "fpn"),
    "unet_lite0": ("tf_efficientnet_lite0", "unet"),
}


def network(name: str, window: int) -> TrainedModel:
    """One of NETWORKS with random weights, its batch norms with statistics other than 0 and 1."""
    encoder, decoder = NETWORKS[name]
    meta = CheckpointMeta(
        encoder=encoder,
        decoder=decoder,
        model_arguments={},
        schema=PRESETS["vaihingen"],
        bands=("red", "green", "blue"),
        dtype="uint8",
        mean=(128.0,) * 3,
        std=(64.0,) * 3,
        window=window,
        gsd=None,
        version="0",
    )
    torch.manual_seed(0)
    model = TrainedModel(meta.create_network(), meta).eval()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
    return model


def by_torch(
    model: TrainedModel,
    *,
    last: bool = True,
    fold: bool = False,
    fuse: bool = False,
    bf16: bool = False,
    how: str = "",
) -> Run:
    """A run by torch. last: channels last. fuse: as prediction does. how: of torch.compile, `default` or `freezing`."""
    layout = torch.channels_last if last else torch.contiguous_format
    model = model.to(memory_format=layout)
    used = folded(model) if fold or fuse else model
    used = fused(used, torch.bfloat16 if bf16 else torch.float32) if fuse else used
    if how:
        import torch._inductor.config as inductor

        inductor.freezing = how == "freezing"
        torch._dynamo.reset()
        used = torch.compile(used)

    def run(raw: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        with torch.no_grad() if how else torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            image = torch.from_numpy(raw).contiguous(memory_format=layout)
            found = used(image, torch.from_numpy(valid))
        return np.stack([one.float().contiguous().softmax(0).numpy() for one in found])

    return run


def by_onnxruntime(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda raw, valid: session.run(None, {name: raw.astype(np.float32)})[0]


def by_openvino(path: Path, precision: str) -> Run:
    import openvino

    compiled = openvino.Core().compile_model(
        path, "CPU", {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    )
    request = compiled.create_infer_request()
    return lambda raw, valid: np.array(next(iter(request.infer([raw.astype(np.float32)]).values())))


class Exports:
    """The ONNX files of a model, made when they are first asked for."""

    def __init__(self, model: TrainedModel, window: int, folder: Path, samples: NDArray[Any]) -> None:
        self._model, self._window, self._folder, self._samples = model, window, folder, samples

    def __call__(self, precision: str) -> Path:
        from rs_biformer.export.deployed import Deployed
        from rs_biformer.export.onnx import _quantise, _save, _trace
        from rs_biformer.export.samples import Samples

        path, plain = (self._folder / name / "model.onnx" for name in (precision, "fp32"))
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not plain.exists():
            plain.parent.mkdir(exist_ok=True)
            _save(_trace(Deployed(self._model.to(memory_format=torch.contiguous_format)), self._window), plain, {})
        if precision == "int8":
            path.write_bytes(plain.read_bytes())
            valid = np.ones((len(self._samples), *self._samples.shape[2:]), bool)
            _quantise(path, Samples(self._samples.astype(np.float32), valid, None, "windows"))
        return path


WAYS: dict[str, Callable[[TrainedModel, Exports], Run]] = {
    "fp32": lambda model, _: by_torch(model, last=False),
    "fp32, channels last": lambda model, _: by_torch(model),
    "fp32, folded": lambda model, _: by_torch(model, fold=True),
    "bf16": lambda model, _: by_torch(model, last=False, bf16=True),
    "bf16, channels last": lambda model, _: by_torch(model, bf16=True),
    "bf16, folded": lambda model, _: by_torch(model, fold=True, bf16=True),
    "fp32, fused": lambda model, _: by_torch(model, fuse=True),
    "bf16, fused": lambda model, _: by_torch(model, fuse=True, bf16=True),
    "fp32, compile": lambda model, _: by_torch(model, fold=True, how="default"),
    "bf16, compile": lambda model, _: by_torch(model, fold=True, bf16=True, how="default"),
    "bf16, compile, frozen": lambda model, _: by_torch(model, fold=True, bf16=True, how="freezing"),
    "onnxruntime fp32": lambda _, exports: by_onnxruntime(exports("fp32")),
    "onnxruntime int8": lambda _, exports: by_onnxruntime(exports("int8")),
    "openvino fp32": lambda _, exports: by_openvino(exports("fp32"), "f32"),
    "openvino bf16": lambda _, exports: by_openvino(exports("fp32"), "bf16"),
    "openvino int8": lambda _, exports: by_openvino(exports("int8"), "bf16"),
}


def measure(run: Run, raw: NDArray[Any], rounds: int) -> tuple[float, float]:
    """(processor seconds of the first call, the least of the later ones)."""
    valid = np.ones((len(raw), *raw.shape[2:]), bool)
    seconds = []
    for _ in range(rounds + 2):
        started = time.process_time()
        run(raw, valid)
        seconds.append(time.process_time() - started)
    return seconds[0], min(seconds[2:])


def compare(model: TrainedModel, raw: NDArray[Any], args: argparse.Namespace, title: str) -> None:
    valid = np.ones((args.batch, *raw.shape[2:]), bool)
    batch = raw[: args.batch]
    truth = WAYS["fp32"](model, None)(batch, valid).argmax(1)  # type: ignore[arg-type]
    base = None
    with tempfile.TemporaryDirectory() as folder:
        exports = Exports(model, raw.shape[-1], Path(folder), raw[-min(8, len(raw)) :])
        for name in args.ways:
            try:
                run = WAYS[name](model, exports)
                first, seconds = measure(run, batch, args.rounds)
            except Exception as error:
                print(f"| {title} | {name} | {type(error).__name__}: {' '.join(str(error).split())[:90]} |", flush=True)
                continue
            speed = batch[:, 0].size / seconds / 1e6
            base = base or speed
            same = (run(batch, valid).argmax(1) == truth).mean()
            print(f"| {title} | {name} | {speed:.3f} | {speed / base:.2f} | {first:.1f} | {same:.3%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    add("--window", type=int, default=256)
    add("--batch", type=int, default=8)
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    print(f"windows of {args.window}, batches of {args.batch}, {args.threads} threads", file=sys.stderr)
    print("| network | way | Mpx/s of CPU time | times the first | first batch, s | same |\n|---|---|---|---|---|---|")
    noise = np.random.default_rng(0).integers(1, 255, (16, 3, args.window // 8, args.window // 8), np.uint8)
    raw = noise.repeat(8, 2).repeat(8, 3)
    for name in args.networks:
        compare(network(name, args.window), raw, args, name)


if __name__ == "__main__":
    main()
