import argparse
from pathlib import Path

HELP = "write a trained model for others: as ONNX, which opens in QGIS with Deepness, or as safetensors with a card"
EXAMPLE = """rs-biformer export --checkpoint runs/first/best.ckpt --out model.onnx
  rs-biformer export --checkpoint runs/first/best.ckpt --out model.safetensors
  rs-biformer export --checkpoint model.onnx --format stac --out model.stac.json --license CC-BY-4.0

onnx: raw band values in, probabilities out. safetensors: the weights with all that the checkpoint carries in the header
of the file, which every --checkpoint takes; beside it NAME.json, the same for people to read (the file counts).
stac: an Item with the machine learning model extension (MLM) that describes the model file. smp: a folder for
segmentation_models_pytorch.from_pretrained, where the architecture is one of smp's (decoder unet)."""

FORMATS = ("onnx", "safetensors", "stac", "smp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer export`."""
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, metavar="FILE", help="a checkpoint of rs-biformer train")
    add("--out", required=True, type=Path, metavar="FILE", help="the model to write; an existing one is replaced")
    add("--format", choices=FORMATS, help="onnx, safetensors, stac or smp (what FILE ends in; .json is stac)")
    add("--license", default="", metavar="SPDX", help="of the model, such as CC-BY-4.0, for stac (not told)")
    add("--window", type=int, help="pixels on a side that the model will take (those of training)")
    add("--overlap", type=float, default=0.5, help="suggested to tools that read the metadata (0.5)")


def run(args: argparse.Namespace) -> None:
    """Load, export, verify."""
    kind = args.format or {".safetensors": "safetensors", ".json": "stac"}.get(args.out.suffix.lower(), "onnx")
    if kind in FORMATS[1:]:
        from rs_biformer.jobs import publish

        for path in publish(args.checkpoint, args.out, kind, args.license):
            print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
        return
    from rs_biformer.checkpoint import load_checkpoint
    from rs_biformer.export import export_onnx

    path = export_onnx(load_checkpoint(args.checkpoint), args.out, window=args.window, overlap=args.overlap)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB; checked against the checkpoint)")
    print(f"next: rs-biformer predict SCENE --checkpoint {path} --out DIR, or open it in QGIS with Deepness")
