"""bfloat16 and float16 beside float32 for every encoder, by autocast on a CPU, on windows of a real scene.

    python benchmarks/precision.py SCENE [--encoders NAME ...] [--checkpoint FILE ...]

Networks have random weights and batch norms with the statistics of four windows of 128 px, two of which are then
measured; trained ones take part as --checkpoint, on windows of their own size. "error" is the standard deviation of the
difference of the logits over that of the logits themselves; "changed" is the share of pixels that get another class.
Random weights set classes apart by little, so that theirs says more of the error than of maps.
"""

import argparse
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.windows import Window
from torch import Tensor, nn

from rs_biformer import load_checkpoint
from rs_biformer.nn.model import create_model, list_encoders


def windows(scene: Path, size: int, count: int) -> Tensor:
    """Windows (count, 3, size, size) of the raw values of the first three bands, along the diagonal."""
    with rasterio.open(scene) as file:
        steps = np.linspace(0, min(file.height, file.width) - size, count).astype(int)
        parts = [file.read([1, 2, 3], window=Window(step, step, size, size)) for step in steps]
    return torch.from_numpy(np.stack(parts).astype(np.float32))


def calibrated(name: str, x: Tensor) -> nn.Module:
    """An encoder with the default decoder, random weights, and batch norms as `x` has them."""
    torch.manual_seed(0)
    model = create_model(name, classes=6)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def told(name: str, model: nn.Module, x: Tensor) -> None:
    """One row of the table."""
    with torch.no_grad():
        whole = model(x)
        cells = []
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype):
                half = model(x).float()
            changed = (half.argmax(1) != whole.argmax(1)).float().mean()
            finite = "" if half.isfinite().all() else " not finite"
            cells += [f"{float((half - whole).std() / whole.std()):.4f}", f"{100 * float(changed):.2f} %{finite}"]
    print("|", " | ".join([name, *cells]), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--encoders", nargs="*", default=list_encoders())
    parser.add_argument("--checkpoint", nargs="*", type=Path, default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | bfloat16: error | changed | float16: error | changed |\n|---|---|---|---|---|")
    for path in args.checkpoint:
        model = load_checkpoint(path)
        told(path.name, model.eval(), windows(args.scene, model.meta.window, 8))
    x = windows(args.scene, 128, 4)
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    for name in args.encoders:
        told(name, calibrated(name, x), x[:2])


if __name__ == "__main__":
    main()
