"""The sections of the page that need no raster: figures, models, protocols, classes, confusion, calibration, method."""

import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from rs_biformer.evaluation.compare import Comparison, sentences
from rs_biformer.evaluation.curves import Chart, charts, read_curves, reliability_svg, svg
from rs_biformer.evaluation.html import (
    count_of,
    facts,
    heading,
    hint,
    joined,
    name_of,
    number,
    row_name,
    sentence,
    table,
)
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


def lead(metrics: Metrics, models: int) -> Markup:
    """What was measured, in a line."""
    who = f"{count_of(models, 'model')} on " if models > 1 else ""
    return Markup("{}{}, {} labelled pixels, classes of <b>{}</b>, protocol <b>{}</b>").format(
        who,
        count_of(len(metrics.scenes), "scene"),
        quantity(metrics.scores.confusion.evaluated),
        metrics.schema.name,
        metrics.protocol.id,
    )


def span(metrics: Metrics, figure: str, index: int | None = None) -> str:
    """The interval of a figure in per cent, or nothing."""
    low, high = (float(end if index is None else end[index]) for end in metrics.intervals[figure])
    return "" if np.isnan(low) else f"{100 * low:.2f} – {100 * high:.2f}"


def figures(metrics: Metrics) -> Markup:
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
        details = joined(Markup('<dd class="more">{}</dd>').format(line) for line in lines if line)
        kind = "minor" if figure in minor else ""
        cells.append(
            Markup('<div class="{}"><dt>{}</dt><dd>{}<small>%</small></dd>{}</div>').format(
                kind, name, percent(scores.headline[figure]), details
            )
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
    boxed = joined(Markup("<p>{}</p>").format(sentence(note)) for note in metrics.cautions)
    notes = Markup('\n<div class="notes" role="note">{}</div>').format(boxed) if boxed else ""
    return Markup('<dl class="figures card">{}</dl>\n<p class="account">{}.{}</p>{}').format(
        joined(cells), account, drawn, notes
    )


def models(results: Sequence[Metrics], found: Sequence[Comparison]) -> Markup:
    """Several models under one protocol, and which differences between them are larger than chance."""
    rows = [
        row_name(metrics.name) + joined(_with_span(metrics, figure) for figure in (*COMPARED, "kappa"))
        for metrics in results
    ]
    words = joined(Markup("<p>{}.</p>").format(line) for line in sentences(found))
    classes = _class_models(results)
    tests = [
        row_name(f"{row.first} − {row.second}")
        + Markup('<td data-value="">{}</td>').format(
            FIGURE_NAMES.get(row.figure, "IoU of " + row.figure.removeprefix("iou "))
        )
        + number(row.value, signed(row.value))
        + number(row.low, f"{signed(row.low)} – {signed(row.high)}")
        + number(row.adjusted, "–" if np.isnan(row.adjusted) else f"{row.adjusted:.4f}")
        + number(float(row.real), Markup("<b>yes</b>") if row.real else "no")
        for row in found
    ]
    names = [heading(name) for name in ("Mean IoU %", "Mean F1 %", "Accuracy %", "Kappa %")]
    columns = [heading(name) for name in ("Difference", "Interval", "p", "Larger than chance")]
    how = hint(
        "In points of a per cent. The interval is a bootstrap of the difference over the same "
        f"{unit_name(results[0])} for both; p is that of a permutation test, raised for the number of tests by "
        "Holm’s rule."
    )
    plain = Markup('<th scope="col" class="plain">Figure</th>')
    return Markup('<div class="verdict">{}</div>\n{}\n<h3>IoU per class</h3>\n{}\n<h3>Differences</h3>\n{}\n{}').format(
        words,
        table([heading("Model", "text"), *names], rows),
        classes,
        how,
        table([heading("Pair", "text"), plain, *columns], tests),
    )


def _with_span(metrics: Metrics, figure: str) -> Markup:
    value = metrics.scores.headline[figure]
    return number(value, _SPANNED.format(percent(value), span(metrics, figure)))


_SPANNED = Markup('{}<span class="span">{}</span>')


def _class_models(results: Sequence[Metrics]) -> Markup:
    first = results[0]
    rows = [
        row_name(name, name_of(first.schema, index))
        + joined(
            number(
                float(metrics.scores.iou[index]),
                _SPANNED.format(percent(metrics.scores.iou[index]), span(metrics, "iou", index)),
            )
            for metrics in results
        )
        for index, name in enumerate(first.schema.classes)
    ]
    return table([heading("Class", "text"), *(heading(metrics.name) for metrics in results)], rows)


def protocols(results: Sequence[Metrics]) -> Markup:
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
                row_name(title, Markup("<b>{}</b>").format(title) if chosen else title)
                + joined(number(form.headline[figure]) for figure in (*COMPARED, "kappa"))
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


def classes(metrics: Metrics) -> Markup:
    """The figures per class, with the interval of the IoU."""
    scores, support = metrics.scores, metrics.scores.confusion.support
    total = max(1, scores.confusion.evaluated)
    rows = []
    for index, name in enumerate(scores.classes):
        mark = None if index in scores.averaged else Markup(' <span class="quiet">not in the means</span>')
        iou = float(scores.iou[index])
        bar = Markup('{}<span class="bar"><i style="width:{:.1f}%"></i></span>').format(
            percent(iou), 0 if np.isnan(iou) else 100 * iou
        )
        low = float(metrics.intervals["iou"][0][index])
        cells = [
            row_name(name, name_of(metrics.schema, index, mark)),
            number(iou, bar),
            number(low, span(metrics, "iou", index) or "–"),
            *(number(float(figure[index])) for figure in (scores.f1, scores.precision, scores.recall)),
            number(float(support[index]), f"{support[index]:,}"),
            number(float(support[index]) / total),
        ]
        rows.append(joined(cells))
    names = ("IoU %", "Interval", "F1 %", "Precision %", "Recall %", "Pixels", "Share %")
    foot = Markup(
        '<th scope="row">Mean of {}</th><td>{}<span class="bar" style="visibility:hidden"></span></td><td>{}</td>'
        "<td>{}</td><td></td><td></td><td>{:,}</td><td></td>"
    ).format(
        len(scores.present),
        percent(scores.mean_iou),
        span(metrics, "mean_iou") or "–",
        percent(scores.mean_f1),
        scores.confusion.evaluated,
    )
    return (
        hint(
            "From one confusion matrix over all scenes. A dash means that the figure is undefined: the class occurs in "
            "neither label nor prediction, is never predicted, or has no label."
        )
        + "\n"
        + table([heading("Class", "text"), *map(heading, names)], rows, foot)
    )


def outlines(metrics: Metrics) -> Markup:
    """The boundary F1 per class and distance."""
    counts, means = metrics.boundary, metrics.boundary_f1
    assert counts is not None and means is not None
    rows = [
        row_name(name, name_of(metrics.schema, index))
        + joined(number(float(value)) for value in counts.f1[:, index])
        + number(float(counts.label[index]), f"{counts.label[index]:,}")
        for index, name in enumerate(metrics.schema.classes)
    ]
    names = [f"Within {distance:g} px" for distance in counts.distances]
    shown = joined(Markup("<td>{}</td>").format(percent(value)) for value in means)
    foot = Markup('<th scope="row">Mean</th>{}<td></td>').format(shown)
    return (
        hint(
            "Boundary F1 in per cent: the harmonic mean of the share of the predicted outline that has the label’s "
            "outline of the same class within the distance, and of the label’s that has the predicted one. On full "
            "labels."
        )
        + "\n"
        + table([heading("Class", "text"), *map(heading, [*names, "Outline px"])], rows, foot)
    )


def confusion(metrics: Metrics) -> Markup:
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
    return hint("Rows are labels, columns predictions. Point at a cell for its pixels.") + Markup(
        '\n<div class="pair">{}\n{}</div>'
    ).format(by_label, by_prediction)


def _heat_map(
    title: str,
    words: str,
    counts: NDArray[np.int64],
    shares: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
) -> Markup:
    head = joined(Markup('<th scope="col"><span>{}</span></th>').format(name) for name in columns)
    body = []
    for row, name in enumerate(rows):
        cells = joined(
            _heat_cell(shares[row, col], int(counts[row, col]), f"{name} → {columns[col]}", row == col)
            for col in range(len(columns))
        )
        body.append(Markup('<tr><th scope="row">{}</th>{}</tr>').format(name, cells))
    return Markup(
        '<div class="card heat"><h3>{}</h3>{}<div class="scroll"><table><thead><tr>'
        "<th></th>{}</tr></thead><tbody>{}</tbody></table></div></div>"
    ).format(title, hint(words), head, joined(body))


def _heat_cell(share: float, pixels: int, title: str, right: bool) -> Markup:
    if np.isnan(share):
        shade, ink, text = "#f6f5f2", "#5d6871", "–"
    else:
        # From the card's white to the accent; the root keeps confusions of a few per cent visible.
        paper, accent = np.array((247, 249, 249)), np.array((15, 92, 110))
        shade = "rgb({},{},{})".format(*(paper + (accent - paper) * share**0.7).round().astype(int))
        ink = "#fff" if share > 0.5 else "#1c2329"
        text = "0" if pixels == 0 else f"{100 * share:.1f}"
    kind = Markup(' class="right"') if right else ""
    return Markup('<td{} style="background:{};color:{}" title="{}: {:,} pixels">{}</td>').format(
        kind, shade, ink, title, pixels, text
    )


def calibration(metrics: Metrics) -> Markup:
    """The reliability curve, and the figures that sum it up."""
    counts = metrics.calibration
    assert counts is not None
    more = "more" if counts.overconfidence > 0 else "less"
    listed = {
        "Expected calibration error": Markup("<b>{} %</b>, the mean distance of the bars from their confidence").format(
            percent(counts.expected_error)
        ),
        "Largest error of a bin": f"{percent(counts.largest_error)} %",
        "Confidence": (
            f"promises {abs(100 * counts.overconfidence):.2f} points {more} than the map keeps, on the average pixel"
        ),
        "Pixels": (
            f"{int(counts.pixels.sum()):,}, sorted into {len(counts.pixels)} bins by the probability of their class"
        ),
    }
    return hint(
        "How often pixels of a confidence are right. On the diagonal a map is right as often as it says."
    ) + Markup('\n<div class="pair"><figure class="chart card">{}</figure>\n{}</div>').format(
        reliability_svg(counts), facts(listed)
    )


def training(path: str | PathLike[str], metrics: Metrics) -> Markup:
    """The curves of a training. Raises ConfigError when they cannot be read."""
    x_name, columns = read_curves(path)
    drawn = charts(x_name, columns, metrics.schema)
    if not drawn:
        return hint("The log holds no loss and no score.")
    return hint(f"Means per {x_name}; beside each name its last value.") + Markup(
        '\n<div class="charts">{}</div>'
    ).format(joined(map(_chart, drawn)))


def _chart(chart: Chart) -> Markup:
    keys = joined(
        Markup('<li><i style="background:{}"></i>{}<b>{}</b></li>').format(
            line.colour, line.name, _last(line.points[-1][1], chart.shares)
        )
        for line in chart.series
    )
    return Markup(
        '<figure class="chart card"><figcaption>{}</figcaption>\n{}\n<ul class="keys">{}</ul></figure>'
    ).format(chart.title, svg(chart), keys)


def _last(value: float, share: bool) -> str:
    return f"{100 * value:.1f} %" if share else f"{value:.3g}"


def model_facts(results: Sequence[Metrics]) -> Markup:
    """What is known of each model; empty where nothing is."""
    parts = []
    for metrics in {metrics.name: metrics for metrics in results if metrics.facts}.values():
        title = Markup("<h3>{}</h3>\n").format(metrics.name) if metrics.name else Markup()
        parts.append(title + facts({name: str(value) for name, value in metrics.facts.items()}))
    return joined(parts, "\n")


def method(metrics: Metrics, commands: Sequence[str], files: Mapping[str, Path], folder: Path) -> Markup:
    """The protocol and options, what to type, and what lies beside the page."""
    protocol = metrics.protocol
    named = [metrics.schema.classes[index] for index in metrics.scores.present]
    padding = (
        f"up to multiples of {protocol.pad_to} px, scored as {protocol.pad_class}"
        if protocol.pad_to
        else "never counted"
    )
    listed = {
        "Protocol": Markup("<b>{}</b> {}").format(protocol.id, protocol.description),
        "Labels": (
            f"boundaries eroded by a disc of radius {protocol.ignore_boundary} pixels"
            if protocol.ignore_boundary
            else "in full"
        ),
        "Means over": ", ".join(named) or "no class",
        "Left out of the means": ", ".join(protocol.exclude) or "none",
        "Labels of those": {"count": "count in accuracy and confusion", "ignore": "are ignored"}[
            protocol.excluded_labels
        ],
        "Padding": padding,
        "Missing predictions": "count as errors",
        "Colour tolerance": f"{metrics.options.tolerance} per channel",
        "Intervals": (
            f"{100 * metrics.resampling.level:g} % of {metrics.resampling.samples:,} draws of {unit_name(metrics)}, "
            f"seed {metrics.resampling.seed}; they speak of these scenes, not of other places or another training"
        ),
        "Software": f"rs_biformer {metrics.version}",
    }
    if not protocol.exclude:
        del listed["Labels of those"]
    typed = joined(
        Markup('<div class="command"><pre>{}</pre><button type="button">Copy</button></div>').format(command)
        for command in commands
    )
    links = joined(
        Markup('<li><a href="{}">{}</a></li>').format(_relative(target, folder), name) for name, target in files.items()
    )
    return (
        facts(listed)
        + "\n"
        + (Markup("<h3>To get these figures again</h3>\n{}\n").format(typed) if commands else "")
        + (Markup('<h3>Files</h3>\n<ul class="files">{}</ul>').format(links) if files else "")
    )


def _relative(target: Path, folder: Path) -> str:
    return Path(os.path.relpath(target, folder)).as_posix()
