"""One self-contained HTML page: figures, classes, scenes under a slider, confusion, curves, how to reproduce.

Pictures are data URIs, the script and the styles are inline: the page opens without a network, on a phone, and prints.
Everything that comes from outside (names, paths, commands) is escaped.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files as package_files
from os import PathLike
from pathlib import Path
from string import Template

import numpy as np
from numpy.typing import NDArray

from rs_biformer import __version__
from rs_biformer.evaluation.curves import Chart, charts, read_curves, svg
from rs_biformer.evaluation.metrics import Metrics, Scores
from rs_biformer.evaluation.previews import EMPTY, WRONG, preview, preview_size, worst_first
from rs_biformer.evaluation.report import (
    column_shares,
    labelled_table,
    percent,
    quantity,
    row_shares,
    write_file,
)
from rs_biformer.evaluation.stream import SceneFiles

SHOWN_SCENES = 24
"""Scenes of which a page shows pictures, the worst ones first: more would make it too heavy for a phone."""


@dataclass(frozen=True)
class SceneView:
    """The rasters of one scene to be shown. `name` is that of the scene in Metrics; `image` may be None."""

    name: str
    image: SceneFiles | None
    label: str | PathLike[str]
    prediction: str | PathLike[str]


@dataclass(frozen=True)
class _Section:
    """A part of the page: its anchor, its heading and its body in HTML."""

    anchor: str
    title: str
    body: str


def write_page(
    path: str | PathLike[str],
    *,
    metrics: Metrics,
    title: str,
    scenes: Sequence[SceneView] = (),
    curves: str | PathLike[str] | None = None,
    commands: Sequence[str] = (),
    files: Mapping[str, Path] | None = None,
) -> Path:
    """Write the page of an evaluation and return its path.

    scenes: shown as image, label, prediction and error; previews are read strip by strip. At most SHOWN_SCENES.
    curves: a metrics.csv as Lightning's CSVLogger writes it.
    commands: what to type to get these figures again.
    files: what lies beside the page, by name; linked relative to it.

    Raises RasterError for a scene that cannot be read and ConfigError for curves that cannot.
    """
    path = Path(path)
    sections = [
        _Section("classes", "Classes", _class_table(metrics)),
        _Section("scenes", "Scenes", _scene_table(metrics) + _scene_views(metrics, scenes)),
        _Section("confusion", "Confusion", _confusion(metrics)),
        *([_Section("training", "Training", _curves(curves, metrics))] if curves is not None else []),
        _Section("method", "How this was measured", _method(metrics, commands, files or {}, path.parent)),
    ]
    page = Template(_asset("page.html")).substitute(
        title=escape(title),
        version=escape(__version__),
        lead=_lead(metrics),
        css=_asset("page.css"),
        script=_asset("page.js"),
        navigation="\n".join(f'<a href="#{part.anchor}">{part.title}</a>' for part in sections),
        sections="\n".join(
            [
                _figures(metrics),
                *(f'<section id="{part.anchor}">\n<h2>{part.title}</h2>\n{part.body}\n</section>' for part in sections),
            ]
        ),
    )
    return write_file(path, page.encode())


def _asset(name: str) -> str:
    return package_files("rs_biformer.evaluation").joinpath(name).read_text(encoding="utf-8")


def _lead(metrics: Metrics) -> str:
    scenes = len(metrics.scenes)
    return (
        f"{scenes} scene{'s' if scenes != 1 else ''}, {quantity(metrics.scores.confusion.evaluated)} labelled pixels, "
        f"classes of <b>{escape(metrics.schema.name)}</b>, protocol <b>{escape(metrics.protocol.id)}</b>"
    )


def _figures(metrics: Metrics) -> str:
    scores, full, counts = metrics.scores, metrics.full, metrics.scores.confusion
    present = len(scores.present)

    def cell(name: str, value: float, beside: float | None, more: str = "", kind: str = "") -> str:
        lines = [more] if more else []
        lines += [f"{percent(beside)} on full labels"] if beside is not None else []
        details = "".join(f'<dd class="more">{line}</dd>' for line in lines)
        return f'<div class="{kind}"><dt>{name}</dt><dd>{percent(value)}<small>%</small></dd>{details}</div>'

    cells = [
        cell(
            "Mean IoU",
            scores.mean_iou,
            full.mean_iou if full is not None else None,
            f"over {present} class{'es' * (present != 1)}",
        ),
        cell("Mean F1", scores.mean_f1, full.mean_f1 if full is not None else None),
        cell("Overall accuracy", scores.overall_accuracy, full.overall_accuracy if full is not None else None),
        cell("Kappa", scores.kappa, None, kind="minor"),
        cell("Frequency-weighted IoU", scores.frequency_weighted_iou, None, kind="minor"),
    ]
    account = f"{counts.evaluated:,} pixels counted; {counts.ignored:,} ignored"
    if metrics.protocol.ignore_boundary:
        account += f", {counts.eroded:,} of them at eroded boundaries"
    boxed = "".join(f"<p>{escape(_sentence(note))}</p>" for note in metrics.cautions)
    return f'<dl class="figures card">{"".join(cells)}</dl>\n<p class="account">{account}.</p>' + (
        f'\n<div class="notes" role="note">{boxed}</div>' if boxed else ""
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _swatch(colour: Sequence[int]) -> str:
    return f'<span class="swatch" style="background:rgb({",".join(str(int(part)) for part in colour)})"></span>'


def _heading(name: str, kind: str = "number") -> str:
    return f'<th scope="col" data-kind="{kind}"><button type="button">{name}</button></th>'


def _number(value: float, shown: str | None = None) -> str:
    """A table cell that sorts by its value; an undefined value sorts last."""
    key = "" if np.isnan(value) else f"{value:.12g}"
    return f'<td data-value="{key}">{percent(value) if shown is None else shown}</td>'


def _class_table(metrics: Metrics) -> str:
    scores, support = metrics.scores, metrics.scores.confusion.support
    total = max(1, scores.confusion.evaluated)
    rows = []
    for index, name in enumerate(scores.classes):
        mark = "" if index in scores.averaged else ' <span class="quiet">not in the means</span>'
        iou = scores.iou[index]
        bar = f'<span class="bar"><i style="width:{0 if np.isnan(iou) else 100 * iou:.1f}%"></i></span>'
        rows.append(
            f'<tr><th scope="row" data-value="{escape(name)}"><span class="name">'
            f"{_swatch(metrics.schema.colours[index])}<span>{escape(name)}{mark}</span></span></th>"
            f"{_number(iou, percent(iou) + bar)}{_number(scores.f1[index])}"
            f"{_number(scores.precision[index])}{_number(scores.recall[index])}"
            f"{_number(float(support[index]), f'{support[index]:,}')}{_number(support[index] / total)}</tr>"
        )
    names = ("IoU %", "F1 %", "Precision %", "Recall %", "Pixels", "Share %")
    return (
        '<p class="hint">From one confusion matrix over all scenes. A dash means that the figure is undefined: the '
        "class occurs in neither label nor prediction, is never predicted, or has no label.</p>\n"
        f'<div class="card scroll"><table class="list"><thead><tr>{_heading("Class", "text")}'
        f"{''.join(map(_heading, names))}</tr></thead>\n<tbody>{''.join(rows)}</tbody>\n<tfoot><tr>"
        f'<th scope="row">Mean of {len(scores.present)}</th><td>{percent(scores.mean_iou)}<span class="bar" '
        f'style="visibility:hidden"></span></td><td>{percent(scores.mean_f1)}</td><td></td><td></td>'
        f"<td>{scores.confusion.evaluated:,}</td><td></td></tr></tfoot></table></div>"
    )


def _scene_table(metrics: Metrics) -> str:
    if len(metrics.scenes) < 2:
        return ""
    rows = []
    for scene in metrics.scenes:
        scores = metrics.scores_of(scene.confusion)
        counts = scene.confusion
        missing = int(counts.unpredicted.sum())
        rows.append(
            f'<tr><th scope="row" data-value="{escape(scene.name)}">{escape(scene.name)}</th>'
            f"{_number(scores.mean_iou)}{_number(scores.mean_f1)}{_number(scores.overall_accuracy)}"
            f"{_number(counts.evaluated, f'{counts.evaluated:,}')}{_number(counts.ignored, f'{counts.ignored:,}')}"
            f"{_number(missing, f'{missing:,}')}</tr>"
        )
    names = ("Mean IoU %", "Mean F1 %", "Accuracy %", "Pixels", "Ignored", "No prediction")
    return (
        '<p class="hint">A scene’s means go over the classes that occur in it, so they are not shares of the figures '
        "above.</p>\n"
        f'<div class="card scroll" style="margin-bottom:24px"><table class="list"><thead><tr>'
        f"{_heading('Scene', 'text')}{''.join(map(_heading, names))}</tr></thead>\n<tbody>{''.join(rows)}</tbody>"
        "</table></div>"
    )


def _scene_views(metrics: Metrics, views: Sequence[SceneView]) -> str:
    if not views:
        return "" if len(metrics.scenes) > 1 else _one_scene(metrics)
    scores = {scene.name: metrics.scores_of(scene.confusion) for scene in metrics.scenes}
    means = [scores[view.name].mean_iou if view.name in scores else float("nan") for view in views]
    order = worst_first([view.name for view in views], means)
    shown = order[:SHOWN_SCENES]
    size = preview_size(len(shown))
    parts = [_scene_view(views[place], metrics, scores.get(views[place].name), size) for place in shown]
    left_out = f" The {len(shown)} worst of {len(views)} are shown." if len(shown) < len(views) else ""
    legend = "".join(
        f"<li>{_swatch(colour)}{escape(name)}</li>"
        for name, colour in [
            *zip(metrics.schema.classes, metrics.schema.colours, strict=True),
            ("no label, no data", EMPTY),
            ("error", WRONG),
        ]
    )
    return (
        f'<p class="hint">The worst scene first.{left_out} Pictures are reduced; an error picture shows the share of '
        "wrong pixels.</p>\n"
        f'<ul class="legend">{legend}</ul>\n' + "\n".join(parts)
    )


def _one_scene(metrics: Metrics) -> str:
    scene = metrics.scenes[0]
    return f'<p class="hint">{escape(scene.name)} alone; its figures are those above.</p>'


def _scene_view(view: SceneView, metrics: Metrics, scores: Scores | None, size: int) -> str:
    pictures = preview(view.image, view.label, view.prediction, metrics.schema, size=size, tolerance=metrics.tolerance)
    layers = {
        "Image": pictures.image,
        "Truth": pictures.label,
        "Prediction": pictures.prediction,
        "Error": pictures.error,
    }
    panels = [
        f'<figure><img src="{source}" width="{pictures.width}" height="{pictures.height}" '
        f'alt="{name} of {escape(view.name)}"><figcaption>{name}</figcaption></figure>'
        for name, source in layers.items()
        if source is not None
    ]
    figures = (
        ""
        if scores is None
        else f"<p>mean IoU {percent(scores.mean_iou)} · mean F1 {percent(scores.mean_f1)} · accuracy "
        f"{percent(scores.overall_accuracy)}</p>"
    )
    return (
        f'<figure class="scene card" data-ratio="{pictures.width / pictures.height:.5f}"><figcaption>'
        f"<h3>{escape(view.name)}</h3>{figures}</figcaption>\n"
        f'<div class="panels" style="--panels:{len(panels)}">{"".join(panels)}</div></figure>'
    )


def _confusion(metrics: Metrics) -> str:
    table, columns = labelled_table(metrics)
    by_label = _heat_map(
        "Where labelled pixels went",
        "Per cent of each label’s pixels: rows sum to 100, the diagonal is recall.",
        table,
        row_shares(table),
        metrics.schema.classes,
        columns,
    )
    by_prediction = _heat_map(
        "What predicted pixels were",
        "Per cent of each prediction’s pixels: columns sum to 100, the diagonal is precision.",
        table,
        column_shares(table),
        metrics.schema.classes,
        columns,
    )
    return (
        '<p class="hint">Rows are labels, columns predictions. Point at a cell for its pixels.</p>\n'
        f'<div class="pair">{by_label}\n{by_prediction}</div>'
    )


def _heat_map(
    title: str,
    hint: str,
    table: NDArray[np.int64],
    shares: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
) -> str:
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in columns)
    body = []
    for row, name in enumerate(rows):
        cells = "".join(
            _heat_cell(shares[row, col], int(table[row, col]), f"{name} → {columns[col]}", row == col)
            for col in range(len(columns))
        )
        body.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return (
        f'<div class="card heat"><h3>{title}</h3><p class="hint">{hint}</p><div class="scroll"><table><thead><tr>'
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


def _curves(path: str | PathLike[str], metrics: Metrics) -> str:
    x_name, columns = read_curves(path)
    drawn = charts(x_name, columns, metrics.schema)
    if not drawn:
        return '<p class="hint">The log holds no loss and no score.</p>'
    return (
        f'<p class="hint">Means per {x_name}; beside each name its last value.</p>\n'
        f'<div class="charts">{"".join(map(_chart, drawn))}</div>'
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


def _method(metrics: Metrics, commands: Sequence[str], files: Mapping[str, Path], folder: Path) -> str:
    protocol = metrics.protocol
    facts = {
        "Protocol": f"<b>{escape(protocol.id)}</b> {escape(protocol.description)}",
        "Labels": (
            f"boundaries eroded by a disc of radius {protocol.ignore_boundary} pixels"
            if protocol.ignore_boundary
            else "in full"
        ),
        "Means over": escape(
            ", ".join(metrics.schema.classes[index] for index in metrics.scores.present) or "no class"
        ),
        "Left out of the means": escape(", ".join(protocol.exclude)) or "none",
        "Missing predictions": "count as errors",
        "Colour tolerance": f"{metrics.tolerance} per channel",
        "Software": f"rs_biformer {escape(__version__)}",
    }
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    typed = "".join(
        f'<div class="command"><pre>{escape(command)}</pre><button type="button">Copy</button></div>'
        for command in commands
    )
    links = "".join(
        f'<li><a href="{escape(_relative(target, folder), quote=True)}">{escape(name)}</a></li>'
        for name, target in files.items()
    )
    return (
        f'<dl class="facts card">{listed}</dl>\n'
        + (f"<h3>To get these figures again</h3>\n{typed}\n" if commands else "")
        + (f'<h3>Files</h3>\n<ul class="files">{links}</ul>' if files else "")
    )


def _relative(target: Path, folder: Path) -> str:
    return Path(os.path.relpath(target, folder)).as_posix()
