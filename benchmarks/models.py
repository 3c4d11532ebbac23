"""Whole models beside smp's ResNet-50 U-Net: images per second forward and in a training step, and peak memory.

    python benchmarks/models.py [--size 512] [--batch 4] [--rounds 5] [--device cuda] [--only MODEL ...] [--no-memory]

Random images and labels of 6 classes, channels-last. A training step is forward, cross-entropy, backward and AdamW. On
the CPU in float32 and bfloat16 autocast; on a GPU in bfloat16 autocast, as it is and through torch.compile. All models
run in turn, round by round; figures are medians over the rounds, and their ratios to smp's. Memory is what a process
adds to its imports and threads (CPU) or what torch allocates (GPU), weights and optimizer included.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from statistics import median
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rs_biformer import create_model

CLASSES = 6
LITE = "tf_efficientnet_lite0"
REFERENCE = "smp Unet resnet50"
FROM_STRIDE_16: dict[str, Any] = {"cnn": LITE, "width": 32, "attention": ["none", "none", "bra", "bra"]}
MODELS: dict[str, Callable[[], nn.Module]] = {
    REFERENCE: lambda: smp.Unet("resnet50", encoder_weights=None, classes=CLASSES),
    "resnet50_biformer": lambda: create_model("resnet50_biformer", classes=CLASSES),
    "biformer_small": lambda: create_model("biformer_small", classes=CLASSES),
    "cswin_tiny": lambda: create_model("cswin_tiny", classes=CLASSES),
    "smp Unet lite0": lambda: smp.Unet(f"tu-{LITE}", encoder_weights=None, classes=CLASSES),
    "lite0 unet": lambda: create_model(LITE, "unet", classes=CLASSES),
    "lite0 unet_fusion": lambda: create_model(LITE, classes=CLASSES),
    "lite0 hybrid from stride 16": lambda: create_model("hybrid", classes=CLASSES, **FROM_STRIDE_16),
    "lite_hybrid": lambda: create_model("lite_hybrid", classes=CLASSES),
    "resnet50 hybrid, residual": lambda: create_model("hybrid", classes=CLASSES, cnn="resnet50"),
    "resnet50 hybrid from stride 16": lambda: create_model(
        "hybrid", classes=CLASSES, **FROM_STRIDE_16 | {"cnn": "resnet50", "width": 64}
    ),
    "convnext_tiny hybrid": lambda: create_model("hybrid", classes=CLASSES, cnn="convnext_tiny"),
    "vit_small_patch16": lambda: create_model("vit_small_patch16_224", classes=CLASSES),
}
"""Ours with the U-Net fusion decoder, unless the name says unet: smp's decoder, learning through our convolutions."""

WAYS = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16", "bfloat16 compiled")}
PHASES = ("forward", "train")


class Run:
    """One model and the two things that are timed."""

    def __init__(self, name: str, way: str, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.device, self.autocast = args.device, way.startswith("bfloat16")
        self.model = MODELS[name]().to(self.device, memory_format=torch.channels_last)
        if way.endswith("compiled"):
            self.model.compile()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4)
        images = torch.randn(args.batch, 3, args.size, args.size, device=self.device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(CLASSES, (args.batch, args.size, args.size), device=self.device)

    def logits(self) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            return self.model(self.images)

    def forward(self) -> None:
        self.model.eval()
        with torch.inference_mode():
            self.logits()

    def train(self) -> None:
        self.model.train()
        F.cross_entropy(self.logits().float(), self.labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self, phase: str) -> float:
        self._wait()
        started = time.perf_counter()
        getattr(self, phase)()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="rows and columns of an image (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images per step (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="times that each is run, after two to warm up")
    parser.add_argument("--device", choices=list(WAYS), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=list(MODELS), metavar="MODEL", help="these, beside the first; all")
    parser.add_argument("--ways", nargs="+", metavar="WAY", help=f"some of {WAYS}; all of the device")
    parser.add_argument("--no-memory", action="store_true", help="times alone, in a third of the time")
    parser.add_argument("--peak", nargs=3, metavar=("MODEL", "WAY", "PHASE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in list(MODELS):
        if args.only and name not in (*args.only, REFERENCE):
            del MODELS[name]
    if args.peak:
        name, way, phase = args.peak
        return None if name == "nothing" else peak_run(Run(name, way, args), phase)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, torch {torch.__version__}, batch {args.batch}, {args.size} x {args.size} px, {args.rounds} rounds")
    ways = [way for way in WAYS[args.device] if way in (args.ways or WAYS[args.device])]
    # First, while this process is small: Linux counts what a parent had at the fork as the child's peak.
    peaks = {
        way: {name: [0 if args.no_memory else peak(name, way, phase, args) for phase in PHASES] for name in MODELS}
        for way in ways
    }
    for way in ways:
        show(way, time_all(way, args), peaks[way], args)
    return None


def time_all(way: str, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Median seconds by model and phase."""
    runs = {name: Run(name, way, args) for name in MODELS}
    times: dict[str, dict[str, list[float]]] = {name: {phase: [] for phase in PHASES} for name in MODELS}
    for phase in PHASES:
        for number in range(args.rounds + 2):
            for name, run in runs.items():
                seconds = run.seconds(phase)
                if number >= 2:
                    times[name][phase].append(seconds)
    return {name: {phase: median(values) for phase, values in phases.items()} for name, phases in times.items()}


def peak_run(run: Run, phase: str) -> None:
    for _ in range(2):
        run.seconds(phase)
    if run.device == "cuda":
        print(torch.cuda.max_memory_allocated())


def peak(name: str, way: str, phase: str, args: argparse.Namespace) -> int:
    """Bytes at the peak of two runs, in a process of their own."""
    command = [sys.executable, __file__, "--device", args.device, "--size", str(args.size), "--batch", str(args.batch)]
    itself = measure((*command, "--peak", name, way, phase))
    return itself - (measure((*command, "--peak", "nothing", "", "")) if args.device == "cpu" else 0)


@cache
def measure(command: tuple[str, ...]) -> int:
    """What a process prints, or its peak resident bytes."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with {process.returncode}")
    return int(output) if output.strip() else usage.ru_maxrss * 1024


def show(way: str, seconds: dict[str, dict[str, float]], peaks: dict[str, list[int]], args: argparse.Namespace) -> None:
    print(f"\n{way:26}  forward   of smp's      GB    train   of smp's      GB   (images per second)")
    for name in MODELS:
        cells = [
            f"{args.batch / seconds[name][phase]:8.2f} {seconds[REFERENCE][phase] / seconds[name][phase]:9.2f} "
            f"{peaks[name][number] / 1e9:8.2f}"
            for number, phase in enumerate(PHASES)
        ]
        print(f"{name:26} {' '.join(cells)}")


if __name__ == "__main__":
    main()
