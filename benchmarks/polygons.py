"""A million polygons as the label of a scene of 30,000 x 30,000: time and memory of the whole `tile` command.

Octagons of 2.5 m radius stand in a jittered grid of 6 m; together they cover 49.1 % of the ground, which the class
shares that the command prints must show.

    python benchmarks/polygons.py
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import shapely
from pyogrio.raw import write
from rasterio.transform import Affine
from rasterio.windows import Window

CRS, LEFT, TOP, STEP, RADIUS, CLASSES = "EPSG:32633", 5e5, 54e5, 6.0, 2.5, 5


def write_polygons(path: Path, side: int) -> None:
    rng, number = np.random.default_rng(0), np.arange(side * side)
    x = LEFT + (number % side) * STEP + 3 + rng.uniform(-0.5, 0.5, len(number))
    y = TOP - (number // side) * STEP - 3 + rng.uniform(-0.5, 0.5, len(number))
    angle = np.arange(8) / 8 * 2 * np.pi
    rings = np.stack([x[:, None] + RADIUS * np.cos(angle), y[:, None] + RADIUS * np.sin(angle)], -1)
    wkb = shapely.to_wkb(shapely.polygons(rings))
    write(path, wkb, [number % CLASSES], ["class"], geometry_type="Polygon", crs=CRS)


def write_scene(path: Path, pixels: int) -> None:
    rows = np.tile((np.arange(pixels) % 200 + 20).astype(np.uint8), (512, 1))
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "lzw"}
    place = {"crs": CRS, "transform": Affine(0.2, 0, LEFT, 0, -0.2, TOP)}
    with rasterio.open(path, "w", count=1, height=pixels, width=pixels, dtype="uint8", **layout, **place) as sink:
        for row in range(0, pixels, 512):
            high = min(512, pixels - row)
            sink.write(rows[:high], 1, window=Window(0, row, pixels, high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1000, help="polygons along each side; the scene has 30 px for each")
    side = parser.parse_args().side
    with tempfile.TemporaryDirectory() as folder:
        scene, labels, classes = (Path(folder) / name for name in ("scene.tif", "labels.gpkg", "classes.yaml"))
        # In processes of their own: what this one holds when it starts the command would count as the command's memory.
        for write_input, *arguments in ((write_scene, scene, 30 * side), (write_polygons, labels, side)):
            process = multiprocessing.get_context("spawn").Process(target=write_input, args=arguments)
            process.start()
            process.join()
        named = [f"  - {{name: c{n}, colour: [{n}, 0, 9], value: {n}}}" for n in range(CLASSES)]
        ground = "  - {name: ground, colour: [9, 9, 9], value: 9}"
        classes.write_text("\n".join(["name: octagons", "classes:", *named, ground, "outside: ground", ""]))
        options = ["--labels", labels, "--label-field", "class", "--classes", classes, "--window", "512"]
        split = ["--split", "blocks:0.7,0.15,0.15", "--out", Path(folder) / "tiles"]
        command = [sys.executable, "-m", "rs_biformer", "tile", scene, *options, *split]
        started = time.perf_counter()
        running = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
        assert running.stdout is not None
        shown = running.stdout.read()
        _, status, used = os.wait4(running.pid, 0)  # of this process and its workers alone
        assert status == 0, shown
        print("\n".join(line for line in shown.splitlines() if line.strip().startswith(("class", "ground", "c"))))
        print(
            f"{side**2:,} polygons, {30 * side} x {30 * side} px: {time.perf_counter() - started:.1f} s, "
            f"{used.ru_utime + used.ru_stime:.1f} s of CPU, largest process {used.ru_maxrss / 1e6:.2f} GB"
        )


if __name__ == "__main__":
    main()
