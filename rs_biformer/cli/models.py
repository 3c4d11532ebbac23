import argparse
import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rs_biformer.cli import console

HELP = "list the architectures: parameters, multiply-adds, strides and widths of the features, decoders"
EXAMPLE = """rs-biformer models
  rs-biformer models --size 224 --csv > models.csv
  rs-biformer models --only biformer_small resnet50 --decoder upernet --json
  rs-biformer models --all --only "*dinov3*" "convnext*"                (what timm and smp have, with their weights)

Multiply-adds are half of what torch's FlopCounterMode counts: matrix products and convolutions, as the network runs.
Bi-level routing attention counts the pairs of pixels that are routed to each other, even where a dense product under a
mask is faster. "ImageNet" is the encoder with a classifier of 1000 classes, which is what papers count."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer models`."""
    add = parser.add_argument
    add("--only", nargs="+", metavar="NAME", help="these encoders; those of smp and timm are known by name as well")
    everything = "the names of all encoders of smp and timm, and of the weights that model.weights downloads for each; "
    add("--all", action="store_true", help=everything + "--only takes patterns then")
    add("--decoder", default="unet_fusion", help="the decoder that completes them (unet_fusion)")
    add("--size", type=int, default=256, help="rows and columns of the image that is counted on (256)")
    add("--bands", type=int, default=3, help="bands of that image (3)")
    add("--classes", type=int, default=6, help="classes (6)")
    machine = parser.add_mutually_exclusive_group()
    machine.add_argument("--json", action="store_true", help="print JSON")
    machine.add_argument("--csv", action="store_true", help="print CSV")


def run(args: argparse.Namespace) -> None:
    """Count every architecture, and show a table, JSON or CSV; or list what the libraries have."""
    if args.all:
        return _list(args)
    from dataclasses import asdict

    from rs_biformer.cli import tables
    from rs_biformer.jobs import count_architectures
    from rs_biformer.nn.model import DECODERS

    with console.progress("counting", "model") as progress:
        found = count_architectures(
            args.only, args.decoder, size=args.size, bands=args.bands, classes=args.classes, progress=progress
        )
    counted = {"size": args.size, "bands": args.bands, "classes": args.classes}
    if not _written(args, counted, [{**asdict(figures), "decoders": list(DECODERS)} for figures in found]):
        tables.architectures(found, args.size)
        console.show(f"GMAC: 1e9 multiply-adds; decoders, each with any encoder: {', '.join(DECODERS)}")


def _list(args: argparse.Namespace) -> None:
    from rs_biformer.cli import tables
    from rs_biformer.jobs import library_encoders

    found = library_encoders(args.only or ["*"])
    if not _written(args, {}, [{"encoder": name, "weights": weights} for name, weights in found.items()]):
        tables.encoders(found)
        console.show("plain vision transformers get a pyramid; model.encoder NAME, model.weights WEIGHTS or a file")


def _written(args: argparse.Namespace, counted: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a machine reads the rows, and then print them as JSON or CSV."""
    if args.json:
        console.document(json.dumps({**counted, "models": rows}, indent=2))
    elif args.csv:
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([_cell(value) for value in row.values()] for row in rows)
        console.document(lines.getvalue())
    return bool(args.json or args.csv)


def _cell(value: object) -> object:
    return " ".join(str(item) for item in value) if isinstance(value, list | tuple) else value
