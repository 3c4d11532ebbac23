"""Documents that come from disk: read safely, checked once, refused in one line. The only place that parses any.

A document is YAML or JSON text, or plain values out of another container (a checkpoint, a Parquet file, ONNX metadata).
It is data: nothing in it is imported, called or looked up in the environment. Two steps make an object of it:

1. `read_yaml`, `read_json`, `parse_yaml`, `parse_json` and `plain` give plain values (mappings with text or whole
   numbers as keys, lists, text, numbers, truth values, None) within limits of size, depth and number. YAML has the
   types of JSON, spelt as YAML 1.2's core schema has them: no tags, no dates, `no` is text, 012 too. A key that occurs
   twice, lone surrogates and numbers beyond 64 bits are refused.
2. `build` fits plain values to a type: a `Document` (pydantic's models, made strict) or a dataclass. Its errors name
   the file, the key, what was got and what is allowed.
"""

import json
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from functools import lru_cache
from os import PathLike
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, TypeVar, get_type_hints

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    PlainValidator,
    Strict,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from rs_biformer.errors import ConfigError, RsBiformerError

MAX_YAML = 1 << 20
"""Bytes of YAML, which people write by hand."""
MAX_JSON = 256 << 20
"""Bytes of JSON."""
MAX_VALUES = 1 << 21
"""Values in a document, those that YAML's aliases repeat counted every time."""
MAX_DEPTH = 32
"""How deep lists and mappings may lie in each other."""
_LARGEST = 1 << 63
"""Whole numbers reach from minus this to below it: 64 bits."""

STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
"""How documents are checked: no value is converted, no key ignored, no number infinite."""

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


class Document(BaseModel):
    """What a document holds, as a pydantic model: strict, frozen, finite; a key that it does not know is refused."""

    model_config = STRICT

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and cls.model_config.get("extra") == "forbid":
            known = [field.alias or name for name, field in cls.model_fields.items()]
            if unknown := [key for key in data if key not in known]:
                raise PydanticCustomError("unknown_key", "{problem}", {"problem": _unknown(unknown[0], known)})
        return data


class Part(Document):
    """A part of what programs write: keys that this version does not know, or has no use for, are left aside."""

    model_config = STRICT | ConfigDict(extra="ignore")


def require_format(found: Any, newest: int, where: str) -> int:
    """The format number of a file, 0 where it has none.

    A format's number rises when an older version would misread the file, and only then; other keys may come without
    it, see `known_part`. Raises ConfigError, beginning with `where`, for a number that this version does not know.
    """
    if found is None:
        return 0
    if type(found) is not int or found < 0:
        raise ConfigError(f"{where} has the format {shown(found)}; a format is a whole number from 0 to {newest}")
    if found > newest:
        raise ConfigError(f"{where} has format {found} and this version knows up to {newest}: update rs_biformer")
    return found


def known_part(kind: type[Any], data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keys that a dataclass has, out of a file of a format that is known; a note names those left aside."""
    return known_parts(kind, [data], where)[0]


def known_parts(kind: type[Any], parts: Sequence[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
    """The same of several, with one note for all."""
    known = {field.name for field in fields(kind)}
    if unknown := list(dict.fromkeys(key for part in parts for key in part if key not in known)):
        names = ", ".join(map(shown, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        _LOG.warning("%s: left aside what this version does not know: %s", where, names)
    return [{key: value for key, value in part.items() if key in known} for part in parts]


def _number_as_text(value: Any) -> Any:
    """A whole number where text is meant: `train: [1, 3]`. Others do not come back as they were written."""
    return str(value) if type(value) is int else value


def _printable(text: str) -> str:
    """Refuse what no file of ours may pass on: XML cannot hold it, or a terminal obeys it."""
    for sign in text:
        if unicodedata.category(sign) == "Cc" or sign in "\u2028\u2029\ufffe\uffff":
            raise PydanticCustomError(
                "control_character", "it must not have the control character {sign}", {"sign": ascii(sign)}
            )
    return text


def _printable_lines(text: str) -> str:
    _printable(text.replace("\n", " ").replace("\t", " "))
    return text


Text = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_printable_lines)]
"""Words, perhaps in lines; a whole number is taken for its digits."""
Name = Annotated[str, Field(min_length=1, max_length=200), BeforeValidator(_number_as_text), AfterValidator(_printable)]
"""One line that is not empty; a whole number is taken for its digits."""


class _Briefly(FailFast):
    """Stop at the first wrong item. With a hash, so that the types made of it can be kept."""

    __hash__ = object.__hash__


Listed = Annotated[tuple[T, ...], Strict(False), _Briefly()]
"""A list in the document, a tuple in the object: `Listed[int]`."""
Count = Annotated[int, Field(ge=0)]
"""How many."""


def made_by(kind: type[Any], make: Callable[[Any], Any]) -> PlainValidator:
    """For a field whose object has a form of its own in documents, which `make` takes; it checks what it gets."""
    return PlainValidator(lambda value: value if isinstance(value, kind) else make(value))


def build(kind: type[T] | Any, data: Any, where: str, error: type[RsBiformerError] = ConfigError) -> T:
    """An object of a type from plain values.

    kind: a Document, a dataclass (its fields are the keys), or any type that pydantic understands.
    where: begins the message, for instance the path of the file.

    Raises `error` in one line that names the key, what was got and what is allowed.
    """
    try:
        if isinstance(kind, type) and is_dataclass(kind):
            result: T = _of_dataclass(kind, data)
        else:
            result = _adapter(kind).validate_python(data)
    except ValidationError as found:
        raise error(f"{where}: {_problems(found, data)}") from None
    except RsBiformerError as found:  # from the object's own checks
        raise error(f"{where}: {found}") from None
    return result


def _of_dataclass(kind: Any, data: Any) -> Any:
    """By its own constructor, so that its own checks are made too."""
    fitted = _model_of(kind).model_validate(data)
    return kind(**{name: getattr(fitted, f"value_{name}") for name in kind.__dataclass_fields__})


@lru_cache
def _model_of(kind: Any) -> type[Document]:
    """The document whose keys are the fields of a dataclass: pydantic takes none from a mapping when it is strict."""
    hints = get_type_hints(kind, include_extras=True)
    keys: dict[str, Any] = {}
    for item in fields(kind):
        default: dict[str, Any] = {}
        if item.default is not MISSING:
            default = {"default": item.default}
        elif item.default_factory is not MISSING:
            default = {"default_factory": item.default_factory}
        keys[f"value_{item.name}"] = (hints[item.name], Field(alias=item.name, **default))
    return create_model(kind.__name__, __base__=Document, **keys)


def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return _kept_adapter(kind)
    except TypeError:  # an annotation without a hash, as FailFast is in some versions of pydantic
        return TypeAdapter(kind)


@lru_cache
def _kept_adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _problems(found: ValidationError, data: Any) -> str:
    details = found.errors(include_url=False)
    first = _held(details[0], data)
    alike = [item for item in details if _held(item, data) == first]
    more = len({_held(item, data) for item in details}) - 1
    return _problem(first, alike) + (f" (and {more} more)" if more else "")


def _problem(place: tuple[int | str, ...], details: list[ErrorDetails]) -> str:
    """What is wrong at a place. details: one, or one for each of the types that the value may have."""
    key, detail = _key(place), details[0]
    if detail["type"] == "unknown_key":
        return f"{key} {detail['msg']}" if key else f"it {detail['msg']}"
    if detail["type"] == "missing":
        return f"{key} is missing"
    messages = list(dict.fromkeys(_in_words(item["msg"]) for item in details))
    more = [message.removeprefix("it should be ") for message in messages[1:]]
    return f"{key or 'it'} is {shown(detail['input'])}; {' or '.join([messages[0], *more])}"


def _in_words(message: str) -> str:
    message = message.partition(" or instance of ")[0]
    for theirs, ours in _WORDS:
        message = message.replace(theirs, ours)
    return message[:1].lower() + message[1:]


def _held(detail: ErrorDetails, data: Any) -> tuple[int | str, ...]:
    """Where in the data an error is; pydantic adds which of several types it has tried."""
    held: list[int | str] = []
    for part in detail["loc"]:
        try:
            data = data[part]
        except (LookupError, TypeError):
            if detail["type"] == "missing" and part == detail["loc"][-1]:
                held.append(part)
            continue
        held.append(part)
    return tuple(held)


# pydantic speaks of Python's types; who reads a message has a file before him.
_WORDS = (
    ("Input should", "it should"),
    ("valid dictionary", "mapping"),
    ("valid tuple", "list"),
    ("valid list", "list"),
    ("a valid string", "text"),
    ("be a valid boolean", "be true or false"),
    ("a valid integer", "a whole number"),
    ("valid number", "number"),
    ("Value error, ", ""),
)


def _unknown(key: Any, known: list[str]) -> str:
    near = get_close_matches(str(key)[:60], known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"has no key {shown(key)}; allowed are {', '.join(known)}{hint}"


def _key(place: tuple[int | str, ...]) -> str:
    """classes[2].colour, as people write it."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{_SHORT.repr(part)[1:-1]}" for part in place]
    return "".join(parts).removeprefix(".")


_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring, _SHORT.maxother = 2, 4, 4, 60, 60


def shown(value: Any) -> str:
    """A value for a message: short, in one line, without control characters."""
    return "null" if value is None else _SHORT.repr(value)


def read_yaml(path: str | PathLike[str]) -> Any:
    """The plain values of a YAML file. Raises ConfigError, naming the file, where it is none or beyond the limits."""
    return parse_yaml(read_bytes(path, MAX_YAML), str(path))


def read_json(path: str | PathLike[str], *, limit: int = MAX_JSON, values: int = MAX_VALUES) -> Any:
    """The plain values of a JSON file of `limit` bytes and so many `values` at most. Raises ConfigError."""
    return parse_json(read_bytes(path, limit), str(path), values=values)


def read_bytes(path: str | PathLike[str], limit: int) -> bytes:
    """The content of a regular file. Raises ConfigError where it cannot be read or is larger than `limit` bytes."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is no file; give the path of one")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > limit:
        raise ConfigError(f"{path} has more than {limit:,} bytes, the most that such a file may have")
    return content


def parse_json(text: bytes | str, where: str, *, values: int = MAX_VALUES) -> Any:
    """The plain values of a JSON text. Raises ConfigError beginning with `where`."""
    decoded = _decoded(text, where)
    # Each value is followed by one of these or begins with it, so memory is bounded before any is made.
    if sum(map(decoded.count, ",[{")) > values:
        raise ConfigError(f"{where} holds more than {values:,} values, the most that such a document may have")
    try:
        data = json.loads(decoded, object_pairs_hook=_pairs, parse_int=_whole)
    except RecursionError:
        raise ConfigError(f"{where} is nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:
        raise ConfigError(f"{where} is no valid JSON: {_one_line(error)}") from None
    return plain(data, where, values=values)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _require_unique(name for name, _ in pairs)
    return dict(pairs)


def _require_unique(keys: Iterable[Any]) -> None:
    seen = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"the key {shown(key)} occurs twice")
        seen.add(key)


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -_LARGEST <= int(digits) < _LARGEST:
        raise ValueError(f"the number {digits[:20]}... is beyond 64 bits")
    return int(digits)


def _decoded(text: bytes | str, where: str) -> str:
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is no text in UTF-8: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(ascii(str(error))[1:-1].replace("\\n", " ").split())[:200]


def plain(data: Any, where: str, *, values: int = MAX_VALUES) -> Any:
    """The same values, if they are plain and within the limits. Raises ConfigError beginning with `where`.

    For what does not come out of `parse_json` and `parse_yaml`, such as the mapping in a checkpoint.
    """
    pending, count = [(data, 0)], 0
    while pending:
        value, depth = pending.pop()
        if problem := _not_plain(value):
            raise ConfigError(f"{where} holds {problem}")
        if isinstance(value, dict | list | tuple):
            count += len(value) * (1 + isinstance(value, dict))
            if count > values:  # before they are looked at: a list of lists may be the same one a million times
                raise ConfigError(f"{where} holds more than {values:,} values, the most that such a document may have")
            if depth >= MAX_DEPTH:
                raise ConfigError(f"{where} is nested more than {MAX_DEPTH} deep")
            pending.extend((item, depth + 1) for item in _items(value))
    return data


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value


def _not_plain(value: Any) -> str:
    """What is wrong with a single value, or nothing."""
    if type(value) is int and not -_LARGEST <= value < _LARGEST:
        return "a whole number beyond 64 bits"
    if type(value) is str and not value.isascii() and _SURROGATE.search(value):
        return f"the text {shown(value)}, which is no Unicode (a lone surrogate)"
    if type(value) is str and "\0" in value:
        return f"the text {shown(value)} with a zero byte, which no name of a file, class or band has"
    if isinstance(value, dict) and not all(type(key) in (str, int) for key in value):
        return f"the key {shown(next(key for key in value if type(key) not in (str, int)))}; a key is text"
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, dict | list | tuple):
        return ""
    return f"a {type(value).__name__}; plain values are text, numbers, lists and mappings"


_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_yaml(text: bytes | str, where: str) -> Any:
    """The plain values of a YAML text, of one document; None of an empty one. Raises ConfigError.

    Built from the parser's events instead of PyYAML's constructors, which follow tags, dates, merge keys and aliases
    wherever they lead.
    """
    composer = _Composer()
    try:
        for event in yaml.parse(_decoded(text, where), Loader=_LOADER):
            composer.take(event)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is no valid YAML: {_one_line(error)}") from None
    except ValueError as error:
        raise ConfigError(f"{where}, line {composer.line}: {_one_line(error)}") from None
    return plain(composer.result, where)


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Composer:
    """Plain values from YAML events, without recursion. Raises ValueError for what a document must not have."""

    def __init__(self) -> None:
        self.result: Any = None
        self.line = 0
        self._documents = 0
        self._open: list[tuple[Any, list[Any], str | None]] = []  # container, its items so far, its anchor
        self._known: dict[str, Any] = {}

    def take(self, event: yaml.Event) -> None:
        """The next event."""
        self.line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise ValueError("a second document begins here; a file holds one")
        elif isinstance(event, yaml.ScalarEvent):
            self._add(_scalar(event), event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._known:
                raise ValueError(f"*{event.anchor} stands for nothing, or for itself")
            self._add(self._known[event.anchor], None)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._begin(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            container, items, anchor = self._open.pop()
            self._add(_filled(container, items), anchor)

    def _begin(self, event: yaml.CollectionStartEvent) -> None:
        _require_no_tag(event)
        if len(self._open) >= MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        self._open.append(({} if isinstance(event, yaml.MappingStartEvent) else [], [], event.anchor))

    def _add(self, value: Any, anchor: str | None) -> None:
        if anchor is not None:
            self._known[anchor] = value
        if self._open:
            self._open[-1][1].append(value)
        else:
            self.result = value


def _filled(container: Any, items: list[Any]) -> Any:
    if isinstance(container, list):
        return items
    keys = items[::2]
    for key in keys:
        if type(key) not in (str, int):
            raise ValueError(f"the key {shown(key)} is no text")
    _require_unique(keys)
    return dict(zip(keys, items[1::2], strict=True))


def _require_no_tag(event: yaml.NodeEvent) -> None:
    tag: str | None = getattr(event, "tag", None)
    if tag is not None:
        raise ValueError(f"the tag {tag[:60]} is not allowed; a document holds plain values only")


_NULL, _TRUE, _FALSE = {"", "~", "null", "Null", "NULL"}, {"true", "True", "TRUE"}, {"false", "False", "FALSE"}
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]{1,16}|0o[0-7]{1,21}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


def _scalar(event: yaml.ScalarEvent) -> Any:
    """A scalar by YAML 1.2's core schema. "012" is text: neither 12 nor, as in YAML 1.1, 10."""
    _require_no_tag(event)
    text = event.value
    if not event.implicit[0]:  # in quotes, or a block of text
        return text
    for spellings, value in ((_NULL, None), (_TRUE, True), (_FALSE, False)):
        if text in spellings:
            return value
    if _INTEGER.fullmatch(text):
        return int(text, 0) if text.startswith(("0x", "0o")) else _whole(text)
    if _FLOAT.fullmatch(text) and not text.lstrip("+-").isdigit():
        return float(text)
    if _INFINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text
