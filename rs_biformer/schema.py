"""Class schemas: what the classes are called, how they are drawn, and how labels spell them.

A label raster spells a class either as a colour (the ISPRS sets) or as a number (LoveDA). Everything else, the ignore
colours and numbers first, becomes IGNORE, which no statistic, loss or metric ever counts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from rs_biformer.documents import read_yaml
from rs_biformer.errors import ConfigError

IGNORE = 255
"""Class index of pixels that have no label; also the nodata value of class maps."""

Colour = tuple[int, int, int]
T = TypeVar("T")


@dataclass(frozen=True)
class ClassSchema:
    """Names, colours and label values of the classes, in the order of the class index.

    values: what an index label raster holds for each class; 0, 1, 2, ... unless told otherwise.
    ignore_colours, ignore_values: what unlabelled pixels look like; both may be empty.

    Raises ConfigError when the parts do not fit together.
    """

    name: str
    classes: tuple[str, ...]
    colours: tuple[Colour, ...]
    values: tuple[int, ...] = ()
    ignore_colours: tuple[Colour, ...] = ()
    ignore_values: tuple[int, ...] = field(default=(IGNORE,))

    def __post_init__(self) -> None:
        if not self.values:
            object.__setattr__(self, "values", tuple(range(len(self.classes))))
        where = f"class schema {self.name!r}"
        if not 1 <= len(self.classes) <= 254:
            raise ConfigError(f"{where} has {len(self.classes)} classes; it needs 1 to 254")
        if not len(self.classes) == len(self.colours) == len(self.values):
            raise ConfigError(
                f"{where} has {len(self.classes)} names, {len(self.colours)} colours and {len(self.values)} values; "
                "give each class one of each"
            )
        for what, items in (
            ("class name", self.classes),
            ("colour", self.colours + self.ignore_colours),
            ("label value", self.values + self.ignore_values),
        ):
            twice = {item for item in items if items.count(item) > 1}
            if twice:
                raise ConfigError(f"{where} uses a {what} twice: {sorted(twice)[0]}; each must be unique")
        for colour in self.colours + self.ignore_colours:
            if len(colour) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in colour):
                raise ConfigError(f"{where} has the colour {colour}; a colour is red, green, blue, each 0 to 255")

    def __len__(self) -> int:
        return len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """The schema as plain lists and strings: what a YAML file, an index or a checkpoint stores."""
        return {
            "name": self.name,
            "classes": [
                {"name": name, "colour": list(colour), "value": value}
                for name, colour, value in zip(self.classes, self.colours, self.values, strict=True)
            ],
            "ignore": {"colours": [list(c) for c in self.ignore_colours], "values": list(self.ignore_values)},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ClassSchema":
        """Build a schema from what `to_dict` gives. Raises ConfigError naming the part that is wrong."""
        if not isinstance(data, Mapping) or not isinstance(data.get("classes"), Sequence):
            raise ConfigError("a class schema needs the keys name and classes (a list of name and colour); see docs")
        _refuse_unknown(data, {"name", "classes", "ignore"}, "a class schema")
        entries, ignore = data["classes"], data.get("ignore") or {}
        _refuse_unknown(ignore, {"colours", "values"}, "ignore in a class schema")
        for number, entry in enumerate(entries):
            if not isinstance(entry, Mapping) or not {"name", "colour"} <= set(entry):
                raise ConfigError(f"class {number} of the schema is {entry!r}; it needs a name and a colour")
            _refuse_unknown(entry, {"name", "colour", "value"}, f"class {number} of the schema")
        return cls(
            name=str(data.get("name", "classes")),
            classes=tuple(str(entry["name"]) for entry in entries),
            colours=tuple(_colour(entry["colour"]) for entry in entries),
            values=tuple(int(entry.get("value", number)) for number, entry in enumerate(entries)),
            ignore_colours=tuple(_colour(colour) for colour in ignore.get("colours") or ()),
            ignore_values=tuple(int(value) for value in ignore.get("values", (IGNORE,)) or ()),
        )


def _colour(parts: Any) -> Colour:
    try:
        red, green, blue = (int(part) for part in parts)
    except (TypeError, ValueError):
        raise ConfigError(f"{parts!r} is no colour; write red, green, blue, each 0 to 255") from None
    return red, green, blue


def _refuse_unknown(data: Mapping[str, Any], allowed: set[str], where: str) -> None:
    for key in data:
        if key not in allowed:
            raise ConfigError(f"{where} has no key {key!r}; allowed are {', '.join(sorted(allowed))}")


_ISPRS_COLOURS: tuple[Colour, ...] = (
    (255, 255, 255),
    (0, 0, 255),
    (0, 255, 255),
    (0, 255, 0),
    (255, 255, 0),
    (255, 0, 0),
)
_ISPRS_CLASSES = ("impervious surface", "building", "low vegetation", "tree", "car", "clutter")

PRESETS: dict[str, ClassSchema] = {
    # ISPRS 2D Semantic Labeling Contest; black is the eroded boundary of the "noBoundary" ground truth.
    "vaihingen": ClassSchema("vaihingen", _ISPRS_CLASSES, _ISPRS_COLOURS, ignore_colours=((0, 0, 0),)),
    "potsdam": ClassSchema("potsdam", _ISPRS_CLASSES, _ISPRS_COLOURS, ignore_colours=((0, 0, 0),)),
    # LoveDA (Wang et al., NeurIPS Datasets and Benchmarks 2021): masks hold 1 to 7, and 0 where there is no data.
    "loveda": ClassSchema(
        "loveda",
        ("background", "building", "road", "water", "barren", "forest", "agriculture"),
        ((255, 255, 255), (255, 0, 0), (255, 255, 0), (0, 0, 255), (159, 129, 183), (0, 255, 0), (255, 195, 128)),
        values=(1, 2, 3, 4, 5, 6, 7),
        ignore_colours=((0, 0, 0),),
        ignore_values=(0, IGNORE),
    ),
}


def load_schema(name_or_path: str | Path) -> ClassSchema:
    """A preset by name, or a schema from a YAML file. Raises ConfigError that names the presets and nearest match."""
    return preset_or_file(name_or_path, PRESETS, ClassSchema.from_dict, "class schema")


def preset_or_file(name_or_path: str | Path, presets: Mapping[str, T], build: Callable[[Any], T], what: str) -> T:
    """What `presets` has under a name, or what `build` makes of a YAML file. Raises ConfigError naming the file."""
    text = str(name_or_path)
    if text in presets:
        return presets[text]
    path = Path(text)
    if not path.is_file():
        near = get_close_matches(text, presets, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"no {what} {text!r}: use {', '.join(presets)} or the path of a YAML file{hint}")
    try:
        return build(read_yaml(path))
    except ConfigError as error:
        raise ConfigError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
