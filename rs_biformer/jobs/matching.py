"""Whether a scene or a tile index is what a model takes: point by point, with what to do where it is not."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rs_biformer.checkpoint import CheckpointMeta
from rs_biformer.data.index import TileIndex
from rs_biformer.errors import RasterError
from rs_biformer.predict import fit
from rs_biformer.raster.bands import band_list, open_alike
from rs_biformer.raster.paths import PathLike, without_access
from rs_biformer.raster.remarks import remarks
from rs_biformer.raster.scene import Scene


def match_scene(meta: CheckpointMeta, paths: Sequence[PathLike]) -> dict[str, Any]:
    """Whether `predict` takes a scene with this model, by the rules of predict/fit.py, all of them.

    A mapping with `fits` and a point per rule (bands, scale, data type, pixel size), each with `fits` and `says`; the
    points after one that does not fit are looked at as well. `options`: what `predict` needs to be told.

    Raises RasterError for files that are no rasters.
    """
    with ExitStack() as stack:
        bands = _try(lambda: stack.enter_context(_alike(meta, paths)))
        scene = bands if isinstance(bands, Scene) else stack.enter_context(Scene(paths, reading=meta.reading))
        found = {
            "bands": _point(bands, lambda: _band_places(meta, scene)),
            "scale": _point(_try(lambda: fit.require_scaling(scene)), lambda: "values mean what those of training did"),
            "data type": _point(_try(lambda: fit.require_dtype(scene, meta.dtype)), lambda: str(scene.dtype)),
            "pixel size": _pixel_size(scene, meta.gsd),
        }
        said = [without_access(line) for line in remarks(scene)]
    options = [point.pop("option") for point in found.values() if "option" in point]
    return {
        "kind": "fit",
        "fits": all(point["fits"] for point in found.values()),
        **found,
        **({"options": options} if options else {}),
        **({"notes": said} if said else {}),
    }


def match_index(meta: CheckpointMeta, path: Path) -> dict[str, Any]:
    """Whether a model and a tile index are of the same bands, data type, pixels and classes, point by point."""
    manifest = TileIndex.read(path).manifest
    alike = {
        "bands": (list(meta.bands), list(manifest.bands)),
        "data type": (meta.dtype, manifest.dtype),
        "classes": (list(meta.schema.classes), list(manifest.schema.classes)),
    }
    found = {name: _same(*values) for name, values in alike.items()}
    times = 1.0 if None in (meta.gsd, manifest.gsd) else fit.times_off(manifest.gsd, meta.gsd or 1.0)
    sizes = f"{_metres(manifest.gsd)} in the index, {_metres(meta.gsd)} in the model"
    found["pixel size"] = {"fits": times <= fit.GSD_TOLERANCE, "says": sizes}
    return {"kind": "fit", "fits": all(point["fits"] for point in found.values()), **found}


def _alike(meta: CheckpointMeta, paths: Sequence[PathLike]) -> Scene:
    return open_alike(paths, meta.bands, whose="the model", reading=meta.reading)


def _try(check: Callable[[], Any]) -> Any:
    try:
        return check()
    except RasterError as error:
        return error


def _point(outcome: Any, good: Callable[[], str]) -> dict[str, Any]:
    if isinstance(outcome, RasterError):
        return {"fits": False, "says": without_access(str(outcome))}
    return {"fits": True, "says": good()}


def _band_places(meta: CheckpointMeta, scene: Scene) -> str:
    numbers = ", ".join(map(str, scene.band_numbers)) if scene.band_numbers else "in their order"
    return f"{band_list(meta.bands)}: the scene's {numbers}"


def _pixel_size(scene: Scene, gsd: float | None) -> dict[str, Any]:
    problem = _try(lambda: fit.require_gsd(scene, gsd))
    if isinstance(problem, RasterError):
        too_coarse = scene.gsd is not None and gsd is not None and scene.gsd > fit.MOST_ENLARGED * gsd
        option = {} if too_coarse else {"option": "--rescale-gsd"}
        return {"fits": False, "says": without_access(str(problem)), **option}
    if gsd is None or scene.gsd is None:
        return {"fits": True, "says": f"{_metres(scene.gsd)}, where the model has {_metres(gsd)}; taken as they are"}
    times = fit.times_off(scene.gsd, gsd)
    how = "as in training" if times <= fit.GSD_CLOSE else f"{times:.2g} times off, taken as they are"
    return {"fits": True, "says": f"{_metres(scene.gsd)}, {how}" + _on_request(times)}


def _on_request(times: float) -> str:
    return "" if times <= fit.GSD_CLOSE else "; --rescale-gsd reads them at the size of training"


def _same(model: Any, other: Any) -> dict[str, Any]:
    if model == other:
        return {"fits": True, "says": _listed(model)}
    return {"fits": False, "says": f"the model has {_listed(model)}, the index {_listed(other)}"}


def _listed(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _metres(gsd: float | None) -> str:
    return "an unknown size" if gsd is None else f"{gsd:.3g} m"
