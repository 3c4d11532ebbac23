import argparse
import csv
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rs_biformer.nn.count import Figures

HELP = "list the architectures: parameters, multiply-adds, strides and widths of the features, decoders"
EXAMPLE = """rs-biformer models
  rs-biformer models --size 224 --csv > models.csv
  rs-biformer models --only biformer_small resnet50 --decoder upernet --json

Multiply-adds are half of what torch's FlopCounterMode counts: matrix products and convolutions, as the network runs.
Bi-level routing attention counts the pairs of pixels that are routed to each other, even where a dense product under a
mask is faster. "ImageNet" is the encoder with a classifier of 1000 classes, which is what papers count."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer models`."""
    add = parser.add_argument
    add("--only", nargs="+", metavar="NAME", help="these encoders; those of smp and timm are known by name as well")
    add("--decoder", default="unet_fusion", help="the decoder that completes them (unet_fusion)")
    add("--size", type=int, default=256, help="rows and columns of the image that is counted on (256)")
    add("--bands", type=int, default=3, help="bands of that image (3)")
    add("--classes", type=int, default=6, help="classes (6)")
    machine = parser.add_mutually_exclusive_group()
    machine.add_argument("--json", action="store_true", help="print JSON")
    machine.add_argument("--csv", action="store_true", help="print CSV")


def run(args: argparse.Namespace) -> None:
    """Count every architecture, and show a table, JSON or CSV."""
    from dataclasses import asdict

    from rs_biformer.cli import console
    from rs_biformer.nn.count import count_model
    from rs_biformer.nn.model import DECODERS, list_encoders

    found = []
    names = args.only or list_encoders()
    with console.progress("counting", "model") as progress:
        for done, name in enumerate(names, 1):
            found.append(count_model(name, args.decoder, args.size, args.bands, args.classes))
            progress(done, len(names))
    rows = [{**asdict(figures), "decoders": list(DECODERS)} for figures in found]
    if args.json:
        print(json.dumps({"size": args.size, "bands": args.bands, "classes": args.classes, "models": rows}, indent=2))
    elif args.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([_cell(value) for value in row.values()] for row in rows)
    else:
        title = f"Encoders, with an ImageNet classifier, and with {args.decoder}: one {args.size} x {args.size} image"
        header = ["encoder", "params M", "GMAC", "ImageNet M", "GMAC", "model M", "GMAC", "strides"]
        console.table(title, header, [_shown(figures) for figures in found])
        print(f"GMAC: 1e9 multiply-adds; decoders, each with any encoder: {', '.join(DECODERS)}")


def _cell(value: object) -> object:
    return " ".join(str(item) for item in value) if isinstance(value, list | tuple) else value


def _shown(figures: "Figures") -> list[str]:
    counts = (
        (figures.encoder_parameters, figures.encoder_multiply_adds),
        (figures.classifier_parameters, figures.classifier_multiply_adds),
        (figures.parameters, figures.multiply_adds),
    )
    shown = [text for numbers, adds in counts for text in (f"{numbers / 1e6:.2f}", f"{adds / 1e9:.2f}")]
    return [figures.encoder, *shown, " ".join(str(stride) for stride in figures.strides)]
