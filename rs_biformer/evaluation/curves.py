"""Training curves: Lightning's metrics.csv -> series -> SVG."""

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from markupsafe import Markup

from rs_biformer.errors import ConfigError
from rs_biformer.evaluation.calibration import CalibrationCounts
from rs_biformer.schema import ClassSchema, Colour

Points = list[tuple[float, float]]

_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 14, 34
_INKS = ("#0f5c6e", "#c2571a", "#6b4c9a", "#5b7f2b", "#a23b5e", "#7a6a2f")


@dataclass(frozen=True)
class Series:
    """A line of a chart: its name, an SVG colour, and points (x, y) with x ascending."""

    name: str
    colour: str
    points: Points


@dataclass(frozen=True)
class Chart:
    """A chart: title, the word under the x axis, lines, and whether y is a share to be shown in per cent."""

    title: str
    x_name: str
    series: tuple[Series, ...]
    shares: bool


def read_curves(path: str | PathLike[str]) -> tuple[str, dict[str, Points]]:
    """Columns of a metrics.csv by name, over `epoch` or, within a single epoch or without epochs, over `step`.

    Cells that are empty or no finite number are skipped: Lightning logs training and validation on rows of their own.
    Values of the same x are averaged. Of `NAME_step` and `NAME_epoch` the latter counts, as NAME.

    Raises ConfigError when the file cannot be read or holds no numbers.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as source:
            rows = list(csv.DictReader(source))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path} cannot be read as training curves: {reason}; give a metrics.csv") from None
    numbers = [{name: value for name, text in row.items() if (value := _number(text)) is not None} for row in rows]
    epochs = {row["epoch"] for row in numbers if "epoch" in row}
    x_name = "epoch" if len(epochs) > 1 or not any("step" in row for row in numbers) else "step"
    columns: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for place, row in enumerate(numbers):
        for name, value in row.items():
            if name not in ("epoch", "step"):
                columns[name][row.get(x_name, float(place))].append(value)
    found = {
        name: [(x, sum(values) / len(values)) for x, values in sorted(column.items())]
        for name, column in columns.items()
    }
    if not found:
        raise ConfigError(
            f"{path} holds no training curves: no column but epoch and step has numbers; give a metrics.csv"
        )
    for name in [name for name in found if name.endswith("_epoch")]:
        found[name.removesuffix("_epoch")] = found.pop(name)
    return x_name, {
        name: points
        for name, points in found.items()
        if not (name.endswith("_step") and name.removesuffix("_step") in found)
    }


def charts(x_name: str, columns: Mapping[str, Points], schema: ClassSchema) -> list[Chart]:
    """What to draw of the columns: loss, mean scores, IoU per class, learning rate, each where it was logged."""
    losses = [name for name in columns if "loss" in name.split("/")[-1]]
    means = [name for name in columns if name.split("/")[-1].lower() in _MEANS]
    per_class = {name: name.split("/iou/", 1)[1] for name in columns if "/iou/" in name}
    rates = [name for name in columns if name.startswith("lr")]
    colours = dict(zip(schema.classes, schema.colours, strict=True))
    groups: list[tuple[str, list[tuple[str, str, Colour | None]], bool]] = [
        ("Loss", [(name, name.replace("/", " "), None) for name in losses], False),
        ("Scores on the validation set", [(name, _mean_name(name), None) for name in means], True),
        ("IoU per class", [(name, label, colours.get(label)) for name, label in per_class.items()], True),
        ("Learning rate", [(name, name, None) for name in rates], False),
    ]
    return [
        Chart(
            title,
            x_name,
            tuple(
                Series(label, _INKS[place % len(_INKS)] if colour is None else ink(colour), columns[name])
                for place, (name, label, colour) in enumerate(entries)
            ),
            shares,
        )
        for title, entries, shares in groups
        if entries
    ]


_MEANS = {"oa": "OA", "miou": "mIoU", "mf1": "mF1", "accuracy": "OA", "mean_iou": "mIoU", "mean_f1": "mF1"}


def _mean_name(column: str) -> str:
    stage, _, name = column.rpartition("/")
    return _MEANS[name.lower()] if stage in ("", "val") else f"{stage} {_MEANS[name.lower()]}"


def ink(colour: Colour) -> str:
    """A class colour as the colour of a line on white: darkened until it stands out (relative luminance under 0.4)."""
    parts = [part / 255 for part in colour]
    while 0.2126 * parts[0] ** 2.2 + 0.7152 * parts[1] ** 2.2 + 0.0722 * parts[2] ** 2.2 > 0.4:
        parts = [part * 0.95 for part in parts]
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


def svg(chart: Chart) -> Markup:
    """The chart as an inline SVG element, axes and lines; names of lines are the caller's."""
    xs = [x for line in chart.series for x, _ in line.points]
    ys = [y for line in chart.series for _, y in line.points]
    x_low, x_high = min(xs), max(xs)
    ticks = nice_ticks(min(ys), max(ys))
    y_low, y_high = min(ticks[0], min(ys)), max(ticks[-1], max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (y - y_low) / (y_high - y_low)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(_WIDTH, _HEIGHT, chart.title)]
    for tick in ticks:
        _, y = place(x_low, tick)
        label = f"{100 * tick:.3g} %" if chart.shares else f"{tick:.4g}"
        line = Markup('<line x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}" stroke="#e8e6e0"/>')
        parts.append(line.format(_LEFT, _WIDTH - _RIGHT, y, y))
        parts.append(_TEXT_END.format(f"{_LEFT - 8}", f"{y + 4.5:.1f}", label))
    for tick in _whole_ticks(x_low, x_high):
        x, _ = place(tick, y_low)
        middle = Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:,}</text>')
        parts.append(middle.format(x, _HEIGHT - _BOTTOM + 17, tick))
    parts.append(_TEXT_END.format(_WIDTH - _RIGHT, _HEIGHT - 3, chart.x_name))
    for series in chart.series:
        points = [place(x, y) for x, y in series.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(
            Markup(
                '<polyline points="{}" fill="none" stroke="{}" stroke-width="2" stroke-linejoin="round" '
                'stroke-linecap="round"/>'
            ).format(path, series.colour)
        )
        circle = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"/>')
        parts.append(circle.format(*points[-1], series.colour))
    return Markup("\n").join([*parts, Markup("</svg>")])


_TEXT_END = Markup('<text x="{}" y="{}" text-anchor="end">{}</text>')


def reliability_svg(counts: CalibrationCounts) -> Markup:
    """The share of right pixels over the confidence, a bar per bin, and the diagonal; below, each bin's pixels."""
    side, left, top, gap, strip = 300, 56, 12, 34, 56
    bins = len(counts.pixels)
    step = side / bins
    shares = counts.pixels / max(1, counts.pixels.sum())
    base = top + side + gap + strip
    parts = [f'<svg viewBox="0 0 {left + side + 16} {base + 38}" role="img" aria-label="Reliability curve">']
    for tick in range(0, 101, 25):
        y, x = top + side * (1 - tick / 100), left + side * tick / 100
        parts.append(f'<line x1="{left}" x2="{left + side}" y1="{y:g}" y2="{y:g}" stroke="#e8e6e0"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4.5:g}" text-anchor="end">{tick} %</text>')
        parts.append(f'<text x="{x:g}" y="{base + 17}" text-anchor="middle">{tick}</text>')
    for place in np.flatnonzero(counts.pixels):
        height, x = side * counts.accuracy[place], left + place * step
        y = top + side * (1 - counts.mean_confidence[place])
        tip = (
            f"{int(counts.pixels[place]):,} pixels: {100 * counts.accuracy[place]:.2f} % right at "
            f"{100 * counts.mean_confidence[place]:.2f} % confidence"
        )
        parts.append(
            f'<g><title>{tip}</title><rect x="{x + 1:.1f}" y="{top + side - height:.1f}" width="{step - 2:.1f}" '
            f'height="{height:.1f}" fill="#0f5c6e" opacity=".8"/><line x1="{x + 1:.1f}" x2="{x + step - 1:.1f}" '
            f'y1="{y:.1f}" y2="{y:.1f}" stroke="#c2571a" stroke-width="2.5"/>'
            f'<rect x="{x + 1:.1f}" y="{base - strip * shares[place] / shares.max():.1f}" width="{step - 2:.1f}" '
            f'height="{strip * shares[place] / shares.max():.1f}" fill="#8fa3a8"/></g>'
        )
    parts.append(
        f'<line x1="{left}" x2="{left + side}" y1="{top + side}" y2="{top}" stroke="#1c2329" stroke-dasharray="4 4"/>'
    )
    parts.append(f'<text x="{left}" y="{top + side + gap - 10}">share of the pixels</text>')
    parts.append(f'<text x="{left + side}" y="{base + 33}" text-anchor="end">confidence in per cent</text>')
    return Markup("\n".join([*parts, "</svg>"]))  # numbers and words of ours alone


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, the first at most `low` and the last at least `high`."""
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, 1e-300):  # what is left of the digits could not be told apart on an axis
        spread = size / 2 if size > 1e-300 else 0.5
        low, high = low - spread, high + spread
    raw = (high - low) / wanted
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    return [number * step for number in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def _whole_ticks(low: float, high: float) -> Sequence[int]:
    """Whole numbers within the range: epochs and steps have no halves."""
    inside = {round(tick) for tick in nice_ticks(low, high) if low <= round(tick) <= high}
    return sorted(inside or {round(low)})


def _number(text: object) -> float | None:
    try:
        value = float(text)  # type: ignore[arg-type]  # a short row gives None, a long one a list
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
