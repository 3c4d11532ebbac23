"""Whether a scene is what a model was trained on: bands, dtype, ground sample distance."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.raster.bands import open_alike
from rs_biformer.raster.paths import PathLike
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.source import is_oblong
from rs_biformer.raster.values import AS_IT_IS, RAW, Reading, describe

GSD_TOLERANCE = 1.5
"""Pixels larger or smaller than the training pixels by more than this factor are refused."""

GSD_CLOSE = 1.05
"""Pixels that differ from the training pixels by less than this factor are not worth resampling."""

MOST_ENLARGED = 8.0
"""How many times smaller than its own the pixels of a resampled scene may be: more detail is not in it."""

_MISFITS_SHOWN = 5


def open_scene(
    paths: PathLike | Sequence[PathLike],
    *,
    bands: Sequence[str],
    dtype: str | np.dtype,
    gsd: float | None,
    select: Sequence[int | str] | None = None,
    allow_gsd_mismatch: bool = False,
    rescale_gsd: bool = False,
    allow_dtype_mismatch: bool = False,
    reading: Reading = RAW,
    ignore_scale: bool = False,
    area: PathLike | None = None,
) -> Scene:
    """Open a scene with the bands that a model takes, in the model's order.

    bands, dtype, gsd: what the model was trained on; gsd in metres per pixel, None when unknown.
    select: the bands to take, by 1-based number or name, where the scene's own names do not tell.
    allow_gsd_mismatch: take pixels of any size as they are. rescale_gsd: resample the scene to the model's pixels while
        it is read, unless it has about those.
    allow_dtype_mismatch: take values of another data type as they are.
    reading: how the model's scenes were read; the scene is read in the same way. ignore_scale: take the numbers in the
        file whatever scale and offset it declares.
    area: a layer of polygons; outside of them nothing is valid.

    Bands are found by name, whatever their order in the file. A scene (or a model) whose bands have no names is taken
    in its order when the number of bands agrees.

    Raises RasterError, saying what the model expects, when the bands, the dtype or the ground sample distance do not
    fit, and ConfigError when the two ways to treat the latter are both asked for or the model's is unknown.
    """
    if rescale_gsd and allow_gsd_mismatch:
        raise ConfigError("pixels are either resampled (--rescale-gsd) or taken as they are (--allow-gsd-mismatch)")
    if rescale_gsd and gsd is None:
        raise ConfigError("the model does not tell the size of the pixels it was trained on; leave out --rescale-gsd")
    if ignore_scale:
        reading = replace(reading, scaled=False, declared=())
    scene = open_alike(paths, bands, whose="the model", select=select, reading=reading)
    if not ignore_scale:
        require_scaling(scene)
    if not allow_dtype_mismatch:
        require_dtype(scene, dtype)
    if rescale_gsd and gsd is not None:
        scene = _rescaled(scene, paths, gsd)
    elif not allow_gsd_mismatch:
        require_gsd(scene, gsd)
    if area is not None:
        scene.limit(area)
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


def require_scaling(scene: Scene) -> None:
    """The numbers of the scene mean what those of the model's scenes meant. Raises RasterError."""
    wanted, own = scene.reading.declared, scene.scalings
    declares = any(scaling != AS_IT_IS for scaling in own)
    if scene.reading.scaled and not declares and scene.source_dtype.kind != "f":
        raise RasterError(
            f"{scene.path} declares no scale and offset, and the model was trained on values with those applied: set "
            "them in the file, or take its numbers for such values with --scale ignore"
        )
    if wanted and declares and own != wanted:
        raise RasterError(
            f"{scene.path} declares {describe(own)}; the scenes that the model was trained on declared "
            f"{describe(wanted)}, so that the same number means something else: convert the scene, or take its numbers "
            "as they are with --scale ignore"
        )


def require_dtype(scene: Scene, wanted: str | np.dtype) -> None:
    """The values of the scene are of the type of the model's scenes. Raises RasterError."""
    dtype = np.dtype(wanted)
    both_float = scene.dtype.kind == dtype.kind == "f"
    if scene.dtype != dtype and not both_float:
        raise RasterError(
            f"{scene.path} holds {scene.dtype} values; the model was trained on {dtype}: "
            "its statistics do not fit another scale, so convert the scene the way the training scenes were made, or, "
            "where the values mean the same, insist with --allow-dtype-mismatch"
        )


def _rescaled(scene: Scene, paths: PathLike | Sequence[PathLike], gsd: float) -> Scene:
    """The scene read at pixels of `gsd` metres, or as it is where it has about those."""
    sides = scene.pixel_sides
    if times_off(scene.gsd, gsd) <= GSD_CLOSE and not (sides is not None and is_oblong(sides)):
        return scene
    if scene.gsd is not None and scene.gsd > MOST_ENLARGED * gsd:
        raise RasterError(
            f"{scene.path} has pixels of {scene.gsd:.3g} m; the model was trained on {gsd:.3g} m, and pixels "
            f"{scene.gsd / gsd:.2g} times smaller show nothing that the scene does not (at most {MOST_ENLARGED:g} "
            "times): take a finer scene, or a model for coarser ones"
        )
    scene.close()
    return Scene(paths, bands=scene.band_numbers, gsd=gsd, reading=scene.reading)


def times_off(own: float | None, wanted: float) -> float:
    """By which factor pixels are larger or smaller than wanted; infinite where their size is unknown."""
    return float("inf") if own is None else max(own / wanted, wanted / own)


def require_gsd(scene: Scene, gsd: float | None) -> None:
    """The pixels of the scene are square and about as large as the model's. Raises RasterError."""
    if gsd is None or scene.gsd is None:
        return
    factor = times_off(scene.gsd, gsd)
    if factor > GSD_TOLERANCE:
        raise RasterError(
            f"{scene.path} has pixels of {scene.gsd:.3g} m; the model was trained on {gsd:.3g} m, "
            f"{factor:.2g} times off: resample it with --rescale-gsd, or insist with --allow-gsd-mismatch"
        )
    sides = scene.pixel_sides
    if sides is not None and is_oblong(sides):
        raise RasterError(
            f"{scene.path} has pixels of {sides[0]:.3g} x {sides[1]:.3g} m, and the model was trained on {gsd:.3g} m: "
            "make them square with --rescale-gsd, or insist with --allow-gsd-mismatch"
        )
