import argparse
from pathlib import Path

from rs_biformer.cli import console
from rs_biformer.errors import ConfigError

HELP = "draw what a place of a scene attends to: the regions it is routed to at each stage, and its attention weights"
EXAMPLE = """rs-biformer explain scene.tif --checkpoint runs/first/best.ckpt --at 497312.5,5420871 --out routing.png
  rs-biformer explain scene.tif --checkpoint runs/first/best.ckpt --at 1200,800 --pixels --out routing.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer explain`."""
    add = parser.add_argument
    add("scene", nargs="+", metavar="SCENE", help="the raster, or the co-registered ones of one scene")
    add("--checkpoint", required=True, type=Path, metavar="FILE", help="a checkpoint of rs-biformer train")
    add("--at", required=True, metavar="X,Y", help="the place in map units of the scene (write --at=-1,2 if negative)")
    add("--pixels", action="store_true", help="the place is column,row instead")
    add("--window", type=int, help="pixels around it that the network sees (those of training)")
    add("--out", required=True, type=Path, metavar="PNG", help="the drawing")


def run(args: argparse.Namespace) -> None:
    """Draw, and tell in a table what is drawn."""
    at = parse_place(args.at)
    from rs_biformer.checkpoint import load_checkpoint
    from rs_biformer.explain import explain
    from rs_biformer.predict import open_scene

    model = load_checkpoint(args.checkpoint)
    meta = model.meta
    with open_scene(args.scene, bands=meta.bands, dtype=meta.dtype, gsd=None, reading=meta.reading) as scene:
        routings = explain(model, scene, at, args.out, pixels=args.pixels, window=args.window)
    rows = [
        [r.name, str(r.stride), f"{len(r.routed)}", f"{r.region[0]} x {r.region[1]}", f"{r.routed_share:.0%}"]
        for r in routings
    ]
    console.table("Routing", ["module", "stride", "regions", "tokens per region", "most attended"], rows)
    console.show(args.out)


def parse_place(text: str) -> tuple[float, float]:
    """Two numbers separated by a comma. Raises ConfigError for anything else."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--at {text!r} is no place; write two numbers as X,Y") from None
    return x, y
