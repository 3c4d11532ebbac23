import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rs_biformer.errors import ConfigError, RsBiformerError

if TYPE_CHECKING:
    from rs_biformer.checkpoint import CheckpointMeta
    from rs_biformer.predict.plan import Plan
    from rs_biformer.raster.scene import Scene

HELP = "map scenes of any size with a trained model: georeferenced class maps, on request probabilities"
EXAMPLE = """rs-biformer predict images/*.tif --checkpoint runs/first/best.ckpt --out maps
  rs-biformer predict ortho.tif --extra '{dir}/{stem}_ndsm.tif' --checkpoint model.ckpt --out maps --confidence
  rs-biformer predict tonight.txt --checkpoint model.onnx --out maps --max-memory 500MB --json

A SCENE is a raster, a quoted glob, a folder (all rasters in it), a list (a .txt file or @FILE: one of these a line,
# for comments, paths from the list's folder), a URL (https://, s3://, gs://, az://) or what else GDAL opens by name.
All scenes are checked before the first is mapped. A scene that fails afterwards (a block that cannot be read, say)
does not stop the others; those that failed are named at the end, and the exit code is 2.

Writes DIR/STEM_classes.tif, a Cloud Optimized GeoTIFF with nodata 255 where the scene has none, and a QGIS style
beside it. A map that exists is replaced, and only once the new one is complete: the same scene, model and options give
the same bytes. When it is interrupted, the same command goes on from the last finished strip.
Probabilities and the other layers are uint8 in steps of 1/250, nodata 255; or float16, nodata NaN.

Rasters of one scene may lie on different grids: those of --extra are resampled to the grid of the SCENE while they are
read. With --rescale-gsd the map has the pixels of the model and not those of the scene, georeferenced accordingly."""

LAYERS = {
    "probabilities": "a band per class",
    "confidence": "the probability of the class that won",
    "margin": "how far it is ahead of the second",
    "entropy": "0 where one class is certain, 1 where all are alike",
    "disagreement": "how much the test-time views differ; needs --tta or --scales",
}
"""Maps beside the class map, by their option and the end of their file's name."""

_ADVICE = "the same command goes on from the last finished strip"
_ADVICE_FOR_SEVERAL = "the same command with --skip-existing goes on from the last finished strip"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer predict`."""
    add = parser.add_argument
    add("scenes", nargs="+", metavar="SCENE", help="rasters, quoted globs, folders, lists, URLs; see below")
    add("--checkpoint", required=True, type=Path, metavar="FILE", help="from rs-biformer train, or export (.onnx)")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the maps")
    group = parser.add_argument_group("scenes")
    add, size = group.add_argument, group.add_mutually_exclusive_group()
    add("--extra", nargs="+", default=[], metavar="PATTERN", help="further rasters per scene, as in rs-biformer tile")
    add("--exclude", nargs="+", default=[], metavar="GLOB", help="file names to leave out, such as '*_label.tif'")
    add("--name", default="{stem}", metavar="PATTERN", help="STEM of the maps, such as {parent}_{stem} ({stem})")
    add("--skip-existing", action="store_true", help="leave scenes alone whose maps are all there, by whatever model")
    add("--bands", metavar="LIST", help="bands by number or name, where the scene's own names do not tell")
    add("--nodata", metavar="VALUE", help="means no data in rasters that declare nothing; one for each raster: 0,none")
    add(
        "--scale",
        choices=("model", "ignore"),
        default="model",
        help="ignore: numbers as they are, whatever is declared",
    )
    add("--allow-dtype-mismatch", action="store_true", help="take values of another data type as they are")
    size.add_argument("--rescale-gsd", action="store_true", help="resample scenes to the training pixels' size")
    size.add_argument("--allow-gsd-mismatch", action="store_true", help="take pixels far from that size as they are")
    add = parser.add_argument_group("windows").add_argument
    add("--window", type=int, metavar="N", help="pixels on a side (those of training)")
    add("--overlap", type=float, default=0.5, metavar="SHARE", help="of a window common with its neighbour (0.5)")
    add("--blend", default="hann", help="hann, average or center (hann)")
    add("--tta", default="none", help="test-time views to average: none, flips (4) or d4 (8)")
    add("--scales", default="1", metavar="LIST", help="zooms of the test-time views, such as 0.75,1,1.25 (1)")
    add = parser.add_argument_group("maps").add_argument
    for layer, what in LAYERS.items():
        add(f"--{layer}", action="store_true", help=f"also write STEM_{layer}.tif: {what}")
    add("--probability-dtype", default="uint8", metavar="TYPE", help="of these layers: uint8 or float16 (uint8)")
    add("--json", action="store_true", help="print a summary as JSON and not the list of maps")
    add = parser.add_argument_group("machine").add_argument
    add("--batch-size", type=int, default=8, metavar="N", help="windows per forward pass (8)")
    add("--device", default="auto", help="auto (all GPUs), cpu, cuda, cuda:0,cuda:1, ... (auto)")
    add("--precision", default="auto", help="auto, 32 or bf16 (auto: bf16 where the hardware is good at it)")
    add("--compile", action="store_true", help="run the model through torch.compile; pays for itself on large scenes")
    add("--max-memory", metavar="SIZE", help="bound on what is allocated beside the model (2GB, at most 1/4 of all)")
    add("--cluster", metavar="WHERE", help="dask: processes of this machine; or a scheduler's address, tcp://HOST:8786")
    add("--restart", action="store_true", help="start half-written maps over, also those of another model or options")


def run(args: argparse.Namespace) -> None:
    """Check that every scene fits the model, then map one after the other."""
    from contextlib import ExitStack

    from rs_biformer.cli import console
    from rs_biformer.data.layouts import pattern_scenes
    from rs_biformer.predict.fit import open_scenes

    own = [f"{args.out}/".replace("{", "{{").replace("}", "}}") + f"{args.name}_{layer}.tif" for layer in _layers(args)]
    found = pattern_scenes(args.scenes, None, args.extra, skip=[*args.exclude, *own], name=args.name)
    model, meta = load_model(args.checkpoint)
    scenes = open_scenes([files.images for files in found], **_fit(args, meta))
    options = _options(args, meta)
    report = _Report(args.checkpoint, args.json)
    with ExitStack() as stack:
        stack.enter_context(console.interruptible(_ADVICE if len(scenes) == 1 else _ADVICE_FOR_SEVERAL))
        if args.cluster:
            from rs_biformer.predict.cluster import connect

            options["cluster"] = stack.enter_context(connect(args.cluster))
        for number, (files, scene) in enumerate(zip(found, scenes, strict=True), 1):
            maps = {layer: args.out / f"{files.name}_{layer}.tif" for layer in _layers(args)}
            if args.skip_existing and all(path.exists() for path in maps.values()):
                report.skipped(files.name)
                continue
            label = files.name if len(scenes) == 1 else f"{number}/{len(scenes)} {files.name}"
            try:
                report.mapped(files.name, scene, maps, *_map(model, scene, maps, label, options))
            except (RsBiformerError, OSError) as error:
                # What is wrong with the options shows at the first scene, in front of the user.
                if len(scenes) == 1 or (number == 1 and isinstance(error, ConfigError)):
                    raise
                report.failed(files.name, error)
    report.close()


class _Report:
    """What became of the scenes: said as it happens, and summed up at the end."""

    def __init__(self, checkpoint: Path, as_json: bool) -> None:
        self._json = as_json
        self._facts: dict[str, Any] = {"model": str(checkpoint), "scenes": [], "skipped": [], "failed": []}

    def mapped(self, name: str, scene: "Scene", maps: dict[str, Path], plan: "Plan", seconds: float) -> None:
        self._facts["scenes"].append(
            {
                "name": name,
                "rasters": [str(path) for path in scene.paths],
                "maps": {layer: str(path) for layer, path in maps.items()},
                "pixels": scene.height * scene.width,
                "metres_per_pixel": scene.gsd,
                "windows": plan.window_count,
                "memory_bytes": plan.memory.total,
                "seconds": round(seconds, 3),
            }
        )
        if not self._json:
            print(*maps.values(), sep="\n", flush=True)

    def skipped(self, name: str) -> None:
        self._facts["skipped"].append({"name": name})

    def failed(self, name: str, error: Exception) -> None:
        self._facts["failed"].append({"name": name, "error": str(error)})
        _say(f"{name} is not mapped: {error}")

    def close(self) -> None:
        """Print the summary. Raises RsBiformerError when a scene failed."""
        import json

        if self._json:
            print(json.dumps(self._facts, indent=2))
        if count := len(self._facts["skipped"]):
            _say(f"{count} scene{'s were' if count > 1 else ' was'} left alone, as the maps are there")
        if failed := self._facts["failed"]:
            done = len(self._facts["scenes"])
            raise RsBiformerError(
                f"{len(failed)} of {done + len(failed)} scenes are not mapped, the others are; "
                + "; ".join(f"{scene['name']}: {scene['error']}" for scene in failed)
            )


def _map(
    model: Any, scene: "Scene", maps: dict[str, Path], label: str, options: dict[str, Any]
) -> tuple["Plan", float]:
    """Map one scene; the plan it was done by, and the seconds it took."""
    from time import perf_counter

    from rs_biformer.cli import console
    from rs_biformer.predict import predict_scene

    plans: list[Plan] = []

    def announce(plan: "Plan") -> None:
        plans.append(plan)
        for path in scene.regridded:
            _say(f"{label}: {path} is resampled to pixels of {_size(scene)}")
        _say(f"{label}: {plan}")

    started = perf_counter()
    layers: dict[str, Any] = {layer: path for layer, path in maps.items() if layer != "classes"}
    with scene, console.progress(label, "window") as progress:
        predict_scene(model, scene, maps["classes"], **layers, **options, on_plan=announce, progress=progress)
    return plans[0], perf_counter() - started


def _size(scene: "Scene") -> str:
    return f"{scene.gsd:.3g} m" if scene.gsd else f"{scene.height} x {scene.width}"


def _say(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)  # above a progress bar, not through it


def _layers(args: argparse.Namespace) -> list[str]:
    return ["classes", *(layer for layer in LAYERS if getattr(args, layer))]


def _fit(args: argparse.Namespace, meta: "CheckpointMeta") -> dict[str, Any]:
    """The options of `open_scene`."""
    from dataclasses import replace

    from rs_biformer.raster.values import parse_nodata

    select = [int(part) if part.isdigit() else part for part in args.bands.split(",")] if args.bands else None
    return {
        "bands": meta.bands,
        "dtype": meta.dtype,
        "gsd": meta.gsd,
        "select": select,
        "allow_gsd_mismatch": args.allow_gsd_mismatch,
        "rescale_gsd": args.rescale_gsd,
        "allow_dtype_mismatch": args.allow_dtype_mismatch,
        "reading": replace(meta.reading, nodata=parse_nodata(args.nodata)) if args.nodata else meta.reading,
        "ignore_scale": args.scale == "ignore",
    }


def _options(args: argparse.Namespace, meta: "CheckpointMeta") -> dict[str, Any]:
    """The options of `predict_scene` that are the same for every scene."""
    devices = args.device.split(",")
    return {
        "classes": meta.schema,
        "window": args.window or meta.window,
        "overlap": args.overlap,
        "blend": args.blend,
        "batch_size": args.batch_size,
        "device": devices if len(devices) > 1 else args.device,
        "precision": args.precision,
        "tta": args.tta,
        "scales": parse_scales(args.scales),
        "probability_dtype": args.probability_dtype,
        "max_memory": parse_size(args.max_memory) if args.max_memory else None,
        "restart": args.restart,
        "compile": args.compile,
        "tags": _provenance(args.checkpoint, meta),
    }


def load_model(path: Path) -> tuple[Any, "CheckpointMeta"]:
    """The model of a checkpoint or of an exported file, and what it was trained on."""
    from rs_biformer.checkpoint import CheckpointMeta, load_checkpoint

    if path.suffix.lower() == ".onnx":
        from rs_biformer.predict.onnx import OnnxModel

        exported = OnnxModel(path)
        return exported, CheckpointMeta.from_dict(exported.details)
    model = load_checkpoint(path)
    return model, model.meta


def parse_scales(text: str) -> tuple[float, ...]:
    """Zooms from 0.75,1,1.25. Raises ConfigError for anything else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{text!r} are no scales; write them as 0.75,1,1.25") from None


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
