"""Weights of a first convolution for other bands than those it was trained on."""

from collections.abc import Sequence

import torch
from torch import Tensor

RGB = ("red", "green", "blue")
SENTINEL_2 = ("b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8", "b8a", "b9", "b10", "b11", "b12")

BANDS_BY_COUNT: dict[int, tuple[str, ...]] = {3: RGB, 13: SENTINEL_2}
"""What published weights of so many bands were trained on: photographs, and the bands of Sentinel-2 level 1C in their
order, as torchgeo's weights have them."""

ALIASES = {
    "r": "red",
    "g": "green",
    "b": "blue",
    "n": "nir",
    "ir": "nir",
    "near infrared": "nir",
    "near-infrared": "nir",
}
OF_SENTINEL_2 = {"blue": "b2", "green": "b3", "red": "b4", "nir": "b8"}


def plain_name(band: str) -> str:
    """A band's name without differences of spelling: R and red are one, and so are B04 and b4."""
    name = band.strip().lower()
    if name[:1] == "b" and name[1:].rstrip("a").isdigit():
        return "b" + name[1:].lstrip("0")
    return ALIASES.get(name, name)


def by_name(value: Tensor, before: Sequence[str], now: Sequence[str]) -> Tensor:
    """(N, bands before, h, w) -> (N, bands now, h, w): bands of the same name keep their weights, others get the mean.

    Scaled by the ratio of the numbers of bands, so that the response stays alike.
    """
    places = [_place(band, before) for band in now]
    mean = value.mean(1)
    kernels = [mean if place is None else value[:, place] for place in places]
    return torch.stack(kernels, dim=1) * (len(before) / len(now))


def fit_bands(
    value: Tensor, count: int, bands: Sequence[str] | None = None, before: Sequence[str] | None = None
) -> tuple[Tensor, str]:
    """(N, bands of the weights, h, w) -> (N, count, h, w), and a few words on how; '' where nothing was done.

    bands: names of the `count` bands, where they are known. before: names of the weights' bands; otherwise told by
    their number (BANDS_BY_COUNT).

    - Bands are matched by name where all of red, green and blue are there for weights of these, or any band is for
      weights of others. The rest gets the mean.
    - Otherwise as many bands stay in their order; those of photographs are repeated in turn, or added up for a single
      band; of other weights each band gets the mean.
    In each case the response keeps its scale.
    """
    own = value.shape[1]
    names = before if before is not None and len(before) == own else BANDS_BY_COUNT.get(own)
    if bands is not None and len(bands) == count and names is not None and _matched(bands, names):
        if [_place(band, names) for band in bands] == list(range(own)):
            return value, ""
        found = [band for band in bands if _place(band, names) is not None]
        rest = [band for band in bands if _place(band, names) is None]
        others = f", {', '.join(rest)} from the mean of all {own}" if rest else ""
        return by_name(value, names, bands), f"{own} bands to {count}: {', '.join(found)} by name{others}"
    if own == count:
        return value, ""
    scale = own / count
    if own == len(RGB) and count > 1:
        turns = [index % own for index in range(count)]
        return value[:, turns] * scale, f"{own} bands to {count}: repeated in turn"
    mean = value.mean(1, keepdim=True).expand(-1, count, -1, -1)
    return (mean * scale).contiguous(), f"{own} bands to {count}: the mean of all {own} for each"


def _matched(bands: Sequence[str], names: Sequence[str]) -> bool:
    found = {_place(band, names) for band in bands} - {None}
    return len(found) == len(names) if tuple(names) == RGB else bool(found)


def _place(band: str, names: Sequence[str]) -> int | None:
    plain = [plain_name(name) for name in names]
    name = plain_name(band)
    if tuple(plain) == SENTINEL_2:
        name = OF_SENTINEL_2.get(name, name)
    return plain.index(name) if name in plain else None
