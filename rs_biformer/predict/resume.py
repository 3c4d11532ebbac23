"""What a half-written map belongs to: the scene, the model and the options it was begun with.

A fingerprint is a plain dict of readable lines. Two runs with equal fingerprints write the same bytes, so one may go on
where the other was killed; where they differ, a key that differs says what to tell the user.

The code of a model is not part of it: its class, its plain settings and all its tensors are.
"""

import hashlib
import pickle
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rs_biformer
from rs_biformer.predict.backends import backend_of, is_module
from rs_biformer.predict.ensemble import Ensemble
from rs_biformer.predict.plan import Plan
from rs_biformer.predict.recipe import Recipe
from rs_biformer.raster.paths import gdal_name, identity
from rs_biformer.raster.remote import local_file, remote_state
from rs_biformer.raster.scene import Scene

if TYPE_CHECKING:
    from torch import nn

_DIGITS = 32  # of a SHA-256 in hexadecimal: 128 bits
_PLAIN = (bool, int, float, str, type(None))


def fingerprint(
    scene: Scene, model: Callable[..., Any], plan: Plan, recipe: Recipe, hardware: str, known: str | None = None
) -> dict[str, str] | None:
    """What decides every byte of the maps of `scene` by `model`; None for a model that has no identity.

    recipe: with a precision that is settled, not `auto`. hardware: what the back end says of the device. known: the
    model's identity, where it was worked out before.

    A module is known by its weights, an object with an attribute `fingerprint` (a line of text, such as the digest of
    its file) by that. Any other callable could be anything in the next process.
    """
    identity = known or model_identity(model)
    if identity is None:
        return None
    return {
        **_grid(scene),
        **{f"file {name}": facts for name, facts in map(_file_identity, _files(scene))},
        "model": identity,
        "normalisation": str(recipe.normalisation and model_identity(recipe.normalisation)),
        **{name: str(value) for name, value in (_plan_options(plan) | _recipe_options(recipe)).items()},
        "hardware": hardware,
        "software": f"rs_biformer {rs_biformer.__version__}, {backend_of(model).software()}",
    }


def _plan_options(plan: Plan) -> dict[str, object]:
    """Where the windows lie, how they are blended, and which of them make a batch."""
    return {
        "window": plan.size,
        "overlap": f"{plan.size - plan.stride} pixels",
        "blend": plan.blend,
        "batch size": plan.batch_size,
        "rows together": plan.rows_together,
        "lanes": " ".join(f"{start}-{stop}" for start, stop in plan.columns),
    }


def _recipe_options(recipe: Recipe) -> dict[str, object]:
    return {
        "classes": recipe.classes,
        "precision": recipe.precision,
        "tta": recipe.tta,
        "scales": " ".join(f"{scale:g}" for scale in recipe.scales),
        "compile": recipe.compile,
        "passes": recipe.passes,
        "regions": "as large as in training" if recipe.keep_regions else "as many as in training",
    }


def model_identity(model: Callable[..., Any]) -> str | None:
    """Class name and SHA-256 of a model, or its own `fingerprint`; None for a callable that has neither."""
    if isinstance(model, Ensemble):
        each = [model_identity(member) for member in model.members]
        return None if None in each else f"the mean of {' and '.join(map(str, each))}"
    own = getattr(model, "fingerprint", None)
    if isinstance(own, str):
        return own
    if is_module(model):
        return f"{type(model).__name__} {_module_digest(model)}"
    return None


def _module_digest(model: "nn.Module") -> str:
    """SHA-256 over classes and plain settings of all parts, and names, dtypes, shapes and bytes of all tensors."""
    import torch

    digest = hashlib.sha256()
    for line in _settings(model):
        digest.update(line.encode())
    # Buffers that are not saved with the weights shape the result like those that are.
    for name, value in {**model.state_dict(), **dict(model.named_buffers())}.items():
        digest.update(name.encode())
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
        else:
            digest.update(pickle.dumps(value))
    return digest.hexdigest()[:_DIGITS]


def _settings(model: "nn.Module") -> Iterator[str]:
    """A line per part with its public attributes that are plain values, or tuples of such: topk has no weight."""
    for name, part in model.named_modules():
        plain = {key: value for key, value in vars(part).items() if key[0] != "_" and _is_plain(value)}
        yield f"{name} {type(part).__qualname__} {sorted(plain.items())}\n"


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple | list) and all(map(_is_plain, value)))


def _files(scene: Scene) -> list[str]:
    """Every file that GDAL reads for the scene: rasters, masks, world files, the sources of a VRT, polygons."""
    names: dict[str, None] = {}
    for source in scene.sources:
        names |= dict.fromkeys([gdal_name(source.path), *source.files])
    return [*names, *([str(scene.area)] if scene.area is not None else [])]


def _file_identity(name: str) -> tuple[str, str]:
    """Path, and size and time of change: those of the file that holds it for a part of an archive or container.

    Of a URL the name, without what gives access to it, and what its server tells: size, ETag and time.
    """
    path = local_file(name)
    if path is None:
        return identity(name), remote_state(name)
    facts = path.stat()
    changed = datetime.fromtimestamp(facts.st_mtime_ns // 10**9, UTC)
    called = str(path.resolve()) if Path(name) == path else name
    return called, f"{facts.st_size} bytes of {changed:%F %T}.{facts.st_mtime_ns % 10**9:09d}"


def _grid(scene: Scene) -> dict[str, str]:
    return {
        "bands": ", ".join(scene.band_names),
        "size": f"{scene.height} x {scene.width} pixels of {scene.dtype}",
        "CRS": scene.crs.to_string() if scene.crs is not None else "none",
        "transform": ", ".join(map(repr, tuple(scene.transform)[:6])),
    }
