"""Prediction of big rasters: time and memory of whole processes. What overlap is worth: frontier.py.

    python benchmarks/inference.py --sides 8192 24576 [--max-memory 500MB] [--beside SCRIPT.py ...]
    python benchmarks/inference.py --model resnet50_biformer --sides 4096 [--against CHECKOUT [--rounds 3]]

Without --model, merge and I/O alone: a 1x1 convolution is the model, so what is timed is reading, blending and writing
of a SIDE x SIDE scene of 3 uint8 bands, 6 classes, windows of 512 every 384 pixels. Each run is a process of its own;
its peak memory is what the kernel counted for it, and `baseline` is that of a process which imports the same and runs
one forward pass. Each script given with --beside is called as `python SCRIPT SCENE OUT`: a prototype, or another
package. Other packages with a network: peers.py.

With --model, the command `rs-biformer predict` with that encoder and random weights, beside the same forward passes
alone: windows of 256, an overlap of 0.5, batches of 8.

With --against, the command as it is here and that of another checkout of this package, such as a git worktree of an
older commit, on the same scene and checkpoint, each by its own defaults, in turn: medians of time and of processor
time.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from rs_biformer.machine import machine_cores

CLASSES, WINDOW, STRIDE, BATCH = 6, 512, 384, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sides", type=int, nargs="+", default=[8192], help="rows and columns of the scenes (8192)")
    add("--beside", type=Path, nargs="+", default=[], help="other scripts to run on the same scenes")
    add("--folder", type=Path, default=Path("/tmp"), help="where scenes and maps go (%(default)s)")
    add("--max-memory", help="as for predict, such as 500MB")
    add("--threads", type=int, default=machine_cores(), help="of torch (all cores)")
    add("--model", metavar="ENCODER", help="time the command with this encoder and not merge and I/O alone")
    add("--against", type=Path, metavar="CHECKOUT", help="with --model: whole commands of this one, too, in turn")
    add("--rounds", type=int, default=3, help="of --against (%(default)s)")
    add("--run", choices=["baseline", "ours", "passes"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        {"baseline": run_baseline, "ours": run_ours, "passes": run_passes}[args.run](args)
    elif args.model and args.against:
        for side in args.sides:
            side_by_side(args, side)
    elif args.model:
        for side in args.sides:
            whole_command(args, side)
    else:
        for side in args.sides:
            merge_and_io(args, side)


# Merge and I/O alone.


def merge_and_io(args: argparse.Namespace, side: int) -> None:
    make_scene(scene_path(args, side))
    base = measure(itself(args, side, "baseline"))
    rows = [("baseline", *base), ("ours", *measure(itself(args, side, "ours")))]
    for script in args.beside:
        out = args.folder / f"{script.stem}_{side}.tif"
        rows.append((script.name, *measure([sys.executable, str(script), str(scene_path(args, side)), str(out)])))
    print(f"{side} x {side}, {args.threads} threads, bound {args.max_memory or 'by default'}, whole processes")
    for name, seconds, peak in rows:
        over = (peak - base[1]) / 1e6
        print(f"{name:24} {seconds:8.1f} s {peak / 1e9:7.2f} GB peak {over:+7.0f} MB over baseline", flush=True)


def itself(args: argparse.Namespace, side: int, run: str) -> list[str]:
    command = [sys.executable, __file__, "--sides", str(side), "--folder", str(args.folder), "--run", run]
    command += ["--threads", str(args.threads)]
    command += ["--max-memory", args.max_memory] if args.max_memory else []
    return command + (["--model", args.model] if args.model else [])


def measure(
    command: list[str], environment: dict[str, str] | None = None, folder: Path | None = None
) -> tuple[float, int]:
    """Seconds and peak resident bytes of a process. folder: where it runs, from which `python -m` imports first."""
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024


def scene_path(args: argparse.Namespace, side: int) -> Path:
    return args.folder / f"in_{side}.tif"


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
    partial = path.with_suffix(".partial.tif")
    with rasterio.open(
        partial, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", **layout, **place
    ) as sink:
        for top in range(0, side, 1024):
            rows = min(1024, side - top)
            coarse = rng.integers(1, 255, (3, -(-rows // 8), -(-side // 8)), dtype="uint8")
            sink.write(coarse.repeat(8, 1).repeat(8, 2)[:, :rows, :side], window=Window(0, top, side, rows))
    partial.replace(path)


def run_baseline(args: argparse.Namespace) -> None:
    import torch

    import rs_biformer.predict  # noqa: F401 - its import is what is measured

    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        torch.nn.Conv2d(3, CLASSES, 1)(torch.zeros(1, 3, WINDOW, WINDOW))


def run_ours(args: argparse.Namespace) -> None:
    import torch

    from rs_biformer.cli.predict import parse_size
    from rs_biformer.predict import predict_scene

    torch.set_num_threads(args.threads)
    started = time.perf_counter()
    predict_scene(
        torch.nn.Conv2d(3, CLASSES, 1).eval(),
        scene_path(args, args.sides[0]),
        args.folder / f"map_{args.sides[0]}.tif",
        classes=CLASSES,
        window=WINDOW,
        overlap=1 - STRIDE / WINDOW,
        batch_size=BATCH,
        device="cpu",
        max_memory=parse_size(args.max_memory) if args.max_memory else None,
        restart=True,
        on_plan=print,
    )
    print(f"ours: predict_scene alone {time.perf_counter() - started:.1f} s")


# A network: the command beside its forward passes.


def whole_command(args: argparse.Namespace, side: int) -> None:
    make_scene(scene_path(args, side))
    checkpoint = write_checkpoint(args.model, args.folder / f"bench_{args.model}.ckpt")
    passes, _ = measure(itself(args, side, "passes"))
    alone = float((args.folder / "passes.txt").read_text())
    command = [sys.executable, "-m", "rs_biformer", "predict", str(scene_path(args, side)), "--restart"]
    command += ["--checkpoint", str(checkpoint), "--out", str(args.folder / "bench_maps")]
    command += ["--window", "256", "--overlap", "0.5", "--batch-size", "8"]  # those of run_passes
    command += ["--max-memory", args.max_memory] if args.max_memory else []
    seconds, peak = measure(command)
    print(f"{args.model}, {side} x {side}: the same forward passes alone {alone:.1f} s (their process {passes:.1f} s)")
    print(f"whole command {seconds:.1f} s, {seconds / alone:.3f} times the passes, {peak / 1e9:.2f} GB peak")


def side_by_side(args: argparse.Namespace, side: int) -> None:
    """The command of this checkout and of another, by their defaults, in turn."""
    make_scene(scene_path(args, side))
    checkpoint = write_checkpoint(args.model, args.folder / f"bench_{args.model}.ckpt")
    trees = {"here": Path(__file__).resolve().parents[1], str(args.against): args.against.resolve()}
    folder = args.folder.resolve()
    command = [sys.executable, "-m", "rs_biformer", "predict", str(scene_path(args, side).resolve()), "--restart"]
    command += ["--checkpoint", str(checkpoint.resolve()), "--max-memory", args.max_memory or "2GB"]
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in trees}
    for _ in range(args.rounds):
        for number, (name, tree) in enumerate(trees.items()):
            environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(args.threads)}
            spent = os.times()
            seconds, peak = measure([*command, "--out", str(folder / f"bench_maps_{number}")], environment, tree)
            used = os.times()
            processor = used.children_user + used.children_system - spent.children_user - spent.children_system
            found[name].append((seconds, processor, peak))
            print(f"{name}: {seconds:.1f} s, {processor:.1f} s of processor time", flush=True)
    middles = {name: [median(part) for part in zip(*runs, strict=True)] for name, runs in found.items()}
    theirs = middles[str(args.against)]
    print(f"{args.model}, {side} x {side}, {args.threads} threads, whole commands, medians of {args.rounds} in turn")
    for name, (seconds, processor, peak) in middles.items():
        print(
            f"{name}: {seconds:.1f} s, {side**2 / 1e6 / seconds:.3f} Mpx/s, {theirs[0] / seconds:.2f} times as fast; "
            f"{processor:.1f} s of processor time, {theirs[1] / processor:.2f} times; {peak / 1e9:.2f} GB peak"
        )


def write_checkpoint(encoder: str, path: Path) -> Path:
    import torch

    from rs_biformer.checkpoint import META_KEY, NETWORK_PREFIX, CheckpointMeta
    from rs_biformer.schema import PRESETS

    meta = CheckpointMeta(
        encoder=encoder,
        decoder="unet_fusion",
        model_arguments={},
        schema=PRESETS["vaihingen"],
        bands=("red", "green", "blue"),
        dtype="uint8",
        mean=(128.0,) * 3,
        std=(64.0,) * 3,
        window=256,
        gsd=None,
        version="0.1.0",
    )
    torch.manual_seed(0)
    weights = {NETWORK_PREFIX + name: value for name, value in meta.create_network().state_dict().items()}
    torch.save({META_KEY: meta.to_dict(), "state_dict": weights}, path)
    return path


def run_passes(args: argparse.Namespace) -> None:
    """The forward passes of the command's plan on noise, already in memory: no reading, blending or writing."""
    import torch

    from rs_biformer.checkpoint import load_checkpoint
    from rs_biformer.predict.forward import pick_device, prepare
    from rs_biformer.predict.plan import chunks, make_plan
    from rs_biformer.predict.recipe import Recipe

    torch.set_num_threads(args.threads)
    model = load_checkpoint(args.folder / f"bench_{args.model}.ckpt")
    device, side = pick_device("auto"), args.sides[0]
    plan = make_plan(side, side, planes=CLASSES, bands=3, itemsize=1, window=256, overlap=0.5, batch_size=8)
    predict = prepare(Recipe(CLASSES), model, device).predict
    image = torch.randint(1, 255, (8, 3, 256, 256), dtype=torch.uint8, device=device)
    valid = torch.ones(8, 256, 256, dtype=torch.bool, device=device)
    sizes = [len(batch) for strip in plan.strips(0) for batch in chunks(strip.windows, plan.batch_size)]
    with torch.inference_mode():
        predict(image, valid)
        started = time.perf_counter()
        for size in sizes:
            predict(image[:size], valid[:size])
        if device.type == "cuda":
            torch.cuda.synchronize()
    (args.folder / "passes.txt").write_text(f"{time.perf_counter() - started}\n")


if __name__ == "__main__":
    main()
