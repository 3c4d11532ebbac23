"""What tiling holds at a time is bounded, whatever the width, the bands and the colours; the figures are the same."""

from collections import Counter

import numpy as np
import pytest

from rs_biformer.data import counting
from rs_biformer.data.layouts import SceneFiles
from rs_biformer.data.splits import Blocks
from rs_biformer.data.tiling import TileOptions, tile_scenes
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster import labels
from rs_biformer.raster.labels import OTHERS, LabelRaster, bounded
from rs_biformer.schema import ClassSchema

SCHEMA = ClassSchema("two", ("road", "roof"), ((255, 255, 255), (0, 0, 255)))


def tiled(folder, image, label, **options):
    files = [SceneFiles("a", (image,), label, None)]
    return tile_scenes(
        files, SCHEMA, folder, options=TileOptions(window=32, **options), blocks=Blocks((0.5, 0.25, 0.25), 64, 0)
    )


def test_a_wide_scene_comes_in_columns_and_counts_the_same(write_raster, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    image = write_raster("i.tif", rng.integers(0, 250, (3, 300, 700), dtype=np.uint8), nodata=0)
    label = write_raster(
        "l.tif", np.moveaxis(np.array(SCHEMA.colours, np.uint8)[rng.integers(0, 2, (300, 700))], -1, 0)
    )
    whole, said = tiled(tmp_path / "whole", image, label)
    windows = []
    read = counting._count_slab
    monkeypatch.setattr(counting, "_count_slab", lambda task: windows.append(task.window) or read(task))
    monkeypatch.setattr(counting, "_COLUMNS_AT_ONCE", 256)
    parts, also = tiled(tmp_path / "parts", image, label)
    assert Window(0, 512, 300, 188) in windows and max(window.width for window in windows) == 256
    for name in ("row", "col", "split", "histogram", "valid_share"):
        assert (getattr(whole.table, name) == getattr(parts.table, name)).all(), name
    assert whole.manifest.mean == pytest.approx(parts.manifest.mean, rel=1e-12)
    assert whole.manifest.std == pytest.approx(parts.manifest.std, rel=1e-12)
    assert said["splits"] == also["splits"]


def test_many_bands_are_read_in_columns_of_bounded_bytes(write_raster, tmp_path, monkeypatch):
    image = write_raster("i.tif", np.ones((20, 256, 1100), np.uint16))
    label = write_raster("l.tif", np.zeros((3, 256, 1100), np.uint8) + 255)
    monkeypatch.setattr(counting, "_BYTES_AT_ONCE", 20 * 2 * 256 * 300)
    widths = []
    read = counting._count_slab
    monkeypatch.setattr(counting, "_count_slab", lambda task: widths.append(task.window.width) or read(task))
    tiled(tmp_path / "t", image, label)
    assert widths == [256, 256, 256, 256, 76]


def test_noise_taken_for_a_label_is_counted_by_its_most_frequent_colours(write_raster, tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "MOST_TOLD", 3)
    noise = np.arange(3 * 40, dtype=np.uint8).reshape(3, 1, 40).repeat(2, axis=1)
    noise[:, :, :10] = 7
    path = write_raster("n.tif", noise)
    with LabelRaster(path, SCHEMA) as raster:
        _, unknown = raster.read(Window(0, 0, 2, 40))
    assert len(unknown) == 4 and unknown[(7, 7, 7)] == 20
    assert unknown.total() == 80 and unknown[OTHERS] == 80 - 20 - 2 * 2
    image = write_raster("i.tif", np.ones((3, 2, 40), np.uint8))
    files = [SceneFiles("a", (image,), path, "train")]
    with pytest.raises(RasterError, match=r"pixels are unknown .*others, 56 pixels; colour 7,7,7"):
        tile_scenes(files, SCHEMA, tmp_path / "t")


def test_counts_of_many_colours_are_bounded_and_keep_their_sum(monkeypatch):
    monkeypatch.setattr(labels, "MOST_TOLD", 2)
    few = Counter({1: 5, 2: 1, 3: 1, 4: 9})
    assert bounded(few) is few
    many = Counter({1: 5, 2: 1, 3: 1, 4: 9, OTHERS: 3, 6: 1})
    assert bounded(many) == {4: 9, 1: 5, OTHERS: 6}


def test_blocks_are_dealt_by_a_seed_that_there_is():
    with pytest.raises(ConfigError, match="seed is -1; allowed are whole numbers of 0 or more"):
        Blocks((0.5, 0.5, 0), 64, 0, seed=-1)
