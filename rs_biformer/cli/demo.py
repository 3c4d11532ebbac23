import argparse
from pathlib import Path

from rs_biformer.cli import console
from rs_biformer.errors import ConfigError

HELP = "make synthetic aerial scenes, train on them, map one and report: a few minutes, nothing to download"
EXAMPLE = """rs-biformer demo
  rs-biformer demo --scene big.tif --size 50000          (a scene and its label big_label.tif, nothing else)"""

OWN_SIGNALS = True  # it trains, see train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer demo`."""
    add = parser.add_argument
    add("--out", type=Path, default=Path("demo"), metavar="DIR", help="new folder, or one of an earlier demo (demo)")
    add("--seed", type=int, default=0, help="other scenes, another training (0)")
    only = parser.add_argument_group("only write a scene, to test or time other things with")
    only.add_argument("--scene", type=Path, metavar="FILE.tif", help="the image; its label goes to FILE_label.tif")
    only.add_argument("--size", type=int, help="pixels on a side; memory does not grow with it (2048)")
    only.add_argument("--gsd", type=float, help="metres per pixel (0.09, as in Vaihingen)")


def run(args: argparse.Namespace) -> None:
    """Write one scene, or run the demo and say what came out."""
    from rs_biformer.demo import make_pair, run_demo
    from rs_biformer.evaluation.report import TABLE_HEADER, summary_lines, table_rows

    if args.scene:
        size = 2048 if args.size is None else args.size
        gsd = 0.09 if args.gsd is None else args.gsd
        with console.progress(args.scene.name, "px") as progress:
            paths = make_pair(args.scene, size=size, seed=args.seed, gsd=gsd, progress=progress)
        console.show("\n".join(map(str, paths)))
        return
    if args.size is not None or args.gsd is not None:
        raise ConfigError("--size and --gsd are for --scene FILE.tif; the demo's own scenes are made to fit the time")
    result = run_demo(
        args.out, seed=args.seed, say=lambda line: console.show(line, flush=True), progress=console.progress
    )
    console.table("A scene that the network did not train on, in per cent", TABLE_HEADER, table_rows(result.metrics))
    console.show("\n".join(summary_lines(result.metrics)))
    console.show(f"\nopen {result.report}; {args.out / 'about.txt'} says what lies where and how to repeat each step")
    console.show("next, with your own images (your class colours in classes.yaml):")
    console.show("  rs-biformer tile 'images/*.tif' --labels 'labels/{stem}.tif' --classes classes.yaml \\")
    console.show("      --split blocks:0.7,0.15,0.15 --out tiles")
    console.show(f"  rs-biformer train --config {args.out / 'train.yaml'} --data.index tiles --out runs/first")
