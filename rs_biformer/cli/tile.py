import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rs_biformer.cli.labels import add_label_arguments, label_options
from rs_biformer.errors import ConfigError
from rs_biformer.machine import machine_cores

if TYPE_CHECKING:
    from rs_biformer.data.layouts import SceneFiles

HELP = "cut labelled scenes into windows: a tile index with splits, class histograms and statistics, maybe chips"
EXAMPLE = """rs-biformer tile images/*.tif --labels 'labels/{stem}.tif' --classes classes.yaml \\
      --split blocks:0.7,0.15,0.15 --out tiles
  rs-biformer tile data/train data/val data/test --labels '{dir}/{name}_label.tif' --classes classes.yaml \\
      --split by-folder --out tiles
  rs-biformer tile pairs.csv --classes classes.yaml --out tiles          (columns image, label, split)
  rs-biformer tile data/vaihingen --classes vaihingen --out tiles      (the unzipped download, official split)

PATTERN: {stem} is the scene's file name without suffix, {name} that stem up to its last "_" (a for a_image.tif),
  {dir} the scene's folder and {parent} that folder's name. Quote it, so that the shell leaves it alone.
  A piece of a field is what * stands for: 'm/mask_{stem:image_*}.tif' finds m/mask_7.tif for i/image_7.tif, and
  {stem:*_image_*>*_mask_*} puts several pieces together anew.
LABELS may be rasters (colours, a palette, values, a band for each class) or polygons: GeoPackage, Shapefile,
  FlatGeobuf, GeoJSON, GeoParquet, whose attribute holds the classes of the schema.
PAIRS: a .csv or .tsv file with a header: image, label, and on request split, name and extra... for further rasters;
  paths from its folder
RULE: train=NAME,... val=NAME,... test=NAME,...  scenes by name or pattern; train=* takes the rest
  train=@train.txt val=@val.txt  the same from files, a name or path a line
  listed       the column split of PAIRS (its default)
  by-folder    the nearest folder above a scene that is called train, val or test
  official     the ids of the Vaihingen, Potsdam or LoveDA download (its default); val is drawn from train
  blocks:TRAIN,VAL,TEST  spatial blocks with these shares, a buffer apart
  train        everything into one split"""

_SHOWN_SCENES = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer tile`."""
    add = parser.add_argument
    add(
        "scenes",
        nargs="+",
        metavar="SCENE",
        help="image files, quoted globs, folders or lists; or one list of PAIRS, or one unzipped official folder",
    )
    add("--labels", metavar="PATTERN", help="where the label of a scene lies, see below; official folders know it")
    add("--area", metavar="FILE", help="polygons; what lies outside of them is ignored")
    add("--extra", nargs="+", default=[], metavar="PATTERN", help="further rasters per scene, such as a DSM, as bands")
    add(
        "--name", metavar="PATTERN", help="what scenes are called, such as {parent}_{stem} (the stem, where it will do)"
    )
    add("--classes", required=True, metavar="SCHEMA", help="vaihingen, potsdam, loveda or a YAML file")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for tiles.parquet, summary.json and chips/")
    add("--window", type=int, default=256, help="pixels on a side (256)")
    add("--overlap", type=float, default=0.5, help="share of a window common with its neighbour (0.5)")
    add("--bands", metavar="LIST", help="bands by number or name, such as 4,1,2 or nir,red,green (all but alpha)")
    add("--nodata", metavar="VALUE", help="means no data in rasters that declare nothing; one for each raster: 0,none")
    add(
        "--scale",
        choices=("auto", "apply", "ignore"),
        default="auto",
        help="scale and offset that rasters declare (auto: applied where scenes differ, numbers as they are elsewhere)",
    )
    add("--allow-dtype-mismatch", action="store_true", help="take scenes of several data types, values as they are")
    add("--split", nargs="+", default=[], metavar="RULE", help="which scenes train, validate and test, see below")
    add(
        "--allow-shared-ground",
        action="store_true",
        help="take splits whose scenes show the same ground; the index says so for good",
    )
    add("--allow-huge", action="store_true", help="take a scene of more than 1e11 pixels or 1e7 windows")
    add("--block-size", type=int, help="pixels on a side of a block, about (4 windows)")
    add("--buffer", type=int, help="least distance in pixels between windows of two splits of blocks (half a window)")
    add("--seed", type=int, default=0, help="which blocks go where (0)")
    add("--tolerance", type=int, default=0, help="largest difference per channel of near label colours (0: exact)")
    add(
        "--max-unknown",
        type=float,
        default=0.01,
        help="share of unknown label pixels at which a scene is refused (0.01)",
    )
    add("--min-valid", type=float, default=0.0, help="least share of valid labelled pixels of a window (any above 0)")
    add("--image", choices=("rgb", "irrg", "rgbir"), help="Potsdam: which orthophoto (rgb)")
    add("--eroded", action="store_true", help="Vaihingen, Potsdam: ground truth with eroded boundaries")
    height = parser.add_mutually_exclusive_group()
    height.add_argument("--with-dsm", dest="height", action="store_const", const="dsm", help="add the official DSM")
    height.add_argument("--with-ndsm", dest="height", action="store_const", const="ndsm", help="Potsdam: add the nDSM")
    add("--chips", action="store_true", help="also write every window as GeoTIFF chips of image and label")
    add("--workers", type=int, default=machine_cores(), help="processes (all cores)")
    add_label_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Find the scenes, tile them, write the chips if wanted, and show what came out."""
    from rs_biformer.cli import console
    from rs_biformer.data.chips import write_chips
    from rs_biformer.data.splits import assign_scenes, parse_blocks
    from rs_biformer.data.tiling import TileOptions, tile_scenes
    from rs_biformer.raster.paths import locate
    from rs_biformer.raster.values import parse_nodata
    from rs_biformer.schema import load_schema

    schema = load_schema(args.classes)
    bands = tuple(int(part) if part.isdigit() else part for part in args.bands.split(",")) if args.bands else None
    options = TileOptions(
        args.window,
        args.overlap,
        bands,
        args.tolerance,
        args.max_unknown,
        args.min_valid,
        nodata=parse_nodata(args.nodata) if args.nodata else (),
        scale=args.scale,
        allow_dtype_mismatch=args.allow_dtype_mismatch,
        labels=label_options(args),
        area=None if args.area is None else locate(args.area),
        allow_shared_ground=args.allow_shared_ground,
        allow_huge=args.allow_huge,
    )
    scenes, rule = _find_scenes(args)
    blocks = parse_blocks(
        rule,
        size=4 * args.window if args.block_size is None else args.block_size,
        buffer=args.window // 2 if args.buffer is None else args.buffer,
        seed=args.seed,
    )
    if blocks is None:
        scenes = assign_scenes(scenes, rule)
    with console.progress("reading", "strip") as progress:
        index, summary = tile_scenes(
            scenes, schema, args.out, options=options, blocks=blocks, workers=args.workers, progress=progress
        )
    _show(summary)
    if args.chips:
        with console.progress("writing", "chip") as progress:
            write_chips(index, args.out, workers=args.workers, progress=progress)
    chips = f", {args.out / 'chips'}" if args.chips else ""
    print(f"{args.out / 'tiles.parquet'}, {args.out / 'summary.json'}{chips}")
    print(f"next: rs-biformer train --config CONFIG --data.index {args.out / 'chips' if args.chips else args.out}")


def _find_scenes(args: argparse.Namespace) -> tuple[Sequence["SceneFiles"], list[str]]:
    """The scenes and the split rule, which an official download brings along."""
    from rs_biformer.data.layouts import OFFICIAL, official_scenes, pattern_scenes
    from rs_biformer.data.pairs import is_pair_list

    for folder in map(Path, args.scenes):
        if folder.is_dir() and args.out.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"--out {args.out} lies in the input {folder}; choose a folder outside")
    if any(is_pair_list(scene) for scene in args.scenes):
        return _paired(args)
    official = args.labels is None and args.classes in OFFICIAL and len(args.scenes) == 1
    if official:
        folder = Path(args.scenes[0])
        scenes = official_scenes(args.classes, folder, image=args.image, eroded=args.eroded, height=args.height)
        return scenes, args.split or ["official"]
    if args.image or args.eroded or args.height:
        raise ConfigError("--image, --eroded and --with-dsm are for one official folder without --labels; see --extra")
    if args.labels is None:
        raise ConfigError(
            "--labels PATTERN is missing, such as 'labels/{stem}.tif' or '{dir}/{name}_label.tif'; or give a list of "
            "pairs, a .csv file with the columns image and label"
        )
    return pattern_scenes(args.scenes, args.labels, args.extra, name=args.name), args.split


def _paired(args: argparse.Namespace) -> tuple[Sequence["SceneFiles"], list[str]]:
    """The scenes of a list of pairs, and the split rule, which the list may bring along."""
    from rs_biformer.data.pairs import paired_scenes

    if len(args.scenes) > 1 or args.labels or args.extra or args.name:
        raise ConfigError(
            f"a list of pairs ({args.scenes[0]}) names its scenes, labels and further rasters itself; give it alone, "
            "without --labels, --extra and --name"
        )
    scenes = paired_scenes(args.scenes[0])
    listed = any(scene.split for scene in scenes)
    return scenes, args.split or (["listed"] if listed else [])


def _show(summary: dict[str, Any]) -> None:
    """The summary as tables."""
    from rs_biformer.cli import console

    splits = summary["splits"]
    scenes = [
        [
            scene["name"],
            f"{scene['height']} x {scene['width']}",
            ", ".join(f"{count} {split}" for split, count in scene["windows"].items()) or "none",
            f"{scene['labelled_share']:.1%}",
            f"{scene['unknown_pixels']}",
        ]
        for scene in summary["scenes"][:_SHOWN_SCENES]
    ]
    console.table("Scenes", ["scene", "pixels", "windows", "labelled", "unknown px"], scenes)
    if len(summary["scenes"]) > _SHOWN_SCENES:
        print(f"... and {len(summary['scenes']) - _SHOWN_SCENES} more in summary.json")
    facts = [
        [split, f"{part['scenes']}", f"{part['windows']}", f"{part['labelled_pixels'] / 1e6:.2f}"]
        for split, part in splits.items()
    ]
    console.table("Splits", ["split", "scenes", "windows", "labelled Mpx"], facts)
    names = next(iter(splits.values()))["classes"]
    shares = [[name, *(f"{part['classes'][name]['share']:.2%}" for part in splits.values())] for name in names]
    console.table("Class shares", ["class", *splits], shares)
    bands = [[band["name"], f"{band['mean']:.4g}", f"{band['std']:.4g}"] for band in summary["bands"]]
    console.table(f"Bands ({summary['statistics_of']})", ["band", "mean", "std"], bands)
    for key, count in summary["dropped_windows"].items():
        print(f"dropped windows {key.replace('_', ' ')}: {count}")
    for unknown in summary["unknown"]:
        print("unknown: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in unknown.items()))
    for note in summary["notes"]:
        print(f"note: {note}")
