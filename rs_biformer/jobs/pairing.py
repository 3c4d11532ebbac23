"""Which label belongs to which map, by the names of the files: two lists in an order that a shell made.

A name is taken apart into words and numbers; what all names of its list share (map, label, ortho, tif) tells nothing
and is left out, numbers count by their value, so that 2 is 02. A file points to the one of the other list whose rest is
most alike. Where all point to their own place the lists are paired; where one points elsewhere they are permuted, and
where names tell nothing only the order is left.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rs_biformer.errors import ConfigError
from rs_biformer.raster.paths import Location, folder_of, stem_of

PairBy = Literal["auto", "names", "order"]

_MOST = 1000
"""Files whose names are compared each with each; beyond only equal ones are found."""
_SHOWN = 3
_PARTS = re.compile(r"\d+|[^\W\d_]+")

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Pairing:
    """places: for each file of the first list that of its partner in the second. note: what was decided, if any."""

    places: tuple[int, ...]
    note: str = ""


def pair_by_name(
    left: Sequence[Location], right: Sequence[Location], what: tuple[str, str], by: PairBy = "auto"
) -> Pairing:
    """Pair two lists of as many files. what: what they are called, such as map and label.

    by: `auto` keeps the order where names confirm it, says so where they tell nothing, and refuses a permutation;
        `names` pairs as the names say; `order` keeps the order whatever they say.

    Raises ConfigError for lists of different lengths, for a permutation, and where names are asked and do not tell.
    """
    if by not in get_args(PairBy):
        raise ConfigError(f"files are paired by {by!r}; it must be one of {', '.join(get_args(PairBy))}")
    if len(left) != len(right):
        raise ConfigError(
            f"{len(left)} {what[0]}s and {len(right)} {what[1]}s; give one {what[1]} for each {what[0]}, or a pattern "
            f"such as '{{dir}}/{{stem}}_{what[1]}.tif'"
        )
    order = tuple(range(len(left)))
    if by == "order" or len(left) < 2:
        return Pairing(order)
    found = _partners(_keys(left), _keys(right))
    if by == "names":
        return _by_names(left, right, what, found)
    wrong = [(place, partner) for place, partner in enumerate(found) if partner not in (None, place)]
    if wrong:
        place, partner = wrong[0]
        assert partner is not None
        raise ConfigError(
            f"{what[0]} {left[place]} stands beside {what[1]} {right[place]}, and by their names it belongs to "
            f"{right[partner]} (a shell sorts 10 before 2): pair them by name with --pair names, by a pattern for "
            f"--{what[1]} or a list of pairs, or insist with --pair order"
        )
    if None not in found:
        return Pairing(order)
    pairs = [
        f"{_name(left[place])} with {_name(right[place])}" for place, partner in enumerate(found) if partner is None
    ]
    more = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    return Pairing(
        order,
        f"{what[0]}s and {what[1]}s are paired in the order given, as names do not tell: "
        f"{', '.join(pairs[:_SHOWN])}{more}",
    )


def _by_names(
    left: Sequence[Location], right: Sequence[Location], what: tuple[str, str], found: Sequence[int | None]
) -> Pairing:
    lost = [place for place, partner in enumerate(found) if partner is None]
    if lost:
        raise ConfigError(
            f"by its name {what[0]} {left[lost[0]]} belongs to none of the {what[1]}s, or to several; give a pattern "
            f"for --{what[1]} or a list of pairs"
        )
    places = [partner for partner in found if partner is not None]
    twice = [partner for partner, count in Counter(places).items() if count > 1]
    if twice:
        first, second, *_ = [left[place] for place, partner in enumerate(places) if partner == twice[0]]
        raise ConfigError(
            f"by their names {first} and {second} both belong to {right[twice[0]]}; give a pattern for --{what[1]} or "
            "a list of pairs"
        )
    moved = sum(place != partner for place, partner in enumerate(places))
    note = (
        f"{what[0]}s and {what[1]}s are paired by name, {moved} of {len(places)} out of the order given"
        if moved
        else ""
    )
    return Pairing(tuple(places), note)


def _keys(files: Sequence[Location]) -> list[Key]:
    """What tells the files of a list apart: the parts of their names, with the folder's where names alone do not."""
    names = [stem_of(file) for file in files]
    if len(set(names)) < len(names):
        names = [f"{folder_of(file)}/{name}" for file, name in zip(files, names, strict=True)]
    parts = [tuple(int(part) if part.isdecimal() else part.lower() for part in _PARTS.findall(name)) for name in names]
    start, end = _common(parts), _common([key[::-1] for key in parts])
    least = min(map(len, parts))
    words = {part for part in set(parts[0]).intersection(*parts[1:]) if isinstance(part, str)}
    cut = [key[start : len(key) - min(end, least - start)] for key in parts]
    return [tuple(part for part in key if part not in words) for key in cut]


def _common(keys: Sequence[Key]) -> int:
    """How many parts all begin with in common."""
    columns = zip(*keys, strict=False)
    return next((number for number, column in enumerate(columns) if len(set(column)) > 1), min(map(len, keys)))


def _partners(left: Sequence[Key], right: Sequence[Key]) -> list[int | None]:
    """For each key the place of the one that is most like it in the other list, None where none or several are."""
    places: dict[Key, list[int]] = {}
    for place, key in enumerate(right):
        places.setdefault(key, []).append(place)
    found: list[int | None] = []
    for key in left:
        same = places.get(key, []) if key else []
        if len(same) == 1:
            found.append(same[0])
        else:
            found.append(_nearest(key, right) if not same and len(right) <= _MOST else None)
    return found


def _nearest(key: Key, others: Sequence[Key]) -> int | None:
    scores = [_likeness(key, other) for other in others]
    best = max(scores)
    return scores.index(best) if best[0] > 0 and scores.count(best) == 1 else None


def _likeness(one: Key, other: Key) -> tuple[float, int]:
    """The share of their parts that both have; and how many of them stand in one order, where shares are equal."""
    shared = (Counter(one) & Counter(other)).total()
    row = [0] * (len(other) + 1)
    for part in one:  # the longest common subsequence, row by row
        before = row
        row = [0]
        for place, another in enumerate(other):
            row.append(before[place] + 1 if part == another else max(before[place + 1], row[place]))
    return 2 * shared / max(1, len(one) + len(other)), row[-1]


def _name(file: Location) -> str:
    return str(file).rpartition("/")[2]
