"""What a careful colleague would say when a scene is opened: what may mean something else than it is taken for."""

from collections.abc import Iterator

import numpy as np
from rasterio.enums import ColorInterp

from rs_biformer.geometry import Window
from rs_biformer.raster.paths import PathLike
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.source import Source
from rs_biformer.raster.values import AS_IT_IS, describe

_PROBES, _PROBE = 3, 128  # windows along each side, and their pixels

_TURNS = {
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "mirrored top to bottom",
    5: "mirrored and turned",
    6: "turned by 90 degrees clockwise",
    7: "mirrored and turned",
    8: "turned by 90 degrees anticlockwise",
}


def remarks(scene: Scene, *, scales: bool = True) -> list[str]:
    """Lines about a scene that was opened to be read; none where nothing is odd.

    A georeference that places nothing, a palette that is none, an alpha band that is no mask, an EXIF orientation, a
    nodata value given for files that declare another, and, with `scales`, those that are declared and not applied. The
    alpha band is looked at in a few places.

    Raises RasterError where those cannot be read.
    """
    found: list[str] = []
    for source in scene.sources:
        found += _alpha(scene, source)
        if source.misplaced:
            found.append(about_place(source.path))
        if source.uncoloured:
            found.append(
                f"{source.path} is marked as one with a palette and has none for its numbers ({source.dtypes[0]}), "
                "which are taken for values"
            )
        if source.turned != 1:
            found.append(
                f"{source.path} is to be seen {_TURNS[source.turned]} (EXIF orientation {source.turned}); its pixels "
                "are read as they are stored: if the label was drawn on the turned picture, store it turned first "
                "(ImageMagick: mogrify -auto-orient)"
            )
    found += _unused_nodata(scene)
    raw = scales and not scene.reading.scaled and not scene.reading.declared
    if raw and any(scaling != AS_IT_IS for scaling in scene.scalings):
        found.append(
            f"{scene.path} declares {describe(scene.scalings)}; its numbers are taken as they are, without them"
        )
    return found


def about_place(path: PathLike) -> str:
    """What to say of a raster whose georeference places nothing."""
    return (
        f"the georeference of {path} places nothing (pixels of size 0, infinite places, control points in a line, or "
        "coefficients that are no numbers); it is read as if it had none: set it anew with gdal_edit.py -a_ullr"
    )


def _alpha(scene: Scene, source: Source) -> Iterator[str]:
    for number, interp in enumerate(source.interps, 1):
        if interp != ColorInterp.alpha or number in scene.numbers_of(source):
            continue
        values = np.concatenate([source.read([number], window)[0].ravel() for window in _probes(source)])
        at_ends = ((values == values.min()) | (values == values.max())).mean()
        if at_ends < 0.5:
            bands = ",".join(str(n + 1) for n in range(source.count))
            yield (
                f"band {number} of {source.path} is marked as alpha and taken for a mask, but its values "
                f"({values.min()} to {values.max()}) are those of an image, such as near infrared: --bands {bands} "
                "takes it for one"
            )


def _probes(source: Source) -> Iterator[Window]:
    """A few windows spread over a raster."""
    height, width = min(_PROBE, source.height), min(_PROBE, source.width)
    for row in np.linspace(0, source.height - height, _PROBES).astype(int).tolist():
        for col in np.linspace(0, source.width - width, _PROBES).astype(int).tolist():
            yield Window(row, col, height, width)


def _unused_nodata(scene: Scene) -> Iterator[str]:
    for number, source in enumerate(scene.sources):
        given = scene.reading.nodata_of(number)
        own = {value for value in source.nodatavals if value is not None}
        if given is not None and source.declares_nodata and given not in own:
            said = ", ".join(f"{value:g}" for value in sorted(own))
            yield f"{source.path} declares its own nodata value ({said}); --nodata {given:g} is not used there"
