import pickle
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from tiny_index import write_tiny_index

from rs_biformer.data.augment import Augmentation, create_augment
from rs_biformer.data.dataset import TileDataset
from rs_biformer.data.index import TileIndex
from rs_biformer.data.sampler import Draw, Filler
from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.schema import IGNORE


@pytest.fixture
def make_index(tmp_path):
    def make(scenes=("a",), **options) -> TileIndex:
        splits = scenes if isinstance(scenes, dict) else dict.fromkeys(scenes, "train")
        return TileIndex.read(write_tiny_index(tmp_path, splits, **options))

    return make


def file_pixels(index: TileIndex, scene: int, window: Window) -> tuple[np.ndarray, np.ndarray]:
    record, (rows, cols) = index.manifest.scenes[scene], window.slices
    with rasterio.open(record.images[0]) as image, rasterio.open(record.label) as label:
        return image.read()[:, rows, cols], label.read(1)[rows, cols]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_an_item_holds_the_pixels_of_its_window_in_the_dtype_of_the_raster(make_index, dtype):
    index = make_index(("a", "b"), bands=4, dtype=dtype)
    items = TileDataset(index)
    assert len(items) == 8
    for number in (0, 3, 6):
        image, label = file_pixels(index, int(index.table.scene[number]), index.window(number))
        item = items[number]
        assert item["image"].dtype == getattr(torch, dtype) and item["image"].shape == (4, 64, 64)
        np.testing.assert_array_equal(item["image"].numpy(), image)
        np.testing.assert_array_equal(item["label"].numpy(), label)
        assert item["valid"].all()


def test_nodata_is_neither_valid_nor_labelled_and_holds_the_mean(make_index):
    index = make_index(nodata=0)
    item = TileDataset(index)[0]
    corner = np.zeros((64, 64), bool)
    corner[:16, :16] = True
    np.testing.assert_array_equal(item["valid"].numpy(), ~corner)
    assert (item["label"].numpy()[corner] == IGNORE).all() and (item["label"].numpy()[~corner] < 3).all()
    for band, mean in zip(item["image"].numpy(), index.manifest.mean, strict=True):
        assert (band[corner] == round(mean)).all()


def test_nan_never_leaves_the_dataset(make_index):
    index = make_index(nodata=np.nan, dtype="float32")
    assert torch.isfinite(TileDataset(index)[0]["image"]).all()


@pytest.mark.parametrize("size", [(1, 1), (40, 64), (64, 20), (33, 90)])
def test_scenes_smaller_than_a_window_are_padded_by_reflection_and_masked(make_index, size):
    index = make_index(size=size)
    item = TileDataset(index)[0]
    height, width = min(64, size[0]), min(64, size[1])
    assert item["image"].shape == (3, 64, 64)
    inside = np.zeros((64, 64), bool)
    inside[:height, :width] = True
    np.testing.assert_array_equal(item["valid"].numpy(), inside)
    assert (item["label"].numpy()[~inside] == IGNORE).all() and (item["label"].numpy()[inside] < 3).all()
    image, _ = file_pixels(index, 0, index.window(0))
    np.testing.assert_array_equal(item["image"].numpy()[:, :height, :width], image)


def test_padding_reflects_until_it_is_masked_so_the_network_sees_no_edge(make_index):
    # the padded pixels are invalid, hence they hold the mean and normalise to 0
    index = make_index(size=(40, 40))
    item = TileDataset(index)[0]
    outside = ~item["valid"]
    assert (item["image"][0][outside] == round(index.manifest.mean[0])).all()


def test_a_dataset_can_be_sent_to_a_worker_after_it_has_read(make_index):
    items = TileDataset(make_index())
    expected = items[0]
    again = pickle.loads(pickle.dumps(items))
    torch.testing.assert_close(again[0]["image"], expected["image"])


def test_jitter_stays_in_the_scene_and_moves_label_with_image(make_index):
    index = make_index(size=(150, 128))
    items, seen = TileDataset(index, jitter=1.0), set()
    whole_image, whole_label = file_pixels(index, 0, Window(0, 0, 150, 128))
    places = np.lib.stride_tricks.sliding_window_view(whole_image[0], (64, 64))
    for draw in range(40):
        item = items[Draw(0, draw)]
        found = np.argwhere((places == item["image"][0].numpy()).all(axis=(2, 3)))
        assert len(found) == 1
        row, col = found[0]
        np.testing.assert_array_equal(item["label"], whole_label[row : row + 64, col : col + 64])
        seen.add((row, col))
    assert len(seen) > 10 and max(row for row, _ in seen) <= 64


def test_jitter_never_reaches_a_window_of_another_split(make_index):
    index = make_index(size=(64, 192))
    splits = np.array(["train", "val", "val"])
    index = replace(index, table=replace(index.table, split=splits))
    items = TileDataset(index.select("train"), jitter=1.0, elsewhere=index.select("val"))
    free = TileDataset(index.select("train"), jitter=1.0)
    expected = items[0]["image"]
    assert all(torch.equal(items[Draw(0, draw)]["image"], expected) for draw in range(30))
    assert not all(torch.equal(free[Draw(0, draw)]["image"], expected) for draw in range(30))


def test_a_draw_is_a_function_of_seed_and_number_alone(make_index):
    index = make_index(size=(150, 150))
    first, again, other = (TileDataset(index, jitter=1.0, seed=seed) for seed in (0, 0, 1))
    first[Draw(3, 1)]  # what was read before does not matter
    torch.testing.assert_close(first[Draw(0, 7)]["image"], again[Draw(0, 7)]["image"])
    assert not torch.equal(first[Draw(0, 7)]["image"], first[Draw(0, 8)]["image"])
    assert not torch.equal(first[Draw(0, 7)]["image"], other[Draw(0, 7)]["image"])


def test_a_scene_without_label_is_refused(make_index):
    index = make_index()
    bare = replace(index.manifest, scenes=(replace(index.manifest.scenes[0], label=None),))
    with pytest.raises(RasterError, match="scene a has no label"):
        TileDataset(replace(index, manifest=bare))[0]


def test_a_scene_that_changed_size_since_it_was_tiled_is_refused(make_index):
    index = make_index()
    taller = replace(index.manifest, scenes=(replace(index.manifest.scenes[0], height=500),))
    with pytest.raises(RasterError, match="128 x 128 and was 500 x 128"):
        TileDataset(replace(index, manifest=taller))[0]


def test_focus_shows_each_class_of_the_place_as_often(make_index):
    index = make_index(size=(256, 256), window=64)
    label = np.zeros((256, 256), np.uint8)
    label[66:70, 120:124] = 2  # one small spot at the edge of the window at 64, 64
    with rasterio.open(index.manifest.scenes[0].label, "r+") as sink:
        sink.write(label, 1)
    number = next(n for n in range(len(index)) if (index.table.row[n], index.table.col[n]) == (64, 64))

    def shown(**options) -> int:
        items = TileDataset(index, **options)
        return sum(bool((items[Draw(number, draw)]["label"][16:48, 16:48] == 2).any()) for draw in range(80))

    assert shown() == 0  # the window as it is does not have it near its centre
    assert 30 < shown(focus=1.0) < 55  # every second time; by area it would be one in 250
    assert 3 < shown(focus=0.25) < 20


def test_what_is_not_focused_is_jittered_and_nothing_moves_without_either(make_index):
    index = make_index(size=(256, 256), window=64)
    number = next(n for n in range(len(index)) if (index.table.row[n], index.table.col[n]) == (64, 64))
    still = TileDataset(index)[number]["image"]

    def moved(**options) -> float:
        items = TileDataset(index, **options)
        return np.mean([not torch.equal(items[Draw(number, draw)]["image"], still) for draw in range(60)])

    assert moved() == 0
    assert 0.1 < moved(focus=0.25) < 0.45
    assert moved(focus=0.25, jitter=1.0) > 0.9


def test_jitter_reaches_as_far_to_each_side_and_no_further(make_index):
    index = make_index(size=(256, 256), window=64)
    number = next(n for n in range(len(index)) if (index.table.row[n], index.table.col[n]) == (64, 64))
    whole = file_pixels(index, 0, Window(0, 0, 256, 256))[0]
    places = np.lib.stride_tricks.sliding_window_view(whole[0], (64, 64))
    items = TileDataset(index, jitter=0.125)
    found = []
    for draw in range(400):
        image = items[Draw(number, draw)]["image"][0].numpy()
        near = np.argwhere((places[40:90, 40:90] == image).all(axis=(2, 3))) + 40 - 64
        assert len(near) == 1
        found.append(near[0])
    assert np.min(found, axis=0).tolist() == [-8, -8] and np.max(found, axis=0).tolist() == [8, 8]


def test_a_place_without_a_label_is_not_focused(make_index):
    index = make_index(size=(192, 192))
    with rasterio.open(index.manifest.scenes[0].label, "r+") as sink:
        sink.write(np.full((192, 192), 9, np.uint8), 1)  # no class of the schema
    items = TileDataset(index, focus=1.0)
    assert all(torch.equal(items[Draw(4, draw)]["image"], items[4]["image"]) for draw in range(5))


def test_turning_and_zooming_show_what_the_scene_has_around_the_window(make_index):
    index = make_index(size=(256, 256))
    options = Augmentation(scale=0.5, rotate=45, probability=1.0)
    augment = create_augment(options, 64, np.array(index.manifest.mean), np.array(index.manifest.std))
    items = TileDataset(index, augment=augment)
    inner = next(n for n in range(len(index)) if (index.table.row[n], index.table.col[n]) == (64, 64))
    corner = next(n for n in range(len(index)) if (index.table.row[n], index.table.col[n]) == (0, 0))
    assert all(items[Draw(inner, draw)]["valid"].all() for draw in range(20))
    assert not all(items[Draw(corner, draw)]["valid"].all() for draw in range(20))
    item = items[Draw(inner, 3)]  # brightness tells the class, so image and label must have moved together
    guessed = ((item["image"].float().mean(0) - 30) / 60).floor().clamp(0, 2)
    assert (guessed == item["label"]).float().mean() > 0.9


@pytest.mark.parametrize("options", [{"scale": 1.0}, {"rotate": 45.0}])
def test_context_never_shows_windows_of_another_split(make_index, options):
    """The window in the middle is for training, all around it for validation, and pixels and labels tell which."""
    index = make_index(size=(192, 192))
    splits = np.where((index.table.row == 64) & (index.table.col == 64), "train", "val")
    index = replace(index, table=replace(index.table, split=splits))
    record, inner = index.manifest.scenes[0], np.s_[64:128, 64:128]
    image, label = np.full((3, 192, 192), 250, np.uint8), np.full((192, 192), 2, np.uint8)
    image[:, *inner], label[inner] = 100, 0
    for path, pixels in ((record.images[0], image), (record.label, label[None])):
        with rasterio.open(path, "r+") as sink:
            sink.write(pixels)
    mean, std = np.full(3, 100.0), np.full(3, 20.0)  # so that what is blanked does not differ from the window's own
    index = replace(index, manifest=replace(index.manifest, mean=tuple(mean), std=tuple(std)))
    augment = create_augment(Augmentation(**options, probability=1.0), 64, mean, std)
    guarded = TileDataset(index.select("train"), augment=augment, elsewhere=index.select("val"))
    open_ = TileDataset(index.select("train"), augment=augment)
    items = [guarded[Draw(0, draw)] for draw in range(20)]
    for item in items:
        assert set(np.unique(item["label"])) <= {0, IGNORE} and (item["image"] == 100).all()
        assert torch.equal(item["label"] == IGNORE, ~item["valid"])
    assert not all(item["valid"].all() for item in items)  # there was something to blank
    assert any((open_[Draw(0, draw)]["label"] == 2).any() for draw in range(20))


def test_a_mosaic_has_the_quarters_of_several_windows(make_index):
    index = make_index(("a", "b", "c", "d"))
    items = TileDataset(index, mosaic=1.0)
    pictures = [file_pixels(index, int(index.table.scene[n]), index.window(n))[0] for n in range(len(index))]
    for draw in range(10):
        image = items[Draw(5, draw)]["image"].numpy()
        assert (image[:, :16, :16] == pictures[5][:, :16, :16]).all()
        for part in (np.s_[:, :16, 48:], np.s_[:, 48:, :16], np.s_[:, 48:, 48:]):
            assert any((image[part] == picture[part]).all() for picture in pictures)


def test_a_mosaic_draws_by_the_probabilities(make_index):
    index = make_index(("a", "b"))
    probabilities = np.zeros(len(index))
    probabilities[6] = 1.0
    items = TileDataset(index, mosaic=1.0, probabilities=probabilities)
    picture = file_pixels(index, 1, index.window(6))[0]
    for draw in range(5):
        assert (items[Draw(0, draw)]["image"].numpy()[:, 48:, 48:] == picture[:, 48:, 48:]).all()


@pytest.mark.parametrize(("mosaic", "low", "high"), [(0.0, 0, 0), (0.25, 10, 32), (1.0, 80, 80)])
def test_a_mosaic_is_made_as_often_as_asked_for(make_index, mosaic, low, high):
    index = make_index(("a", "b", "c", "d"))
    others = np.zeros(len(index))
    others[-1] = 1.0
    items = TileDataset(index, mosaic=mosaic, probabilities=others)
    single = TileDataset(index)[0]["image"]
    assert low <= sum(not torch.equal(items[Draw(0, draw)]["image"], single) for draw in range(80)) <= high


@pytest.mark.parametrize("weights", [None, [0.0, 3.0, 0.0, 1.0, 0.0, 0.0, 2.0, 2.0]])
def test_the_windows_of_a_mosaic_come_as_often_as_their_weights_say(make_index, weights):
    index = make_index(("a", "b"))
    items = TileDataset(index, mosaic=1.0, probabilities=None if weights is None else np.array(weights))
    rng = np.random.default_rng(0)
    counts = np.bincount([items._another(rng) for _ in range(4000)], minlength=len(index))
    expected = np.ones(8) / 8 if weights is None else np.array(weights) / np.sum(weights)
    np.testing.assert_allclose(counts / 4000, expected, atol=0.03)
    assert not counts[expected == 0].any()


def test_the_quarters_of_a_mosaic_meet_in_the_inner_half_and_carry_label_and_validity(make_index):
    index = make_index(("a", "b", "c", "d"), nodata=0)
    items, plain = TileDataset(index, mosaic=1.0), TileDataset(index)
    first = plain[3]
    meeting = set()
    for draw in range(60):
        item = items[Draw(3, draw)]
        same = (item["image"] == first["image"]).all(0).numpy()
        rows = next(n for n in range(64) if not same[n, 0]) if not same[:, 0].all() else 64
        cols = next(n for n in range(64) if not same[0, n]) if not same[0].all() else 64
        meeting.add((rows, cols))
        assert torch.equal(item["label"] == IGNORE, ~item["valid"])
    low, high = np.min(list(meeting), axis=0), np.max([one for one in meeting if max(one) < 64], axis=0)
    assert low.min() >= 16 and high.max() <= 48 + 1 and low.max() <= 22 and high.min() >= 42


def test_a_filler_is_the_window_without_its_label(make_index):
    items = TileDataset(make_index())
    filler, item = items[Filler(2)], items[2]
    assert (filler["label"] == IGNORE).all() and not (item["label"] == IGNORE).any()
    assert torch.equal(filler["image"], item["image"]) and torch.equal(filler["valid"], item["valid"])
