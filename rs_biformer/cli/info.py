import argparse
import json
from typing import Any

HELP = "versions and devices; with a path, what a checkpoint, a tile index or a raster holds"
EXAMPLE = """rs-biformer info
  rs-biformer info runs/first/best.ckpt
  rs-biformer info scene.tif --json
  rs-biformer info https://host/ortho.tif ndsm.tif

Several rasters are shown as the one scene that they make: on the grid of the first, the others resampled to it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer info`."""
    what = "a checkpoint, an exported model, an index, or the rasters (files, URLs) of a scene"
    parser.add_argument("paths", nargs="*", metavar="PATH", help=what)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Find out what the path is, and print it."""
    from rs_biformer.jobs.describing import describe

    facts = describe(args.paths)
    if args.json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key.replace('_', ' '):{width}}  {_line(value)}")


def _line(value: Any) -> str:
    """One value for a reader: lists with commas, mappings as `key: value`, long ones shortened."""
    if isinstance(value, dict):
        if "classes" in value:  # a class schema
            return f"{value['name']}: {', '.join(entry['name'] for entry in value['classes'])}"
        return ", ".join(f"{key}: {_line(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        shown = ", ".join(_line(item) for item in value[:12])
        return f"{shown}, ... ({len(value)})" if len(value) > 12 else shown or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "unknown" if value is None else str(value)
