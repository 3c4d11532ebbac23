"""What a command that ended well must have made, worked out from its files by other means; "" or what is wrong."""

import json
import warnings
from pathlib import Path

import numpy as np
import rasterio

warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)


def mapped(folder: Path) -> str:
    """`predict` of scene.tif with the pointwise model of weights.npz: the class that wins where it does clearly."""
    out = next((folder / "out").glob("*_classes.tif"))
    image, valid = _pixels(next(folder.glob("scene.*")))
    with rasterio.open(out) as source:
        found = source.read(1)
    if image is None or len(image) != 3 or image.dtype != np.uint8:
        return ""  # what the options made of it is not worked out here
    if found.shape != image.shape[1:]:
        return f"a map of {found.shape} for a scene of {image.shape[1:]}"
    wrong = int(((found != 255) & ~valid).sum() + ((found == 255) & valid).sum())
    if wrong:
        return f"{wrong} pixels are valid in one and not in the other"
    with np.load(folder / "weights.npz") as weights:
        flat = (image - weights["mean"][:, None, None]) / weights["std"][:, None, None]
        logits = np.tensordot(weights["weight"], flat, 1) + weights["bias"][:, None, None]
    first, second = np.sort(logits, 0)[[-1, -2]]
    clear = valid & (first - second > 1e-3)
    wrong = int((logits.argmax(0) != found)[clear].sum())
    return f"{wrong} of {clear.sum()} pixels have another class" if wrong else ""


def resumed(folder: Path) -> str:
    """`predict` that went on from a begun map: the bytes of the undisturbed one."""
    found, wanted = (folder / "out" / "scene_classes.tif").read_bytes(), (folder / "undisturbed.bin").read_bytes()
    return "" if found == wanted else "other bytes than those of the undisturbed map"


def undisturbed(folder: Path) -> str:
    """`predict`: the classes that the model gave before its bytes were changed."""
    with (
        rasterio.open(folder / "out" / "scene_classes.tif") as made,
        rasterio.open(folder / "undisturbed.bin") as first,
    ):
        wrong = int((made.read() != first.read()).sum())
    return f"{wrong} pixels have another class" if wrong else ""


def outlined(folder: Path) -> str:
    """`vectorize`: as much area as there are valid pixels, where the grid is a plain one."""
    import pyogrio
    import shapely

    _, _, shapes, _ = pyogrio.raw.read(str(folder / "out" / "polygons.gpkg"))
    with rasterio.open(next(folder.glob("map.*"))) as source:
        size = abs(source.transform.determinant)
        pixels = int((source.read_masks(1) > 0).sum()) if source.count == 1 else None
        plain = source.crs is not None and not source.gcps[0] and 1e-6 < size < 1e6 and abs(source.transform.f) < 1e8
        plain &= source.nodata is None or float(source.nodata).is_integer()  # GDAL masks 0 where 0.0001 is no data
    if pixels is None or not plain:
        return ""
    area = float(shapely.area(shapely.from_wkb(shapes)).sum())
    return "" if abs(area - pixels * size) <= 1e-6 * max(pixels * size, size) else f"{area} and not {pixels * size}"


def counted(folder: Path) -> str:
    """`evaluate` of an intact label: every labelled pixel is in the confusion matrix once."""
    result = json.loads((folder / "out" / "result.json").read_text())
    first = result["results"][0] if isinstance(result, dict) and "results" in result else result
    total = int(np.sum(first["confusion"])) if "confusion" in first else None
    if total is None:
        return ""
    labelled = int(np.load(folder / "weights.npz")["labelled"])
    return "" if total <= labelled else f"{total} pixels are counted of {labelled} that are labelled"


def tiled(folder: Path) -> str:
    """`tile` with windows that divide the scene: its classes are counted once, and by every window within itself."""
    from rs_biformer.data.index import TileIndex

    index = TileIndex.read(folder / "out")
    record, table = index.manifest.scenes[0], index.table
    if (table.histogram.sum(1) > table.height * table.width).any():
        return "a window has more labelled pixels than pixels"
    total = int(table.histogram.sum())
    if record.height % 8 or record.width % 8 or total <= record.height * record.width:
        return ""
    return f"{total} pixels of {record.height * record.width}"


def heights(folder: Path) -> str:
    """`ndsm`: the grid of the surface model, and nothing below ground or infinite."""
    with rasterio.open(next(folder.glob("dsm.*"))) as source, rasterio.open(folder / "out" / "ndsm.tif") as made:
        values = made.read(1, masked=True).compressed()
        if (source.height, source.width) != (made.height, made.width):
            return "another grid"
    return "" if np.isfinite(values).all() and (values >= 0).all() else "heights that are none"


def _pixels(path: Path) -> tuple[np.ndarray | None, np.ndarray]:
    """As rasterio reads them by itself, and where they count; None for what the options may read otherwise."""
    with rasterio.open(path) as source:
        if source.count not in (3, 4) or any(scale != 1 for scale in source.scales) or any(source.offsets):
            return None, np.zeros(0)
        if source.count == 4 and source.colorinterp[3].name != "alpha":
            return None, np.zeros(0)
        return source.read([1, 2, 3]), source.dataset_mask() > 0
