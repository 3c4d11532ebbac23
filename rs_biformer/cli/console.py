"""What commands show: tables on standard output, progress with the time left on standard error."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column left-aligned, the others right-aligned."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(header):
        grid.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    # Away from a terminal the width is that of the content: a log must not lose columns.
    console = Console() if sys.stdout.isatty() else Console(width=max(80, 16 * len(header)))
    console.print(grid)


@contextmanager
def progress(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with an estimate of the time left, as the callback (done, total) that our functions take."""
    from tqdm import tqdm

    with tqdm(desc=label, unit=f" {unit}", mininterval=0.5, dynamic_ncols=True, file=sys.stderr) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update
