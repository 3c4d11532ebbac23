"""All that a page shows: layers on one frame, and what is found out about them while the page is there already."""

import logging
import math
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from rs_biformer.errors import RasterError
from rs_biformer.files import temporary_folder
from rs_biformer.geometry import Window
from rs_biformer.notebook import picture, stacked, swatch, table
from rs_biformer.raster.crs import names_a_place
from rs_biformer.raster.drawn import draw_polygons
from rs_biformer.raster.gdal import gdal_env, open_raster, raster_errors
from rs_biformer.raster.layer import is_vector
from rs_biformer.raster.paths import PathLike, without_access
from rs_biformer.raster.pyramid import Pyramid, level_grid
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.source import Closing, Source, is_georeferenced
from rs_biformer.viewer.classes import class_layer, map_schema
from rs_biformer.viewer.facts import areas_of, places_of
from rs_biformer.viewer.frame import Frame, frame_of
from rs_biformer.viewer.layers import ClassLayer, DifferenceLayer, ImageLayer, Layer, ScoreLayer, score_name

_SHOWN = 480  # pixels of the longer side of a picture in a notebook
_LOG = logging.getLogger(__name__)


class View(Closing):
    """A map with what belongs to it, to be drawn picture by picture; a context manager.

    map: a raster of classes. scene: the image under it. label: a raster of the same classes, spelt as labels are, or
    polygons whose attribute holds them. other: another map, shown beside the first. confidence, probabilities: scores
    of the map, as `rs-biformer predict` writes them. classes: a preset or a YAML file, where the map does not name its
    classes. bands: those of the scene that are shown.

    `layers` are by key, the lowest first. What takes long is done by `work`, in a thread of the caller.

    Raises RasterError for what cannot be read or does not lie in one place, ConfigError for classes that there are not.
    """

    def __init__(
        self,
        map: PathLike,  # noqa: A002 - as the command calls it
        scene: PathLike | None = None,
        label: PathLike | None = None,
        *,
        other: PathLike | None = None,
        confidence: PathLike | None = None,
        probabilities: PathLike | None = None,
        classes: str | None = None,
        bands: Sequence[int | str] | None = None,
    ) -> None:
        self.schema = map_schema(map, classes)
        self._stack, self._stop = ExitStack(), threading.Event()
        self._facts: dict[str, Any] = {"areas": {}, "places": {}, "reading": {}, "problems": []}
        self.done = False
        """Whether `work` has found out everything."""
        self._told: list[str] = []
        self.layers: dict[str, Layer] = {}
        try:
            label = self._as_raster(label, map)
            paths = [path for path in (scene, label, other, confidence, probabilities) if path is not None]
            self.frame = _frame(map, paths)
            self._open(map, scene, label, other, {"confidence": confidence, "probabilities": probabilities}, bands)
        except BaseException:
            self.close()
            raise

    def _open(
        self,
        first: PathLike,
        scene: PathLike | None,
        label: PathLike | None,
        other: PathLike | None,
        scores: dict[str, PathLike | None],
        bands: Sequence[int | str] | None,
    ) -> None:
        if scene is not None:
            self._add(ImageLayer("scene", "Scene", Scene(scene, bands=bands), self.frame))
        classes = [("label", "Label", label), ("map", "Map", first), ("other", "Second map", other)]
        for key, role, path in classes:
            if path is not None:
                self._add(class_layer(key, role, path, self.frame, self.schema))
        for key, path in scores.items():
            if path is not None:
                self._add(_score_layer(key, path, self.frame, len(self.schema)))
        for key, role, than in (("errors", "Errors", "label"), ("changes", "Differences", "other")):
            if than in self.layers:
                one, two = self.layers["map"], self.layers[than]
                assert isinstance(one, ClassLayer) and isinstance(two, ClassLayer)
                self._add(DifferenceLayer(key, role, one, two))

    def _as_raster(self, label: PathLike | None, first: PathLike) -> PathLike | None:
        """A label of polygons as a raster, which lasts as long as the view; any other as it is."""
        if label is None or not is_vector(label):
            return label
        folder = self._stack.enter_context(temporary_folder())
        drawn, self._told = draw_polygons(label, first, self.schema, folder)
        return drawn

    def _add(self, layer: Layer) -> None:
        self.layers[layer.key] = layer
        if not isinstance(layer, DifferenceLayer):  # whose rasters belong to others
            self._stack.callback(layer.pyramids[0].close)

    @property
    def _pyramids(self) -> dict[str, Pyramid]:
        """The rasters by the key of the layer that shows each."""
        return {key: layer.pyramids[0] for key, layer in self.layers.items() if not isinstance(layer, DifferenceLayer)}

    def work(self) -> None:
        """Find out areas and places, and read once what has no overviews; `state` tells how far it is.

        What cannot be read is told there, too.
        """
        try:
            self._find_areas()
            self._find_places()
            waiting = [key for key, pyramid in self._pyramids.items() if pyramid.needs_copy]
            self._facts["reading"].update(dict.fromkeys(waiting, 0.0))
            for key in waiting:
                self._attempt(lambda key=key: self._copy(key))
                self._facts["reading"].pop(key, None)
            self._find_areas()
            self._find_places()
        finally:
            self.done = True

    def _copy(self, key: str) -> None:
        def progress(done: int, total: int) -> None:
            self._facts["reading"][key] = round(done / total, 3)
            if self._stop.is_set():
                raise _Stopped

        self._pyramids[key].make_copy(progress)

    def _find_areas(self) -> None:
        for key, layer in self.layers.items():
            if isinstance(layer, ClassLayer) and key not in self._facts["areas"]:
                found = self._attempt(lambda layer=layer: areas_of(layer))
                if found is not None:
                    self._facts["areas"][key] = found.describe()

    def _find_places(self) -> None:
        for key, layer in self.layers.items():
            if isinstance(layer, ScoreLayer | DifferenceLayer) and key not in self._facts["places"]:
                low = isinstance(layer, ScoreLayer) and layer.low_is_uncertain
                found = self._attempt(lambda layer=layer, low=low: places_of(layer, self.frame, low=low))
                if found is not None:
                    self._facts["places"][key] = found

    def _attempt(self, find: Any) -> Any:
        """What a function gives; None where a raster cannot be read, which is told once."""
        if self._stop.is_set():
            return None
        try:
            return find()
        except RasterError as error:
            line = without_access(str(error))
            if line not in self._facts["problems"]:
                _LOG.warning("%s", line)
                self._facts["problems"].append(line)
            return None
        except _Stopped:
            return None

    def state(self) -> dict[str, Any]:
        """What is known by now: areas, places, what is being read (the share that is done), problems; for the page."""
        done = self.done  # first: what is copied afterwards is then complete
        return {**{name: part.copy() for name, part in self._facts.items()}, "done": done}

    def describe(self) -> dict[str, Any]:
        """Frame, classes and layers, for the page."""
        grid = self.frame.grid
        return {
            "height": grid.height,
            "width": grid.width,
            "levels": self.frame.levels,
            "crs": _crs_name(grid.crs) if self.frame.placed else None,
            "transform": list(grid.transform)[:6] if self.frame.placed else None,
            "classes": [
                {"name": name, "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
                for name, colour in zip(self.schema.classes, self.schema.colours, strict=True)
            ],
            "layers": [layer.describe() for layer in self.layers.values()],
        }

    def tell(self, col: float, row: float) -> dict[str, Any]:
        """Coordinates of a position of the frame, the size of its pixels, and what each layer holds there."""
        return {
            "position": self.frame.position(col, row),
            "lonlat": self.frame.lonlat(col, row),
            "metres": self.frame.pixel_metres(col, row),
            "layers": {key: told for key, layer in self.layers.items() if (told := layer.tell(col, row)) is not None},
        }

    @property
    def notes(self) -> list[str]:
        """Lines on what was decided, and on what will take long."""
        lines = [f"classes: {', '.join(self.schema.classes)} ({self.schema.name})", *self._told]
        for pyramid in self._pyramids.values():
            source, name = pyramid.source, without_access(str(pyramid.source.path))
            if pyramid.needs_copy:
                lines.append(
                    f"{name} has no overviews and is read once to be seen from afar; gdaladdo "
                    f"-r {'average' if pyramid.blend else 'mode'} adds them"
                )
            if self.frame.placed and not is_georeferenced(source.transform):
                lines.append(f"{name} has no place on the ground: it is laid on the map by its size")
            elif pyramid.resampled:
                grid = (
                    "" if names_a_place(source.crs) or not names_a_place(self.frame.grid.crs) else ", in the map's CRS"
                )
                lines.append(f"{name} lies on other pixels and is resampled to those of the map{grid}")
        return lines

    def _repr_html_(self) -> str:
        """What a notebook shows: scene and map in small, and the area of each class."""
        level = max(0, math.ceil(math.log2(max(self.frame.grid.height, self.frame.grid.width) / _SHOWN)))
        grid = level_grid(self.frame.grid, level)
        shown = np.full((grid.height, grid.width, 3), 255.0)
        for key in ("scene", "map"):
            layer = self.layers.get(key)
            drawn = None if layer is None else layer.draw(level, Window(0, 0, grid.height, grid.width))
            if drawn is not None:
                part = drawn[..., 3:] / 255 * (0.7 if key == "map" and "scene" in self.layers else 1)
                shown += (drawn[..., :3] - shown) * part
        mapped = self.layers["map"]
        assert isinstance(mapped, ClassLayer)
        found = areas_of(mapped)
        rows = [
            [swatch(colour, name), *([] if found is None else found.texts(index))]
            for index, (name, colour) in enumerate(zip(self.schema.classes, self.schema.colours, strict=True))
        ]
        return stacked(
            picture(shown.round().astype(np.uint8), mapped.title),
            table(["", *([] if found is None else ["share", "area"])], rows),
        )

    def stop(self) -> None:
        """Have `work` end soon."""
        self._stop.set()

    def close(self) -> None:
        """Close all files, once `work` has ended."""
        self.stop()
        self._stack.close()


class _Stopped(Exception):
    """The view is closed while a raster is read."""


def _frame(first: PathLike, others: Sequence[PathLike]) -> Frame:
    with ExitStack() as stack:
        sources = [Source(path) for path in (first, *others)]
        for source in sources:
            stack.callback(source.close)
        return frame_of(sources[0], sources[1:])


def _score_layer(key: str, path: PathLike, frame: Frame, classes: int) -> ScoreLayer:
    source = Source(path)
    with gdal_env(), raster_errors(source.path, "opened"), open_raster(source.path) as file:
        name = score_name(file.tags(), source.count)
    wanted = {"confidence": 1, "probabilities": classes}[key]
    if source.count != wanted:
        what = "one band" if wanted == 1 else f"{wanted} bands, one for each class"
        raise RasterError(f"{source.path} has {source.count} bands; --{key} is a raster of {what}")
    return ScoreLayer(key, name.capitalize(), source, name, frame)


def _crs_name(crs: Any) -> str | None:
    """How people know a CRS: its code, else its name."""
    if crs is None:
        return None
    code = crs.to_epsg()
    if code is not None:
        return f"EPSG:{code}"
    text = str(crs.to_wkt())
    return text.split('"')[1] if '"' in text else text[:60]
