from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rs_biformer.data.index import SPLITS
from rs_biformer.data.layouts import SceneFiles
from rs_biformer.data.splits import Blocks, assign_blocks, assign_scenes, parse_blocks, window_splits
from rs_biformer.errors import ConfigError
from rs_biformer.geometry import Window, Windows, grid


def scenes(*names, split=None):
    return [SceneFiles(Path(name).stem, (Path(name),), Path("label.tif"), split) for name in names]


def splits_of(rule, *names, **options):
    return {scene.name: scene.split for scene in assign_scenes(scenes(*names, **options), rule)}


def test_lists_put_scenes_into_their_splits():
    found = splits_of(["train=a,b", "val=c", "test=d"], "a.tif", "b.tif", "c.tif", "d.tif")
    assert found == {"a": "train", "b": "train", "c": "val", "d": "test"}


def test_a_name_wins_over_a_pattern():
    assert splits_of(["train=*", "val=area1"], "area1.tif", "area11.tif") == {"area1": "val", "area11": "train"}


def test_one_word_puts_everything_into_one_split():
    assert splits_of(["test"], "a.tif", "b.tif") == {"a": "test", "b": "test"}


def test_by_folder_reads_the_nearest_parent():
    found = splits_of(["by-folder"], "/data/test/Train/a.tif", "/data/test/validation/images/b.tif", "/x/test/c.tif")
    assert found == {"a": "train", "b": "val", "c": "test"}


def test_official_takes_what_the_layout_says():
    assert splits_of(["official"], "a.tif", split="val") == {"a": "val"}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ([], "say which scenes train"),
        (["train=area1,aera2"], "no scene is called aera2; did you mean area2"),
        (["train=area1"], "scene area2 is in no split"),
        (["train=area*", "val=*2"], "scene area2 is listed in train and val"),
        (["train=area1", "val=area1,area2"], "scene area1 is listed in train and val"),
        (["training=area1"], "'training=area1' cannot be read; use train=NAME"),
        (["train="], "'train=' cannot be read"),
        (["train", "val"], "'train' cannot be read"),
        (["official"], "scene area1 .* has none; that is known for the Vaihingen"),
        (["by-folder"], "none of its parent folders is called train, val or test"),
    ],
)
def test_rules_that_leave_a_doubt_are_refused(rule, message):
    with pytest.raises(ConfigError, match=message):
        splits_of(rule, "area1.tif", "area2.tif")


def test_a_rule_for_blocks_is_told_from_the_others():
    assert parse_blocks(["blocks:0.7,0.2,0.1"], size=512, buffer=64, seed=3) == Blocks((0.7, 0.2, 0.1), 512, 64, 3)
    assert parse_blocks(["train=a"], size=512, buffer=64, seed=3) is None
    assert parse_blocks(["blocks:0,0.5,0.5"], size=1, buffer=0, seed=0) == Blocks((0.0, 0.5, 0.5), 1, 0, 0)
    assert parse_blocks([], size=512, buffer=64, seed=3) is None


@pytest.mark.parametrize(
    "rule", [["blocks:0.7,0.3"], ["blocks"], ["blocks:a,b,c"], ["blocks:1,0,0", "val=a"], ["blocks:0.5,0.4,0.3"]]
)
def test_blocks_that_cannot_be_read_are_refused(rule):
    with pytest.raises(ConfigError, match="blocks:0.7,0.15,0.15|add up to 1"):
        parse_blocks(rule, size=512, buffer=0, seed=0)


def distance(one: Window, two: Window) -> int:
    """Pixels between two windows along the axis on which they lie further apart; negative when they overlap."""
    rows = max(one.row - two.row_stop, two.row - one.row_stop)
    cols = max(one.col - two.col_stop, two.col - one.col_stop)
    return max(rows, cols)


@given(
    sizes=st.lists(st.tuples(st.integers(5, 90), st.integers(5, 90)), min_size=1, max_size=3),
    size=st.integers(8, 30),
    buffer=st.integers(0, 12),
    seed=st.integers(0, 100),
)
@settings(max_examples=60)
def test_windows_of_two_splits_keep_the_buffer_apart(sizes, size, buffer, seed):
    blocks = Blocks((0.6, 0.2, 0.2), size, buffer, seed)
    for (height, width), dealt in zip(sizes, assign_blocks(sizes, blocks), strict=True):
        windows = list(grid(height, width, 8, 4))
        splits = window_splits(Windows.of(windows), height, width, dealt, blocks)
        placed = [(window, split) for window, split in zip(windows, splits, strict=True) if split]
        for number, (one, first) in enumerate(placed):
            for two, second in placed[:number]:
                assert first == second or distance(one, two) >= buffer


@pytest.mark.parametrize(("buffer", "grown"), [(0, 0), (1, 1), (20, 10), (21, 11)])
def test_no_more_windows_are_lost_than_the_buffer_takes(buffer, grown):
    """Two blocks of 100 px beside each other: windows may come as near to their border as half the buffer."""
    starts = range(0, 191)
    windows = Windows.of([Window(5, col, 10, 10) for col in starts])
    dealt = np.array([[0, 1]], np.int8)
    found = window_splits(windows, 100, 200, dealt, Blocks((0.5, 0.5, 0.0), 100, buffer))
    assert found.tolist() == [
        "train" if col + 10 + grown <= 100 else "val" if col - grown >= 100 else "" for col in starts
    ]


def test_blocks_are_equal_parts_and_a_half_makes_none():
    sizes = [(249, 251), (1, 149)]
    dealt = assign_blocks(sizes, Blocks((1.0, 0.0, 0.0), 100, 0))
    assert [part.shape for part in dealt] == [(2, 3), (1, 1)]


def test_blocks_that_hold_nothing_belong_to_no_split():
    areas = np.array([[0.0, 9.0], [9.0, 0.0]])
    (dealt,) = assign_blocks([(200, 200)], Blocks((1.0, 0.0, 0.0), 100, 0), [areas])
    assert dealt.tolist() == [[-1, 0], [0, -1]]


def test_a_window_between_two_blocks_of_one_split_is_kept():
    blocks = Blocks((1.0, 0.0, 0.0), 16, 8)
    (dealt,) = assign_blocks([(64, 64)], blocks)
    windows = Windows.of(grid(64, 64, 8, 4))
    assert (window_splits(windows, 64, 64, dealt, blocks) == "train").all()


def test_blocks_come_near_the_wanted_shares_and_depend_on_the_seed_alone():
    sizes = [(1000, 2000), (700, 300)]
    shares = (0.7, 0.2, 0.1)
    dealt = assign_blocks(sizes, Blocks(shares, 100, 0, seed=1))
    again = assign_blocks(sizes, Blocks(shares, 100, 0, seed=1))
    other = assign_blocks(sizes, Blocks(shares, 100, 0, seed=2))
    assert [part.shape for part in dealt] == [(10, 20), (7, 3)]
    counts = np.bincount(np.concatenate([part.ravel() for part in dealt]), minlength=3)
    np.testing.assert_allclose(counts / counts.sum(), shares, atol=0.01)
    assert all((a == b).all() for a, b in zip(dealt, again, strict=True))
    assert not all((a == b).all() for a, b in zip(dealt, other, strict=True))


def test_every_wanted_split_gets_a_block_when_there_are_enough():
    (dealt,) = assign_blocks([(300, 100)], Blocks((0.8, 0.1, 0.1), 100, 0))
    assert set(dealt.ravel().tolist()) == set(range(len(SPLITS)))


def test_a_scene_smaller_than_a_block_goes_to_one_split():
    dealt = assign_blocks([(50, 50)] * 4, Blocks((0.5, 0.25, 0.25), 100, 10))
    assert [part.shape for part in dealt] == [(1, 1)] * 4


def test_lists_may_stand_in_files_as_names_or_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text("﻿a\n\n# a comment\nimages/b.tif\n", encoding="utf-8")
    (tmp_path / "val.txt").write_text("c*\n")
    found = splits_of(["train=@train.txt,d", "val=@val.txt"], "images/a.tif", "images/b.tif", "c1.tif", "d.tif")
    assert found == {"a": "train", "b": "train", "c1": "val", "d": "train"}


def test_paths_in_lists_tell_scenes_of_one_stem_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [SceneFiles(f"{part}_1", (Path(f"/data/{part}/1.tif"),), None) for part in "ab"]
    (tmp_path / "train.txt").write_text("a/1.tif\n")
    (tmp_path / "val.txt").write_text("b/1.tif\n")
    found = assign_scenes(files, ["train=@train.txt", "val=@val.txt"])
    assert [scene.split for scene in found] == ["train", "val"]
    (tmp_path / "train.txt").write_text("1.tif\n")
    with pytest.raises(ConfigError, match="no scene is called 1; did you mean"):
        assign_scenes(files, ["train=@train.txt", "val=@val.txt"])


def test_seven_thousand_names_are_no_matter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"M-33-20-D-c-4-2_{number}" for number in range(7000)]
    (tmp_path / "train.txt").write_text("\n".join(names[:6999]))
    found = splits_of(["train=@train.txt", f"val={names[-1]}"], *(f"{name}.jpg" for name in names))
    assert [*found.values()] == ["train"] * 6999 + ["val"]


def test_a_list_that_is_not_there_or_empty_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"train.txt: there is no such file"):
        splits_of(["train=@train.txt"], "a.tif")
    (tmp_path / "train.txt").write_text("# none\n")
    with pytest.raises(ConfigError, match="names no scene"):
        splits_of(["train=@train.txt"], "a.tif")


def test_listed_takes_the_splits_of_a_list_of_pairs():
    assert splits_of(["listed"], "a.tif", split="val") == {"a": "val"}
    with pytest.raises(ConfigError, match="scene a .* has none; fill in the column split"):
        splits_of(["listed"], "a.tif")
