"""Random changes of training windows. albumentations is used here and nowhere else.

Geometry is albumentations', or scipy's (moving.py); labels and validity move along. Blur, brightness, contrast and
noise are ours, in units of each band's standard deviation, because albumentations' own know only 8-bit or unit-range
RGB (others are cut off at 0 and 1), and a scene may have any number of bands of any dtype.
"""

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rs_biformer.data.moving import TURNS, Motion, moved
from rs_biformer.errors import ConfigError
from rs_biformer.schema import IGNORE

Change = Callable[
    [NDArray[Any], NDArray[Any], NDArray[Any], np.random.Generator], tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
]
"""(image (C, T, T), label (T, T) uint8, valid (T, T) bool, rng) -> the inner S x S pixels, changed."""

Geometry = Callable[[NDArray[Any], NDArray[Any], np.random.Generator], tuple[NDArray[Any], NDArray[Any]]]
"""(bands (C, T, T), masks (N, T, T) uint8, rng) -> the inner S x S pixels, moved; see `moving.moved`."""

Backend = Literal["albumentations", "scipy"]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training windows.

    Args:
        d4: Turn by a multiple of 90 degrees and mirror: nadir imagery has no preferred direction.
        scale: Zoom in or out by up to this share; 0.25 draws a factor from 0.8 to 1.25. What comes in at the edges is
            read from the scene; where it has no more, it becomes ignore.
        rotate: Turn by up to this many degrees on top of d4.
        brightness: Shift all bands by up to this many of their standard deviations.
        contrast: Stretch all bands about their mean by up to this share.
        band: Shift and stretch each band by itself, each by up to this share of the two above's unit.
        noise: Standard deviation of Gaussian noise, in standard deviations of the band.
        blur: Largest standard deviation of a Gaussian blur, in pixels.
        probability: How often scale and rotate, how often blur, and how often the other changes of values are made.
        backend: What turns and zooms: albumentations, or scipy, which draws from the same distributions in another
            sequence.
    """

    d4: bool = False
    scale: float = 0.0
    rotate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    band: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    probability: float = 0.75
    backend: Backend = "albumentations"

    def __post_init__(self) -> None:
        if self.backend not in get_args(Backend):
            raise ConfigError(f"augment.backend is {self.backend!r}; it must be one of {', '.join(get_args(Backend))}")
        for name, low, high in (
            ("scale", 0, 3),
            ("rotate", 0, 180),
            ("brightness", 0, 3),
            ("contrast", 0, 0.9),
            ("band", 0, 0.9),
            ("noise", 0, 3),
            ("blur", 0, 10),
            ("probability", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"augment.{name} is {value}; it must lie between {low} and {high}")

    @property
    def moves(self) -> bool:
        """Whether pixels change place or mix."""
        return self.d4 or self.warps or self.blur > 0

    @property
    def warps(self) -> bool:
        """Whether windows are zoomed or turned by any angle."""
        return self.scale > 0 or self.rotate > 0

    def margin(self, size: int) -> int:
        """Pixels around a window of `size` that zooming out and turning can bring in, at most."""
        angle = math.radians(min(self.rotate, 45))
        return math.ceil(size / 2 * ((1 + self.scale) * (math.cos(angle) + math.sin(angle)) - 1))

    @property
    def recolours(self) -> bool:
        """Whether values change."""
        return self.brightness > 0 or self.contrast > 0 or self.band > 0 or self.noise > 0


@dataclass(frozen=True, eq=False)
class Augment:
    """How training windows are changed: called as (image (C, T, T), label (T, T), valid (T, T), rng), T = S + 2 margin.

    size: S. mean, std: per band, in raw units; what new pixels outside the scene hold, and the unit of changes of
    value. The pipeline is made where it is first used: a process that is spawned gets this object and no functions.
    """

    options: Augmentation
    size: int
    mean: NDArray[Any]
    std: NDArray[Any]

    @property
    def margin(self) -> int:
        """Pixels around a window that it takes."""
        return self.options.margin(self.size)

    def __call__(
        self, image: NDArray[Any], label: NDArray[Any], valid: NDArray[Any], rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        if self.options.moves:
            image, label, valid = self._move(image, label, valid, rng)
        if self.options.recolours and rng.random() < self.options.probability:
            image = recolour(image, self.options, self.mean, self.std, rng)
        return image, label, valid

    @cached_property
    def _move(self) -> Change:
        return _create_geometry(self.options, self.size, self.mean)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_move"}


def create_augment(options: Augmentation, size: int, mean: NDArray[Any], std: NDArray[Any]) -> Augment | None:
    """The augmentation of windows of `size`, or None where every change is off; see `Augment`."""
    return Augment(options, size, mean, std) if options.moves or options.recolours else None


def recolour(
    image: NDArray[Any], options: Augmentation, mean: NDArray[Any], std: NDArray[Any], rng: np.random.Generator
) -> NDArray[Any]:
    """Shift and stretch the values of `image` (C, S, S) and add noise; integers are rounded and clipped to their range.

    All bands share one shift and one stretch; `band` adds one of each per band.
    """
    bands = len(image)
    shift = rng.uniform(-1, 1) * options.brightness + rng.uniform(-1, 1, bands) * options.band
    stretch = (1 + rng.uniform(-1, 1) * options.contrast) * (1 + rng.uniform(-1, 1, bands) * options.band)
    offset = mean * (1 - stretch) + shift * std
    changed = image * stretch.astype(np.float32)[:, None, None] + offset.astype(np.float32)[:, None, None]
    if options.noise:
        grain = rng.standard_normal(image.shape, dtype=np.float32)
        changed += grain * (options.noise * std).astype(np.float32)[:, None, None]
    return to_dtype(changed, image.dtype)


def to_dtype(values: NDArray[Any], dtype: np.dtype) -> NDArray[Any]:
    """`values` as `dtype`: rounded and clipped to its range where it is an integer type."""
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)


def _create_geometry(options: Augmentation, size: int, mean: NDArray[Any]) -> Change:
    left = replace(options, d4=False, scale=0.0, rotate=0.0)
    own = options if options.backend == "scipy" else left
    theirs = by_albumentations(options, size) if own is left and (options.d4 or options.warps) else None
    interpolates = options.warps or options.blur > 0
    level = mean.astype(np.float32)[:, None, None]

    def move(
        image: NDArray[Any], label: NDArray[Any], valid: NDArray[Any], rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        # Warping takes float32 deviations from the mean, so that the fill value 0 suits every band.
        bands = (image - level).astype(np.float32) if interpolates else image
        # Validity travels inverted: the fill value of masks, IGNORE, then also means "no data".
        invalid = np.where(valid, 0, IGNORE).astype(np.uint8)
        masks = np.stack([label, invalid])
        if theirs is not None:
            bands, masks = theirs(bands, masks, rng)
        bands, (label, invalid) = moved(bands, masks, draw(own, rng) if own.moves else Motion(), size)
        image = to_dtype(bands + level, image.dtype) if interpolates else bands
        return np.ascontiguousarray(image), np.ascontiguousarray(label), invalid == 0

    return move


def draw(options: Augmentation, rng: np.random.Generator) -> Motion:
    """A motion from the distributions that albumentations draws from."""
    warps, blurs = (rng.random(2) < options.probability) & (options.warps, options.blur > 0)
    return Motion(
        int(rng.integers(TURNS)) if options.d4 else 0,
        rng.uniform(*_zooms(options)) if warps else 1.0,
        rng.uniform(*_angles(options)) if warps else 0.0,
        rng.uniform(0, options.blur) if blurs else 0.0,
    )


def _zooms(options: Augmentation) -> tuple[float, float]:
    return 1 / (1 + options.scale), 1 + options.scale


def _angles(options: Augmentation) -> tuple[float, float]:
    return -options.rotate, options.rotate


def by_albumentations(options: Augmentation, size: int, fixed: Motion | None = None) -> Geometry:
    """The geometry of albumentations, without blurring. fixed: zoom and angle are these instead of drawn: for tests."""
    # At import albumentations asks a server for a newer version of itself.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A
    import cv2

    cv2.setNumThreads(0)  # the loader's workers are the parallelism; OpenCV's pool would oversubscribe the cores
    steps: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # albumentations answers an argument it does not know with a warning
        if options.warps:
            steps.append(
                A.Affine(
                    scale=(fixed.zoom, fixed.zoom) if fixed else _zooms(options),
                    keep_ratio=True,
                    rotate=(fixed.angle, fixed.angle) if fixed else _angles(options),
                    interpolation=cv2.INTER_LINEAR,
                    mask_interpolation=cv2.INTER_NEAREST,
                    border_mode=cv2.BORDER_CONSTANT,
                    fill=0.0,
                    fill_mask=IGNORE,
                    p=options.probability,
                )
            )
            steps.append(A.CenterCrop(size, size))
        if options.d4:
            steps.append(A.D4(p=1.0))
        pipeline = A.Compose(steps, seed=0)

    def move(bands: NDArray[Any], masks: NDArray[Any], rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
        pipeline.set_random_seed(int(rng.integers(2**31)))
        # Band by band as a stack of images, because OpenCV fills at most four channels at once.
        found = pipeline(images=bands[..., None], masks=masks)
        return found["images"][..., 0], np.stack(found["masks"])

    return move
