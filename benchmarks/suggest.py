"""What choosing windows to label is worth: a tenth of the windows by `suggest` in rounds against a tenth at random.

    python benchmarks/suggest.py CZECH --out DIR [--seeds 0 1 2] [--steps 600] [--accelerator gpu]
    python benchmarks/suggest.py CZECH --out DIR --table

CZECH holds train/ and test/ with NAME_image.tif and NAME_label.tif, coloured by configs/classes/czech.yaml. The windows
of the train scenes, of 128 pixels and without overlap, are the pool. In the first of the rounds both ways have the same
windows, drawn at random, as there is no model yet to ask. In each further round one way adds as many at random, the
other those that `suggest` takes of the maps of its own last model, by entropy, with its default options. After each
round a U-Net on EfficientNet-Lite0 with ImageNet weights (the extra `pretrained`) is trained from these weights on what
is labelled, for the same number of steps, by configs/czech/recommended.yaml; nothing is chosen by what is measured: the
weights are those of the last step, and the test scenes are mapped and scored once, in one confusion matrix. Where
`suggest` names too few windows the rest is drawn at random, so that both ways label as many. `all` is the whole pool,
for orientation (--with-all).

What was done is not repeated: choices, models and results lie in DIR, and a training that was interrupted goes on.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rs_biformer.checkpoint import load_checkpoint
from rs_biformer.data.index import TileIndex
from rs_biformer.data.layouts import pattern_scenes
from rs_biformer.data.tiling import TileOptions, tile_scenes
from rs_biformer.evaluation import evaluate, metrics_to_dict
from rs_biformer.jobs import SuggestOptions, map_scenes, suggest_from_maps
from rs_biformer.predict import predict_scene
from rs_biformer.schema import load_schema
from rs_biformer.train.config import ModelConfig, parse
from rs_biformer.train.folder import UNFINISHED_NAME
from rs_biformer.train.run import train

CONFIGS = Path(__file__).parent.parent / "configs"
SIDE, BATCH, MAPPED = 128, 8, 256
NETWORK = ModelConfig("tf_efficientnet_lite0", "unet", weights="imagenet")
WAYS = ("random", "suggest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--share", type=float, default=0.1, help="of the pool that is labelled in the end (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=600, help="of each training (%(default)s)")
    parser.add_argument("--train", nargs="+", metavar="NAME", help="only these train scenes")
    parser.add_argument("--test", nargs="+", metavar="NAME", help="only these test scenes")
    parser.add_argument("--accelerator", default="auto", help="of the Trainer: auto, cpu, gpu (%(default)s)")
    parser.add_argument("--device", default="auto", help="of prediction: auto, cpu, cuda (%(default)s)")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--overlap", type=float, default=0.5, help="of the windows of all maps (%(default)s)")
    parser.add_argument("--with-all", action="store_true", help="train on the whole pool, too")
    parser.add_argument("--table", action="store_true", help="print what is there and stop")
    args = parser.parse_args()
    if not args.table:
        pool = make_pool(args)
        for seed in args.seeds:
            for way in WAYS:
                run_rounds(args, pool, way, seed)
            if args.with_all:
                score(args, pool, np.arange(len(pool)), "all", 1, seed)
    print_table(args.out)


def images(args: argparse.Namespace, split: str) -> list[str]:
    wanted = getattr(args, split)
    found = sorted((args.scenes / split).glob("*_image.tif"))
    return [str(path) for path in found if wanted is None or path.stem.removesuffix("_image") in wanted]


def make_pool(args: argparse.Namespace) -> TileIndex:
    """The index of all windows of the train scenes."""
    folder = args.out / "pool"
    if not (folder / "tiles.parquet").exists():
        files = pattern_scenes(images(args, "train"), "{dir}/{name}_label.tif")
        schema = load_schema(str(CONFIGS / "classes" / "czech.yaml"))
        options = TileOptions(window=SIDE, overlap=0.0)
        tile_scenes([replace(one, split="train") for one in files], schema, folder, options=options)
    return TileIndex.read(folder)


def run_rounds(args: argparse.Namespace, pool: TileIndex, way: str, seed: int) -> None:
    """Choose, train and score, round by round."""
    order = np.random.default_rng(seed).permutation(len(pool))
    each = max(1, round(args.share * len(pool) / args.rounds))
    chosen = order[:each]
    for number in range(1, args.rounds + 1):
        if number > 1:
            file = args.out / "choices" / f"{way}_{number}_{seed}.json"
            if not file.exists():
                more = order[each * (number - 1) : each * number]
                if way == "suggest":
                    more = suggested(args, pool, chosen, order, each, number, seed)
                file.parent.mkdir(exist_ok=True)
                file.write_text(json.dumps(more.tolist()))
            chosen = np.concatenate([chosen, np.array(json.loads(file.read_text()), np.int64)])
        # Both ways share the first round.
        score(args, pool, chosen, "first" if number == 1 else way, number, seed)


def suggested(
    args: argparse.Namespace,
    pool: TileIndex,
    chosen: NDArray[np.int64],
    order: NDArray[np.int64],
    count: int,
    number: int,
    seed: int,
) -> NDArray[np.int64]:
    """The windows of the pool that `suggest` takes of the maps of the last model; those that it lacks, of `order`."""
    last = folder_of(args, "first" if number == 2 else "suggest", number - 1, seed)
    maps = args.out / "maps" / f"{number}_{seed}"
    model = load_checkpoint(last / "last.ckpt")
    looks = {"window": MAPPED, "overlap": args.overlap, "device": args.device}
    map_scenes(images(args, "train"), model, maps, layers=["entropy"], skip_existing=True, **looks)
    # Windows that the pool lacks, as nobody labelled them, cost nothing: more are asked for than are taken.
    found = suggest_from_maps(
        maps,
        args.out / "maps" / f"{number}_{seed}.gpkg",
        labelled=[last / "tiles"],
        options=SuggestOptions(count=2 * count, window=SIDE),
        say=print,
    )
    names = [scene.name for scene in pool.manifest.scenes]
    table = pool.table
    place = {
        (names[scene], row, col): position
        for position, (scene, row, col) in enumerate(
            zip(table.scene.tolist(), table.row.tolist(), table.col.tolist(), strict=True)
        )
    }
    keys = zip(found["scene"].tolist(), found["row"].tolist(), found["col"].tolist(), strict=True)
    done = set(chosen.tolist())
    taken = [place[key] for key in keys if key in place and place[key] not in done][:count]
    if len(taken) < count:
        print(f"only {len(taken)} of {count} windows were suggested; the others are drawn at random")
        done |= set(taken)
        taken += [one for one in order.tolist() if one not in done][: count - len(taken)]
    return np.array(taken, np.int64)


def folder_of(args: argparse.Namespace, way: str, number: int, seed: int) -> Path:
    folder: Path = args.out / "runs" / f"{way}_{number}_{seed}"
    return folder


def score(
    args: argparse.Namespace, pool: TileIndex, chosen: NDArray[np.int64], way: str, number: int, seed: int
) -> None:
    """Train on the chosen windows, map the test scenes and measure; the result lies in OUT/results."""
    folder = folder_of(args, way, number, seed)
    result = args.out / "results" / f"{folder.name}.json"
    if result.exists():
        return
    tiles = folder / "tiles"
    if not (tiles / "tiles.parquet").exists():
        TileIndex(pool.manifest, pool.table.take(np.sort(chosen))).write(tiles)
    recommended = parse(["--config", str(CONFIGS / "czech" / "recommended.yaml"), "--data.index", str(tiles)])
    epochs = max(1, args.steps // 100)
    trainer = recommended.trainer | {"max_epochs": epochs, "precision": args.precision, "limit_val_batches": 0}
    config = replace(
        recommended,
        model=NETWORK,
        data=replace(recommended.data, samples_per_epoch=args.steps // epochs * BATCH),
        trainer=trainer
        | {"num_sanity_val_steps": 0, "enable_progress_bar": False, "accelerator": args.accelerator, "devices": 1},
        out=str(folder / "run"),
        seed=seed,
        resume="auto",
        images_every=0,
    )
    print(f"--- {folder.name}: {len(chosen)} windows", flush=True)
    run, last = Path(config.out), folder / "last.ckpt"
    if not last.exists():
        if (run / UNFINISHED_NAME).exists() or not (run / "last.ckpt").exists():
            train(config, say=print)
        last.hardlink_to(run / "last.ckpt")
    model = load_checkpoint(last)
    scenes = images(args, "test")
    labels = [path.replace("_image", "_label") for path in scenes]
    maps = [
        predict_scene(
            model,
            path,
            folder / f"{Path(path).stem}.tif",
            classes=model.schema,
            window=MAPPED,
            overlap=args.overlap,
            device=args.device,
        )
        for path in scenes
    ]
    figures = metrics_to_dict(evaluate(maps, labels, model.schema))
    about = {"way": way, "round": number, "seed": seed, "windows": len(chosen), "pool": len(pool), "steps": args.steps}
    pixels = dict(zip(pool.manifest.schema.classes, pool.table.histogram[chosen].sum(axis=0).tolist(), strict=True))
    result.parent.mkdir(exist_ok=True)
    result.write_text(json.dumps(about | {"labelled_pixels": pixels, "figures": figures}, indent=1))
    print(f"{folder.name}: mIoU {figures['mean_iou']:.4f}", flush=True)


def print_table(out: Path) -> None:
    """Mean and spread over seeds of each way and round, and the difference of the two ways of one seed."""
    found = [json.loads(path.read_text()) for path in sorted((out / "results").glob("*.json"))]
    print("| windows | of the pool | chosen | seeds | OA | mIoU | against random |")
    print("|---|---|---|---|---|---|---|")
    keys = sorted({(one["round"], one["way"]) for one in found}, key=lambda key: (key[1] == "all", *key))
    for number, way in keys:
        runs = {one["seed"]: one for one in found if (one["round"], one["way"]) == (number, way)}
        others = {one["seed"]: one for one in found if (one["round"], one["way"]) == (number, "random")}
        first = next(iter(runs.values()))
        gains = [miou(runs[seed]) - miou(others[seed]) for seed in runs if way == "suggest" and seed in others]
        cells = [
            f"{first['windows']}",
            f"{first['windows'] / first['pool']:.1%}",
            way,
            f"{len(runs)}",
            spread([one["figures"]["overall_accuracy"] for one in runs.values()]),
            spread([miou(one) for one in runs.values()]),
            spread(gains) if gains else "",
        ]
        print("| " + " | ".join(cells) + " |")


def miou(one: dict) -> float:
    return float(one["figures"]["mean_iou"])


def spread(values: list[float]) -> str:
    """Mean in per cent, and the standard deviation where there are several."""
    mean = f"{100 * statistics.fmean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
