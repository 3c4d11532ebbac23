"""What a VRT names: looked through before GDAL follows it.

A VRT that a user names is opened if all that it names are rasters in files of this machine; RS_BIFORMER_VRT_REMOTE=YES
lets it name servers too. GDAL itself cannot be told which formats the sources of a VRT may have, so each is looked at
here: a VRT in a VRT is looked through as well, and a description under the name of a raster is refused.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from rs_biformer.errors import RasterError
from rs_biformer.raster.kinds import is_local_name, names_a_server, require_own_pixels

REMOTE = "RS_BIFORMER_VRT_REMOTE"
"""The environment variable that lets a VRT name what is no file of this machine."""

_MOST_BYTES = 32 * 2**20
_DEEPEST = 8
_SAYINGS = ("srs", "description", "category", "unittype", "mdi")
"""Elements that hold text which no reader takes for a name of anything, unless by its key."""


_ours: set[Path] = set()


def trust(path: Path) -> None:
    """Take a VRT that this package has written as it is: what it names was opened before."""
    _ours.add(path)


@contextmanager
def trusted(path: Path) -> Iterator[None]:
    """`trust` for as long as the block runs, after which the name may be another's."""
    trust(path)
    try:
        yield
    finally:
        _ours.discard(path)


def may_name_servers() -> bool:
    """Whether the user lets a VRT name what is no file of this machine."""
    return os.environ.get(REMOTE, "").upper() in ("YES", "TRUE", "ON", "1")


def is_vrt(path: Path) -> bool:
    """Whether a name is that of a VRT."""
    return path.suffix.lower() == ".vrt"


def sources_of(path: Path) -> list[Path]:
    """The files that a VRT names, and those that VRTs among them do; none for another file, or a damaged one."""
    try:
        return list(_walked(path, _DEEPEST)) if is_vrt(path) else []
    except RasterError:
        return []


def require_local_sources(path: Path) -> None:
    """Raise RasterError unless a VRT names nothing but rasters in files of this machine."""
    if path in _ours:
        return
    facts = path.stat()
    _require(path, (facts.st_size, facts.st_mtime_ns))


@lru_cache(maxsize=256)
def _require(path: Path, stamp: tuple[int, int]) -> None:
    for source in dict.fromkeys(_walked(path, _DEEPEST)):
        if source.is_file() and not is_vrt(source):
            require_own_pixels(source)


def _walked(path: Path, depth: int) -> Iterator[Path]:
    if depth == 0:
        raise RasterError(f"{path} lies more than {_DEEPEST} VRTs deep; make one VRT of the rasters themselves")
    for name, relative in dict.fromkeys(_names(path)):
        source = path.parent / name if relative else Path(name)
        yield source
        if is_vrt(source) and source.is_file():
            yield from _walked(source, depth - 1)


def _names(path: Path) -> Iterator[tuple[str, bool]]:
    """What the document names, and whether it counts from its folder."""
    document = _document(path)
    for element in document.iter():
        texts = _texts(element)
        names = texts if _is_name(element, _bare(element.tag)) else []
        others = [] if _bare(element.tag) in _SAYINGS else [*texts, *element.attrib.values()]
        strange = [text for text in names if not is_local_name(text)] + [
            text for text in others if names_a_server(text)
        ]
        if strange:
            raise RasterError(
                f"{path} names {strange[0][:80]!r}, which is no file of this machine; nothing of it was followed. Give "
                f"the rasters themselves, or set {REMOTE}=YES in the environment if it is your own"
            )
        yield from ((text, _is_relative(element)) for text in names)
    _require_raw_bytes_here(path, document)


def _require_raw_bytes_here(path: Path, document: Element) -> None:
    """Bands of raw bytes would show any file as pixels: they may lie beside the VRT or below."""
    folder = path.parent.resolve()
    for band in document.iter():
        if "raw" not in next((value for key, value in band.attrib.items() if key.lower() == "subclass"), "").lower():
            continue
        for element in band.iter():
            for text in _texts(element) if _is_name(element, _bare(element.tag)) else []:
                file = path.parent / text if _is_relative(element) else Path(text)
                if not file.resolve().is_relative_to(folder):
                    raise RasterError(f"{path} takes the bytes of {text} for pixels, which lies outside of its folder")


def _texts(element: Element) -> list[str]:
    texts = (element.text, *(child.tail for child in element))
    return [text.strip() for text in texts if text and text.strip()]


def _is_relative(element: Element) -> bool:
    found = next((value for key, value in element.attrib.items() if key.lower() == "relativetovrt"), "0")
    return found.strip() not in ("0", "")


def _is_name(element: Element, tag: str) -> bool:
    """Whether an element holds the name of a file: by its own name, or by its key."""
    key = next((value for name, value in element.attrib.items() if name.lower() in ("key", "name")), "")
    if tag in ("mdi", "option", "argument", "ooi"):
        return any(word in key.lower() for word in ("dataset", "file", "dem"))
    return any(word in tag for word in ("filename", "sourcedataset", "indexdataset"))


def _bare(tag: object) -> str:
    return str(tag).rpartition("}")[2].lower()


def _document(path: Path) -> Element:
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            most = _MOST_BYTES // 2**20
            raise RasterError(f"{path} has {size / 1e6:.0f} MB; a VRT of more than {most} MiB is not read")
        text = path.read_bytes().decode("utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise RasterError(f"{path} declares a document type, which no VRT does; write it anew")
        return ElementTree.fromstring(text)
    except OSError as error:
        raise RasterError(f"{path} cannot be opened: {error.strerror or error}") from None
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise RasterError(f"{path} is no VRT: {error}") from None
