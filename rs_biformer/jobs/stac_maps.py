"""The maps of a scene as a STAC Item beside them: where they lie, what their values mean, what made them.

STAC 1.1 with the extensions projection 2.0, raster 2.0, classification 1.1 and processing 1.2. An Item needs a time: it
is that of the ground, as the map carries it of its scene (`TIFFTAG_DATETIME`); where nothing tells it, the Item says
all times.
"""

import json
import re
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from rs_biformer import __version__
from rs_biformer.data.footprints import lonlat_polygons
from rs_biformer.files import write_text
from rs_biformer.raster.crs import horizontal, names_a_place
from rs_biformer.raster.gdal import gdal_env, open_raster, raster_errors
from rs_biformer.raster.legend import Legend
from rs_biformer.raster.metadata import DATE, MODEL, MODEL_FILE, ScoreScale, read_class_names
from rs_biformer.raster.paths import PathLike
from rs_biformer.raster.source import Source, ground_sample_distance, is_georeferenced

_EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "https://stac-extensions.github.io/classification/v1.1.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
)
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_EDGE = np.arange(8) / 8  # points along each side of a footprint: straight in the CRS, bent in degrees
_ALL_TIMES = {"start_datetime": "1900-01-01T00:00:00Z", "end_datetime": "9999-12-31T23:59:59Z"}


def item_path(folder: PathLike, name: str) -> Path:
    """The Item of the maps of a scene."""
    return Path(folder) / f"{name}.stac.json"


def write_item(out: Path, name: str, maps: Mapping[str, Path]) -> Path:
    """Write the Item of maps, by layer, and return its path; their names are relative to it.

    Raises RasterError where a map cannot be read or the Item not be written.
    """
    text = json.dumps(map_item(name, maps, out.parent), indent=2, ensure_ascii=False, allow_nan=False)
    with raster_errors(out, "written"):
        write_text(out, text + "\n")
    return out


def map_item(name: str, maps: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """The Item as plain values. maps: by layer, `classes` among them. folder: that the Item is to lie in."""
    with closing(Source(maps["classes"])) as source:
        with gdal_env(), raster_errors(source.path, "opened"), open_raster(source.path) as file:
            tags = file.tags()
        return {
            "type": "Feature",
            "stac_version": "1.1.0",
            "stac_extensions": list(_EXTENSIONS),
            "id": name,
            **_place(source),
            "properties": {
                "title": f"Maps of {name}",
                **_time(tags.get(DATE, "")),
                **_projection(source),
                "processing:software": {"rs_biformer": __version__},
                **({"processing:lineage": _lineage(tags)} if MODEL in tags else {}),
            },
            "links": [],
            "assets": {layer: _asset(layer, path, folder) for layer, path in maps.items()},
        }


def _time(text: str) -> dict[str, Any]:
    try:
        return {"datetime": f"{datetime.strptime(text, '%Y:%m:%d %H:%M:%S'):%Y-%m-%dT%H:%M:%SZ}"}
    except ValueError:
        return {"datetime": None, **_ALL_TIMES}


def _place(source: Source) -> dict[str, Any]:
    """Geometry and box in longitude and latitude; a geometry of null where the map does not say where it lies."""
    if not names_a_place(source.crs) or not is_georeferenced(source.transform):
        return {"geometry": None}
    along, across, zero = _EDGE * source.width, _EDGE * source.height, 0 * _EDGE
    # Down the left side first: counterclockwise as seen with north up.
    col = np.concatenate([zero, along, zero + source.width, source.width - along, [0]])
    row = np.concatenate([across, zero + source.height, source.height - across, zero, [0]])
    x, y = source.transform @ (col, row)
    with gdal_env():
        outline = lonlat_polygons(horizontal(source.crs).to_wkt(), x[None], y[None])[0]
    if outline is None:
        return {"geometry": None}
    outline = shapely.orient_polygons(shapely.transform(outline, lambda degrees: np.round(degrees, 8)))
    return {"geometry": shapely.geometry.mapping(outline), "bbox": _box(outline)}


def _box(outline: shapely.Geometry) -> list[float]:
    """West, south, east, north of an outline; of one that is cut at the antimeridian, west is more than east."""
    west, south, east, north = outline.bounds
    parts = shapely.bounds(shapely.get_parts(outline))
    at_west, at_east = parts[:, 0] <= -180, parts[:, 2] >= 180
    if at_west.any() and at_east.any() and not (at_west & at_east).any():
        west, east = parts[at_east, 0].min(), parts[at_west, 2].max()
    return [float(one) for one in (west, south, east, north)]


def _projection(source: Source) -> dict[str, Any]:
    shape: dict[str, Any] = {"proj:shape": [source.height, source.width]}
    if source.crs is None:
        return shape | {"proj:code": None}
    code = horizontal(source.crs).to_epsg()
    named = {"proj:code": f"EPSG:{code}"} if code else {"proj:code": None, "proj:wkt2": source.crs.to_wkt()}
    return {**named, **shape, "proj:transform": list(tuple(source.transform)[:6])}


def _lineage(tags: Mapping[str, str]) -> str:
    return f"Mapped by {tags[MODEL]}" + (f" ({tags[MODEL_FILE]})" if MODEL_FILE in tags else "") + "."


def _asset(layer: str, path: Path, folder: Path) -> dict[str, Any]:
    with closing(Source(path)) as source:
        side = ground_sample_distance(source.crs, source.transform, source.height, source.width)
        nodata = source.nodatavals[0]
        about: dict[str, Any] = {
            "href": f"./{path.relative_to(folder).as_posix()}" if path.is_relative_to(folder) else path.as_posix(),
            "type": _COG,
            "title": layer,
            "roles": ["data"],
            "data_type": source.dtypes[0],
            **({"nodata": "nan" if np.isnan(nodata) else nodata} if nodata is not None else {}),
            **({"raster:spatial_resolution": side} if side else {}),
        }
        names = read_class_names(source.path) or ()
        if layer == "classes":
            return about | ({"classification:classes": _classes(path, names)} if names else {})
        scale = ScoreScale(source.path)
        about["raster:scale"], about["raster:offset"] = float(scale.scale[0]), float(scale.offset[0])
        return about | ({"bands": [{"name": name} for name in names]} if layer == "probabilities" and names else {})


def _classes(path: Path, names: tuple[str, ...]) -> list[dict[str, Any]]:
    legend = Legend.of(path, names)
    return [
        {
            "value": index,
            "name": re.sub(r"[^0-9A-Za-z_-]+", "_", name) or f"class_{index}",
            "description": name,
            "color_hint": bytes(legend.colour(index)).hex().upper(),
        }
        for index, name in enumerate(names)
    ]
