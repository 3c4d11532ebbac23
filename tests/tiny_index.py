"""A tile index of small synthetic scenes, for the tests of the rooms that load and train."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine

from rs_biformer.data.index import Manifest, SceneRecord, TileIndex, TileTable
from rs_biformer.geometry import grid
from rs_biformer.schema import ClassSchema

SCHEMA = ClassSchema("tiny", ("dark", "middle", "bright"), ((0, 0, 0), (0, 255, 0), (255, 0, 0)))


def paint(seed: int, height: int, width: int, bands: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """An image (bands, height, width) of blocks of three brightnesses with noise, and its label (height, width)."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(3, size=(-(-height // 16), -(-width // 16)))
    label = cells.repeat(16, 0).repeat(16, 1)[:height, :width].astype(np.uint8)
    image = 60 + 60 * label + rng.normal(0, 10, (bands, height, width))
    return image.astype(dtype), label


def write_tiny_index(
    folder: Path,
    scenes: dict[str, str],
    *,
    size: tuple[int, int] = (128, 128),
    window: int = 64,
    stride: int = 64,
    bands: int = 3,
    dtype: str = "uint8",
    nodata: float | None = None,
) -> Path:
    """Write scenes {name: split} with labels of values 0 to 2 and their index below `folder`; the index folder.

    With nodata, the upper left 16 x 16 pixels of every scene hold it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records, rows, values = [], [], []
    transform = Affine(0.5, 0.0, 500_000.0, 0.0, -0.5, 5_400_000.0)
    for number, (name, split) in enumerate(scenes.items()):
        image, label = paint(number, *size, bands, dtype)
        if nodata is not None:
            image[:, :16, :16] = nodata
        for path, array, empty in (
            (folder / f"{name}.tif", image, nodata),
            (folder / f"{name}_label.tif", label[None], None),
        ):
            profile = dict(driver="GTiff", count=len(array), height=size[0], width=size[1], dtype=array.dtype)
            with rasterio.open(path, "w", crs="EPSG:25832", transform=transform, nodata=empty, **profile) as sink:
                sink.write(array)
                if path.stem == name:
                    sink.descriptions = tuple(f"b{band}" for band in range(len(array)))
        seen = np.ones(size, bool)
        if nodata is not None:
            seen[:16, :16] = False
        values.append(image[:, seen])
        for part in grid(*size, window, stride):
            inside = label[part.slices][seen[part.slices]]
            histogram = np.bincount(inside, minlength=3)
            rows.append((number, part.row, part.col, part.height, part.width, split, histogram, inside.size))
        files = (str(folder / f"{name}.tif"),)
        records.append(SceneRecord(name, files, str(folder / f"{name}_label.tif"), *size, None, tuple(transform)[:6]))
    flat = np.concatenate(values, axis=1).astype(np.float64)
    manifest = Manifest(
        schema=SCHEMA,
        window=window,
        overlap=1 - stride / window,
        bands=tuple(f"b{band}" for band in range(bands)),
        dtype=dtype,
        mean=tuple(flat.mean(1).tolist()),
        std=tuple(flat.std(1).tolist()),
        gsd=0.5,
        tolerance=0,
        scenes=tuple(records),
    )
    columns = list(zip(*rows, strict=True))
    table = TileTable(
        *(np.array(column, np.int64) for column in columns[:5]),
        np.array(columns[5], "<U5"),
        np.stack(columns[6]).astype(np.int64),
        np.array(columns[7]) / window**2,
    )
    return TileIndex(manifest, table).write(folder / "tiles").parent
