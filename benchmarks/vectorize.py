"""Polygons from class maps of growing size, beside rasterio.features.shapes on the whole raster.

    python benchmarks/vectorize.py --sides 2048 4096 8192 16384 [--map patches|network] [--beside-up-to 8192]

The map has 6 classes in patches of some tens of pixels, with one odd pixel in 2,000 as maps of networks have them; in
`network` streets run through all of it, so that one polygon is as large as the map and no tool can let go of it before
the end. Each run is a process of its own; its peak memory is what the kernel counted for it, and `baseline` is a
process that imports the same and vectorizes 64 x 64 pixels. The other one reads the raster at once, polygonises it with
rasterio.features.shapes and writes the exact outlines with pyogrio. Both write a GeoPackage.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

TILE, CLASSES, ROWS = 2048, 6, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[2048, 4096, 8192, 16384], help="rows and columns")
    parser.add_argument("--map", choices=["patches", "network"], default="patches")
    parser.add_argument("--beside-up-to", type=int, default=8192, metavar="SIDE", help="largest map for the other one")
    parser.add_argument("--folder", type=Path, default=Path("/tmp"), help="where maps and polygons go")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        how, path, out = args.run
        return make_map(Path(path), *out.split()) if how == "map" else RUNS[how](Path(path), Path(out))
    base = report(args.folder, "ours", map_of(args.folder, "patches", 64), 0, "baseline")
    for side in args.sides:
        path = map_of(args.folder, args.map, side)
        for how in RUNS:
            if how != "shapes" or side <= args.beside_up_to:
                report(args.folder, how, path, base, f"{how} {args.map} {side}")


def report(folder: Path, how: str, path: Path, base: int, label: str) -> int:
    """Print seconds and memory of one run; its peak resident bytes."""
    out = folder / f"{path.stem}_{how}.gpkg"
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, __file__, "--run", how, str(path), str(out)])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{label} failed with {process.returncode}")
    peak = usage.ru_maxrss * 1024
    print(
        f"{label:28} {time.perf_counter() - started:8.1f} s {usage.ru_utime + usage.ru_stime:8.1f} s of CPU "
        f"{peak / 1e9:7.2f} GB peak {(peak - base) / 1e9:+7.2f} GB over baseline {out.stat().st_size / 1e6:8.1f} MB",
        flush=True,
    )
    return peak


def map_of(folder: Path, kind: str, side: int) -> Path:
    """The map, made once, by a process of its own: a child counts the memory that its parent had at the fork."""
    path = folder / f"map_{kind}_{side}.tif"
    if not path.exists():
        subprocess.run([sys.executable, __file__, "--run", "map", str(path), f"{kind} {side}"], check=True)
    return path


def make_map(path: Path, kind: str, size: str) -> None:
    """A class map from a seed, streamed."""
    import rasterio
    from rasterio.windows import Window

    side, partial = int(size), path.with_suffix(".partial")
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": side, "width": side, "nodata": 255}
    place = {"crs": "EPSG:25832", "transform": rasterio.Affine(0.2, 0, 500_000, 0, -0.2, 5_400_000)}
    with rasterio.open(partial, "w", **profile, **place, tiled=True, compress="deflate", bigtiff="if_safer") as sink:
        for row, rows in strips(kind, side):
            sink.write(rows, 1, window=Window(0, row, side, len(rows)))
    partial.replace(path)


def strips(kind: str, side: int) -> Iterator[tuple[int, object]]:
    import numpy as np
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    noise = rng.standard_normal((CLASSES, TILE, TILE), np.float32)
    tile = gaussian_filter(noise, (0, 12, 12), mode="wrap").argmax(0).astype(np.uint8)
    if kind == "network":
        y, x = np.mgrid[:TILE, :TILE]
        tile[(np.abs((x + 20 * np.sin(y * np.pi / 256)) % 256 - 128) < 5) | (y % 256 < 9)] = 0
    for row in range(0, side, ROWS):
        columns = np.arange(side) % TILE
        rows = tile[np.arange(row, min(row + ROWS, side)) % TILE][:, columns]
        odd = rng.random(rows.shape, np.float32) < 1 / 2000
        rows[odd] = rng.integers(0, CLASSES, int(odd.sum()))
        yield row, rows


def run_ours(path: Path, out: Path, **options: float) -> None:
    from rs_biformer.raster.vector import vectorize

    vectorize(path, out, **options)


def run_shapes(path: Path, out: Path) -> None:
    import pyarrow as pa
    import rasterio.features
    import shapely
    import shapely.geometry
    from pyogrio.raw import write_arrow

    with rasterio.open(path) as file:
        values, mask, transform, crs = file.read(1), file.read_masks(1), file.transform, file.crs
    found = list(rasterio.features.shapes(values, mask=mask, connectivity=4, transform=transform))
    outlines = shapely.to_wkb([shapely.geometry.shape(shape) for shape, _ in found])
    columns = {"class_index": pa.array([int(value) for _, value in found]), "geometry": pa.array(outlines)}
    geometry = pa.field("geometry", pa.binary(), metadata={"ARROW:extension:name": "geoarrow.wkb"})
    table = pa.table(columns, schema=pa.schema([pa.field("class_index", pa.int64()), geometry]))
    write_arrow(
        table, out, driver="GPKG", geometry_name="geometry", geometry_type="Polygon", crs=crs.to_wkt(), layer="polygons"
    )


RUNS = {
    "ours": lambda path, out: run_ours(path, out),
    "exact": lambda path, out: run_ours(path, out, simplify=0),
    "sieved": lambda path, out: run_ours(path, out, min_area=2),
    "shapes": run_shapes,
}

if __name__ == "__main__":
    main()
