"""What a path holds, as plain facts: the machine, a checkpoint, an index, a scene, one of our maps.

Only the machine and a model need torch, which takes seconds to load: it is imported where they are described.
"""

import platform
import zipfile
import zlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from rs_biformer import __version__
from rs_biformer.checkpoint import META_KEY, CheckpointMeta
from rs_biformer.checkpoint.hub import is_hub_name, located
from rs_biformer.data.index import TileIndex
from rs_biformer.documents import parse_json
from rs_biformer.errors import CheckpointError, ConfigError
from rs_biformer.machine import machine_cores
from rs_biformer.raster.metadata import describe_map
from rs_biformer.raster.paths import without_access
from rs_biformer.raster.remarks import remarks
from rs_biformer.raster.scene import Scene

_PACKAGES = ("torch", "segmentation-models-pytorch", "timm", "pytorch-lightning", "torchmetrics", "rasterio", "numpy")

MODELS = {
    ".ckpt": "checkpoint",
    ".safetensors": "model in safetensors",
    ".onnx": "exported model",
    ".pt2": "exported program of torch",
}
"""What files of models are, by their suffix."""

_LARGEST_FACTS = 2**24  # bytes of what a program says of itself


def describe(paths: Sequence[str]) -> dict[str, Any]:
    """The machine without a path, what one path is, or several rasters as the one scene that they make.

    After a model: whether the rasters, as one scene, or the tile index are what it takes, see matching.py.
    """
    if not paths:
        return describe_machine()
    if len(paths) > 1 and is_model(paths[0]):
        return describe_fit(paths[0], paths[1:])
    return describe_path(paths[0]) if len(paths) == 1 else describe_scene(paths)


def is_model(text: str) -> bool:
    """Whether a path is one of a model, by its suffix, or the name of one on the hub."""
    return Path(text).suffix.lower() in MODELS or is_hub_name(text)


def describe_fit(model: str, paths: Sequence[str]) -> dict[str, Any]:
    """Whether a scene or a tile index is what a model takes. Raises ConfigError for several models."""
    from rs_biformer.jobs.matching import match_index, match_scene
    from rs_biformer.jobs.models import load_model

    if models := [path for path in paths if is_model(path)]:
        raise ConfigError(f"{models[0]} is a second model; give one, and the rasters of a scene or an index after it")
    meta, first = load_model(model).meta, Path(paths[0])
    if first.is_dir() or first.suffix.lower() == ".parquet":
        return match_index(meta, first)
    return match_scene(meta, paths)


def describe_machine() -> dict[str, Any]:
    """Versions of what matters here, and what there is to compute on."""
    facts: dict[str, Any] = {"rs_biformer": __version__, "python": platform.python_version()}
    for name in (*_PACKAGES, "onnxruntime"):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "not installed"
    facts["GDAL"] = rasterio.__gdal_version__
    return facts | {"cpu": f"{machine_cores()} cores", **_known_to_torch()}


def _known_to_torch() -> dict[str, str]:
    """What there is to compute on, as torch sees it; nothing where it is not installed."""
    try:
        import torch

        from rs_biformer.predict.forward import good_at_bf16
    except ModuleNotFoundError:
        return {}
    bf16 = ", bf16" if good_at_bf16(torch.device("cpu")) else ""
    facts = {"cpu": f"{machine_cores()} cores, {torch.backends.cpu.get_cpu_capability()}{bf16}"}
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        facts[f"cuda:{number}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return facts


def describe_path(text: str) -> dict[str, Any]:
    """What a file, folder or URL is, by its suffix. Raises one of our errors when it is not what its suffix says."""
    path = located(text)
    suffix = path.suffix.lower()
    if suffix == ".pt2":
        return describe_program(path)
    if suffix in MODELS:
        from rs_biformer.jobs.models import load_model

        loaded = load_model(path)
        size = {"parameters": loaded.parameters} if loaded.parameters else {}
        return {"kind": MODELS[suffix], **loaded.meta.to_dict(), **size, "bytes": path.stat().st_size}
    if path.is_dir() or suffix == ".parquet":
        return describe_index(path)
    return describe_scene([text])


def describe_program(path: Path) -> dict[str, Any]:
    """What `export` wrote into a program of torch.export, an archive, beside the program: it is not run, nor unpickled.

    Raises CheckpointError for a file that is none, or that others wrote.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(f"/extra/{META_KEY}"))
            if archive.getinfo(name).file_size > _LARGEST_FACTS:
                raise ValueError
            text = archive.read(name).decode()
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}; give a program that rs-biformer export wrote") from None
    except (OSError, ValueError, RuntimeError, NotImplementedError, zlib.error, zipfile.BadZipFile):
        raise CheckpointError(f"{path} is no program that rs-biformer export wrote, or a damaged one") from None
    meta = CheckpointMeta.from_dict(parse_json(text, f"{path}: its facts"), str(path))
    return {"kind": MODELS[".pt2"], **meta.to_dict(), "bytes": path.stat().st_size}


def describe_index(path: Path) -> dict[str, Any]:
    """A tile index: how it was cut, and the windows of each split."""
    index = TileIndex.read(path)
    facts = {"kind": "tile index", **index.manifest.to_dict()}
    facts["scenes"] = [scene["name"] for scene in facts["scenes"]]
    del facts["crs"]
    splits, counts = np.unique(index.table.split, return_counts=True)
    return facts | {"windows": {str(split): int(count) for split, count in zip(splits, counts, strict=True)}}


def describe_scene(paths: Sequence[str]) -> dict[str, Any]:
    """One raster or several as a scene: what prediction and training would make of them."""
    with Scene(paths) as scene:
        return {
            "kind": "raster" if len(paths) == 1 else "scene",
            "rows": scene.height,
            "columns": scene.width,
            "bands": list(scene.band_names),
            "dtype": scene.dtype.name,
            "crs": scene.crs.to_string() if scene.crs else None,
            "bounds": list(scene.bounds),
            "metres_per_pixel": scene.gsd,
            **(describe_map(scene.path) if len(paths) == 1 else {}),
            **({"resampled": [without_access(str(path)) for path in scene.regridded]} if len(paths) > 1 else {}),
            **({"notes": [without_access(line) for line in said]} if (said := remarks(scene)) else {}),
        }
