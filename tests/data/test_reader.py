import pickle

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_index import write_tiny_index

from rs_biformer.data import reader as room
from rs_biformer.data.dataset import TileDataset
from rs_biformer.data.index import TileIndex
from rs_biformer.data.reader import SceneReader
from rs_biformer.geometry import Window
from rs_biformer.raster.labels import erode_boundaries
from rs_biformer.schema import IGNORE


@pytest.fixture
def make_index(tmp_path):
    def make(scenes=("a",), **options) -> TileIndex:
        return TileIndex.read(write_tiny_index(tmp_path, dict.fromkeys(scenes, "train"), **options))

    return make


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    return TileIndex.read(write_tiny_index(folder, {"a": "train"}, size=(1100, 700), nodata=0))


def whole(index: TileIndex, scene: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    record = index.manifest.scenes[scene]
    with rasterio.open(record.images[0]) as image, rasterio.open(record.label) as label:
        valid = image.dataset_mask() > 0
        return image.read(), np.where(valid, label.read(1), IGNORE), valid


@given(st.integers(0, 1099), st.integers(0, 699), st.integers(1, 600), st.integers(1, 600), st.sampled_from([0, 10**6]))
def test_a_window_is_put_together_from_the_blocks_that_it_touches(large, row, col, height, width, cache):
    window = Window(row, col, min(height, 1100 - row), min(width, 700 - col))
    image, label, valid = SceneReader(large.manifest, cache=cache).read(0, window)
    for got, full in zip((image, label, valid), whole(large), strict=True):
        np.testing.assert_array_equal(got, full[..., *window.slices])


def test_chunks_are_decoded_once_while_they_fit_and_forgotten_oldest_first(large, monkeypatch):
    decoded = []
    decode = SceneReader._decode
    monkeypatch.setattr(SceneReader, "_decode", lambda self, *key: decoded.append(key) or decode(self, *key))
    bound = 512 * 512 * (5 + 4)  # two chunks: three bands and label, and validity where a pixel is invalid
    reader = SceneReader(large.manifest, cache=bound)
    for col in (0, 10, 20):
        reader.read(0, Window(0, col, 64, 64))
    assert decoded == [(0, Window(0, 0, 512, 512))]
    reader.read(0, Window(600, 0, 64, 64))
    reader.read(0, Window(0, 0, 64, 64))
    reader.read(0, Window(1050, 0, 50, 64))  # the chunk of rows 512 to 1024 was used least recently
    assert reader._held <= bound
    decoded.clear()
    reader.read(0, Window(0, 0, 64, 64))
    reader.read(0, Window(600, 0, 64, 64))
    assert decoded == [(0, Window(512, 0, 512, 512))]


@pytest.mark.parametrize("cache", [0, 10**8])
def test_the_label_near_a_boundary_is_ignored_as_in_the_whole_scene(large, cache):
    reader = SceneReader(large.manifest, cache=cache, ignore_boundary=3)
    with rasterio.open(large.manifest.scenes[0].label) as file:
        eroded = erode_boundaries(file.read(1), 3)
    eroded[~whole(large)[2]] = IGNORE
    for window in (Window(0, 0, 1100, 700), Window(500, 490, 40, 60), Window(1000, 0, 100, 30)):
        np.testing.assert_array_equal(reader.read(0, window)[1], eroded[window.slices])


def test_the_cache_answers_what_the_files_hold(make_index):
    index = make_index(("a", "b"), nodata=0, size=(100, 130), stride=32)
    reader = SceneReader(index.manifest)
    assert reader.keep([0, 1])
    from_files, from_memory = TileDataset(index), TileDataset(index, reader=reader)
    for number in range(len(index)):
        for name, part in from_files[number].items():
            assert torch.equal(from_memory[number][name], part)


def test_reading_does_not_change_what_the_cache_holds(make_index):
    index = make_index(nodata=0)
    reader = SceneReader(index.manifest)
    reader.keep([0])
    items = TileDataset(index, reader=reader)
    first = items[1]["image"].clone()
    items[1]["image"].fill_(0)
    assert torch.equal(items[1]["image"], first)


def test_a_cache_larger_than_its_share_is_declined(make_index, monkeypatch):
    index = make_index(("a", "b"))
    reader = SceneReader(index.manifest)
    monkeypatch.setattr(room, "machine_memory", lambda: 100_000)
    assert not reader.keep([0, 1])
    np.testing.assert_array_equal(
        TileDataset(index, reader=reader)[0]["image"], whole(index)[0][:, *index.window(0).slices]
    )


def test_no_more_scenes_stay_open_than_allowed(make_index, monkeypatch):
    monkeypatch.setattr(room, "OPEN_SCENES", 2)
    index = make_index(tuple("abcde"))
    items = TileDataset(index)
    for number in [*range(len(index)), 0]:
        items[number]
        assert len(items.reader._open) <= 2


def test_a_reader_is_sent_to_a_worker_without_what_it_keeps(large):
    reader = SceneReader(large.manifest, cache=10**8)
    window = Window(0, 0, 700, 700)
    expected = reader.read(0, window)
    sent = pickle.dumps(reader)
    assert len(sent) < 100_000
    for got, wanted in zip(pickle.loads(sent).read(0, window), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
