"""Scenes that a STAC document names: an Item, a Collection whose items lie beside it, or what an API search returned.

https://github.com/radiantearth/stac-spec, 1.0 and 1.1. Only what says where pixels lie is read, so no STAC library is
needed. `FILE.json` names the one asset that is data; `FILE.json#visual` another; `FILE.json#red,green,blue` several,
whose bands are one scene's, in this order.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

from rs_biformer.documents import read_json, shown
from rs_biformer.errors import ConfigError
from rs_biformer.raster.paths import Location, is_remote, locate

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
    found = [_scene(item, base, keys, text) for item, base in _items(Path(text), 0)]
    if not found:
        raise ConfigError(f"{text} holds no STAC Item; give an Item, a Collection or the result of a search")
    return found


def _items(path: Path, depth: int) -> Iterator[tuple[Mapping[str, Any], Path]]:
    """The Items of a document, each with the file that it stands in, of which relative names are counted."""
    data = read_json(path, limit=_LIMIT, values=_VALUES)
    kind = data.get("type") if isinstance(data, dict) else None
    if kind == "Feature" and "assets" in data:
        yield data, path
    elif kind == "FeatureCollection":
        for number, item in enumerate(data.get("features") or []):
            if not isinstance(item, dict) or not isinstance(item.get("assets"), dict):
                raise ConfigError(f"{path}: features[{number}] is no STAC Item, as it has no assets")
            yield item, path
    elif kind in ("Collection", "Catalog"):
        if depth == _DEPTH:
            raise ConfigError(f"{path} lies more than {_DEPTH} catalogues deep; give one further down")
        yield from _linked(data, path, depth)
    else:
        raise ConfigError(
            f"{path} is no STAC document (its type is {shown(kind)}); give an Item, a Collection or the result of a "
            "search"
        )


def _linked(data: Mapping[str, Any], path: Path, depth: int) -> Iterator[tuple[Mapping[str, Any], Path]]:
    for link in data.get("links") or []:
        if not isinstance(link, dict) or link.get("rel") not in ("item", "child"):
            continue
        target = _located(str(link.get("href")), path)
        if not isinstance(target, Path):
            raise ConfigError(f"{path} links to {target}; save its items to a file, as a search returns them")
        yield from _items(target, depth + 1)


def _scene(item: Mapping[str, Any], base: Path, keys: tuple[str, ...], text: str) -> StacScene:
    called = str(item.get("id") or base.stem)
    assets = {key: asset for key, asset in item["assets"].items() if isinstance(asset, dict) and asset.get("href")}
    chosen = keys or (_the_one(assets, called, text),)
    if missing := [key for key in chosen if key not in assets]:
        raise ConfigError(
            f"{text}: the Item {called} has no asset {missing[0]!r}; it has {', '.join(assets) or 'none'}"
        )
    images = tuple(_located(str(assets[key]["href"]), base) for key in chosen)
    for image in images:
        if isinstance(image, Path) and not image.is_file():
            raise ConfigError(f"{text}: the Item {called} leads to {image}, which does not exist")
    return StacScene(re.sub(r"[^\w.-]+", "_", called), images)


def _the_one(assets: Mapping[str, Any], called: str, text: str) -> str:
    """The asset that is meant without being named: the only raster of data, else the only one of that role."""
    rasters = [key for key, asset in assets.items() if _is_raster(asset)]
    data = [key for key in rasters if "data" in (assets[key].get("roles") or [])]
    for group in (rasters, data):
        if len(group) == 1:
            return group[0]
    what = f"{len(rasters)} rasters ({', '.join(rasters)})" if rasters else f"no raster among {', '.join(assets)}"
    raise ConfigError(
        f"{text}: the Item {called} has {what}; name the asset: {text}#KEY, or several whose bands make a scene: "
        f"{text}#RED,GREEN,BLUE"
    )


def _is_raster(asset: Mapping[str, Any]) -> bool:
    if _NO_DATA & set(asset.get("roles") or []):
        return False
    media = str(asset.get("type") or "").partition(";")[0].strip().lower()
    if media:
        return media in _KINDS
    return PurePosixPath(urlparse(str(asset["href"])).path).suffix.lower() in _RASTERS


def _located(href: str, base: Path) -> Location:
    """Where a name leads that stands in a file: relative ones are counted from its folder."""
    if href.startswith("file://"):
        return Path(unquote(urlparse(href).path))
    if is_remote(href):
        return locate(href)
    return base.parent / href
