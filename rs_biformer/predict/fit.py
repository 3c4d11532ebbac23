"""Whether a scene is what a model was trained on: bands, dtype, ground sample distance."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.raster.paths import PathLike
from rs_biformer.raster.scene import Scene

GSD_TOLERANCE = 1.5
"""Pixels larger or smaller than the training pixels by more than this factor are refused."""

GSD_CLOSE = 1.05
"""Pixels that differ from the training pixels by less than this factor are not worth resampling."""

MOST_ENLARGED = 8.0
"""How many times smaller than its own the pixels of a resampled scene may be: more detail is not in it."""

_MISFITS_SHOWN = 5

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
    rescale_gsd: bool = False,
) -> Scene:
    """Open a scene with the bands that a model takes, in the model's order.

    bands, dtype, gsd: what the model was trained on; gsd in metres per pixel, None when unknown.
    select: the bands to take, by 1-based number or name, where the scene's own names do not tell.
    allow_gsd_mismatch: take pixels of any size as they are. rescale_gsd: resample the scene to the model's pixels while
        it is read, unless it has about those.

    Bands are found by name, whatever their order in the file. A scene (or a model) whose bands have no names is taken
    in its order when the number of bands agrees.

    Raises RasterError, saying what the model expects, when the bands, the dtype or the ground sample distance do not
    fit, and ConfigError when the two ways to treat the latter are both asked for or the model's is unknown.
    """
    if rescale_gsd and allow_gsd_mismatch:
        raise ConfigError("pixels are either resampled (--rescale-gsd) or taken as they are (--allow-gsd-mismatch)")
    if rescale_gsd and gsd is None:
        raise ConfigError("the model does not tell the size of the pixels it was trained on; leave out --rescale-gsd")
    scene = Scene(paths, bands=select) if select else _select(paths, bands)
    if scene.count != len(bands):
        raise RasterError(
            f"{scene.path} has {_bands(scene.band_names)}; the model takes {_bands(bands)}: "
            "add the missing raster, or choose among the bands with --bands"
        )
    _require_dtype(scene, np.dtype(dtype))
    if rescale_gsd and gsd is not None:
        return _rescaled(scene, paths, gsd)
    if not allow_gsd_mismatch:
        _require_gsd(scene, gsd)
    return scene


def open_scenes(scenes: Sequence[Sequence[PathLike]], **fit: Any) -> list[Scene]:
    """Scenes that all fit a model, by `open_scene` with the options `fit`; their files are closed until they are read.

    Raises RasterError that names all scenes that do not fit, and why.
    """
    opened: list[Scene] = []
    misfits: list[str] = []
    for paths in scenes:
        try:
            scene = open_scene(paths, **fit)
        except RasterError as error:
            misfits.append(str(error))
            continue
        scene.close()  # hundreds of scenes have more files than a process may hold open
        opened.append(scene)
    if not misfits:
        return opened
    if len(scenes) == 1:
        raise RasterError(misfits[0])
    more = f"; and {len(misfits) - _MISFITS_SHOWN} more" if len(misfits) > _MISFITS_SHOWN else ""
    raise RasterError(
        f"{len(misfits)} of {len(scenes)} scenes cannot be mapped, so none was"
        f"{' (leave them out with --exclude)' if opened else ''}: {'; '.join(misfits[:_MISFITS_SHOWN])}{more}"
    )


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


def _rescaled(scene: Scene, paths: PathLike | Sequence[PathLike], gsd: float) -> Scene:
    """The scene read at pixels of `gsd` metres, or as it is where it has about those."""
    if _times_off(scene.gsd, gsd) <= GSD_CLOSE:
        return scene
    if scene.gsd is not None and scene.gsd > MOST_ENLARGED * gsd:
        raise RasterError(
            f"{scene.path} has pixels of {scene.gsd:.3g} m; the model was trained on {gsd:.3g} m, and pixels "
            f"{scene.gsd / gsd:.2g} times smaller show nothing that the scene does not (at most {MOST_ENLARGED:g} "
            "times): take a finer scene, or a model for coarser ones"
        )
    scene.close()
    return Scene(paths, bands=scene.band_names, gsd=gsd)


def _times_off(own: float | None, wanted: float) -> float:
    return float("inf") if own is None else max(own / wanted, wanted / own)


def _require_gsd(scene: Scene, gsd: float | None) -> None:
    if gsd is None or scene.gsd is None:
        return
    factor = _times_off(scene.gsd, gsd)
    if factor > GSD_TOLERANCE:
        raise RasterError(
            f"{scene.path} has pixels of {scene.gsd:.3g} m; the model was trained on {gsd:.3g} m, "
            f"{factor:.2g} times off: resample it with --rescale-gsd, or insist with --allow-gsd-mismatch"
        )
