"""What happens while many scenes are mapped, told one after the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rs_biformer.predict.plan import Plan
from rs_biformer.raster.paths import Location, without_access


@dataclass(frozen=True)
class Checked:
    """All scenes are listed and fit the model; so many there are."""

    total: int


@dataclass(frozen=True)
class Planned:
    """A scene is about to be mapped, by this plan: the `number`th of `total`.

    resampled: those of its rasters that are read on another grid than their own; pixel: the size of its pixels.
    """

    name: str
    number: int
    total: int
    plan: Plan
    resampled: tuple[Location, ...]
    pixel: str


@dataclass(frozen=True)
class Remarked:
    """Something about a scene may mean something else than it is taken for, see `raster.remarks`."""

    name: str
    line: str


@dataclass(frozen=True)
class Advanced:
    """So many of a scene's windows are done."""

    name: str
    done: int
    total: int


@dataclass(frozen=True)
class Mapped:
    """The maps of a scene are there, complete: by the name of their layer, `classes` first."""

    name: str
    rasters: tuple[Location, ...]
    maps: Mapping[str, Path]
    pixels: int
    metres_per_pixel: float | None
    windows: int
    memory_bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            **vars(self),
            "rasters": [without_access(str(path)) for path in self.rasters],
            "maps": {layer: str(path) for layer, path in self.maps.items()},
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Skipped:
    """A scene was left alone, as its maps were there."""

    name: str
    maps: Mapping[str, Path]


@dataclass(frozen=True)
class Failed:
    """A scene could not be mapped; the next one is taken."""

    name: str
    error: Exception


Event = Checked | Planned | Remarked | Advanced | Mapped | Skipped | Failed
