"""`rs-biformer vectorize`: a class map to polygons."""

import argparse

from rs_biformer.cli import console
from rs_biformer.cli.prediction import add_cluster
from rs_biformer.errors import ConfigError

HELP = "turn a class map into polygons (GeoPackage, FlatGeobuf, GeoParquet or GeoJSON)"
EXAMPLE = "rs-biformer vectorize out/area3_classes.tif --out area3.gpkg --min-area 10"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument(
        "map",
        nargs="+",
        metavar="MAP",
        help="class maps on one grid, as `predict` writes them: several become one layer, joined across their edges",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="polygons to write: FILE.gpkg, .fgb, .parquet or .geojson; in a GeoPackage that exists only the layer is "
        "added or replaced",
    )
    parser.add_argument("--layer", metavar="NAME", help="name of the layer (default: that of the file)")
    parser.add_argument(
        "--min-area",
        type=float,
        default=0.0,
        metavar="AREA",
        help="patches smaller than this become part of the neighbour with the longest common border: square metres; "
        "pixels for a map without a georeference (default: keep all)",
    )
    parser.add_argument(
        "--simplify",
        type=_length,
        default=1.0,
        metavar="LENGTH",
        help="how far outlines may leave the edges of the pixels, in pixels, or in metres with an m (0.5m); neighbours "
        "stay joined without gaps or overlaps; 0 keeps every corner (default: %(default)s)",
    )
    parser.add_argument(
        "--confidence",
        nargs="+",
        metavar="RASTER",
        help="one band on the map's grid, as `predict --confidence` writes it: each polygon gets its mean; one for "
        "each map",
    )
    parser.add_argument(
        "--regularise",
        nargs="*",
        metavar="CLASS",
        help="give the polygons of these classes right angles, and their neighbours the same borders: no gaps, no "
        "overlaps; without a name buildings, houses and roofs. Lines say how the areas of the classes change by it",
    )
    parser.add_argument(
        "--tolerance",
        type=_length,
        default=None,
        metavar="LENGTH",
        help="how far --regularise may move outlines, in pixels, or in metres with an m (0.5m); what has no right "
        "angles within that stays as it is (default: 3)",
    )
    parser.add_argument("--allow-huge", action="store_true", help="take a map of more than 2^21 columns or 1e11 pixels")

    add_cluster(parser)


def _length(text: str) -> float:
    """A number of pixels, or of metres where an m follows."""
    from rs_biformer.raster.ground import Metres

    number = text.removesuffix("m")
    try:
        return float(number) if number == text else Metres(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no length: 3 (pixels) or 0.5m (metres on the ground)") from None


def run(args: argparse.Namespace) -> None:
    """Polygonise the map, with a progress bar over its rows."""
    from rs_biformer.raster.vector import TOLERANCE, vectorize

    if args.tolerance is not None and args.regularise is None:
        raise ConfigError("--tolerance is for --regularise; for other outlines it is --simplify")

    with console.progress("vectorize", "row") as progress:
        number = vectorize(
            args.map,
            args.out,
            confidence=args.confidence,
            layer=args.layer,
            min_area=args.min_area,
            simplify=args.simplify,
            cluster=args.cluster,
            allow_huge=args.allow_huge,
            regularise=args.regularise,
            tolerance=TOLERANCE if args.tolerance is None else args.tolerance,
            say=console.say,
            progress=progress,
        )
    console.show(f"{number} polygon(s) written to {args.out}")
