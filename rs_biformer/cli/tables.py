"""What commands found, as tables on standard output."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rs_biformer.cli import console

if TYPE_CHECKING:
    from rs_biformer.jobs import Evaluation
    from rs_biformer.nn.count import Figures

_SHOWN_SCENES = 40


def evaluation(evaluated: "Evaluation") -> None:
    """The figures of one model in full; of several side by side, with what sets them apart."""
    from rs_biformer.evaluation import report
    from rs_biformer.evaluation.compare import sentences

    for protocol in dict.fromkeys(metrics.protocol.id for metrics in evaluated.results):
        mine = [metrics for metrics in evaluated.results if metrics.protocol.id == protocol]
        if len(mine) == 1:
            title = f"Per class, in per cent ({mine[0].schema.name}, {protocol})"
            console.table(title, report.TABLE_HEADER, report.table_rows(mine[0]))
            console.show("\n".join(report.summary_lines(mine[0])))
            continue
        comparisons = evaluated.comparisons[protocol]
        console.table(f"In per cent ({protocol})", report.COMPARE_HEADER, report.compare_rows(mine))
        console.table("In points", report.DIFFERENCE_HEADER, report.difference_rows(comparisons))
        console.show("\n".join(sentences(comparisons)))


def tiles(summary: Mapping[str, Any]) -> None:
    """The summary of a tile index: scenes, splits, shares of the classes, bands, and what there is to know."""
    splits = summary["splits"]
    scenes = [
        [
            scene["name"],
            f"{scene['height']} x {scene['width']}",
            ", ".join(f"{count} {split}" for split, count in scene["windows"].items()) or "none",
            f"{scene['labelled_share']:.1%}",
            f"{scene['unknown_pixels']}",
        ]
        for scene in summary["scenes"][:_SHOWN_SCENES]
    ]
    console.table("Scenes", ["scene", "pixels", "windows", "labelled", "unknown px"], scenes)
    if len(summary["scenes"]) > _SHOWN_SCENES:
        console.show(f"... and {len(summary['scenes']) - _SHOWN_SCENES} more in summary.json")
    facts = [
        [split, f"{part['scenes']}", f"{part['windows']}", f"{part['labelled_pixels'] / 1e6:.2f}"]
        for split, part in splits.items()
    ]
    console.table("Splits", ["split", "scenes", "windows", "labelled Mpx"], facts)
    names = next(iter(splits.values()))["classes"]
    shares = [[name, *(f"{part['classes'][name]['share']:.2%}" for part in splits.values())] for name in names]
    console.table("Class shares", ["class", *splits], shares)
    bands = [[band["name"], f"{band['mean']:.4g}", f"{band['std']:.4g}"] for band in summary["bands"]]
    console.table(f"Bands ({summary['statistics_of']})", ["band", "mean", "std"], bands)
    for key, count in summary["dropped_windows"].items():
        cure = "; larger --block-size or smaller --window keeps more" if count and key == "between_splits" else ""
        console.show(f"dropped windows {key.replace('_', ' ')}: {count}{cure}")
    for unknown in summary["unknown"]:
        console.show("unknown: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in unknown.items()))
    for note in summary["notes"]:
        console.show(f"note: {note}")


def architectures(found: Sequence["Figures"], size: int) -> None:
    """What encoders cost, alone, with a classifier and with their decoder."""
    title = f"Encoders, with an ImageNet classifier, and with {found[0].decoder}: one {size} x {size} image"
    header = ["encoder", "params M", "GMAC", "ImageNet M", "GMAC", "model M", "GMAC", "strides"]
    console.table(title, header, [_costs(figures) for figures in found])


def _costs(figures: "Figures") -> list[str]:
    counts = (
        (figures.encoder_parameters, figures.encoder_multiply_adds),
        (figures.classifier_parameters, figures.classifier_multiply_adds),
        (figures.parameters, figures.multiply_adds),
    )
    shown = [text for numbers, adds in counts for text in (f"{numbers / 1e6:.2f}", f"{adds / 1e9:.2f}")]
    return [figures.encoder, *shown, " ".join(str(stride) for stride in figures.strides)]


def encoders(found: Mapping[str, Sequence[str]]) -> None:
    """Encoders of the libraries, with the weights that there are for each."""
    rows = [[name, ", ".join(weights)] for name, weights in found.items()]
    console.table("Encoders of smp and timm, and their weights", ["encoder", "weights"], rows)


def columns(title: str, found: Mapping[str, Any], *, most: int) -> None:
    """The first rows of a table given by its columns: areas whole, shares in per cent."""
    names = list(found)
    rows = [
        [_cell(name, found[name].tolist()[number]) for name in names]
        for number in range(min(most, len(found[names[0]])))
    ]
    console.table(title, names, rows)
    if len(found[names[0]]) > most:
        console.show(f"... and {len(found[names[0]]) - most} more rows in the table")


def _cell(name: str, value: Any) -> str:
    if value is None or value != value:
        return ""
    if name == "share" or name.endswith("_share"):
        return f"{value:.2%}"
    return f"{value:.7g}" if isinstance(value, float) else str(value)
