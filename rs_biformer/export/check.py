"""Whether an exported model computes what the checkpoint does, and what a coarser precision costs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rs_biformer.errors import CheckpointError
from rs_biformer.evaluation import confusion as figures
from rs_biformer.export.deployed import Deployed
from rs_biformer.export.samples import Samples
from rs_biformer.nn.attention.bra import closest_ties
from rs_biformer.schema import IGNORE

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Raw windows (B, C, S, S) -> probabilities (B, K, S, S), by an exported file."""

TOLERANCE = 1e-4
"""Difference of one probability beyond which an export in float32 is refused."""

TIE = 1e-5
"""Routed attention picks regions by rank. Where the last that is picked and the first that is not are closer than this
share of their affinity, rounding decides, and two programs may decide differently: such a window proves nothing."""

TIED_TOLERANCE = 1e-3
"""Mean difference of probabilities in such a window beyond which an export is refused all the same."""

CHANGED = {"fp32": 1e-3, "fp16": 0.01, "int8": 0.1}
"""Share of pixels that may get another class than in float32, unless the caller says."""

BATCH = 3
"""Windows at a time; the first also goes alone."""


@dataclass(frozen=True)
class Agreement:
    """How an exported model and the checkpoint agree.

    origin: the windows, in words. largest: difference of one probability; equal: share of valid pixels of equal class.
    ties: windows whose routes are a tie, see TIE, and tied: the largest difference there.
    scores: (mIoU, overall accuracy) of the checkpoint and of the file, where there are labels.
    """

    origin: str
    largest: float
    equal: float
    ties: int = 0
    tied: float = 0.0
    scores: tuple[tuple[float, float], tuple[float, float]] | None = None

    def __str__(self) -> str:
        parts = [
            f"on {self.origin}, 1 and {BATCH} at a time: probabilities differ by {self.largest:.1e} at most",
            f"classes are equal on {floored(self.equal)} %",
        ]
        if self.ties:
            parts.append(f"up to {self.tied:.1e} in {self.ties} where routes are a tie within rounding")
        if self.scores is not None:
            (miou, accuracy), (own_miou, own_accuracy) = self.scores
            parts.append(
                f"mIoU {own_miou:.4f} where the checkpoint has {miou:.4f} ({own_miou - miou:+.4f}), "
                f"overall accuracy {own_accuracy:.4f} where it has {accuracy:.4f} ({own_accuracy - accuracy:+.4f})"
            )
        return ", ".join(parts)


def floored(share: float) -> str:
    """A share as a percentage that says 100 only where all is meant.

    >>> floored(0.9999999), floored(1.0), floored(0.98765)
    ('99.999', '100', '98.765')
    """
    return "100" if share == 1 else f"{int(share * 1e5) / 1e3:.3f}"


def compare(deployed: Deployed, run: Run, samples: Samples, exact: bool = True) -> Agreement:
    """Run both on the same windows. exact: both compute in float32, so that ties between routes are worth a look.

    Raises CheckpointError for a result of another shape or that is not finite.
    """
    order = np.resize(np.arange(len(samples)), max(len(samples), BATCH))  # windows again, where there are too few
    image = samples.image[order]
    alone = run(image[:1])
    found = np.concatenate([run(image[at : at + BATCH]) for at in range(0, len(image), BATCH)])[: len(samples)]
    wanted = np.concatenate([deployed.probabilities(torch.from_numpy(one[None])).numpy() for one in samples.image])
    if found.shape != wanted.shape or not np.isfinite(found).all() or not np.isfinite(alone).all():
        what = "values that are not finite" if found.shape == wanted.shape else f"{found.shape} for {wanted.shape}"
        raise CheckpointError(f"the exported {deployed.name} gives {what}; nothing was written")
    difference = abs(found - wanted)
    difference[:1] = np.maximum(difference[:1], abs(alone - wanted[:1]))
    difference *= samples.valid[:, None]
    ties = _ties(deployed, samples.image, difference) if exact else np.zeros(len(samples), np.bool_)
    return Agreement(
        samples.origin,
        float(difference[~ties].max(initial=0)),
        float((found.argmax(1) == wanted.argmax(1))[samples.valid].mean()),
        int(ties.sum()),
        float(difference[ties].max(initial=0)),
        _scores(wanted, found, samples),
    )


def require_equal(agreement: Agreement, name: str) -> None:
    """Raise CheckpointError where both do not compute the same in float32."""
    if not agreement.largest <= TOLERANCE:
        raise CheckpointError(
            f"the exported {name} differs by {agreement.largest:.2g} in a probability, where {TOLERANCE:g} is allowed "
            f"({agreement.origin}); nothing was written: please report the encoder and decoder"
        )


def require_classes(agreement: Agreement, precision: str, changed: float | None, name: str) -> None:
    """Raise CheckpointError where more than this share of the pixels changed class, or than CHANGED has it."""
    changed = CHANGED[precision] if changed is None else changed
    if not 1 - agreement.equal <= changed:
        raise CheckpointError(
            f"{precision} gives {name} other classes on {100 * (1 - agreement.equal):.3g} % of the pixels, where "
            f"{100 * changed:g} % are allowed ({agreement.origin}); nothing was written: take another --precision, or "
            "allow it with --max-changed"
        )


def _ties(deployed: Deployed, image: NDArray[np.float32], difference: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which windows differ because rounding decides their routes (N,): sought only among those that differ."""
    far: NDArray[np.bool_] = difference.max((1, 2, 3)) > TOLERANCE
    for at in np.flatnonzero(far):
        with torch.inference_mode():
            closest = closest_ties(deployed, torch.from_numpy(image[at, None]))
        far[at] = bool(closest < TIE) and difference[at].mean() <= TIED_TOLERANCE
    return far


def _scores(
    wanted: NDArray[np.float32], found: NDArray[np.float32], samples: Samples
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    if samples.label is None:
        return None
    label = np.where(samples.valid, samples.label, IGNORE).astype(np.uint8)
    both = []
    for probabilities in (wanted, found):
        classes = probabilities.shape[1]
        counted = figures.count(label, probabilities.argmax(1).astype(np.uint8), classes)
        both.append(
            (
                float(figures.mean_over(figures.iou(counted), tuple(range(classes)))),
                float(figures.overall_accuracy(counted)),
            )
        )
    return both[0], both[1]
