"""A Sphinx extension: docstrings as this project writes them, the help of the commands, what a command
prints, and what the recipes say of themselves.

Docstrings here are plain text with backticks, lists and doctests. Sphinx reads reStructuredText, where a single
backtick, a star and a trailing underscore mean something else.
"""

import argparse
import contextlib
import inspect
import io
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_DOCTEST = re.compile(r"^>>> .*?(?:\n\s*$|\Z)", re.DOTALL | re.MULTILINE)
_LIST = re.compile(r"^- .*(?:\n(?:  .*|- .*))*", re.MULTILINE)


def as_rst(text: str, arguments: Collection[str] = ()) -> str:
    r"""The text of a docstring as reStructuredText; what is said of each of these arguments becomes a field of it.

    >>> print(as_rst("A `Window`.\n\nrow: first one. height: of *all.", ["row", "height"]))
    A ``Window``.
    <BLANKLINE>
    :param row: first one.
    :param height: of \*all.
    """
    parts, last = [], 0
    for example in _DOCTEST.finditer(text):
        parts += [_prose(text[last : example.start()], arguments), example[0]]
        last = example.end()
    return "".join([*parts, _prose(text[last:], arguments)])


def _prose(text: str, arguments: Collection[str]) -> str:
    text = "\n\n".join(_fields(block, arguments) for block in re.split(r"\n{2,}", text))
    text = re.sub(r"\n{3,}", "\n\n", _LIST.sub(r"\n\g<0>\n", text))
    parts, last = [], 0
    for code in _CODE.finditer(text):
        parts += [_escaped(text[last : code.start()]), f"``{' '.join(code[2].split())}``"]
        last = code.end()
    return "".join([*parts, _escaped(text[last:])])


def _fields(block: str, arguments: Collection[str]) -> str:
    """A block that begins with the name of an argument and a colon, as a list of fields."""
    names = "|".join(map(re.escape, arguments))
    if not names or not re.match(rf"({names})(, ({names}))*: ", block):
        return block
    said, *after = re.split(r"\n(?=Raises |Returns )", block)
    entry = rf"(?:^|(?<=\. ))((?:{names})(?:, (?:{names}))*): "
    first, *found = re.split(entry, re.sub(r"\s*\n\s*", " ", said) if "\n- " not in said else said)
    pairs = [
        (name, what) for both, what in zip(found[::2], found[1::2], strict=True) for name in re.split(r",\s*", both)
    ]
    return "\n".join([*(f":param {name}: {what.strip()}" for name, what in pairs), *(f"\n{rest}" for rest in after)])


def _escaped(text: str) -> str:
    return re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", text)


def _arguments(obj: Any) -> list[str]:
    try:
        return list(inspect.signature(obj).parameters)
    except (TypeError, ValueError):  # not callable, or of C
        return []


def _read(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rst("\n".join(lines).strip("\n"), _arguments(obj)).split("\n") + [""]


class Printed(SphinxDirective):
    """What a command of ours prints, as it stands: `printed:: train --options`."""

    has_content = False
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """A literal block; a command that fails is a warning, and so ends the build."""
        from rs_biformer.cli import main

        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            code = main(self.arguments[0].split())
        if code:
            raise self.error(f"rs-biformer {self.arguments[0]} ends with {code}")
        return [nodes.literal_block(said.getvalue(), said.getvalue(), language="none")]


class Recipes(SphinxDirective):
    """The configs of the project by their paths, each with the comment that it begins with."""

    def run(self) -> list[nodes.Node]:
        """Sections, in the order of the paths."""
        root = Path(self.env.srcdir)
        lines = []
        for path in sorted((root / "configs").rglob("*.yaml")):
            self.env.note_dependency(str(path))
            comment = re.match(r"(?:#.*\n)*", path.read_text(encoding="utf-8"))
            said = re.sub(r"^# ?", "", comment[0] if comment else "", flags=re.MULTILINE).strip("\n")
            lines += [f"### {path.relative_to(root).as_posix()}", ""]
            for block in re.split(r"\n{2,}", said):
                lines += (
                    ["```", *map(str.strip, block.splitlines()), "```", ""]
                    if block.startswith(" ")
                    else [_marked(block), ""]
                )
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


class Commands(SphinxDirective):
    """A section for each command: usage, arguments and options with what is said of them, examples."""

    def run(self) -> list[nodes.Node]:
        """The sections, parsed as the page is."""
        from rs_biformer.cli import build_parser

        parser = build_parser()
        commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        lines = [line for name, command in commands.choices.items() for line in _described(name, command)]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def _described(name: str, command: argparse.ArgumentParser) -> Iterator[str]:
    """A section of Markdown about one command."""
    command.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100)
    yield from (f"## {name}", "", f"{_marked(command.description or '')}.", "")
    yield from ("```", command.format_usage().removeprefix("usage: ").rstrip(), "```", "")
    formatter = command._get_formatter()
    for group in command._action_groups:
        shown = [action for action in group._group_actions if action.help is not argparse.SUPPRESS]
        if shown and group.title not in ("positional arguments", "options"):
            yield from (f"### {(group.title or '').capitalize()} ({name})", "", _marked(group.description or ""), "")
        for action in shown:
            said = formatter._expand_help(action) if action.help else ""
            yield from (f"`{formatter._format_action_invocation(action)}`", f": {_marked(said)}", "")
    yield from ("```", (command.epilog or "").strip(), "```", "")


def _marked(text: str) -> str:
    """Plain text with backticks as Markdown: what would mean something else there is escaped."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>{}\[\]|$~])", r"\\\1", part) for part in parts)


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    app.add_directive("commands", Commands)
    app.add_directive("printed", Printed)
    app.add_directive("recipes", Recipes)
    app.connect("autodoc-process-docstring", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
