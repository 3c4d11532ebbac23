"""How soon `rs-biformer view` shows a map of 50,000 x 50,000 pixels, and a scene of that size without overviews.

The map has overviews, as `predict` writes them; the scene, three bands of 8 bits (7.5 GB decoded), has none. Timed are
the pictures that a browser asks for first, one after another, and until the scene was read once; memory is the peak of
the command.

    python benchmarks/viewer.py
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.windows import Window

LAYOUT = {"driver": "GTiff", "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "zlevel": 1,
          "bigtiff": "yes", "crs": "EPSG:32633", "transform": from_origin(5e5, 54e5, 0.1, 0.1)}  # fmt: skip
PART = 2048


def write(path: Path, side: int, bands: int, *, overviews: bool) -> None:
    rng = np.random.default_rng(0)
    patches = np.kron(rng.integers(0, 6, (bands, PART // 64, PART // 64)), np.ones((1, 64, 64))).astype(np.uint8)
    if bands > 1:
        patches = patches * 40 + rng.integers(0, 9, patches.shape).astype(np.uint8)
    with rasterio.open(path, "w", height=side, width=side, count=bands, dtype="uint8", **LAYOUT) as sink:
        for row in range(0, side, PART):
            for col in range(0, side, PART):
                height, width = min(PART, side - row), min(PART, side - col)
                sink.write(patches[:, :height, :width], window=Window(col, row, width, height))
    if overviews:
        with rasterio.open(path, "r+") as file:
            file.update_tags(CLASS_NAMES=json.dumps([f"class {number}" for number in range(6)]))
            file.build_overviews([2**level for level in range(1, 8)], Resampling.mode)


def peak_mb(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def timed(what: str, url: str) -> bytes:
    start = time.perf_counter()
    with urlopen(url) as answer:
        body = answer.read()
    print(f"{what:44} {time.perf_counter() - start:8.3f} s")
    return body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=50_000)
    side = parser.parse_args().side
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("map.tif", "scene.tif")]
        for path, bands in zip(paths, (1, 3), strict=True):
            write(path, side, bands, overviews=bands == 1)
        start = time.perf_counter()
        command = [sys.executable, "-m", "rs_biformer", "view", *map(str, paths), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = next(line.split()[0] for line in server.stdout if line.startswith("http")).rstrip("/")
            print(f"{'from the command to the address':44} {time.perf_counter() - start:8.3f} s")
            timed("page", f"{url}/")
            facts = json.loads(timed("what there is", f"{url}/api/view"))
            far, middle = facts["levels"], side // 2 // 256
            timed("map, all of it in one picture", f"{url}/tiles/map/{far}/0/0.png")
            timed("map, at full resolution", f"{url}/tiles/map/0/{middle}/{middle}.png")
            timed("scene, at full resolution", f"{url}/tiles/scene/0/{middle}/{middle}.png")
            timed("scene, 8 x 8 pixels in one", f"{url}/tiles/scene/3/{middle // 8}/{middle // 8}.png")
            timed("scene from afar, not read yet", f"{url}/tiles/scene/{far}/0/0.png")
            start = time.perf_counter()
            while not json.loads(urlopen(f"{url}/api/state").read())["done"]:
                time.sleep(0.2)
            print(f"{'until the scene was read once':44} {time.perf_counter() - start:8.3f} s")
            timed("scene from afar", f"{url}/tiles/scene/{far}/0/0.png")
            print(f"{'peak of memory':44} {peak_mb(server.pid):8.0f} MB")
            server.terminate()


if __name__ == "__main__":
    main()
