import ast
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from pydantic import Field

import rs_biformer
from rs_biformer.documents import (
    MAX_DEPTH,
    MAX_YAML,
    Count,
    Document,
    Listed,
    Name,
    Text,
    build,
    known_part,
    parse_json,
    parse_yaml,
    plain,
    read_json,
    read_yaml,
    require_format,
)
from rs_biformer.errors import CheckpointError, ConfigError

PACKAGE = Path(rs_biformer.__file__).parent


class Colour(Document):
    name: Name
    rgb: Annotated[Listed[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]


class Palette(Document):
    colours: Listed[Colour]
    share: float = 1.0
    words: Text = ""


@dataclass(frozen=True)
class Plain:
    name: Name
    sides: Listed[Count] = ()
    about: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name == "nobody":
            raise ConfigError("nobody is no name")


def refused(call, *arguments, match: str, **options) -> str:
    with pytest.raises(ConfigError, match=match) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600 and message.isprintable()
    return message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: [1, -2, 0x1F, 0o17, 1.5, -.5, 1e3, 2.5e-3, true, False, null, ~]", [1, -2, 31, 15, 1.5, -0.5, 1000.0]),
        ("a: [no, on, yes, 012, 1_000, 12:30:45, 2024-02-30, <<, =, +, -, .]", None),
        ("a: ['1', \"true\", '']", ["1", "true", ""]),
        ("a: |\n  two\n  lines\n", "two\nlines\n"),
        ("a: >-\n  1\n", "1"),
        ("a: &x [1, {b: 2}]\nc: *x", [1, {"b": 2}]),
        ("\ufeffa: äöü 树", "äöü 树"),
        ("%YAML 1.2\n---\na: 1\n...\n", 1),
    ],
)
def test_yaml_has_the_types_of_json_by_yaml_1_2(text, value):
    found = parse_yaml(text.encode(), "it")
    if not text:
        assert found is None
    elif value is None:
        assert found["a"] == ["no", "on", "yes", "012", "1_000", "12:30:45", "2024-02-30", "<<", "=", "+", "-", "."]
    elif isinstance(value, list) and text.startswith("a: [1, -2"):
        assert found["a"] == [*value, 0.0025, True, False, None, None]
        assert [type(one) for one in found["a"]] == [int] * 4 + [float] * 4 + [bool] * 2 + [type(None)] * 2
    else:
        assert found["a"] == value


def test_what_yaml_and_json_libraries_write_is_read_back():
    value = {"a": [1, 2.5, None, True, "no", "01", "1.5", "~", "é\n\t\x07", {"b": []}], "c d": "- x: #", "e": {}}
    assert parse_yaml(yaml.safe_dump(value), "it") == value
    assert parse_yaml(yaml.safe_dump(value, allow_unicode=True, default_flow_style=True), "it") == value
    assert parse_json(json.dumps(value), "it") == value
    assert parse_yaml(json.dumps(value), "it") == value


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "more than 2,097,152 values"),
        ("a: &a [*a]", "line 1: .a stands for nothing, or for itself"),
        ("a: *b", "valid YAML|stands for nothing"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested more than 32 deep"),
        ("[" * 100_000, "nested more than 32 deep"),
        ("- " * 100_000, "nested more than 32 deep|valid YAML"),
        ("a: !!python/object/apply:os.system ['touch x']", "tag .*os.system is not allowed"),
        ("a: !!timestamp 2024-01-01", "tag .*timestamp is not allowed"),
        ("a: !ruby x", "tag !ruby is not allowed"),
        ("!!set {a}", "tag .*set is not allowed"),
        ("a: 1\nb: 2\na: 3", "line .: the key 'a' occurs twice"),
        ("a: 1\n--- \nb: 2", "a second document begins here"),
        ("a: 99999999999999999999", "beyond 64 bits"),
        ("a: " + "9" * 5000, "beyond 64 bits"),
        ("a: 0xffffffffffffffff", "beyond 64 bits"),
        ("? [1, 2]\n: 3", "key .* is no text"),
        ("null: 3", "the key null is no text"),
        ("true: 3", "the key True is no text"),
        ("1.5: 3", "the key 1.5 is no text"),
        ('a: "\\ud800"', "no valid YAML|no Unicode|UTF-8"),
        ("a: [", "no valid YAML"),
        ("a: \0", "no valid YAML"),
        ("a: 'x\n\x07'", "no valid YAML"),
    ],
)
def test_yaml_beyond_the_limits_is_refused_in_a_line(text, message):
    assert refused(parse_yaml, text, "mine.yaml", match=message).startswith("mine.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ("[" * 100_000 + "]" * 100_000, "nested more than 32 deep"),
        ('{"a":' * 40 + "1" + "}" * 40, "nested more than 32 deep"),
        ("[" + "1," * 3_000_000 + "1]", "more than 2,097,152 values"),
        ("99999999999999999999", "beyond 64 bits"),
        ("-9223372036854775809", "beyond 64 bits"),
        ("1" * 5000, "beyond 64 bits"),
        ('"\\ud800"', "lone surrogate"),
        ('{"\\udfff": 1}', "lone surrogate"),
        ("{", "no valid JSON"),
        ("", "no valid JSON"),
        ("{'a': 1}", "no valid JSON"),
    ],
)
def test_json_beyond_the_limits_is_refused_in_a_line(text, message):
    assert refused(parse_json, text, "mine.json", match=message).startswith("mine.json")


def test_the_largest_that_is_allowed_is_read():
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json(deep, "it") == parse_yaml(deep, "it")
    for number in (2**63 - 1, -(2**63)):
        assert parse_json(str(number), "it") == parse_yaml(str(number), "it") == number


def test_bytes_that_are_no_text_are_refused():
    for parse in (parse_yaml, parse_json):
        refused(parse, b"a: \xff\xfe", "mine", match="mine is no text in UTF-8")


def test_values_of_other_containers_must_be_plain():
    loop: list = []
    loop.append(loop)
    for value, message in [
        (object(), "holds a object; plain values"),
        ({"a": b"x"}, "holds a bytes"),
        ({(1, 2): 3}, r"the key \(1, 2\)"),
        (loop, "nested more than"),
        ([10**30], "beyond 64 bits"),
        ({"a": {1, 2}}, "holds a set"),
        (["\udc80"], "lone surrogate"),
        ([[0] * 2000] * 2000, "more than"),
    ]:
        refused(plain, value, "the checkpoint", match=message)
    whole = {"a": (1, 2.5, None), "b": {"c": [float("nan"), True]}, 3: "x"}
    assert plain(whole, "it") is whole


def test_files_are_read_within_limits(tmp_path):
    path = tmp_path / "some.yaml"
    refused(read_yaml, path, match=f"{path} cannot be read: No such file")
    refused(read_json, tmp_path, match=f"{tmp_path} is no file")
    path.write_bytes(b"#" * (MAX_YAML + 1))
    refused(read_yaml, path, match="more than 1,048,576 bytes")
    path.write_text("a: 1")
    assert read_yaml(path) == {"a": 1}
    path.write_text("[1, 2]")
    assert read_json(path) == [1, 2]
    refused(read_json, path, limit=5, match="more than 5 bytes")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused(read_yaml, tmp_path / "pipe", match="is no file")


GOOD = {"colours": [{"name": "red", "rgb": [255, 0, 0]}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colours": None}, "f: colours is null; it should be a list"),
        ({"colours": "red"}, "f: colours is 'red'; it should"),
        ({"colors": []}, "f: it has no key 'colors'; allowed are colours, share, words; did you mean colours"),
        ({"share": "1"}, "f: share is '1'; it should be a number"),
        ({"share": True}, "f: share is True; it should be a number"),
        ({"share": float("nan")}, "f: share is nan; it should be a finite number"),
        ({"share": float("inf")}, "finite"),
        ({"words": 1.5}, "f: words is 1.5; it should be text"),
        ({"words": "a\x1b[31m"}, r"control character '\\x1b'"),
        ({"colours": [{"name": "red"}]}, r"f: colours\[0\].rgb is missing"),
        (
            {"colours": [{"name": "a\nb", "rgb": [0, 0, 0]}]},
            r"colours\[0\].name is 'a\\nb'; it must not have the control",
        ),
        ({"colours": [{"name": "", "rgb": [0, 0, 0]}]}, "at least 1 character"),
        (
            {"colours": [{"name": "red", "rgb": [256, 0, 0]}]},
            r"rgb\[0\] is 256; it should be less than or equal to 255",
        ),
        ({"colours": [{"name": "red", "rgb": [1.0, 0, 0]}]}, r"rgb\[0\] is 1.0; it should be a whole number"),
        ({"colours": [{"name": "red", "rgb": [True, 0, 0]}]}, r"rgb\[0\] is True; it should be a whole number"),
        ({"colours": [{"name": "red", "rgb": [0, 0]}]}, "at least 3 items"),
        (
            {"colours": [{"name": "red", "rgb": [0, 0, 0], "x": 1}]},
            r"colours\[0\] has no key 'x'; allowed are name, rgb",
        ),
        ({"colours": [3]}, r"colours\[0\] is 3; it should be a mapping"),
    ],
)
def test_a_document_names_the_key_and_what_is_allowed(change, message):
    assert build(Palette, GOOD, "f").colours[0].rgb == (255, 0, 0)
    refused(build, Palette, GOOD | change, "f", match=message)


def test_whole_numbers_are_taken_for_text_where_text_is_meant():
    found = build(Palette, {"colours": [{"name": 7, "rgb": [0, 0, 0]}], "words": "two\nlines\n"}, "f")
    assert (found.colours[0].name, found.words) == ("7", "two\nlines\n")


def test_a_dataclass_is_a_document_too():
    assert build(Plain, {"name": "x", "sides": [1, 2]}, "f") == Plain("x", (1, 2))
    refused(build, Plain, {"name": "x", "site": [1]}, "f", match="f: it has no key 'site'.*did you mean sides")
    refused(build, Plain, {"name": "x", "sides": [-1]}, "f", match=r"f: sides\[0\] is -1; it should be greater")
    refused(build, Plain, {"name": "x", "about": {"a": "b"}}, "f", match="f: about.a is 'b'")
    refused(build, Plain, {}, "f", match="f: name is missing")
    refused(build, Plain, 3, "f", match="f: it is 3; it should be a")
    refused(build, Plain, {"name": "nobody"}, "f", match="f: nobody is no name")
    with pytest.raises(CheckpointError, match="f: name is missing"):
        build(Plain, {}, "f", CheckpointError)


def test_many_faults_are_counted_and_not_listed():
    wrong = {"colours": [{"name": "a", "rgb": [0, 0, 0], "x": 1}], "share": "x", "words": 1.5}
    refused(build, Palette, wrong, "f", match=r"\(and 2 more\)")
    refused(build, Palette, {"colours": [3] * 1_000_000}, "f", match=r"colours\[0\] is 3")


def test_a_format_is_known_or_told():
    assert [require_format(number, 2, "f") for number in (None, 0, 1, 2)] == [0, 0, 1, 2]
    refused(require_format, 3, 2, "f", match="f has format 3 and this version knows up to 2: update")
    for wrong in ("1", 1.0, True, -1, [1]):
        refused(require_format, wrong, 2, "f", match="f has the format .*whole number from 0 to 2")


def test_keys_that_came_later_are_left_aside_with_a_note(caplog):
    assert known_part(Plain, {"name": "x", "later": 1, "more\n": 2}, "f") == {"name": "x"}
    assert caplog.messages == [r"f: left aside what this version does not know: 'later', 'more\n'"]
    caplog.clear()
    assert known_part(Plain, {"name": "x"}, "f") == {"name": "x"} and not caplog.messages


# Whoever parses on its own has none of the limits above. Lightning's and torch's own files have their homes too.
PARSERS = {
    "json": {"load", "loads", "JSONDecoder"},
    "yaml": {"load", "load_all", "safe_load", "safe_load_all", "full_load", "unsafe_load", "parse", "compose", "scan"},
    "pickle": {"load", "loads", "Unpickler"},
    "torch": {"load"},
    "tomllib": {"load", "loads"},
    "marshal": {"load", "loads"},
    "ast": {"literal_eval"},
    "np": {"load", "loadtxt", "genfromtxt"},
    "ET": {"parse", "fromstring"},
}
HOMES = {
    ("documents.py", "json"),
    ("documents.py", "yaml"),
    ("checkpoint/trained.py", "torch"),
    ("nn/weight_files.py", "torch"),
    ("nn/encoders/library.py", "torch"),  # weights that an installed package brings
    ("predict/worker.py", "pickle"),  # what the caller's own cluster client sent
}


def test_no_document_is_read_another_way():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.attr in PARSERS.get(node.value.id, ()):
                    found.add((path.relative_to(PACKAGE).as_posix(), node.value.id))
            elif isinstance(node, ast.ImportFrom) and node.module in PARSERS:
                assert not {alias.name for alias in node.names} & PARSERS[node.module], path
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "__import__"), path
    assert found == HOMES


@pytest.mark.parametrize("text", ['{"a": "x\\u0000y"}', '["\\u0000"]', '{"\\u0000": 1}'])
def test_text_with_a_zero_byte_is_refused(text):
    with pytest.raises(ConfigError, match="zero byte"):
        parse_json(text, "a.json")
