"""How fast training windows are read: ours beside a plain rasterio loop, chips on disk and torchgeo.

    python benchmarks/loading.py CZECH/train [--windows 800] [--folder /tmp/loading] [--encodings jpeg deflate none]

CZECH/train holds NAME_image.tif and NAME_label.tif, colour-coded by configs/classes/czech.yaml. The scenes are also
written with DEFLATE and without compression. Every way of reading makes the same kind of items, 256 x 256 pixels with
their class indices, in one process without augmentation, and is timed from a fresh start over two rounds of WINDOWS
draws; ways are interleaved over the encodings. torchgeo takes part where it can be imported; its masks stay colours,
which spares it the decoding.

    plain        open files, a window read from image and label at a random place, colours looked up in a table
    random       ours, jittered draws from the index, 512 MiB of decoded blocks
    balanced     the same, drawn by class balance
    small cache  the same with 64 MiB, a fifth or less of what the scenes take decoded
    nearby       with 64 MiB, area by area
    in memory    data.cache: decoded before the first draw, which is not timed
    chips        the index's windows written as files, read at random
    torchgeo     RandomGeoSampler over the intersection of two RasterDatasets

    python benchmarks/loading.py CZECH/train --training ENCODER

trains 60 steps with 2 workers instead and prints the share of time that training waited for data.
"""

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.windows import Window as RasterioWindow

from rs_biformer.data.chips import write_chips
from rs_biformer.data.datamodule import TileDataModule
from rs_biformer.data.index import TileIndex
from rs_biformer.data.layouts import pattern_scenes
from rs_biformer.data.options import DataConfig
from rs_biformer.data.tiling import TileOptions, tile_scenes
from rs_biformer.schema import load_schema

ENCODINGS = {
    "jpeg": None,
    "deflate": {"compress": "deflate", "predictor": 2},
    "none": {"compress": "none"},
}
SIZE = 256
CLASSES = Path(__file__).parent.parent / "configs" / "classes" / "czech.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--windows", type=int, default=800, help="draws of a round (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/loading"), help="where copies go, kept for next time")
    parser.add_argument("--encodings", nargs="+", choices=list(ENCODINGS), default=list(ENCODINGS))
    parser.add_argument("--ways", nargs="+", help="only these ways of reading")
    parser.add_argument("--training", metavar="ENCODER", help="measure the wait for data of a training run instead")
    args = parser.parse_args()
    if args.training:
        return training(args)
    indices = {encoding: make_index(args.scenes, encoding, args.folder) for encoding in args.encodings}
    rows: dict[str, list[str]] = {}
    for encoding, index in indices.items():
        for name, way in ways(index, args).items():
            if args.ways and name not in args.ways:
                continue
            first, second = (f"{args.windows / seconds:.0f}" for seconds in rounds(way(), args.windows))
            rows.setdefault(name, []).append(f"{first} / {second}")
            print(f"{encoding:8} {name:12} {first:>6} windows/s in the first round, {second:>6} in the second")
    print("\n| windows per second, first round / second | " + " | ".join(args.encodings) + " |")
    print("|---" * (len(args.encodings) + 1) + "|")
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


def rounds(items: Iterator[object], windows: int) -> Iterator[float]:
    """Seconds of the first and of the second `windows` items."""
    for _ in range(2):
        started = time.perf_counter()
        for _ in range(windows):
            next(items)
        yield time.perf_counter() - started


def ways(index: TileIndex, args: argparse.Namespace) -> dict[str, Callable[[], Iterator[object]]]:
    found: dict[str, Callable[[], Iterator[object]]] = {
        "plain": lambda: plain(index),
        "random": lambda: ours(index, args, block_cache=512, jitter=0.5),
        "balanced": lambda: ours(index, args, block_cache=512, jitter=0.5, balance=0.5),
        "small cache": lambda: ours(index, args, block_cache=64, jitter=0.5),
        "nearby": lambda: ours(index, args, block_cache=64, jitter=0.5, nearby=True),
        "in memory": lambda: ours(index, args, cache=True, jitter=0.5),
        "chips": lambda: ours(chips(index), args, block_cache=0),
    }
    try:
        import torchgeo  # noqa: F401
    except ImportError as error:
        print(f"without torchgeo: {error}")
        return found
    return found | {"torchgeo": lambda: by_torchgeo(index, args.windows)}


def make_index(source: Path, encoding: str, folder: Path) -> TileIndex:
    """Scenes in an encoding and their tile index, made once."""
    images = sorted(source.glob("*_image.tif"))
    options = ENCODINGS[encoding]
    if options is not None:
        place = folder / encoding
        place.mkdir(parents=True, exist_ok=True)
        for path in sorted(source.glob("*_*.tif")):
            if not (place / path.name).exists():
                layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "photometric": "rgb"}
                rasterio.shutil.copy(path, place / path.name, driver="GTiff", **layout, **options)
        images = [place / path.name for path in images]
    out = folder / f"{encoding}_tiles"
    if not out.exists():
        labels = "{dir}/" + "{name}_label.tif"
        files = [replace(scene, split="train") for scene in pattern_scenes([str(path) for path in images], labels)]
        tile_scenes(files, load_schema(str(CLASSES)), out, options=TileOptions(window=SIZE, overlap=0.5))
    return TileIndex.read(out)


def plain(index: TileIndex) -> Iterator[object]:
    """What a careful user writes by hand."""
    schema, rng = index.manifest.schema, np.random.default_rng(0)
    table = np.full(2**24, 255, np.uint8)
    for number, (red, green, blue) in enumerate(schema.colours):
        table[red << 16 | green << 8 | blue] = number
    files = [(rasterio.open(scene.images[0]), rasterio.open(scene.label)) for scene in index.manifest.scenes]
    area = np.array([scene.height * scene.width for scene in index.manifest.scenes], float)
    while True:
        image, label = files[rng.choice(len(files), p=area / area.sum())]
        row, col = rng.integers(image.height - SIZE + 1), rng.integers(image.width - SIZE + 1)
        window = RasterioWindow(int(col), int(row), SIZE, SIZE)
        pixels, colours = image.read(window=window), label.read(window=window).astype(np.uint32)
        yield pixels, table[colours[0] << 16 | colours[1] << 8 | colours[2]]


def ours(index: TileIndex, args: argparse.Namespace, **options: object) -> Iterator[object]:
    data = TileDataModule(
        index,
        DataConfig(batch_size=1, workers=0, samples_per_epoch=2 * args.windows, **options),  # type: ignore[arg-type]
    )
    data.setup("fit")
    loader = data.train_dataloader()
    return (loader.dataset[draw] for draw in loader.sampler)


def chips(index: TileIndex) -> TileIndex:
    assert index.folder is not None
    return write_chips(index, index.folder, workers=2)


def by_torchgeo(index: TileIndex, windows: int) -> Iterator[object]:
    from torchgeo.datasets import RasterDataset
    from torchgeo.samplers import RandomGeoSampler

    class Images(RasterDataset):
        filename_glob = "*_image.tif"

    class Masks(RasterDataset):
        filename_glob = "*_label.tif"
        is_image = False

    folder = Path(index.manifest.scenes[0].images[0]).parent
    both = Images(str(folder)) & Masks(str(folder))
    for query in RandomGeoSampler(both, size=SIZE, length=2 * windows):
        yield both[query]


def training(args: argparse.Namespace) -> None:
    """Print the waiting share of a short run that reads JPEG scenes with 2 workers, without data.cache."""
    from rs_biformer.data.augment import Augmentation
    from rs_biformer.train.config import LossConfig, ModelConfig, TrainConfig
    from rs_biformer.train.run import train

    out = args.folder / f"run_{args.training}_{time.time():.0f}"
    augment = Augmentation(d4=True, scale=0.25, brightness=0.3, contrast=0.2, band=0.1)
    make_index(args.scenes, "jpeg", args.folder)
    train(
        TrainConfig(
            model=ModelConfig(encoder=args.training),
            data=DataConfig(
                index=str(args.folder / "jpeg_tiles"),
                workers=2,
                samples_per_epoch=240,
                balance=0.5,
                jitter=0.5,
                augment=augment,
            ),
            loss=LossConfig(terms={"cross_entropy": 1.0, "dice": 1.0}),
            trainer={"max_epochs": 2, "precision": "bf16-mixed", "limit_val_batches": 0},
            out=str(out),
            images_every=0,
        ),
        say=print,
    )
    with (out / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row.get("speed/waiting_for_data"):
                share, speed = float(row["speed/waiting_for_data"]), float(row["speed/windows_per_second"])
                print(f"epoch {row['epoch']}: {100 * share:.1f} % of the time waiting, {speed:.2f} windows/s")


if __name__ == "__main__":
    main()
