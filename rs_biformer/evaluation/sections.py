"""The sections of the page that need no raster: figures, models, protocols, classes, confusion, calibration, method."""

import os
from collections.abc import Mapping, Sequence
from html import escape
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rs_biformer.evaluation.compare import Comparison, sentences
from rs_biformer.evaluation.curves import Chart, charts, read_curves, reliability_svg, svg
from rs_biformer.evaluation.html import count_of, facts, heading, hint, number, row_name, sentence, swatch, table
from rs_biformer.evaluation.metrics import Metrics
from rs_biformer.evaluation.report import (
    COMPARED,
    FIGURE_NAMES,
    column_shares,
    labelled_table,
    percent,
    quantity,
    row_shares,
    signed,
    unit_name,
)


def lead(metrics: Metrics, models: int) -> str:
    """What was measured, in a line."""
    who = f"{count_of(models, 'model')} on " if models > 1 else ""
    return (
        f"{who}{count_of(len(metrics.scenes), 'scene')}, {quantity(metrics.scores.confusion.evaluated)} labelled "
        f"pixels, classes of <b>{escape(metrics.schema.name)}</b>, protocol <b>{escape(metrics.protocol.id)}</b>"
    )


def span(metrics: Metrics, figure: str, index: int | None = None) -> str:
    """The interval of a figure in per cent, or nothing."""
    low, high = (float(end if index is None else end[index]) for end in metrics.intervals[figure])
    return "" if np.isnan(low) else f"{100 * low:.2f} – {100 * high:.2f}"


def figures(metrics: Metrics) -> str:
    """The five figures of the set with their intervals, what was counted, and what to know about them."""
    scores, full, counts = metrics.scores, metrics.full, metrics.scores.confusion
    names = {"mean_iou": "Mean IoU", "mean_f1": "Mean F1", "overall_accuracy": "Overall accuracy"}
    minor = {"kappa": "Kappa", "frequency_weighted_iou": "Frequency-weighted IoU"}
    cells = []
    for figure, name in {**names, **minor}.items():
        lines = [span(metrics, figure)]
        if figure == "mean_iou":
            lines.append(f"over {count_of(len(scores.present), 'class')}")
        if full is not None and figure in names:
            lines.append(f"{percent(full.headline[figure])} on full labels")
        details = "".join(f'<dd class="more">{line}</dd>' for line in lines if line)
        kind = "minor" if figure in minor else ""
        cells.append(
            f'<div class="{kind}"><dt>{name}</dt><dd>{percent(scores.headline[figure])}<small>%</small></dd>'
            f"{details}</div>"
        )
    account = f"{counts.evaluated:,} pixels counted; {counts.ignored:,} ignored"
    if metrics.protocol.ignore_boundary:
        account += f", {counts.eroded:,} of them at eroded boundaries"
    drawn = (
        f" Under a figure its {100 * metrics.resampling.level:g} % interval, from {metrics.resampling.samples:,} draws "
        f"of {len(metrics.units.matrix):,} {unit_name(metrics)}."
        if span(metrics, "mean_iou")
        else ""
    )
    boxed = "".join(f"<p>{escape(sentence(note))}</p>" for note in metrics.cautions)
    return f'<dl class="figures card">{"".join(cells)}</dl>\n<p class="account">{account}.{drawn}</p>' + (
        f'\n<div class="notes" role="note">{boxed}</div>' if boxed else ""
    )


def models(results: Sequence[Metrics], found: Sequence[Comparison]) -> str:
    """Several models under one protocol, and which differences between them are larger than chance."""
    rows = [
        row_name(metrics.name) + "".join(_with_span(metrics, figure) for figure in (*COMPARED, "kappa"))
        for metrics in results
    ]
    words = "".join(f"<p>{escape(line)}.</p>" for line in sentences(found))
    classes = _class_models(results)
    tests = [
        row_name(f"{row.first} − {row.second}")
        + f'<td data-value="">{escape(FIGURE_NAMES.get(row.figure, "IoU of " + row.figure.removeprefix("iou ")))}</td>'
        + number(row.value, signed(row.value))
        + number(row.low, f"{signed(row.low)} – {signed(row.high)}")
        + number(row.adjusted, "–" if np.isnan(row.adjusted) else f"{row.adjusted:.4f}")
        + number(float(row.real), "<b>yes</b>" if row.real else "no")
        for row in found
    ]
    names = [heading(name) for name in ("Mean IoU %", "Mean F1 %", "Accuracy %", "Kappa %")]
    columns = [heading(name) for name in ("Difference", "Interval", "p", "Larger than chance")]
    return (
        f'<div class="verdict">{words}</div>\n{table([heading("Model", "text"), *names], rows)}\n'
        f"<h3>IoU per class</h3>\n{classes}\n<h3>Differences</h3>\n"
        + hint(
            "In points of a per cent. The interval is a bootstrap of the difference over the same "
            f"{unit_name(results[0])} for both; p is that of a permutation test, raised for the number of tests by "
            "Holm’s rule."
        )
        + "\n"
        + table([heading("Pair", "text"), '<th scope="col" class="plain">Figure</th>', *columns], tests)
    )


def _with_span(metrics: Metrics, figure: str) -> str:
    value = metrics.scores.headline[figure]
    return number(value, f'{percent(value)}<span class="span">{span(metrics, figure)}</span>')


def _class_models(results: Sequence[Metrics]) -> str:
    first = results[0]
    rows = [
        row_name(name, f'<span class="name">{swatch(first.schema.colours[index])}<span>{escape(name)}</span></span>')
        + "".join(
            number(
                float(metrics.scores.iou[index]),
                f'{percent(metrics.scores.iou[index])}<span class="span">{span(metrics, "iou", index)}</span>',
            )
            for metrics in results
        )
        for index, name in enumerate(first.schema.classes)
    ]
    return table([heading("Class", "text"), *(heading(escape(metrics.name)) for metrics in results)], rows)


def protocols(results: Sequence[Metrics]) -> str:
    """The same maps under several protocols, or in the forms of one."""
    many = len({metrics.name for metrics in results}) > 1
    rows = []
    for metrics in results:
        for name, form in metrics.forms.items():
            chosen = form.headline == metrics.scores.headline and name == next(iter(metrics.forms))
            padded = form.confusion.padded / max(1, form.confusion.evaluated)
            who = f"{metrics.name}, " if many else ""
            title = f"{who}{metrics.protocol.id}: {name}"
            rows.append(
                row_name(title, f"<b>{escape(title)}</b>" if chosen else escape(title))
                + "".join(number(form.headline[figure]) for figure in (*COMPARED, "kappa"))
                + number(form.confusion.evaluated, f"{form.confusion.evaluated:,}")
                + number(padded)
            )
    names = ("Mean IoU %", "Mean F1 %", "Accuracy %", "Kappa %", "Pixels", "Padding %")
    return (
        hint(
            "The same maps, scored in other ways: figures of two rows must never be compared with each other. In bold "
            "what each protocol reports."
        )
        + "\n"
        + table([heading("Protocol and form", "text"), *map(heading, names)], rows)
    )


def classes(metrics: Metrics) -> str:
    """The figures per class, with the interval of the IoU."""
    scores, support = metrics.scores, metrics.scores.confusion.support
    total = max(1, scores.confusion.evaluated)
    rows = []
    for index, name in enumerate(scores.classes):
        mark = "" if index in scores.averaged else ' <span class="quiet">not in the means</span>'
        iou = float(scores.iou[index])
        bar = f'<span class="bar"><i style="width:{0 if np.isnan(iou) else 100 * iou:.1f}%"></i></span>'
        title = f'<span class="name">{swatch(metrics.schema.colours[index])}<span>{escape(name)}{mark}</span></span>'
        low = float(metrics.intervals["iou"][0][index])
        rows.append(
            f"{row_name(name, title)}{number(iou, percent(iou) + bar)}{number(low, span(metrics, 'iou', index) or '–')}"
            f"{number(float(scores.f1[index]))}{number(float(scores.precision[index]))}"
            f"{number(float(scores.recall[index]))}"
            f"{number(float(support[index]), f'{support[index]:,}')}{number(float(support[index]) / total)}"
        )
    names = ("IoU %", "Interval", "F1 %", "Precision %", "Recall %", "Pixels", "Share %")
    foot = (
        f'<th scope="row">Mean of {len(scores.present)}</th><td>{percent(scores.mean_iou)}<span class="bar" '
        f'style="visibility:hidden"></span></td><td>{span(metrics, "mean_iou") or "–"}</td>'
        f"<td>{percent(scores.mean_f1)}</td><td></td><td></td><td>{scores.confusion.evaluated:,}</td><td></td>"
    )
    return (
        hint(
            "From one confusion matrix over all scenes. A dash means that the figure is undefined: the class occurs in "
            "neither label nor prediction, is never predicted, or has no label."
        )
        + "\n"
        + table([heading("Class", "text"), *map(heading, names)], rows, foot)
    )


def outlines(metrics: Metrics) -> str:
    """The boundary F1 per class and distance."""
    counts, means = metrics.boundary, metrics.boundary_f1
    assert counts is not None and means is not None
    rows = [
        row_name(name, f'<span class="name">{swatch(metrics.schema.colours[index])}<span>{escape(name)}</span></span>')
        + "".join(number(float(value)) for value in counts.f1[:, index])
        + number(float(counts.label[index]), f"{counts.label[index]:,}")
        for index, name in enumerate(metrics.schema.classes)
    ]
    names = [f"Within {distance:g} px" for distance in counts.distances]
    foot = f'<th scope="row">Mean</th>{"".join(f"<td>{percent(value)}</td>" for value in means)}<td></td>'
    return (
        hint(
            "Boundary F1 in per cent: the harmonic mean of the share of the predicted outline that has the label’s "
            "outline of the same class within the distance, and of the label’s that has the predicted one. On full "
            "labels."
        )
        + "\n"
        + table([heading("Class", "text"), *map(heading, [*names, "Outline px"])], rows, foot)
    )


def confusion(metrics: Metrics) -> str:
    """The confusion matrix by label and by prediction."""
    counts, columns = labelled_table(metrics)
    by_label = _heat_map(
        "Where labelled pixels went",
        "Per cent of each label’s pixels: rows sum to 100, the diagonal is recall.",
        counts,
        row_shares(counts),
        metrics.schema.classes,
        columns,
    )
    by_prediction = _heat_map(
        "What predicted pixels were",
        "Per cent of each prediction’s pixels: columns sum to 100, the diagonal is precision.",
        counts,
        column_shares(counts),
        metrics.schema.classes,
        columns,
    )
    return (
        hint("Rows are labels, columns predictions. Point at a cell for its pixels.")
        + f'\n<div class="pair">{by_label}\n{by_prediction}</div>'
    )


def _heat_map(
    title: str,
    words: str,
    counts: NDArray[np.int64],
    shares: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
) -> str:
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in columns)
    body = []
    for row, name in enumerate(rows):
        cells = "".join(
            _heat_cell(shares[row, col], int(counts[row, col]), f"{name} → {columns[col]}", row == col)
            for col in range(len(columns))
        )
        body.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return (
        f'<div class="card heat"><h3>{title}</h3>{hint(words)}<div class="scroll"><table><thead><tr>'
        f"<th></th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div></div>"
    )


def _heat_cell(share: float, pixels: int, title: str, right: bool) -> str:
    if np.isnan(share):
        shade, ink, text = "#f6f5f2", "#5d6871", "–"
    else:
        # From the card's white to the accent; the root keeps confusions of a few per cent visible.
        paper, accent = np.array((247, 249, 249)), np.array((15, 92, 110))
        shade = "rgb({},{},{})".format(*(paper + (accent - paper) * share**0.7).round().astype(int))
        ink = "#fff" if share > 0.5 else "#1c2329"
        text = "0" if pixels == 0 else f"{100 * share:.1f}"
    kind = ' class="right"' if right else ""
    return f'<td{kind} style="background:{shade};color:{ink}" title="{escape(title)}: {pixels:,} pixels">{text}</td>'


def calibration(metrics: Metrics) -> str:
    """The reliability curve, and the figures that sum it up."""
    counts = metrics.calibration
    assert counts is not None
    more = "more" if counts.overconfidence > 0 else "less"
    listed = {
        "Expected calibration error": (
            f"<b>{percent(counts.expected_error)} %</b>, the mean distance of the bars from their confidence"
        ),
        "Largest error of a bin": f"{percent(counts.largest_error)} %",
        "Confidence": (
            f"promises {abs(100 * counts.overconfidence):.2f} points {more} than the map keeps, on the average pixel"
        ),
        "Pixels": (
            f"{int(counts.pixels.sum()):,}, sorted into {len(counts.pixels)} bins by the probability of their class"
        ),
    }
    return (
        hint("How often pixels of a confidence are right. On the diagonal a map is right as often as it says.")
        + f'\n<div class="pair"><figure class="chart card">{reliability_svg(counts)}</figure>\n{facts(listed)}</div>'
    )


def training(path: str | PathLike[str], metrics: Metrics) -> str:
    """The curves of a training. Raises ConfigError when they cannot be read."""
    x_name, columns = read_curves(path)
    drawn = charts(x_name, columns, metrics.schema)
    if not drawn:
        return hint("The log holds no loss and no score.")
    return (
        hint(f"Means per {x_name}; beside each name its last value.")
        + f'\n<div class="charts">{"".join(map(_chart, drawn))}</div>'
    )


def _chart(chart: Chart) -> str:
    keys = "".join(
        f'<li><i style="background:{line.colour}"></i>{escape(line.name)}'
        f"<b>{_last(line.points[-1][1], chart.shares)}</b></li>"
        for line in chart.series
    )
    return (
        f'<figure class="chart card"><figcaption>{escape(chart.title)}</figcaption>\n{svg(chart)}\n'
        f'<ul class="keys">{keys}</ul></figure>'
    )


def _last(value: float, share: bool) -> str:
    return f"{100 * value:.1f} %" if share else f"{value:.3g}"


def model_facts(results: Sequence[Metrics]) -> str:
    """What is known of each model; empty where nothing is."""
    parts = []
    for metrics in {metrics.name: metrics for metrics in results if metrics.facts}.values():
        title = f"<h3>{escape(metrics.name)}</h3>\n" if metrics.name else ""
        parts.append(title + facts({name: escape(str(value)) for name, value in metrics.facts.items()}))
    return "\n".join(parts)


def method(metrics: Metrics, commands: Sequence[str], files: Mapping[str, Path], folder: Path) -> str:
    """The protocol and options, what to type, and what lies beside the page."""
    protocol = metrics.protocol
    named = [metrics.schema.classes[index] for index in metrics.scores.present]
    padding = (
        f"up to multiples of {protocol.pad_to} px, scored as {protocol.pad_class}"
        if protocol.pad_to
        else "never counted"
    )
    listed = {
        "Protocol": f"<b>{escape(protocol.id)}</b> {escape(protocol.description)}",
        "Labels": (
            f"boundaries eroded by a disc of radius {protocol.ignore_boundary} pixels"
            if protocol.ignore_boundary
            else "in full"
        ),
        "Means over": escape(", ".join(named) or "no class"),
        "Left out of the means": escape(", ".join(protocol.exclude)) or "none",
        "Labels of those": {"count": "count in accuracy and confusion", "ignore": "are ignored"}[
            protocol.excluded_labels
        ],
        "Padding": escape(padding),
        "Missing predictions": "count as errors",
        "Colour tolerance": f"{metrics.options.tolerance} per channel",
        "Intervals": (
            f"{100 * metrics.resampling.level:g} % of {metrics.resampling.samples:,} draws of {unit_name(metrics)}, "
            f"seed {metrics.resampling.seed}; they speak of these scenes, not of other places or another training"
        ),
        "Software": f"rs_biformer {escape(metrics.version)}",
    }
    if not protocol.exclude:
        del listed["Labels of those"]
    typed = "".join(
        f'<div class="command"><pre>{escape(command)}</pre><button type="button">Copy</button></div>'
        for command in commands
    )
    links = "".join(
        f'<li><a href="{escape(_relative(target, folder), quote=True)}">{escape(name)}</a></li>'
        for name, target in files.items()
    )
    return (
        f"{facts(listed)}\n"
        + (f"<h3>To get these figures again</h3>\n{typed}\n" if commands else "")
        + (f'<h3>Files</h3>\n<ul class="files">{links}</ul>' if files else "")
    )


def _relative(target: Path, folder: Path) -> str:
    return Path(os.path.relpath(target, folder)).as_posix()
