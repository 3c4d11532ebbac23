"""What the pages of this project tell people to type, as lists of words."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "data/README.md", "packaging/predict/README.md")
        if (ROOT / name).exists()
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "notebooks").glob("*")),
    *sorted((ROOT / "configs").rglob("*.yaml")),
]
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_COMMENT = re.compile(r"^\s*#? ?(.*)$")


def text_of(page: Path) -> str:
    """The text of a page; of a notebook, that between the code."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def command_lines(text: str) -> Iterator[str]:
    """The lines that begin with `rs-biformer`, continued lines joined; of blocks of code, and of comments in YAML."""
    for language, block in _FENCED.findall(text) or [("", re.sub(r"^#", "", text, flags=re.MULTILINE))]:
        if language in ("", "bash", "sh", "console"):
            joined = re.sub(r"\\\n\s*", "", block)
            yield from (line.strip() for line in joined.splitlines() if line.strip().startswith("rs-biformer "))


def spans(text: str) -> Iterator[str]:
    """What stands between backticks within the text; a line break there is a space."""
    for span in _SPAN.findall(_FENCED.sub("", text)):
        yield " ".join(span.split())


def words(line: str) -> list[str]:
    """A line as a shell takes it apart, without its comment; what stands for something else keeps its name."""
    return shlex.split(line, comments=True)


def blocks(text: str, language: str) -> list[str]:
    """The blocks of code of a language, in order."""
    return [block for found, block in _FENCED.findall(text) if found == language]


def links(text: str) -> list[tuple[str, str]]:
    """Where a page leads within the project: a path (empty for the page itself) and an anchor, empty for none."""
    targets = [target for target in _LINK.findall(_SPAN.sub("", _FENCED.sub("", text))) if ":" not in target]
    return [(path, anchor) for path, _, anchor in (target.partition("#") for target in targets)]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
