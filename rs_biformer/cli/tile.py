import argparse
from pathlib import Path

from rs_biformer.cli import console
from rs_biformer.cli.labels import add_label_arguments, label_options
from rs_biformer.cli.prediction import add_cluster, parse_bands
from rs_biformer.machine import machine_cores

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
    add(
        "--corrections",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="later labels, rasters or polygons: where they have a class it replaces what those before them say",
    )
    add("--area", metavar="FILE", help="polygons; what lies outside of them is ignored")
    add("--extra", nargs="+", default=[], metavar="PATTERN", help="further rasters per scene, such as a DSM, as bands")
    add(
        "--name", metavar="PATTERN", help="what scenes are called, such as {parent}_{stem} (the stem, where it will do)"
    )
    add("--classes", required=True, metavar="SCHEMA", help="vaihingen, potsdam, loveda or a YAML file")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for tiles.parquet, tiles.gpkg, chips/, ...")
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
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, default=machine_cores(), help="processes (all cores)")
    add_cluster(where)
    add_label_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Tile the scenes, write the chips if wanted, and show what came out."""
    from rs_biformer.cli import tables
    from rs_biformer.data.chips import write_chips
    from rs_biformer.data.tiling import TileOptions
    from rs_biformer.jobs import Variant, create_tile_index
    from rs_biformer.raster.paths import locate
    from rs_biformer.raster.values import parse_nodata
    from rs_biformer.shares import connected

    options = TileOptions(
        args.window,
        args.overlap,
        tuple(parse_bands(args.bands)) if args.bands else None,
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
    with connected(args.cluster) as cluster:
        with console.progress("reading", "strip") as progress:
            index, summary = create_tile_index(
                args.scenes,
                args.classes,
                args.out,
                labels=args.labels,
                corrections=args.corrections,
                extra=args.extra,
                name=args.name,
                variant=Variant(args.image, args.eroded, args.height),
                split=args.split,
                block_size=args.block_size,
                buffer=args.buffer,
                seed=args.seed,
                options=options,
                workers=args.workers,
                cluster=cluster,
                progress=progress,
            )
        tables.tiles(summary)
        if args.chips:
            with console.progress("writing", "chip") as progress:
                write_chips(index, args.out, workers=args.workers, cluster=cluster, progress=progress)
    made = ("tiles.parquet", "tiles.gpkg", "summary.json", *(["chips"] if args.chips else []))
    console.show(", ".join(str(args.out / name) for name in made if (args.out / name).exists()))
    console.show(
        f"next: rs-biformer train --config CONFIG --data.index {args.out / 'chips' if args.chips else args.out}"
    )
