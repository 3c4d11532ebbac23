"""tiles.gpkg: the windows of a tile index as a layer that every GIS opens, coloured by their split.

Programs older than GDAL 3.5, Debian's QGIS among them, open no GeoParquet, and a GeoParquet has no place for a style.
Nothing reads this file again: it may be changed or removed.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rs_biformer.data.index import TileIndex
from rs_biformer.raster.features import write_layer
from rs_biformer.raster.legend import Colour, categories_qml

LAYER_NAME = "tiles"
MOST_DRAWN = 250_000
"""Windows, some 300 bytes each: with more, the layer would be larger than the index by far and slow to draw."""

_COLOURS: dict[str, Colour] = {"train": (31, 120, 180), "val": (255, 127, 0), "test": (227, 26, 28)}


def write_tile_layer(index: TileIndex, folder: Path) -> str | None:
    """Write FOLDER/tiles.gpkg; why not, in words, where the index has too many windows or none has a known place.

    Attributes: scene, split, row, col, height, width, valid_share, and share_CLASS, of the labelled pixels. Raises
    RasterError when the file cannot be written.
    """
    out = folder / f"{LAYER_NAME}.gpkg"
    if len(index) > MOST_DRAWN:
        return (
            f"{out.name} is not written for {len(index):,} windows (at most {MOST_DRAWN:,}); tiles.parquet has their "
            "footprints"
        )
    polygons, crs = index.footprints()
    if not any(polygon is not None for polygon in polygons):
        return f"{out.name} is not written: no window has a known place"
    write_layer(
        out,
        polygons,
        _columns(index),
        crs,
        layer=LAYER_NAME,
        qml=categories_qml("split", _COLOURS, opacity=0.12),
        what="windows of a tile index",
        advice="remove it or choose another --out",
    )
    return None


def _columns(index: TileIndex) -> dict[str, NDArray[Any]]:
    table = index.table
    names = np.array([scene.name for scene in index.manifest.scenes], object)
    labelled = np.maximum(table.histogram.sum(axis=1), 1)
    columns: dict[str, NDArray[Any]] = {"scene": names[table.scene], "split": table.split.astype(object)}
    columns |= {key: getattr(table, key).astype(np.int32) for key in ("row", "col", "height", "width")}
    columns["valid_share"] = table.valid_share
    taken = {name.lower() for name in columns}
    for number, name in enumerate(index.manifest.schema.classes):
        column = f"share_{name}"
        if column.lower() in taken:  # SQLite takes "Road" and "road" for one name
            column += f"_{number}"
        taken.add(column.lower())
        columns[column] = table.histogram[:, number] / labelled
    return columns
