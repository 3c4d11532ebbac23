"""Evaluation protocols as data: what is scored, over which classes the means go, on which scenes.

Figures made under different protocols are not comparable, so every result carries its protocol's id and definition.
`geoseg-legacy` reproduces a flawed scoring on purpose, so that the size of its effect can be shown.
"""

import re
import re._parser as _sre  # Python has no public parser of patterns, and no limit of their time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from rs_biformer.documents import Listed, Name, Text, build
from rs_biformer.errors import ConfigError
from rs_biformer.evaluation.confusion import Confusion
from rs_biformer.schema import ClassSchema, preset_or_file

EXCLUDED_LABELS = ("count", "ignore")
_MOST_PIXELS = 1 << 16
_Maybe = Annotated[Text, Field(max_length=200)]
_MOST_REPEATS, _MOST_OPTIONAL = 3, 8
_LONGEST_PATTERN, _LONGEST_NAME = 500, 255


@dataclass(frozen=True)
class Protocol:
    """How labels are prepared, what is counted, and how figures are averaged. The keys of a YAML file are these.

    id: what every figure made by it carries.
    description: one sentence for reports.
    exclude: names of the classes left out of the means.
    excluded_labels: what the pixels labelled as an excluded class count for. "count": they stay in the confusion
        matrix and in the overall accuracy like any other; "ignore": they are not evaluated, as if they had no label.
        A prediction of an excluded class is an error where the label is another one, in both cases.
    ignore_boundary: radius in pixels of the disc by which label boundaries are eroded; 0 for full labels. With
        erosion the figures on full labels are reported beside the eroded ones.
    pad_to, pad_class: where pad_to is not 0, the height and width of a scene are rounded up to multiples of it and the
        pixels thus added, which no scene has, are scored as `pad_class`, each of them right. 0: padding never counts.
    window, overlap: how maps are stitched: predicted by windows of so many pixels that share this part of their side
        with the next. Obeyed by `evaluate --checkpoint`; a map that says it was made otherwise gets a note. 0 pixels:
        as the model's own options say.
    scene_pattern: regular expression whose one group finds a scene's id in its name; empty when no split is official.
    train, test: official scene ids. A training scene is refused; missing and foreign scenes are noted in the result.
    cautions: what every report of these figures has to say about them.

    Raises ConfigError when the parts cannot be meant.
    """

    id: Name
    description: Text = ""
    exclude: Listed[Name] = ()
    excluded_labels: Name = "count"
    ignore_boundary: int = 0
    pad_to: int = 0
    pad_class: _Maybe = ""
    window: int = 0
    overlap: float = 0.0
    scene_pattern: Text = ""
    train: Listed[Name] = ()
    test: Listed[Name] = ()
    cautions: Listed[Text] = ()

    def __post_init__(self) -> None:
        if not self.id:
            raise ConfigError("a protocol needs an id that its figures can carry")
        where = f"protocol {self.id!r}"
        if not 0 <= self.ignore_boundary <= 255:
            raise ConfigError(f"{where} has ignore_boundary {self.ignore_boundary}; it is a radius of 0 to 255 pixels")
        if self.excluded_labels not in EXCLUDED_LABELS:
            raise ConfigError(
                f"{where} has excluded_labels {self.excluded_labels!r}; use {' or '.join(EXCLUDED_LABELS)}"
            )
        if not 0 <= self.pad_to <= _MOST_PIXELS or bool(self.pad_to) != bool(self.pad_class):
            raise ConfigError(
                f"{where} has pad_to {self.pad_to} and pad_class {self.pad_class!r}; give both, a size in pixels and "
                "the class that padding is scored as, or neither"
            )
        if not 0 <= self.window <= _MOST_PIXELS or not 0 <= self.overlap < 1:
            raise ConfigError(
                f"{where} has window {self.window} and overlap {self.overlap}; a window is whole pixels, 0 for any, "
                "an overlap a share from 0 to below 1"
            )
        self._check_split()

    def _check_split(self) -> None:
        if (self.train or self.test) and not self.scene_pattern:
            raise ConfigError(f"protocol {self.id!r} lists scenes; give scene_pattern, which finds their ids in names")
        try:
            groups = _require_quick(self.scene_pattern).groups
        except (re.error, RecursionError, OverflowError) as error:
            raise ConfigError(
                f"protocol {self.id!r} has a scene_pattern that is no regular expression: {error}"
            ) from None
        except ValueError as error:
            raise ConfigError(f"protocol {self.id!r} has a scene_pattern with {error}") from None
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
        """Indices of the classes that the means go over.

        Raises ConfigError for a class that the protocol names and the schema lacks, and when none is left.
        """
        for name in (*self.exclude, *([self.pad_class] if self.pad_class else [])):
            if name not in schema.classes:
                raise ConfigError(
                    f"protocol {self.id!r} names the class {name!r}, which schema {schema.name!r} does not have; its "
                    f"classes are {', '.join(schema.classes)}. Use all-classes or a protocol of your own"
                )
        kept = tuple(index for index, name in enumerate(schema.classes) if name not in self.exclude)
        if not kept:
            raise ConfigError(f"protocol {self.id!r} leaves every class out of the means; keep at least one")
        return kept

    def apply(self, counts: Confusion, schema: ClassSchema, height: int, width: int) -> Confusion:
        """What the protocol makes of the counts of a scene's blocks, a stack (N, K, K).

        Labels of excluded classes are dropped where they are to be ignored. Scored padding becomes one more block.
        """
        if self.exclude and self.excluded_labels == "ignore":
            gone = [schema.classes.index(name) for name in self.exclude]
            matrix, unpredicted = counts.matrix.copy(), counts.unpredicted.copy()
            dropped = int(matrix[:, gone].sum() + unpredicted[:, gone].sum())
            matrix[:, gone], unpredicted[:, gone] = 0, 0
            counts = replace(counts, matrix=matrix, unpredicted=unpredicted, ignored=counts.ignored + dropped)
        if self.pad_to:
            added = padding(height, width, self.pad_to)
            block = np.zeros_like(counts.matrix[:1])
            block[0, schema.classes.index(self.pad_class), schema.classes.index(self.pad_class)] = added
            counts = replace(
                counts,
                matrix=np.concatenate([counts.matrix, block]),
                unpredicted=np.concatenate([counts.unpredicted, block[:, 0] * 0]),
                padded=counts.padded + added,
            )
        return counts

    def scene_id(self, name: str) -> str | None:
        """The official id in a scene's name, or None."""
        found = re.search(self.scene_pattern, name[:_LONGEST_NAME]) if self.scene_pattern else None
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


def _require_quick(pattern: str) -> re.Pattern[str]:
    """The compiled pattern. Raises ValueError for one that may take years on a name: repeats of repeats, or many."""
    if len(pattern) > _LONGEST_PATTERN:
        raise ValueError(f"{len(pattern)} characters; {_LONGEST_PATTERN} are allowed")
    compiled = re.compile(pattern)
    repeats = list(_repeats(_sre.parse(pattern)))
    if any(nested for _, nested in repeats):
        raise ValueError("a repeat in a repeat, which may take years on a name; write it plainer")
    if sum(many for many, _ in repeats) > _MOST_REPEATS or len(repeats) > _MOST_OPTIONAL:
        raise ValueError(f"more than {_MOST_REPEATS} of * and +, which may take years on a name; write it plainer")
    return compiled


def _repeats(parsed: Any, inside: bool = False) -> Iterator[tuple[bool, bool]]:
    """For each repeat of no fixed number in a parsed pattern, whether it is more than `?`, and lies in another."""
    for code, argument in parsed:
        repeat = str(code).endswith("REPEAT") and argument[0] != argument[1]
        if repeat:
            yield argument[1] > 1, inside and argument[1] > 1
        for part in argument if isinstance(argument, tuple | list) else [argument]:
            for sub in part if isinstance(part, list) else [part]:
                if isinstance(sub, _sre.SubPattern):
                    yield from _repeats(sub, inside or (repeat and argument[1] > 1))


def padding(height: int, width: int, multiple: int) -> int:
    """Pixels added to a scene when both of its sides are rounded up to a multiple."""
    return -(-height // multiple) * multiple * -(-width // multiple) * multiple - height * width


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
        # What tools/vaihingen_patch_split.py of GeoSeg 2.0 makes of the test scenes: padded at the right and bottom to
        # multiples of 1024 with a colour that no class has, which its decoding leaves at class 0. Its test script
        # counts clutter in the accuracy and leaves it out of the means.
        Protocol(
            "geoseg-legacy",
            "ISPRS Vaihingen as GeoSeg scores it: tiles of 1024 pixels without overlap, boundaries eroded by a disc of "
            "radius 3, padding scored as impervious surface; means over 5 classes.",
            exclude=("clutter",),
            ignore_boundary=3,
            pad_to=1024,
            pad_class="impervious surface",
            window=1024,
            overlap=0.0,
            scene_pattern=_AREA,
            train=_OFFICIAL_TRAIN,
            test=_OFFICIAL_TEST,
            cautions=(
                "padding that is in no scene is scored, every pixel of it as right: with a share p of padding among "
                "the scored pixels the overall accuracy is OA (1 - p) + p",
                "published figures of this protocol are of checkpoints chosen on the test scenes",
            ),
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
            "ISPRS Vaihingen, official split as in mmsegmentation: boundaries eroded by a disc of radius 3, in "
            "training too; means over 6 classes with clutter.",
            ignore_boundary=3,
            scene_pattern=_AREA,
            train=_OFFICIAL_TRAIN,
            test=_OFFICIAL_TEST,
        ),
    )
}


def load_protocol(name_or_path: str | Path) -> Protocol:
    """A built-in protocol by id, or one from a YAML file whose keys are Protocol's fields. Raises ConfigError."""
    return preset_or_file(name_or_path, PROTOCOLS, protocol_from_dict, "protocol")


def protocol_from_dict(data: Any) -> Protocol:
    """A protocol from what `Protocol.to_dict` gives. Raises ConfigError naming the key that is wrong."""
    return build(Protocol, data, "protocol")
