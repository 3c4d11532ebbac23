"""A file that is changed in place while a command reads it: a line, and nothing under the name of the output."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.errors import NotGeoreferencedWarning

from rs_biformer.data.layouts import SceneFiles
from rs_biformer.data.tiling import TileOptions, tile_scenes
from rs_biformer.errors import RasterError
from rs_biformer.evaluation import evaluate
from rs_biformer.evaluation.zones import class_areas
from rs_biformer.predict import predict_scene
from rs_biformer.raster.height import write_ndsm
from rs_biformer.raster.vector import vectorize
from rs_biformer.schema import ClassSchema

SCHEMA = ClassSchema("two", ("a", "b"), ((0, 0, 0), (255, 0, 0)))
PIXELS = np.random.default_rng(0).integers(0, 2, (1, 96, 40)).astype(np.uint8)


def change(path: Path) -> None:
    """As a program does that writes into a file that is there: the same size, a later time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a mask has none
        with rasterio.open(path, "r+") as file:
            file.write(1 - file.read(1), 1)
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 10**9))


class Once:
    """A callback that changes a file the first time."""

    def __init__(self, path: Path) -> None:
        self.path: Path | None = path

    def __call__(self, *_: object) -> None:
        if self.path is not None:
            change(self.path)
            self.path = None


@pytest.fixture
def scene(write_raster) -> Path:
    return write_raster("scene.tif", PIXELS, nodata=255)


@pytest.mark.parametrize("beside", [False, True])
def test_a_scene_that_is_changed_while_it_is_mapped_gives_no_map(beside, write_raster, tmp_path):
    mask = np.full(PIXELS.shape[1:], 255, np.uint8)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        scene = write_raster("scene.tif", PIXELS, mask=mask if beside else None)
    once = Once(tmp_path / "scene.tif.msk" if beside else scene)

    def model(batch):
        once()
        return torch.cat([batch, 1 - batch], 1)

    with pytest.raises(RasterError, match="was changed while it was read"):
        predict_scene(model, scene, tmp_path / "map.tif", classes=2, window=32, batch_size=1)
    assert once.path is None and not (tmp_path / "map.tif").exists()


@pytest.mark.parametrize("which", ["scene", "label", "area"])
def test_a_scene_or_label_that_is_changed_while_it_is_tiled_gives_no_index(which, scene, write_raster, tmp_path):
    import shapely
    from pyogrio.raw import write

    label, area = write_raster("label.tif", PIXELS), tmp_path / "area.gpkg"
    box = np.array([shapely.to_wkb(shapely.box(500_000, 5_399_900, 500_100, 5_400_000))], object)
    write(str(area), box, [np.array(["x"], object)], ["name"], crs="EPSG:25832", geometry_type="Polygon", driver="GPKG")
    now = {"scene": scene, "label": label, "area": area}[which].stat()

    def progress(*_: object) -> None:
        if which != "area":
            change({"scene": scene, "label": label}[which])
        os.utime({"scene": scene, "label": label, "area": area}[which], ns=(now.st_atime_ns, now.st_mtime_ns + 10**9))

    with pytest.raises(RasterError, match=f"{which}.* was changed while it was read"):
        tile_scenes(
            [SceneFiles("a", (scene,), label, "train")],
            SCHEMA,
            tmp_path / "out",
            options=TileOptions(16, area=area),
            progress=progress,
        )
    assert not (tmp_path / "out" / "tiles.parquet").exists()


@pytest.mark.parametrize("count", [1, 2])
def test_a_map_that_is_changed_while_it_is_vectorized_gives_no_polygons(count, scene, write_raster, tmp_path):
    maps = [scene] + [write_raster("other.tif", PIXELS, nodata=255)] * (count - 1)
    out = tmp_path / "polygons.gpkg"
    with pytest.raises(RasterError, match="scene.tif was changed while it was read"):
        vectorize(maps, out, rows=16, progress=Once(scene))
    assert not out.exists()


def test_heights_that_are_changed_while_they_are_read_give_none(write_raster, tmp_path, monkeypatch):
    dsm, dtm = (write_raster(name, PIXELS.astype(np.float32)) for name in ("dsm.tif", "dtm.tif"))
    monkeypatch.setattr("rs_biformer.raster.height._STRIP", 32)
    with pytest.raises(RasterError, match="dtm.tif was changed while it was read"):
        write_ndsm(dsm, tmp_path / "ndsm.tif", terrain=dtm, progress=Once(dtm))
    assert not (tmp_path / "ndsm.tif").exists()


def test_a_map_that_is_changed_while_its_areas_are_counted_gives_none(scene, monkeypatch):
    monkeypatch.setattr("rs_biformer.evaluation.zones._BLOCK", (32, 32))
    with pytest.raises(RasterError, match="was changed while it was read"):
        class_areas(scene, Once(scene))


@pytest.mark.parametrize("which", ["map", "label"])
def test_a_map_or_label_that_is_changed_while_it_is_measured_gives_no_figures(which, scene, write_raster):
    label = write_raster("label.tif", PIXELS)
    changed = scene if which == "map" else label
    with pytest.raises(RasterError, match="was changed while it was read"):
        evaluate(scene, label, SCHEMA, progress=Once(changed))
