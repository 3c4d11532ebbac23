"""What maps are measured against: the label of each scene, and its image where there is one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rs_biformer.data.layouts import SceneFiles, pattern_scenes, require_own_names
from rs_biformer.data.pairs import is_pair_list, paired_scenes
from rs_biformer.errors import ConfigError
from rs_biformer.jobs.pairing import PairBy, pair_by_name
from rs_biformer.raster.layer import is_vector
from rs_biformer.raster.paths import Location, is_remote, locate, stem_of

Say = Callable[[str], None]


def silent(line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Truths:
    """Scenes with labels; `images` of one are empty where only its map is known.

    named: whether the scenes are called as somebody said, and not by what the names of map and label have in common.
    """

    scenes: tuple[SceneFiles, ...]
    named: bool = False

    @property
    def labels(self) -> list[Location]:
        return [scene.label for scene in self.scenes if scene.label is not None]

    @property
    def files(self) -> list[Location]:
        """Images and labels."""
        return [path for scene in self.scenes for path in scene.images] + self.labels

    @property
    def images(self) -> list[tuple[Location, ...]] | None:
        """Of each scene; None where there are none."""
        return [scene.images for scene in self.scenes] if all(scene.images for scene in self.scenes) else None

    @property
    def names(self) -> list[str] | None:
        return [scene.name for scene in self.scenes] if self.named else None


def find_truths(
    scenes: Sequence[str],
    labels: Sequence[str],
    *,
    maps: Sequence[str] = (),
    extra: Sequence[str] = (),
    name: str | None = None,
    pair: PairBy = "auto",
    say: Say = silent,
) -> Truths:
    """The label of each scene, or of each map where no scenes are given.

    scenes: images, globs, folders and lists, or one list of pairs (.csv) that names the labels too.
    labels: one pattern, such as `{dir}/{stem}_label.tif`, or files, which are paired by `pairing.pair_by_name`; one
        layer of polygons serves all scenes.
    maps: class maps, for patterns where there are no scenes. extra: patterns of further rasters of each scene.
    name: a pattern for what scenes are called. say: gets a line where files are paired in an order that names do not
    confirm.

    Raises ConfigError for labels that are missing or stand beside the wrong scene.
    """
    if scenes and is_pair_list(scenes[0]):
        return _listed(scenes, labels, extra, name)
    if not labels:
        raise ConfigError(
            "--label is missing; give a pattern such as '{dir}/{stem}_label.tif', one label raster for each map or "
            "scene, or a list of pairs as --scene"
        )
    if not scenes and len(maps) == 1:
        _require_no_pattern(maps[0], "prediction")
    pattern = labels[0] if len(labels) == 1 and "{" in labels[0] else None
    given = list(scenes or maps)
    if pattern is not None or name is not None or scenes:
        found = pattern_scenes(given, pattern, extra if scenes else (), name=name)
    else:
        found = tuple(SceneFiles(stem_of(location), (location,), None) for location in list_files(given))
    if pattern is None:
        files = list_files(labels)
        one = _serves_all(files)
        places = (0,) * len(found) if one else _paired(found, files, "scene" if scenes else "map", pair, say)
        found = tuple(replace(scene, label=files[place]) for scene, place in zip(found, places, strict=True))
    if not scenes:
        found = tuple(replace(scene, images=()) for scene in found)
    return Truths(found, named=name is not None)


def _listed(scenes: Sequence[str], labels: Sequence[str], extra: Sequence[str], name: str | None) -> Truths:
    if len(scenes) > 1 or labels or extra or name:
        raise ConfigError(
            f"a list of pairs ({scenes[0]}) names its scenes, labels and further rasters itself; give it alone, "
            "without --label, --extra and --name"
        )
    found = paired_scenes(scenes[0])
    bare = [scene for scene in found if scene.label is None]
    if bare:
        raise ConfigError(f"{scenes[0]} names no label for {bare[0].images[0]}; fill in its row or remove it")
    require_own_names([(scene.name, scene.images[0]) for scene in found])
    return Truths(found, named=True)


def files_for(truths: Truths, given: Sequence[str], what: str, pair: PairBy, say: Say) -> tuple[Location, ...]:
    """The raster of each scene, such as its map: by a pattern from its image, or from a list of files.

    what: what the rasters are called. Raises ConfigError where they are missing or stand beside the wrong scene.
    """
    if len(given) == 1 and "{" in given[0]:
        images = truths.images
        if images is None:
            _require_no_pattern(given[0], what)
        assert images is not None
        found = pattern_scenes([str(image[0]) for image in images], None, [given[0]], name=None)
        return tuple(scene.images[-1] for scene in found)
    files = list_files(given)
    shared = len(set(truths.labels)) == 1  # then only the maps that the scenes were found by can tell them apart
    labelled = [
        SceneFiles(scene.name, scene.images or (Path(scene.name) if shared and scene.name else label,), label)
        for scene, label in _with_labels(truths)
    ]
    places = _paired(labelled, files, "scene" if truths.images else "label", pair, say, what)
    return tuple(files[place] for place in places)


def _require_no_pattern(name: str, what: str) -> None:
    if "{" in name and not Path(name).exists():
        raise ConfigError(f"the pattern {name!r} leads from a scene to its {what}; give the images as --scene")


def _with_labels(truths: Truths) -> list[tuple[SceneFiles, Location]]:
    return list(zip(truths.scenes, truths.labels, strict=True))


def _serves_all(files: Sequence[Location]) -> bool:
    """Whether there is one label, a layer of polygons, which holds those of any scene as it says where they lie."""
    return len(files) == 1 and is_vector(files[0])


def _paired(
    scenes: Sequence[SceneFiles], files: Sequence[Location], what: str, pair: PairBy, say: Say, partner: str = "label"
) -> tuple[int, ...]:
    found = pair_by_name([scene.images[0] for scene in scenes], files, (what, partner), pair)
    if found.note:
        say(found.note)
    return found.places


def list_files(given: Sequence[str]) -> list[Location]:
    """Files as they are named; the rasters of folders, globs and lists in order of their names."""
    found: list[Location] = []
    for name in given:
        location = locate(name)
        plural = name.startswith("@") or name.lower().endswith(".txt") or any(sign in name for sign in "*?[")
        if is_remote(name) or isinstance(location, str) or location.is_file() or not (plural or location.is_dir()):
            found.append(location)
        else:
            found += [scene.images[0] for scene in pattern_scenes([name], None, name=None)]
    return found
