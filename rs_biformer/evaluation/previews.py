"""Small pictures of large scenes: image, label, prediction and where they differ, read strip by strip.

Every pixel of a scene takes part in its preview, so a thin road or a lone error is not lost between samples: images are
averaged over a cell of pixels, class maps take a cell's most frequent class, errors its share of wrong pixels. Memory
is that of one window of pixels and of the preview itself.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rs_biformer.evaluation.maps import AnyPath, ClassMap, Numbers
from rs_biformer.evaluation.rasters import ImageFiles, Spelling, label_for, onto
from rs_biformer.geometry import Window, cover
from rs_biformer.raster.labels import LabelOptions
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.thumbnail import brightness, limits
from rs_biformer.schema import IGNORE, ClassSchema

EMPTY = (236, 236, 233)
"""Colour of pixels without label, prediction or image; the page's legend shows it as well."""
WRONG, RIGHT = (178, 24, 43), (247, 247, 245)
"""Colours of cells in which all labelled pixels are wrong, and none is; shades between them."""

_PIXELS = 1 << 22


@dataclass(frozen=True)
class Preview:
    """Data URIs of the pictures of one scene by their names, all of one size, in the order in which they are shown.

    `Image` where one was given, `Truth`, and for each map its name and `Error`, with the name where there are several.
    """

    width: int
    height: int
    layers: Mapping[str, str]


def preview(
    image: ImageFiles | None,
    label: AnyPath,
    predictions: Mapping[str, AnyPath],
    schema: ClassSchema,
    *,
    size: int,
    tolerance: int = 0,
    numbers: Numbers = "auto",
    labelling: LabelOptions | None = None,
    window: Window | None = None,
) -> Preview:
    """Pictures of a scene, or a window of it, of which the longer side has at most `size` pixels.

    Raises RasterError as `evaluate` does.
    """
    with ExitStack() as stack:
        maps = {
            name: stack.enter_context(ClassMap(path, schema, tolerance=tolerance, numbers=numbers))
            for name, path in predictions.items()
        }
        spelling = Spelling(schema, tolerance, labelling=labelling or LabelOptions())
        truth, *_ = label_for(label, next(iter(maps.values())).source, None, spelling)
        stack.callback(truth.close)
        area = window or Window(0, 0, truth.height, truth.width)
        cell = -(-max(area.height, area.width) // size)
        labels: list[NDArray[Any]] = []
        found: dict[str, list[NDArray[Any]]] = {name: [] for name in maps}
        errors: dict[str, list[NDArray[Any]]] = {name: [] for name in maps}
        for part in _slabs(area, cell):
            index, _ = truth.read(part)
            labels.append(most_frequent(index, cell, len(schema)))
            for name, mapped in maps.items():
                predicted = onto(truth, mapped.source, mapped.read, part)
                found[name].append(most_frequent(predicted, cell, len(schema)))
                errors[name].append(wrong_share(index, predicted, cell))
    layers = {} if image is None else {"Image": _jpeg(_image_preview(image, area, cell))}
    small = np.concatenate(labels)
    layers["Truth"] = _class_png(small, schema)
    for name in maps:
        layers[name] = _class_png(np.concatenate(found[name]), schema)
        layers["Error" if len(maps) == 1 else f"Error of {name}"] = _error_png(np.concatenate(errors[name]))
    return Preview(small.shape[1], small.shape[0], layers)


def most_frequent(index: NDArray[np.uint8], cell: int, classes: int) -> NDArray[np.uint8]:
    """The most frequent class of each cell x cell square of (h, w), IGNORE where no pixel has one.

    Ties go to the lower index; cells at the far edges may be cut off.
    """
    if cell == 1:
        return index
    best = np.full((-(-index.shape[0] // cell), -(-index.shape[1] // cell)), IGNORE, np.uint8)
    most = np.zeros(best.shape)
    for number in range(classes):
        pixels = _sum_cells(index == number, cell)
        best[pixels > most] = number
        most = np.maximum(most, pixels)
    return best


def wrong_share(label: NDArray[np.uint8], prediction: NDArray[np.uint8], cell: int) -> NDArray[np.float64]:
    """Share of the labelled pixels of each cell whose prediction is another class or missing; NaN without labels."""
    labelled = label != IGNORE
    total = _sum_cells(labelled, cell)
    result = np.full(total.shape, np.nan)
    np.divide(_sum_cells(labelled & (label != prediction), cell), total, out=result, where=total > 0)
    return result


def _sum_cells(values: NDArray[Any], cell: int) -> NDArray[np.float64]:
    """Sums over the cell x cell squares of the last two axes."""
    *leading, height, width = values.shape
    rows = np.zeros((*leading, -(-height // cell), width))
    total = np.zeros((*leading, -(-height // cell), -(-width // cell)))
    # Adding every cell-th row and then column takes a seventh of the time of np.add.reduceat.
    for offset in range(min(cell, height)):
        part = values[..., offset::cell, :]
        rows[..., : part.shape[-2], :] += part
    for offset in range(min(cell, width)):
        part = rows[..., offset::cell]
        total[..., : part.shape[-1]] += part
    return total


def _slabs(area: Window, cell: int) -> list[Window]:
    """Windows of the area's width and of whole cells, about 4 Mpx each."""
    rows = max(1, _PIXELS // area.width // cell) * cell
    return list(cover(area, rows))


def _image_preview(files: ImageFiles, area: Window, cell: int) -> NDArray[np.uint8]:
    """The first three bands (or the first one, as grey) as (h, w, 3) uint8, EMPTY where nothing is valid."""
    with Scene(files) as scene:
        numbers = [0, 1, 2] if scene.count >= 3 else [0, 0, 0]
        means = []
        for window in _slabs(area, cell):
            image, valid = scene.read(window)
            pixels = _sum_cells(valid, cell)
            sums = _sum_cells(np.where(valid, image[numbers], 0), cell)
            mean = np.full(sums.shape, np.nan)
            np.divide(sums, pixels, out=mean, where=pixels > 0)
            means.append(mean)
        displayed = stretch(np.concatenate(means, axis=1), scene.dtype)
    return np.moveaxis(displayed, 0, -1)


def stretch(image: NDArray[np.float64], dtype: np.dtype) -> NDArray[np.uint8]:
    """Band values (C, h, w), NaN where invalid, as 8-bit brightness.

    Bytes stay as they are; of other types the values from the 2nd to the 98th percentile of a band are spread.
    """
    missing = np.asarray(np.isnan(image).any(axis=0), np.bool_)
    if dtype == np.uint8:
        shown = np.where(missing, 0, image).round().astype(np.uint8)
    else:
        bands = list(image)
        shown = np.stack(list(map(brightness, bands, limits((bands, ~missing)))))
    return np.where(missing, np.array(EMPTY, np.uint8)[:, None, None], shown)


def _jpeg(pixels: NDArray[np.uint8]) -> str:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=82, optimize=True)
    return _data_uri("image/jpeg", buffer)


def _class_png(index: NDArray[np.uint8], schema: ClassSchema) -> str:
    palette = np.full((256, 3), EMPTY, np.uint8)
    palette[: len(schema)] = schema.colours
    return _palette_png(index, palette)


def _error_png(share: NDArray[np.float64]) -> str:
    """Shades from RIGHT to WRONG; 255 is EMPTY. The square root lets a cell with few errors still be seen."""
    shade = np.sqrt(np.linspace(0, 1, 255))[:, None]
    palette = np.full((256, 3), EMPTY, np.uint8)
    palette[:255] = np.array(RIGHT) * (1 - shade) + np.array(WRONG) * shade
    return _palette_png(np.where(np.isnan(share), 255, np.nan_to_num(share) * 254).round().astype(np.uint8), palette)


def _palette_png(index: NDArray[np.uint8], palette: NDArray[np.uint8]) -> str:
    picture = Image.fromarray(index)
    picture.putpalette(palette.tobytes())
    buffer = BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return _data_uri("image/png", buffer)


def _data_uri(kind: str, buffer: BytesIO) -> str:
    return f"data:{kind};base64,{b64encode(buffer.getvalue()).decode()}"


def preview_size(scenes: int) -> int:
    """Pixels of a preview's longer side: fewer when many scenes share a page, which should stay below some 20 MB."""
    return 1024 if scenes <= 8 else 640


def worst_first(names: Sequence[str], mean_iou: Sequence[float]) -> list[int]:
    """Positions of scenes from the worst to the best mean IoU; those without one last."""
    return sorted(range(len(names)), key=lambda place: (np.isnan(mean_iou[place]), mean_iou[place], place))
