"""Which formats may lie behind a name, and what a file is that says otherwise: asked before GDAL opens anything.

GDAL finds out by content what a file is, whatever it is called. Some formats are descriptions: they name other files,
servers, code, and a place for a cache, and to open one is to follow it. So a raster is opened as one of the formats
that hold their own pixels, and as another one only where the user has named that kind: by its suffix, by a prefix such
as NETCDF:, or by a URL. The same goes for what GDAL opens by itself beside a raster.
"""

import os
import re
from pathlib import Path

from rs_biformer.errors import RasterError
from rs_biformer.raster.paths import PathLike, gdal_name

RASTERS = (
    "GTiff LIBERTIFF JPEG PNG BMP GIF BIGGIF WEBP JPEGXL JP2OpenJPEG JP2KAK JP2ECW JP2MrSID JP2Lura ECW MrSID HFA ENVI "
    "EHdr AAIGrid GRASSASCIIGrid AIG USGSDEM SRTMHGT DTED NITF GRIB GSAG GSBG GS7BG XYZ SAGA BT PNM GTX NTv2 TGA SGI "
    "RST IDRISI BYN SIGDEM Terragen VICAR"
).split()
"""Drivers of rasters that hold their own pixels, or have them in a file of the same name."""

_BY_SUFFIX = {
    ".vrt": ["VRT"],
    ".gpkg": ["GPKG"],
    ".mbtiles": ["MBTiles"],
    **dict.fromkeys((".nc", ".nc4", ".cdf"), ["netCDF"]),
    **dict.fromkeys((".h5", ".hdf5", ".he5", ".hdf", ".hdf4"), ["HDF5", "HDF5Image", "HDF4", "HDF4Image"]),
    ".bag": ["BAG"],
    ".zarr": ["Zarr"],
    ".pix": ["PCIDSK"],
    ".ers": ["ERS"],
    ".grd": ["RRASTER"],
    ".map": ["PCRaster"],
}
"""What else is opened under a name that ends so."""

_BY_PREFIX = {
    "NETCDF": ["netCDF"],
    "HDF5": ["HDF5Image"],
    "HDF4_SDS": ["HDF4Image"],
    "HDF4_EOS": ["HDF4Image"],
    "GTIFF_DIR": ["GTiff"],
    "GTIFF_RAW": ["GTiff"],
    "GPKG": ["GPKG"],
    "ZARR": ["Zarr"],
    "NITF_IM": ["NITF"],
    "BAG": ["BAG"],
}
_PREFIX = re.compile(r"([A-Z][A-Z0-9_]+):")

_HEAD = 8192
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ERDAS = b"EHFA_HEADER_TAG\0"
_MARKS = (
    _ERDAS,
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",
    b"\x89HDF\r\n\x1a\n",
    b"NITF0",
)
_PRINTABLE = bytes([*range(9, 14), *range(32, 127)])
_SQLITE, _FLATGEOBUF, _SHAPEFILE = b"SQLite format 3\0", b"fgb", b"\0\0\x27\x0a"

_DESCRIPTIONS = {
    "a VRT, which names other rasters": rb"<VRTDataset",
    "a description of a web service": rb"<(GDAL_WMS|GDAL_WMTS|WMS_|WCS_GDAL|TileMap|Services\b)"
    rb"|<(WMT_MS_|\w*:?Capabilities\b|OGRWFSDataSource|\w*:?WFS_Capabilities)|\"serviceDescription\"|\"currentVersion\"",
    "a vector VRT, which names other files": rb"<(OGRVRTDataSource|OGRVRTLayer)",
    "a tile index, which names other rasters": rb"<GDALTileIndexDataset",
    "a raster that lies elsewhere (MRF)": rb"<MRF_META>",
    "a catalogue, which names other rasters": rb"\"stac_version\"",
    "a chain of GDAL commands": rb"\"gdal_streamed_alg\"",
}
"""What a file may be that is no raster or layer itself, by what stands in its first bytes, as GDAL looks for it."""

_SIDES = (".ovr", ".msk", ".ovr.msk", ".msk.ovr", ".ovr.ovr", ".msk.msk")


def raster_drivers(name: PathLike) -> list[str] | None:
    """The drivers that may open what the user calls `name`; None for all, where the name itself says which one."""
    text = os.fspath(name)
    if match := _PREFIX.match(text):
        return _BY_PREFIX.get(match[1])
    if text.startswith("vrt://"):
        return ["VRT"]
    suffix = Path(text.partition("?")[0]).suffix.lower()
    return [*_BY_SUFFIX.get(suffix, ()), *RASTERS] if suffix != ".vrt" else ["VRT"]


def description(head: bytes) -> str | None:
    """What kind of description a file is that begins with these bytes; None for one that is none."""
    return next((what for what, sign in _DESCRIPTIONS.items() if re.search(sign, head, re.IGNORECASE)), None)


def head_of(path: Path) -> bytes:
    """The first bytes of a file; none where it cannot be read, which whoever opens it will say."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError:
        return b""


def require_own_pixels(path: Path) -> None:
    """Raise RasterError for a source of a VRT that is no raster by its first bytes, or has such a companion.

    GDAL opens sources with any driver that will. What has no mark of its own, as raw pixels beside a header have none,
    is taken unless it is text.
    """
    head = head_of(path)
    marked = head.startswith((*_TIFF, *_MARKS))
    if not marked and (description(head) or (head[:64].strip() and not head[:64].strip(_PRINTABLE))):
        what = description(head) or "text"
        raise RasterError(f"{path} is {what}, under the name of a raster; nothing of it was followed")
    require_plain_companions(path)


def require_plain_companions(path: Path) -> None:
    """Raise RasterError where GDAL would follow a file beside a raster that is no mask, no overviews and no metadata.

    GDAL opens those with any driver that will.
    """
    if not path.name:  # a folder, `.`
        return
    for suffix in _SIDES:
        for spelt in (suffix, suffix.upper()):
            if not os.access(f"{path}{spelt}", os.F_OK):  # a path takes longer to be made than to be looked for
                continue
            side = path.with_name(path.name + spelt)
            if side.is_file() and not head_of(side).startswith(_TIFF):
                raise RasterError(
                    f"{side} is no GeoTIFF, as the {'overviews' if suffix.endswith('ovr') else 'mask'} of {path} would "
                    "be; move it away"
                )
    old = path.with_suffix(".aux")
    for side in (old, path.with_name(path.name + ".aux")):
        if path.suffix and side != path and side.is_file() and b"<" in (head := head_of(side)):
            if not head.startswith(_ERDAS):
                raise RasterError(f"{side} is not what programs write beside a raster, as {path}; move it away")


def require_overviews_here(path: Path, named: str | None) -> None:
    """Raise RasterError where a raster, or what lies beside it, says that its overviews are a file elsewhere."""
    name = (named or "").removeprefix(":::BASE:::")
    if name and (Path(name).name != name or not head_of(path.with_name(name)).startswith((*_TIFF, _ERDAS))):
        raise RasterError(f"{path} says that its overviews lie in {name!r}, which is not followed; write it anew")


def told(path: Path) -> RasterError | None:
    """What to say of a file that no allowed driver opens, where it is a description."""
    if (what := description(head_of(path))) is None:
        return None
    return RasterError(
        f"{path} is {what}, under the name of a raster; nothing of it was followed. Give the raster that it stands "
        "for, or, if it is your own VRT, a name that ends in .vrt"
    )


def require_layer(name: PathLike) -> None:
    """Raise RasterError when a file of this machine is a description under the name of a vector layer, or no layer."""
    path = Path(name)
    if not path.is_file():
        return
    head = head_of(path)
    wanted = {".gpkg": _SQLITE, ".sqlite": _SQLITE, ".fgb": _FLATGEOBUF, ".shp": _SHAPEFILE}.get(
        path.suffix.lower(), b""
    )
    what = description(head)
    if what is None and not head.startswith(wanted):
        what = f"no {path.suffix.lower()[1:]} file"
    if what is not None:
        raise RasterError(f"{path} cannot be read as polygons: it is {what}; nothing of it was followed")


def names_a_server(text: str) -> bool:
    """Whether a text holds a URL, or a name that GDAL sends to a server or takes apart."""
    return "://" in text or "/vsi" in text.lower()


def is_local_name(name: PathLike) -> bool:
    """Whether GDAL takes a name for a file of this machine, and not for a server, a kind or a description."""
    text = gdal_name(name)
    return not (text.startswith(("/vsi", "<", "{", "vrt:")) or "://" in text or _PREFIX.match(text))
