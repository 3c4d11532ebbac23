"""`rs-biformer summarise`: how much of each class a map has, zone by zone, or what changed since another."""

import argparse
from pathlib import Path

from rs_biformer.cli import console
from rs_biformer.errors import ConfigError

HELP = "areas of the classes of a map, in each zone of a layer, or what changed since an earlier map"
EXAMPLE = "rs-biformer summarise out/area3_classes.tif --zones parcels.gpkg --out parcels.csv"

_SHOWN = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("map", metavar="MAP", help="class map, as `predict` writes it")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--zones", metavar="FILE", help="polygons: a row of the table for each, with its attributes; they may overlap"
    )
    what.add_argument(
        "--change", metavar="EARLIER", help="a class map of the same ground and classes of an earlier date"
    )
    parser.add_argument("--zones-layer", metavar="NAME", help="layer of a file of zones that has several")
    parser.add_argument(
        "--fractional",
        action="store_true",
        help="count a pixel by the share of it that a zone covers (needs exactextract), not by its centre",
    )
    parser.add_argument(
        "--confidence",
        nargs="+",
        metavar="RASTER",
        help="as `predict --confidence` writes it: its mean in each zone; with --change two, the earlier one's first",
    )
    parser.add_argument(
        "--regrid",
        action="store_true",
        help="with --change: read the later map on the pixels of the earlier one, by nearest neighbour",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="TABLE",
        help="table to write: .csv or .parquet; of zones .gpkg too, with their polygons",
    )
    parser.add_argument("--layer", metavar="NAME", help="of the GeoPackage (default: the name of the file)")
    parser.add_argument(
        "--map", dest="change_map", type=Path, metavar="FILE.tif", help="with --change: a map of what became what"
    )
    parser.add_argument("--allow-huge", action="store_true", help="count all of a map of more than 1e11 pixels")


def run(args: argparse.Namespace) -> None:
    """Count, with a progress bar over the pixels; write what was asked for and show the figures."""
    from rs_biformer.cli import tables
    from rs_biformer.jobs.summarising import Output, summarise_change, summarise_map, summarise_zones
    from rs_biformer.raster.polygons import PolygonOptions

    _require_consistent(args)
    output = Output(args.out, args.change_map, args.layer)
    certain = args.confidence or []
    with console.progress("summarise", "px") as progress:
        if args.change is not None:
            title = f"From {args.change} to {args.map}"
            columns = summarise_change(
                args.change,
                args.map,
                output,
                confidence=tuple(certain) or None,
                regrid=args.regrid,
                allow_huge=args.allow_huge,
                progress=progress,
            )
        elif args.zones is not None:
            title = f"Zones of {args.zones}"
            columns = summarise_zones(
                args.map,
                args.zones,
                output,
                options=PolygonOptions(layer=args.zones_layer),
                confidence=certain[0] if certain else None,
                fractional=args.fractional,
                say=console.show,
                progress=progress,
            )
        else:
            title = f"Classes of {args.map}"
            columns = summarise_map(args.map, output, allow_huge=args.allow_huge, progress=progress)
    tables.columns(title, columns, most=_SHOWN)
    for path in (output.table, output.map):
        if path is not None:
            console.show(path)


def _require_consistent(args: argparse.Namespace) -> None:
    """Raise ConfigError for options that would have no effect, and for too few or too many confidences."""
    needed = {"zones": ("zones_layer", "fractional"), "change": ("regrid", "change_map")}
    for name, options in needed.items():
        for option in options:
            if getattr(args, option) and getattr(args, name) is None:
                written = {"change_map": "map"}.get(option, option).replace("_", "-")
                raise ConfigError(f"--{written} has no effect without --{name}; leave it out")
    if args.allow_huge and args.zones is not None:
        raise ConfigError("--allow-huge has no effect with --zones, which reads the zones alone; leave it out")
    if args.layer and not str(args.out or "").lower().endswith(".gpkg"):
        raise ConfigError("--layer names the layer of a GeoPackage; give --out FILE.gpkg, or leave it out")
    wanted = 1 if args.zones is not None else 2 if args.change is not None else 0
    if args.confidence and len(args.confidence) != wanted:
        what = {0: "no", 1: "one", 2: "two"}[wanted]
        raise ConfigError(
            f"{len(args.confidence)} rasters for --confidence, which takes {what}: one with --zones, with --change one "
            "of each map"
        )
