import argparse
from pathlib import Path
from typing import Any

from rs_biformer.cli import console

HELP = "make one of our models of a folder that segmentation-models-pytorch saved (save_pretrained)"
EXAMPLE = """rs-biformer convert FOLDER --classes potsdam --bands red,green,blue --mean imagenet --out m.safetensors
  rs-biformer convert FOLDER --card facts.yaml --window 512 --out m.safetensors

FOLDER has config.json and model.safetensors, which know neither classes nor bands nor statistics: give them by options,
or in a YAML or JSON file with the keys schema, bands, dtype, mean, std, window, gsd (--card), such as the card that
export --format safetensors writes. Options go before the file. An activation in the config is left out: our models give
logits. The other way: rs-biformer export --format smp."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer convert`."""
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="what save_pretrained wrote")
    add("--out", required=True, type=Path, metavar="FILE", help="the model to write, FILE.safetensors")
    add("--card", type=Path, metavar="FILE", help="what the folder does not tell, as YAML or JSON")
    add("--classes", metavar="SCHEMA", help="vaihingen, potsdam, loveda or a YAML file, in the order of the outputs")
    add("--bands", metavar="LIST", help="names of the input's bands in order: red,green,blue")
    add("--mean", metavar="LIST", help="of the bands in raw units: 123.7,116.3,103.5; or imagenet, for --std too")
    add("--std", metavar="LIST", help="their deviations")
    add("--dtype", help="what the rasters hold (uint8)")
    add("--window", type=int, help="pixels on a side that it was trained on (256)")
    add("--gsd", type=float, metavar="METRES", help="per pixel, of the rasters that it was trained on (unknown)")


def run(args: argparse.Namespace) -> None:
    """Read the folder, complete it, write the model."""
    from rs_biformer.jobs import convert

    for path in convert(args.folder, args.out, card=args.card, **_facts(args)):
        console.show(path)
    console.show(f"next: rs-biformer predict SCENE --checkpoint {args.out} --out DIR")


def _facts(args: argparse.Namespace) -> dict[str, Any]:
    from rs_biformer.cli.prediction import parse_numbers
    from rs_biformer.schema import load_schema

    return {
        "schema": load_schema(args.classes) if args.classes else None,
        "bands": [part.strip() for part in args.bands.split(",")] if args.bands else None,
        "mean": args.mean if args.mean in (None, "imagenet") else parse_numbers("--mean", args.mean),
        "std": parse_numbers("--std", args.std) if args.std else None,
        "dtype": args.dtype,
        "window": args.window,
        "gsd": args.gsd,
    }
