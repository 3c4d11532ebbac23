"""Prediction of a big raster: merge and I/O alone, beside another script if one is given.

    python benchmarks/inference.py --side 8192 [--beside PATH/TO/strip_prototype.py] [--folder /tmp]

A 1x1 convolution is the model, so what is timed is reading, blending and writing: a SIDE x SIDE scene of 3 uint8 bands,
6 classes, windows of 512 every 384 pixels. Each run is a process of its own; its peak memory is what the kernel counted
for it, and `baseline` is that of a process which imports the same and runs one forward pass. A script given with
--beside is called as `python SCRIPT SIDE FOLDER`.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

CLASSES, WINDOW, STRIDE = 6, 512, 384
THREADS = os.cpu_count() or 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8192, help="rows and columns of the scene (default %(default)s)")
    parser.add_argument("--beside", type=Path, help="another script to run on the same scene")
    parser.add_argument("--folder", type=Path, default=Path("/tmp"), help="where scenes and maps go")
    parser.add_argument("--max-memory", type=int, default=2 * 1024**3, help="bytes, as for predict")
    parser.add_argument("--run", choices=["baseline", "ours"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        return {"baseline": run_baseline, "ours": run_ours}[args.run](args)
    make_scene(scene_path(args))
    itself = [sys.executable, __file__, "--side", str(args.side), "--folder", str(args.folder)]
    itself += ["--max-memory", str(args.max_memory)]
    base = measure([*itself, "--run", "baseline"])
    rows = [("baseline", *base), ("ours", *measure([*itself, "--run", "ours"]))]
    if args.beside:
        rows.append((args.beside.name, *measure([sys.executable, str(args.beside), str(args.side), str(args.folder)])))
    print(f"{args.side} x {args.side}, {THREADS} threads, whole processes")
    for name, seconds, peak in rows:
        print(f"{name:24} {seconds:8.1f} s {peak / 1e9:7.2f} GB peak {(peak - base[1]) / 1e9:+7.2f} GB over baseline")


def measure(command: list[str]) -> tuple[float, int]:
    """Seconds and peak resident bytes of a process."""
    started = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024


def scene_path(args: argparse.Namespace) -> Path:
    return args.folder / f"in_{args.side}.tif"


def make_scene(path: Path) -> None:
    """Noise in cells of 8 pixels, tiled and compressed; written once."""
    import numpy as np
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    if path.exists():
        return
    side = int(path.stem.split("_")[1])
    rng = np.random.default_rng(0)
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "zlevel": 1}
    place = {"crs": "EPSG:25832", "transform": from_origin(500_000, 5_400_000, 0.09, 0.09), "BIGTIFF": "IF_SAFER"}
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", **layout, **place
    ) as sink:
        for top in range(0, side, 1024):
            rows = min(1024, side - top)
            coarse = rng.integers(1, 255, (3, -(-rows // 8), -(-side // 8)), dtype="uint8")
            sink.write(coarse.repeat(8, 1).repeat(8, 2)[:, :rows, :side], window=Window(0, top, side, rows))


def run_baseline(args: argparse.Namespace) -> None:
    import torch

    import rs_biformer.predict  # noqa: F401 - its import is what is measured

    torch.set_num_threads(THREADS)
    with torch.inference_mode():
        torch.nn.Conv2d(3, CLASSES, 1)(torch.zeros(1, 3, WINDOW, WINDOW))


def run_ours(args: argparse.Namespace) -> None:
    import torch

    from rs_biformer.predict import predict_scene

    torch.set_num_threads(THREADS)
    started = time.perf_counter()
    predict_scene(
        torch.nn.Conv2d(3, CLASSES, 1).eval(),
        scene_path(args),
        args.folder / f"map_{args.side}.tif",
        classes=CLASSES,
        window=WINDOW,
        overlap=1 - STRIDE / WINDOW,
        batch_size=4,
        device="cpu",
        max_memory=args.max_memory,
    )
    print(f"ours: predict_scene alone {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
