"""Class schemas: what the classes are called, how they are drawn, and how labels spell them.

A label raster spells a class either as a colour (the ISPRS sets) or as a number (LoveDA); polygons spell it as the
text or number of an attribute. Several colours, numbers and words may mean one class; the first is the one that is
written. Everything else, the ignore colours and values first, becomes IGNORE, which no statistic, loss or metric ever
counts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field

from rs_biformer.documents import Document, Listed, Name, build, read_yaml
from rs_biformer.errors import ConfigError

IGNORE = 255
"""Class index of pixels that have no label; also the nodata value of class maps."""

Colour = tuple[int, int, int]
T = TypeVar("T")


@dataclass(frozen=True)
class ClassSchema:
    """Names, colours and label values of the classes, in the order of the class index.

    colours: how the classes are drawn, and how a coloured label spells them.
    values: what an index label raster holds for each class; 0, 1, 2, ... unless told otherwise.
    ignore_colours, ignore_values: what unlabelled pixels look like; both may be empty. A class that has the value 255
        keeps it: the default of `ignore_values` gives way.
    further_colours, further_values: for each class what else means it, numbers or (for attributes of polygons) words;
        empty where no class has any.
    ignore_names: what attributes of polygons hold that are to be ignored.
    outside: the class of what no polygon covers; None where it is ignored.

    Raises ConfigError when the parts do not fit together.
    """

    name: str
    classes: tuple[str, ...]
    colours: tuple[Colour, ...]
    values: tuple[int, ...] = ()
    ignore_colours: tuple[Colour, ...] = ()
    ignore_values: tuple[int, ...] = field(default=(IGNORE,))
    further_colours: tuple[tuple[Colour, ...], ...] = ()
    further_values: tuple[tuple[int | str, ...], ...] = ()
    ignore_names: tuple[str, ...] = ()
    outside: str | None = None

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
        if {len(self.further_colours), len(self.further_values)} - {0, len(self.classes)}:
            raise ConfigError(f"{where} must say for each class, or for none, which further colours and values mean it")
        if self.ignore_values == (IGNORE,) and any(value == IGNORE for value, _ in self.class_values()):
            object.__setattr__(self, "ignore_values", ())
        self._check_spellings(where)
        if self.outside is not None and self.outside not in self.classes:
            raise ConfigError(
                f"{where} has no class {self.outside!r} for what lies outside of all polygons; write outside: ignore, "
                f"or one of {', '.join(self.classes)}"
            )

    def _check_spellings(self, where: str) -> None:
        for what, items in (
            ("class name", self.classes),
            ("colour", (*(colour for colour, _ in self.class_colours()), *self.ignore_colours)),
            ("label value", (*(value for value, _ in self.class_values()), *self.ignore_values, *self.ignore_names)),
        ):
            if (twice := _first_twice(items)) is not None:
                raise ConfigError(f"{where} uses a {what} twice: {twice}; each must be unique")
        for word, index in self.class_values():
            if word in self.classes and word != self.classes[index]:
                raise ConfigError(f"{where} gives {self.classes[index]!r} the value {word!r}, which is another class")
        for colour in (*(colour for colour, _ in self.class_colours()), *self.ignore_colours):
            if len(colour) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in colour):
                raise ConfigError(f"{where} has the colour {colour}; a colour is red, green, blue, each 0 to 255")

    def __len__(self) -> int:
        return len(self.classes)

    def class_colours(self) -> Iterator[tuple[Colour, int]]:
        """Each colour that means a class, with the class index; all first colours come first.

        >>> dict(ClassSchema("two", ("road", "roof"), ((9, 9, 9), (255, 0, 0))).class_colours())
        {(9, 9, 9): 0, (255, 0, 0): 1}
        """
        yield from zip(self.colours, range(len(self)), strict=True)
        for index, colours in enumerate(self.further_colours):
            yield from ((colour, index) for colour in colours)

    def class_values(self) -> Iterator[tuple[int | str, int]]:
        """Each number or word that means a class, with the class index; all first values come first."""
        yield from zip(self.values, range(len(self)), strict=True)
        for index, values in enumerate(self.further_values):
            yield from ((value, index) for value in values)

    def class_numbers(self) -> dict[int, int]:
        """The class index of each number that a label raster may hold.

        >>> PRESETS["loveda"].class_numbers()
        {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6}
        """
        return {value: index for value, index in self.class_values() if isinstance(value, int)}

    def plainly_numbered(self) -> "ClassSchema":
        """The same classes, spelt by their index alone: what class maps and chips hold."""
        return ClassSchema(self.name, self.classes, self.colours, ignore_colours=self.ignore_colours)

    def to_dict(self) -> dict[str, Any]:
        """The schema as plain lists and strings: what a YAML file, an index or a checkpoint stores."""
        ignore: dict[str, Any] = {
            "colours": [list(c) for c in self.ignore_colours],
            "values": list(self.ignore_values),
        }
        if self.ignore_names:
            ignore["names"] = list(self.ignore_names)
        data = {"name": self.name, "classes": [self._entry(index) for index in range(len(self))], "ignore": ignore}
        return data if self.outside is None else {**data, "outside": self.outside}

    def _entry(self, index: int) -> dict[str, Any]:
        colours = self.further_colours[index] if self.further_colours else ()
        values = self.further_values[index] if self.further_values else ()
        colour = list(self.colours[index])
        return {
            "name": self.classes[index],
            **({"colours": [colour, *map(list, colours)]} if colours else {"colour": colour}),
            "value": [self.values[index], *values] if values else self.values[index],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ClassSchema":
        """Build a schema from what `to_dict` gives. Raises ConfigError naming the part that is wrong.

        >>> entry = {"name": "wood", "colour": [0, 128, 0], "value": [10, "forest"]}
        >>> wood = ClassSchema.from_dict({"classes": [entry]})
        >>> wood.values, wood.further_values, wood.ignore_values
        ((10,), (('forest',),), (255,))
        """
        written: _Written = build(_Written, data, "class schema")
        ignore = written.ignore or _Ignore()
        colours = [_colours_of(number, entry) for number, entry in enumerate(written.classes)]
        values = [_values_of(number, entry) for number, entry in enumerate(written.classes)]
        further_colours, further_values = (tuple(tuple(item[1:]) for item in part) for part in (colours, values))
        schema = cls(
            name=written.name,
            classes=tuple(entry.name for entry in written.classes),
            colours=tuple(part[0] for part in colours),
            values=tuple(part[0] for part in values),
            ignore_colours=tuple(map(_colour, ignore.colours)),
            ignore_values=ignore.values if "values" in ignore.model_fields_set else (IGNORE,),
            further_colours=further_colours if any(further_colours) else (),
            further_values=further_values if any(further_values) else (),
            ignore_names=ignore.names,
            outside=None if written.outside == "ignore" else written.outside,
        )
        if "values" in ignore.model_fields_set and schema.ignore_values != ignore.values:
            raise ConfigError(
                f"class schema {schema.name!r} uses a label value twice: {IGNORE} is a class and stands under "
                "ignore.values; remove it there (write values: [] where nothing is ignored)"
            )
        return schema


def _first_twice(items: Sequence[Any]) -> Any:
    seen = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    return None


def _whole(value: Any) -> Any:
    """A whole number, as JSON and spreadsheets may spell it: 3, 3.0 or "3"; everything else is left as it is."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, str) and len(value) < 19 and value.isascii() and value.removeprefix("-").isdigit():
        return int(value)
    return value


_Part = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=255)]
_Colour = Annotated[Listed[_Part], Field(min_length=3, max_length=3)]
_Number = Annotated[int, BeforeValidator(_whole)]


class _Class(Document):
    """A class as a file has it; `value` is checked apart, as it may be a number or a list."""

    name: Name
    colour: _Colour = ()
    colours: Listed[_Colour] = ()
    value: Any = None


_MayBeNull = BeforeValidator(lambda value: () if value is None else value)


class _Ignore(Document):
    colours: Annotated[Listed[_Colour], _MayBeNull] = ()
    values: Annotated[Listed[_Number], _MayBeNull] = ()
    names: Annotated[Listed[Name], _MayBeNull] = ()


class _Written(Document):
    name: Name = "classes"
    classes: Annotated[Listed[_Class], Field(min_length=1, max_length=254)]
    ignore: _Ignore | None = None
    outside: Name = "ignore"


def _colours_of(number: int, entry: _Class) -> tuple[Colour, ...]:
    colours = (*([entry.colour] if entry.colour else []), *entry.colours)
    if not colours:
        raise ConfigError(f"classes[{number}] ({entry.name}) has no colour; write colour: [red, green, blue]")
    return tuple(map(_colour, colours))


def _colour(parts: tuple[int, ...]) -> Colour:
    red, green, blue = parts
    return red, green, blue


def _values_of(number: int, entry: _Class) -> tuple[Any, ...]:
    """What a label holds for a class, the number that is written first."""
    if "value" not in entry.model_fields_set:
        return (number,)
    listed = entry.value if isinstance(entry.value, list | tuple) else [entry.value]
    values = [_whole(value) for value in listed]
    numbers = [value for value in values if type(value) is int]
    words = [value for value in values if type(value) is str and value]
    if not numbers or len(numbers) + len(words) < len(values):
        got = "null" if entry.value is None else repr(entry.value)
        word = next((value for value in words), entry.name)
        raise ConfigError(
            f"classes[{number}].value ({entry.name}) is {got[:60]}; it must be a whole number, or a list that has one: "
            f"[21, 22], or with words that an attribute of polygons holds, [{word[:30]}, {number}]"
        )
    return (numbers[0], *(value for value in values if value is not numbers[0]))


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
        raise ConfigError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
