import json
import os
import re
import stat
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin
from rasterio.warp import transform

from rs_biformer.data.chips import write_chips
from rs_biformer.data.counting import TilePlan, _slabs
from rs_biformer.data.dataset import TileDataset
from rs_biformer.data.index import SceneRecord, TileIndex
from rs_biformer.data.layouts import SceneFiles
from rs_biformer.data.splits import Blocks
from rs_biformer.data.tiling import TileOptions, tile_scenes
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window, Windows
from rs_biformer.raster.labels import LabelOptions
from rs_biformer.raster.values import RAW, Reading
from rs_biformer.schema import IGNORE, ClassSchema

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
    monkeypatch.setattr("rs_biformer.data.counting._PIXELS_AT_ONCE", 7 * 50)
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
    monkeypatch.setattr("rs_biformer.data.counting._PIXELS_AT_ONCE", 16 * 50)
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
    save(tmp_path / "a_label.tif", np.zeros((3, 40, 49), np.uint8))
    with pytest.raises(RasterError, match=r"a_label.tif \(40 x 49 pixels\) .*a.tif \(40 x 50\).* 1 columns"):
        tile_scenes([files], SCHEMA, tmp_path / "out")


def test_scenes_of_other_bands_or_types_are_refused(tmp_path):
    one, two = (
        make_scene(tmp_path, name, dtype=dtype, photometric="RGB")[0]
        for name, dtype in (("a", "uint8"), ("b", "uint16"))
    )
    with pytest.raises(RasterError, match="b.tif has the data type uint16 and .*a.tif uint8"):
        tile_scenes([one, two], SCHEMA, tmp_path / "out")
    four = SceneFiles(
        "d", (save(tmp_path / "d.tif", np.ones((4, 40, 50), np.uint8), photometric="MINISBLACK"),), one.label, "train"
    )
    with pytest.raises(RasterError, match=r"d.tif has 4 bands \(.*a.tif has 3 bands \(red, green, blue\).*--bands"):
        tile_scenes([one, four], SCHEMA, tmp_path / "out")
    for name, band in (("e", "nir"), ("f", "red")):
        with rasterio.open(save(tmp_path / f"{name}.tif", np.ones((3, 40, 50), np.uint8)), "r+") as file:
            file.descriptions = (band, "swir", "green")
    other = SceneFiles("e", (tmp_path / "e.tif",), one.label, "train")
    with pytest.raises(RasterError, match="e.tif has 3 bands .nir, swir, green.*--bands 1,2,3"):
        tile_scenes([one, other], SCHEMA, tmp_path / "out")


def test_a_data_type_of_the_same_values_is_taken_on_request(tmp_path):
    one, two = (make_scene(tmp_path, name, dtype=dtype) for name, dtype in (("a", "uint8"), ("b", "uint16")))
    options = TileOptions(16, allow_dtype_mismatch=True)
    index, _ = tile_scenes([one[0], two[0]], SCHEMA, tmp_path / "out", options=options)
    assert index.manifest.dtype == "uint16"
    values = np.concatenate([image[:, valid] for _, image, valid, _ in (one, two)], axis=1)
    assert index.manifest.mean == pytest.approx(values.mean(axis=1), rel=1e-12)
    item = TileDataset(TileIndex.read(tmp_path / "out"))[0]["image"].numpy()
    assert item.dtype == np.uint16
    assert np.array_equal(item[:, one[2][:16, :16]], one[1][:, :16, :16][:, one[2][:16, :16]])


def test_bands_without_names_are_those_of_the_others_in_their_order_and_it_is_said(tmp_path):
    one, grey = (make_scene(tmp_path, name, photometric=kind)[0] for name, kind in (("a", "MINISBLACK"), ("b", "RGB")))
    index, summary = tile_scenes([one, grey], SCHEMA, tmp_path / "out", options=TileOptions(16))
    assert index.manifest.bands == ("red", "green", "blue")
    assert [scene.bands for scene in TileIndex.read(tmp_path / "out").manifest.scenes] == [(1, 2, 3), ()]
    assert "the bands gray, band2, band3 of scene a are taken for red, green, blue" in summary["notes"]


def described(folder, name, names, seed=0):
    """A scene of four 16-bit bands with descriptions, and its image."""
    image = np.random.default_rng(seed).integers(1, 4000, (4, 40, 50)).astype(np.uint16)
    with rasterio.open(save(folder / f"{name}.tif", image), "r+") as file:
        file.descriptions = names
    label = save(folder / f"{name}_label.tif", np.zeros((3, 40, 50), np.uint8) + 255)
    return SceneFiles(name, (folder / f"{name}.tif",), label, "train"), image


def test_numbers_say_what_the_bands_are_whatever_they_are_called(tmp_path):
    dates = 20200601, 20210613
    scenes = [described(tmp_path, str(date), [f"{date}_B{n}" for n in (2, 3, 4, 8)], date) for date in dates]
    files = [files for files, _ in scenes]
    with pytest.raises(RasterError, match="--bands 1,2,3,4"):
        tile_scenes(files, SCHEMA, tmp_path / "out")
    index, summary = tile_scenes(files, SCHEMA, tmp_path / "out", options=TileOptions(16, bands=(4, 1)))
    assert index.manifest.bands == ("band1", "band2")
    both = np.concatenate([image[[3, 0]].reshape(2, -1) for _, image in scenes], axis=1)
    assert index.manifest.mean == pytest.approx(both.mean(axis=1), rel=1e-12)
    assert any("20210613_B8, 20210613_B2 of scene 20210613 are taken for band1, band2" in n for n in summary["notes"])
    write_chips(index, tmp_path / "out")
    for source in (TileIndex.read(tmp_path / "out"), TileIndex.read(tmp_path / "out" / "chips")):
        number = next(n for n in range(len(source)) if source.scene(n).name.startswith("20210613"))
        assert np.array_equal(TileDataset(source)[number]["image"], scenes[1][1][[3, 0], :16, :16])


def test_bands_of_the_same_names_in_another_order_are_put_in_order(tmp_path):
    one, first = described(tmp_path, "a", ("blue", "green", "red", "nir"))
    two, second = described(tmp_path, "b", ("nir", "red", "green", "blue"), 1)
    index, summary = tile_scenes([one, two], SCHEMA, tmp_path / "out", options=TileOptions(16))
    both = np.concatenate([first.reshape(4, -1), second[::-1].reshape(4, -1)], axis=1)
    assert index.manifest.mean == pytest.approx(both.mean(axis=1), rel=1e-12)
    assert index.manifest.scenes[1].bands == (4, 3, 2, 1)
    assert not any("taken for" in note for note in summary["notes"])


def scaled_scene(folder, name, numbers, scale, offset):
    path = save(folder / f"{name}.tif", numbers)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (scale,) * len(numbers), (offset,) * len(numbers)
    label = save(folder / f"{name}_label.tif", np.zeros((3, 40, 50), np.uint8) + 255)
    return SceneFiles(name, (path,), label, "train")


def test_scales_that_differ_are_applied_and_never_pooled(tmp_path):
    """The same reflectance in two encodings, as before and after Sentinel-2's processing baseline 04.00."""
    reflectance = np.random.default_rng(0).integers(1, 4000, (3, 40, 50)) / 10_000
    old = scaled_scene(tmp_path, "old", np.rint(reflectance * 10_000).astype(np.uint16), 1e-4, 0.0)
    new = scaled_scene(tmp_path, "new", np.rint(reflectance * 10_000 + 1000).astype(np.uint16), 1e-4, -0.1)
    index, summary = tile_scenes([old, new], SCHEMA, tmp_path / "out", options=TileOptions(16))
    assert index.manifest.dtype == "float32"
    assert index.manifest.mean == pytest.approx(reflectance.mean(axis=(1, 2)), rel=1e-6)
    assert index.manifest.std == pytest.approx(reflectance.std(axis=(1, 2)), rel=1e-6)
    assert any(
        "are applied (old: scale 0.0001, offset 0; new: scale 0.0001, offset -0.1)" in n for n in summary["notes"]
    )
    write_chips(index, tmp_path / "out")
    for source in (TileIndex.read(tmp_path / "out"), TileIndex.read(tmp_path / "out" / "chips")):
        assert source.manifest.reading == Reading(scaled=True)
        for number in (0, len(source) - 1):
            window = index.window(number)
            expected = reflectance[:, *window.slices]
            assert TileDataset(source)[number]["image"].numpy() == pytest.approx(expected, abs=1e-6)
    ignored, _ = tile_scenes([old, new], SCHEMA, tmp_path / "raw", options=TileOptions(16, scale="ignore"))
    assert ignored.manifest.dtype == "uint16"
    assert ignored.manifest.mean[0] == pytest.approx(reflectance[0].mean() * 10_000 + 500, rel=1e-6)


def test_scales_that_all_scenes_declare_leave_the_numbers_and_are_remembered(tmp_path):
    numbers = np.random.default_rng(0).integers(1, 4000, (3, 40, 50)).astype(np.uint16)
    one, two = (scaled_scene(tmp_path, name, numbers, 1e-4, 0.0) for name in "ab")
    index, summary = tile_scenes([one, two], SCHEMA, tmp_path / "out", options=TileOptions(16))
    assert index.manifest.mean[0] == pytest.approx(numbers[0].mean())
    assert TileIndex.read(tmp_path / "out").manifest.reading == Reading(declared=((1e-4, 0.0),) * 3)
    assert any("scale 0.0001, offset 0; numbers are taken as they are" in note for note in summary["notes"])
    applied, _ = tile_scenes([one, two], SCHEMA, tmp_path / "si", options=TileOptions(16, scale="apply"))
    assert applied.manifest.mean[0] == pytest.approx(numbers[0].mean() * 1e-4)


def test_a_scale_that_only_some_scenes_declare_must_be_settled(tmp_path):
    numbers = np.random.default_rng(0).integers(1, 250, (3, 40, 50)).astype(np.uint16)
    one, two = scaled_scene(tmp_path, "a", numbers, 1.0, 0.0), scaled_scene(tmp_path, "b", numbers, 0.5, 0.0)
    with pytest.raises(RasterError, match="scene b declares scale 0.5, offset 0 and scene a nothing.*--scale apply"):
        tile_scenes([one, two], SCHEMA, tmp_path / "out")
    index, _ = tile_scenes([one, two], SCHEMA, tmp_path / "out", options=TileOptions(16, scale="apply"))
    assert index.manifest.mean[0] == pytest.approx(numbers[0].mean() * 0.75)


def test_scale_one_and_offset_zero_leave_no_trace_in_the_index(tmp_path):
    files, *_ = make_scene(tmp_path)
    tile_scenes([files], SCHEMA, tmp_path / "out", options=TileOptions(16, scale="apply"))
    manifest = TileIndex.read(tmp_path / "out").manifest.to_dict()
    assert not {"reading", "shared_ground"} & set(manifest)
    assert "bands" not in manifest["scenes"][0]


def test_a_nodata_value_that_the_files_do_not_tell_is_remembered(tmp_path):
    heights = np.full((1, 40, 50), 300, np.float32)
    heights[0, :10] = -3.4028235e38
    heights[0, 10:, ::2] = 302
    label = save(tmp_path / "a_label.tif", np.zeros((3, 40, 50), np.uint8) + 255)
    files = SceneFiles("a", (save(tmp_path / "a.tif", heights),), label, "train")
    index, _ = tile_scenes([files], SCHEMA, tmp_path / "out", options=TileOptions(16, nodata=(-3.4028235e38,)))
    assert (index.manifest.mean, index.manifest.std) == ((301.0,), (1.0,))
    again = TileIndex.read(tmp_path / "out")
    assert again.manifest.reading == Reading(nodata=(-3.4028235e38,))
    item = TileDataset(again)[0]
    assert not item["valid"][:10].any()
    assert item["valid"][10:].all()


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


def at(folder, name, split, x=0.0, y=0.0, seed=0, size=(96, 96), crs="EPSG:25832"):
    """A scene of coarse cells with its upper left corner x, y pixels from where all tests are."""
    cells = np.random.default_rng(seed).integers(20, 230, (3, 12, 12))
    image = cells.repeat(8, 1).repeat(8, 2)[:, : size[0], : size[1]]
    place = {"transform": from_origin(5e5 + x / 2, 5.4e6 - y / 2, 0.5, 0.5), "crs": crs}
    label = np.full((3, *size), 255, np.uint8)
    return SceneFiles(
        name,
        (save(folder / f"{name}.tif", image.astype(np.uint8), **place),),
        save(folder / f"{name}_label.tif", label, **place),
        split,
    )


def test_named_scenes_that_share_ground_across_splits_are_refused_with_the_area(tmp_path):
    scenes = [at(tmp_path, "a", "train"), at(tmp_path, "b", "val", x=48, seed=1), at(tmp_path, "c", "test", x=200)]
    expected = "train and val share 1,152 m² of ground, 50% of the smaller: a and b"
    with pytest.raises(ConfigError, match=f"splits overlap on the ground: {expected}.*--allow-shared-ground"):
        tile_scenes(scenes, SCHEMA, tmp_path / "out", options=TileOptions(16))
    assert not (tmp_path / "out").exists()
    options = TileOptions(16, allow_shared_ground=True)
    _, summary = tile_scenes(scenes, SCHEMA, tmp_path / "out", options=options)
    index = TileIndex.read(tmp_path / "out")
    assert index.manifest.shared_ground == expected
    assert any(note.startswith(expected) for note in summary["notes"])
    assert write_chips(index, tmp_path / "out").manifest.shared_ground == expected
    together = [SceneFiles(s.name, s.images, s.label, "train") for s in scenes[:2]]
    index, _ = tile_scenes([*together, scenes[2]], SCHEMA, tmp_path / "fine", options=options)
    assert index.manifest.shared_ground == ""


def test_another_date_of_a_place_in_another_split_is_refused(tmp_path):
    one = at(tmp_path, "a", "train")
    with rasterio.open(one.images[0]) as file:
        image = file.read().astype(int)
    later = np.clip(image + np.random.default_rng(5).normal(0, 20, image.shape), 1, 255).astype(np.uint8)
    two = SceneFiles("b", (save(tmp_path / "b.tif", later),), one.label, "val")
    with pytest.raises(ConfigError, match=r"train and val share 2,304 m² of ground, 100%"):
        tile_scenes([one, two], SCHEMA, tmp_path / "out", options=TileOptions(16))


def test_a_georeference_that_all_files_have_is_a_placeholder_where_they_show_other_places(tmp_path):
    scenes = [at(tmp_path, "abcd"[n], split, seed=n) for n, split in enumerate(("train", "train", "val", "test"))]
    index, summary = tile_scenes(scenes, SCHEMA, tmp_path / "out", options=TileOptions(16))
    assert index.manifest.shared_ground == ""
    assert any("the same upper left corner and show different places" in note for note in summary["notes"])


def test_scenes_that_do_not_say_where_they_are_are_split_by_file(tmp_path):
    scenes = [at(tmp_path, "a", "train", crs=None), at(tmp_path, "b", "val", crs=None)]
    index, _ = tile_scenes(scenes, SCHEMA, tmp_path / "out", options=TileOptions(16))
    assert set(index.table.split.tolist()) == {"train", "val"}


def test_blocks_are_dealt_by_place_over_all_scenes(tmp_path):
    scenes = [at(tmp_path, "a", None), at(tmp_path, "b", None, seed=1), at(tmp_path, "c", None, x=40, y=20)]
    blocks = Blocks((0.5, 0.5, 0.0), 32, 8)
    index, summary = tile_scenes(scenes, SCHEMA, tmp_path / "out", options=TileOptions(16), blocks=blocks)
    ground, _ = index.footprints()
    train, val = (shapely.union_all(ground[index.table.split == split]) for split in ("train", "val"))
    assert min(train.area, val.area) > 0
    assert shapely.intersection(train, val).area == 0
    assert {index.scene(n).name for n in range(len(index))} == {"a", "b", "c"}
    assert any("a, b, c share ground" in note for note in summary["notes"])


@pytest.mark.parametrize("code", [3031, 3413, 3575])
def test_windows_around_a_pole_lie_where_their_pixels_lie(tmp_path, code):
    """Each footprint holds the middle of its own window and of no other, the pole's own window among them."""
    place = {"crs": f"EPSG:{code}", "transform": from_origin(-4000, 4000, 100, 100)}
    image = save(tmp_path / "a.tif", np.full((3, 80, 80), 9, np.uint8), **place)
    label = save(tmp_path / "a_label.tif", np.full((3, 80, 80), 255, np.uint8), **place)
    files = [SceneFiles("a", (image,), label, "train"), at(tmp_path, "b", "train")]
    index, summary = tile_scenes(files, SCHEMA, tmp_path / "out", options=TileOptions(16, overlap=0))
    ground, _ = TileIndex.read(tmp_path / "out").footprints()
    assert shapely.is_valid(ground).all()
    ground, table = ground[:25], index.table.take(index.table.scene == 0)
    x, y = -4000 + 100 * (table.col + 9), 4000 - 100 * (table.row + 7)
    lon, lat = transform(f"EPSG:{code}", "OGC:CRS84", x, y)
    assert np.array_equal(shapely.contains_xy(ground[:, None], lon, lat), np.eye(25, dtype=bool))
    assert shapely.contains_xy(ground[12], 77.0, np.sign(lat[12]) * 89.9999)
    assert not any("globe" in note for note in summary["notes"])


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ({"crs": "EPSG:4326", "transform": from_origin(5e5, 5.4e6, 0.5, 0.5)}, "a at 500000, 5400000 in EPSG:4326"),
        ({"crs": "EPSG:32633", "transform": from_origin(5e5, 5e9, 0.5, 0.5)}, "a at 500000, 5e\\+09 in EPSG:32633"),
        ({"crs": "EPSG:3857", "transform": from_origin(5e9, 5e9, 0.5, 0.5)}, "lie nowhere on the globe"),
        ({"transform": rasterio.Affine(0, 0, 5e5, 0, 0, 5.4e6)}, "places nothing"),
        ({"transform": rasterio.Affine(1e308, 0, 5e5, 0, -1e308, 5.4e6)}, "places nothing"),
        ({"transform": rasterio.Affine(1, 0, float("nan"), 0, -1, 5.4e6)}, "places nothing"),
    ],
)
def test_a_georeference_that_cannot_be_is_told_and_gives_no_footprint(tmp_path, place, said):
    files, *_ = make_scene(tmp_path, **place)
    index, summary = tile_scenes([files], SCHEMA, tmp_path / "out", options=TileOptions(16))
    assert any(re.search(said, note) for note in summary["notes"])
    assert set(index.footprints()[0].tolist()) == {None}
    assert index.manifest.gsd is None or "32633" in said


def test_values_that_may_mean_no_data_are_told_with_what_to_type(tmp_path):
    heights = np.full((1, 200, 200), 300, np.float32)
    heights[0, :20] = -3.4028235e38
    label = save(tmp_path / "a_label.tif", np.zeros((3, 200, 200), np.uint8) + 255)
    files = SceneFiles("a", (save(tmp_path / "a.tif", heights),), label, "train")
    _, summary = tile_scenes([files], SCHEMA, tmp_path / "out", options=TileOptions(64))
    (note,) = (note for note in summary["notes"] if "--nodata" in note)
    assert note.startswith("band gray has a mean of -3.4e+37 and a deviation of 1e+38: 9.8% of its")
    assert np.float32(float(note.rpartition(" ")[2])) == np.float32(-3.4028235e38)
    for value in (0, 255):
        image = np.random.default_rng(0).integers(1, 255, (3, 200, 200), np.uint8)
        image[:, :, :40] = value
        files = SceneFiles("b", (save(tmp_path / "b.tif", image),), label, "train")
        _, summary = tile_scenes([files], SCHEMA, tmp_path / "out", options=TileOptions(64))
        (note,) = (note for note in summary["notes"] if "--nodata" in note)
        assert note.startswith(f"20% of all pixels are exactly {value} in all bands, and 34%")
        _, summary = tile_scenes([files], SCHEMA, tmp_path / "out", options=TileOptions(64, nodata=(float(value),)))
        assert not any("--nodata" in note for note in summary["notes"])


def sparse(path, side, count, **profile):
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=side,
        width=side,
        count=count,
        dtype="uint8",
        sparse_ok=True,
        tiled=True,
        crs="EPSG:25832",
        transform=from_origin(5e5, 5.4e6, 0.5, 0.5),
        **profile,
    ):
        pass
    return path


def test_a_file_that_claims_an_absurd_size_is_refused_before_anything_is_made(tmp_path):
    kind = {"blockxsize": 4096, "blockysize": 4096, "bigtiff": "yes"}
    image, label = (sparse(tmp_path / f"{name}.tif", 400_000, 1, **kind) for name in ("a", "b"))
    files = SceneFiles("a", (image,), label, "train")
    with pytest.raises(RasterError, match="400000 x 400000 pixels, some .* windows of 256; .* --allow-huge"):
        tile_scenes([files], SCHEMA, tmp_path / "out")
    small = make_scene(tmp_path, "c")[0]
    tile_scenes([small], SCHEMA, tmp_path / "out", options=TileOptions(16, allow_huge=True))


def test_slabs_of_many_bands_hold_fewer_rows(tmp_path):
    frame = {"row_edges": np.array([0, 4096]), "col_edges": np.array([0, 4096])}
    record = SceneRecord("a", ("a.tif",), "b.tif", 4096, 4096, None, (1, 0, 0, 0, -1, 0))

    def rows(bands, dtype):
        plan = TilePlan(
            record, ("b",) * bands, dtype, None, (), None, Windows.of([Window(0, 0, 4096, 4096)]), np.array(["train"])
        )
        return {
            s.window.height for s in _slabs(plan, **frame, reading=RAW, schema=SCHEMA, tolerance=0, statistics_of="all")
        }

    assert rows(3, "uint8") == rows(4, "float32") == {1024}
    assert rows(224, "uint16") == {256}


def test_a_label_of_noise_is_refused_before_all_its_colours_are_collected(tmp_path):
    image = save(tmp_path / "a.tif", np.ones((1, 4096, 2048), np.uint8), tiled=True)
    noise = np.random.default_rng(0).integers(0, 256, (3, 4096, 2048), np.uint8)
    files = SceneFiles("a", (image,), save(tmp_path / "a_label.tif", noise, tiled=True), "train")
    seen = []
    with pytest.raises(RasterError, match="of its labelled pixels are unknown"):
        tile_scenes([files], SCHEMA, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert len(seen) < 2, "it ends with the first slab"


def test_polygons_and_an_area_are_read_back_as_they_were_tiled(tmp_path):
    """The index keeps how a label is read: windows of a reader hold the pixels that tiling counted."""
    from pyogrio.raw import write

    from rs_biformer.data.reader import SceneReader
    from rs_biformer.raster.labels import LabelOptions

    files, *_ = make_scene(tmp_path)
    with rasterio.open(files.images[0]) as scene:
        place, crs = scene.transform, scene.crs.to_wkt()
    boxes = [shapely.box(*(place * (0, 40)), *(place * (20, 0))), shapely.box(*(place * (30, 40)), *(place * (50, 0)))]
    kinds = [np.array(SCHEMA.classes[:2], object), np.array(SCHEMA.classes[1::-1], object)]
    shapes = shapely.to_wkb(np.array(boxes, object))
    write(tmp_path / "l.gpkg", shapes, kinds, ["old", "new"], geometry_type="Polygon", crs=crs)
    upper = shapely.to_wkb(np.array([shapely.box(*(place * (0, 25)), *(place * (50, 0)))], object))
    write(tmp_path / "a.gpkg", upper, [], [], geometry_type="Polygon", crs=crs)
    options = TileOptions(window=20, overlap=0.0, labels=LabelOptions(field="new", nodata=3), area=tmp_path / "a.gpkg")
    tile_scenes([replace(files, label=tmp_path / "l.gpkg", split="train")], SCHEMA, tmp_path / "out", options=options)
    index = TileIndex.read(tmp_path / "out")
    assert index.manifest.scenes[0].labelling == LabelOptions(field="new", nodata=3)
    truth = np.full((40, 50), IGNORE, np.uint8)
    truth[:25, :20], truth[:25, 30:] = 1, 0
    reader = SceneReader(index.manifest)
    for number in range(len(index)):
        window = index.window(number)
        _, label, valid = reader.read(0, window)
        assert (label == np.where(valid, truth[window.slices], IGNORE)).all()
        counts = np.bincount(label[label != IGNORE], minlength=len(SCHEMA))
        assert (counts == index.table.histogram[number]).all()
    assert len(index) > 3


def test_an_option_for_polygons_is_told_beside_a_raster_label(tmp_path):
    scene = make_scene(tmp_path)[0]
    options = TileOptions(16, labels=LabelOptions(field="kind"))
    notes = tile_scenes([scene], SCHEMA, tmp_path / "out", options=options)[1]["notes"]
    assert any("a_label.tif: a raster, on which --label-field has no effect" in note for note in notes)
    later = replace(scene, corrections=(scene.label,))
    notes = tile_scenes([later], SCHEMA, tmp_path / "again", options=options)[1]["notes"]
    assert not any("no effect" in note for note in notes)
