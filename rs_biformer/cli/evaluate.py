import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rs_biformer.errors import ConfigError

if TYPE_CHECKING:
    from rs_biformer.evaluation import Metrics
    from rs_biformer.schema import ClassSchema

HELP = "measure class maps against labels: one confusion matrix, JSON, a picture, an HTML report"
EXAMPLE = """rs-biformer evaluate --prediction maps/*_classes.tif --label test/*_label.tif \\
      --classes potsdam --out metrics.json
  rs-biformer evaluate --checkpoint best.ckpt --scene test/*_image.tif --label test/*_label.tif \\
      --maps maps --out metrics.json --report report.html

Maps, labels and scenes are paired in the order given. Labelled pixels without a prediction count as errors; with
--scene, pixels that the scene has no data for are ignored. Labels are given in full: a protocol that wants eroded
boundaries erodes them itself.
Protocols: all-classes, isprs-official, ssrs-12-4, mmseg-6class, or a YAML file with the keys id, description, exclude,
ignore_boundary, scene_pattern, train, test."""

# Options of rs-biformer predict that mean the same here.
_PASSED_ON = {
    "bands": str,
    "window": int,
    "overlap": float,
    "blend": str,
    "tta": str,
    "batch-size": int,
    "device": str,
    "precision": str,
    "max-memory": str,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer evaluate`."""
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prediction", nargs="+", type=Path, metavar="MAP", help="class maps, as predict writes them")
    what.add_argument("--checkpoint", type=Path, metavar="FILE", help="a model that maps the scenes first")
    add("--scene", nargs="+", metavar="SCENE", help="images: to be mapped by --checkpoint; for nodata and the report")
    add("--extra", nargs="+", default=[], metavar="PATTERN", help="further rasters per scene, as in rs-biformer tile")
    add("--label", nargs="+", required=True, type=Path, help="label rasters, one for each map")
    add("--classes", metavar="SCHEMA", help="vaihingen, potsdam, loveda or a YAML file (the checkpoint's own)")
    add("--out", required=True, type=Path, metavar="JSON", help="figures; NAME_confusion.png is written beside it")
    add("--protocol", default="all-classes", metavar="ID", help="what is scored and averaged (all-classes)")
    add("--tolerance", type=int, default=0, help="largest difference per channel of near label colours (0: exact)")
    add("--max-unknown", type=float, default=0.01, help="share of unknown pixels at which a label is refused (0.01)")
    add("--report", type=Path, metavar="HTML", help="also write one self-contained page")
    add("--title", default="Evaluation", help="heading of the page")
    add("--curves", type=Path, metavar="CSV", help="metrics.csv of the training, for the page")
    more = parser.add_argument_group("with --checkpoint")
    more.add_argument("--maps", type=Path, metavar="DIR", help="keep the class maps in this folder")
    for name, kind in _PASSED_ON.items():
        more.add_argument(f"--{name}", type=kind, help="as in rs-biformer predict")


def run(args: argparse.Namespace) -> None:
    """Predict if asked to, evaluate, show the figures and write them."""
    from rs_biformer.cli import console
    from rs_biformer.data.layouts import pattern_scenes
    from rs_biformer.evaluation import evaluate, load_protocol, write_confusion_png, write_json
    from rs_biformer.evaluation.report import TABLE_HEADER, summary_lines, table_rows

    _require_consistent(args)
    schema, protocol = _schema(args), load_protocol(args.protocol)
    protocol.averaged(schema)  # refuses classes that do not fit before anything is mapped
    scenes = [files.images for files in pattern_scenes(args.scene, None, args.extra)] if args.scene else None
    with ExitStack() as stack:
        maps = args.prediction or _predict(args, scenes or [], schema, stack)
        options = {"scenes": scenes, "tolerance": args.tolerance, "max_unknown": args.max_unknown}
        with console.progress("evaluate", "px") as progress:
            metrics = evaluate(maps, args.label, schema, protocol, **options, progress=progress)
        console.table(f"Per class, in per cent ({schema.name})", TABLE_HEADER, table_rows(metrics))
        print("\n".join(summary_lines(metrics)))
        print(write_json(args.out, metrics))
        print(write_confusion_png(_picture(args.out), metrics))
        if args.report:
            print(_write_report(args, metrics, maps, scenes))


def _require_consistent(args: argparse.Namespace) -> None:
    """Refuse options that are missing or would have no effect."""
    if args.checkpoint and not args.scene:
        raise ConfigError("--checkpoint needs --scene IMAGE..., the images that the model shall map")
    if args.prediction and not args.classes:
        raise ConfigError("--prediction needs --classes: vaihingen, potsdam, loveda or a YAML file")
    given = [name for name in ("maps", *_PASSED_ON) if getattr(args, name.replace("-", "_")) is not None]
    if args.prediction and given:
        raise ConfigError(f"--{given[0]} has no effect on maps that exist; leave it out, or give --checkpoint")
    if args.curves and not args.report:
        raise ConfigError("--curves are drawn on the page; give --report FILE.html as well")
    if args.curves and not args.curves.is_file():
        raise ConfigError(f"--curves {args.curves} does not exist; give the metrics.csv of a training")


def _schema(args: argparse.Namespace) -> "ClassSchema":
    """The class schema of the options, or of the checkpoint. Raises ConfigError when the two name other classes."""
    from rs_biformer.schema import load_schema

    given = load_schema(args.classes) if args.classes else None
    if args.checkpoint is None:
        assert given is not None
        return given
    from rs_biformer.cli.predict import load_model

    own = load_model(args.checkpoint)[1].schema
    if given is not None and given.classes != own.classes:
        raise ConfigError(
            f"{args.checkpoint} knows the classes {', '.join(own.classes)}, but --classes {args.classes} has "
            f"{', '.join(given.classes)}; leave --classes out or give the schema of the training"
        )
    return given or own


def _predict(
    args: argparse.Namespace, scenes: Sequence[Sequence[Path]], schema: "ClassSchema", stack: ExitStack
) -> list[Path]:
    """Map the scenes by `rs-biformer predict`, into --maps or a folder that goes with the stack."""
    from rs_biformer.cli import predict
    from rs_biformer.raster.labels import LabelRaster, require_pair
    from rs_biformer.raster.scene import Scene

    if len(scenes) != len(args.label):
        raise ConfigError(
            f"{len(scenes)} scenes and {len(args.label)} labels; give one label for each scene, in the same order"
        )
    for paths, label in zip(scenes, args.label, strict=True):
        with Scene(paths) as scene, LabelRaster(label, schema) as truth:
            require_pair(scene, truth)
    folder = args.maps or Path(stack.enter_context(TemporaryDirectory(prefix="rs_biformer_")))
    options = [f"--checkpoint={args.checkpoint}", f"--out={folder}"]
    values = {name: getattr(args, name.replace("-", "_")) for name in _PASSED_ON}
    options += [f"--{name}={value}" for name, value in values.items() if value is not None]
    options += ["--extra", *args.extra] if args.extra else []
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    with redirect_stdout(StringIO()):  # it lists the maps, which may be temporary
        predict.run(parser.parse_args([*args.scene, *options]))
    return [folder / f"{paths[0].stem}_classes.tif" for paths in scenes]


def _write_report(
    args: argparse.Namespace, metrics: "Metrics", maps: Sequence[Path], scenes: Sequence[Sequence[Path]] | None
) -> Path:
    from rs_biformer.evaluation import SceneView, write_page

    images = scenes if scenes is not None else [None] * len(maps)
    kept = maps if args.prediction or args.maps else []
    return write_page(
        args.report,
        metrics=metrics,
        title=args.title,
        scenes=[
            SceneView(scene.name, image, label, prediction)
            for scene, image, label, prediction in zip(metrics.scenes, images, args.label, maps, strict=True)
        ],
        curves=args.curves,
        commands=[shlex.join(["rs-biformer", *sys.argv[1:]])],
        files={"Figures (JSON)": args.out, "Confusion matrix (PNG)": _picture(args.out), **{p.name: p for p in kept}},
    )


def _picture(out: Path) -> Path:
    return out.with_name(f"{out.stem}_confusion.png")
