"""Losses of semantic segmentation that never see an ignored pixel.

Shape legend: B batch, K classes, H and W pixels, P pixels that a term looks at.

Logits under ignored pixels become 0 before any term sees them, so that none of these, be it inf or NaN, reaches the
loss or the gradient. Every term takes a mask of the pixels that count. Nothing here asks a GPU for a number: leaving
pixels out means to count them, for which the processor would wait for all that the GPU has still to do, at every step.
On a CPU that costs nothing, and pixels without a label are left out first.

Of segmentation_models_pytorch 0.6 `DiceLoss` is used as it is: a class absent from the batch adds 0 to the mean over
all K classes, hence also no gradient. Its others are not:

- `SoftCrossEntropyLoss` zeroes the ignored pixels but divides by all of them, so nodata dilutes the loss; it takes no
  class weights. torch's cross-entropy serves instead.
- `LovaszLoss` waits for the GPU once per class, returns an empty tensor, not a scalar, for a batch without labels, and
  fails for float64 logits.
- `FocalLoss` returns NaN for a batch without labels. It is also K one-against-all sigmoid losses, whereas the class
  map and its confidence are read from a softmax; the focal term here is the softmax form of Lin et al. (2017).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor, nn

from rs_biformer.errors import ConfigError
from rs_biformer.nn.attention.softmax import without_autocast
from rs_biformer.schema import IGNORE

FOCAL_GAMMA = 2.0
"""How strongly the focal term turns away from pixels that are already right; the paper's value."""

BOUNDARY_REACH = 2
"""Pixels by which two outlines may lie apart and still meet in the boundary term; the paper's value (5 x 5)."""


_NONE = -100
"""The class index by which torch and smp leave a pixel out."""


def cross_entropy(logits: Tensor, target: Tensor, known: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    """Mean cross-entropy; with class weights the mean is weighted, so a batch of one class keeps its scale."""
    truth = target.where(known, _NONE)
    mean = F.cross_entropy(logits, truth, weight=weights, label_smoothing=smoothing, ignore_index=_NONE)
    return mean.where(known.any(), 0.0)  # of no pixels torch's mean is NaN


def focal(logits: Tensor, target: Tensor, known: Tensor, weights: Tensor | None) -> Tensor:
    """Cross-entropy times (1 - p)^2, p being the probability of the true class (Lin et al. 2017)."""
    surprise = F.cross_entropy(logits, target.where(known, _NONE), reduction="none", ignore_index=_NONE)
    loss = (1 - torch.exp(-surprise)) ** FOCAL_GAMMA * surprise
    if weights is None:
        return loss.sum() / known.sum().clamp_min(1)
    weight = weights[target] * known
    return (weight * loss).sum() / weight.sum().where(known.any(), 1.0)


def dice(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """1 - soft Dice per class over the whole batch, absent classes counting 0, then the mean over the K classes."""
    loss: Tensor = DiceLoss("multiclass", ignore_index=_NONE)(logits.T[None], target.where(known, _NONE)[None])
    return loss


def lovasz(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Lovász-softmax over the whole batch, the mean over the classes that are present (Berman et al. 2018, alg. 1)."""
    total, present = logits.new_zeros(()), logits.new_zeros(())
    for number, probability in enumerate(logits.T.softmax(0)):
        truth = ((target == number) & known).to(logits.dtype)
        # An ignored pixel has no error: it comes after all that have one, and what it is multiplied with is 0.
        errors, order = ((truth - probability).abs() * known).sort(descending=True)
        occurs = truth.any()
        total = total + torch.dot(errors, _jaccard_steps(truth[order])) * occurs
        present = present + occurs
    return total / present.clamp_min(1)


def _jaccard_steps(truth: Tensor) -> Tensor:
    """By how much the Jaccard loss grows as one pixel after the other is got wrong; truth: 0 or 1 per pixel, (P,)."""
    total = truth.sum()
    loss = 1 - (total - truth.cumsum(0)) / (total + (1 - truth).cumsum(0))
    return torch.cat([loss[:1], loss[1:] - loss[:-1]])


def boundary(logits: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
    """1 - the soft F1 score of class outlines, the mean over the classes that have one (Bokhovkin and Burnaev 2019).

    logits (B, K, H, W); target (B, H, W), with any class where it is not labelled; labelled (B, H, W) bool.
    An outline is what an erosion by 3 x 3 takes from a class; outlines that lie within BOUNDARY_REACH pixels of each
    other meet. An ignored pixel beside a class makes no outline.
    """
    known = labelled[:, None]
    truth = F.one_hot(target, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    drawn, predicted = _outline(truth, known), _outline(logits.where(known, 0.0).softmax(1), known)
    over = (0, 2, 3)
    drawn_total, predicted_total = drawn.sum(over), predicted.sum(over)
    precision = (predicted * _dilate(drawn, BOUNDARY_REACH)).sum(over) / predicted_total.clamp_min(1e-6)
    recall = (drawn * _dilate(predicted, BOUNDARY_REACH)).sum(over) / drawn_total.clamp_min(1e-6)
    missed = 1 - 2 * precision * recall / (precision + recall).clamp_min(1e-6)
    present = drawn_total > 0
    return (missed * present).sum() / present.sum().clamp_min(1)


def _outline(share: Tensor, known: Tensor) -> Tensor:
    """What an erosion by 3 x 3 takes away from each class, (B, K, H, W) in [0, 1]."""
    outside = (1 - share) * known
    return (_dilate(outside, 1) - outside) * known


def _dilate(share: Tensor, reach: int) -> Tensor:
    """The maximum over the square of `reach` pixels to each side."""
    return F.max_pool2d(share, 2 * reach + 1, stride=1, padding=reach)


PIXEL_TERMS = ("cross_entropy", "focal")
"""Terms that weigh pixels. The others compare areas or outlines: each class counts alike whatever its share."""

TERMS = (*PIXEL_TERMS, "dice", "lovasz", "boundary")


class SegmentationLoss(nn.Module):
    """Weighted sum of loss terms over the pixels that have a label; see `create_loss`.

    forward(logits (B, K, H, W) of any float dtype, target (B, H, W) int64) -> scalar, in float32 also under autocast.
    """

    class_weights: Tensor | None

    def __init__(
        self, terms: Mapping[str, float], class_weights: Tensor | None, label_smoothing: float, ignore_index: int
    ) -> None:
        super().__init__()
        self.terms = dict(terms)
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        # not in the state dict: a checkpoint of the loss would otherwise not load into one without weights
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        classes = self._checked_classes(logits, target)
        with without_autocast(logits.device):
            known = target != self.ignore_index
            fits = (target >= 0) & (target < classes)
            wrong = (known & ~fits).any()
            if _can_be_counted(logits.device) and wrong:
                raise ConfigError(unknown_label(target, known, classes))
            labelled = known & fits
            # an index out of range would end the process with an assertion of the GPU that names no label
            truth = target.where(labelled, 0)
            pixels, truths, mask = _pixels(logits, truth, labelled)
            term: dict[str, Callable[[], Tensor]] = {
                "cross_entropy": lambda: cross_entropy(pixels, truths, mask, self.class_weights, self.label_smoothing),
                "focal": lambda: focal(pixels, truths, mask, self.class_weights),
                "dice": lambda: dice(pixels, truths, mask),
                "lovasz": lambda: lovasz(pixels, truths, mask),
                "boundary": lambda: boundary(logits.float(), truth, labelled),
            }
            if not len(truths):
                return pixels.sum()  # 0.0 of no pixels, with a path back to the logits
            total = torch.stack([weight * term[name]() for name, weight in self.terms.items()]).sum()
            return total if _can_be_counted(logits.device) else total.where(~wrong, math.nan)

    def _checked_classes(self, logits: Tensor, target: Tensor) -> int:
        if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
            raise ConfigError(
                f"loss got logits {tuple(logits.shape)} and target {tuple(target.shape)}; "
                "they must be (B, classes, H, W) and (B, H, W) of the same B, H, W"
            )
        classes = logits.shape[1]
        if classes < 2:
            raise ConfigError(
                f"loss got logits of {classes} class, and the softmax of one class is always 1; "
                "give the rest of the scene a class of its own"
            )
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise ConfigError(
                f"loss got {len(self.class_weights)} class weights for logits of {classes} classes; give one per class"
            )
        return classes


def _can_be_counted(device: torch.device) -> bool:
    """Whether asking how many or which is free of waiting for a queue of work."""
    return device.type == "cpu"


def _pixels(logits: Tensor, target: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(P, K) float32, (P,), (P,): what the terms look at, on a CPU the pixels that count, elsewhere all of them."""
    pixels = logits.movedim(1, -1).reshape(-1, logits.shape[1])
    target, known = target.flatten(), known.flatten()
    if not _can_be_counted(logits.device):
        return pixels.where(known[:, None], 0.0).float(), target, known
    places = known.nonzero().squeeze(1)
    return pixels.index_select(0, places).float(), target.index_select(0, places), known.index_select(0, places)


def unknown_label(target: Tensor, known: Tensor, classes: int) -> str:
    """A line about the labels, among those that are known, that are none of 0 to classes - 1; empty where all are."""
    low, high = (int(bound) for bound in torch.aminmax(target[known])) if known.any() else (0, 0)
    if low >= 0 and high < classes:
        return ""
    return (
        f"target holds class index {low if low < 0 else high}, the logits have classes 0 to {classes - 1}; "
        "use the schema that the tiles were made with, or mark those pixels with the ignore index"
    )


def create_loss(
    terms: str | Mapping[str, float],
    *,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORE,
) -> nn.Module:
    """A loss of one term, or the weighted sum of several.

    terms: `cross_entropy`, `dice`, `lovasz`, `focal` or `boundary`; or a mapping of these to their weights, such as
        {"cross_entropy": 1.0, "dice": 1.0}.
    class_weights: one positive number per class, by which `cross_entropy` and `focal` weigh the pixels of that class;
        the mean is over weights, so only their ratios matter.
    label_smoothing: share of the label spread evenly over all classes, in [0, 1); `cross_entropy` only.
    ignore_index: label of the pixels that have none.

    Returns a module: (logits (B, K, H, W), target (B, H, W) int64) -> scalar. A batch without a single label gives 0.0
    and zero gradients. The module raises ConfigError for shapes that do not fit, on a CPU also for labels that do not;
    on a GPU, which it never waits for, such labels make the loss NaN.

    Raises ConfigError for an unknown term and for options that no chosen term would use.
    """
    weights = {terms: 1.0} if isinstance(terms, str) else dict(terms)
    _require_terms(weights)
    if not 0 <= label_smoothing < 1:
        raise ConfigError(f"label_smoothing is {label_smoothing}; it must lie in [0, 1), such as 0.1")
    if label_smoothing and "cross_entropy" not in weights:
        raise ConfigError("label_smoothing is used by cross_entropy alone; add that term or set label_smoothing to 0")
    return SegmentationLoss(weights, _class_weights(class_weights, weights), label_smoothing, ignore_index)


def _require_terms(weights: Mapping[str, float]) -> None:
    if not weights:
        raise ConfigError(f"a loss needs at least one term; choose from {', '.join(TERMS)}")
    for name, weight in weights.items():
        if name not in TERMS:
            near = get_close_matches(str(name), TERMS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"unknown loss term {name!r}; {hint}terms are {', '.join(TERMS)}")
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"loss term {name!r} has weight {weight}; it must be positive, or leave the term out")


def _class_weights(class_weights: Sequence[float] | None, terms: Mapping[str, float]) -> Tensor | None:
    if class_weights is None:
        return None
    if not any(name in PIXEL_TERMS for name in terms):
        raise ConfigError(f"class_weights are used by {' and '.join(PIXEL_TERMS)} alone; add one of them or drop them")
    # a weight of 0 would make the mean 0 / 0 in a batch that holds nothing else
    if not all(math.isfinite(weight) and weight > 0 for weight in class_weights):
        raise ConfigError(
            f"class_weights are {list(class_weights)}; each must be a positive number: "
            "to leave a class out, give its pixels the ignore index"
        )
    return torch.tensor(list(class_weights), dtype=torch.float32)
