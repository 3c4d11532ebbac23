"""Training and prediction in a loop, in one process, under a watch: what grows, and by how much.

    python benchmarks/soak.py --minutes 60 --folder /tmp/soak [--csv soak.csv] [--keep]

Each round tiles two small scenes, trains a network on them for an epoch with validation (its run folder is new), maps
both scenes with the checkpoint that came out, confidences and flips included, measures the maps, draws their polygons,
and removes what it made. After each round, when garbage is collected: resident memory, memory that Python's allocator
holds in blocks, open handles, threads, child processes, files in the temporary folder, and files beside those of the
scenes.

The first third of the rounds is a warm-up: caches fill, libraries load what they need. Over the rest a straight line is
fitted to each measure by least squares. Its slope counts as growth where it is more than three of its standard errors,
which are those of rounds in blocks of ten, as neighbouring rounds resemble each other, and comes to more than a
hundredth of the measure in that time. Handles, threads, processes and files must not grow at all: the last round has
no more than the most of the warm-up. The exit code is 1 where something grows.
"""

import argparse
import csv
import gc
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil
import rasterio
import torch
from rasterio.transform import from_origin

from rs_biformer.data.augment import Augmentation
from rs_biformer.data.tiling import TileOptions
from rs_biformer.evaluation import evaluate
from rs_biformer.jobs import create_tile_index, map_scenes
from rs_biformer.raster.vector import vectorize
from rs_biformer.schema import PRESETS
from rs_biformer.train.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from rs_biformer.train.run import train

SIDE, WINDOW, BLOCK = 128, 64, 10
COUNTED = ("handles", "threads", "children", "temporary files", "files")
MEASURED = ("resident MB", "blocks")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--minutes", type=float, default=60, help="how long (60)")
    add("--folder", type=Path, default=Path(tempfile.gettempdir(), "soak"), help="where it works (%(default)s)")
    add("--csv", type=Path, help="all rows, as they come")
    add("--keep", action="store_true", help="leave the folder there")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    temporary = args.folder.absolute() / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
    try:
        rows = watch(args.folder, temporary, args.minutes * 60, args.csv)
    finally:
        if not args.keep:
            shutil.rmtree(args.folder)
    return 1 if tell(rows) else 0


def watch(folder: Path, temporary: Path, seconds: float, table: Path | None) -> list[dict[str, float]]:
    """A row of measures after each round."""
    write_scenes(folder)
    rows: list[dict[str, float]] = []
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        round_of(folder)
        rows.append({"round": len(rows) + 1, "seconds": time.monotonic() - began, **measures(folder, temporary)})
        if table is not None:
            append(table, rows[-1], first=len(rows) == 1)
        if len(rows) == 1 or len(rows) % BLOCK == 0:
            print("  ".join(f"{name} {value:.6g}" for name, value in rows[-1].items()), flush=True)
    return rows


def write_scenes(folder: Path) -> None:
    """Two scenes of coloured cells with noise, and their labels in the colours of the classes."""
    palette = np.array(PRESETS["vaihingen"].colours, np.uint8)
    for number, name in enumerate(("a", "b")):
        rng = np.random.default_rng(number)
        classes = rng.integers(0, len(palette), (SIDE // 16, SIDE // 16)).repeat(16, 0).repeat(16, 1)
        label = np.moveaxis(palette[classes], -1, 0)
        image = np.clip(label * 0.8 + rng.normal(30, 10, label.shape), 1, 255).astype(np.uint8)
        place = from_origin(500_000 + 1000 * number, 5_400_000, 0.5, 0.5)
        for path, pixels in ((folder / f"{name}.tif", image), (folder / f"{name}_label.tif", label)):
            with rasterio.open(
                path, "w", driver="GTiff", height=SIDE, width=SIDE, count=3, dtype="uint8", crs="EPSG:25832",
                transform=place, compress="deflate", photometric="rgb",
            ) as file:  # fmt: skip
                file.write(pixels)


def round_of(folder: Path) -> None:
    work = folder / "round"
    scenes = [folder / "a.tif", folder / "b.tif"]
    create_tile_index(
        scenes, "vaihingen", work / "tiles", labels="{dir}/{stem}_label.tif", split=["train=a", "val=b"],
        options=TileOptions(window=WINDOW),
    )  # fmt: skip
    run = train(
        TrainConfig(
            model=ModelConfig(encoder="lcnet_035", decoder="unet"),
            data=DataConfig(index=str(work / "tiles"), batch_size=4, workers=0, augment=Augmentation(d4=True)),
            optimizer=OptimizerConfig(ema=0.9),
            trainer={"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
            out=str(work / "run"),
            images_every=1,
        )
    )
    report = map_scenes(
        scenes, run / "best.ckpt", work / "maps", layers=["confidence"], tta="flips", device="cpu", batch_size=4
    )
    for one, name in zip(report.mapped, ("a", "b"), strict=True):
        evaluate(one.maps["classes"], folder / f"{name}_label.tif", "vaihingen")
        vectorize(one.maps["classes"], work / f"{name}.gpkg")
    shutil.rmtree(work)


def measures(folder: Path, temporary: Path) -> dict[str, float]:
    gc.collect()
    process = psutil.Process()
    return {
        "resident MB": process.memory_info().rss / 1e6,
        "blocks": sys.getallocatedblocks(),
        "handles": process.num_fds() if os.name != "nt" else process.num_handles(),
        "threads": process.num_threads(),
        "python threads": threading.active_count(),
        "children": len(process.children(recursive=True)),
        "temporary files": sum(1 for _ in temporary.rglob("*")),
        "files": sum(1 for path in folder.rglob("*") if temporary not in path.parents and path != temporary),
    }


def append(table: Path, row: Mapping[str, float], *, first: bool) -> None:
    with table.open("w" if first else "a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if first:
            writer.writeheader()
        writer.writerow(row)


def tell(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Print each measure's line and return the names of those that grow."""
    later = rows[len(rows) // 3 :]
    hours = (later[-1]["seconds"] - later[0]["seconds"]) / 3600
    print(f"{len(rows)} rounds, the last {len(later)} in {hours * 60:.1f} minutes:")
    growing = []
    for name in MEASURED:
        values = np.array([row[name] for row in later])
        slope, error = trend(values)
        grown, doubt = slope * (len(values) - 1), error * (len(values) - 1)
        if grown > 3 * doubt and grown > 0.01 * values.mean():
            growing.append(name)
        print(f"  {name:16} {values[0]:.6g} to {values[-1]:.6g}, by the line {grown:+.4g} (standard error {doubt:.2g})")
    for name in COUNTED:
        before = max(row[name] for row in rows[: max(1, len(rows) // 3)])
        if later[-1][name] > before:
            growing.append(name)
        print(f"  {name:16} at most {before:.0f} in the first third, {later[-1][name]:.0f} at the end")
    print("grows: " + ", ".join(growing) if growing else "nothing grows")
    return growing


def trend(values: np.ndarray) -> tuple[float, float]:
    """Slope of a straight line through the means of blocks of rounds, per round, and its standard error."""
    size = BLOCK if len(values) >= 4 * BLOCK else 1
    means = values[: len(values) // size * size].reshape(-1, size).mean(1)
    x = np.arange(len(means), dtype=float) * size
    if len(means) < 3:
        return 0.0, 0.0
    slope, start = np.polyfit(x, means, 1)
    spread = np.sum((means - slope * x - start) ** 2) / (len(means) - 2)
    return float(slope), float(np.sqrt(spread / np.sum((x - x.mean()) ** 2)))


if __name__ == "__main__":
    sys.exit(main())
