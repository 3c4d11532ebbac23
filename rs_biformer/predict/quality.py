"""How large windows are and what they share with their neighbours, where nobody says: a choice of quality and cost.

What a network knows of a pixel is what lies around it. Near the edge of a window that is cut off, so windows overlap,
and every pixel is inferred more than once: 4 times where windows share half. Windows twice as large have half as
much edge for their area, and most networks can look through them, so that an overlap as wide as before costs less than
half, and half of that does as well: what is lost near an edge is told by pixels, how much edge there is by the window
(`benchmarks/frontier.py`; the tables are in RESULTS.md).
Networks whose answers depend on the size of the image (`nn/context.py`) and exported models keep the window that they
have. Where a quality decides, routed attention has regions as large in larger windows as in those of training: with as
many as ever, each pixel attends to four times as many others, which cost about a tenth of a pass and was no better.
Where a window is given, and nothing else, there are as many as in training.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt, prod
from typing import NamedTuple

from rs_biformer.geometry import window_starts
from rs_biformer.predict.options import Quality, Windows

OVERLAP = 0.5
"""Where a window is given and nothing else, or nothing is known of a model."""

DEFAULT: Quality = "balanced"
"""The cheapest that lost no more than 0.2 points of mIoU with any network that was measured, see RESULTS.md."""

STEP = 32
"""Windows that are fitted to a scene are multiples of this, which all networks take."""

LEAST = 256
"""A pass may hold as many pixels as its batch of windows of this size, also where those of training were smaller."""


class _Choice(NamedTuple):
    """times: side of a window in those of training, about. shared: of two neighbours, as a share of a window of
    training. most: pixels that they share at most where windows are larger than that, up to 256; of larger windows
    fewer, down to half.
    """

    times: int
    shared: float
    most: int = 10**9

    def most_of(self, size: int) -> int:
        """Pixels that windows of `size` share at most."""
        return max(self.most * LEAST // max(size, LEAST), self.most // 2)


_CHOICES: dict[Quality, _Choice] = {
    "fast": _Choice(2, 0.25, 32),  # 1.31 pixels inferred for each with windows of training of 128, 1.06 with 256
    "balanced": _Choice(2, 0.5, 64),  # 1.78 and 1.12
    "best": _Choice(1, 0.5),  # 4
}


@dataclass(frozen=True)
class Sight:
    """What of a model decides how it looks at a scene.

    window: pixels on a side in training, or the only size that an exported model takes. grows: whether it sees alike in
    larger ones. routes: whether it has routed attention.
    """

    window: int = 256
    grows: bool = False
    routes: bool = False


class Seen(NamedTuple):
    """Windows of `window` pixels that share `overlap` of their side, `batch_size` of them at a time, at most; and by
    what rule, in words.
    """

    window: int
    overlap: float
    batch_size: int
    rule: str = ""


def choices(windows: Windows, batch_size: int, sight: Sight | None, height: int, width: int) -> Iterator[Seen]:
    """How to look at a scene of `height` x `width` pixels, the wanted first; the others take less memory.

    Window and overlap that were given are taken as they are: of the two, the one that was not is that of training, or a
    half. Where neither was, or a quality, the quality decides. sight: None for a model that is not known, which looks
    as at `best`.
    """
    known = sight or Sight()
    if not _decides(windows, sight):
        yield Seen(
            known.window if windows.window is None else windows.window,
            OVERLAP if windows.overlap is None else windows.overlap,
            batch_size,
        )
        return
    quality = windows.quality or DEFAULT
    for times in _times(windows, batch_size, known, _CHOICES[quality].times):
        yield _seen(windows, batch_size, known, times, quality, (height, width))


def keeps_regions(windows: Windows, sight: Sight | None) -> bool:
    """Whether regions of routed attention are as large as in training, and not as many: where a quality decides that
    windows may be larger.
    """
    larger = _CHOICES[windows.quality or DEFAULT].times > 1
    return sight is not None and sight.grows and sight.routes and larger and _decides(windows, sight)


def _decides(windows: Windows, sight: Sight | None) -> bool:
    """Whether the quality does, by a rule or because it was given."""
    given = windows.window is not None or windows.overlap is not None
    return windows.quality is not None or (sight is not None and not given)


def _times(windows: Windows, batch_size: int, sight: Sight, wanted: int) -> list[int]:
    """How many times the window of training on a side, from the largest on that a pass may hold."""
    if windows.window is not None or not sight.grows:
        return [1]
    most = batch_size * max(sight.window, LEAST) ** 2
    return [times for times in range(wanted, 0, -1) if times == 1 or (times * sight.window) ** 2 <= most]


def _seen(
    windows: Windows, batch_size: int, sight: Sight, times: int, quality: Quality, scene: tuple[int, int]
) -> Seen:
    choice, pixels = _CHOICES[quality], batch_size * max(sight.window, LEAST) ** 2
    shared, nominal = round(choice.shared * sight.window), windows.window or times * sight.window
    if nominal > sight.window:
        shared = min(shared, choice.most_of(nominal))
    if windows.window is not None:
        shared = min(shared, windows.window // 2)
        size = windows.window
    elif times == 1:
        size = sight.window
    elif windows.overlap is not None:
        size = times * sight.window
    else:
        size = fitted(scene, _largest(nominal, pixels), sight.window, shared)
    overlap = shared / size if windows.overlap is None else windows.overlap
    batch = batch_size if windows.window is not None else max(1, min(batch_size, pixels // size**2))
    kept = keeps_regions(windows, sight) and size > sight.window
    return Seen(size, overlap, batch, f"quality {quality}{', regions as large as in training' * kept}")


def _largest(nominal: int, pixels: int) -> int:
    """The largest of windows that are to be about `nominal`: an eighth more, if a pass may hold its `pixels`.

    Small ones are not enlarged: a network of windows of 128 lost a quarter of a point by it.
    """
    if nominal < 2 * LEAST:
        return nominal
    return max(nominal, min(nominal * 9 // 8, isqrt(pixels)) // STEP * STEP)


def fitted(scene: tuple[int, int], largest: int, least: int, shared: int) -> int:
    """The side of windows with which the fewest pixels of a scene are inferred: the last of a row is shifted in, so
    that windows that do not fit look at much twice.

    From three quarters of `largest` on, or from the shorter side of a scene that is smaller; `least` at least.
    """
    floor: int = max(least, min(largest * 3 // 4, *scene))
    sides: list[int] = [*([least] if floor == least else []), *range(-(-floor // STEP) * STEP, largest, STEP), largest]

    def inferred(side: int) -> int:
        stride = max(1, side - shared)
        return prod(side * len(window_starts(length, side, stride)) for length in scene)

    return min(sides, key=lambda side: (inferred(side), -side))
