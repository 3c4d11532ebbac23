"""Accuracy of networks and recipes at an equal budget: train scenes -> test scenes, from random or pretrained weights.

    python benchmarks/accuracy.py CZECH --out DIR [--steps 900] [--window 256] [--seeds 0] [--networks ...]
    python benchmarks/accuracy.py CZECH --out DIR --ablation [--network ENCODER+DECODER] [--changes NAME ...] ...
    python benchmarks/accuracy.py CZECH --out DIR --pretrained [--networks NAME ...] [--split val] ...
    python benchmarks/accuracy.py CZECH --out DIR --table [--by-seed]

CZECH holds train/, val/ and test/ with NAME_image.tif and NAME_label.tif, colour-coded by configs/classes/czech.yaml.
Every run draws STEPS batches of 8 windows of WINDOW pixels. The test scenes are mapped with windows of 256 pixels and
scored once, in one confusion matrix, with the weights of the last step. A run whose result is in DIR is not repeated,
one that was trained for the scenes of another split is only mapped, an interrupted one goes on. The table gives mean
and spread over seeds, with --by-seed each run by itself.

--pretrained compares networks on the ImageNet weights of one EfficientNet-Lite0, which the extra `pretrained` brings,
and forms of the hybrid on it. A form is chosen on the val scenes (--split val), the test scenes are for what was
chosen.

Recipes: `plain` is what most people would write (cross-entropy, AdamW, one-cycle, uniform windows, turned and
mirrored); `recommended` is configs/czech/recommended.yaml. The ablation changes one ingredient of the
latter at a time and is scored on the val scenes, because a recipe that test scenes chose could not be measured on them.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rs_biformer.checkpoint import load_checkpoint
from rs_biformer.data.augment import Augmentation
from rs_biformer.data.layouts import pattern_scenes
from rs_biformer.data.tiling import TileOptions, tile_scenes
from rs_biformer.evaluation import evaluate, metrics_to_dict
from rs_biformer.predict import predict_scene
from rs_biformer.schema import load_schema
from rs_biformer.train.config import LossConfig, ModelConfig, TrainConfig, parse
from rs_biformer.train.folder import UNFINISHED_NAME
from rs_biformer.train.run import train

CONFIGS = Path(__file__).parent.parent / "configs"
BATCH, MAPPED = 8, 256
NETWORKS = [
    "resnet50_biformer+unet_fusion",
    "resnet50_biformer2_msda2+unet_fusion",
    "resnet50_biformer_msda+unet_fusion",
    "biformer_tiny+fpn",
    "cswin_tiny+upernet",
    "coat_lite_mini+fpn",
    "resnet50+unet",
    "resnet50+upernet",
    "mit_b0+segformer",
]
LITE = "tf_efficientnet_lite0"


def of_lite(decoder: str = "unet_fusion", **arguments: object) -> ModelConfig:
    """A hybrid on the ImageNet weights of EfficientNet-Lite0; a narrow path unless the arguments say else."""
    return ModelConfig("hybrid", decoder, {"cnn": LITE, "width": 32} | arguments, weights="imagenet")


PRETRAINED = {
    "lite0+unet": ModelConfig(LITE, "unet", weights="imagenet"),
    "lite0+unet_fusion": ModelConfig(LITE, "unet_fusion", weights="imagenet"),
    "lite_hybrid+unet_fusion": ModelConfig("lite_hybrid", "unet_fusion", weights="imagenet"),
    "hybrid, fused by convolutions": of_lite(fusion="convolution"),
    "hybrid, residual": of_lite(),
    "hybrid, residual from stride 8": of_lite(attention=["none", "bra", "msda", "msda"]),
    "hybrid, residual from stride 16": of_lite(attention=["none", "none", "bra", "bra"]),
    "hybrid, layer scale": of_lite(layer_scale=1e-5),
    "hybrid, routed throughout": of_lite(attention=["bra", "bra", "bra", "bra"]),
    "hybrid, one block a stage": of_lite(depths=[1, 1, 1, 1]),
    "hybrid, 16 regions a side": of_lite(regions=16, topks=[4, 16, 64, 256]),
    "hybrid, wider": of_lite(width=64),
    "hybrid, deep supervision": of_lite(auxiliary=True),
}
"""What is compared on equal pretrained weights: name -> network."""

PATH_FASTER = {"encoder.cnn": 0.3}
"""Rates of the recipe `path faster`: the CNN that is trained already learns at less than a third of the path's."""

RECIPES = ("plain", "recommended")
ABLATION = {
    "no balanced sampling": {"data": {"balance": 0.0}},
    "no class weights": {"loss": {"balance": 0.0}},
    "no Dice": {"loss": {"terms": {"cross_entropy": 1.0}}},
    "no averaged weights": {"optimizer": {"ema": 0.0}},
    "no jitter": {"data": {"jitter": 0.0}},
    "no zoom": {"augment": {"scale": 0.0}},
    "no changes of colour": {"augment": {"brightness": 0.0, "contrast": 0.0, "band": 0.0}},
    "half the changes of colour": {"augment": {"brightness": 0.15, "contrast": 0.1, "band": 0.05}},
    "SGD": {"optimizer": {"name": "sgd", "learning_rate": 0.01}},
    "poly schedule": {"schedule": {"name": "poly", "warmup": 0.0}},
    "with focus": {"data": {"focus": 0.5}},
    "with mosaic": {"data": {"mosaic": 0.5}},
    "with Lovasz": {"loss": {"terms": {"cross_entropy": 1.0, "lovasz": 1.0}}},
    "with boundary loss": {"loss": {"terms": {"cross_entropy": 1.0, "dice": 1.0, "boundary": 0.5}}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--window", type=int, default=256, help="pixels along a side in training (default %(default)s)")
    parser.add_argument("--overlap", type=float, default=0.5, help="of the windows of maps (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--networks", nargs="+", help="ENCODER+DECODER, with --pretrained names of PRETRAINED; all")
    parser.add_argument("--recipes", nargs="+", choices=(*RECIPES, "path faster"), help="both; pretrained: recommended")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--split", choices=("val", "test"), help="scenes that are mapped (test; val for the ablation)")
    parser.add_argument("--by-seed", action="store_true", help="a row per run in the table")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--network", default=NETWORKS[0], help="of the ablation (default %(default)s)")
    parser.add_argument("--changes", nargs="+", choices=list(ABLATION), default=list(ABLATION), metavar="NAME")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--table", action="store_true", help="print what is there and stop")
    args = parser.parse_args()
    if not args.table:
        tiles = make_tiles(args.scenes, args.out / f"tiles_{args.window}", args.window)
        for seed in args.seeds:
            for network, recipe, config in planned(args, tiles):
                run(args, network, recipe, seed, config)
    print_table(args.out, args.by_seed)


def planned(args: argparse.Namespace, tiles: Path) -> Iterator[tuple[str, str, TrainConfig]]:
    recommended = parse(["--config", str(CONFIGS / "czech" / "recommended.yaml"), "--data.index", str(tiles)])
    if args.ablation:
        yield args.network, "recommended", with_network(recommended, args.network)
        for name in args.changes:
            yield args.network, name, with_network(changed(recommended, ABLATION[name]), args.network)
        return
    faster = replace(recommended, optimizer=replace(recommended.optimizer, multipliers=PATH_FASTER))
    of_recipe = {"plain": plain(recommended), "recommended": recommended, "path faster": faster}
    for network in args.networks or (PRETRAINED if args.pretrained else NETWORKS):
        for recipe in args.recipes or (["recommended"] if args.pretrained else RECIPES):
            yield network, recipe, with_network(of_recipe[recipe], network)


def with_network(config: TrainConfig, network: str) -> TrainConfig:
    encoder, _, decoder = network.partition("+")
    return replace(config, model=PRETRAINED.get(network) or ModelConfig(encoder, decoder))


def plain(recommended: TrainConfig) -> TrainConfig:
    data = replace(recommended.data, balance=0.0, jitter=0.5, augment=Augmentation(d4=True))
    return replace(recommended, data=data, loss=LossConfig(), optimizer=replace(recommended.optimizer, ema=0.0))


def changed(config: TrainConfig, changes: dict[str, dict[str, object]]) -> TrainConfig:
    for section, values in changes.items():
        if section == "augment":
            data = replace(config.data, augment=replace(config.data.augment, **values))  # type: ignore[arg-type]
            config = replace(config, data=data)
        else:
            config = replace(config, **{section: replace(getattr(config, section), **values)})
    return config


def run(args: argparse.Namespace, network: str, recipe: str, seed: int, config: TrainConfig) -> None:
    """Train, map and score; the result lies in OUT/results."""
    split = args.split or ("val" if args.ablation else "test")
    name = (
        f"{network.replace(', ', '_').replace(' ', '-')}_{recipe.replace(' ', '-')}_{args.window}px_{args.steps}_{seed}"
    )
    result = args.out / "results" / f"{name}_{split}.json"
    if result.exists():
        return
    epochs = max(1, args.steps // 100)
    trainer = config.trainer | {"max_epochs": epochs, "precision": args.precision, "limit_val_batches": 0}
    config = replace(
        config,
        data=replace(config.data, samples_per_epoch=args.steps // epochs * BATCH),
        trainer=trainer | {"num_sanity_val_steps": 0, "enable_progress_bar": False},
        out=str(args.out / "runs" / name),
        seed=seed,
        resume="auto",
        images_every=0,
    )
    print(f"--- {name}", flush=True)
    folder = Path(config.out)
    if (folder / UNFINISHED_NAME).exists() or not (folder / "last.ckpt").exists():
        train(config, say=print)
    model = load_checkpoint(folder / "last.ckpt")
    images = sorted((args.scenes / split).glob("*_image.tif"))
    labels = [path.with_name(path.name.replace("_image", "_label")) for path in images]
    maps = [
        predict_scene(
            model, path, folder / f"{path.stem}.tif", classes=model.schema, window=MAPPED, overlap=args.overlap
        )
        for path in images
    ]
    figures = metrics_to_dict(evaluate(maps, labels, model.schema))
    result.parent.mkdir(exist_ok=True)
    about = {"window": args.window, "steps": args.steps, "split": split, "network": network, "recipe": recipe}
    result.write_text(json.dumps(about | {"seed": seed, "figures": figures}, indent=1))
    print(f"{name} on {split}: mIoU {figures['mean_iou']:.4f}", flush=True)


def make_tiles(scenes: Path, out: Path, window: int) -> Path:
    if not (out / "tiles.parquet").exists():
        labels = "{dir}/" + "{name}_label.tif"
        files = [
            replace(files, split=split)
            for split in ("train", "val")
            for files in pattern_scenes([str(path) for path in sorted((scenes / split).glob("*_image.tif"))], labels)
        ]
        tile_scenes(
            files, load_schema(str(CONFIGS / "classes" / "czech.yaml")), out, options=TileOptions(window=window)
        )
    return out


def print_table(out: Path, by_seed: bool = False) -> None:
    runs: dict[tuple, list[dict]] = {}
    for path in sorted((out / "results").glob("*.json")):
        content = json.loads(path.read_text())
        what = tuple(content[key] for key in ("window", "steps", "split", "network", "recipe"))
        what = (*what, f"seed {content['seed']}") if by_seed else what
        runs.setdefault(what, []).append(content["figures"])
    classes = list(next(iter(runs.values()))[0]["per_class"]) if runs else []
    columns = ["window", "steps", "scenes", "network", "recipe", *(["seed"] if by_seed else []), "runs"]
    print("| " + " | ".join([*columns, "OA", "mIoU", "mean F1", *classes]) + " |")
    print("|---" * (len(columns) + 3 + len(classes)) + "|")
    for what, figures in runs.items():
        cells = [spread([one[key] for one in figures]) for key in ("overall_accuracy", "mean_iou", "mean_f1")]
        cells += [spread([one["per_class"][name]["iou"] for one in figures]) for name in classes]
        print("| " + " | ".join([*map(str, what), str(len(figures)), *cells]) + " |")


def spread(values: list[float | None]) -> str:
    """Mean in per cent, and the standard deviation where there are several; a class may not occur."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{100 * statistics.fmean(known):.2f}"
    return f"{mean} ± {100 * statistics.stdev(known):.2f}" if len(known) > 1 else mean


if __name__ == "__main__":
    main()
