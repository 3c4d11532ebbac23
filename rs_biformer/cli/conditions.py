"""Which options of `rs-biformer evaluate` belong together: one that would have no effect is refused."""

import argparse

from rs_biformer.cli.prediction import OPTIONS
from rs_biformer.errors import ConfigError

_OF_MODELS = ("maps", *(name for name in OPTIONS if name not in ("nodata", "area", "cluster")))
_OF_RASTERS = (
    *("label", "scene", "extra", "name", "pair", "classes", "map_numbers", "nodata", "area"),
    *("boundary", "confidence", "find_label_errors", "curves", "cluster", *_OF_MODELS),
)


def require_consistent(args: argparse.Namespace) -> None:
    """Raise ConfigError for options that are missing, contradict each other or would have no effect."""
    if args.compare:
        _refuse(args, _OF_RASTERS, "--compare, which reads results; leave it out")
    elif args.checkpoint:
        _refuse(args, ("map_numbers",), "maps of a model; leave it out")
        if not args.scene:
            raise ConfigError("--checkpoint needs --scene IMAGE..., the images that the model shall map")
        if args.confidence and any(args.confidence):
            raise ConfigError("--confidence takes no rasters with --checkpoint, which makes them; give it alone")
    else:
        _refuse(args, _OF_MODELS, "maps that exist; leave it out, or give --checkpoint")
        if not args.classes:
            raise ConfigError("--prediction needs --classes: vaihingen, potsdam, loveda or a YAML file")
    if args.find_label_errors:
        _require_one_sure_set(args)


def _refuse(args: argparse.Namespace, names: tuple[str, ...], what: str) -> None:
    for name in names:
        if getattr(args, name) not in (None, []):
            raise ConfigError(f"--{name.replace('_', '-')} has no effect on {what}")


def _require_one_sure_set(args: argparse.Namespace) -> None:
    if args.confidence is None:
        raise ConfigError(
            "--find-label-errors asks how sure the model is; give --confidence, with probability or confidence rasters "
            "for maps that exist"
        )
    if len(args.prediction or args.checkpoint) > 1:
        raise ConfigError("--find-label-errors takes one model or set of maps; leave the others out")
