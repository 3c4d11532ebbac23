"""A vector layer of labels drawn as a raster of class indices, for those that want pictures of it."""

import math
import warnings
from contextlib import closing
from pathlib import Path

import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window as RasterioWindow

from rs_biformer.geometry import Window, cells
from rs_biformer.raster.gdal import gdal_env, raster_errors
from rs_biformer.raster.labelling import open_label, settle, told
from rs_biformer.raster.metadata import class_tags
from rs_biformer.raster.paths import PathLike, locate, stem_of
from rs_biformer.raster.regrid import PixelGrid
from rs_biformer.raster.source import Grid, Source
from rs_biformer.schema import IGNORE, ClassSchema

MOST_DRAWN = 1 << 26
"""Pixels that polygons are drawn on: some seconds, before the page is there."""


def draw_polygons(path: PathLike, first: PathLike, schema: ClassSchema, folder: Path) -> tuple[Path, list[str]]:
    """A vector layer of labels drawn on the pixels of a map, as a map in a folder, and what there is to say.

    Of a map of more than MOST_DRAWN pixels they are drawn on pixels so many times as large. Memory is bounded by a
    block. Raises RasterError for a layer that spells none of the classes, or lies elsewhere.
    """
    with closing(Source(first)) as source:
        times = max(1, math.ceil(math.sqrt(source.height * source.width / MOST_DRAWN)))
        grid: Grid = source
        if times > 1:
            grid = PixelGrid(source.path, source.height, source.width, source.crs, source.transform).scaled(
                times, times
            )
        options, notes = settle(path, schema, grid)
        lines = told(notes)
        if times > 1:
            lines.append(f"{path}: drawn on pixels {times} times as large as the map's")
        out = folder / f"{stem_of(locate(path))}.tif"
        layout = {"height": grid.height, "width": grid.width, "count": 1, "dtype": "uint8", "nodata": IGNORE}
        tiles = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "bigtiff": "IF_SAFER"}
        ground = {"crs": grid.crs, "transform": grid.transform}
        with gdal_env(), raster_errors(out, "written"), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # no place is no fault here
            with (
                open_label(path, schema, grid, options=options) as label,
                rasterio.open(out, "w", driver="GTiff", **layout, **tiles, **ground) as file,
            ):
                for window in cells(Window(0, 0, grid.height, grid.width), 512, 1024):
                    file.write(
                        label.read(window)[0],
                        1,
                        window=RasterioWindow(window.col, window.row, window.width, window.height),
                    )
                file.update_tags(**class_tags(schema.classes))
    return out, lines
