"""Evaluation protocols as data: what is scored, over which classes the means go, on which scenes.

Figures made under different protocols are not comparable, so every result carries its protocol's id. Only what really
is a matter of erosion, averaged classes and scenes is here: `geoseg-legacy`, which also scores padding, is not.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rs_biformer.errors import ConfigError
from rs_biformer.schema import ClassSchema, preset_or_file


@dataclass(frozen=True)
class Protocol:
    """How labels are prepared and figures averaged.

    id: what every figure made by it carries.
    description: one sentence for reports.
    exclude: names of the classes left out of the means. They are still counted: as labels, as predictions, in the
        overall accuracy and in the confusion matrix.
    ignore_boundary: radius in pixels of the disc by which label boundaries are eroded; 0 for full labels. With
        erosion the figures on full labels are reported beside the eroded ones.
    scene_pattern: regular expression whose one group finds a scene's id in its name; empty when no split is official.
    train, test: official scene ids. A training scene is refused; missing and foreign scenes are noted in the result.

    Raises ConfigError when the parts cannot be meant.
    """

    id: str
    description: str = ""
    exclude: tuple[str, ...] = ()
    ignore_boundary: int = 0
    scene_pattern: str = ""
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.id:
            raise ConfigError("a protocol needs an id that its figures can carry")
        if not 0 <= self.ignore_boundary <= 255:
            raise ConfigError(
                f"protocol {self.id!r} has ignore_boundary {self.ignore_boundary}; it is a radius of 0 to 255 pixels"
            )
        if (self.train or self.test) and not self.scene_pattern:
            raise ConfigError(f"protocol {self.id!r} lists scenes; give scene_pattern, which finds their ids in names")
        try:
            groups = re.compile(self.scene_pattern).groups
        except re.error as error:
            raise ConfigError(
                f"protocol {self.id!r} has a scene_pattern that is no regular expression: {error}"
            ) from None
        if self.scene_pattern and groups != 1:
            raise ConfigError(f"protocol {self.id!r} has a scene_pattern with {groups} groups; it needs exactly one")
        both = set(self.train) & set(self.test)
        if both:
            raise ConfigError(f"protocol {self.id!r} has scene {sorted(both)[0]} in both train and test; keep one")

    def to_dict(self) -> dict[str, Any]:
        """The protocol as plain lists and strings: what a result file carries and a YAML file may hold."""
        return {
            field.name: list(value) if isinstance(value := getattr(self, field.name), tuple) else value
            for field in fields(self)
        }

    def averaged(self, schema: ClassSchema) -> tuple[int, ...]:
        """Indices of the classes that the means go over. Raises ConfigError for an excluded class that is unknown."""
        for name in self.exclude:
            if name not in schema.classes:
                raise ConfigError(
                    f"protocol {self.id!r} leaves {name!r} out of the means, which schema {schema.name!r} does not "
                    f"have; its classes are {', '.join(schema.classes)}. Use all-classes or a protocol of your own"
                )
        kept = tuple(index for index, name in enumerate(schema.classes) if name not in self.exclude)
        if not kept:
            raise ConfigError(f"protocol {self.id!r} leaves every class out of the means; keep at least one")
        return kept

    def scene_id(self, name: str) -> str | None:
        """The official id in a scene's name, or None."""
        found = re.search(self.scene_pattern, name) if self.scene_pattern else None
        return found.group(1) if found else None

    def check_scenes(self, names: Sequence[str]) -> tuple[str, ...]:
        """Notes on how the scenes differ from the official test split. Raises ConfigError for a training scene."""
        if not self.train and not self.test:
            return ()
        ids = {name: self.scene_id(name) for name in names}
        for name, scene in ids.items():
            if scene in self.train:
                raise ConfigError(
                    f"{name} is training scene {scene} of protocol {self.id!r}, whose figures are for its test scenes "
                    f"({' '.join(self.test)}); leave it out or use --protocol all-classes"
                )
        nameless = [name for name, scene in ids.items() if scene is None]
        foreign = [name for name, scene in ids.items() if scene is not None and scene not in self.test]
        missing = [scene for scene in self.test if scene not in ids.values()]
        notes = []
        if nameless or foreign:
            notes.append(f"not among the official test scenes: {', '.join(nameless + foreign)}")
        if missing:
            notes.append(
                f"{len(missing)} of {len(self.test)} official test scenes were not evaluated: {' '.join(missing)}"
            )
        return tuple(notes)


_AREA = r"area_?(\d+)"
_OFFICIAL_TRAIN = tuple("1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37".split())
_OFFICIAL_TEST = tuple("2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38".split())

PROTOCOLS: dict[str, Protocol] = {
    protocol.id: protocol
    for protocol in (
        Protocol("all-classes", "Full labels; means over all classes that occur."),
        Protocol(
            "isprs-official",
            "ISPRS Vaihingen, official split: boundaries eroded by a disc of radius 3, figures on full labels beside "
            "them; means over 5 classes, clutter reported apart.",
            exclude=("clutter",),
            ignore_boundary=3,
            scene_pattern=_AREA,
            train=_OFFICIAL_TRAIN,
            test=_OFFICIAL_TEST,
        ),
        Protocol(
            "ssrs-12-4",
            "ISPRS Vaihingen, the 12 and 4 scenes of the SSRS papers: boundaries eroded by a disc of radius 3; means "
            "over 5 classes without clutter.",
            exclude=("clutter",),
            ignore_boundary=3,
            scene_pattern=_AREA,
            train=tuple("1 3 23 26 7 11 13 28 17 32 34 37".split()),
            test=tuple("5 21 15 30".split()),
        ),
        Protocol(
            "mmseg-6class",
            "ISPRS Vaihingen, official split as in mmsegmentation: boundaries eroded by a disc of radius 3; means "
            "over 6 classes with clutter.",
            ignore_boundary=3,
            scene_pattern=_AREA,
            train=_OFFICIAL_TRAIN,
            test=_OFFICIAL_TEST,
        ),
    )
}


def load_protocol(name_or_path: str | Path) -> Protocol:
    """A built-in protocol by id, or one from a YAML file whose keys are Protocol's fields. Raises ConfigError."""
    return preset_or_file(name_or_path, PROTOCOLS, _from_dict, "protocol")


def _from_dict(data: Any) -> Protocol:
    if not isinstance(data, Mapping):
        raise ConfigError("a protocol is a mapping with the key id and, where needed, exclude, ignore_boundary, ...")
    known = [field.name for field in fields(Protocol)]
    for key in data:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"a protocol has no key {key!r}; allowed are {', '.join(known)}{hint}")
    for key in ("exclude", "train", "test"):
        if not isinstance(data.get(key, []), list):
            raise ConfigError(f"{key} of a protocol is {data[key]!r}; it must be a list")
    if type(data.get("ignore_boundary", 0)) is not int:
        raise ConfigError(f"ignore_boundary of a protocol is {data['ignore_boundary']!r}; it is whole pixels")
    return Protocol(
        id=str(data.get("id", "")),
        description=str(data.get("description", "")),
        exclude=tuple(str(name) for name in data.get("exclude", ())),
        ignore_boundary=data.get("ignore_boundary", 0),
        scene_pattern=str(data.get("scene_pattern", "")),
        train=tuple(str(scene) for scene in data.get("train", ())),
        test=tuple(str(scene) for scene in data.get("test", ())),
    )
