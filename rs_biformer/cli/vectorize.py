"""`rs-biformer vectorize`: a class map to polygons."""

import argparse

HELP = "turn a class map into polygons (GeoPackage or GeoJSON)"
EXAMPLE = "rs-biformer vectorize out/area3_classes.tif --out area3.gpkg --min-area 10"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("map", metavar="MAP", help="class map, as `predict` writes it")
    parser.add_argument("--out", required=True, metavar="FILE", help="polygons to write: FILE.gpkg or FILE.geojson")
    parser.add_argument(
        "--min-area",
        type=float,
        default=0.0,
        metavar="AREA",
        help="leave out smaller polygons: square metres; pixels for a map without a georeference (default: keep all)",
    )


def run(args: argparse.Namespace) -> None:
    """Polygonise the map, with a progress bar over its rows."""
    from rs_biformer.cli import console
    from rs_biformer.raster.vector import vectorize

    with console.progress("vectorize", "row") as progress:
        number = vectorize(args.map, args.out, min_area=args.min_area, progress=progress)
    print(f"{number} polygon(s) written to {args.out}")
