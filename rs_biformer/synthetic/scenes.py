"""Scenes and their labels as files."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

from rasterio.crs import CRS
from rasterio.transform import from_origin

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window, cover
from rs_biformer.raster.gdal import gdal_env, open_raster
from rs_biformer.raster.labels import encode_colours
from rs_biformer.raster.writer import MapWriter
from rs_biformer.synthetic.drawing import render
from rs_biformer.synthetic.things import SCHEMA
from rs_biformer.synthetic.town import Town

_MARK = {"SYNTHETIC": "rs_biformer"}
"""A tag of what is made here, which may be replaced."""

PIECE = (1024, 2048)
"""Rows and columns drawn at once: whole blocks of the files."""


def make_scene(
    image_path: str | PathLike[str],
    label_path: str | PathLike[str],
    *,
    height: int,
    width: int,
    seed: int,
    gsd: float = 0.09,
    origin: tuple[float, float] = (496_000.0, 5_420_000.0),
    crs: str | CRS = "EPSG:25832",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a synthetic scene and its label as GeoTIFFs, piece by piece: memory does not grow with the size.

    height, width: pixels. gsd: metres per pixel; Vaihingen has 0.09. origin: easting and northing of the upper left
    corner. progress: called with the pixels done and in all.

    A file that exists is replaced if it was made here. Raises ConfigError for one that was not, and for a size, seed or
    gsd that cannot be meant, and RasterError when a file cannot be written.
    """
    if height < 1 or width < 1:
        raise ConfigError(f"a scene of {height} x {width} pixels cannot be made; both must be 1 or more")
    if not 0.02 <= gsd <= 2:
        raise ConfigError(f"gsd is {gsd} m; use 0.02 to 2 metres per pixel, such as 0.09")
    town = Town.from_seed(seed)
    place: dict[str, Any] = {
        "height": height,
        "width": width,
        "crs": CRS.from_user_input(crs),
        "transform": from_origin(*origin, gsd, gsd),
    }
    for path in (image_path, label_path):
        _require_own(Path(path))
    done = 0
    with (
        MapWriter(image_path, **place, count=3, nodata=None, cog=False, tags=_MARK) as image_file,
        MapWriter(label_path, **place, count=3, nodata=None, cog=False, tags=_MARK) as label_file,
    ):
        for window in cover(Window(0, 0, height, width), *PIECE):
            image, label = render(town, window, gsd)
            image_file.write(window, image)
            label_file.write(window, encode_colours(label, SCHEMA))
            done += window.height * window.width
            if progress:
                progress(done, height * width)


def _require_own(path: Path) -> None:
    """Refuse a file that is there and was not made here: it may be somebody's scene or label."""
    if not path.exists():
        return
    try:
        with gdal_env(), open_raster(path) as file:
            ours = _MARK.items() <= file.tags().items()
    except RasterError:
        ours = False
    if not ours:
        raise ConfigError(f"{path} exists and is no synthetic scene; give another name")
