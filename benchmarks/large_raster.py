"""One raster of growing size through tile, evaluate and vectorize: time and memory of the whole commands.

    python benchmarks/large_raster.py --sides 5000 20000 50000 [--folder /tmp/large] [--cluster dask] [--keep]

The scene has 3 uint8 bands, its label 6 classes in colours, its map the same classes with one patch in 50 wrong: one
random square of 2,048 px in patches of 32, repeated, so that it compresses well and 50,000 x 50,000 px fit on a small
disk. Each command is a process of its own; its peak memory is what the kernel counted for it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from rs_biformer.schema import PRESETS

TILE, PATCH = 2048, 32
SCHEMA = PRESETS["vaihingen"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sides", type=int, nargs="+", default=[5000, 20000], help="rows and columns (5000 20000)")
    add("--folder", type=Path, default=Path("/tmp/large_raster"), help="where all goes (%(default)s)")
    add("--cluster", help="as for the commands; without it tile has one process")
    add("--keep", action="store_true", help="leave the folder there")
    args = parser.parse_args()
    try:
        for side in args.sides:
            measure_side(args, side)
    finally:
        if not args.keep:
            shutil.rmtree(args.folder, ignore_errors=True)


def measure_side(args: argparse.Namespace, side: int) -> None:
    folder = args.folder / str(side)
    scene, label, classes = make(folder, side)
    where = ["--cluster", args.cluster] if args.cluster else []
    tile = ["tile", scene, "--labels", "{dir}/{name}_label.tif", "--classes", "vaihingen", "--split", "train=*"]
    commands = {
        "tile": [*tile, "--window", "512", "--out", folder / "tiles", *(where or ["--workers", "1"])],
        "evaluate": ["evaluate", "--prediction", classes, "--label", label, "--classes", "vaihingen"]
        + ["--out", folder / "result.json", *where],
        "vectorize": ["vectorize", classes, "--out", folder / "map.gpkg", *where],
    }
    for name, command in commands.items():
        print(f"{side:6} x {side:<6} {name:10} {measure([str(part) for part in command])}", flush=True)


def measure(command: list[str]) -> str:
    """Seconds, processor seconds and the peak of one command."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "rs_biformer", *command], stdout=-3, stderr=-3)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with {process.returncode}")
    seconds, busy = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
    return f"{seconds:8.1f} s {busy:8.1f} s of CPU {usage.ru_maxrss * 1024 / 1e9:6.2f} GB peak"


def make(folder: Path, side: int) -> tuple[Path, Path, Path]:
    """The scene, its label and its map."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    index = rng.integers(0, len(SCHEMA), (TILE // PATCH, TILE // PATCH)).astype(np.uint8)
    wrong = np.where(rng.random(index.shape) < 0.02, (index + 1) % len(SCHEMA), index).astype(np.uint8)
    index, wrong = (part.repeat(PATCH, 0).repeat(PATCH, 1) for part in (index, wrong))
    colours = np.array(SCHEMA.colours, np.uint8)[index].transpose(2, 0, 1)
    image = (index[None] * 30 + np.arange(1, 4)[:, None, None] * 10).astype(np.uint8)
    made = {"city.tif": image, "city_label.tif": colours, "city_classes.tif": wrong[None]}
    for name, pixels in made.items():
        write(folder / name, pixels, side)
    scene, label, classes = (folder / name for name in made)
    return scene, label, classes


def write(path: Path, pixels: np.ndarray, side: int) -> None:
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "zlevel": 1}
    place = {"crs": "EPSG:25832", "transform": from_origin(500_000, 5_400_000, 0.2, 0.2), "BIGTIFF": "IF_SAFER"}
    kind = {"photometric": "rgb"} if len(pixels) == 3 else {"nodata": 255}
    size = {"height": side, "width": side, "count": len(pixels), "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", **size, **layout, **place, **kind) as file:
        for row in range(0, side, TILE):
            for col in range(0, side, TILE):
                height, width = min(TILE, side - row), min(TILE, side - col)
                file.write(pixels[:, :height, :width], window=Window(col, row, width, height))


if __name__ == "__main__":
    main()
