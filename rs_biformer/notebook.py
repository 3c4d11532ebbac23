"""How results show themselves in a notebook: small tables, facts and pictures as HTML that needs nothing else.

Texts are escaped; nothing here is a script.
"""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image


def percent(share: float) -> str:
    """A share in percent with one digit, or a dash where it is not defined.

    >>> percent(0.1234), percent(float("nan"))
    ('12.3 %', '–')
    """
    return "–" if np.isnan(share) else f"{100 * share:.1f} %"


def facts(listed: Mapping[str, Any]) -> Markup:
    """Names and values; those that are None are left out."""
    rows = (
        Markup('<tr><td style="text-align:left">{}</td><td style="text-align:left">{}</td></tr>').format(name, value)
        for name, value in listed.items()
        if value is not None
    )
    return Markup("<table><tbody>{}</tbody></table>").format(Markup().join(rows))


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], foot: Sequence[Any] = ()) -> Markup:
    """A table whose first column is a name, which may have a swatch before it."""
    head = Markup().join(Markup("<th>{}</th>").format(name) for name in header)
    body = Markup().join(_row(cells) for cells in rows)
    last = Markup("<tfoot>{}</tfoot>").format(_row(foot)) if foot else ""
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody>{}</table>").format(head, body, last)


def _row(cells: Sequence[Any]) -> Markup:
    first = Markup('<th style="text-align:left">{}</th>').format(cells[0])
    return Markup("<tr>{}{}</tr>").format(first, Markup().join(Markup("<td>{}</td>").format(c) for c in cells[1:]))


def swatch(colour: Sequence[int], name: str) -> Markup:
    """A name behind a square in its colour."""
    return Markup(
        '<span style="display:inline-block;width:.8em;height:.8em;margin-right:.5em;border:1px solid #8888;'
        'background:rgb({})"></span>{}'
    ).format(",".join(str(int(part)) for part in colour), name)


def picture(pixels: NDArray[np.uint8], text: str) -> Markup:
    """Pixels (h, w, 3) or (h, w, 4) as a PNG in the page; text: what is to be seen."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    source = b64encode(buffer.getvalue()).decode()
    return Markup('<img src="data:image/png;base64,{}" alt="{}" style="max-width:100%">').format(source, text)


def stacked(*parts: Markup | str) -> str:
    """Parts one below the other, for `_repr_html_`."""
    return str(Markup("<div>{}</div>").format(Markup().join(Markup("<div>{}</div>").format(part) for part in parts)))
