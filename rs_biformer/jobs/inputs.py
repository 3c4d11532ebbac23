"""Sets of maps and models as people name them: `old=a/*_classes.tif`, `new=best.ckpt`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rs_biformer.errors import ConfigError
from rs_biformer.jobs.evaluating import MapSet, require_own_names
from rs_biformer.jobs.pairing import PairBy
from rs_biformer.jobs.truths import Say, Truths, files_for, silent
from rs_biformer.raster.paths import PathLike


@dataclass(frozen=True)
class Named:
    """Files that go by one name, which is empty where none was given."""

    name: str
    files: tuple[str, ...]


def named(values: Sequence[str]) -> Named:
    """`NAME=FILE` and further files; a first text that is a file, or has no name before an equals sign, has none."""
    first = values[0]
    name, sign, rest = first.partition("=")
    plain = not sign or not name or Path(first).exists() or any(mark in name for mark in '/\\:"{')
    return Named("", tuple(values)) if plain else Named(name, (rest, *values[1:]))


_READ = ("scene", "label", "extra", "compare", "protocol")


def named_files(options: Mapping[str, Any]) -> list[PathLike | None]:
    """What the options of `rs-biformer evaluate` name for reading, as it was typed."""
    sets = [named(values) for values in options["prediction"] or []]
    sets += [named([value]) for value in options["checkpoint"] or []]
    listed = [path for values in options["confidence"] or [] for path in values]
    listed += [path for name in _READ for path in options[name] or []]
    return [*(path for part in sets for path in part.files), *listed, options["classes"], options["area"]]


def named_models(values: Sequence[str]) -> dict[str, Path]:
    """Checkpoints by name: that of the file where there are several and none was given.

    Raises ConfigError when two have one name.
    """
    found = [(each.name, Path(each.files[0])) for each in (named([value]) for value in values)]
    if len(found) > 1:
        found = [(name or path.stem, path) for name, path in found]
        require_own_names([name for name, _ in found])
    return dict(found)


def map_sets(
    sets: Sequence[Named],
    truths: Truths,
    confidences: Sequence[Sequence[str]] | None = None,
    *,
    pair: PairBy = "auto",
    say: Say = silent,
) -> list[MapSet]:
    """Sets of maps, each map beside the label that it belongs to. confidences: rasters for each set, where given.

    Raises ConfigError when two sets have one name, and for files that are missing or stand beside the wrong label.
    """
    require_own_names([part.name for part in sets])
    if confidences is not None and (not all(confidences) or len(confidences) != len(sets)):
        raise ConfigError(
            f"{len(sets)} sets of --prediction and {len([part for part in confidences if part])} of --confidence "
            "rasters; give one --confidence RASTER... for each --prediction"
        )
    found = []
    for place, part in enumerate(sets):
        certain = None
        if confidences is not None:
            certain = files_for(truths, confidences[place], "confidence", pair, say)
        found.append(MapSet(part.name, files_for(truths, part.files, "prediction", pair, say), certain))
    return found
