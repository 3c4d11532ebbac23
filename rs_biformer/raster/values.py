"""How the numbers in a file become values: what means that there is none, and whether scale and offset are applied."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any

from pydantic import Strict

from rs_biformer.documents import Listed, build
from rs_biformer.errors import ConfigError

Scaling = tuple[float, float]
"""Scale and offset of a band: value = number * scale + offset."""

AS_IT_IS: Scaling = (1.0, 0.0)


@dataclass(frozen=True)
class Reading:
    """How scenes are read. Index and checkpoint carry it, so that every later step reads the same values.

    nodata: the value that means no data in rasters that declare none: one for all rasters of a scene, or one for each
        in their order, None for none.
    scaled: whether each raster's own scale and offset are applied, so that values are physical (reflectance, metres).
    declared: where they are not, the scale and offset of each band that all scenes declare in common; empty where
        they declare none, or where it is not known.
    """

    nodata: Listed[float | None] = ()
    scaled: bool = False
    declared: Listed[Annotated[Scaling, Strict(False)]] = ()

    def nodata_of(self, number: int) -> float | None:
        """The value for a scene's raster of this number, counted from 0."""
        if len(self.nodata) == 1:
            return self.nodata[0]
        return self.nodata[number] if number < len(self.nodata) else None

    def require_rasters(self, paths: Sequence[object]) -> None:
        """Raise ConfigError where values are given for more or fewer rasters than a scene has."""
        if len(self.nodata) > 1 and len(self.nodata) != len(paths):
            raise ConfigError(
                f"{paths[0]}: {len(self.nodata)} values of no data are given, one for each raster, and the scene has "
                f"{len(paths)}; give --nodata one value for all, or one for each (none where there is none), and its "
                "further rasters with --extra"
            )

    def to_dict(self) -> dict[str, Any]:
        """What differs from the default, as plain lists and numbers."""
        plain = {
            "nodata": list(self.nodata),
            "scaled": self.scaled,
            "declared": [list(pair) for pair in self.declared],
        }
        return {key: value for key, value in plain.items() if value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Reading":
        """The reverse of `to_dict`. Raises ConfigError when it holds anything else."""
        return build(cls, data, "how the scenes were read")


RAW = Reading()
"""The numbers as the files hold them."""


def parse_nodata(text: str) -> tuple[float | None, ...]:
    """`-9999`, or one for each raster of a scene: `0,none,-9999`. Raises ConfigError for anything else."""
    try:
        values = tuple(None if part.strip().lower() == "none" else float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or any(value is not None and not isfinite(value) for value in values):
        raise ConfigError(
            f"--nodata {text} is no number; give one (-9999), or one for each raster of a scene (0,none,-9999). NaN "
            "and infinite pixels never count anyway"
        )
    return values


def describe(scaling: Sequence[Scaling]) -> str:
    """Scale and offset of bands in a few words: `scale 0.0001, offset -0.1`; several where bands differ."""
    kinds = list(dict.fromkeys(scaling))
    return "; ".join("none" if kind == AS_IT_IS else f"scale {kind[0]:g}, offset {kind[1]:g}" for kind in kinds[:4])
