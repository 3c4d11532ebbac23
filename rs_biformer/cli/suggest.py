"""`rs-biformer suggest`: which windows to label next."""

import argparse
from pathlib import Path

from rs_biformer.cli.prediction import OPTIONS, add_compute, add_fitting, add_windows, given
from rs_biformer.errors import ConfigError

HELP = "windows to label next: uncertain, of rare classes, unlike what is labelled, apart; polygons for QGIS"
EXAMPLE = """rs-biformer predict new/*.tif --checkpoint runs/first/best.ckpt --out maps --entropy
  rs-biformer suggest maps --labelled tiles --out next.gpkg
  rs-biformer suggest new/*.tif --checkpoint runs/first/best.ckpt --labelled tiles --out next.gpkg
  rs-biformer suggest new/*.tif --checkpoint a.ckpt b.ckpt c.ckpt --out next.gpkg      (by their disagreement)

The score of a window is the product of three parts from 0 to 1. Uncertainty: the mean over its pixels of disagreement
or entropy, or of what margin or confidence lack to 1. Rarity: the mean self-information of its classes, by how often
they are labelled. Diversity: the Hellinger distance of its class histogram to the nearest one that is labelled or
suggested already (k-center greedy: Gonzalez 1985; Sener and Savarese 2018).
Left out are windows with nodata and those on labelled ground: windows of tile indices, polygons of vector layers (only
those whose attribute `class` is filled, where there is such an attribute).

NEXT.gpkg holds the windows, the first to label with rank 1, and the empty attributes class and note; its style is in
the file and in NEXT.qml. Draw polygons in the windows, fill class, and go on:
  rs-biformer tile new/*.tif --labels next.gpkg --label-field class --classes classes.yaml --out tiles2
  rs-biformer tile old/*.tif --labels 'labels/{stem}.tif' --corrections next.gpkg --classes classes.yaml --out tiles2
  rs-biformer train --config CONFIG --data.index tiles2 --model.weights runs/first/best.ckpt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    add = parser.add_argument
    add("inputs", nargs="+", metavar="MAP", help="class maps, globs, folders or lists; with --checkpoint scenes")
    add("--out", required=True, type=Path, metavar="NEXT.gpkg", help="GeoPackage to write")
    add("--count", type=int, metavar="N", help="windows to suggest (50)")
    add("--labelled", nargs="+", default=[], metavar="WHAT", help="tile indices and vector layers of what is labelled")
    add("--min-distance", type=float, metavar="METRES", help="between middles of windows (two sides of a window)")
    add("--min-valid", type=float, metavar="SHARE", help="least share of a window that is mapped (1)")
    add("--parts", nargs="+", metavar="PART", help="what counts (uncertainty rarity diversity)")
    group = parser.add_argument_group("uncertainty")
    group.add_argument(
        "--measure", help="disagreement, entropy, margin or confidence (the first that lies beside maps)"
    )
    group.add_argument("--score", metavar="PATTERN", help="its raster for each map, such as '{dir}/{name}_entropy.tif'")
    group = parser.add_argument_group("scenes that are mapped first")
    add = group.add_argument
    add(
        "--checkpoint",
        action="append",
        metavar="FILE",
        help="a model; several are averaged and their disagreement is taken",
    )
    add("--maps", type=Path, metavar="DIR", help="keep the maps here (they are removed)")
    add("--extra", nargs="+", default=[], metavar="PATTERN", help="further rasters per scene, as in rs-biformer tile")
    add_fitting(group)
    windows = parser.add_argument_group("windows, --window of maps too")
    add_windows(windows)
    add_compute(parser.add_argument_group("machine"))


def run(args: argparse.Namespace) -> None:
    """Map the scenes if there is a model, rank the windows and show the first."""
    from rs_biformer.cli import console, tables
    from rs_biformer.cli.watch import Watch
    from rs_biformer.jobs import SuggestOptions, suggest_from_maps, suggest_from_model

    chosen = ("count", "window", "measure", "min_distance", "min_valid", "parts")
    options = SuggestOptions(**{name: value for name in chosen if (value := getattr(args, name)) is not None})
    _require_consistent(args)
    with Watch(listed=False) as watch, console.progress("suggest", "window") as progress:
        if args.checkpoint:
            columns = suggest_from_model(
                args.inputs,
                args.checkpoint if len(args.checkpoint) > 1 else args.checkpoint[0],
                args.out,
                maps=args.maps,
                labelled=args.labelled,
                options=options,
                say=lambda line: console.say(f"note: {line}"),
                progress=progress,
                tell=watch,
                extra=args.extra,
                **given(args, OPTIONS),
            )
        else:
            columns = suggest_from_maps(
                args.inputs,
                args.out,
                score=args.score,
                labelled=args.labelled,
                options=options,
                say=lambda line: console.say(f"note: {line}"),
                progress=progress,
            )
    shown = {name: values for name, values in columns.items() if name not in ("class", "note")}
    tables.columns("Windows to label next", shown, most=12)
    console.show(args.out)


def _require_consistent(args: argparse.Namespace) -> None:
    """Raise ConfigError for options that would have no effect."""
    if args.checkpoint and args.score:
        raise ConfigError("--score names rasters of maps that are there; with --checkpoint leave it out")
    if args.checkpoint:
        return
    for name in ("maps", "extra", *(name for name in OPTIONS if name != "window")):
        if getattr(args, name, None) not in (None, []):
            raise ConfigError(f"--{name.replace('_', '-')} has no effect without --checkpoint; leave it out")
