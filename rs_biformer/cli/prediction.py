"""The options of prediction on the command line: the same in every command that maps scenes.

None has a default here: those that are given go to `predict.options`, which knows the others. The help tells them, and
a test compares.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from rs_biformer.errors import ConfigError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def add_fitting(group: Any) -> None:
    """What may be done to a scene so that it fits the model."""
    add = group.add_argument
    add("--bands", metavar="LIST", help="bands by number or name, where the scene's own names do not tell")
    add("--nodata", metavar="VALUE", help="means no data in rasters that declare nothing; one for each raster: 0,none")
    add(
        "--scale", metavar="HOW", help="ignore: numbers as they are, whatever scale is declared (model: as in training)"
    )
    add(
        "--allow-dtype-mismatch",
        action="store_true",
        default=None,
        help="take values of another data type as they are",
    )
    add("--area", metavar="FILE", help="polygons (GeoPackage, Shapefile, GeoJSON, ...); only inside counts")
    size = group.add_mutually_exclusive_group()
    size.add_argument(
        "--rescale-gsd", action="store_true", default=None, help="resample scenes to the training pixels' size"
    )
    size.add_argument(
        "--allow-gsd-mismatch", action="store_true", default=None, help="take pixels far from that size as they are"
    )


def add_windows(group: Any) -> None:
    """How a scene is looked at: `predict.options.Windows`."""
    add = group.add_argument
    add("--quality", metavar="HOW", help="fast, balanced or best: chooses window and overlap (balanced)")
    add("--window", type=int, metavar="N", help="pixels on a side (with --overlap alone those of training)")
    add("--overlap", type=float, metavar="SHARE", help="of a window common with its neighbour (--window alone: 0.5)")
    add("--blend", help="hann, average or center (hann)")
    add("--tta", help="test-time views to average: none, flips (4) or d4 (8) (none)")
    add("--scales", nargs="+", metavar="ZOOM", help="zooms of the test-time views, such as 0.75 1 1.25 (1)")


def add_compute(group: Any) -> None:
    """What computes: `predict.options.Compute`."""
    add = group.add_argument
    add("--batch-size", type=int, metavar="N", help="windows per forward pass (64 on GPUs, else 8)")
    add("--device", help="auto (all GPUs), cpu, cuda, cuda:0,cuda:1, ... (auto)")
    add("--precision", help="auto, 32 or bf16 (auto: bf16 where the hardware is good at it)")
    add(
        "--compile",
        action="store_true",
        default=None,
        help="run the model through torch.compile; pays for itself on large scenes",
    )
    add("--passes", metavar="HOW", help="of a CPU: auto, plain or fused (auto: fused in bf16, unless compiled)")
    add("--max-memory", metavar="SIZE", help="bound on what is allocated beside the model (2GB, at most 1/4 of all)")
    add_cluster(group)


def add_cluster(group: Any) -> None:
    """Whose workers do the job instead of this machine."""
    what = "dask: processes of this machine; or a scheduler's address, tcp://HOST:8786"
    group.add_argument("--cluster", metavar="WHERE", help=what)


_KEYWORDS = (
    "quality",
    "window",
    "overlap",
    "blend",
    "tta",
    "scales",
    "batch_size",
    "device",
    "precision",
    "compile",
    "passes",
    "max_memory",
)
FITTING = ("bands", "nodata", "scale", "rescale_gsd", "allow_gsd_mismatch", "allow_dtype_mismatch", "area")
OPTIONS = (*FITTING, *_KEYWORDS, "cluster")
"""What the functions above declare."""


def given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Those of the options that were given, as keywords of the functions in `jobs`.

    Raises ConfigError for a text that cannot be read.
    """
    from rs_biformer.raster.values import parse_nodata

    read: dict[str, Callable[[Any], Any]] = {
        "nodata": parse_nodata,
        "scales": parse_scales,
        "max_memory": parse_size,
        "device": _devices,
        "bands": parse_bands,
    }
    values = {name: getattr(args, name, None) for name in names}
    return {name: read.get(name, _as_is)(value) for name, value in values.items() if value is not None}


def _as_is(value: Any) -> Any:
    return value


def _devices(text: str) -> str | list[str]:
    names = text.split(",")
    return names if len(names) > 1 else text


def parse_bands(text: str) -> list[int | str]:
    """Bands from 4,1,2 or nir,red,green. Raises ConfigError for an empty one."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ConfigError(f"--bands is {text!r}; write numbers or names with commas between, such as 4,1,2")
    return [int(part) if part.isdecimal() and part.isascii() else part for part in parts]


def parse_numbers(option: str, text: str) -> list[float]:
    """Numbers from 1.5,2,3. Raises ConfigError for anything else."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"{option} is {text!r}; write numbers with commas between, such as 123.7,116.3,103.5"
        ) from None


def parse_scales(texts: Sequence[str]) -> tuple[float, ...]:
    """Zooms from 0.75 1 1.25 or 0.75,1,1.25. Raises ConfigError for anything else."""
    try:
        return tuple(float(part) for text in texts for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{' '.join(texts)!r} are no scales; write them as 0.75 1 1.25") from None


def parse_size(text: str) -> int:
    """Bytes from 500MB, 2GB or a plain number. Raises ConfigError for anything else."""
    number, unit = text.strip().lower().removesuffix("b"), ""
    if number[-1:] in _UNITS:
        number, unit = number[:-1], number[-1:]
    try:
        return int(float(number) * _UNITS[unit])
    except (ValueError, OverflowError):
        raise ConfigError(f"{text!r} is no size in memory; write it as 500MB or 2GB") from None
