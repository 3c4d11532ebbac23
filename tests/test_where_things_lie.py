"""The same ground, stored in every way: what is mapped, outlined, drawn and measured lies where it lies.

The truth is the centre of each pixel by its transform, worked out here.
"""

import struct

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from rasterio.transform import Affine

from rs_biformer.data.layouts import SceneFiles
from rs_biformer.data.tiling import TileOptions, tile_scenes
from rs_biformer.errors import RasterError
from rs_biformer.evaluation import evaluate
from rs_biformer.geometry import Window
from rs_biformer.predict import predict_scene
from rs_biformer.raster.labels import LabelOptions
from rs_biformer.raster.polygons import PolygonOptions, Polygons
from rs_biformer.raster.source import Source
from rs_biformer.raster.vector import vectorize
from rs_biformer.schema import ClassSchema

SCHEMA = ClassSchema("two", ("low", "high"), ((0, 0, 0), (255, 0, 0)))
SIDE, X, Y = 40, 500_000.0, 5_400_000.0
NORTH_UP = Affine(0.5, 0, X, 0, -0.5, Y)
STORED = {
    "north up": (NORTH_UP, lambda pixels: pixels),
    "south up": (Affine(0.5, 0, X, 0, 0.5, Y - SIDE / 2), lambda pixels: pixels[::-1]),
    "east to west": (Affine(-0.5, 0, X + SIDE / 2, 0, -0.5, Y), lambda pixels: pixels[:, ::-1]),
    "turned by a quarter": (Affine(0, 0.5, X, -0.5, 0, Y), lambda pixels: pixels.T),
}
"""How a raster may hold the ground: its transform, and its pixels made of those that are north up."""


def ground() -> np.ndarray:
    """Classes of the pixels, north up: one corner, one border and one patch, so that nothing is symmetric."""
    found = np.zeros((SIDE, SIDE), np.uint8)
    found[:7, :13] = found[20:33, 5:9] = found[:, 36:] = 1
    return found


def stored(how: str) -> np.ndarray:
    return np.ascontiguousarray(STORED[how][1](ground()))[None]


def true_area() -> shapely.Geometry:
    """The ground of class 1."""
    rows, cols = np.nonzero(ground())
    left, top = X + cols / 2, Y - rows / 2
    return shapely.union_all(shapely.box(left, top - 0.5, left + 0.5, top))


def outlined(path, out) -> shapely.Geometry:
    """The ground of class 1 by the polygons of a map."""
    vectorize(path, out)
    meta, _, shapes, values = pyogrio.raw.read(str(out), layer=out.stem)
    columns = dict(zip(meta["fields"], values, strict=True))
    return shapely.union_all(shapely.from_wkb(shapes)[columns["class_index"] == 1])


@pytest.mark.parametrize("how", STORED)
def test_a_map_and_its_polygons_lie_on_the_ground_of_the_scene(how, write_raster, tmp_path):
    scene = write_raster("scene.tif", stored(how), transform=STORED[how][0])
    predict_scene(lambda x: torch.cat([0.5 - x, x - 0.5], 1), scene, tmp_path / "map.tif", classes=SCHEMA, window=16)
    with rasterio.open(tmp_path / "map.tif") as made:
        assert made.transform == STORED[how][0]
        assert (made.read(1) == stored(how)[0]).all()
    found = outlined(tmp_path / "map.tif", tmp_path / "map.gpkg")
    assert found.symmetric_difference(true_area()).area < 1e-6


@pytest.mark.parametrize("how", STORED)
def test_polygons_are_drawn_on_the_pixels_that_lie_under_them(how, write_raster, tmp_path):
    scene = write_raster("scene.tif", stored(how), transform=STORED[how][0])
    shape = np.array([shapely.to_wkb(true_area())], object)
    path = tmp_path / "label.gpkg"
    pyogrio.raw.write(
        str(path), shape, [np.array([1])], ["class"], crs="EPSG:25832", geometry_type="MultiPolygon", driver="GPKG"
    )
    layer = Polygons(path, Source(scene), PolygonOptions(), columns=["class"])
    drawn, _ = layer.read(Window(0, 0, SIDE, SIDE), lambda features: np.ones(len(features.ids), np.int16), 0)
    assert (drawn == stored(how)[0]).all()


@pytest.mark.parametrize("how", STORED)
def test_a_map_is_measured_against_the_label_of_its_ground_or_refused(how, write_raster):
    """A label that is stored in another way is never compared row by row as it lies in its file."""
    label = write_raster("label.tif", stored("north up"))
    found = write_raster("map.tif", stored(how), transform=STORED[how][0], nodata=255)
    if how != "north up":
        with pytest.raises(RasterError, match="has the transform .* a corner differs by 40 pixels"):
            evaluate(found, label, SCHEMA)
        return
    confusion = evaluate(found, label, SCHEMA).scores.confusion
    assert confusion.matrix.tolist() == [[(ground() == 0).sum(), 0], [0, (ground() == 1).sum()]]


@pytest.mark.parametrize("how", STORED)
def test_a_scene_is_tiled_with_the_label_of_its_ground_or_refused(how, write_raster, tmp_path):
    scene = write_raster("scene.tif", 9 + stored(how), transform=STORED[how][0])
    label = write_raster("label.tif", stored("north up"))
    files = [SceneFiles("a", (scene,), label, "train")]
    if how != "north up":
        with pytest.raises(RasterError, match="does not lie on the pixels"):
            tile_scenes(files, SCHEMA, tmp_path / "out", options=TileOptions(20, 0.0))
    options = TileOptions(20, 0.0, labels=LabelOptions(regrid=True))
    index, _ = tile_scenes(files, SCHEMA, tmp_path / "out", options=options)
    quarters = stored(how)[0].reshape(2, 20, 2, 20).sum((1, 3)).ravel()
    assert index.table.histogram[:, 1].tolist() == quarters.tolist()


def test_a_raster_whose_points_are_pixels_lies_half_a_pixel_from_its_tie_point(write_raster, tmp_path):
    """GeoTIFF's RasterPixelIsPoint: the tie point is the centre of the first pixel (OGC 19-008r4, B.3.1)."""
    path = write_raster("points.tif", stored("north up"), AREA_OR_POINT="Point", nodata=255)
    with rasterio.open(path, "r+") as file:
        file.update_tags(AREA_OR_POINT="Point")
    x, y = tie_point(path.read_bytes())
    if (x, y) == (X, Y):  # a writer that does not shift: then the file says that the centre is there
        pytest.skip("GDAL wrote no point raster")
    assert (x, y) == (X + 0.25, Y - 0.25)
    assert Source(path).transform == NORTH_UP
    assert outlined(path, tmp_path / "a.gpkg").symmetric_difference(true_area()).area < 1e-6


def tie_point(data: bytes) -> tuple[float, float]:
    """Values 3 and 4 of ModelTiepointTag in a classic little-endian TIFF."""
    offset = struct.unpack_from("<I", data, 4)[0]
    for number in range(struct.unpack_from("<H", data, offset)[0]):
        tag, _, _, value = struct.unpack_from("<HHII", data, offset + 2 + 12 * number)
        if tag == 33922:
            return struct.unpack_from("<2d", data, value + 24)
    raise AssertionError("no tie point")
