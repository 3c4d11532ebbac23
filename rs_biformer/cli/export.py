import argparse
from pathlib import Path

HELP = "write a trained model for others: as ONNX, which opens in QGIS with Deepness, or as safetensors with a card"
EXAMPLE = """rs-biformer export --checkpoint runs/first/best.ckpt --out model.onnx
  rs-biformer export --checkpoint runs/first/best.ckpt --format safetensors --out model.safetensors

onnx: raw band values in, probabilities out. safetensors: the weights with all that the checkpoint carries in the header
of the file, which every --checkpoint takes; beside it NAME.json, the same for people to read (the file counts)."""

FORMATS = ("onnx", "safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer export`."""
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, metavar="FILE", help="a checkpoint of rs-biformer train")
    add("--out", required=True, type=Path, metavar="FILE", help="the model to write; an existing one is replaced")
    add("--format", choices=FORMATS, help="onnx or safetensors (what FILE ends in)")
    add("--window", type=int, help="pixels on a side that the model will take (those of training)")
    add("--overlap", type=float, default=0.5, help="suggested to tools that read the metadata (0.5)")


def run(args: argparse.Namespace) -> None:
    """Load, export, verify."""
    kind = args.format or args.out.suffix.lower().removeprefix(".")
    if kind in FORMATS[1:]:
        from rs_biformer.jobs import publish

        for path in publish(args.checkpoint, args.out, kind):
            print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
        return
    from rs_biformer.checkpoint import load_checkpoint
    from rs_biformer.export import export_onnx

    path = export_onnx(load_checkpoint(args.checkpoint), args.out, window=args.window, overlap=args.overlap)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB; checked against the checkpoint)")
    print(f"next: rs-biformer predict SCENE --checkpoint {path} --out DIR, or open it in QGIS with Deepness")
