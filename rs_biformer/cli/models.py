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
        return _show_all(args)
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


def _show_all(args: argparse.Namespace) -> None:
    from fnmatch import fnmatch

    from rs_biformer.cli import console
    from rs_biformer.errors import ConfigError
    from rs_biformer.nn.encoders.library import library_names, weights_of
    from rs_biformer.nn.model import list_encoders

    patterns = args.only or ["*"]
    names = [name for name in library_names() if any(fnmatch(name, pattern) for pattern in patterns)]
    if not names:
        raise ConfigError(
            f"smp and timm have no encoder called {', '.join(patterns)}; patterns take *, such as '*dinov3*'"
        )
    ours = set(list_encoders())  # which come first: timm's of the same name has a prefix
    rows = [{"encoder": f"tu-{name}" if name in ours else name, "weights": weights_of(name)} for name in names]
    if args.json:
        print(json.dumps({"models": rows}, indent=2))
    elif args.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([_cell(value) for value in row.values()] for row in rows)
    else:
        shown = [[str(row["encoder"]), ", ".join(row["weights"])] for row in rows]
        console.table("Encoders of smp and timm, and their weights", ["encoder", "weights"], shown)
        print("plain vision transformers get a pyramid; model.encoder NAME, model.weights WEIGHTS or a file")


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
