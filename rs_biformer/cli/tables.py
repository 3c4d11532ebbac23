"""The figures of an evaluation as tables on standard output."""

from typing import TYPE_CHECKING

from rs_biformer.cli import console

if TYPE_CHECKING:
    from rs_biformer.jobs import Evaluation


def show(evaluation: "Evaluation") -> None:
    """The figures of one model in full; of several side by side, with what sets them apart."""
    from rs_biformer.evaluation import report
    from rs_biformer.evaluation.compare import sentences

    for protocol in dict.fromkeys(metrics.protocol.id for metrics in evaluation.results):
        mine = [metrics for metrics in evaluation.results if metrics.protocol.id == protocol]
        if len(mine) == 1:
            title = f"Per class, in per cent ({mine[0].schema.name}, {protocol})"
            console.table(title, report.TABLE_HEADER, report.table_rows(mine[0]))
            print("\n".join(report.summary_lines(mine[0])))
            continue
        comparisons = evaluation.comparisons[protocol]
        console.table(f"In per cent ({protocol})", report.COMPARE_HEADER, report.compare_rows(mine))
        console.table("In points", report.DIFFERENCE_HEADER, report.difference_rows(comparisons))
        print("\n".join(sentences(comparisons)))
