"""Mutations of files, from a seed: flipped bits, cuts, repeats, splices, and values that no file should hold.

A kind of file is a `Kind`: intact bytes, a reader, and where the container has a text inside, a way to mutate that text
and pack it again, since flips of a packed text rarely get past the unpacking. Add one to test_documents.py, or import
this from a test of your own.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 1, 255, 256, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, 1e-320,
    float("nan"), float("inf"), "", "0", "x" * 5000, "\x00", "\x1b[2J", "\ud800", "../x", "/dev/zero", "<b>",
    "2024-02-30", "!!python/name:os.system", "${HOME}", [], [[]], {}, {"class_path": "os.system"}, [None], [1] * 300,
    {"": {}},
)  # fmt: skip
"""Values that take the place of others in a document."""

WORDS = (
    b"\x00",
    b"\xff" * 8,
    b"!!python/object/apply:os.system [x]",
    b"&a [*a]",
    b"- " * 60,
    b"[" * 200,
    b"{" * 200,
    b"9" * 400,
)
"""Bytes that are spliced in."""


@dataclass(frozen=True)
class Kind:
    """A kind of file: its name in a folder, intact bytes, and what reads it.

    document: the values inside, and pack: what makes a file of others; None where the container holds no document.
    """

    name: str
    intact: bytes
    read: Callable[[Path], object]
    document: Any = None
    pack: Callable[[Any], bytes] | None = None

    def mutant(self, random: random.Random) -> bytes:
        """The bytes of one mutated file."""
        if self.pack is not None and random.random() < 0.7:
            return self.pack(mutated_document(self.document, random))
        return mutated_bytes(self.intact, random)


def mutated_bytes(data: bytes, random: random.Random) -> bytes:
    """One to four changes of bytes."""
    found = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(found) + 1)
        stop = min(len(found), at + random.choice((1, 4, 100)))
        change = random.randrange(6)
        if change == 0 and at < len(found):
            found[at] ^= 1 << random.randrange(8)
        elif change == 1:
            del found[at:]
        elif change == 2:
            del found[at:stop]
        elif change == 3:
            found[at:at] = found[at:stop] * random.choice((1, 2, 50))
        elif change == 4:
            found[at:at] = random.choice(WORDS)
        else:
            found[at:stop] = bytes(random.randrange(256) for _ in range(stop - at))
    return bytes(found)


def mutated_document(document: Any, random: random.Random) -> Any:
    """One to three changes of values: another value, a key or an item less, twice, or more."""
    found = json.loads(json.dumps(document))
    for _ in range(random.randint(1, 3)):
        places = list(_places(found))
        if not places:
            return random.choice(NASTY)
        container, key = random.choice(places)
        change = random.randrange(4)
        if change == 0:
            del container[key]
        elif change == 1 and isinstance(container, dict):
            container[random.choice(("later", "", "class_path", str(key) + "s"))] = container.pop(key)
        elif change == 1:
            container.insert(key, container[key])
        else:
            container[key] = random.choice(NASTY)
    return found


def _places(value: Any) -> Any:
    for key, item in list(value.items()) if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item)


def outcome(kind: Kind, path: Path, allowed: type[Exception]) -> str:
    """ "right", or "refused" with a line; any other exception passes through."""
    try:
        kind.read(path)
    except allowed as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 3000, text
        return "refused"
    return "right"
