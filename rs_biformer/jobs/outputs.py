"""What an evaluation writes: figures, pictures, page, card, places where labels may be wrong."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rs_biformer.distribution import describe_missing, require
from rs_biformer.errors import ConfigError
from rs_biformer.evaluation import (
    SceneView,
    find_label_errors,
    write_card,
    write_confusion_png,
    write_json,
    write_page,
    write_results,
)
from rs_biformer.evaluation.curves import read_curves
from rs_biformer.jobs.evaluating import Evaluation, Progress, no_progress
from rs_biformer.jobs.truths import Say, silent
from rs_biformer.raster.overwriting import refuse_overwriting
from rs_biformer.raster.paths import Location, PathLike, without_access


@dataclass(frozen=True)
class Outputs:
    """The files to write.

    figures: JSON, with the confusion matrix of a single result as NAME_confusion.png beside it, where there is
    matplotlib. report: a page that needs nothing else. card: a model card in Markdown. label_errors: a GeoPackage.
    title: of page and card. curves: metrics.csv of the training, for the page. commands: what to type to get the
    figures again.

    Raises ConfigError for figures without a name, and for curves without a page, or that are none.
    """

    figures: Path
    report: Path | None = None
    card: Path | None = None
    label_errors: Path | None = None
    title: str = "Evaluation"
    curves: Path | None = None
    commands: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.figures.name:
            raise ConfigError(f"--out is {self.figures}, a folder; give the name of a file, such as metrics.json")
        if self.curves and not self.report:
            raise ConfigError("--curves are drawn on the page; give --report FILE.html as well")
        if self.curves and not self.curves.is_file():
            raise ConfigError(f"--curves {self.curves} does not exist; give the metrics.csv of a training")
        if self.curves:
            read_curves(self.curves)

    @property
    def files(self) -> list[Path]:
        """All that may be written."""
        return [path for path in (self.figures, self.picture, self.report, self.card, self.label_errors) if path]

    @property
    def picture(self) -> Path:
        """The confusion matrix."""
        return self.figures.with_name(f"{self.figures.stem}_confusion.png")

    def require_apart(self, read: Iterable[PathLike | None]) -> None:
        """Raise ConfigError where one of them is a file that is read, cannot be written, or is asked for twice.

        ModuleNotFoundError where what finds label errors is not installed.
        """
        refuse_overwriting([*read, self.curves], self.files)
        if self.label_errors is not None:
            require("scipy")  # which the distribution without torch may do without: told before the work


def command_line(program: str, arguments: Sequence[str]) -> str:
    """A command as one would type it, without what gives access to rasters: it goes where others read it."""
    return shlex.join([program, *map(without_access, arguments)])


def write_outputs(
    evaluation: Evaluation, outputs: Outputs, *, progress: Progress = no_progress, say: Say = silent
) -> list[Path]:
    """Every file that was asked for, in the order written.

    say: gets how many labels are suspicious, and which file is left out for want of a package.
    """
    outputs.require_apart(evaluation.files_read)
    first, single = evaluation.results[0], len(evaluation.results) == 1
    if single:
        written = [write_json(outputs.figures, first)]
        try:
            written.append(write_confusion_png(outputs.picture, first))
        except ModuleNotFoundError as error:  # matplotlib, which the distribution without torch may do without
            say(f"{outputs.picture.name} is left out: {describe_missing((error.name or '').partition('.')[0])}")
    else:
        written = [write_results(outputs.figures, evaluation.results, evaluation.comparisons)]
    if outputs.report:
        written.append(_write_page(outputs.report, evaluation, outputs, written))
    if outputs.card:
        written.append(write_card(outputs.card, first, title=outputs.title, commands=outputs.commands))
    if outputs.label_errors:
        with progress("label errors", "px") as update:
            count = _find_label_errors(outputs.label_errors, evaluation, update)
        say(f"{count} places where the labels may be wrong, ranked")
        written.append(outputs.label_errors)
    return written


def _write_page(path: Path, evaluation: Evaluation, outputs: Outputs, written: Sequence[Path]) -> Path:
    results, sets, truths, rules = evaluation.results, evaluation.sets, evaluation.truths, evaluation.rules
    views = []
    if sets:
        images: Sequence[tuple[Location, ...] | None] = truths.images or [None] * len(truths.labels)
        for place, scene in enumerate(results[0].scenes):
            maps = {part.name or "Prediction": part.maps[place] for part in sets}
            views.append(
                SceneView(scene.name, images[place], truths.labels[place], maps, rules.numbers, rules.labelling)
            )
    kept = [path for part in sets if part.kept for path in part.maps if isinstance(path, Path)]
    return write_page(
        path,
        metrics=results[0],
        others=results[1:],
        comparisons=evaluation.comparisons,
        title=outputs.title,
        scenes=views,
        curves=outputs.curves,
        commands=outputs.commands,
        files={**{"Figures (JSON)": outputs.figures}, **{path.name: path for path in [*written[1:], *kept]}},
    )


def _find_label_errors(path: Path, evaluation: Evaluation, progress: object) -> int:
    (part,), truths, rules = evaluation.sets, evaluation.truths, evaluation.rules
    assert part.confidences is not None
    return find_label_errors(
        part.maps,
        truths.labels,
        part.confidences,
        evaluation.results[0].schema,
        path,
        scenes=truths.images,
        tolerance=rules.tolerance,
        nodata=rules.nodata,
        numbers=rules.numbers,
        labelling=rules.labelling,
        area=rules.area,
        allow_huge=rules.allow_huge,
        names=truths.names,
        progress=progress,  # type: ignore[arg-type]
    )
