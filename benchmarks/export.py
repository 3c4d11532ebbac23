"""Which networks export to ONNX and compute there what they compute here; what coarser precisions cost and bring.

    python benchmarks/export.py matrix [--only NAME ...] [--from FAMILY] [--window 64] [--precision fp32]
    python benchmarks/export.py speed --checkpoint best.ckpt --scene test.tif --label test_label.tif \
        --calibration train.tif [--rounds 3]

matrix: a row for each of our encoders, and for the least member of each family of smp (its class of encoder) and timm
(its module) that can be built; random weights with statistics of batch norms other than 0 and 1, and a head scaled so
that logits deviate by 3. Each is exported for any batch of one size and checked by the exporter on windows of noise,
one and three at a time. Where a family's members cannot be built the row says why. --from goes on with the rows from
that family on ("ours", "smp ResNetEncoder", "timm fastvit"), after a run that was ended.

speed: the scene mapped by the checkpoint and by its exports in fp32, fp16 and int8 with the same windows (those of
training, --quality best), in turns; seconds, and those of the CPU, are medians, of whole commands. Figures are those of
`rs-biformer evaluate` on the whole scene; "same" is the share of pixels of the class that the checkpoint gives.
"""

import argparse
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import dropwhile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import segmentation_models_pytorch as smp
import timm
import torch
from numpy.typing import NDArray

from rs_biformer.checkpoint import CheckpointMeta, TrainedModel, load_checkpoint
from rs_biformer.data.layouts import pattern_scenes
from rs_biformer.errors import RsBiformerError
from rs_biformer.evaluation import evaluate
from rs_biformer.export import Trial, export_onnx
from rs_biformer.nn.encoders.library import SMP_NAMES
from rs_biformer.nn.model import create_encoder, list_encoders
from rs_biformer.schema import IGNORE, PRESETS

OURS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((name, {}) for name in list_encoders()),
    ("hybrid", {"cnn": "convnext_atto"}),
    ("hybrid", {"cnn": "mobilenetv3_small_050"}),
    ("hybrid", {"cnn": "densenet121"}),
    ("vit_tiny_patch16_224", {"taps": "even"}),
    ("vit_small_patch14_dinov2", {}),
    ("vit_small_patch16_dinov3", {}),
)
"""Encoders of ours, hybrids beside other kinds of CNN, plain transformers as pyramids."""

WINDOWS = (224, 256, 192)
"""Tried where a network does not take the window asked for."""


def families(begin: str | None) -> Iterator[tuple[str, list[str]]]:
    """The families of smp and of timm, and their members, the least first; those before `begin` are not looked into."""
    of_smp = defaultdict(list)
    for name in SMP_NAMES:
        of_smp[smp.encoders.encoders[name]["encoder"].__name__].append(name)
    members: dict[str, Callable[[], list[str]]] = {
        f"smp {family}": lambda n=names: n for family, names in of_smp.items()
    }
    members |= {f"timm {module}": lambda found=module: by_size(found) for module in timm.list_modules()}
    for family in dropwhile(lambda family: begin not in (None, family), members):
        yield family, members[family]()


def by_size(module: str) -> list[str]:
    """The encoders of one of timm's modules, the least first."""
    sizes = []
    for name in timm.list_models(module=module):
        if name.startswith("test_"):
            continue
        with torch.device("meta"):
            try:
                network = timm.create_model(name)
            except Exception:  # what cannot be made by timm itself is no encoder
                continue
        sizes.append((sum(value.numel() for value in network.parameters()), f"tu-{name}"))
    return [name for _, name in sorted(sizes)]


def least(names: list[str]) -> tuple[str, str]:
    """The first that can be built and nothing, or nothing and why the first cannot."""
    reasons = []
    for name in names:
        try:
            create_encoder(name)
            return name, ""
        except RsBiformerError as error:
            reasons.append(str(error))
    return "", (reasons or ["no member can be made"])[0]


def random_model(name: str, arguments: dict[str, Any], window: int) -> TrainedModel:
    """A network that is no identity anywhere and sure of its classes here and there."""
    meta = CheckpointMeta(
        encoder=name,
        decoder="unet_fusion",
        model_arguments=arguments,
        schema=PRESETS["vaihingen"],
        bands=("red", "green", "blue"),
        dtype="uint8",
        mean=(120.0, 115.0, 110.0),
        std=(60.0, 55.0, 50.0),
        window=window,
    )
    torch.manual_seed(0)
    model = TrainedModel(meta.create_network(), meta)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in model.network.state_dict().items():
            if value.is_floating_point() and value.numel():
                noise = torch.randn(value.shape, generator=generator)
                share = 0.02 if value.ndim > 1 else 0.1
                value.copy_(1 + 0.2 * noise.abs() if key.endswith("running_var") else value + share * noise)
        image = 120 + 60 * torch.randn(1, 3, window, window, generator=generator)
        head: Any = model.network.head
        head.weight.mul_(3 / model(image).std())
    return model


def exported(family: str, name: str, arguments: dict[str, Any], window: int, precision: str, folder: Path) -> list[str]:
    """A row of the table."""
    began = time.monotonic()
    for size in (window, *WINDOWS):
        try:
            model = random_model(name, arguments, size)
            break
        except Exception as error:
            reason = str(error).partition("\n")[0]
            if size == WINDOWS[-1]:
                return [family, name, "", "", "not built", "", "", reason, ""]
    shown = name + "".join(f", {key} {value}" for key, value in arguments.items())
    parameters = f"{sum(value.numel() for value in model.parameters()) / 1e6:.1f}"
    try:
        file = export_onnx(model, folder / "model.onnx", precision=precision)
    except RsBiformerError as error:
        seconds = f"{time.monotonic() - began:.0f}"
        return [family, shown, parameters, str(size), "no", "", "", str(error), seconds]
    found = file.agreement
    return [
        *(family, shown, parameters, str(size), "yes", f"{max(found.largest, found.tied):.1e}"),
        f"{file.size / 1e6:.1f}",
        f"{found.ties} of the windows routed by a tie" if found.ties else "",
        f"{time.monotonic() - began:.0f}",
    ]


def matrix(args: argparse.Namespace) -> None:
    """Print a row as soon as it is known."""
    print("| family | member | M parameters | window | exports | largest difference | MB | remark | s |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for family, name, arguments in chosen(args.only, args.begin):
            row = [family, name, "", "", "not built", "", "", str(arguments), ""]
            if isinstance(arguments, dict):
                row = exported(family, name, arguments, args.window, args.precision, Path(folder))
            print("| " + " | ".join(row) + " |", flush=True)
            torch._dynamo.reset()


def chosen(only: list[str] | None, begin: str | None) -> Iterator[tuple[str, str, Any]]:
    """Family, member and arguments; for families without a member the reason instead of the arguments."""
    if only:
        yield from (("", name, {}) for name in only)
        return
    if begin in (None, "ours"):
        yield from (("ours", name, arguments) for name, arguments in OURS)
        begin = None
    for family, names in families(begin):
        name, reason = least(names)
        yield (family, name, {}) if name else (family, "", reason)


def speed(args: argparse.Namespace) -> None:
    """Map the scene by each form of the model in turns, each run a process of its own, as a user's would be."""
    model = load_checkpoint(args.checkpoint)
    trial = Trial(pattern_scenes(args.calibration, None, name=None))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        forms = {"torch": args.checkpoint}
        for precision in ("fp32", "fp16", "int8"):
            written = export_onnx(
                model, folder / f"{precision}.onnx", precision=precision, trial=trial, max_changed=1.0
            )
            forms[precision] = written.path
            print(f"{precision}: {written.size / 1e6:.1f} MB, {written.agreement}", flush=True)
        took: dict[str, list[tuple[float, float]]] = {form: [] for form in forms}
        for _ in range(args.rounds):
            for form, path in forms.items():
                took[form].append(map_by(path, args.scene, folder / form))
        maps = {form: next((folder / form).glob("*_classes.tif")) for form in forms}
        wanted = read(maps["torch"])
        print("| form | MB | s | s of CPU | same, % | mIoU | overall accuracy |\n|---|---|---|---|---|---|---|")
        for form, path in forms.items():
            whole, busy = (statistics.median(one) for one in zip(*took[form], strict=True))
            same = 100 * float((read(maps[form]) == wanted)[wanted != IGNORE].mean())
            found = evaluate(maps[form], args.label, model.schema)
            print(
                f"| {form} | {path.stat().st_size / 1e6:.1f} | {whole:.1f} | {busy:.1f} | {same:.4f} | "
                f"{100 * found.mean_iou:.2f} | {100 * found.overall_accuracy:.2f} |"
            )


def map_by(model: Path, scene: Path, out: Path) -> tuple[float, float]:
    """Seconds that `predict` takes, from the command to its end, and seconds of the CPU."""
    command = [sys.executable, "-m", "rs_biformer", "predict", str(scene), "--checkpoint", str(model)]
    options = ["--quality", "best", "--precision", "32", "--restart", "--out", str(out)]
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - began, busy


def read(path: Path) -> NDArray[np.uint8]:
    """The classes of a map (H, W)."""
    with rasterio.open(path) as source:
        classes: NDArray[np.uint8] = source.read(1)
    return classes


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("matrix")
    one.add_argument("--only", nargs="+", metavar="NAME", help="these encoders")
    one.add_argument("--from", dest="begin", metavar="FAMILY", help="go on with this family")
    one.add_argument("--window", type=int, default=64)
    one.add_argument("--precision", default="fp32", choices=("fp32", "fp16"))
    one.set_defaults(run=matrix)
    two = commands.add_parser("speed")
    two.add_argument("--checkpoint", type=Path, required=True)
    two.add_argument("--scene", type=Path, required=True)
    two.add_argument("--label", type=Path, required=True)
    two.add_argument("--calibration", nargs="+", required=True, metavar="IMAGE", help="for the scales of int8")
    two.add_argument("--rounds", type=int, default=3)
    two.set_defaults(run=speed)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    args.run(args)


if __name__ == "__main__":
    sys.exit(main())
