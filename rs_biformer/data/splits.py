"""Who goes where: whole scenes by list, folder or official id, or spatial blocks that keep their distance.

Never window by window: windows overlap, and neighbours that do not are still photographs of the same field.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import isclose
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from rs_biformer.data.ground import Frame, overlaps, sites
from rs_biformer.data.index import SPLITS
from rs_biformer.data.layouts import RASTER_SUFFIXES, SceneFiles, named_in
from rs_biformer.errors import ConfigError
from rs_biformer.geometry import Window, Windows
from rs_biformer.raster.paths import absolute

_FOLDER_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_FOLDER_LEVELS = 3
_SAME_SIZE = 1.05  # pixels that differ by less than this factor count as equally large
_LARGEST_SITE = 10**13  # pixels that scenes which share ground may span

HELP = "use train=NAME,... val=@FILE test=NAME,... | by-folder | official | blocks:0.7,0.15,0.15 | train"


@dataclass(frozen=True)
class Blocks:
    """Spatial blocks, drawn at random: shares of train, val and test in the area, about `size` pixels on a side.

    buffer: pixels that windows of two splits keep from one another, at least.
    """

    shares: tuple[float, float, float]
    size: int
    buffer: int
    seed: int = 0

    def __post_init__(self) -> None:
        if any(share < 0 for share in self.shares) or not isclose(sum(self.shares), 1, abs_tol=1e-6):
            raise ConfigError(f"block shares are {self.shares}; train, val and test must be 0 or more and add up to 1")
        if self.size < 1 or self.buffer < 0:
            raise ConfigError(f"block size is {self.size} and buffer {self.buffer}; allowed are 1 and 0 pixels or more")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; allowed are whole numbers of 0 or more")


def parse_blocks(rule: Sequence[str], *, size: int, buffer: int, seed: int) -> Blocks | None:
    """Blocks for a rule such as ["blocks:0.7,0.15,0.15"]; None for rules that concern whole scenes."""
    if not rule or not rule[0].startswith("blocks"):
        return None
    parts = rule[0].removeprefix("blocks").removeprefix(":").split(",")
    try:
        train, val, test = (float(part) for part in parts)
    except ValueError:
        train = val = test = -1.0
    if train < 0 or len(rule) > 1:
        raise ConfigError(f"split {' '.join(rule)!r} cannot be read; write blocks:0.7,0.15,0.15 (train, val, test)")
    return Blocks((train, val, test), size, buffer, seed)


def assign_scenes(scenes: Sequence[SceneFiles], rule: Sequence[str]) -> tuple[SceneFiles, ...]:
    """The scenes with their splits, each in exactly one.

    rule: ["train"] (or val, test) puts all into one; ["official"] takes what the layout says; ["by-folder"] reads the
    nearest parent folder called train, val or test; ["train=a,b*", "val=c"] lists names or patterns, of which an exact
    name wins over a pattern, and ["train=@train.txt"] the lines of a file, names or paths; ["listed"] takes the splits
    of a list of pairs.

    Raises ConfigError when a rule cannot be read, a name fits no scene, or a scene ends in no split or in two.
    """
    if not rule:
        raise ConfigError(f"say which scenes train, validate and test; {HELP}")
    if len(rule) == 1 and rule[0] in SPLITS:
        return tuple(replace(scene, split=rule[0]) for scene in scenes)
    if rule == ["official"]:
        return _require_split(scenes, "official", "that is known for the Vaihingen, Potsdam and LoveDA downloads")
    if rule == ["by-folder"]:
        placed = tuple(replace(scene, split=_folder_split(scene)) for scene in scenes)
        return _require_split(placed, "by-folder", "none of its parent folders is called train, val or test")
    if rule == ["listed"]:
        return _require_split(scenes, "listed", "fill in the column split of its row, or say it with --split")
    lists = _parse_lists(rule, scenes)
    names = {scene.name: None for scene in scenes}
    for entry in (entry for entries in lists.values() for entry in entries if entry not in names):
        if not any(fnmatchcase(name, entry) for name in names):
            near = get_close_matches(entry, names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"there are {_some(list(names))}"
            raise ConfigError(f"split {' '.join(rule)!r}: no scene is called {entry}; {hint}")
    exact = {split: names.keys() & set(entries) for split, entries in lists.items()}
    patterns = {split: [entry for entry in entries if entry not in names] for split, entries in lists.items()}
    return tuple(replace(scene, split=_listed_split(scene.name, exact, patterns)) for scene in scenes)


def _parse_lists(rule: Sequence[str], scenes: Sequence[SceneFiles]) -> dict[str, tuple[str, ...]]:
    """The names and patterns that a rule gives each split; `@FILE` stands for the lines of a file."""
    lists: dict[str, tuple[str, ...]] = {}
    files: dict[str, list[SceneFiles]] = {}
    for scene in scenes:
        files.setdefault(PurePath(scene.images[0]).name, []).append(scene)
    for token in rule:
        split, sign, text = token.partition("=")
        if not sign or split not in SPLITS or split in lists or not text.strip(","):
            raise ConfigError(f"split {token!r} cannot be read; {HELP}")
        found: list[str] = []
        for entry in (part.strip() for part in text.split(",") if part.strip()):
            found += [_name_of(line, files) for line in named_in(Path(entry[1:]))] if entry[0] == "@" else [entry]
        lists[split] = tuple(found)
    return lists


def _name_of(line: str, files: dict[str, list[SceneFiles]]) -> str:
    """The name of the scene that a line of a list means: as it is, or that of the one file whose path ends so."""
    path = PurePath(line)
    if path.suffix.lower() not in RASTER_SUFFIXES:
        return line
    parts = [part for part in path.parts if part != "."]
    found = [
        scene for scene in files.get(path.name, ()) if list(PurePath(scene.images[0]).parts[-len(parts) :]) == parts
    ] or files.get(path.name, [])
    return found[0].name if len(found) == 1 else path.stem


def _listed_split(name: str, exact: Mapping[str, Set[str]], patterns: Mapping[str, Sequence[str]]) -> str:
    found = [split for split, names in exact.items() if name in names] or [
        split for split, entries in patterns.items() if any(fnmatchcase(name, entry) for entry in entries)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"scene {name} is listed in {' and '.join(found)}; a scene belongs to one split")
    raise ConfigError(f"scene {name} is in no split; list it, give train=* to train on the rest, or leave its file out")


def _folder_split(scene: SceneFiles) -> str | None:
    parents = PurePath(absolute(scene.images[0])).parents
    found = (_FOLDER_NAMES.get(parent.name.lower()) for parent in list(parents)[:_FOLDER_LEVELS])
    return next((split for split in found if split), None)


def _require_split(scenes: Iterable[SceneFiles], rule: str, why: str) -> tuple[SceneFiles, ...]:
    scenes = tuple(scenes)
    for scene in scenes:
        if scene.split is None:
            raise ConfigError(f"split {rule}: scene {scene.name} ({scene.images[0]}) has none; {why}; {HELP}")
    return scenes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def split_by_place(
    frames: Sequence[Frame], windows: Sequence[Windows], blocks: Blocks
) -> tuple[list[NDArray[np.str_]], list[tuple[int, ...]]]:
    """The split of each window of each scene, "" between splits, so that no ground lies in windows of two splits.

    Scenes that share ground are dealt together: the blocks are laid over all of them, on the pixels of the one with the
    largest pixels (the first of those alike), and a window belongs to the blocks that the box around it touches there.
    Blocks and buffer are pixels of that scene. All other scenes have blocks of their own.

    Returns the splits, and the numbers of the scenes that were dealt together, group by group.
    """
    groups = sites(len(frames), overlaps(frames))
    laid = [_lay(frames, windows, members) for members in groups]
    dealt = assign_blocks([site.size for site in laid], blocks, [site.areas(blocks) for site in laid])
    splits: list[NDArray[np.str_]] = [np.array([], "<U5")] * len(frames)
    for site, members, own in zip(laid, groups, dealt, strict=True):
        for number, boxes in zip(members, site.windows, strict=True):
            splits[number] = window_splits(boxes, *site.size, own, blocks)
            splits[number][(boxes.height < 1) | (boxes.width < 1)] = ""  # out of reach of the first scene's CRS
    return splits, [members for members in groups if len(members) > 1]


@dataclass(frozen=True)
class _Site:
    """Scenes that share ground, on the pixels of one of them: how large all are together, each, and their windows."""

    size: tuple[int, int]
    scenes: tuple[Window, ...]
    windows: tuple[Windows, ...]

    def areas(self, blocks: Blocks) -> NDArray[np.float64]:
        """The pixels of all scenes in each block."""
        edges = [_edges(length, blocks.size) for length in self.size]
        total = np.zeros((len(edges[0]) - 1, len(edges[1]) - 1))
        for scene in self.scenes:
            rows = np.diff(edges[0].clip(scene.row, scene.row_stop)).astype(np.float64)
            cols = np.diff(edges[1].clip(scene.col, scene.col_stop)).astype(np.float64)
            total += np.outer(rows, cols)
        return total


def _lay(frames: Sequence[Frame], windows: Sequence[Windows], members: Sequence[int]) -> _Site:
    if len(members) == 1:
        frame = frames[members[0]]
        return _Site((frame.height, frame.width), tuple(frame.whole), (windows[members[0]],))
    sizes = [frames[number].gsd for number in members]
    base = frames[next(n for n, size in zip(members, sizes, strict=True) if size * _SAME_SIZE >= max(sizes))]
    reached = [frames[number].pixels(frames[number].whole, base) for number in members]
    wholes = [whole for whole in reached if whole.height[0] > 0 and whole.width[0] > 0]
    top, left = (int(min(getattr(whole, axis)[0] for whole in wholes)) for axis in ("row", "col"))
    bottom, right = (int(max(getattr(whole, axis)[0] for whole in wholes)) for axis in ("row_stop", "col_stop"))
    if (bottom - top) * (right - left) > _LARGEST_SITE:
        raise ConfigError(
            f"{len(members)} scenes that share ground span {bottom - top} x {right - left} pixels, too many to deal in "
            "blocks together; check their georeference, or name the scenes of each split"
        )
    placed = [next(iter(whole.moved(-top, -left))) for whole in wholes]
    boxes = [frames[number].pixels(windows[number], base).moved(-top, -left) for number in members]
    return _Site((bottom - top, right - left), tuple(placed), tuple(boxes))


def assign_blocks(
    sizes: Sequence[tuple[int, int]], blocks: Blocks, areas: Sequence[NDArray[np.float64]] | None = None
) -> list[NDArray[np.int8]]:
    """The split of every block of every scene, as positions in SPLITS: one (block rows, block columns) array each.

    sizes: height and width of the scenes. areas: the pixels that count in each block, those of the scene unless given;
    a block without any gets -1, no split. Blocks are dealt in random order, each to the split that lacks most of its
    share, after every wanted split has got one.
    """
    if areas is None:
        areas = [np.outer(np.diff(_edges(h, blocks.size)), np.diff(_edges(w, blocks.size))) for h, w in sizes]
    shapes = [part.shape for part in areas]
    flat = np.concatenate([part.ravel() for part in areas]).astype(np.float64)
    filled = np.flatnonzero(flat)
    found = np.full(len(flat), -1, np.int8)
    found[filled] = _deal(flat[filled], blocks)
    ends = np.cumsum([rows * cols for rows, cols in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(found, ends[:-1]), shapes, strict=True)]


def _deal(areas: NDArray[np.float64], blocks: Blocks) -> NDArray[np.int8]:
    lacking = np.array(blocks.shares) * areas.sum()
    first = [int(split) for split in np.argsort(-lacking, kind="stable") if lacking[split] > 0]
    dealt = np.empty(len(areas), np.int8)
    for turn, block in enumerate(np.random.default_rng(blocks.seed).permutation(len(areas))):
        dealt[block] = first[turn] if turn < len(first) else int(lacking.argmax())
        lacking[dealt[block]] -= areas[block]
    return dealt


def window_splits(
    windows: Windows, height: int, width: int, dealt: NDArray[np.int8], blocks: Blocks
) -> NDArray[np.str_]:
    """The split of each window of one scene, (n,); "" for those that lie between splits.

    A window belongs to a split when all blocks that it touches do, even grown by half the buffer on each side. Two
    grown windows of different splits have no pixel in common, so the windows themselves are a buffer apart.
    """
    grow = (blocks.buffer + 1) // 2
    row_edges, col_edges = _edges(height, blocks.size), _edges(width, blocks.size)
    top = np.searchsorted(row_edges, np.maximum(windows.row - grow, 0), "right") - 1
    left = np.searchsorted(col_edges, np.maximum(windows.col - grow, 0), "right") - 1
    bottom = np.searchsorted(row_edges, np.minimum(windows.row_stop + grow, height), "left")
    right = np.searchsorted(col_edges, np.minimum(windows.col_stop + grow, width), "left")
    splits = np.full(len(windows), "", dtype="<U5")
    for number, name in enumerate(SPLITS):
        others = np.pad((dealt != number).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
        touched = others[bottom, right] - others[top, right] - others[bottom, left] + others[top, left]
        splits[touched == 0] = name
    return splits


def _edges(length: int, size: int) -> NDArray[np.int64]:
    """Where blocks begin and end along an axis: equal parts of about `size`, so that no sliver is left at the end."""
    parts = max(1, round(length / size))
    return np.round(np.linspace(0, length, parts + 1)).astype(np.int64)
