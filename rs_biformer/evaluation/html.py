"""The small pieces of which the page is made.

Markup is what Jinja2 has for HTML: its `format` and `join`, and `+` with text, escape all that is no Markup itself. So
text from anywhere is passed on as it is.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from rs_biformer.evaluation.report import percent
from rs_biformer.schema import ClassSchema


def swatch(colour: Sequence[int]) -> Markup:
    """A small square in a class's colour."""
    channels = ",".join(str(int(part)) for part in colour)
    return Markup('<span class="swatch" style="background:rgb({})"></span>').format(channels)


def heading(name: str, kind: str = "number") -> Markup:
    """A column heading that sorts its table when clicked; kind is "number" or "text"."""
    return Markup('<th scope="col" data-kind="{}"><button type="button">{}</button></th>').format(kind, name)


def row_name(name: str, shown: str | None = None) -> Markup:
    """The first cell of a row, sorted by name, which shows it or what is given."""
    return Markup('<th scope="row" data-value="{}">{}</th>').format(name, name if shown is None else shown)


def number(value: float, shown: str | None = None) -> Markup:
    """A table cell that sorts by its value, and shows it or what is given; an undefined value sorts last."""
    key = "" if np.isnan(value) else f"{value:.12g}"
    return Markup('<td data-value="{}">{}</td>').format(key, percent(value) if shown is None else shown)


def table(headings: Sequence[Markup], rows: Sequence[Markup], foot: Markup | None = None) -> Markup:
    """A card with a table that can be sorted: cells of headings and rows as made above, `foot` a row of cells."""
    body = joined(Markup("<tr>{}</tr>").format(row) for row in rows)
    last = "" if foot is None else Markup("\n<tfoot><tr>{}</tr></tfoot>").format(foot)
    return Markup(
        '<div class="card scroll"><table class="list"><thead><tr>{}</tr></thead>\n<tbody>{}</tbody>{}</table></div>'
    ).format(joined(headings), body, last)


def facts(listed: Mapping[str, str]) -> Markup:
    """A card of names and values."""
    parts = joined(Markup("<dt>{}</dt><dd>{}</dd>").format(name, value) for name, value in listed.items())
    return Markup('<dl class="facts card">{}</dl>').format(parts)


def hint(text: str) -> Markup:
    """A quiet paragraph."""
    return Markup('<p class="hint">{}</p>').format(text)


def joined(parts: Iterable[str], between: str = "") -> Markup:
    """The parts one after the other."""
    return Markup(between).join(parts)


def name_of(schema: ClassSchema, index: int, mark: Markup | None = None) -> Markup:
    """A class's swatch and name."""
    return Markup('<span class="name">{}<span>{}{}</span></span>').format(
        swatch(schema.colours[index]), schema.classes[index], mark or ""
    )


def sentence(text: str) -> str:
    """The text with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def count_of(number: int, thing: str) -> str:
    """A number with its thing in the right form: "1 scene", "2 scenes", "6 classes"."""
    if number == 1:
        return f"1 {thing}"
    return f"{number:,} {thing}{'es' if thing.endswith('s') else 's'}"
