"""What tiling holds at a time is bounded, whatever the width, the bands and the colours; the figures are the same."""

import tracemalloc
from collections import Counter
from itertools import product

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

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


@pytest.fixture
def slabs(monkeypatch):
    """The windows of all slabs that are read, with the most bytes that numpy held for one."""
    found = {}
    read = counting._count_slab

    def watched(task):
        tracemalloc.start()
        try:
            return read(task)
        finally:
            found[task.window] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()

    monkeypatch.setattr(counting, "_count_slab", watched)
    return found


def wide_pair(folder, layout, bands=3, height=140, width=4000):
    """A scene with holes and its label, both with blocks of that layout; the image, its holes and the classes."""
    rng = np.random.default_rng(0)
    image, classes = rng.integers(1, 250, (bands, height, width), dtype=np.uint8), rng.integers(0, 2, (height, width))
    valid = rng.random((height, width)) > 0.1
    image[:, ~valid] = 0
    colours = np.moveaxis(np.array(SCHEMA.colours, np.uint8)[classes], -1, 0)
    paths = []
    for name, pixels in (("i.tif", image), ("l.tif", colours)):
        place = {
            "crs": "EPSG:25832",
            "transform": from_origin(5e5, 5.4e6, 0.5, 0.5),
            "nodata": 0 if name == "i.tif" else None,
        }
        paths.append(folder / name)
        with rasterio.open(
            folder / name, "w", driver="GTiff", height=height, width=width, count=len(pixels), dtype="uint8",
            compress="deflate", **place, **layout,
        ) as sink:  # fmt: skip
            sink.write(pixels)
    return paths, image, valid, classes


TILES = {"tiled": True, "blockxsize": 64, "blockysize": 48}
STRIPS = {"blockysize": 3}


@pytest.mark.parametrize(
    ("layout", "shapes"), [(TILES, {(48, 640), (48, 160), (44, 640), (44, 160)}), (STRIPS, {(6, 4000), (2, 4000)})]
)
def test_a_wide_scene_comes_in_slabs_of_its_blocks_and_counts_as_brute_force_does(
    tmp_path, monkeypatch, slabs, layout, shapes
):
    (image_path, label_path), image, valid, classes = wide_pair(tmp_path, layout)
    monkeypatch.setattr(counting, "_ROW_STEP", 32)
    monkeypatch.setattr(counting, "_PIXELS_AT_ONCE", 8 * 4000)
    index, _ = tile_scenes(
        [SceneFiles("a", (image_path,), label_path, "train")],
        SCHEMA,
        tmp_path / "t",
        options=TileOptions(window=40, overlap=0.3),
    )
    assert {(window.height, window.width) for window in slabs} == shapes
    covered = np.zeros(valid.shape, int)
    for window in slabs:
        covered[window.slices] += 1
    assert (covered == 1).all()
    for number in range(len(index)):
        part = index.window(number).slices
        assert index.table.histogram[number].tolist() == np.bincount(classes[part][valid[part]], minlength=2).tolist()
    pixels = image[:, valid].astype(np.float64)
    assert index.manifest.mean == pytest.approx(pixels.mean(axis=1).tolist(), rel=1e-12)
    assert index.manifest.std == pytest.approx(pixels.std(axis=1).tolist(), rel=1e-12)


@pytest.mark.parametrize(("layout", "window"), [(TILES, 32), (STRIPS, 512)])
def test_what_a_slab_holds_does_not_grow_with_the_width(tmp_path, monkeypatch, slabs, layout, window):
    monkeypatch.setattr(counting, "_ROW_STEP", 32)
    monkeypatch.setattr(counting, "_PIXELS_AT_ONCE", 2**15)
    most = []
    for width in (1000, 8000):
        folder = tmp_path / str(width)
        folder.mkdir()
        (image, label), *_ = wide_pair(folder, layout, width=width)
        slabs.clear()
        tile_scenes(
            [SceneFiles("a", (image,), label, "train")], SCHEMA, folder / "t", options=TileOptions(window, overlap=0)
        )
        assert max(part.height * part.width for part in slabs) <= 2**15
        most.append(max(slabs.values()))
    # image, label bands, masks, a band in float64, codes of 8 bytes twice; and what opening two files takes
    assert max(most) < 2**15 * 36 + 500_000
    assert most[1] < 1.2 * most[0]


def test_slabs_are_bounded_for_every_width_number_of_bands_and_block():
    for width, pixel, high, wide in product((1, 255, 16_384, 16_385, 50_000, 10**6, 10**9), (1, 3, 448, 2**19), *[
        (1, 3, 256, 512, 4096, 16_384, 10**6)
    ] * 2):  # fmt: skip
        rows, cols = counting.slab_shape(width, pixel, (high, wide))
        assert rows >= 1 and cols >= 1
        assert rows * min(cols, width) * pixel <= 2**28 and rows * min(cols, width) <= 2**22
        if pixel <= 448:
            assert rows * min(cols, width) * pixel >= min(2**28 // 3, 2**20 * pixel, 256 * width * pixel), (
                width,
                pixel,
                high,
                wide,
            )


def test_scenes_with_room_for_whole_rows_are_read_as_ever():
    """The last bits of a deviation depend on the slabs: indices of usual scenes are those of earlier versions."""
    assert counting.slab_shape(8192, 3, (512, 512)) == (512, 8192)
    assert counting.slab_shape(16_384, 3, (1, 16_384)) == (256, 16_384)
    assert counting.slab_shape(1000, 3, (1000, 1000)) == (4096, 1000)


def test_many_bands_are_read_in_slabs_of_bounded_bytes(tmp_path, monkeypatch, slabs):
    (image, label), *_ = wide_pair(tmp_path, TILES, bands=20, height=200, width=1100)
    monkeypatch.setattr(counting, "_BYTES_AT_ONCE", 20 * 256 * 300)
    tiled(tmp_path / "t", image, label)
    assert {window.width for window in slabs} == {256, 76} and {window.height for window in slabs} == {200}


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
