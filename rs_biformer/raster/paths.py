"""What a user may call a raster: a file, a URL, an entry of an archive or a bucket, a part of a container."""

import hashlib
import os
import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from rs_biformer.errors import RasterError

PathLike = str | os.PathLike[str]

Location = Path | str
"""A Path for a file of this machine; text for what only GDAL reaches, as a Path makes one slash of a URL's two."""

_VIRTUAL = {
    "http": "/vsicurl/http://",
    "https": "/vsicurl/https://",
    "ftp": "/vsicurl/ftp://",
    "s3": "/vsis3/",
    "gs": "/vsigs/",
    "az": "/vsiaz/",
}
_SCHEME = re.compile(r"([a-z][a-z0-9+]+)://(.*)", re.DOTALL)
_SECRET = re.compile(
    r"(x-amz-.*|x-goog-.*|awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id"
    r"|s[eprtv]|spr|sig|sks|skt|ske|skoid|sktid|skv|token|access_token|api_?key)",
    re.IGNORECASE,
)
"""Parameters of a URL that say who may read it, and until when: those of AWS, Google, Azure, and the usual names.

Nobody knows all, so that none is ever shown; these do not tell one file from another either."""

_PART = re.compile(r"[A-Z][A-Z0-9_]+:")  # NETCDF:"file.nc":variable; a drive of Windows has one letter


def is_remote(name: PathLike) -> bool:
    """Whether only GDAL knows what the name means: a URL, a /vsi path, or a part of a container (`NETCDF:...`).

    >>> is_remote("s3://bucket/a.tif"), is_remote("/data/a.tif"), is_remote("C:/data/a.tif")
    (True, False, False)
    """
    text = os.fspath(name)
    return text.startswith("/vsi") or bool(_SCHEME.match(text) or _PART.match(text))


def locate(name: PathLike) -> Location:
    """The name as a Path where it can be a file, else as it is."""
    return os.fspath(name) if is_remote(name) else Path(name)


def is_file(name: PathLike) -> bool:
    r"""Whether there is such a file. Names that no file can have, which Path.is_file raises at, are none.

    >>> is_file("x" * 5000), is_file("a\0.tif")
    (False, False)
    """
    return os.path.isfile(name)  # noqa: PTH113


def brief(name: PathLike) -> str:
    """The name for a message: in one line, and without its middle where it is longer than any file's.

    >>> brief("a.tif"), len(brief("x" * 5000))
    ('a.tif', 523)
    """
    text = os.fspath(name)
    return text if len(text) <= 520 else f"{text[:260]}...{text[-260:]}"


def require_text(name: str) -> str:
    r"""The name itself. Raises RasterError where its bytes are not UTF-8: GDAL and our own documents know no others.

    >>> require_text("caf\udce9.tif")
    Traceback (most recent call last):
    rs_biformer.errors.RasterError: caf\udce9.tif is no UTF-8; rename it, or the folder (convmv -f latin1 -t utf8 NAME)
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode(errors="backslashreplace").decode()
        raise RasterError(f"{shown} is no UTF-8; rename it, or the folder (convmv -f latin1 -t utf8 NAME)") from None
    return name


def gdal_name(name: PathLike) -> str:
    """What GDAL calls it: `s3://bucket/key` becomes `/vsis3/bucket/key`.

    rasterio would do the same, but asks for boto3 where GDAL reads the usual AWS variables and files by itself.
    Raises RasterError like `require_text`.

    >>> gdal_name("s3://bucket/a.tif"), gdal_name("https://host/a.tif"), gdal_name("a.tif")
    ('/vsis3/bucket/a.tif', '/vsicurl/https://host/a.tif', 'a.tif')
    """
    text = require_text(os.fspath(name))
    match = _SCHEME.fullmatch(text)
    return _VIRTUAL[match[1]] + match[2] if match and match[1] in _VIRTUAL else text


def absolute(location: Location) -> str:
    """The name from the root of the file system, links as the user has them; a URL and the like as it is.

    Raises RasterError like `require_text`.
    """
    return require_text(location if isinstance(location, str) else os.path.abspath(location))  # noqa: PTH100


_URL = re.compile(r"(?:[a-z][a-z0-9+.-]+://|(?:https?|ftp|s3|gs|az):/|/vsi[a-z0-9_]+[/?])[^\s\"'<>]*", re.IGNORECASE)
"""With one slash as well, as a Path makes it of a URL that is given where only a file will do."""

_NESTED = re.compile(r"[?&]url=([^&]*)", re.IGNORECASE)
_KEYWORD = re.compile(
    r"\b(passw(?:or)?d|pwd|passphrase|secret|(?:[a-z_]+_)?(?:token|secret|secret_access_key|api_?key|account_key))"
    r"(\s*=\s*)('[^']*'|\"[^\"]*\"|[^\s\"'&;,]+)",
    re.IGNORECASE,
)


def without_access(text: str) -> str:
    """A text for others, such as a command line or a message, without what gives access to the rasters in it.

    Of each URL and /vsi name user, password, query and fragment are left out, all of the query, as nobody knows every
    name that a signature goes by; and the values of keywords such as password=. What a query alone tells apart is then
    told apart no more; for a name that must stay one, see `identity`.

    >>> without_access("cannot open https://me:word@host/a.tif?sig=x and b.tif")
    'cannot open https://host/a.tif and b.tif'
    """
    return _KEYWORD.sub(r"\1\2...", _URL.sub(lambda match: _bare(match[0]), text))


def _bare(url: str) -> str:
    place, question, query = url.partition("?")
    nested = _NESTED.search(question + query) if place.startswith("/vsi") else None  # /vsicurl?max_retry=2&url=https...
    if nested:
        return f"{place}?url={_bare(unquote(nested[1]))}"
    return re.sub(r"(:/{1,2})[^/]*@", r"\1", place.partition("#")[0])


def identity(name: PathLike) -> str:
    """A name that tells a raster from every other, without what gives access to it: `without_access`, and a digest.

    The digest is that of the query, which may be all that tells two files of one server apart; a signature of the usual
    kinds is no part of it, as a file is the same one under a new signature.

    >>> identity("https://host/a.tif?X-Amz-Signature=abc"), identity("a?b.tif")
    ('https://host/a.tif', 'a?b.tif')
    >>> identity("https://host/get?id=7&sig=abc")
    'https://host/get (query f422c82d6db7)'
    """
    text = os.fspath(name)
    if not is_remote(text):
        return text
    telling = [part for match in _URL.finditer(text) for part in _telling(match[0])]
    digest = hashlib.sha256("&".join(telling).encode()).hexdigest()[:12]
    return without_access(text) + (f" (query {digest})" if telling else "")


def _telling(url: str) -> list[str]:
    """The parameters of a URL, those of one inside it too, that are no signature of a known kind."""
    place, _, query = url.partition("?")
    inner = _NESTED.search(f"?{query}") if place.startswith("/vsi") else None
    parts = [
        part for part in query.partition("#")[0].split("&") if part and not _SECRET.fullmatch(part.partition("=")[0])
    ]
    if inner is None:
        return parts
    return [*(part for part in parts if not part.lower().startswith("url=")), *_telling(unquote(inner[1]))]


def stem_of(location: Location) -> str:
    """The name without folder and suffix, and of a URL without the query: what the maps of a scene go by.

    >>> stem_of(Path("area/a.b.tif")), stem_of("https://host/b.tif?layer=2"), stem_of('NETCDF:"c.nc":red')
    ('a.b', 'b', 'NETCDF_c_nc_red')
    """
    if isinstance(location, Path):
        return location.stem
    tail = location.partition("?")[0].rpartition("/")[2]
    return re.sub(r"[^\w-]+", "_", tail).strip("_") if _PART.match(location) else PurePosixPath(tail).stem


def folder_of(location: Location) -> str:
    """What comes before the name; `.` for a file of the working folder."""
    if isinstance(location, Path):
        return str(location.parent)
    return location.partition("?")[0].rpartition("/")[0]
