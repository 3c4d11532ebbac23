"""Metrics as a table, as JSON and as a picture of the confusion matrix. The HTML page is in `page`."""

import json
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rs_biformer import __version__
from rs_biformer.evaluation.compare import Comparison, comparison_to_dict
from rs_biformer.evaluation.metrics import BLOCK, Metrics
from rs_biformer.evaluation.results import metrics_to_dict
from rs_biformer.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


TABLE_HEADER = ("class", "IoU", "F1", "precision", "recall", "pixels", "share")
COMPARED = ("mean_iou", "mean_f1", "overall_accuracy")
COMPARE_HEADER = ("model", "mean IoU", "interval", "mean F1", "interval", "accuracy", "interval")
DIFFERENCE_HEADER = ("first - second", "figure", "difference", "interval", "p (Holm)", "larger than chance")
FIGURE_NAMES = {
    "overall_accuracy": "overall accuracy",
    "mean_iou": "mean IoU",
    "mean_f1": "mean F1",
    "kappa": "kappa",
    "frequency_weighted_iou": "frequency-weighted IoU",
}
NO_PREDICTION = "no prediction"
_LARGEST_WRITTEN = 20
"""Classes up to which the cells of the matrix are large enough to be read."""


def percent(value: float) -> str:
    """A share as per cent with two decimals; a dash where it is undefined."""
    return "–" if math.isnan(value) else f"{100 * value:.2f}"


def quantity(pixels: int) -> str:
    """A count in at most four digits and a unit: 17, 4.2 k, 31.9 M."""
    for limit, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if pixels >= limit:
            return f"{pixels / limit:.3g}{unit}" if pixels < 999.5 * limit else f"{pixels / limit:,.0f}{unit}"
    return str(pixels)


def table_rows(metrics: Metrics) -> list[tuple[str, ...]]:
    """The rows under TABLE_HEADER: one per class, in per cent, and the means. Classes outside the means are starred."""
    scores = metrics.scores
    support = scores.confusion.support
    total = max(1, scores.confusion.evaluated)
    rows = [
        (
            name if index in scores.averaged else f"{name} *",
            percent(scores.iou[index]),
            percent(scores.f1[index]),
            percent(scores.precision[index]),
            percent(scores.recall[index]),
            f"{support[index]:,}",
            percent(support[index] / total),
        )
        for index, name in enumerate(scores.classes)
    ]
    means = (
        f"mean of {len(scores.present)}",
        percent(scores.mean_iou) + interval(metrics, "mean_iou"),
        percent(scores.mean_f1) + interval(metrics, "mean_f1"),
        "",
        "",
    )
    return [*rows, (*means, f"{scores.confusion.evaluated:,}", "")]


def summary_lines(metrics: Metrics) -> list[str]:
    """What belongs under the table: the figures of the set, what was not counted, and what to know about them."""
    scores = metrics.scores
    counts = scores.confusion
    lines = [
        "   ".join(
            f"{FIGURE_NAMES[name]} {percent(value)}{interval(metrics, name)}"
            for name, value in scores.headline.items()
            if name not in ("mean_iou", "mean_f1")
        )
        + f"   protocol {metrics.protocol.id}",
        f"intervals of {100 * metrics.resampling.level:g} % from {metrics.resampling.samples:,} draws of "
        f"{len(metrics.units.matrix)} {unit_name(metrics)}"
        if interval(metrics, "overall_accuracy")
        else f"no intervals: {len(metrics.units.matrix)} {unit_name(metrics)} are too few",
        f"{counts.evaluated:,} pixels counted, {counts.ignored:,} ignored"
        + (f" ({counts.eroded:,} of them at eroded boundaries)" if metrics.protocol.ignore_boundary else ""),
    ]
    if len(metrics.forms) > 1:
        lines += [
            f"{name}: overall accuracy {percent(form.overall_accuracy)}   mean IoU {percent(form.mean_iou)}   "
            f"mean F1 {percent(form.mean_f1)}"
            for name, form in metrics.forms.items()
        ]
    if metrics.boundary is not None and metrics.boundary_f1 is not None:
        each = zip(metrics.boundary.distances, metrics.boundary_f1, strict=True)
        lines.append("mean boundary F1: " + "   ".join(f"{percent(f1)} within {d:g} px" for d, f1 in each))
    if metrics.calibration is not None:
        calibration = metrics.calibration
        lines.append(
            f"expected calibration error {percent(calibration.expected_error)}   "
            f"confidence less accuracy {100 * calibration.overconfidence:+.2f}"
        )
    lines += [f"note: {note}" for note in metrics.cautions]
    if metrics.protocol.exclude:
        lines.append(f"* not in the means: {', '.join(metrics.protocol.exclude)}")
    return lines


def interval(metrics: Metrics, figure: str, index: int | None = None) -> str:
    """The interval of a figure in per cent, " (61.20 to 64.55)", or nothing where there is none."""
    low, high = (float(end if index is None else end[index]) for end in metrics.intervals[figure])
    return "" if math.isnan(low) else f" ({100 * low:.2f} to {100 * high:.2f})"


def unit_name(metrics: Metrics) -> str:
    """What the intervals were drawn from."""
    return f"blocks of {BLOCK} px" if metrics.resampling.unit == "blocks" else "scenes"


def compare_rows(results: Sequence[Metrics]) -> list[tuple[str, ...]]:
    """The rows under COMPARE_HEADER: one per result, each figure in per cent and its interval."""
    rows = []
    for metrics in results:
        values = metrics.scores.headline
        cells = [(percent(values[name]), interval(metrics, name).strip(" ()")) for name in COMPARED]
        rows.append((metrics.name, *(part for cell in cells for part in cell)))
    return rows


def difference_rows(found: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """The rows under DIFFERENCE_HEADER: one per pair and figure, in points of a per cent."""
    return [
        (
            f"{row.first} - {row.second}",
            FIGURE_NAMES.get(row.figure, row.figure.replace("iou ", "IoU of ", 1)),
            signed(row.value),
            f"{signed(row.low)} to {signed(row.high)}",
            "–" if math.isnan(row.adjusted) else f"{row.adjusted:.4f}",
            "yes" if row.real else "no",
        )
        for row in found
    ]


def signed(value: float) -> str:
    """A difference of shares in points; a dash where it is undefined."""
    return "–" if math.isnan(value) else f"{100 * value:+.2f}"


def write_json(path: str | PathLike[str], metrics: Metrics) -> Path:
    """Write a result as JSON and return the path."""
    return _write_json(path, metrics_to_dict(metrics))


def write_results(
    path: str | PathLike[str], results: Sequence[Metrics], comparisons: Mapping[str, Sequence[Comparison]]
) -> Path:
    """Write several results, and by protocol what sets the models apart, as one JSON file; return its path."""
    return _write_json(
        path,
        {
            "protocols": list(dict.fromkeys(metrics.protocol.id for metrics in results)),
            "comparisons": [
                {"protocol": protocol, **row}
                for protocol, found in comparisons.items()
                for row in comparison_to_dict(found)
            ],
            "results": [metrics_to_dict(metrics) for metrics in results],
            "version": __version__,
        },
    )


def _write_json(path: str | PathLike[str], content: Mapping[str, Any]) -> Path:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    return write_file(path, text.encode(errors="replace") + b"\n")


def write_confusion_png(path: str | PathLike[str], metrics: Metrics) -> Path:
    """Draw the confusion matrix: per cent of the label's row, and pixels; a column for missing predictions if any."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    table, columns = labelled_table(metrics)
    shares = row_shares(table)
    names = metrics.schema.classes
    side = max(4.0, 1.05 * len(names) + 0.6)
    figure = Figure(figsize=(side + 2.6 + (1.0 if len(columns) > len(names) else 0), side + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, format=lambda value, _: f"{100 * value:.0f} %")
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(1, len(columns)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(names)) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.set_title(
        f"OA {percent(metrics.overall_accuracy)}   mIoU {percent(metrics.mean_iou)}   mF1 {percent(metrics.mean_f1)}\n"
        f"{metrics.protocol.id}, {metrics.scores.confusion.evaluated:,} pixels, rows sum to 100 %",
        loc="left",
        fontsize=10,
    )
    if len(names) <= _LARGEST_WRITTEN:
        _write_cells(axes, table, shares)
    buffer = BytesIO()
    # The version that matplotlib would note is left out: the same figures give the same bytes.
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return write_file(path, buffer.getvalue())


def _write_cells(axes: "Axes", table: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for (row, col), pixels in np.ndenumerate(table):
        if pixels:
            colour = "white" if shares[row, col] > 0.55 else "#1f2933"
            text = f"{100 * shares[row, col]:.1f} %"
            axes.text(col, row - 0.06, text, ha="center", va="bottom", color=colour, fontsize=10)
            axes.text(col, row + 0.10, quantity(int(pixels)), ha="center", va="top", color=colour, fontsize=7.5)


def labelled_table(metrics: Metrics) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The confusion matrix with its column names; a last column NO_PREDICTION where predictions are missing."""
    counts = metrics.scores.confusion
    if not counts.unpredicted.any():
        return counts.matrix, metrics.schema.classes
    return np.column_stack([counts.matrix, counts.unpredicted]), (*metrics.schema.classes, NO_PREDICTION)


def row_shares(table: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each cell as a share of its row; NaN in rows without pixels."""
    return _shares(table, table.sum(axis=1, keepdims=True))


def column_shares(table: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each cell as a share of its column; NaN in columns without pixels."""
    return _shares(table, table.sum(axis=0, keepdims=True))


def _shares(table: NDArray[np.int64], total: NDArray[np.int64]) -> NDArray[np.float64]:
    result = np.full(table.shape, np.nan)
    np.divide(table, total, out=result, where=total > 0)
    return result


def write_file(path: str | PathLike[str], content: bytes) -> Path:
    """Write a file so that it is there whole or not at all; folders are made. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)
    return path
