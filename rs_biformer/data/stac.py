"""Scenes that a STAC document names: an Item, a Collection whose items lie beside it, or what an API search returned.

https://github.com/radiantearth/stac-spec, 1.0 and 1.1. Only what says where pixels lie is read, so no STAC library is
needed. `FILE.json` names the one asset that is data; `FILE.json#visual` another; `FILE.json#red,green,blue` several,
whose bands are one scene's, in this order.
"""

import os.path
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

from rs_biformer.documents import Part, build, read_json, shown
from rs_biformer.errors import ConfigError
from rs_biformer.raster.paths import Location, brief, is_file, is_remote, locate

SUFFIXES = (".json", ".geojson")
_LIMIT, _VALUES = 1 << 28, 1 << 23  # a search result: thousands of items of dozens of assets
_DEPTH = 8
_KINDS = ("image/tiff", "image/vnd.stac.geotiff", "image/jp2", "image/png", "image/jpeg", "application/x-hdf")
_RASTERS = (".tif", ".tiff", ".jp2", ".png", ".jpg", ".jpeg", ".vrt")
_NO_DATA = {"thumbnail", "overview", "metadata", "reproduction"}


@dataclass(frozen=True)
class StacScene:
    """A scene of an Item: what it is called, and its rasters."""

    name: str
    images: tuple[Location, ...]


class _Asset(Part):
    href: str | None = None
    type: str | None = None
    roles: list[str] | None = None


class _Item(Part):
    id: str | int | None = None
    assets: dict[str, _Asset]


class _Link(Part):
    rel: str | None = None
    href: str | None = None


def is_stac(name: str) -> bool:
    """Whether an input is to be read as STAC: a JSON file, perhaps with assets after a `#`."""
    return not is_remote(name) and name.partition("#")[0].lower().endswith(SUFFIXES)


def stac_scenes(name: str) -> list[StacScene]:
    """The scenes of a STAC document, one for each Item, in its order.

    Raises ConfigError for a file that is none, an Item without such an asset, or one of which several may be meant.
    """
    text, _, wanted = name.partition("#")
    keys = tuple(key.strip() for key in wanted.split(",")) if wanted else ()
    if "#" in name and not all(keys or [""]):
        raise ConfigError(f"{name} names no asset after the #; write {text}#KEY, or several with commas between")
    found = [_scene(item, base, keys, text) for item, base in _items(Path(text), 0, set())]
    if not found:
        raise ConfigError(f"{text} holds no STAC Item; give an Item, a Collection or the result of a search")
    return found


def _items(path: Path, depth: int, seen: set[str]) -> Iterator[tuple[_Item, Path]]:
    """The Items of a document, each with the file that it stands in, of which relative names are counted.

    seen: documents that were read, which are not read again: catalogues may lead to each other.
    """
    seen.add(os.path.realpath(path))
    data = read_json(path, limit=_LIMIT, values=_VALUES)
    kind = data.get("type") if isinstance(data, dict) else None
    if kind == "Feature" and "assets" in data:
        yield build(_Item, data, str(path)), path
    elif kind == "FeatureCollection":
        features: list[Any] = build(list[Any], data.get("features") or [], f"{path}: features")
        for number, item in enumerate(features):
            if not isinstance(item, dict) or "assets" not in item:
                raise ConfigError(f"{path}: features[{number}] is no STAC Item, as it has no assets")
            yield build(_Item, item, f"{path}: features[{number}]"), path
    elif kind in ("Collection", "Catalog"):
        if depth == _DEPTH:
            raise ConfigError(f"{path} lies more than {_DEPTH} catalogues deep; give one further down")
        yield from _linked(data, path, depth, seen)
    else:
        raise ConfigError(
            f"{path} is no STAC document (its type is {shown(kind)}); give an Item, a Collection or the result of a "
            "search"
        )


def _linked(data: Mapping[str, Any], path: Path, depth: int, seen: set[str]) -> Iterator[tuple[_Item, Path]]:
    links: list[_Link] = build(list[_Link], data.get("links") or [], f"{path}: links")
    for link in links:
        if link.rel not in ("item", "child") or link.href is None:
            continue
        target = _located(link.href, path)
        if not isinstance(target, Path):
            raise ConfigError(f"{path} links to {target}; save its items to a file, as a search returns them")
        if not is_file(target):
            raise ConfigError(f"{path} links to {brief(target)}, which does not exist")
        if os.path.realpath(target) not in seen:
            yield from _items(target, depth + 1, seen)


def _scene(item: _Item, base: Path, keys: tuple[str, ...], text: str) -> StacScene:
    called = str(item.id or base.stem)
    assets = {key: asset for key, asset in item.assets.items() if asset.href}
    chosen = keys or (_the_one(assets, called, text),)
    if missing := [key for key in chosen if key not in assets]:
        raise ConfigError(
            f"{text}: the Item {called} has no asset {missing[0]!r}; it has {', '.join(assets) or 'none'}"
        )
    images = tuple(_located(assets[key].href or "", base) for key in chosen)
    for image in images:
        if isinstance(image, Path) and not is_file(image):
            raise ConfigError(f"{text}: the Item {called} leads to {brief(image)}, which does not exist")
    return StacScene(re.sub(r"[^\w.-]+", "_", called), images)


def _the_one(assets: Mapping[str, _Asset], called: str, text: str) -> str:
    """The asset that is meant without being named: the only raster of data, else the only one of that role."""
    rasters = [key for key, asset in assets.items() if _is_raster(asset)]
    data = [key for key in rasters if "data" in (assets[key].roles or [])]
    for group in (rasters, data):
        if len(group) == 1:
            return group[0]
    what = f"{len(rasters)} rasters ({', '.join(rasters)})" if rasters else f"no raster among {', '.join(assets)}"
    raise ConfigError(
        f"{text}: the Item {called} has {what}; name the asset: {text}#KEY, or several whose bands make a scene: "
        f"{text}#RED,GREEN,BLUE"
    )


def _is_raster(asset: _Asset) -> bool:
    if _NO_DATA & set(asset.roles or []):
        return False
    media = (asset.type or "").partition(";")[0].strip().lower()
    if media:
        return media in _KINDS
    return PurePosixPath(urlparse(asset.href or "").path).suffix.lower() in _RASTERS


def _located(href: str, base: Path) -> Location:
    """Where a name leads that stands in a file: relative ones are counted from its folder."""
    if href.startswith("file://"):
        return Path(unquote(urlparse(href).path))
    if is_remote(href):
        return locate(href)
    return base.parent / href
