import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rs_biformer.errors import ConfigError

if TYPE_CHECKING:
    from rs_biformer.checkpoint import CheckpointMeta

HELP = "map scenes of any size with a trained model: georeferenced class maps, on request probabilities"
EXAMPLE = """rs-biformer predict images/*.tif --checkpoint runs/first/best.ckpt --out maps
  rs-biformer predict scene.vrt --checkpoint model.onnx --out maps --confidence --overlap 0.25

Writes DIR/STEM_classes.tif, a Cloud Optimized GeoTIFF with nodata 255 where the scene has none. A map that exists is
replaced, and only once the new one is complete: the same scene, model and options give the same bytes.
Probabilities and confidence are uint8 in steps of 1/250, nodata 255."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer predict`."""
    add = parser.add_argument
    add("scenes", nargs="+", metavar="SCENE", help="image files, quoted globs or folders (all rasters in it)")
    add("--checkpoint", required=True, type=Path, metavar="FILE", help="from rs-biformer train, or export (.onnx)")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the maps")
    add("--extra", nargs="+", default=[], metavar="PATTERN", help="further rasters per scene, as in rs-biformer tile")
    add("--bands", metavar="LIST", help="bands by number or name, where the scene's own names do not tell")
    add("--window", type=int, help="pixels on a side (those of training)")
    add("--overlap", type=float, default=0.5, help="share of a window common with its neighbour (0.5)")
    add("--blend", default="hann", help="hann, average or center (hann)")
    add("--tta", default="none", help="test-time views to average: none, flips (4) or d4 (8)")
    add("--batch-size", type=int, default=8, help="windows per forward pass (8)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (auto)")
    add("--precision", default="auto", help="auto, 32 or bf16 (auto: bf16 where the hardware is good at it)")
    add("--max-memory", default="2GB", metavar="SIZE", help="bound on what is held beside the model (2GB)")
    add("--probabilities", action="store_true", help="also write STEM_probabilities.tif, a band per class")
    add("--confidence", action="store_true", help="also write STEM_confidence.tif, the winner's probability")
    add("--allow-gsd-mismatch", action="store_true", help="predict pixels far from the training pixels' size")


def run(args: argparse.Namespace) -> None:
    """Check that every scene fits the model, then map one after the other."""
    from rs_biformer.cli import console
    from rs_biformer.data.layouts import pattern_scenes
    from rs_biformer.predict import open_scene, predict_scene

    scenes = [files.images for files in pattern_scenes(args.scenes, None, args.extra)]
    model, meta = load_model(args.checkpoint)
    bands = [int(part) if part.isdigit() else part for part in args.bands.split(",")] if args.bands else None
    fit: dict[str, Any] = {"bands": meta.bands, "dtype": meta.dtype, "gsd": meta.gsd, "select": bands}
    opened = [open_scene(paths, **fit, allow_gsd_mismatch=args.allow_gsd_mismatch) for paths in scenes]
    limit = parse_size(args.max_memory)
    for scene in opened:
        wanted = ["classes"] + ["probabilities"] * args.probabilities + ["confidence"] * args.confidence
        maps = {layer: args.out / f"{scene.name}_{layer}.tif" for layer in wanted}
        with scene, console.progress(scene.name, "window") as progress:
            predict_scene(
                model,
                scene,
                maps.pop("classes"),
                classes=meta.schema,
                window=args.window or meta.window,
                overlap=args.overlap,
                blend=args.blend,
                batch_size=args.batch_size,
                device=args.device,
                precision=args.precision,
                tta=args.tta,
                max_memory=limit,
                progress=progress,
                tags=_provenance(args.checkpoint, meta),
                **maps,
            )
        for layer in wanted:
            print(args.out / f"{scene.name}_{layer}.tif")


def load_model(path: Path) -> tuple[Any, "CheckpointMeta"]:
    """The model of a checkpoint or of an exported file, and what it was trained on."""
    from rs_biformer.checkpoint import CheckpointMeta, load_checkpoint

    if path.suffix.lower() == ".onnx":
        from rs_biformer.predict.onnx import OnnxModel

        exported = OnnxModel(path)
        return exported, CheckpointMeta.from_dict(exported.details)
    model = load_checkpoint(path)
    return model, model.meta


def parse_size(text: str) -> int:
    """Bytes from 500MB, 2GB or a plain number. Raises ConfigError for anything else."""
    number, unit = text.strip().lower().removesuffix("b"), ""
    if number[-1:] in _UNITS:
        number, unit = number[:-1], number[-1:]
    try:
        return int(float(number) * _UNITS[unit])
    except (ValueError, OverflowError):
        raise ConfigError(f"{text!r} is no size in memory; write it as 500MB or 2GB") from None


def _provenance(checkpoint: Path, meta: "CheckpointMeta") -> dict[str, str]:
    from rs_biformer import __version__

    return {
        "MODEL": f"{meta.encoder} + {meta.decoder}",
        "MODEL_FILE": checkpoint.name,
        "SOFTWARE": f"rs_biformer {__version__}",
    }
