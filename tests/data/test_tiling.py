import json
import os
import stat
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from rs_biformer.data.index import TileIndex
from rs_biformer.data.layouts import SceneFiles
from rs_biformer.data.splits import Blocks
from rs_biformer.data.tiling import TileOptions, tile_scenes
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.schema import ClassSchema

SCHEMA = ClassSchema(
    "three", ("road", "roof", "tree"), ((255, 255, 255), (0, 0, 255), (0, 255, 0)), ignore_colours=((0, 0, 0),)
)
PALETTE = np.array([*SCHEMA.colours, (0, 0, 0)], np.uint8)


def save(path, array, **profile):
    path.parent.mkdir(parents=True, exist_ok=True)
    defaults = {"crs": "EPSG:25832", "transform": from_origin(5e5, 5.4e6, 0.5, 0.5)}
    count, height, width = array.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=array.dtype, **(defaults | profile)
    ) as sink:
        sink.write(array)
    return path


def make_scene(folder, name="a", size=(40, 50), seed=0, split="train", dtype="uint8", nodata=0, **profile):
    """A random scene and label; a tenth of the image is nodata, a quarter of the label unlabelled.

    Returns its files, the image, the valid pixels and the class index with 3 for ignore.
    """
    rng = np.random.default_rng(seed)
    image = rng.integers(1, 250, (3, *size)).astype(dtype)
    valid = rng.random(size) > 0.1
    image[:, ~valid] = nodata
    label = rng.integers(0, 4, size)
    files = SceneFiles(
        name,
        (save(folder / f"{name}.tif", image, nodata=nodata, **profile),),
        save(folder / f"{name}_label.tif", np.moveaxis(PALETTE[label], -1, 0), **profile),
        split,
    )
    return files, image, valid, np.where(valid, label, 3)


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    window=st.integers(1, 24),
    overlap=st.sampled_from([0, 0.3, 0.5, 0.9]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40)
def test_every_valid_pixel_lies_in_a_window_inside_the_scene_and_histograms_are_true(
    height, width, window, overlap, seed
):
    with TemporaryDirectory() as folder:
        files, _, _, label = make_scene(Path(folder), size=(height, width), seed=seed)
        if not (label < 3).any():
            return
        index, _ = tile_scenes([files], SCHEMA, Path(folder) / "out", options=TileOptions(window, overlap))
    covered = np.zeros((height, width), bool)
    for number in range(len(index)):
        part = index.window(number)
        assert part.row_stop <= height
        assert part.col_stop <= width
        assert (part.height, part.width) == (min(window, height), min(window, width))
        covered[part.slices] = True
        brute = np.bincount(label[part.slices].ravel(), minlength=4)[:3]
        assert index.table.histogram[number].tolist() == brute.tolist()
        assert index.table.valid_share[number] == brute.sum() / (part.height * part.width) > 0
    assert covered[label < 3].all()


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("uint8", 0), ("uint16", 0), ("float32", float("nan")), ("int16", -9999)]
)
def test_mean_and_deviation_equal_numpy_over_the_valid_training_pixels(tmp_path, monkeypatch, dtype, nodata):
    monkeypatch.setattr("rs_biformer.data.counting._PIXELS_AT_ONCE", 1)
    monkeypatch.setattr("rs_biformer.data.counting._ROW_STEP", 7)  # bands that cut windows and cells in two
    one, two, other = (
        make_scene(tmp_path, name, size, seed, split, dtype, nodata)
        for name, size, seed, split in (
            ("a", (40, 50), 1, "train"),
            ("b", (31, 20), 2, "train"),
            ("c", (40, 40), 3, "val"),
        )
    )
    index, _ = tile_scenes([one[0], two[0], other[0]], SCHEMA, tmp_path / "out", options=TileOptions(16, 0.5))
    pixels = np.concatenate([image[:, valid] for _, image, valid, _ in (one, two)], axis=1).astype(np.float64)
    assert index.manifest.mean == pytest.approx(pixels.mean(axis=1).tolist(), rel=1e-12)
    assert index.manifest.std == pytest.approx(pixels.std(axis=1).tolist(), rel=1e-9)
    assert index.manifest.dtype == dtype
    for number in range(len(index)):
        label = (one, two, other)[index.table.scene[number]][3]
        brute = np.bincount(label[index.window(number).slices].ravel(), minlength=4)[:3]
        assert index.table.histogram[number].tolist() == brute.tolist()


def test_without_training_scenes_statistics_are_of_all_and_it_says_so(tmp_path):
    files, image, valid, _ = make_scene(tmp_path, split="test")
    index, summary = tile_scenes([files], SCHEMA, tmp_path / "out", options=TileOptions(16))
    assert index.manifest.mean == pytest.approx(image[:, valid].mean(axis=1).tolist())
    assert index.manifest.statistics_of == summary["statistics_of"] == "all"
    assert "no train split" in summary["notes"][0]


def test_with_blocks_statistics_are_of_the_pixels_of_training_windows(tmp_path):
    files, image, valid, _ = make_scene(tmp_path, size=(96, 96), split=None)
    blocks = Blocks((0.5, 0.25, 0.25), 32, 6, seed=4)
    index, summary = tile_scenes([files], SCHEMA, tmp_path / "out", options=TileOptions(16, 0.5), blocks=blocks)
    seen = np.zeros((96, 96), bool)
    train = index.select("train")
    for number in range(len(train)):
        seen[train.window(number).slices] = True
    assert 0 < seen.mean() < 0.6
    assert index.manifest.mean == pytest.approx(image[:, seen & valid].mean(axis=1).tolist())
    assert set(index.table.split.tolist()) == {"train", "val", "test"}
    assert summary["dropped_windows"]["between_splits"] == 11 * 11 - len(index)


def test_the_summary_counts_each_pixel_once(tmp_path):
    files, _, _, label = make_scene(tmp_path)
    _, summary = tile_scenes([files], SCHEMA, tmp_path / "out", options=TileOptions(16, 0.75))
    part = summary["splits"]["train"]
    counts = np.bincount(label.ravel(), minlength=4)[:3]
    assert part["labelled_pixels"] == counts.sum()
    assert [entry["pixels"] for entry in part["classes"].values()] == counts.tolist()
    assert sum(entry["share"] for entry in part["classes"].values()) == pytest.approx(1)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


def test_windows_without_a_valid_label_are_dropped_and_counted(tmp_path):
    image = np.full((3, 16, 48), 9, np.uint8)
    label = np.zeros((3, 16, 48), np.uint8)
    label[:, :, :4] = 255  # all of one class in the first window, and nothing elsewhere
    files = SceneFiles("a", (save(tmp_path / "a.tif", image),), save(tmp_path / "l.tif", label), "train")
    index, summary = tile_scenes([files], SCHEMA, tmp_path / "out", options=TileOptions(16, 0))
    assert [index.window(number).col for number in range(len(index))] == [0]
    assert summary["dropped_windows"] == {"without_valid_pixels": 2, "between_splits": 0}
    with pytest.raises(RasterError, match=r"no window of the split train \(.*a\.tif\) holds enough pixels"):
        tile_scenes([files], SCHEMA, tmp_path / "out", options=TileOptions(16, 0, min_valid=0.3))


def test_the_same_bytes_whatever_the_number_of_workers_and_however_often(tmp_path, monkeypatch):
    monkeypatch.setattr("rs_biformer.data.counting._PIXELS_AT_ONCE", 1)
    monkeypatch.setattr("rs_biformer.data.counting._ROW_STEP", 16)
    files = [make_scene(tmp_path, name, seed=number)[0] for number, name in enumerate("ab")]
    seen = []
    for workers in (1, 2, 1):
        tile_scenes(files, SCHEMA, tmp_path / "out", options=TileOptions(16), workers=workers)
        seen.append([(tmp_path / "out" / name).read_bytes() for name in ("tiles.parquet", "summary.json")])
    assert seen[0] == seen[1] == seen[2]


def test_a_written_index_is_read_back_with_absolute_scene_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_scene(Path(), "a")
    tile_scenes([SceneFiles("a", (Path("a.tif"),), Path("a_label.tif"), "val")], SCHEMA, Path("out"))
    monkeypatch.chdir("/")
    record = TileIndex.read(tmp_path / "out").manifest.scenes[0]
    assert record.images == (str(tmp_path / "a.tif"),)
    assert record.transform == (0.5, 0.0, 5e5, 0.0, -0.5, 5.4e6)


def test_several_rasters_become_bands_of_one_scene(tmp_path):
    files, _, _, _ = make_scene(tmp_path)
    height = save(tmp_path / "dsm.tif", np.arange(2000, dtype=np.float32).reshape(1, 40, 50))
    both = SceneFiles("a", (*files.images, height), files.label, "train")
    index, _ = tile_scenes([both], SCHEMA, tmp_path / "out", options=TileOptions(16, bands=(4, 1)))
    assert len(index.manifest.bands) == 2
    assert index.manifest.dtype == "float32"
    assert index.manifest.mean[0] > 900


def test_a_band_that_never_varies_gets_a_deviation_of_one(tmp_path):
    files, *_ = make_scene(tmp_path)
    flat = save(tmp_path / "flat.tif", np.full((1, 40, 50), 7, np.uint8))
    index, _ = tile_scenes([SceneFiles("a", (flat,), files.label, "train")], SCHEMA, tmp_path / "out")
    assert (index.manifest.mean, index.manifest.std) == ((7.0,), (1.0,))


def spoil(tmp_path, pixels, colour):
    """A scene of which the label has so many pixels of another colour."""
    files, *_ = make_scene(tmp_path)
    label = np.full((3, 40, 50), 255, np.uint8)
    label.reshape(3, -1)[:, :pixels] = np.array(colour)[:, None]
    save(tmp_path / "a_label.tif", label)
    return files


def test_a_few_unknown_colours_are_ignored_and_reported(tmp_path):
    index, summary = tile_scenes(
        [spoil(tmp_path, 20, (250, 255, 255))], SCHEMA, tmp_path / "out", options=TileOptions(64)
    )
    assert summary["unknown"] == [
        {"colour": [250, 255, 255], "pixels": 20, "nearest_class": "road", "tolerance_needed": 5}
    ]
    assert index.table.histogram.sum() <= 2000 - 20


def test_near_colours_are_taken_within_the_tolerance(tmp_path):
    files = spoil(tmp_path, 500, (250, 255, 255))
    _, summary = tile_scenes([files], SCHEMA, tmp_path / "out", options=TileOptions(64, tolerance=5))
    assert summary["unknown"] == []


def test_too_many_unknown_colours_are_refused_with_the_nearest_class(tmp_path):
    message = (
        r"a_label.tif: 1\.1% .* unknown .*'three', allowed are 1\.0% .*colour 9,0,250, 22 pixels \(nearest is roof, 9"
    )
    with pytest.raises(RasterError, match=message):
        tile_scenes([spoil(tmp_path, 22, (9, 0, 250))], SCHEMA, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_values_of_an_index_label_are_refused(tmp_path):
    files, *_ = make_scene(tmp_path)
    save(tmp_path / "a_label.tif", np.full((1, 40, 50), 7, np.uint8))
    with pytest.raises(RasterError, match=r"100\.0% .*value 7, 2000 pixels \(the schema has 0, 1, 2\)"):
        tile_scenes([files], SCHEMA, tmp_path / "out")


def test_a_label_of_another_size_is_refused_with_both_sizes(tmp_path):
    files, *_ = make_scene(tmp_path)
    save(tmp_path / "a_label.tif", np.zeros((3, 40, 51), np.uint8))
    with pytest.raises(RasterError, match=r"a.tif is 40 x 50 .*a_label.tif is 40 x 51"):
        tile_scenes([files], SCHEMA, tmp_path / "out")


def test_scenes_of_other_bands_or_types_are_refused(tmp_path):
    one, two, grey = (
        make_scene(tmp_path, name, dtype=dtype, photometric=photometric)[0]
        for name, dtype, photometric in (("a", "uint8", "RGB"), ("b", "uint16", "RGB"), ("c", "uint8", "MINISBLACK"))
    )
    with pytest.raises(RasterError, match="b.tif has the data type uint16 and .*a.tif uint8"):
        tile_scenes([one, two], SCHEMA, tmp_path / "out")
    with pytest.raises(
        RasterError, match="c.tif has the bands gray, band2, band3 and .*a.tif red, green, blue; select"
    ):
        tile_scenes([one, grey], SCHEMA, tmp_path / "out")


def test_one_raster_in_two_splits_is_refused(tmp_path):
    files, *_ = make_scene(tmp_path)
    twice = [files, SceneFiles("b", files.images, files.label, "val")]
    with pytest.raises(ConfigError, match="splits overlap"):
        tile_scenes(twice, SCHEMA, tmp_path / "out")


def test_scenes_without_label_are_left_out_and_named(tmp_path):
    files, *_ = make_scene(tmp_path)
    bare = SceneFiles("b", files.images, None, "test")
    _, summary = tile_scenes([files, bare], SCHEMA, tmp_path / "out")
    assert summary["scenes_without_label"] == ["b"]
    with pytest.raises(ConfigError, match="no scene has a label"):
        tile_scenes([bare], SCHEMA, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window is 0"),
        ({"overlap": 1.0}, "overlap is 1.0"),
        ({"overlap": -0.1}, "overlap is -0.1"),
        ({"min_valid": 1.5}, "min_valid is 1.5"),
        ({"max_unknown": -1}, "max_unknown is -1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TileOptions(**options)


def test_blocks_that_starve_a_split_are_refused(tmp_path):
    files, *_ = make_scene(tmp_path, split=None)
    with pytest.raises(ConfigError, match="the blocks leave (train|val|test) no window; use smaller blocks"):
        tile_scenes([files], SCHEMA, tmp_path / "out", options=TileOptions(16), blocks=Blocks((0.4, 0.3, 0.3), 50, 0))
    with pytest.raises(ConfigError, match="blocks of 8 pixels hold no window of 16"):
        tile_scenes([files], SCHEMA, tmp_path / "out", options=TileOptions(16), blocks=Blocks((0.4, 0.3, 0.3), 8, 0))


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path):
    files = SceneFiles("a", (tmp_path / "absent.tif",), tmp_path / "absent_label.tif", "train")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is a file; choose another folder"):
        tile_scenes([files], SCHEMA, tmp_path / "file" / "out")
    with pytest.raises(RasterError, match="absent.tif does not exist"):
        tile_scenes([files], SCHEMA, tmp_path / "out")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(ConfigError, match="cannot be written to"):
        tile_scenes([], SCHEMA, tmp_path / "out")


def test_progress_ends_at_the_total(tmp_path):
    told = []
    tile_scenes(
        [make_scene(tmp_path)[0]], SCHEMA, tmp_path / "out", progress=lambda done, total: told.append((done, total))
    )
    assert told[-1] == (1, 1)
