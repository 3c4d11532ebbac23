"""Evaluation of a big pair: time beside rasterio reading the same two files and nothing else, and peak memory.

    python benchmarks/evaluation.py --side 20000 [--folder /tmp]

A SIDE x SIDE label, once as three bands of colours and once as one band of indices, and a class map of six classes
with 5 % wrong in specks, outlines curved and as fine as pixels, tiled by 512 and compressed by deflate. Each run is a
process of its own with the same GDAL settings and the same windows; its peak memory is what the kernel counted for it.
`read` decodes both files by rasterio and throws the pixels away; `full` counts them on full labels, `eroded` on labels
eroded by a disc of radius 3 and on full ones, `outlines` adds the boundary F1 at 1 and 3 pixels. Evaluation reads the
next window in a second thread while it counts, so its processor seconds may exceed the clock's. The best of --repeat
runs counts, taken in turn.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

RUNS = ("read", "full", "eroded", "outlines")
CLASSES = 6
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000, help="rows and columns of the pair (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("/tmp"), help="where the pair goes")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each kind (default %(default)s)")
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    parser.add_argument("--label", choices=("colours", "indices"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        return run(args)
    make_pair(args)
    print(f"{args.side} x {args.side}, whole processes; best of {args.repeat}")
    for label in ("colours", "indices"):
        best: dict[str, tuple[float, float, int]] = {}
        for _ in range(args.repeat):
            for kind in RUNS:
                best[kind] = min(best.get(kind, (float("inf"), 0.0, 0)), measure(args, kind, label))
        for kind, (seconds, processor, peak) in best.items():
            share = best["read"][0] / seconds
            print(
                f"label in {label:8} {kind:9} {seconds:7.2f} s ({processor:.2f} s of processor), "
                f"{args.side**2 / seconds / 1e6:.0f} Mpx/s, {share:.2f} of the speed of reading, "
                f"{peak / 1e6:.0f} MB peak"
            )


def measure(args: argparse.Namespace, kind: str, label: str) -> tuple[float, float, int]:
    """Seconds and processor seconds of the work alone, and the peak resident bytes of its process."""
    command = [sys.executable, __file__, "--side", str(args.side), "--folder", str(args.folder)]
    process = subprocess.Popen([*command, "--run", kind, "--label", label], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{kind} failed with {process.returncode}")
    seconds, processor = map(float, text.split())
    return seconds, processor, usage.ru_maxrss * 1024


def paths(args: argparse.Namespace) -> dict[str, Path]:
    return {name: args.folder / f"evaluation_{args.side}_{name}.tif" for name in ("map", "colours", "indices")}


def make_pair(args: argparse.Namespace) -> None:
    """Regions of some tens of pixels, a strip at a time; written once."""
    import numpy as np
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    from rs_biformer.schema import PRESETS

    files = paths(args)
    if all(path.exists() for path in files.values()):
        return
    colours = np.array(PRESETS["vaihingen"].colours, np.uint8)
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "BIGTIFF": "IF_SAFER"}
    profile = {"driver": "GTiff", "width": args.side, "height": args.side, "dtype": "uint8", **layout}
    profile |= {"crs": "EPSG:25832", "transform": from_origin(500_000, 5_400_000, 0.09, 0.09)}
    with (
        rasterio.open(files["map"], "w", count=1, nodata=255, **profile) as mapped,
        rasterio.open(files["colours"], "w", count=3, photometric="RGB", **profile) as coloured,
        rasterio.open(files["indices"], "w", count=1, **profile) as indexed,
    ):
        rng = np.random.default_rng(0)
        for top in range(0, args.side, 512):
            rows = min(512, args.side - top)
            area = Window(0, top, args.side, rows)
            label = smooth(rng, CLASSES, 32, rows, args.side).argmax(axis=0).astype(np.uint8)
            (speck,) = smooth(rng, 1, 6, rows, args.side)
            wrong = speck < np.quantile(speck[:, :4096], 0.05)
            mapped.write(np.where(wrong, (label + 1) % CLASSES, label).astype(np.uint8), 1, window=area)
            coloured.write(np.moveaxis(colours[label], -1, 0), window=area)
            indexed.write(label, 1, window=area)


def smooth(rng, fields: int, cell: int, rows: int, columns: int):
    """Random fields (fields, rows, columns) whose values change over `cell` pixels."""
    import numpy as np
    from scipy import ndimage

    noise = rng.random((fields, rows // cell + 3, columns // cell + 3), dtype=np.float32)
    return np.stack([ndimage.zoom(field, cell, order=1)[:rows, :columns] for field in noise])


def run(args: argparse.Namespace) -> None:
    from rs_biformer.evaluation import Protocol, evaluate
    from rs_biformer.evaluation.rasters import windows
    from rs_biformer.schema import PRESETS

    files = paths(args)
    pair = files["map"], files[args.label]
    wall, processor = time.perf_counter(), time.process_time()
    if args.run == "read":
        read(pair, windows(args.side, args.side))
    else:
        radius = 0 if args.run == "full" else 3
        boundary = (1, 3) if args.run == "outlines" else ()
        evaluate(*pair, PRESETS["vaihingen"], Protocol("bench", ignore_boundary=radius), boundary=boundary)
    print(time.perf_counter() - wall, time.process_time() - processor)


def read(pair: tuple[Path, Path], areas) -> None:
    import rasterio
    from rasterio.windows import Window

    from rs_biformer.raster.gdal import gdal_env

    with gdal_env(), rasterio.open(pair[0]) as one, rasterio.open(pair[1]) as other:
        for area in areas:
            window = Window(area.col, area.row, area.width, area.height)
            one.read(window=window)
            other.read(window=window)


if __name__ == "__main__":
    main()
