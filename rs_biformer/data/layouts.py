"""Which files make a scene: the official downloads of Vaihingen, Potsdam and LoveDA, or a pattern for one's own.

The folders of the three downloads are found by name anywhere below the folder that the user points to, because the
archives unpack into different depths; what has no ground truth is listed with `label=None`.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path, PurePath, PurePosixPath
from string import Formatter
from typing import Literal

from rs_biformer.data.stac import StacScene, is_stac, stac_scenes
from rs_biformer.errors import ConfigError
from rs_biformer.raster.paths import Location, absolute, brief, folder_of, is_remote, locate, stem_of

Height = Literal["dsm", "ndsm"]
Image = Literal["rgb", "irrg", "rgbir"]

RASTER_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".img", ".vrt", ".bmp")
"""What counts as a scene when a folder is given; files named one by one may have any suffix but that of a list."""

LIST_SUFFIX = ".txt"
"""A text file that names scenes, one a line; `@FILE` is such a list whatever its suffix."""

_FIELDS = ("dir", "name", "parent", "stem")
_DEPTH = 4
_SIGNS = "*?["  # of a glob pattern


@dataclass(frozen=True)
class SceneFiles:
    """One scene before it is opened: its name, its rasters, its label and the split that the data's makers gave it.

    corrections: later labels, see `raster.correcting`.
    """

    name: str
    images: tuple[Location, ...]
    label: Location | None
    split: str | None = None
    corrections: tuple[Location, ...] = ()


@dataclass(frozen=True)
class _Kind:
    """Files of one kind: folder name patterns in order of preference, and a file name whose group 1 is the id."""

    folders: tuple[str, ...]
    file: str


@dataclass(frozen=True)
class _Download:
    """An official data set: its images (the first is the default), labels, heights, and the ids of its splits."""

    images: dict[str, _Kind]
    label: _Kind
    eroded: _Kind
    heights: dict[str, _Kind]
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


# Train and test are those of the ISPRS contest. It names no validation set: five and seven of the training scenes,
# which published code commonly holds out, so that nothing is chosen on test.
_DOWNLOADS = {
    "vaihingen": _Download(
        images={"irrg": _Kind(("top",), r"top_mosaic_09cm_area(\d+)\.tif")},
        label=_Kind(("*vaihingen_ground_truth_complete", "gts_for_participants"), r"top_mosaic_09cm_area(\d+)\.tif"),
        eroded=_Kind(
            ("*ground_truth_eroded_complete", "*eroded_for_participants"),
            r"top_mosaic_09cm_area(\d+)_noBoundary\.tif",
        ),
        heights={"dsm": _Kind(("dsm",), r"dsm_09cm_matching_area(\d+)\.tif")},
        train=tuple("1 3 5 7 13 17 21 23 26 32 37".split()),
        val=tuple("11 15 28 30 34".split()),
        test=tuple("2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38".split()),
    ),
    "potsdam": _Download(
        images={
            "rgb": _Kind(("2_ortho_rgb",), r"top_potsdam_(\d+_\d+)_RGB\.tif"),
            "irrg": _Kind(("3_ortho_irrg",), r"top_potsdam_(\d+_\d+)_IRRG\.tif"),
            "rgbir": _Kind(("4_ortho_rgbir",), r"top_potsdam_(\d+_\d+)_RGBIR\.tif"),
        },
        label=_Kind(("5_labels_all", "5_labels_for_participants"), r"top_potsdam_(\d+_\d+)_label\.tif"),
        eroded=_Kind(
            ("5_labels_all_noboundary", "5_labels_for_participants_no_boundary"),
            r"top_potsdam_(\d+_\d+)_label_noBoundary\.tif",
        ),
        heights={
            "dsm": _Kind(("1_dsm",), r"dsm_potsdam_(\d+_\d+)\.tif"),
            "ndsm": _Kind(("1_dsm_normalisation",), r"dsm_potsdam_(\d+_\d+)_normalized_lastools\.(?:jpg|tif)"),
        },
        train=tuple("2_10 3_10 3_11 3_12 4_11 4_12 5_10 5_12 6_8 6_9 6_10 6_11 6_12 7_7 7_9 7_11 7_12".split()),
        val=tuple("2_11 2_12 4_10 5_11 6_7 7_8 7_10".split()),
        test=tuple("2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13".split()),
    ),
}
_LOVEDA_SPLITS = {"train": "train", "val": "val", "test": "test"}

OFFICIAL = (*_DOWNLOADS, "loveda")


def official_scenes(
    kind: str, folder: Path, *, image: Image | None = None, eroded: bool = False, height: Height | None = None
) -> tuple[SceneFiles, ...]:
    """The scenes of an unzipped official download, with the official splits; `val` is drawn from its training scenes.

    kind: one of OFFICIAL. image: which Potsdam orthophoto. eroded: take the ground truth with eroded boundaries.
    height: stack the surface model (`dsm`, metres) or the normalised one (`ndsm`) as a further band.

    Raises ConfigError when the folder holds no such download or an option does not exist for it.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; give the folder of the unzipped {kind} download")
    if kind == "loveda":
        if image or eroded or height:
            raise ConfigError("LoveDA has one RGB image and one mask per scene: no other image, eroded labels or DSM")
        return _loveda_scenes(folder)
    download = _DOWNLOADS[kind]
    wanted: str = image or list(download.images)[0]
    if wanted not in download.images:
        raise ConfigError(f"{kind} has no {wanted} images; it has {', '.join(download.images)}")
    if height and height not in download.heights:
        raise ConfigError(f"{kind} has no {height} in its download; it has {', '.join(download.heights)}")
    images = _require_files(folder, download.images[wanted], f"{kind} {wanted} images")
    what = "eroded ground truth" if eroded else "ground truth"
    labels = _require_files(folder, download.eroded if eroded else download.label, f"{kind} {what}")
    heights = _require_files(folder, download.heights[height], f"{kind} {height}") if height else {}
    splits = {name: split for split in ("train", "val", "test") for name in getattr(download, split)}
    scenes = []
    for name, path in sorted(images.items(), key=lambda item: _natural(item[0])):
        if height and name not in heights:
            raise ConfigError(f"{kind} scene {name} has no {height} file; complete the download or leave the DSM out")
        rasters = (path, heights[name]) if height else (path,)
        scenes.append(SceneFiles(name, rasters, labels.get(name), splits.get(name)))
    return tuple(scenes)


def _loveda_scenes(folder: Path) -> tuple[SceneFiles, ...]:
    scenes = []
    for images in _folders(folder):
        split = _LOVEDA_SPLITS.get(images.parent.parent.name.lower())
        if images.name == "images_png" and split:
            masks = images.parent / "masks_png"
            for path in sorted(filter(_is_shown, images.glob("*.png")), key=lambda path: _natural(path.stem)):
                label = masks / path.name
                scenes.append(SceneFiles(path.stem, (path,), label if label.is_file() else None, split))
    if not scenes:
        raise ConfigError(
            f"{folder} holds no LoveDA scenes: no Train/Urban/images_png/N.png below it; unzip Train.zip and Val.zip "
            "there, or name scenes and --labels"
        )
    return tuple(
        sorted(scenes, key=lambda scene: (list(_LOVEDA_SPLITS).index(scene.split or ""), _natural(scene.name)))
    )


def _folders(root: Path) -> Iterator[Path]:
    """`root` and the folders below it, a few levels deep, in order."""
    for path, below, _ in os.walk(root):
        below[:] = sorted(below) if len(Path(path).relative_to(root).parts) < _DEPTH else []
        yield Path(path)


def _require_files(root: Path, kind: _Kind, what: str) -> dict[str, Path]:
    """Files by id. Of two with one id, the one in the folder named first in `kind` counts."""
    found: dict[str, Path] = {}
    folders = list(_folders(root))
    for pattern in kind.folders:
        for folder in folders:
            if fnmatch(folder.name.lower(), pattern):
                for path in sorted(folder.iterdir()):
                    if match := re.fullmatch(kind.file, path.name, re.IGNORECASE):
                        # Heights are numbered 02_10 and orthophotos 2_10.
                        found.setdefault("_".join(str(int(part)) for part in match[1].split("_")), path)
    if not found:
        example = kind.file.replace(r"(\d+_\d+)", "2_10").replace(r"(\d+)", "1").replace("(?:jpg|tif)", "jpg")
        raise ConfigError(
            f"{root} holds no {what}: no {kind.folders[0]}/{example.replace(chr(92), '')} below it; "
            "unzip the official download there, or name scenes and --labels"
        )
    return found


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key that puts 2_10 before 10_2 and area 9 before area 10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part)


def pattern_scenes(
    inputs: Sequence[Path | str],
    labels: str | None,
    extras: Sequence[str] = (),
    *,
    skip: Sequence[str] = (),
    name: str | None = "{stem}",
) -> tuple[SceneFiles, ...]:
    """Scenes given by name, each with the label that `labels` names for it; None for none.

    inputs: files, glob patterns, folders, URLs and whatever else GDAL opens by name, and lists of these: a .txt file or
    `@FILE` with one a line, lines with `#` left out, paths counted from the list's folder; STAC documents, see stac.py,
    whose scenes are called by their ids unless `name` says otherwise.

    labels, extras: paths in which `{stem}` stands for the scene's file name without suffix, `{name}` for that stem up
    to its last "_", `{dir}` for the scene's folder and `{parent}` for that folder's name. Of any of these a colon takes
    a piece: `{stem:image_*}` is what the `*` stands for (0001 of image_0001), and `{stem:*_image_*>*_mask_*}` puts
    several pieces together anew. Of a folder, all rasters are taken but hidden ones and those that are another one's
    label or extra.
    skip: what is left out wherever it comes from: glob patterns for file names (`*_label.tif`), or paths as in `labels`
    that lead from one scene to what is none (`{dir}/{stem}_classes.tif`).
    name: what a scene is called, with the same fields; None for its stem, with the folders that tell scenes of one
    stem apart before it.

    Raises ConfigError when nothing is found, a label is missing, or two scenes share a name.
    """
    patterns = extras if labels is None else (labels, *extras)
    for pattern in (*patterns, *skip, name or "{stem}"):
        _check_pattern(pattern)
    items = _stac_items(inputs)
    found = [location for item in inputs for location in _expand(item, patterns)]
    scenes = _without(found, skip)
    if not scenes:
        raise ConfigError(f"of {len(found)} scenes none is left; {', '.join(skip)} leaves them all out")
    scenes = list({_known(scene): scene for scene in scenes}.values())
    files = [
        SceneFiles(
            _fill(location, name or "{stem}"),
            (location, *_further(items, location), *(_partner(location, extra, "--extra") for extra in extras)),
            None if labels is None else _partner(location, labels, "label"),
        )
        for location in scenes
    ]
    if name in (None, "{stem}") and items:  # files of items are often all called alike
        known = [items.get(_known(one.images[0])) for one in files]
        others = iter(with_own_names([one for one, item in zip(files, known, strict=True) if item is None]))
        files = [
            replace(one, name=item.name) if item is not None else next(others)
            for one, item in zip(files, known, strict=True)
        ]
    elif name is None:
        return with_own_names(files)
    require_own_names([(scene.name, scene.images[0]) for scene in files])
    return tuple(files)


def _stac_items(inputs: Sequence[Path | str]) -> dict[str, StacScene]:
    """The scenes of STAC documents among the inputs, by their first raster."""
    named = [text for item in inputs if is_stac(text := os.fspath(item))]
    return {_known(scene.images[0]): scene for item in named for scene in stac_scenes(item)}


def _further(items: dict[str, StacScene], location: Location) -> tuple[Location, ...]:
    item = items.get(_known(location))
    return item.images[1:] if item is not None else ()


def with_corrections(scenes: Sequence[SceneFiles], patterns: Sequence[str]) -> tuple[SceneFiles, ...]:
    """The scenes with their later labels: of each pattern the file that it leads to, where there is one.

    Raises ConfigError for a pattern that leads nowhere.
    """
    found: list[list[Location]] = [[] for _ in scenes]
    for pattern in patterns:
        _check_pattern(pattern)
        led_to = [locate(_fill(scene.images[0], pattern)) for scene in scenes]
        there = [not isinstance(one, Path) or one.is_file() for one in led_to]
        if not any(there):
            raise ConfigError(f"--corrections {pattern!r} leads to no file, such as {led_to[0]}; check the pattern")
        for own, one, is_there in zip(found, led_to, there, strict=True):
            own += [one] if is_there else []
    return tuple(replace(scene, corrections=tuple(own)) for scene, own in zip(scenes, found, strict=True))


def require_own_names(named: Sequence[tuple[str, Location]]) -> None:
    """Raise ConfigError when two scenes have one name, or a name, as a STAC Item may have it, leads out of a folder."""
    seen: dict[str, Location] = {}
    for called, location in named:
        if Path(called).is_absolute() or ".." in Path(called).parts or not Path(called).name or "\0" in called:
            raise ConfigError(f"{location} is called {called!r}, by which no file can be named; give another --name")
        other = seen.setdefault(called, location)
        if other is not location:
            raise ConfigError(
                f"two scenes are called {called}: {other} and {location}; their windows and maps go by that name: "
                "tell them apart with --name, such as '{parent}_{stem}' or '{dir:*/images}_{stem}'"
            )


def with_own_names(scenes: Sequence[SceneFiles]) -> tuple[SceneFiles, ...]:
    """Scenes called by the stem of their image; where two share one, by folder and stem.

    Of the folders only those parts are taken that are not common to all: train/images/1.tif and val/images/1.tif are
    called train_1 and val_1. Raises ConfigError when that does not tell them apart.
    """
    stems = [stem_of(scene.images[0]) for scene in scenes]
    if len(set(stems)) == len(stems):
        names = stems
    else:
        names = [
            "_".join([*parts, stem])
            for parts, stem in zip(_telling_parts([scene.images[0] for scene in scenes]), stems, strict=True)
        ]
        require_own_names([(called, scene.images[0]) for called, scene in zip(names, scenes, strict=True)])
    return tuple(replace(scene, name=called) for scene, called in zip(scenes, names, strict=True))


def _telling_parts(locations: Sequence[Location]) -> list[tuple[str, ...]]:
    """Of the folders of each file those between what all have in common at the beginning and at the end."""
    parts = [
        PurePosixPath(folder_of(place)).parts if isinstance(place, str) else PurePath(absolute(place.parent)).parts
        for place in locations
    ]
    least = min(map(len, parts))
    start = next((n for n in range(least) if len({part[n] for part in parts}) > 1), least)
    end = next((n for n in range(least - start) if len({part[-1 - n] for part in parts}) > 1), least - start)
    return [part[start : len(part) - end] for part in parts]


class _Field(str):
    """What a field of a pattern stands for: `{stem:image_*}` asks for a piece of it."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        if not spec:
            return str(self)
        found = re.fullmatch(_glob(spec.partition(">")[0]), self, re.DOTALL)
        if found is None:
            raise ConfigError(
                f"{self!r} is not of the form {spec.partition('>')[0]!r}; correct the pattern {{...:{spec}}}"
            )
        wanted = spec.partition(">")[2] or "*"
        pieces = iter(found.groups())
        return "".join(next(pieces) if part == "*" else part for part in re.split(r"(\*)", wanted))


def _glob(form: str) -> str:
    """A form such as `image_*` as a regular expression: `*` is any text, kept; `?` is any character."""
    return "".join({"*": "(.*)", "?": "."}.get(sign, re.escape(sign)) for sign in form)


def _check_pattern(pattern: str) -> None:
    try:
        parsed = list(Formatter().parse(pattern))
    except ValueError as error:
        raise ConfigError(f"the pattern {pattern!r} cannot be read: {error}; use {{stem}} or {{name}} in it") from None
    for _, field, form, conversion in parsed:
        if field is None:
            continue
        if field not in _FIELDS or conversion:
            allowed = ", ".join(f"{{{name}}}" for name in _FIELDS)
            shown = f"{field}!{conversion}" if conversion else field
            raise ConfigError(f"the pattern {pattern!r} has {{{shown}}}; it may have {allowed}")
        old, sign, new = (form or "*").partition(">")
        if "{" in old + new or old.count("*") < 1 or old.count("*") != (new.count("*") if sign else 1):
            raise ConfigError(
                f"the pattern {pattern!r} has {{{field}:{form}}}; a piece is written {{{field}:before_*_after}}, "
                f"several {{{field}:*_image_*>*_mask_*}} with as many * on both sides"
            )


def _fill(location: Location, pattern: str) -> str:
    short, place = stem_of(location), folder_of(location)
    parent = PurePosixPath(place).name if isinstance(location, str) else location.absolute().parent.name
    values = {"stem": short, "name": short.rpartition("_")[0] or short, "dir": place, "parent": parent}
    return pattern.format(**{field: _Field(value) for field, value in values.items()})


def _same(one: Location, other: Location) -> bool:
    return one == other or (isinstance(one, Path) and isinstance(other, Path) and one.resolve() == other.resolve())


def _without(scenes: Sequence[Location], skip: Sequence[str]) -> list[Location]:
    """The scenes but those that a pattern of `skip` names."""
    led_to = {_known(_fill(scene, pattern)) for pattern in skip if "{" in pattern for scene in scenes}
    globs = [pattern for pattern in skip if "{" not in pattern]
    return [
        scene
        for scene in scenes
        if _known(scene) not in led_to and not any(fnmatch(PurePath(scene).name, pattern) for pattern in globs)
    ]


def _known(name: str | Path) -> str:
    """One spelling for each file."""
    return str(name) if is_remote(name) else str(Path(name).resolve())


def _expand(item: Path | str, patterns: Sequence[str]) -> list[Location]:
    """The rasters that one input names."""
    if listed := _list_of(item):
        return [location for line in _lines(listed) for location in _rasters(line, patterns)]
    if is_stac(os.fspath(item)):
        return [scene.images[0] for scene in stac_scenes(os.fspath(item))]
    return _rasters(item, patterns)


def _list_of(item: Path | str) -> Path | None:
    """The file of a list of scenes, when the input is one."""
    text = os.fspath(item)
    if text.startswith("@"):
        return Path(text[1:])
    plain = not is_remote(text) and not any(sign in text for sign in _SIGNS)
    return Path(text) if text.lower().endswith(LIST_SUFFIX) and plain else None


def _lines(path: Path) -> list[str]:
    """What a list of scenes names, paths counted from the working folder. Raises ConfigError when it names nothing."""
    return [line if is_remote(line) else str(path.parent / line) for line in named_in(path)]


def named_in(path: Path) -> list[str]:
    """The lines of a list but empty ones and those that begin with `#`. Raises ConfigError when there are none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise ConfigError(f"no list of scenes {path}: there is no such file{nearest_file(path)}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the list of scenes {path} is no text; write one path a line, in UTF-8") from None
    except OSError as error:
        raise ConfigError(f"the list of scenes {path} cannot be read: {error.strerror or error}") from None
    named = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not named:
        raise ConfigError(f"the list {path} names no scene; write one path a line")
    return named


def _rasters(item: Path | str, patterns: Sequence[str]) -> list[Location]:
    location = locate(item)
    if isinstance(location, str):
        return [location]
    return list(_scenes_in(location, patterns) if location.is_dir() else _matching(location))


def _scenes_in(folder: Path, patterns: Sequence[str]) -> list[Path]:
    shown = filter(_is_shown, sorted(folder.iterdir()))
    rasters = [path for path in shown if path.suffix.lower() in RASTER_SUFFIXES and path.is_file()]
    partners = {_known(_fill(path, pattern)) for path in rasters for pattern in patterns}
    scenes = [path for path in rasters if _known(path) not in partners]
    if not scenes:
        raise ConfigError(f"{folder} holds no scenes ({', '.join(RASTER_SUFFIXES)}); give files or another folder")
    return scenes


def _matching(path: Path) -> list[Path]:
    """The files that a path or a glob pattern names."""
    if path.exists() or not any(sign in str(path) for sign in _SIGNS):
        if path.is_file():
            return [path]
        raise ConfigError(f"no scene {path}: there is no such file or folder{nearest_file(path)}")
    anchor = Path(path.anchor) if path.is_absolute() else Path()
    matches = (match for match in anchor.glob(str(path.relative_to(path.anchor))) if match.is_file())
    found = sorted(match for match in matches if _is_shown(match) or path.name.startswith("."))
    if not found:
        raise ConfigError(f"no file matches {path}; check the pattern, and quote it so that the shell leaves it alone")
    return found


def _is_shown(path: Path) -> bool:
    """Whether a file is not hidden. macOS leaves a `._x.tif` beside every x.tif on disks of other systems."""
    return not path.name.startswith(".")


def _partner(scene: Location, pattern: str, what: str) -> Location:
    partner = locate(_fill(scene, pattern))
    if isinstance(partner, Path) and partner.is_dir():
        raise ConfigError(
            f"the {what} of scene {scene} is a folder, {partner}; say which file of it, such as "
            f"'{partner}/{{stem}}.tif'"
        )
    if isinstance(partner, Path) and not partner.is_file():
        raise ConfigError(
            f"scene {scene} has no {what}: {partner} does not exist{nearest_file(partner)}{_piece_hint(scene, pattern)}"
        )
    if _same(scene, partner):
        raise ConfigError(f"scene {scene} would be its own {what}; the pattern {pattern!r} must name another file")
    return partner


def _piece_hint(scene: Location, pattern: str) -> str:
    """How to write a piece of a numbered name, where the pattern takes the whole stem."""
    before = re.match(r"\D+(?=\d)", stem_of(scene))
    if before is None or "{stem}" not in pattern:
        return ""
    return f"; a piece of a name is written {{stem:{before[0]}*}}"


def nearest_file(path: Path) -> str:
    """How a message about a missing file ends: `; did you mean ...?` when its folder has a file of a similar name."""
    if not os.path.isdir(path.parent):  # noqa: PTH112 - Path raises at a name that no folder can have
        return f" (nor does the folder {brief(path.parent)})"
    near = get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""
