import argparse
import json
from typing import Any

HELP = "list the architectures: parameters, multiply-adds, strides and widths of the features, decoders"
EXAMPLE = """rs-biformer models
  rs-biformer models --only biformer_small resnet50 --decoder upernet --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer models`."""
    add = parser.add_argument
    add("--only", nargs="+", metavar="NAME", help="these encoders; those of smp and timm are known by name as well")
    add("--decoder", default="unet_fusion", help="the decoder that completes them (unet_fusion)")
    add("--size", type=int, default=256, help="rows and columns of the image that is counted on (256)")
    add("--bands", type=int, default=3, help="bands of that image (3)")
    add("--classes", type=int, default=6, help="classes (6)")
    add("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Count every architecture, and show a table or JSON."""
    from rs_biformer.cli import console
    from rs_biformer.nn.model import DECODERS, list_encoders

    found = []
    names = args.only or list_encoders()
    with console.progress("counting", "model") as progress:
        for done, name in enumerate(names, 1):
            found.append(describe(name, args.decoder, args.size, args.bands, args.classes))
            progress(done, len(names))
    if args.json:
        print(json.dumps({"size": args.size, "decoders": list(DECODERS), "models": found}, indent=2))
        return
    header = ["encoder", "params M", "mult-adds G", "whole params M", "whole mult-adds G", "strides"]
    rows = [
        [
            model["encoder"],
            f"{model['encoder_parameters'] / 1e6:.2f}",
            f"{model['encoder_multiply_adds'] / 1e9:.2f}",
            f"{model['parameters'] / 1e6:.2f}",
            f"{model['multiply_adds'] / 1e9:.2f}",
            " ".join(str(stride) for stride in model["strides"]),
        ]
        for model in found
    ]
    console.table(f"Encoders, and with {args.decoder}: one {args.size} x {args.size} image", header, rows)
    print(f"decoders, each with any encoder: {', '.join(DECODERS)}")
    print("multiply-adds are counted by torch as it runs the network: attention counts what it multiplies here")


def describe(encoder: str, decoder: str, size: int, bands: int, classes: int) -> dict[str, Any]:
    """Figures of one architecture, counted on a network without memory (torch's meta device)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from rs_biformer.nn.model import create_model

    features: list[torch.Tensor] = []
    with torch.device("meta"), torch.inference_mode():
        network = create_model(encoder, decoder, classes=classes, in_channels=bands).eval()
        network.encoder.register_forward_hook(lambda _, inputs, outputs: features.extend(outputs))
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, bands, size, size))
    counts = counter.get_flop_counts()
    rows = features[0].shape[-2]
    pyramid = [feature for feature in features[1:] if feature.shape[1]]
    return {
        "encoder": encoder,
        "decoder": decoder,
        "encoder_parameters": sum(weight.numel() for weight in network.encoder.parameters()),
        "encoder_multiply_adds": sum(counts["SegmentationModel.encoder"].values()) // 2,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "multiply_adds": counter.get_total_flops() // 2,
        "strides": [rows // feature.shape[-2] for feature in pyramid],
        "widths": [feature.shape[1] for feature in pyramid],
    }
