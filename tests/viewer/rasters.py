"""Small maps as `rs-biformer predict` writes them."""

import json

NAMES = ("road", "roof", "wood", "water")
COLOURS = ((200, 200, 200), (220, 40, 30), (20, 120, 40), (30, 80, 220))


def write_map(write_raster, name, index, names=NAMES, **options):
    """A class map with names and palette, 255 where there is no class."""
    import rasterio

    path = write_raster(name, index, nodata=255, **options)
    with rasterio.open(path, "r+") as file:
        file.update_tags(CLASS_NAMES=json.dumps(names), LAYER="classes")
        colours = {index: (*COLOURS[NAMES.index(one)], 255) for index, one in enumerate(names)}
        file.write_colormap(1, colours | {255: (0, 0, 0, 0)})
    return path
