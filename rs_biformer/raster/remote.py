"""What there is to know of a raster that is no file of this machine: whether it is still the one it was."""

import re
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from rs_biformer.raster.paths import PathLike, gdal_name, without_access

_SECONDS = 20
"""That a server may take to answer."""

_TOLD = {"ETag": "ETag", "Last-Modified": "of"}
"""Headers that change with the content, and the word for each."""

_ARCHIVE = re.compile(r"/vsi(zip|tar|gzip|7z|rar)/")
_QUOTED = re.compile(r'[A-Z][A-Z0-9_]+:"([^"]+)"')  # NETCDF:"file.nc":variable
_KIND = re.compile(r"[A-Z][A-Z0-9_]+:(?!//)")
_SUBFILE = re.compile(r"/vsi(?:subfile/[\d_]+,|sparse/|cached\?file=)(.+)", re.DOTALL)
_STORES = {"/vsis3/": "s3://", "/vsigs/": "gs://"}


def local_file(name: PathLike) -> Path | None:
    """The file of this machine that holds what a name means: itself, or the archive or container; None for a URL."""
    text = str(name)
    if text.startswith(("file://", "vrt://")):
        text = text.partition("://")[2].partition("?")[0]
    quoted = _QUOTED.match(text)
    if quoted:
        text = quoted[1]
    elif match := _KIND.match(text):  # GTIFF_DIR:2:a.tif, NETCDF:a.nc:red
        parts = text[match.end() :].split(":")
        pieces = [":".join(parts[i:j]) for i in range(len(parts)) for j in range(len(parts), i, -1)]
        text = next((piece for piece in pieces if Path(piece).is_file()), text)
    if match := _SUBFILE.match(text):
        text = match[1]
    while match := _ARCHIVE.match(text):
        text = text[match.end() :]
        text = text[1 : text.rindex("}")] if text.startswith("{") and "}" in text else text
    for path in (Path(text), *Path(text).parents):
        with suppress(OSError):
            if path.is_file():
                return path
    return None


def remote_state(name: PathLike) -> str:
    """What a server tells of a file, in words: `12000 bytes, ETag "abc", of Tue, 3 May 2026 ...`.

    Where nobody answers, or nobody may be asked without GDAL's own keys, it says so, and the name has to do.
    """
    inner = gdal_name(name)
    while match := _ARCHIVE.match(inner):
        inner = inner[match.end() :]
    found = ""
    if inner.startswith("/vsicurl/http"):
        found = _by_http(inner.removeprefix("/vsicurl/"))
    for prefix, scheme in _STORES.items():
        if inner.startswith(prefix):
            found = _by_store(scheme + inner.removeprefix(prefix))
    return found or f"in a state that {urlsplit(without_access(str(name))).netloc or 'its store'} does not tell"


def _by_http(url: str) -> str:
    for method, headers in (("HEAD", {}), ("GET", {"Range": "bytes=0-0"})):  # a signature may allow one of them alone
        try:
            with urlopen(Request(url, method=method, headers=headers), timeout=_SECONDS) as answer:
                return _in_words(dict(answer.headers.items()))
        except HTTPError:
            continue
        except (OSError, ValueError):
            break
    return ""


def _in_words(headers: dict[str, str]) -> str:
    told = {name.lower(): value for name, value in headers.items()}
    size = told.get("content-range", "").rpartition("/")[2] or told.get("content-length", "")
    words = [f"{word} {told[name.lower()]}" for name, word in _TOLD.items() if name.lower() in told]
    return ", ".join([f"{size} bytes"] * size.isdecimal() + words)


def _by_store(url: str) -> str:
    """By Arrow, which knows the usual credentials as GDAL does."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    with suppress(ArrowException, OSError, ValueError):
        store, path = FileSystem.from_uri(url)
        facts = store.get_file_info(path)
        if facts.size is not None:
            return f"{facts.size} bytes of {facts.mtime:%F %T.%f}"
    return ""
