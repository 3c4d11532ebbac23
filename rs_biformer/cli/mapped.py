"""The maps that `rs-biformer evaluate` measures: given as files, or made by a model first."""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rs_biformer.errors import ConfigError

if TYPE_CHECKING:
    from rs_biformer.evaluation import Protocol
    from rs_biformer.raster.paths import Location
    from rs_biformer.schema import ClassSchema

# Options of rs-biformer predict that mean the same here.
PASSED_ON = {
    "bands": str,
    "window": int,
    "overlap": float,
    "blend": str,
    "tta": str,
    "batch-size": int,
    "device": str,
    "precision": str,
    "max-memory": str,
    "scale": str,
}


@dataclass(frozen=True)
class MapSet:
    """The maps of one model, one for each label: their name, the files, and what is known of the model.

    kept: whether the maps stay after the command.
    """

    name: str
    maps: tuple[Path | str, ...]
    confidences: tuple[Path | str, ...] | None = None
    kept: bool = True
    about: Mapping[str, Any] = field(default_factory=dict)


def given_sets(args: argparse.Namespace) -> list[MapSet]:
    """The sets of --prediction with their --confidence. Raises ConfigError when two have one name."""
    sets = []
    for place, values in enumerate(args.prediction):
        name, first = split_name(values[0])
        certain = tuple(args.confidence[place]) if args.confidence else None
        sets.append(MapSet(name, (first, *values[1:]), certain))
    if len(sets) > 1 and not all(part.name for part in sets):
        raise ConfigError("several sets of maps need names: --prediction old=a/*.tif --prediction new=b/*.tif")
    _require_own_names(sets)
    return sets


def split_name(text: str) -> tuple[str, str]:
    """`NAME=FILE` in its two parts; a text that is a file, or has no such name before an equals sign, has none."""
    name, sign, rest = text.partition("=")
    plain = not sign or not name or Path(text).exists() or any(mark in name for mark in '/\\:"')
    return ("", text) if plain else (name, rest)


def _require_own_names(sets: Sequence[MapSet]) -> None:
    names = [part.name for part in sets]
    if len(set(names)) < len(names):
        raise ConfigError(f"the sets are called {', '.join(names)}; give each a name of its own, NAME=FILE")


def predicted_sets(
    args: argparse.Namespace,
    scenes: "Sequence[Sequence[Location]]",
    schema: "ClassSchema",
    protocols: "Sequence[Protocol]",
    stack: ExitStack,
) -> list[MapSet]:
    """The scenes mapped by each --checkpoint, into --maps or a folder that goes with the stack."""
    from rs_biformer.raster.labels import LabelRaster, require_pair
    from rs_biformer.raster.scene import Scene

    if len(scenes) != len(args.label):
        raise ConfigError(
            f"{len(scenes)} scenes and {len(args.label)} labels; give one label for each scene, in the same order"
        )
    pixels = 0
    for paths, label in zip(scenes, args.label, strict=True):
        with Scene(paths) as scene, LabelRaster(label, schema) as truth:
            require_pair(scene, truth)
            pixels += scene.height * scene.width
    models = [split_name(text) for text in args.checkpoint]
    if len(models) > 1:
        models = [(name or Path(file).stem, file) for name, file in models]
        _require_own_names([MapSet(name, ()) for name, _ in models])
    top = args.maps or Path(stack.enter_context(TemporaryDirectory(prefix="rs_biformer_")))
    passed = {**_values(args), **_stitching(args, protocols)}
    return [
        _predicted(args, scenes, name, Path(file), top / name if len(models) > 1 else top, passed, pixels)
        for name, file in models
    ]


def _values(args: argparse.Namespace) -> dict[str, Any]:
    """The options for predict that were given."""
    values = {name: getattr(args, name.replace("-", "_")) for name in PASSED_ON}
    return {name: value for name, value in values.items() if value is not None}


def _stitching(args: argparse.Namespace, protocols: "Sequence[Protocol]") -> dict[str, Any]:
    """Window and overlap as the protocols want them. Raises ConfigError where they, or the options, disagree."""
    wanted = {(rule.window, rule.overlap): rule.id for rule in protocols if rule.window}
    if not wanted:
        return {}
    if len(wanted) > 1:
        raise ConfigError(
            f"protocols {' and '.join(wanted.values())} stitch maps in different ways; evaluate the model under each "
            "alone"
        )
    ((window, overlap), rule), *_ = wanted.items()
    for name, asked, value in (("window", args.window, window), ("overlap", args.overlap, overlap)):
        if asked is not None and asked != value:
            raise ConfigError(f"--{name} is {asked}, but protocol {rule!r} asks for {value}; leave --{name} out")
    return {"window": window, "overlap": overlap}


def _predicted(
    args: argparse.Namespace,
    scenes: "Sequence[Sequence[Location]]",
    name: str,
    checkpoint: Path,
    folder: Path,
    passed: Mapping[str, Any],
    pixels: int,
) -> MapSet:
    """The scenes mapped by one model with `rs-biformer predict`."""
    from rs_biformer.cli import predict
    from rs_biformer.raster.paths import stem_of

    options = [f"--checkpoint={checkpoint}", f"--out={folder}"]
    options += [f"--{option}={value}" for option, value in passed.items()]
    options += ["--extra", *args.extra] if args.extra else []
    options += [f"--nodata={args.nodata}"] if args.nodata else []
    options += ["--allow-dtype-mismatch"] if args.allow_dtype_mismatch else []
    sure = args.confidence is not None
    # The label check asks for the probability of the label's class, calibration for that of the mapped one alone.
    layer = "probabilities" if args.find_label_errors else "confidence"
    options += [f"--{layer}"] if sure else []
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    started = perf_counter()
    with redirect_stdout(StringIO()):  # it lists the maps, which may be temporary
        predict.run(parser.parse_args([*map(str, args.scene), *options]))
    seconds = perf_counter() - started
    stems = [stem_of(paths[0]) for paths in scenes]
    return MapSet(
        name,
        tuple(folder / f"{stem}_classes.tif" for stem in stems),
        tuple(folder / f"{stem}_{layer}.tif" for stem in stems) if sure else None,
        kept=args.maps is not None,
        about=_about(checkpoint, pixels, seconds),
    )


def _about(checkpoint: Path, pixels: int, seconds: float) -> dict[str, Any]:
    """What there is to know of a model: what it is, how large, how fast it was here."""
    from rs_biformer.cli.watch import say
    from rs_biformer.jobs import load_model

    loaded = load_model(checkpoint)
    model, meta = loaded.model, loaded.meta
    if meta.shared_ground:
        say(f"note: {checkpoint} was trained on splits that overlap on the ground: {meta.shared_ground}")
    parameters = sum(value.numel() for value in model.parameters()) if hasattr(model, "parameters") else None
    return {
        "network": f"{meta.encoder} + {meta.decoder}",
        "checkpoint": checkpoint.name,
        **({"parameters": f"{parameters / 1e6:.2f} M"} if parameters else {}),
        "file size": f"{checkpoint.stat().st_size / 1e6:.1f} MB",
        "training window": f"{meta.window} px",
        **({"ground sample distance": f"{meta.gsd:g} m"} if meta.gsd else {}),
        **({"its splits overlap": meta.shared_ground} if meta.shared_ground else {}),
        "speed here": f"{pixels / seconds / 1e6:.2f} Mpx/s, reading and writing included ({seconds:.0f} s)",
    }
