import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rs_biformer.cli import console
from rs_biformer.cli.prediction import OPTIONS, add_compute, add_fitting, add_windows, given

if TYPE_CHECKING:
    from rs_biformer.jobs import MappingReport

HELP = "map scenes of any size with a trained model: georeferenced class maps, on request probabilities"
EXAMPLE = """rs-biformer predict images/*.tif --checkpoint runs/first/best.ckpt --out maps
  rs-biformer predict ortho.tif --extra '{dir}/{stem}_ndsm.tif' --checkpoint model.ckpt --out maps --confidence
  rs-biformer predict ortho.tif --checkpoint a.ckpt b.safetensors c.onnx --out maps --disagreement
  rs-biformer predict tonight.txt --checkpoint model.onnx --out maps --max-memory 500MB --json

A SCENE is a raster, a quoted glob, a folder (all rasters in it), a list (a .txt file or @FILE: one of these a line,
# for comments, paths from the list's folder), a URL (https://, s3://, gs://, az://) or what else GDAL opens by name; or
a STAC Item, Collection or search result (items.json, items.json#visual, items.json#red,green,blue: assets by key).
All scenes are checked before the first is mapped. A scene that fails afterwards (a block that cannot be read, say)
does not stop the others; those that failed are named at the end, and the exit code is 2.

Writes DIR/STEM_classes.tif, a Cloud Optimized GeoTIFF with nodata 255 where the scene has none, and a QGIS style
beside it. A map that exists is replaced, and only once the new one is complete: the same scene, model and options give
the same bytes. When it is interrupted, the same command goes on from the last finished strip.
Several models of one schema, bands and pixel size are an ensemble: their probabilities are averaged, and --disagreement
is the mutual information between class and model (0 where all say the same, 1 where they could not differ more).
Probabilities and the other layers are uint8 in steps of 1/250, nodata 255; or float16, nodata NaN.

Rasters of one scene may lie on different grids: those of --extra are resampled to the grid of the SCENE while they are
read. With --rescale-gsd the map has the pixels of the model and not those of the scene, georeferenced accordingly."""

LAYERS = {
    "probabilities": "a band per class",
    "confidence": "the probability of the class that won",
    "margin": "how far it is ahead of the second",
    "entropy": "0 where one class is certain, 1 where all are alike",
    "disagreement": "how much several models differ, or the test-time views (--tta, --scales) of one",
}
"""Maps beside the class map, by their option and the end of their file's name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer predict`."""
    add = parser.add_argument
    add("scenes", nargs="+", metavar="SCENE", help="rasters, quoted globs, folders, lists, URLs; see below")
    add(
        "--checkpoint",
        required=True,
        action="append",
        metavar="FILE",
        help="from rs-biformer train, or export (.safetensors, .onnx); several are averaged",
    )
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the maps")
    group = parser.add_argument_group("scenes")
    add = group.add_argument
    add("--extra", nargs="+", default=[], metavar="PATTERN", help="further rasters per scene, as in rs-biformer tile")
    add("--exclude", nargs="+", default=[], metavar="GLOB", help="file names to leave out, such as '*_label.tif'")
    add("--name", default="{stem}", metavar="PATTERN", help="STEM of the maps, such as {parent}_{stem} ({stem})")
    add("--skip-existing", action="store_true", help="leave scenes alone whose maps are all there, by whatever model")
    add_fitting(group)
    add_windows(parser.add_argument_group("windows"))
    add = parser.add_argument_group("maps").add_argument
    for layer, what in LAYERS.items():
        add(f"--{layer}", action="store_true", help=f"also write STEM_{layer}.tif: {what}")
    add("--probability-dtype", metavar="TYPE", help="of these layers: uint8 or float16 (uint8)")
    add("--stac", action="store_true", help="also write STEM.stac.json: a STAC Item of the maps of each scene")
    add("--json", action="store_true", help="print a summary as JSON and not the list of maps")
    group = parser.add_argument_group("machine")
    add_compute(group)
    what = "start half-written maps over, also those of another model or options"
    group.add_argument("--restart", action="store_true", default=None, help=what)


def run(args: argparse.Namespace) -> None:
    """Map the scenes, show how it goes, and say at the end what became of them."""
    from rs_biformer.cli.watch import Watch
    from rs_biformer.jobs import ScenesFailed, map_scenes

    with Watch(listed=not args.json) as watch, console.interruptible(watch.advice):
        try:
            report = map_scenes(
                args.scenes,
                _models(args),
                args.out,
                layers=[layer for layer in LAYERS if getattr(args, layer)],
                extra=args.extra,
                exclude=args.exclude,
                name=args.name,
                skip_existing=args.skip_existing,
                stac=args.stac,
                tell=watch,
                **given(args, (*OPTIONS, "probability_dtype", "restart")),
            )
        except ScenesFailed as failure:
            _conclude(args, failure.report)
            raise
    _conclude(args, report)


def _models(args: argparse.Namespace) -> Any:
    """The one model that was given, or a list of several."""
    return args.checkpoint[0] if len(args.checkpoint) == 1 else args.checkpoint


def _conclude(args: argparse.Namespace, report: "MappingReport") -> None:
    import json

    if args.json:
        console.document(json.dumps({"model": _models(args), **report.to_dict()}, indent=2))
    if count := len(report.skipped):
        console.say(f"{count} scene{'s were' if count > 1 else ' was'} left alone, as the maps are there")
