"""`rs-biformer ndsm`: a surface model to heights above the ground."""

import argparse

from rs_biformer.cli import console

HELP = "turn heights above the sea (DSM) into heights above the ground (nDSM), a band that networks can use"
EXAMPLE = (
    "rs-biformer ndsm area3_dsm.tif --out area3_ndsm.tif\n"
    "  rs-biformer ndsm area3_dsm.tif --terrain dtm.tif --out area3_ndsm.tif\n"
    "  rs-biformer tile area3.tif --extra '{dir}/{stem}_ndsm.tif' ..."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument(
        "dsm",
        metavar="DSM",
        help="surface model: one band of heights (in metres, unless it says otherwise)",
    )
    parser.add_argument("--out", required=True, metavar="FILE.tif", help="heights above the ground, float32, to write")
    parser.add_argument(
        "--terrain", metavar="DTM", help="terrain model, on any grid; without it the ground is found in the DSM"
    )
    parser.add_argument(
        "--largest",
        type=float,
        default=60.0,
        metavar="METRES",
        help="what is narrower stands on the ground: a little more than the width of the widest building "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--slope", type=float, default=0.3, help="rise over run that ground may have (default: %(default)s)"
    )
    parser.add_argument(
        "--unit",
        choices=("m", "ft", "us-ft", "dm", "cm", "mm", "km"),
        help="of the heights (what the files say: the band's unit, else the heights of the CRS, else metres)",
    )
    parser.add_argument("--allow-huge", action="store_true", help="seek the ground on more than 2^28 m² at once")


def run(args: argparse.Namespace) -> None:
    """Write the heights, with a progress bar over the rows."""
    from rs_biformer.raster.height import write_ndsm

    with console.progress("ndsm", "row") as progress:
        write_ndsm(
            args.dsm,
            args.out,
            terrain=args.terrain,
            largest=args.largest,
            slope=args.slope,
            unit=args.unit,
            allow_huge=args.allow_huge,
            progress=progress,
        )
    console.show(f"heights above the ground written to {args.out}")
