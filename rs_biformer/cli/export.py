import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rs_biformer.cli import console, labels, prediction
from rs_biformer.errors import ConfigError

if TYPE_CHECKING:
    from rs_biformer.export import Exported, Trial

HELP = "write a trained model for others: ONNX, which opens in QGIS with Deepness, a torch program, safetensors, a card"
EXAMPLE = """rs-biformer export --checkpoint best.ckpt --out model.onnx
  rs-biformer export --checkpoint best.ckpt --scene scenes/test_1.tif --out model.onnx
  rs-biformer export --checkpoint best.ckpt --precision int8 --scene scenes/*.tif --out small.onnx
  rs-biformer export --checkpoint best.ckpt --out model.pt2
  rs-biformer export --checkpoint best.ckpt --out model.safetensors
  rs-biformer export --checkpoint model.onnx --format stac --out model.stac.json --license CC-BY-4.0

onnx, torch (a program of torch.export): raw band values in, probabilities out. The file is checked before it appears:
in fp32 it must give the checkpoint's probabilities to 1e-4. fp16 and int8 tell what they cost, int8 on other windows
than those that its scales were found on.
safetensors: the weights with all that the checkpoint carries in the header of the file, which every --checkpoint takes;
beside it NAME.json, the same for people to read (the file counts). stac: an Item with the machine learning model
extension (MLM) that describes the model file. smp: a folder for segmentation_models_pytorch.from_pretrained, where the
architecture is one of smp's (decoder unet)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer export`."""
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, metavar="FILE", help="a checkpoint of rs-biformer train")
    add("--out", required=True, type=Path, metavar="FILE", help="the model to write; an existing one is replaced")
    add("--format", choices=FORMATS, help="what to write (by what FILE ends in: .onnx, .pt2, ...)")
    add("--license", metavar="SPDX", help="of the model, such as CC-BY-4.0, for onnx, torch and stac (not told)")
    group = parser.add_argument_group("onnx and torch")
    group.add_argument("--window", type=int, help="pixels on a side that the model will take (those of training)")
    group.add_argument("--overlap", type=float, help="suggested to tools that read the metadata (0.5)")
    group.add_argument("--scene", nargs="+", default=[], metavar="IMAGE", help="scenes to check it on (int8 needs one)")
    group.add_argument("--label", nargs="+", default=[], metavar="LABEL", help="their labels, or a pattern: for mIoU")
    only = parser.add_argument_group("onnx")
    only.add_argument("--precision", choices=("fp32", "fp16", "int8"), help="of weights and computation (fp32)")
    only.add_argument(
        "--max-changed",
        type=float,
        metavar="SHARE",
        help="of the pixels that may change class by fp16 (0.01) or int8 (0.1) before the file is refused",
    )
    prediction.add_fitting(parser.add_argument_group("scenes, where they are not what the model was trained on"))
    labels.add_label_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write the form that is asked for, and tell what was found."""
    write = FORMATS[args.format or _format_of(args.out)]
    for line in write(args):
        console.show(line)


def _onnx(args: argparse.Namespace) -> Iterator[str]:
    from rs_biformer.checkpoint import load_checkpoint
    from rs_biformer.export import export_onnx

    written = export_onnx(
        load_checkpoint(args.checkpoint),
        args.out,
        window=args.window,
        overlap=_overlap(args),
        precision=args.precision or "fp32",
        trial=_trial(args),
        max_changed=args.max_changed,
        licence=args.license or "",
    )
    yield from _told(written)
    if len(written.files) > 1:
        yield f"{written.files[1].name} holds the weights, too many for one file: keep both together (not for predict)"
        return
    yield f"next: rs-biformer predict SCENE --checkpoint {written.path} --out DIR, or open it in QGIS with Deepness"


def _torch(args: argparse.Namespace) -> Iterator[str]:
    _refuse(args, ("precision", "max_changed"), "a program of torch, which keeps fp32")
    from rs_biformer.checkpoint import load_checkpoint
    from rs_biformer.export import export_program

    model = load_checkpoint(args.checkpoint)
    sizes = {"window": args.window, "overlap": _overlap(args)}
    yield from _told(export_program(model, args.out, **sizes, trial=_trial(args), licence=args.license or ""))


def _copied(args: argparse.Namespace) -> Iterator[str]:
    kind = args.format or _format_of(args.out)
    useless = ("precision", "max_changed", "window", "overlap", "scene", "label", "license")
    _refuse(args, useless[: -1 if kind == "stac" else None], kind)
    from rs_biformer.jobs import publish

    for path in publish(args.checkpoint, args.out, kind, args.license or ""):
        yield f"{path} ({path.stat().st_size / 1e6:.1f} MB)"


FORMATS: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "onnx": _onnx,
    "torch": _torch,
    "safetensors": _copied,
    "stac": _copied,
    "smp": _copied,
}
"""What --format may be: writes what the options ask for, and gives lines to show."""

SUFFIXES = {".onnx": "onnx", ".pt2": "torch", ".safetensors": "safetensors", ".json": "stac"}
"""The format that a name stands for."""


def _format_of(path: Path) -> str:
    found = SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise ConfigError(f"--out is {path}; let it end in {', '.join(SUFFIXES)}, or say which by --format")
    return found


def _overlap(args: argparse.Namespace) -> float:
    return 0.5 if args.overlap is None else float(args.overlap)


def _refuse(args: argparse.Namespace, names: tuple[str, ...], what: str) -> None:
    for name in names:
        if getattr(args, name) not in (None, []):
            raise ConfigError(f"--{name.replace('_', '-')} has no effect on {what}; leave it out")


def _told(written: "Exported") -> Iterator[str]:
    yield f"{' and '.join(map(str, written.files))} ({written.size / 1e6:.1f} MB, {written.precision})"
    yield f"checked {written.agreement}"


def _trial(args: argparse.Namespace) -> "Trial":
    from rs_biformer.export import find_trial
    from rs_biformer.jobs.fitting import Fitting

    fitting = Fitting(**prediction.given(args, prediction.FITTING))
    return find_trial(args.scene, args.label, fitting, labels.label_options(args), console.show)
