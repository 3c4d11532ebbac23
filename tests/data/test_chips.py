import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import rasterio
import rasterio.windows
from rasterio.transform import from_origin

from rs_biformer.data import chips as chips_module
from rs_biformer.data.chips import _prepare, write_chips
from rs_biformer.data.index import TileIndex
from rs_biformer.data.layouts import SceneFiles
from rs_biformer.data.tiling import TileOptions, tile_scenes
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.raster.labels import LabelRaster
from rs_biformer.raster.scene import Scene
from rs_biformer.schema import IGNORE, ClassSchema

SCHEMA = ClassSchema(
    "three", ("road", "roof", "tree"), ((255, 255, 255), (0, 0, 255), (0, 255, 0)), ignore_colours=((0, 0, 0),)
)
PALETTE = np.array([*SCHEMA.colours, (0, 0, 0)], np.uint8)


@pytest.fixture
def scene(tmp_path, write_raster):
    """A random scene of 40 x 50 with a mask, its label, and the truth: image, valid, class index."""
    rng = np.random.default_rng(0)
    image, valid = rng.integers(0, 255, (4, 40, 50), dtype=np.uint8), rng.random((40, 50)) > 0.2
    label = rng.integers(0, 4, (40, 50))
    path = write_raster(
        "a.tif", image, mask=valid, descriptions=("nir", "red", "green", "blue"), photometric="MINISBLACK"
    )
    colours = write_raster("a_label.tif", np.moveaxis(PALETTE[label], -1, 0))
    files = SceneFiles("a", (path,), colours, "train")
    return files, image, valid, np.where(valid & (label < 3), label, IGNORE)


@pytest.fixture
def index(scene, tmp_path):
    found, _ = tile_scenes([scene[0]], SCHEMA, tmp_path / "out", options=TileOptions(16, 0.5, bands=(1, 2, 3, 4)))
    return found


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_chips_put_back_together_equal_the_scene(scene, index, tmp_path):
    _, image, valid, label = scene
    chips = write_chips(index, tmp_path / "out")
    images, labels, masks = np.zeros_like(image), np.zeros(label.shape, int), np.zeros_like(valid)
    for number in range(len(index)):
        rows, cols = index.window(number).slices
        record = chips.scene(number)
        with rasterio.open(record.images[0]) as file:
            images[:, rows, cols] = file.read()
            masks[rows, cols] = file.dataset_mask() > 0
        with rasterio.open(record.label) as file:
            labels[rows, cols] = file.read(1)
    np.testing.assert_array_equal(images, image)
    np.testing.assert_array_equal(masks, valid)
    np.testing.assert_array_equal(labels, label)


def test_the_georeference_of_a_chip_equals_rasterio(scene, index, tmp_path):
    chips = write_chips(index, tmp_path / "out")
    with rasterio.open(scene[0].images[0]) as whole:
        for number in range(len(index)):
            window = index.window(number)
            area = rasterio.windows.Window(window.col, window.row, window.width, window.height)
            for path in (chips.scene(number).images[0], chips.scene(number).label):
                with rasterio.open(path) as chip:
                    assert chip.transform == rasterio.windows.transform(area, whole.transform)
                    assert chip.crs == whole.crs
            assert chips.scene(number).transform == tuple(chip.transform)[:6]


def test_a_rotated_scene_gives_rotated_chips(tmp_path, write_raster):
    turned = from_origin(5e5, 5.4e6, 0.5, 0.5) * rasterio.Affine.rotation(30)
    path = write_raster("a.tif", np.ones((3, 20, 20), np.uint8), transform=turned)
    label = write_raster("l.tif", np.full((3, 20, 20), 255, np.uint8), transform=turned)
    found, _ = tile_scenes([SceneFiles("a", (path,), label, "test")], SCHEMA, tmp_path / "out", options=TileOptions(16))
    for record in write_chips(found, tmp_path / "out").manifest.scenes:
        with rasterio.open(record.images[0]) as chip:
            area = rasterio.windows.Window(record.source_col, record.source_row, 16, 16)
            assert chip.transform.almost_equals(rasterio.windows.transform(area, turned))


def test_label_chips_are_class_indices_in_the_colours_of_the_schema(index, tmp_path):
    record = write_chips(index, tmp_path / "out").scene(0)
    with rasterio.open(record.label) as file:
        assert (file.dtypes, file.nodata) == (("uint8",), IGNORE)
        assert [file.colormap(1)[number][:3] for number in range(3)] == list(SCHEMA.colours)
    with rasterio.open(record.images[0]) as file:
        assert file.descriptions == ("nir", "red", "green", "blue")


def test_the_chips_are_an_index_of_their_own_with_the_same_contents(index, tmp_path):
    write_chips(index, tmp_path / "out")
    chips = TileIndex.read(tmp_path / "out" / "chips")
    chips.require_disjoint_splits()
    assert len(chips) == len(index)
    assert (chips.manifest.mean, chips.manifest.bands) == (index.manifest.mean, index.manifest.bands)
    np.testing.assert_array_equal(chips.table.histogram, index.table.histogram)
    for number in range(len(index)):
        record, window, origin = chips.scene(number), chips.window(number), index.window(number)
        assert record.name == f"a_r{origin.row}_c{origin.col}"
        assert (window.row, window.col, window.height, window.width) == (0, 0, origin.height, origin.width)
        with (
            Scene(record.images, bands=chips.manifest.bands) as scene,
            LabelRaster(record.label, chips.manifest.schema) as label,
        ):
            _, valid = scene.read(window)
            classes, unknown = label.read(window)
        classes[~valid] = IGNORE
        assert not unknown
        assert np.bincount(classes[classes != IGNORE], minlength=3).tolist() == index.table.histogram[number].tolist()


def test_label_values_of_the_schema_do_not_reach_the_chips(tmp_path, write_raster):
    schema = ClassSchema("odd", ("a", "b"), ((1, 1, 1), (2, 2, 2)), values=(10, 20), ignore_values=(0,))
    image = write_raster("a.tif", np.ones((3, 8, 8), np.uint8))
    values = np.full((1, 8, 8), 20, np.uint8)
    values[0, 0] = 0
    files = SceneFiles("a", (image,), write_raster("l.tif", values), "train")
    found, _ = tile_scenes([files], schema, tmp_path / "out", options=TileOptions(8))
    chips = write_chips(found, tmp_path / "out")
    with LabelRaster(chips.scene(0).label, chips.manifest.schema) as label:
        classes, unknown = label.read(chips.window(0))
    assert not unknown
    assert (classes[0] == IGNORE).all()
    assert (classes[1:] == 1).all()


def test_a_second_run_writes_no_chip_and_changes_no_byte(index, tmp_path, monkeypatch):
    write_chips(index, tmp_path / "out")
    before = snapshot(tmp_path / "out")

    def refuse(*_args, **_options):
        raise AssertionError("a chip was written again")

    monkeypatch.setattr(chips_module, "place_chip", refuse)
    write_chips(index, tmp_path / "out")
    assert snapshot(tmp_path / "out") == before


def test_the_same_bytes_from_several_workers(index, tmp_path):
    write_chips(index, tmp_path / "out")
    before = snapshot(tmp_path / "out" / "chips" / "images")
    write_chips(index, tmp_path / "elsewhere", workers=2)
    assert snapshot(tmp_path / "elsewhere" / "chips" / "images") == before


def test_chips_of_other_options_are_replaced(scene, index, tmp_path):
    write_chips(index, tmp_path / "out")
    other, _ = tile_scenes([scene[0]], SCHEMA, tmp_path / "out", options=TileOptions(20, 0, bands=(1, 2, 3, 4)))
    write_chips(other, tmp_path / "out")
    found = sorted(path.name for path in (tmp_path / "out" / "chips").rglob("*.tif"))
    assert found == sorted(
        2 * [f"{record.name}.tif" for record in TileIndex.read(tmp_path / "out" / "chips").manifest.scenes]
    )


def test_a_changed_scene_is_cut_again(scene, index, tmp_path, write_raster):
    write_chips(index, tmp_path / "out")
    image = 255 - scene[1]
    write_raster("a.tif", image, mask=scene[2], descriptions=("nir", "red", "green", "blue"), photometric="MINISBLACK")
    os.utime(scene[0].images[0], ns=(1, 1))
    record = write_chips(index, tmp_path / "out").scene(0)
    with rasterio.open(record.images[0]) as chip:
        np.testing.assert_array_equal(chip.read(), image[:, :16, :16])


def test_a_failure_in_the_middle_leaves_whole_chips_and_no_index(index, tmp_path, monkeypatch):
    written = chips_module.place_chip

    def fail_at_the_fifth(path, content, calls=[]):  # noqa: B006 - it counts
        calls.append(path)
        if len(calls) == 5:
            raise RasterError("the disk is full")
        written(path, content)

    monkeypatch.setattr(chips_module, "place_chip", fail_at_the_fifth)
    with pytest.raises(RasterError, match="the disk is full"):
        write_chips(index, tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*_r*.tif"))) == 4
    assert not (tmp_path / "out" / "chips" / "tiles.parquet").exists()
    monkeypatch.undo()
    write_chips(index, tmp_path / "out")
    after = snapshot(tmp_path / "out" / "chips" / "labels")
    write_chips(index, tmp_path / "fresh")
    assert snapshot(tmp_path / "fresh" / "chips" / "labels") == after


def test_a_killed_run_leaves_no_half_chip_and_the_next_one_completes_it(scene, tmp_path):
    options = TileOptions(16, 0.9, bands=(1, 2, 3, 4))
    found, _ = tile_scenes([scene[0]], SCHEMA, tmp_path / "out", options=options)
    code = (
        "from pathlib import Path; from rs_biformer.data.index import TileIndex;"
        "from rs_biformer.data.chips import write_chips;"
        f"out = Path({str(tmp_path / 'out')!r}); write_chips(TileIndex.read(out), out)"
    )
    target = tmp_path / "out" / "chips"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        while len(list(target.rglob("*_r*.tif"))) < 20:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (target / "tiles.parquet").exists()
    done = [path for path in target.rglob("*_r*.tif") if not path.name.startswith(".")]
    assert 20 <= len(done) < 2 * len(found)
    for path in done:
        with rasterio.open(path) as chip:
            assert chip.read().shape[1:] == (16, 16)
    write_chips(found, tmp_path / "out")
    assert len(list(target.rglob("*_r*.tif"))) == 2 * len(found)
    assert not [path for path in target.rglob("*") if path.name.startswith(".")]


def test_chips_of_unknown_origin_are_not_touched(index, tmp_path):
    (tmp_path / "out" / "chips" / "images").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds chips of unknown origin; remove them or choose another --out"):
        write_chips(index, tmp_path / "out")


def test_scenes_smaller_than_a_window_give_chips_of_their_size(tmp_path, write_raster):
    path = write_raster("a.tif", np.ones((3, 7, 30), np.uint8))
    label = write_raster("l.tif", np.full((3, 7, 30), 255, np.uint8))
    found, _ = tile_scenes(
        [SceneFiles("a", (path,), label, "train")], SCHEMA, tmp_path / "out", options=TileOptions(16)
    )
    sizes = {(record.height, record.width) for record in write_chips(found, tmp_path / "out").manifest.scenes}
    assert sizes == {(7, 16)}


@pytest.mark.parametrize("part", ["chips", "chips/images", "chips/images/train"])
def test_chips_are_not_removed_through_a_link(part, tmp_path):
    somebody = tmp_path / "somebody"
    for kept in ("a_r0_c0.tif", "train/a_r0_c0.tif", "images/train/a_r0_c0.tif"):
        (somebody / kept).parent.mkdir(parents=True, exist_ok=True)
        (somebody / kept).write_text("precious")
    link = tmp_path / "out" / part
    link.parent.mkdir(parents=True)
    link.symlink_to(somebody)
    (tmp_path / "out" / "chips" / "chips.json").write_text('{"fingerprint": "another"}')
    with pytest.raises(ConfigError, match="is a link"):
        _prepare(tmp_path / "out" / "chips", "mine")
    assert {path.read_text() for path in somebody.rglob("*.tif")} == {"precious"}
