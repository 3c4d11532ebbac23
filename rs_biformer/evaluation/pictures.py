"""The sections of the page that show rasters: scenes under a slider, and the windows that went worst."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

from markupsafe import Markup

from rs_biformer.evaluation.html import heading, hint, joined, number, row_name, swatch, table
from rs_biformer.evaluation.maps import Numbers
from rs_biformer.evaluation.metrics import BLOCK, Metrics
from rs_biformer.evaluation.previews import EMPTY, WRONG, Preview, preview, preview_size, worst_first
from rs_biformer.evaluation.rasters import ImageFiles
from rs_biformer.evaluation.report import percent
from rs_biformer.geometry import Window
from rs_biformer.raster.labels import LabelOptions

SHOWN_SCENES = 24
"""Scenes of which a page shows pictures, the worst ones first: more would make it too heavy for a phone."""
SHOWN_BLOCKS = 12
"""Windows that are shown, the worst ones first."""
_BLOCK_SIDE = 256
"""Pixels of such a picture's side."""

AnyPath = str | PathLike[str]


@dataclass(frozen=True)
class SceneView:
    """The rasters of one scene to be shown. `name` is that of the scene in Metrics; `image` may be None.

    prediction: a class map, or those of several models by the model's name. numbers: what theirs mean, see
        `maps.Numbers`. labelling: how the label is read where its file leaves it open.
    """

    name: str
    image: ImageFiles | None
    label: AnyPath
    prediction: AnyPath | Mapping[str, AnyPath]
    numbers: Numbers = "auto"
    labelling: LabelOptions = LabelOptions()

    @property
    def predictions(self) -> dict[str, AnyPath]:
        """The class maps by name."""
        return dict(self.prediction) if isinstance(self.prediction, Mapping) else {"Prediction": self.prediction}


def scene_table(metrics: Metrics) -> Markup:
    """The figures of each scene."""
    rows = []
    for scene in metrics.scenes:
        scores = metrics.scene_scores(scene)
        counts = scores.confusion
        missing = int(counts.unpredicted.sum())
        figures = (scores.mean_iou, scores.mean_f1, scores.overall_accuracy)
        pixels = (counts.evaluated, counts.ignored, missing)
        cells = [*map(number, figures), *(number(count, f"{count:,}") for count in pixels)]
        rows.append(row_name(scene.name) + joined(cells))
    names = ("Mean IoU %", "Mean F1 %", "Accuracy %", "Pixels", "Ignored", "No prediction")
    return hint(
        "A scene’s means go over the classes that occur in it, so they are not shares of the figures above."
    ) + Markup('\n<div class="above">{}</div>').format(table([heading("Scene", "text"), *map(heading, names)], rows))


def legend(metrics: Metrics) -> Markup:
    """What the colours of the pictures mean."""
    return joined(
        Markup("<li>{}{}</li>").format(swatch(colour), name)
        for name, colour in [
            *zip(metrics.schema.classes, metrics.schema.colours, strict=True),
            ("no label, no data", EMPTY),
            ("error", WRONG),
        ]
    )


def scene_views(metrics: Metrics, views: Sequence[SceneView]) -> Markup:
    """The scenes under a slider, the worst first."""
    scores = {scene.name: metrics.scene_scores(scene) for scene in metrics.scenes}
    means = [scores[view.name].mean_iou if view.name in scores else float("nan") for view in views]
    shown = worst_first([view.name for view in views], means)[:SHOWN_SCENES]
    size = preview_size(len(shown))
    parts = []
    for place in shown:
        view = views[place]
        found = scores.get(view.name)
        words = (
            Markup("<p>mean IoU {} · mean F1 {} · accuracy {}</p>").format(
                *map(percent, (found.mean_iou, found.mean_f1, found.overall_accuracy))
            )
            if found is not None
            else ""
        )
        pictures = _drawn(view, metrics, size)
        parts.append(
            Markup(
                '<figure class="scene card" data-ratio="{:.5f}"><figcaption><h3>{}</h3>{}</figcaption>\n{}</figure>'
            ).format(pictures.width / pictures.height, view.name, words, _panels(pictures, view.name))
        )
    left_out = f" The {len(shown)} worst of {len(views)} are shown." if len(shown) < len(views) else ""
    return (
        hint(
            f"The worst scene first.{left_out} Pictures are reduced; an error picture shows the share of wrong pixels. "
            + Markup(
                '<span class="screen">Drag the line between the pictures; zoom by the buttons or a double click, then '
                "drag the picture.</span>"
            )
        )
        + Markup('\n<ul class="legend">{}</ul>\n').format(legend(metrics))
        + joined(parts, "\n")
    )


def worst_windows(metrics: Metrics, views: Sequence[SceneView]) -> Markup:
    """The blocks with the lowest accuracy, worst first; nothing where no block is large and labelled enough."""
    known = {view.name: view for view in views}
    blocks = [block for block in metrics.worst_blocks(SHOWN_BLOCKS + len(metrics.scenes)) if block.scene in known]
    parts = []
    for block in blocks[:SHOWN_BLOCKS]:
        view = known[block.scene]
        pictures = _drawn(view, metrics, _BLOCK_SIDE, block.window)
        area = block.window
        where = f"rows {area.row:,} – {area.row_stop:,}, columns {area.col:,} – {area.col_stop:,}"
        panels = _panels(pictures, f"{block.scene}, {where}")
        parts.append(
            Markup(
                '<figure class="block card"><figcaption><h3>{}</h3><p>accuracy {} · {}</p></figcaption>{}</figure>'
            ).format(block.scene, percent(block.accuracy), where, panels)
        )
    if not parts:
        return Markup()
    return hint(
        f"Of all windows of {BLOCK} pixels with a label on a quarter of their area or more, those with the lowest "
        "accuracy."
    ) + Markup('\n<div class="blocks">{}</div>').format(joined(parts))


def _drawn(view: SceneView, metrics: Metrics, size: int, window: Window | None = None) -> Preview:
    """The pictures of a scene, or of a window of it, read as they were for the figures."""
    return preview(
        view.image,
        view.label,
        view.predictions,
        metrics.schema,
        size=size,
        tolerance=metrics.options.tolerance,
        numbers=view.numbers,
        labelling=view.labelling,
        window=window,
    )


def _panels(pictures: Preview, name: str) -> Markup:
    panels = [
        Markup(
            '<figure><img src="{}" width="{}" height="{}" alt="{} of {}"><figcaption>{}</figcaption></figure>'
        ).format(source, pictures.width, pictures.height, layer, name, layer)
        for layer, source in pictures.layers.items()
    ]
    columns = len(panels) if len(panels) < 5 else 3
    return Markup('<div class="panels" style="--panels:{}">{}</div>').format(columns, joined(panels))
