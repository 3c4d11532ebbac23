import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rs_biformer.cli import console
from rs_biformer.cli.conditions import require_consistent
from rs_biformer.cli.console import say
from rs_biformer.cli.labels import add_label_arguments, label_options
from rs_biformer.cli.prediction import OPTIONS, add_compute, add_fitting, add_windows, given
from rs_biformer.files import temporary_folder

if TYPE_CHECKING:
    from rs_biformer.jobs import Evaluation, Rules

HELP = "measure class maps against labels: figures with intervals, comparisons, an HTML page, suspicious labels"
EXAMPLE = """rs-biformer evaluate --prediction maps/*_classes.tif --label test/*_label.tif \\
      --classes potsdam --out metrics.json
  rs-biformer evaluate --checkpoint best.ckpt --scene test/*_image.tif --label '{dir}/{name}_label.tif' \\
      --maps maps --confidence --out metrics.json --report report.html --card MODEL_CARD.md
  rs-biformer evaluate --prediction old=a/*_classes.tif --prediction new=b/*_classes.tif \\
      --label test/*_label.tif --classes potsdam --out both.json --report both.html
  rs-biformer evaluate --compare old.json new.json --out both.json

A label is found by a PATTERN from its scene (or map), as in rs-biformer tile; a list of PAIRS, a .csv file given as
--scene, names both. Files in lists are paired in the order given where their names confirm it; a permutation, such as a
shell's map_1 map_10 map_2 beside truth_01 truth_02, is refused. A map may have pixels of another size than its label on
the same ground: the label's grid counts.
Labelled pixels without a prediction count as errors; with
--scene, pixels that the scene has no data for are ignored. Labels are given in full: a protocol that wants eroded
boundaries erodes them itself. Several models or sets of maps are compared, pair by pair, on the same pixels.
Protocols: all-classes, isprs-official, geoseg-legacy, ssrs-12-4, mmseg-6class, or a YAML file with the keys id,
description, exclude, excluded_labels, ignore_boundary, pad_to, pad_class, window, overlap, scene_pattern, train, test,
cautions."""
_DRAWING = ("unit", "samples")
"""Options that are fields of `evaluation.Resampling`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer evaluate`."""
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prediction", nargs="+", action="append", metavar="[NAME=]MAP", help="class maps; repeatable")
    what.add_argument("--checkpoint", nargs="+", metavar="[NAME=]FILE", help="models that map the scenes first")
    what.add_argument("--compare", nargs="+", type=Path, metavar="JSON", help="results of evaluate, without rasters")
    add("--out", required=True, type=Path, metavar="JSON", help="figures; NAME_confusion.png is written beside it")
    add = parser.add_argument_group("rasters").add_argument
    add(
        "--scene", nargs="+", default=[], metavar="SCENE", help="images, for --checkpoint, nodata and the report; PAIRS"
    )
    add("--extra", nargs="+", default=[], metavar="PATTERN", help="further rasters per scene, as in rs-biformer tile")
    add(
        "--label", nargs="+", default=[], metavar="LABEL", help="a pattern, or label rasters, one for each map or scene"
    )
    add(
        "--pair", metavar="HOW", help="files in lists by names or order (auto: in order, where names do not contradict)"
    )
    add("--name", metavar="PATTERN", help="what scenes are called, such as {parent}_{stem} (what their files share)")
    add("--classes", metavar="SCHEMA", help="vaihingen, potsdam, loveda or a YAML file (the checkpoint's own)")
    add("--map-numbers", metavar="KIND", help="what maps hold: class indices or label values (found out or refused)")
    add(
        "--confidence",
        nargs="*",
        action="append",
        metavar="RASTER",
        help="for calibration: confidence or probabilities, one for each map; with --checkpoint no value",
    )
    add = parser.add_argument_group("figures").add_argument
    add("--protocol", nargs="+", metavar="ID", help="what is scored and averaged; several at once (all-classes)")
    add("--boundary", nargs="+", type=float, default=[], metavar="PX", help="also boundary F1 within these distances")
    add(
        "--resample",
        dest="unit",
        metavar="UNIT",
        help="intervals and tests from blocks of 512 px, or from scenes (blocks)",
    )
    add("--samples", type=int, help="draws for intervals and tests (2000)")
    add("--tolerance", type=int, default=0, help="largest difference per channel of near label colours (0: exact)")
    add("--max-unknown", type=float, default=0.01, help="share of unknown pixels at which a label is refused (0.01)")
    add("--allow-huge", action="store_true", help="measure a raster of more than 1e11 pixels")
    add_label_arguments(parser)
    add = parser.add_argument_group("more to write").add_argument
    add("--report", type=Path, metavar="HTML", help="also write one self-contained page")
    add("--card", type=Path, metavar="MD", help="also write a model card in Markdown")
    add("--title", default="Evaluation", help="heading of the page and the card")
    add("--curves", type=Path, metavar="CSV", help="metrics.csv of the training, for the page")
    add("--find-label-errors", type=Path, metavar="GPKG", help="where a sure model and the label disagree, ranked")
    group = parser.add_argument_group("with --checkpoint, as in rs-biformer predict")
    group.add_argument("--maps", type=Path, metavar="DIR", help="keep the class maps in this folder")
    add_fitting(group)
    add_windows(group)
    add_compute(group)


def run(args: argparse.Namespace) -> None:
    """Predict if asked to, evaluate, compare, show the figures and write them."""
    from rs_biformer.cli import tables
    from rs_biformer.jobs import Outputs, command_line, compare_results, named_files, write_outputs

    require_consistent(args)
    typed = [command_line("rs-biformer", sys.argv[1:])]
    outputs = Outputs(args.out, args.report, args.card, args.find_label_errors, args.title, args.curves, typed)
    outputs.require_apart(named_files(vars(args)))
    with ExitStack() as stack:
        if args.compare:
            evaluation = compare_results(args.compare, args.protocol or [], given(args, _DRAWING))
        else:
            evaluation = _measure(args, stack)
        tables.evaluation(evaluation)
        for path in write_outputs(evaluation, outputs, progress=console.progress, say=console.show):
            console.show(path)


def _measure(args: argparse.Namespace, stack: ExitStack) -> "Evaluation":
    """The maps against the labels, mapped first where models are given."""
    from rs_biformer.cli.watch import Watch
    from rs_biformer.jobs import evaluate_maps, evaluate_models, find_truths, map_sets, named, named_models
    from rs_biformer.schema import load_schema

    schema: Any = load_schema(args.classes) if args.classes else None  # maps that exist always have one
    pair: Any = args.pair or "auto"
    sets = [named(values) for values in args.prediction or []]
    maps = sets[0].files if sets else ()
    truths = find_truths(args.scene, args.label, maps=maps, extra=args.extra, name=args.name, pair=pair, say=say)
    if sets:
        found = map_sets(sets, truths, args.confidence, pair=pair, say=say)
        return evaluate_maps(found, truths, schema, _rules(args), args.cluster, progress=console.progress, say=say)
    watch = stack.enter_context(Watch(listed=False))
    stack.enter_context(console.interruptible(lambda: "run the same command again"))
    # The label check asks for the probability of the label's class, calibration for that of the mapped one alone.
    layer = "probabilities" if args.find_label_errors else "confidence"
    return evaluate_models(
        named_models(args.checkpoint),
        truths,
        args.maps or stack.enter_context(temporary_folder()),
        schema=schema,
        rules=_rules(args),
        layer=None if args.confidence is None else layer,
        kept=args.maps is not None,
        tell=watch,
        progress=console.progress,
        say=say,
        **given(args, OPTIONS),
    )


def _rules(args: argparse.Namespace) -> "Rules":
    from rs_biformer.evaluation import Resampling
    from rs_biformer.jobs import Rules

    return Rules(
        args.protocol or ("all-classes",),
        resampling=Resampling(**given(args, _DRAWING)),
        numbers=args.map_numbers or "auto",
        labelling=label_options(args),
        **given(args, ("boundary", "tolerance", "max_unknown", "nodata", "area", "allow_huge")),
    )
