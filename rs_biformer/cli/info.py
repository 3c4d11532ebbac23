import argparse
import json
from pathlib import Path
from typing import Any

HELP = "versions and devices; with a path, what a checkpoint, a tile index or a raster holds"
EXAMPLE = """rs-biformer info
  rs-biformer info runs/first/best.ckpt
  rs-biformer info scene.tif --json
  rs-biformer info https://host/ortho.tif ndsm.tif

Several rasters are shown as the one scene that they make: on the grid of the first, the others resampled to it."""

_PACKAGES = ("torch", "segmentation-models-pytorch", "timm", "pytorch-lightning", "torchmetrics", "rasterio", "numpy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer info`."""
    what = "a checkpoint, an exported model, an index, or the rasters (files, URLs) of a scene"
    parser.add_argument("paths", nargs="*", metavar="PATH", help=what)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Find out what the path is, and print it."""
    facts = _describe(args.paths)
    if args.json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key.replace('_', ' '):{width}}  {_line(value)}")


def _describe(paths: list[str]) -> dict[str, Any]:
    if not paths:
        return describe_machine()
    return describe_path(paths[0]) if len(paths) == 1 else describe_scene(paths)


def describe_machine() -> dict[str, Any]:
    """Versions of what matters here, and what there is to compute on."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import rasterio
    import torch

    from rs_biformer import __version__
    from rs_biformer.machine import machine_cores
    from rs_biformer.predict.forward import good_at_bf16

    facts: dict[str, Any] = {"rs_biformer": __version__, "python": platform.python_version()}
    for name in (*_PACKAGES, "onnxruntime"):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "not installed"
    facts["GDAL"] = rasterio.__gdal_version__
    bf16 = ", bf16" if good_at_bf16(torch.device("cpu")) else ""
    facts["cpu"] = f"{machine_cores()} cores, {torch.backends.cpu.get_cpu_capability()}{bf16}"
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        facts[f"cuda:{number}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return facts


def describe_path(text: str) -> dict[str, Any]:
    """What a file, folder or URL is, by its suffix. Raises one of our errors when it is not what its suffix says."""
    path = Path(text)
    suffix = path.suffix.lower()
    if suffix in (".ckpt", ".onnx"):
        from rs_biformer.jobs import load_model

        return {"kind": "checkpoint" if suffix == ".ckpt" else "exported model", **load_model(path).meta.to_dict()}
    if path.is_dir() or suffix == ".parquet":
        return describe_index(path)
    return describe_scene([text])


def describe_index(path: Path) -> dict[str, Any]:
    """A tile index: how it was cut, and the windows of each split."""
    import numpy as np

    from rs_biformer.data.index import TileIndex

    index = TileIndex.read(path)
    facts = {"kind": "tile index", **index.manifest.to_dict()}
    facts["scenes"] = [scene["name"] for scene in facts["scenes"]]
    del facts["crs"]
    splits, counts = np.unique(index.table.split, return_counts=True)
    return facts | {"windows": {str(split): int(count) for split, count in zip(splits, counts, strict=True)}}


def describe_scene(paths: list[str]) -> dict[str, Any]:
    """One raster or several as a scene: what prediction and training would make of them."""
    from rs_biformer.raster.scene import Scene

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
            **({"resampled": [str(path) for path in scene.regridded]} if len(paths) > 1 else {}),
        }


def _line(value: Any) -> str:
    """One value for a reader: lists with commas, mappings as `key: value`, long ones shortened."""
    if isinstance(value, dict):
        if "classes" in value:  # a class schema
            return f"{value['name']}: {', '.join(entry['name'] for entry in value['classes'])}"
        return ", ".join(f"{key}: {_line(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        shown = ", ".join(_line(item) for item in value[:12])
        return f"{shown}, ... ({len(value)})" if len(value) > 12 else shown or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "unknown" if value is None else str(value)
