"""Scenes with the same bands: which bands of a scene are those that another scene, or a model, has."""

import re
from collections.abc import Sequence

from rs_biformer.errors import RasterError
from rs_biformer.raster.paths import PathLike
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.values import RAW, Reading

# Names that a file without descriptions ends up with: they say where a band is, not what it shows.
_NAMELESS = re.compile(r"band\d+|gray(_\d+)?|alpha")


def open_alike(
    paths: PathLike | Sequence[PathLike],
    bands: Sequence[str],
    *,
    whose: str,
    select: Sequence[int | str] | None = None,
    reading: Reading = RAW,
) -> Scene:
    """Open a scene with the bands that `whose` ("the model") has, in their order.

    select: the bands to take, by 1-based number or name: said so, they are what `bands` are, whatever they are called.
    Otherwise bands are found by name, whatever their order in the file; a scene whose bands have no names (or where
    `bands` are none) is taken in its order when their number agrees.

    Raises RasterError, saying what is expected, when the bands do not fit.
    """
    scene = Scene(paths, bands=select, reading=reading) if select else _by_name(paths, bands, whose, reading)
    if scene.count != len(bands):
        scene.close()
        raise RasterError(
            f"{scene.path} has {band_list(scene.band_names)}; {whose} {_takes(whose)} {band_list(bands)}: "
            "add the missing raster, or choose among the bands with --bands"
        )
    return scene


def _by_name(paths: PathLike | Sequence[PathLike], bands: Sequence[str], whose: str, reading: Reading) -> Scene:
    scene = Scene(paths, reading=reading)
    if scene.band_names == tuple(bands):
        return scene
    try:
        return Scene(paths, bands=bands, reading=reading)  # also finds a near infrared band that is marked as alpha
    except RasterError:
        strange = [name for name in scene.band_names if is_name(name) and name not in bands]
        if scene.count == len(bands) and strange and all(map(is_name, bands)):
            raise RasterError(
                f"{scene.path} has {band_list(scene.band_names)}; {whose} {_takes(whose)} {band_list(bands)}: "
                f"if they mean the same, say so with --bands {','.join(str(n + 1) for n in range(scene.count))}"
            ) from None
        return scene


def is_name(name: str) -> bool:
    """Whether the name of a band says what it shows, and not only where it is (`band4`, `gray`)."""
    return not _NAMELESS.fullmatch(name)


def common_names(names: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """What bands are called that stand for the same in several scenes: the one name that they have, else band1, ..."""
    common = []
    for place, called in enumerate(zip(*names, strict=True), 1):
        told = list(dict.fromkeys(filter(is_name, called))) or list(dict.fromkeys(called))
        common.append(told[0] if len(told) == 1 else f"band{place}")
    return tuple(common) if len(set(common)) == len(common) else tuple(f"band{n + 1}" for n in range(len(common)))


def band_list(names: Sequence[str]) -> str:
    """`3 bands (red, green, blue)`."""
    return f"{len(names)} band{'s' * (len(names) != 1)} ({', '.join(names)})"


def _takes(whose: str) -> str:
    return "takes" if whose == "the model" else "has"
