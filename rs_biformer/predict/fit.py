"""Whether a scene is what a model was trained on: bands, dtype, ground sample distance."""

import os
import re
from collections.abc import Sequence

import numpy as np

from rs_biformer.errors import RasterError
from rs_biformer.raster.scene import Scene

PathLike = str | os.PathLike[str]

GSD_TOLERANCE = 1.5
"""Pixels larger or smaller than the training pixels by more than this factor are refused."""

# Names that a file without descriptions ends up with: they say where a band is, not what it shows.
_NAMELESS = re.compile(r"band\d+|gray(_\d+)?|alpha")


def open_scene(
    paths: PathLike | Sequence[PathLike],
    *,
    bands: Sequence[str],
    dtype: str | np.dtype,
    gsd: float | None,
    select: Sequence[int | str] | None = None,
    allow_gsd_mismatch: bool = False,
) -> Scene:
    """Open a scene with the bands that a model takes, in the model's order.

    bands, dtype, gsd: what the model was trained on; gsd in metres per pixel, None when unknown.
    select: the bands to take, by 1-based number or name, where the scene's own names do not tell.

    Bands are found by name, whatever their order in the file. A scene (or a model) whose bands have no names is taken
    in its order when the number of bands agrees.

    Raises RasterError, saying what the model expects, when the bands, the dtype or the ground sample distance do not
    fit.
    """
    scene = Scene(paths, bands=select) if select else _select(paths, bands)
    if scene.count != len(bands):
        raise RasterError(
            f"{scene.path} has {_bands(scene.band_names)}; the model takes {_bands(bands)}: "
            "add the missing raster, or choose among the bands with --bands"
        )
    _require_dtype(scene, np.dtype(dtype))
    if not allow_gsd_mismatch:
        _require_gsd(scene, gsd)
    return scene


def _select(paths: PathLike | Sequence[PathLike], bands: Sequence[str]) -> Scene:
    scene = Scene(paths)
    if scene.band_names == tuple(bands):
        return scene
    try:
        return Scene(paths, bands=bands)  # also finds a near infrared band that the file marks as alpha
    except RasterError:
        named = [name for name in scene.band_names if not _NAMELESS.fullmatch(name)]
        strange = [name for name in named if name not in bands]
        if scene.count == len(bands) and strange and not any(_NAMELESS.fullmatch(name) for name in bands):
            raise RasterError(
                f"{scene.path} has {_bands(scene.band_names)}; the model takes {_bands(bands)}: "
                f"if they mean the same, say so with --bands {','.join(str(n + 1) for n in range(scene.count))}"
            ) from None
        return scene


def _bands(names: Sequence[str]) -> str:
    return f"{len(names)} band{'s' * (len(names) != 1)} ({', '.join(names)})"


def _require_dtype(scene: Scene, dtype: np.dtype) -> None:
    both_float = scene.dtype.kind == dtype.kind == "f"
    if scene.dtype != dtype and not both_float:
        raise RasterError(
            f"{scene.path} holds {scene.dtype} values; the model was trained on {dtype}: "
            "its statistics do not fit another scale, so convert the scene the way the training scenes were made"
        )


def _require_gsd(scene: Scene, gsd: float | None) -> None:
    if gsd is None or scene.gsd is None:
        return
    factor = max(scene.gsd / gsd, gsd / scene.gsd)
    if factor > GSD_TOLERANCE:
        raise RasterError(
            f"{scene.path} has pixels of {scene.gsd:.3g} m; the model was trained on {gsd:.3g} m, "
            f"{factor:.2g} times off: resample the scene, or insist with --allow-gsd-mismatch"
        )
