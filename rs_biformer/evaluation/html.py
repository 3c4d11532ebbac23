"""The small pieces of which the page is made. Whatever comes from outside is escaped by the one who passes it on."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from rs_biformer.evaluation.report import percent


def swatch(colour: Sequence[int]) -> str:
    """A small square in a class's colour."""
    return f'<span class="swatch" style="background:rgb({",".join(str(int(part)) for part in colour)})"></span>'


def heading(name: str, kind: str = "number") -> str:
    """A column heading that sorts its table when clicked; kind is "number" or "text"."""
    return f'<th scope="col" data-kind="{kind}"><button type="button">{name}</button></th>'


def row_name(name: str, shown: str | None = None) -> str:
    """The first cell of a row, sorted by name; `shown` is HTML."""
    return f'<th scope="row" data-value="{escape(name)}">{escape(name) if shown is None else shown}</th>'


def number(value: float, shown: str | None = None) -> str:
    """A table cell that sorts by its value; an undefined value sorts last. `shown` is HTML."""
    key = "" if np.isnan(value) else f"{value:.12g}"
    return f'<td data-value="{key}">{percent(value) if shown is None else shown}</td>'


def table(headings: Sequence[str], rows: Sequence[str], foot: str = "") -> str:
    """A card with a table that can be sorted: cells of headings and rows as made above, `foot` a row of cells."""
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    last = f"\n<tfoot><tr>{foot}</tr></tfoot>" if foot else ""
    return (
        f'<div class="card scroll"><table class="list"><thead><tr>{"".join(headings)}</tr></thead>\n'
        f"<tbody>{body}</tbody>{last}</table></div>"
    )


def facts(listed: Mapping[str, str]) -> str:
    """A card of names and values; values are HTML."""
    parts = "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in listed.items())
    return f'<dl class="facts card">{parts}</dl>'


def hint(text: str) -> str:
    """A quiet paragraph of HTML."""
    return f'<p class="hint">{text}</p>'


def sentence(text: str) -> str:
    """The text with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def count_of(number: int, thing: str) -> str:
    """A number with its thing in the right form: "1 scene", "2 scenes", "6 classes"."""
    if number == 1:
        return f"1 {thing}"
    return f"{number:,} {thing}{'es' if thing.endswith('s') else 's'}"
