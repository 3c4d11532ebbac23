import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rs_biformer.cli.mapped import PASSED_ON, MapSet, given_sets, predicted_sets
from rs_biformer.errors import ConfigError

if TYPE_CHECKING:
    from rs_biformer.evaluation import Metrics, Resampling
    from rs_biformer.evaluation.compare import Comparison
    from rs_biformer.raster.paths import Location
    from rs_biformer.schema import ClassSchema

HELP = "measure class maps against labels: figures with intervals, comparisons, an HTML page, suspicious labels"
EXAMPLE = """rs-biformer evaluate --prediction maps/*_classes.tif --label test/*_label.tif \\
      --classes potsdam --out metrics.json
  rs-biformer evaluate --checkpoint best.ckpt --scene test/*_image.tif --label test/*_label.tif \\
      --maps maps --confidence --out metrics.json --report report.html --card MODEL_CARD.md
  rs-biformer evaluate --prediction old=a/*_classes.tif --prediction new=b/*_classes.tif \\
      --label test/*_label.tif --classes potsdam --out both.json --report both.html
  rs-biformer evaluate --compare old.json new.json --out both.json

Maps, labels and scenes are paired in the order given. Labelled pixels without a prediction count as errors; with
--scene, pixels that the scene has no data for are ignored. Labels are given in full: a protocol that wants eroded
boundaries erodes them itself. Several models or sets of maps are compared, pair by pair, on the same pixels.
Protocols: all-classes, isprs-official, geoseg-legacy, ssrs-12-4, mmseg-6class, or a YAML file with the keys id,
description, exclude, excluded_labels, ignore_boundary, pad_to, pad_class, window, overlap, scene_pattern, train, test,
cautions."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer evaluate`."""
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prediction", nargs="+", action="append", metavar="[NAME=]MAP", help="class maps; repeatable")
    what.add_argument("--checkpoint", nargs="+", metavar="[NAME=]FILE", help="models that map the scenes first")
    what.add_argument("--compare", nargs="+", type=Path, metavar="JSON", help="results of evaluate, without rasters")
    add("--scene", nargs="+", metavar="SCENE", help="images: to be mapped by --checkpoint; for nodata and the report")
    add("--extra", nargs="+", default=[], metavar="PATTERN", help="further rasters per scene, as in rs-biformer tile")
    add("--label", nargs="+", metavar="LABEL", help="label rasters, one for each map")
    add("--classes", metavar="SCHEMA", help="vaihingen, potsdam, loveda or a YAML file (the checkpoint's own)")
    add("--out", required=True, type=Path, metavar="JSON", help="figures; NAME_confusion.png is written beside it")
    add("--protocol", nargs="+", metavar="ID", help="what is scored and averaged; several at once (all-classes)")
    add("--boundary", nargs="+", type=float, default=[], metavar="PX", help="also boundary F1 within these distances")
    add(
        "--confidence",
        nargs="*",
        action="append",
        metavar="RASTER",
        help="for calibration: confidence or probabilities, one for each map; with --checkpoint no value",
    )
    add("--resample", metavar="UNIT", help="intervals and tests from blocks of 512 px, or from scenes (blocks)")
    add("--samples", type=int, help="draws for intervals and tests (2000)")
    add("--tolerance", type=int, default=0, help="largest difference per channel of near label colours (0: exact)")
    add("--max-unknown", type=float, default=0.01, help="share of unknown pixels at which a label is refused (0.01)")
    add("--report", type=Path, metavar="HTML", help="also write one self-contained page")
    add("--card", type=Path, metavar="MD", help="also write a model card in Markdown")
    add("--title", default="Evaluation", help="heading of the page and the card")
    add("--curves", type=Path, metavar="CSV", help="metrics.csv of the training, for the page")
    add("--find-label-errors", type=Path, metavar="GPKG", help="where a sure model and the label disagree, ranked")
    add(
        "--nodata",
        metavar="VALUE",
        help="means no data in scenes that declare nothing (with --checkpoint: the model's)",
    )
    more = parser.add_argument_group("with --checkpoint")
    more.add_argument("--maps", type=Path, metavar="DIR", help="keep the class maps in this folder")
    for name, kind in PASSED_ON.items():
        more.add_argument(f"--{name}", type=kind, help="as in rs-biformer predict")
    more.add_argument("--allow-dtype-mismatch", action="store_true", help="as in rs-biformer predict")


def run(args: argparse.Namespace) -> None:
    """Predict if asked to, evaluate, compare, show the figures and write them."""
    _require_consistent(args)
    with ExitStack() as stack:
        if args.compare:
            sets: list[MapSet] = []
            results = _read(args)
        else:
            sets, results = _measure(args, stack)
        comparisons = _compare(results)
        _show(results, comparisons)
        for path in _write(args, results, comparisons, sets):
            print(path)


def _require_consistent(args: argparse.Namespace) -> None:
    """Refuse options that are missing or would have no effect."""
    if args.compare:
        _require_only_results(args)
    elif not args.label:
        raise ConfigError("--label is missing; give one label raster for each map or scene, in the same order")
    if args.checkpoint and not args.scene:
        raise ConfigError("--checkpoint needs --scene IMAGE..., the images that the model shall map")
    if args.prediction and not args.classes:
        raise ConfigError("--prediction needs --classes: vaihingen, potsdam, loveda or a YAML file")
    given = [name for name in ("maps", *PASSED_ON) if getattr(args, name.replace("-", "_")) is not None]
    if not args.checkpoint and given:
        raise ConfigError(f"--{given[0]} has no effect on maps that exist; leave it out, or give --checkpoint")
    if args.curves and not args.report:
        raise ConfigError("--curves are drawn on the page; give --report FILE.html as well")
    if args.curves and not args.curves.is_file():
        raise ConfigError(f"--curves {args.curves} does not exist; give the metrics.csv of a training")
    _require_confidence(args)


def _require_only_results(args: argparse.Namespace) -> None:
    for name in ("scene", "label", "classes", "boundary", "confidence", "find_label_errors", "curves"):
        if getattr(args, name):
            raise ConfigError(
                f"--{name.replace('_', '-')} has no effect on --compare, which reads results; leave it out"
            )


def _require_confidence(args: argparse.Namespace) -> None:
    given = args.confidence
    if args.checkpoint and given and any(given):
        raise ConfigError("--confidence takes no rasters with --checkpoint, which makes them; give it alone")
    if args.prediction and given is not None and ([] in given or len(given) != len(args.prediction)):
        raise ConfigError(
            f"{len(args.prediction)} sets of --prediction and {len([part for part in given if part])} of --confidence "
            "rasters; give one --confidence RASTER... for each --prediction"
        )
    if args.find_label_errors and given is None:
        raise ConfigError(
            "--find-label-errors asks how sure the model is; give --confidence, with probability or confidence rasters "
            "for maps that exist"
        )
    if args.find_label_errors and len(args.prediction or args.checkpoint) > 1:
        raise ConfigError("--find-label-errors takes one model or set of maps; leave the others out")


def _measure(args: argparse.Namespace, stack: ExitStack) -> "tuple[list[MapSet], list[Metrics]]":
    """The sets of maps, mapped first where models are given, and each one's results under each protocol."""
    from rs_biformer.cli import console
    from rs_biformer.evaluation import evaluate_protocols, load_protocol

    schema = _schema(args)
    protocols = [load_protocol(name) for name in args.protocol or ["all-classes"]]
    for protocol in protocols:
        protocol.averaged(schema)  # refuses classes that do not fit before anything is mapped
    scenes = _scenes(args)
    sets = predicted_sets(args, scenes or [], schema, protocols, stack) if args.checkpoint else given_sets(args)
    results = []
    for part in sets:
        with console.progress(part.name or "evaluate", "px") as progress:
            found = evaluate_protocols(
                part.maps,
                args.label,
                schema,
                protocols,
                scenes=scenes,
                confidences=part.confidences,
                boundary=args.boundary,
                resampling=_resampling(args),
                tolerance=args.tolerance,
                max_unknown=args.max_unknown,
                nodata=_nodata(args),
                progress=progress,
            )
        results += [replace(metrics, name=part.name, about=part.about) for metrics in found]
    return sets, results


def _nodata(args: argparse.Namespace) -> tuple[float | None, ...]:
    """What means no data in the scenes: as said, or as the model's scenes had it."""
    from rs_biformer.raster.values import parse_nodata

    if args.nodata:
        return parse_nodata(args.nodata)
    if args.checkpoint:
        from rs_biformer.cli.mapped import split_name
        from rs_biformer.jobs import load_model

        return load_model(split_name(args.checkpoint[0])[1]).meta.reading.nodata
    return ()


def _resampling(args: argparse.Namespace) -> "Resampling":
    from rs_biformer.evaluation import Resampling

    given = {"unit": args.resample, "samples": args.samples}
    return Resampling(**{name: value for name, value in given.items() if value is not None})


def _scenes(args: argparse.Namespace) -> "list[tuple[Location, ...]] | None":
    from rs_biformer.data.layouts import pattern_scenes

    return [files.images for files in pattern_scenes(args.scene, None, args.extra)] if args.scene else None


def _schema(args: argparse.Namespace) -> "ClassSchema":
    """The class schema of the options, or of the checkpoints. Raises ConfigError when two name other classes."""
    from rs_biformer.schema import load_schema

    known = {f"--classes {args.classes}": load_schema(args.classes)} if args.classes else {}
    for text in args.checkpoint or []:
        from rs_biformer.cli.mapped import split_name
        from rs_biformer.jobs import load_model

        file = split_name(text)[1]
        known[file] = load_model(file).schema
    (first, schema), *others = known.items()
    for other, theirs in others:
        if theirs.classes != schema.classes:
            raise ConfigError(
                f"{other} knows the classes {', '.join(theirs.classes)}, but {first} has "
                f"{', '.join(schema.classes)}; leave --classes out or give the schema of the training"
            )
    return schema


def _read(args: argparse.Namespace) -> "list[Metrics]":
    """The results of --compare. Raises ConfigError unless they are of the protocols of --protocol, where given."""
    from rs_biformer.evaluation import load_protocol, read_results

    results = [metrics for path in args.compare for metrics in read_results(path)]
    if args.protocol:
        for protocol in map(load_protocol, args.protocol):
            if protocol not in [metrics.protocol for metrics in results]:
                held = ", ".join(dict.fromkeys(metrics.protocol.id for metrics in results))
                raise ConfigError(
                    f"--protocol {protocol.id} is in none of the results, which hold {held}; figures of several "
                    "protocols are never mixed, evaluate the maps under it"
                )
        wanted = {load_protocol(name).id for name in args.protocol}
        foreign = [metrics for metrics in results if metrics.protocol.id not in wanted]
        if foreign:
            raise ConfigError(
                f"{foreign[0].name} was measured under protocol {foreign[0].protocol.id!r} and --protocol asks for "
                f"{', '.join(sorted(wanted))}; such figures cannot be compared"
            )
    if args.resample or args.samples:
        results = [replace(metrics, resampling=_resampling(args)) for metrics in results]
    return results


def _compare(results: "Sequence[Metrics]") -> "dict[str, list[Comparison]]":
    """By protocol, what sets the models apart. Raises ConfigError where a model lacks a protocol of the others."""
    from rs_biformer.evaluation.compare import compare

    protocols = list(dict.fromkeys(metrics.protocol.id for metrics in results))
    names = list(dict.fromkeys(metrics.name for metrics in results))
    if len(names) == 1:
        return {}
    for protocol in protocols:
        there = [metrics.name for metrics in results if metrics.protocol.id == protocol]
        missing = [name for name in names if name not in there]
        if missing:
            other = next(metrics.protocol.id for metrics in results if metrics.name == missing[0])
            raise ConfigError(
                f"{there[0]} was measured under protocol {protocol!r} and {missing[0]} under {other!r}; such figures "
                "cannot be compared, evaluate both under one"
            )
    return {
        protocol: compare([metrics for metrics in results if metrics.protocol.id == protocol]) for protocol in protocols
    }


def _show(results: "Sequence[Metrics]", comparisons: "Mapping[str, Sequence[Comparison]]") -> None:
    """The figures as tables: of one model in full, of several side by side with what sets them apart."""
    from rs_biformer.cli import console
    from rs_biformer.evaluation import report
    from rs_biformer.evaluation.compare import sentences

    for protocol in dict.fromkeys(metrics.protocol.id for metrics in results):
        mine = [metrics for metrics in results if metrics.protocol.id == protocol]
        if len(mine) == 1:
            title = f"Per class, in per cent ({mine[0].schema.name}, {protocol})"
            console.table(title, report.TABLE_HEADER, report.table_rows(mine[0]))
            print("\n".join(report.summary_lines(mine[0])))
            continue
        console.table(f"In per cent ({protocol})", report.COMPARE_HEADER, report.compare_rows(mine))
        console.table("In points", report.DIFFERENCE_HEADER, report.difference_rows(comparisons[protocol]))
        print("\n".join(sentences(comparisons[protocol])))


def _write(
    args: argparse.Namespace,
    results: "Sequence[Metrics]",
    comparisons: "Mapping[str, Sequence[Comparison]]",
    sets: Sequence[MapSet],
) -> list[Path]:
    """Every file that was asked for, in the order written."""
    from rs_biformer.evaluation import write_card, write_confusion_png, write_json, write_results

    first = results[0]
    single = len(results) == 1
    written = [write_json(args.out, first) if single else write_results(args.out, results, comparisons)]
    if single:
        written.append(write_confusion_png(_picture(args.out), first))
    if args.report:
        written.append(_write_report(args, results, comparisons, sets, written))
    if args.card:
        written.append(write_card(args.card, first, title=args.title, commands=[_command()]))
    if args.find_label_errors:
        written.append(_find_label_errors(args, sets[0], first))
    return written


def _command() -> str:
    return shlex.join(["rs-biformer", *sys.argv[1:]])


def _write_report(
    args: argparse.Namespace,
    results: "Sequence[Metrics]",
    comparisons: "Mapping[str, Sequence[Comparison]]",
    sets: Sequence[MapSet],
    written: Sequence[Path],
) -> Path:
    from rs_biformer.evaluation import SceneView, write_page

    views = []
    if sets:
        images: Sequence[tuple[Location, ...] | None] = _scenes(args) or [None] * len(args.label)
        for place, scene in enumerate(results[0].scenes):
            maps = {part.name or "Prediction": part.maps[place] for part in sets}
            views.append(SceneView(scene.name, images[place], args.label[place], maps))
    kept = [Path(path) for part in sets if part.kept for path in part.maps]
    return write_page(
        args.report,
        metrics=results[0],
        others=results[1:],
        comparisons=comparisons,
        title=args.title,
        scenes=views,
        curves=args.curves,
        commands=[_command()],
        files={**{"Figures (JSON)": args.out}, **{path.name: path for path in [*written[1:], *kept]}},
    )


def _find_label_errors(args: argparse.Namespace, maps: MapSet, metrics: "Metrics") -> Path:
    from rs_biformer.cli import console
    from rs_biformer.evaluation import find_label_errors

    assert maps.confidences is not None
    with console.progress("label errors", "px") as progress:
        found = find_label_errors(
            maps.maps,
            args.label,
            maps.confidences,
            metrics.schema,
            args.find_label_errors,
            scenes=_scenes(args),
            tolerance=args.tolerance,
            progress=progress,
        )
    print(f"{found} places where the labels may be wrong, ranked")
    return args.find_label_errors


def _picture(out: Path) -> Path:
    return out.with_name(f"{out.stem}_confusion.png")
