"""A model card: what a model is and how well it maps, in Markdown, to lie beside its weights."""

import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from rs_biformer.evaluation.metrics import Metrics
from rs_biformer.evaluation.report import FIGURE_NAMES, interval, percent, unit_name, write_file


def write_card(path: str | PathLike[str], metrics: Metrics, *, title: str, commands: Sequence[str] = ()) -> Path:
    """Write the card of an evaluation and return its path. commands: what to type to get the figures again."""
    parts = [
        f"# {_text(title)}",
        *(["## Model", _facts(metrics)] if metrics.facts else []),
        "## Figures",
        _figures(metrics),
        "## Classes",
        _classes(metrics),
        *(["## Outlines", _boundary(metrics)] if metrics.boundary is not None else []),
        *(["## Calibration", _calibration(metrics)] if metrics.calibration is not None else []),
        "## Scenes",
        _scenes(metrics),
        "## How this was measured",
        _method(metrics),
        *([_code(commands)] if commands else []),
    ]
    return write_file(path, ("\n\n".join(parts) + "\n").encode(errors="replace"))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(_text, line))} |" for line in lines)


def _text(text: str) -> str:
    """Words from outside in one line, such that they neither end a table's cell nor begin markup."""
    seen = "".join(sign if sign.isprintable() else " " for sign in text)
    return "".join("\\" + sign if sign in "|<>`*_[]\\&~" else sign for sign in " ".join(seen.split()))


def _code(lines: Sequence[str]) -> str:
    """Commands in a block whose fence none of them can close."""
    text = "\n".join("".join(sign if sign.isprintable() else " " for sign in line) for line in lines)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{text}\n{fence}"


def _facts(metrics: Metrics) -> str:
    return "\n".join(f"- {_text(name)}: {_text(str(value))}" for name, value in metrics.facts.items())


def _figures(metrics: Metrics) -> str:
    rows = [
        (FIGURE_NAMES[name], f"{percent(value)}{interval(metrics, name)}")
        for name, value in metrics.scores.headline.items()
    ]
    text = _table(("figure", "per cent"), rows)
    if len(metrics.forms) > 1:
        forms = [
            (name, percent(form.mean_iou), percent(form.mean_f1), percent(form.overall_accuracy))
            for name, form in metrics.forms.items()
        ]
        text += "\n\n" + _table(("form", "mean IoU", "mean F1", "overall accuracy"), forms)
    return text


def _classes(metrics: Metrics) -> str:
    scores = metrics.scores
    rows = [
        (
            name if index in scores.averaged else f"{name} (not in the means)",
            percent(scores.iou[index]) + interval(metrics, "iou", index),
            percent(scores.f1[index]),
            percent(scores.precision[index]),
            percent(scores.recall[index]),
            f"{scores.confusion.support[index]:,}",
        )
        for index, name in enumerate(scores.classes)
    ]
    return _table(("class", "IoU", "F1", "precision", "recall", "pixels"), rows)


def _boundary(metrics: Metrics) -> str:
    counts, means = metrics.boundary, metrics.boundary_f1
    assert counts is not None and means is not None
    rows = [
        (name, *(percent(value) for value in counts.f1[:, index])) for index, name in enumerate(metrics.schema.classes)
    ]
    header = ("boundary F1", *(f"within {distance:g} px" for distance in counts.distances))
    return _table(header, [*rows, ("mean", *map(percent, means))])


def _calibration(metrics: Metrics) -> str:
    counts = metrics.calibration
    assert counts is not None
    return (
        f"Expected calibration error {percent(counts.expected_error)} %, largest of a bin "
        f"{percent(counts.largest_error)} %; confidence less accuracy {100 * counts.overconfidence:+.2f} points."
    )


def _scenes(metrics: Metrics) -> str:
    rows = []
    for scene in metrics.scenes:
        scores = metrics.scene_scores(scene)
        figures = (percent(scores.mean_iou), percent(scores.mean_f1), percent(scores.overall_accuracy))
        rows.append((scene.name, *figures, f"{scores.confusion.evaluated:,}"))
    return _table(("scene", "mean IoU", "mean F1", "overall accuracy", "pixels"), rows)


def _method(metrics: Metrics) -> str:
    protocol = metrics.protocol
    lines = [
        f"- Protocol {_text(protocol.id)}: {_text(protocol.description)}",
        f"- Means over {_text(', '.join(metrics.schema.classes[index] for index in metrics.scores.present))}",
        f"- Intervals of {100 * metrics.resampling.level:g} % from {metrics.resampling.samples:,} draws of "
        f"{len(metrics.units.matrix)} {unit_name(metrics)}; they speak of these scenes, not of other places",
        *(f"- Note: {_text(note)}" for note in metrics.cautions),
        f"- rs_biformer {_text(metrics.version)}",
    ]
    return "\n".join(lines)
