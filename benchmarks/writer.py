"""Writing a map: processor time and peak memory of MapWriter beside GDAL's own COG driver.

    python benchmarks/writer.py [--sides 8192 16384 24576] [--layer classes|probabilities] [--folder /tmp]

Strips of 384 rows of class-like pixels (or of the probabilities of six classes, uint8) are written and become a COG,
once by MapWriter and once as a tiled GeoTIFF that rasterio copies with the COG driver, both with 64 MB for GDAL's
cache. Each run is a process of its own. Seconds are processor time without that of making the pixels; peak memory is
the whole process's, two strips of pixels among it, and `import` is what it is before the first strip. MapWriter also
reads the map back.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine

from rs_biformer.geometry import Window
from rs_biformer.raster.gdal import area, gdal_env, set_cache
from rs_biformer.raster.writer import MapWriter
from rs_biformer.schema import load_schema

CACHE = 64 * 2**20
STRIP, TILE = 384, 2048
PLACE: dict[str, Any] = {"crs": "EPSG:25832", "transform": Affine(0.1, 0, 500_000, 0, -0.1, 5_400_000)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[8192, 16384, 24576], help="rows and columns")
    parser.add_argument("--layer", choices=["classes", "probabilities"], default="classes")
    parser.add_argument("--folder", type=Path, default=Path("/tmp"), help="where the maps go")
    parser.add_argument("--run", choices=list(RUNS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        return report(args)
    np.save(pixels_path(args), probabilities() if args.layer == "probabilities" else classes()[None])
    for side in args.sides:
        for run in RUNS:
            options = ["--sides", str(side), "--layer", args.layer, "--folder", str(args.folder), "--run", run]
            subprocess.run([sys.executable, __file__, *options], check=True)
    pixels_path(args).unlink()


def pixels_path(args: argparse.Namespace) -> Path:
    return args.folder / "writer_pixels.npy"


def report(args: argparse.Namespace) -> None:
    side, path = args.sides[0], args.folder / f"writer_{args.run}.tif"
    pixels = np.load(pixels_path(args))
    set_cache(CACHE)
    before, spent = peak(), 0.0

    def strips() -> Iterator[tuple[Window, np.ndarray]]:
        nonlocal spent
        for row in range(0, side, STRIP):
            started = time.process_time()
            window = Window(row, 0, min(STRIP, side - row), side)
            strip = pixels[:, np.arange(row, window.row_stop) % TILE][..., np.arange(side) % TILE]
            spent += time.process_time() - started
            yield window, strip

    started = time.process_time()
    RUNS[args.run](path, side, pixels.shape[0], strips())
    seconds = time.process_time() - started - spent
    size = path.stat().st_size
    path.unlink()
    print(
        f"{args.layer} {side:6} {args.run:12} {seconds:7.2f} s  {peak() / 1e6:6.0f} MB peak  "
        f"({before / 1e6:.0f} MB import)  file {size / 1e6:.1f} MB",
        flush=True,
    )


def with_mapwriter(path: Path, side: int, count: int, strips: Iterator[tuple[Window, np.ndarray]]) -> None:
    schema = load_schema("potsdam")
    with MapWriter(path, height=side, width=side, count=count, schema=schema, **PLACE) as sink:
        for window, strip in strips:
            sink.write(window, strip)


def with_gdal(path: Path, side: int, count: int, strips: Iterator[tuple[Window, np.ndarray]]) -> None:
    staging = path.with_suffix(".staging.tif")
    profile = {"driver": "GTiff", "height": side, "width": side, "count": count, "dtype": "uint8", "nodata": 255}
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 16, "interleave": "band", "photometric": "MINISBLACK"}
    compression = {"compress": "deflate", "zlevel": 1, "predictor": 1 if count == 1 else 2}
    with gdal_env():
        with rasterio.open(staging, "w", **profile, **PLACE, **layout, **compression) as sink:
            for window, strip in strips:
                sink.write(strip, window=area(window))
        rasterio.shutil.copy(
            staging,
            path,
            driver="COG",
            compress="deflate",
            predictor="NO" if count == 1 else "STANDARD",
            overview_resampling="MODE" if count == 1 else "AVERAGE",
            num_threads="1",
        )
    staging.unlink()


RUNS = {"MapWriter": with_mapwriter, "GDAL": with_gdal}


def peak() -> int:
    """Bytes; ru_maxrss would start with the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def fields(count: int) -> np.ndarray:
    """Smooth noise that repeats every TILE pixels, (count, TILE, TILE)."""
    frequency = np.fft.fftfreq(TILE)[:, None] ** 2 + np.fft.rfftfreq(TILE)[None] ** 2
    smooth = np.exp(-frequency * 2 * (np.pi * 30) ** 2) + 0.01 * np.exp(-frequency * 2 * (np.pi * 2) ** 2)
    noise = np.random.default_rng(0).standard_normal((count, TILE, TILE), dtype=np.float32)
    made = np.stack([np.fft.irfft2(np.fft.rfft2(one) * smooth, s=(TILE, TILE)) for one in noise])
    return (made / made.std()).astype(np.float32)


def classes() -> np.ndarray:
    return fields(6).argmax(0).astype(np.uint8)


def probabilities() -> np.ndarray:
    scores = np.exp(4 * fields(6))
    return np.rint(200 * scores / scores.sum(0)).astype(np.uint8)


if __name__ == "__main__":
    main()
