"""Thousands of small scenes in one call: the time of each against the sum of its parts, and a watch of the process.

    python benchmarks/many_scenes.py --scenes 10000 --side 256 --folder /tmp/many [--keep] [--profile]

Scenes of SIDE x SIDE pixels, 3 uint8 bands, are mapped by `map_scenes` with a 1x1 convolution for a network and
windows of 256, in this process. The parts are measured one after the other on the same scenes,
before the run and again after it: opening a scene and reading it whole; the network on one window; writing a class map
by `MapWriter`, from its pixels to the finished file. What the call takes beside the parts is its start-up per scene:
listing, checking, planning, telling, the fingerprint, styles. Memory, handles and threads of the process are told ten
times in the course of it; the same call with skip_existing comes last.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin

from rs_biformer.checkpoint import CheckpointMeta, TrainedModel
from rs_biformer.geometry import Window
from rs_biformer.jobs import Mapped, map_scenes
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.writer import MapWriter
from rs_biformer.schema import PRESETS

WINDOW, BATCH, SAMPLE = 256, 8, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--scenes", type=int, default=1000, help="how many (1000)")
    add("--side", type=int, default=256, help="rows and columns of each (256)")
    add("--folder", type=Path, default=Path("/tmp/many_scenes"), help="where scenes and maps go (%(default)s)")
    add("--keep", action="store_true", help="leave the folder there")
    add("--profile", action="store_true", help="also tell where the time of the call goes")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    scenes = make_scenes(args.folder / "scenes", args.scenes, args.side)
    model = tiny_model()
    try:
        before = parts(scenes, model, args.folder)
        whole = run(args, model)
        after = parts(scenes, model, args.folder)
        tell(args, before, whole, after, model)
    finally:
        if not args.keep:
            shutil.rmtree(args.folder)


def make_scenes(folder: Path, number: int, side: int) -> list[Path]:
    """Noise in cells of 8 pixels, each scene another piece of it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for index in range(number):
        path = folder / f"scene_{index:06}.tif"
        paths.append(path)
        if path.exists():
            continue
        cells = rng.integers(1, 256, (3, -(-side // 8), -(-side // 8)), dtype=np.uint8)
        pixels = cells.repeat(8, 1).repeat(8, 2)[:, :side, :side]
        place = from_origin(500_000 + index % 1000 * side / 2, 5_400_000 - index // 1000 * side / 2, 0.5, 0.5)
        with rasterio.open(
            path, "w", driver="GTiff", height=side, width=side, count=3, dtype="uint8", crs="EPSG:25832",
            transform=place, compress="deflate", photometric="rgb",
        ) as file:  # fmt: skip
            file.write(pixels)
    return paths


def tiny_model() -> TrainedModel:
    meta = CheckpointMeta(
        encoder="resnet18",
        decoder="unet_fusion",
        model_arguments={},
        schema=PRESETS["vaihingen"],
        bands=("red", "green", "blue"),
        dtype="uint8",
        mean=(120.0, 115.0, 110.0),
        std=(60.0, 55.0, 50.0),
        window=WINDOW,
        gsd=0.5,
        version="0.1.0",
    )
    torch.manual_seed(0)
    return TrainedModel(torch.nn.Conv2d(len(meta.bands), len(meta.schema), 1), meta).eval()


def parts(scenes: Sequence[Path], model: TrainedModel, folder: Path) -> dict[str, np.ndarray]:
    """Milliseconds of each part for a scene, one after the other: by the clock, and of processors."""
    sample = scenes[:SAMPLE]
    images = [read(path) for path in sample[:BATCH]]
    batch = torch.from_numpy(np.stack([image[:, :WINDOW, :WINDOW] for image in images]))
    valid = torch.ones(batch.shape[0], *batch.shape[2:], dtype=torch.bool)
    windows = max(1, -(-images[0].shape[1] // WINDOW)) ** 2
    pixels = (images[0][0] % 6).astype(np.uint8)

    def infer() -> None:
        with torch.inference_mode():
            model(batch, valid)

    infer()
    return {
        "reading": per_call(lambda number: read(sample[number]), len(sample)),
        "network": per_call(lambda _: infer(), 20) / len(batch) * windows,
        "writing": per_call(lambda number: write(folder / "parts", number, pixels, scenes[0]), len(sample)),
    }


def read(path: Path) -> np.ndarray:
    with Scene(path) as scene:
        return scene.read(Window(0, 0, scene.height, scene.width))[0]


def write(folder: Path, number: int, pixels: np.ndarray, like: Path) -> None:
    if number == 0:
        with Scene(like) as scene:
            write.place = dict(scene.georeference)
    size = dict(height=pixels.shape[0], width=pixels.shape[1])
    with MapWriter(folder / f"{number}.tif", schema=PRESETS["vaihingen"], **size, **write.place) as writer:
        writer.write(Window(0, 0, *pixels.shape), pixels)


def per_call(call: Callable[[int], object], times: int) -> np.ndarray:
    """Milliseconds of a call: by the clock, and of processors."""
    started, worked = time.perf_counter(), cpu()
    for number in range(times):
        call(number)
    return np.array([time.perf_counter() - started, cpu() - worked]) / times * 1e3


def cpu() -> float:
    return sum(os.times()[:2])


def run(args: argparse.Namespace, model: TrainedModel) -> dict[str, float]:
    """Map all scenes, with a watch; then once more with skip_existing."""
    mapped = [0]
    started = time.perf_counter()

    def watch(event: object) -> None:
        if isinstance(event, Mapped):
            mapped[0] += 1
            if mapped[0] == 1 or mapped[0] % max(1, args.scenes // 10) == 0:
                print(f"{mapped[0]:8} scenes {time.perf_counter() - started:8.1f} s  {state()}", flush=True)

    def call(**options: bool) -> float:
        began = time.perf_counter()
        map_scenes(args.folder / "scenes", model, args.folder / "maps", device="cpu", tell=watch, **options)
        return time.perf_counter() - began

    at = cpu()
    if args.profile:
        import cProfile
        import pstats

        profile = cProfile.Profile()
        seconds = profile.runcall(call)
        pstats.Stats(profile).sort_stats("cumulative").print_stats(70)
    else:
        seconds = call()
    busy = cpu() - at
    return {"seconds": seconds, "cpu": busy, "skipping": call(skip_existing=True)}


def state() -> str:
    """Resident memory, open handles and threads of this process, as the kernel counts them."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    handles, threads = (len(list(Path(f"/proc/self/{what}").iterdir())) for what in ("fd", "task"))
    return f"{pages * os.sysconf('SC_PAGE_SIZE') / 1e6:7.1f} MB resident {handles:5} handles {threads:4} threads"


def tell(args: argparse.Namespace, before: dict, whole: dict, after: dict, model: TrainedModel) -> None:
    print(f"{args.scenes} scenes of {args.side} x {args.side}, {torch.get_num_threads()} thread(s) of torch")
    per_scene = np.array([whole["seconds"], whole["cpu"]]) / args.scenes * 1e3
    for place, what in enumerate(("ms", "ms of CPU")):
        named = ", ".join(f"{name} {before[name][place]:.1f} / {after[name][place]:.1f}" for name in before)
        own = (sum(part[place] for part in before.values()) + sum(part[place] for part in after.values())) / 2
        rest = per_scene[place] - own
        print(f"{what} per scene: {per_scene[place]:.1f} in all; {named} before / after; {rest:.1f} beside these")
    print(
        f"the call {whole['seconds']:.1f} s ({whole['cpu']:.1f} s of CPU); with skip_existing "
        f"{whole['skipping']:.1f} s, {whole['skipping'] / args.scenes * 1e3:.2f} ms per scene"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
