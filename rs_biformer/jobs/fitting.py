"""What may be done to a scene so that it fits a model."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from rs_biformer.checkpoint import CheckpointMeta
from rs_biformer.errors import ConfigError
from rs_biformer.raster.paths import PathLike

Scale = Literal["model", "ignore"]


@dataclass(frozen=True)
class Fitting:
    """How scenes are read for a model, where they do not say it themselves; see `predict.fit.open_scene`.

    bands: the bands to take, by 1-based number or name, where the scene's own names do not tell.
    nodata: the value that means no data in rasters that declare none, one for all or one for each raster of a scene;
        that of the model's scenes unless given.
    scale: `model` applies scale and offset as the model's scenes had them, `ignore` takes the numbers as they are.
    rescale_gsd, allow_gsd_mismatch: resample pixels of another size than those of training, or take them as they are.
    allow_dtype_mismatch: take values of another data type as they are.
    area: a layer of polygons; outside of them there is no data, and nothing is inferred.

    Raises ConfigError for a scale that is none.
    """

    bands: Sequence[int | str] | None = None
    nodata: tuple[float | None, ...] = ()
    scale: Scale = "model"
    rescale_gsd: bool = False
    allow_gsd_mismatch: bool = False
    allow_dtype_mismatch: bool = False
    area: PathLike | None = None

    def __post_init__(self) -> None:
        if self.scale not in get_args(Scale):
            raise ConfigError(f"scale is {self.scale!r}; it must be one of {', '.join(get_args(Scale))}")

    def of(self, meta: CheckpointMeta) -> dict[str, Any]:
        """Arguments of `open_scene` for a model."""
        return {
            "bands": meta.bands,
            "dtype": meta.dtype,
            "gsd": meta.gsd,
            "select": self.bands,
            "rescale_gsd": self.rescale_gsd,
            "allow_gsd_mismatch": self.allow_gsd_mismatch,
            "allow_dtype_mismatch": self.allow_dtype_mismatch,
            "reading": replace(meta.reading, nodata=self.nodata) if self.nodata else meta.reading,
            "ignore_scale": self.scale == "ignore",
            "area": self.area,
        }


AS_TRAINED = Fitting()
"""Nothing: scenes must be what the model was trained on."""


def parted(options: dict[str, Any]) -> tuple[Fitting, dict[str, Any]]:
    """Keywords of a job as how scenes are read and the options of prediction."""
    names = {item.name for item in fields(Fitting)}
    reading = {name: value for name, value in options.items() if name in names}
    return Fitting(**reading), {name: value for name, value in options.items() if name not in names}
