"""`rs-biformer view`: a map on a local page."""

import argparse

from rs_biformer.cli import console
from rs_biformer.cli.prediction import parse_bands

HELP = "look at a map in the browser, over its scene and beside its label or another map"
EXAMPLE = """rs-biformer view out/area3_classes.tif area3.tif area3_label.tif --confidence out/area3_confidence.tif
  rs-biformer view out/a/area3_classes.tif area3.tif --other out/b/area3_classes.tif --open

The page is for this machine alone, unless --host says otherwise, and loads nothing from elsewhere. Ctrl-C ends it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    add = parser.add_argument
    add("map", metavar="MAP", help="a class map, as `predict` writes it, or any raster of classes")
    add("scene", nargs="?", metavar="SCENE", help="the image under it, on any grid and in any CRS")
    add("label", nargs="?", metavar="LABEL", help="a raster or polygons of what is true: errors become a layer")
    add("--other", metavar="MAP", help="a second map of the same classes: differences become a layer")
    add("--confidence", metavar="RASTER", help="a score of the map (confidence, margin, entropy, disagreement)")
    add("--probabilities", metavar="RASTER", help="probabilities of the classes, told under the cursor")
    add("--classes", metavar="NAME|FILE", help="a preset or a YAML file, for maps that do not name their classes")
    add(
        "--bands", metavar="LIST", help="bands of the scene to show, by number or name, such as 4,3,2 (the first three)"
    )
    server = parser.add_argument_group("where the page is served")
    server.add_argument("--open", action="store_true", help="open it in the browser")
    server.add_argument("--port", type=int, metavar="N", help="the port (the first free one from 8765 on)")
    server.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 lets others in the network see it, too (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Open the rasters and serve the page until Ctrl-C."""
    import webbrowser

    from rs_biformer.viewer.server import Server, Site, is_loopback
    from rs_biformer.viewer.view import View

    view = View(
        args.map,
        args.scene,
        args.label,
        other=args.other,
        confidence=args.confidence,
        probabilities=args.probabilities,
        classes=args.classes,
        bands=parse_bands(args.bands) if args.bands else None,
    )
    with Site(view) as site, Server(site, args.host, args.port) as server:
        site.start()
        for line in view.notes:
            console.show(line)
        if not is_loopback(args.host):
            console.show("whoever reaches this machine can see these rasters; there is no password")
        console.show(f"{server.url}  (Ctrl-C ends it)", flush=True)
        if args.open:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.show()
