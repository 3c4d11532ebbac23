from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_index import write_tiny_index

from rs_biformer.data import datamodule
from rs_biformer.data import reader as reader_module
from rs_biformer.data.augment import Augmentation
from rs_biformer.data.datamodule import TileDataModule, without_overlap
from rs_biformer.data.index import TileIndex
from rs_biformer.data.options import DataConfig
from rs_biformer.errors import ConfigError

SCENES = {"a": "train", "b": "train", "c": "val"}


@pytest.fixture
def index(tmp_path) -> TileIndex:
    return TileIndex.read(write_tiny_index(tmp_path, SCENES, size=(128, 160), stride=32))


def batches(module: TileDataModule, epoch: int = 0) -> list[dict[str, torch.Tensor]]:
    module.setup("fit")
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(index, workers):
    augment = Augmentation(d4=True, scale=0.3, brightness=0.2, noise=0.1)
    options = DataConfig(batch_size=4, workers=0, samples_per_epoch=12, balance=1.0, jitter=0.5, augment=augment)
    expected = batches(TileDataModule(index, options, seed=5), epoch=1)
    found = batches(TileDataModule(index, replace(options, workers=workers), seed=5), epoch=1)
    assert len(expected) == 3
    for one, other in zip(expected, found, strict=True):
        for name in ("image", "label", "valid"):
            assert torch.equal(one[name], other[name])


def test_no_more_processes_read_than_there_are_cores(index, monkeypatch):
    monkeypatch.setattr(datamodule, "machine_cores", lambda: 1)
    module = TileDataModule(index, DataConfig(batch_size=4, workers=500))
    assert module.train_dataloader().num_workers == 1
    assert TileDataModule(index, DataConfig(batch_size=4, workers=0)).train_dataloader().num_workers == 0


def test_a_batch_has_the_promised_shapes_and_dtypes(index):
    batch = batches(TileDataModule(index, DataConfig(batch_size=4, workers=0)))[0]
    assert {name: (tuple(part.shape), part.dtype) for name, part in batch.items()} == {
        "image": ((4, 3, 64, 64), torch.uint8),
        "label": ((4, 64, 64), torch.uint8),
        "valid": ((4, 64, 64), torch.bool),
    }


def test_uint16_windows_can_be_batched_by_workers(tmp_path):
    index = TileIndex.read(write_tiny_index(tmp_path, SCENES, dtype="uint16"))
    assert batches(TileDataModule(index, DataConfig(batch_size=2, workers=1)))[0]["image"].dtype == torch.uint16


def test_cached_scenes_give_the_same_batches(index):
    options = [DataConfig(batch_size=4, workers=0, cache=cache) for cache in (False, True)]
    plain, cached = (batches(TileDataModule(index, one)) for one in options)
    assert all(torch.equal(one["image"], other["image"]) for one, other in zip(plain, cached, strict=True))


def test_validation_windows_do_not_overlap_unless_asked_for(index):
    chosen = TileDataModule(index, DataConfig(batch_size=1, workers=0)).val
    every = TileDataModule(index, DataConfig(batch_size=1, overlapping_validation=True, workers=0)).val
    assert len(every) == len(index.select("val")) == 12
    windows = [chosen.window(number) for number in range(len(chosen))]
    assert len(windows) == 4
    assert not any(one.intersects(other) for one in windows for other in windows if one is not other)


def test_windows_that_do_not_overlap_are_all_kept(tmp_path):
    index = TileIndex.read(write_tiny_index(tmp_path, SCENES, stride=64))
    assert without_overlap(index).table.row.tolist() == index.table.row.tolist()


def test_every_window_left_out_overlaps_one_that_was_kept(index):
    kept = without_overlap(index)
    taken = {(int(kept.table.scene[n]), kept.window(n)) for n in range(len(kept))}
    for number in range(len(index)):
        scene, window = int(index.table.scene[number]), index.window(number)
        assert any(scene == other and window.intersects(place) for other, place in taken)


def test_class_frequencies_are_those_of_the_windows_as_drawn(index):
    plain = TileDataModule(index, DataConfig(batch_size=4, workers=0)).class_frequencies
    pixels = index.select("train").table.histogram.sum(axis=0)
    np.testing.assert_allclose(plain, pixels / pixels.sum())
    drawn = TileDataModule(index, DataConfig(batch_size=4, balance=1.0, workers=0)).class_frequencies
    assert drawn.std() < plain.std()


def test_an_index_without_training_windows_is_refused(tmp_path):
    index = TileIndex.read(write_tiny_index(tmp_path, {"a": "val"}))
    with pytest.raises(ConfigError, match="no labelled train windows"):
        TileDataModule(index, DataConfig(batch_size=1, workers=0))


def test_an_epoch_smaller_than_a_batch_is_refused(index):
    with pytest.raises(ConfigError, match=r"3 windows and a batch 4.*data.batch_size"):
        TileDataModule(index, DataConfig(batch_size=4, samples_per_epoch=3, workers=0))


def test_overlapping_splits_are_refused(index):
    splits = index.table.split.copy()
    splits[0] = "test"
    with pytest.raises(ConfigError, match="splits overlap"):
        TileDataModule(replace(index, table=replace(index.table, split=splits)), DataConfig(batch_size=4, workers=0))


def test_without_validation_windows_there_is_no_validation_loader(tmp_path):
    index = TileIndex.read(write_tiny_index(tmp_path, {"a": "train"}))
    assert TileDataModule(index, DataConfig(batch_size=2, workers=0)).val_dataloader() == []


def test_spawned_workers_read_what_this_process_reads(index):
    """macOS and Windows spawn: what a worker gets has to be pickled, functions inside functions cannot be."""
    augment = Augmentation(d4=True, scale=0.3, rotate=10, brightness=0.2, noise=0.1, blur=1.0)
    options = DataConfig(batch_size=4, workers=0, samples_per_epoch=8, jitter=0.5, mosaic=0.5, augment=augment)
    expected = batches(TileDataModule(index, options))
    module = TileDataModule(index, replace(options, workers=2))
    module.setup("fit")
    loader = module.train_dataloader()
    loader.multiprocessing_context = "spawn"
    found = list(loader)
    assert len(found) == len(expected) == 2
    for one, other in zip(expected, found, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("image", "label", "valid"))


def test_an_epoch_has_a_batch_for_every_device_or_is_refused(index):
    module = TileDataModule(index, DataConfig(batch_size=8, workers=0, samples_per_epoch=20))
    module.require_batches(2)
    with pytest.raises(ConfigError, match="20 windows, 5 for each of 4 devices, and a batch 8; lower data.batch_size"):
        module.require_batches(4)


def test_processes_of_a_machine_share_its_memory_out(index, monkeypatch):
    taken = 2 * 128 * 160 * (3 + 2) + 128 * 160 * (3 + 2)  # three scenes of three bands, label and validity
    monkeypatch.setattr(datamodule, "machine_cores", lambda: 2)
    monkeypatch.setattr(reader_module, "machine_memory", lambda: int(2.5 * taken / reader_module.CACHE_SHARE))
    for processes, fits in ((1, True), (2, True), (3, False)):
        module = TileDataModule(index, DataConfig(batch_size=4, workers=2, cache=True, block_cache=12))
        module.trainer = SimpleNamespace(num_devices=processes)
        limits: list[int] = []
        monkeypatch.setattr(module.reader, "limit", limits.append)
        module.setup("fit")
        assert (len(module.reader._chunks) > 0) == fits
        assert limits == [12 * 2**20 // (2 * processes)]
