import argparse
import json
from typing import Any

from rs_biformer.cli import console

HELP = "versions and devices; with a path, what a model, index, map or raster holds; MODEL RASTER: whether they fit"
EXAMPLE = """rs-biformer info
  rs-biformer info runs/first/best.ckpt
  rs-biformer info scene.tif --json
  rs-biformer info runs/first/best.ckpt ortho.tif ndsm.tif
  rs-biformer info https://host/ortho.tif ndsm.tif

Several rasters are shown as the one scene that they make: on the grid of the first, the others resampled to it.
After a model: whether predict takes that scene, a line for bands, scale, data type and pixel size, and which option it
needs; after a model a tile index: whether they are of the same bands, data type, classes and pixels."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer info`."""
    what = "a model, an index, the rasters (files, URLs) of a scene; or a model and one of the others"
    parser.add_argument("paths", nargs="*", metavar="PATH", help=what)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Find out what the path is, and print it."""
    from rs_biformer.jobs.describing import describe

    facts = describe(args.paths)
    if args.json:
        console.document(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        console.show(f"{key.replace('_', ' '):{width}}  {_line(value)}")


def _line(value: Any) -> str:
    """One value for a reader: lists with commas, mappings as `key: value`, long ones shortened."""
    if isinstance(value, dict):
        if value.keys() == {"fits", "says"}:
            return f"{'fits' if value['fits'] else 'does not fit'}: {value['says']}"
        if "classes" in value:  # a class schema
            return f"{value['name']}: {', '.join(entry['name'] for entry in value['classes'])}"
        return ", ".join(f"{key}: {_line(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        shown = ", ".join(_line(item) for item in value[:12])
        return f"{shown}, ... ({len(value)})" if len(value) > 12 else shown or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "unknown" if value is None else str(value)
