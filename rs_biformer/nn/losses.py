"""Losses of semantic segmentation that never see an ignored pixel.

Shape legend: B batch, K classes, H and W pixels, P pixels of the batch that have a label.

The pixels that have a label are gathered once, (B, K, H, W) -> (P, K), before any term but `boundary` looks at them, so
that no term needs an ignore index of its own and a logit under an ignored pixel, be it inf or NaN, reaches neither the
loss nor the gradient. `boundary` needs neighbours and masks instead.

What that works around in segmentation_models_pytorch 0.6:

- `SoftCrossEntropyLoss` zeroes the ignored pixels but divides by all of them, so nodata dilutes the loss; it takes no
  class weights. torch's cross-entropy serves instead.
- `LovaszLoss` returns an empty tensor, not a scalar, for a batch without labels, and fails for float64 logits.
- `FocalLoss` returns NaN for a batch without labels. It is also K one-against-all sigmoid losses, whereas the class
  map and its confidence are read from a softmax; the focal term here is the softmax form of Lin et al. (2017).
- `DiceLoss` is right with an ignore index and is used as it is: a class absent from the batch adds 0 to the mean
  over all K classes, hence also no gradient.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import DiceLoss, LovaszLoss
from torch import Tensor, nn

from rs_biformer.errors import ConfigError
from rs_biformer.schema import IGNORE

FOCAL_GAMMA = 2.0
"""How strongly the focal term turns away from pixels that are already right; the paper's value."""

BOUNDARY_REACH = 2
"""Pixels by which two outlines may lie apart and still meet in the boundary term; the paper's value (5 x 5)."""


def cross_entropy(logits: Tensor, target: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    """Mean cross-entropy; with class weights the mean is weighted, so a batch of one class keeps its scale."""
    return F.cross_entropy(logits, target, weight=weights, label_smoothing=smoothing)


def focal(logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Cross-entropy times (1 - p)^2, p being the probability of the true class (Lin et al. 2017)."""
    surprise = F.cross_entropy(logits, target, reduction="none")
    loss = (1 - torch.exp(-surprise)) ** FOCAL_GAMMA * surprise
    if weights is None:
        return loss.mean()
    weight = weights[target]
    return (weight * loss).sum() / weight.sum()


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice per class over the whole batch, absent classes counting 0, then the mean over the K classes."""
    loss: Tensor = DiceLoss("multiclass")(logits.T[None], target[None])
    return loss


def lovasz(logits: Tensor, target: Tensor) -> Tensor:
    """Lovász-softmax over the whole batch, the mean over the classes that are present (Berman et al. 2018)."""
    loss: Tensor = LovaszLoss("multiclass")(logits.T[None, :, :, None], target[None, :, None])
    return loss


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
        with torch.autocast(logits.device.type, enabled=False):
            known = target != self.ignore_index
            labelled = known.flatten().nonzero().squeeze(1)
            # index_select, not a boolean mask: on a GPU the gradient of a mask begins by sorting all indices
            pixels = logits.movedim(1, -1).reshape(-1, classes).index_select(0, labelled).float()
            truth = target.flatten().index_select(0, labelled)
            if not len(truth):
                return pixels.sum()  # 0.0 of no pixels, with a path back to the logits
            _require_known_labels(truth, classes)
            term: dict[str, Callable[[], Tensor]] = {
                "cross_entropy": lambda: cross_entropy(pixels, truth, self.class_weights, self.label_smoothing),
                "focal": lambda: focal(pixels, truth, self.class_weights),
                "dice": lambda: dice(pixels, truth),
                "lovasz": lambda: lovasz(pixels, truth),
                "boundary": lambda: boundary(logits.float(), target.where(known, 0), known),
            }
            return torch.stack([weight * term[name]() for name, weight in self.terms.items()]).sum()

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


def _require_known_labels(truth: Tensor, classes: int) -> None:
    # on a GPU an index out of range would end the process with an assertion that names no label
    low, high = (int(bound) for bound in torch.aminmax(truth))
    if low < 0 or high >= classes:
        raise ConfigError(
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
    and zero gradients. The module raises ConfigError for shapes or labels that do not fit.

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
