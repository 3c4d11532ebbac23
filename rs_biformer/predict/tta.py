"""Test-time augmentation: several views of a batch, their probabilities averaged.

A view is a symmetry of the square, which moves pixels and changes no value, at one of several scales. The views are
worked out one after the other, so their number costs time and no memory.

Disagreement is that of deep ensembles (Lakshminarayanan et al. 2017): the mean Kullback-Leibler divergence of the views
from their average, which is the Jensen-Shannon divergence of the views (Lin 1991) and needs only their sum and the sum
of their entropies. It is divided by its maximum, the logarithm of the number of views or of classes, whichever is
smaller: 0 where all views say the same, 1 where they could not differ more.

B batch, C bands, K classes, S window.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite, log
from typing import Literal, get_args

from rs_biformer.errors import ConfigError
from rs_biformer.predict.arrays import Array, entr, library_of

Views = Literal["none", "flips", "d4"]

SIDE_STEP = 32
"""Sides of scaled views are multiples of this, the stride of the deepest stage of common networks."""


@dataclass(frozen=True, slots=True)
class View:
    """`turns` right angles after a mirroring from left to right if `mirror`, at `scale` times the size."""

    turns: int = 0
    mirror: bool = False
    scale: float = 1.0

    def side(self, size: int) -> int:
        """The side of the view of a window of `size` pixels."""
        if self.scale == 1:
            return size
        return max(SIDE_STEP, round(size * self.scale / SIDE_STEP) * SIDE_STEP)

    def of(self, image: Array, valid: Array) -> tuple[Array, Array]:
        """The view of (B, C, S, S) and its validity (B, S, S)."""
        image, valid = self.turned(image), self.turned(valid)
        side = self.side(image.shape[-1])
        return (image, valid) if side == image.shape[-1] else resized(image, valid, side)

    def undo(self, scores: Array, size: int) -> Array:
        """Scores (B, K, s, s) of a view back on the window, (B, K, S, S)."""
        if scores.shape[-1] != size:
            scores = _interpolated(scores, size)
        xp = library_of(scores)
        turned = xp.rot90(scores, -self.turns, (-2, -1)) if self.turns else scores
        return xp.flip(turned, (-1,)) if self.mirror else turned

    def turned(self, batch: Array) -> Array:
        xp = library_of(batch)
        mirrored = xp.flip(batch, (-1,)) if self.mirror else batch
        return xp.rot90(mirrored, self.turns, (-2, -1)) if self.turns else mirrored


def resized(image: Array, valid: Array, side: int) -> tuple[Array, Array]:
    """Tensors as (B, C, side, side) float32 and its validity, of which only valid pixels are a part.

    Each pixel is the mean of the valid ones under its kernel, and valid where these have half of the kernel's weight.
    """
    xp = library_of(image)
    known = valid[:, None].to(xp.float32)
    filled = xp.where(valid[:, None], image.to(xp.float32), 0.0)
    weighed, weight = (_interpolated(part, side) for part in (filled, known))
    return weighed / weight.clamp_min(1e-6), weight[:, 0] >= 0.5


def views(name: Views, scales: Sequence[float] = (1.0,)) -> tuple[View, ...]:
    """The views of a name at every scale.

    `none`: the window as it is. `flips`: left to right, top to bottom, and both as well. `d4`: all eight symmetries of
    the square.

    Raises ConfigError for another name, for no scale at all or one that is not in (0, 4].
    """
    if not scales or not all(isfinite(scale) and 0 < scale <= 4 for scale in scales) or len(set(scales)) < len(scales):
        raise ConfigError(f"scales are {tuple(scales)}; give different ones above 0 and up to 4, such as 0.75 1 1.25")
    if name == "none":
        symmetries: Sequence[tuple[int, bool]] = ((0, False),)
    elif name == "flips":
        symmetries = ((0, False), (0, True), (2, False), (2, True))
    elif name == "d4":
        symmetries = [(turns, mirror) for mirror in (False, True) for turns in range(4)]
    else:
        raise ConfigError(f"test-time augmentation is {name!r}; it must be one of {', '.join(get_args(Views))}")
    return tuple(View(*symmetry, scale) for scale in scales for symmetry in symmetries)


def average_views(
    probabilities: Callable[[Array, Array], Array],
    image: Array,
    valid: Array,
    chosen: Sequence[View],
    disagreement: bool = False,
) -> Array:
    """Mean probabilities (B, K, S, S) over the views of square windows, or (B, K + 1, S, S) with their disagreement.

    probabilities: (image (B, C, s, s), valid (B, s, s)) -> (B, K, s, s).
    """
    size = image.shape[-1]
    return averaged((view.undo(probabilities(*view.of(image, valid)), size) for view in chosen), disagreement)


def averaged(answers: Iterable[Array], disagreement: bool = False) -> Array:
    """The mean of probabilities, each (B, K, S, S), which is written over the first of them; see `average_views`.

    Over models their disagreement is the mutual information between a pixel's class and the model, divided by its
    maximum: 0 where all say the same, however unsure they are.
    """
    total: Array | None = None
    entropies: Array | None = None
    count = 0
    for one in answers:
        count += 1
        if disagreement:
            own = _entropy(one)
            entropies = own if entropies is None else _added(entropies, own)
        total = one if total is None else _added(total, one)
    assert total is not None, "there is at least one"
    xp, mean = library_of(total), total
    if count > 1:
        mean /= count
    if entropies is None:
        return mean
    divergence = _entropy(mean) - entropies / count
    xp.clip(divergence, 0, None, out=divergence)
    most = log(max(2, min(count, mean.shape[1])))
    return xp.concatenate([mean, divergence / most], 1)


def _added(total: Array, one: Array) -> Array:
    total += one
    return total


def _interpolated(batch: Array, side: int) -> Array:
    """Tensors (B, C, s, s) at another size; what runs without torch takes windows of one size."""
    from torch.nn.functional import interpolate

    return interpolate(batch, (side, side), mode="bilinear", antialias=True)


def _entropy(scores: Array) -> Array:
    """(B, 1, S, S) in nats."""
    return entr(scores).sum(1, keepdims=True)
