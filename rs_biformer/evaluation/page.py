"""One self-contained HTML page: figures, models, classes, scenes under a slider, confusion, curves, how to reproduce.

Pictures are data URIs, the script and the styles are inline: the page opens without a network, on a phone, and prints.
Jinja2 escapes everything that comes from outside (names, paths, commands).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from os import PathLike
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import rs_biformer.evaluation.pictures as pictures
import rs_biformer.evaluation.sections as sections
from rs_biformer import __version__
from rs_biformer.evaluation.compare import Comparison
from rs_biformer.evaluation.html import hint
from rs_biformer.evaluation.metrics import Metrics
from rs_biformer.evaluation.pictures import SceneView
from rs_biformer.evaluation.report import write_file


@dataclass(frozen=True)
class _Section:
    """A part of the page: its anchor, its name in the navigation, its heading and its body."""

    anchor: str
    name: str
    title: str
    body: Markup


def write_page(
    path: str | PathLike[str],
    *,
    metrics: Metrics,
    title: str,
    others: Sequence[Metrics] = (),
    comparisons: Mapping[str, Sequence[Comparison]] | None = None,
    scenes: Sequence[SceneView] = (),
    curves: str | PathLike[str] | None = None,
    commands: Sequence[str] = (),
    files: Mapping[str, Path] | None = None,
) -> Path:
    """Write the page of an evaluation and return its path.

    metrics: shown in full. others: further models, or the same under further protocols; shown beside it.
    comparisons: by protocol, what sets the models apart.
    scenes: shown as image, label, prediction and error; previews are read strip by strip. The worst 24 of them.
    curves: a metrics.csv as Lightning's CSVLogger writes it.
    commands: what to type to get these figures again.
    files: what lies beside the page, by name; linked relative to it.

    Raises RasterError for a scene that cannot be read and ConfigError for curves that cannot.
    """
    path = Path(path)
    results = [metrics, *others]
    models = len({result.name for result in results})
    parts = _sections(results, comparisons or {}, scenes, curves)
    parts.append(
        _Section(
            "method", "Method", "How this was measured", sections.method(metrics, commands, files or {}, path.parent)
        )
    )
    figures = sections.figures(metrics) if models == 1 else Markup()
    loader = PackageLoader("rs_biformer.evaluation", "")
    environment = Environment(autoescape=True, loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    page = environment.get_template("page.html").render(
        title=title,
        version=__version__,
        lead=sections.lead(metrics, models),
        css=Markup(_asset("page.css")),
        script=Markup(_asset("page.js")),
        figures=figures,
        sections=parts,
    )
    return write_file(path, page.encode(errors="replace"))


def _sections(
    results: Sequence[Metrics],
    comparisons: Mapping[str, Sequence[Comparison]],
    scenes: Sequence[SceneView],
    curves: str | PathLike[str] | None,
) -> list[_Section]:
    """The sections that have something to show, in the page's order. Of several models the first is shown in full."""
    metrics = results[0]
    beside = [result for result in results if result.protocol == metrics.protocol]
    several = len(beside) > 1
    rated = len(results) > len(beside) or len(metrics.forms) > 1
    of = f" of {metrics.name}" if several else ""
    facts = sections.model_facts(results)
    nothing = Markup()
    found = [
        ("models", "Models", sections.models(beside, comparisons.get(metrics.protocol.id, ())) if several else nothing),
        ("protocols", "Protocols", sections.protocols(results) if rated else nothing),
        ("classes", "Classes", sections.classes(metrics)),
        ("outlines", "Outlines", sections.outlines(metrics) if metrics.boundary is not None else nothing),
        ("scenes", "Scenes", _scenes(metrics, scenes)),
        ("worst", "Worst windows", pictures.worst_windows(metrics, scenes)),
        ("confusion", "Confusion", sections.confusion(metrics)),
        ("calibration", "Calibration", sections.calibration(metrics) if metrics.calibration is not None else nothing),
        ("training", "Training", sections.training(curves, metrics) if curves is not None else nothing),
        ("about", "Model" if not several else "About the models", facts),
    ]
    of_first = ("classes", "outlines", "scenes", "worst", "confusion", "calibration")
    return [
        _Section(anchor, name, f"{name}{of}" if anchor in of_first else name, body)
        for anchor, name, body in found
        if body
    ]


def _scenes(metrics: Metrics, views: Sequence[SceneView]) -> Markup:
    several = len(metrics.scenes) > 1
    body = pictures.scene_table(metrics) if several else Markup()
    if views:
        return body + pictures.scene_views(metrics, views)
    return body or hint(f"{metrics.scenes[0].name} alone; its figures are those above.")


def _asset(name: str) -> str:
    return package_files("rs_biformer.evaluation").joinpath(name).read_text(encoding="utf-8")
