"""What commands show: tables on standard output, progress with the time left on standard error."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any


def visible(text: str) -> str:
    """The text with its control characters spelt out, which a terminal would obey: names come from files."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column left-aligned, the others right-aligned."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def literal(text: str) -> Text:  # a name such as "a [/b]" is no markup
        return Text(visible(text))

    grid = Table(title=literal(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(header):
        grid.add_column(literal(name), justify="right" if number else "left", overflow="fold")
    for row in rows:
        grid.add_row(*map(literal, row))
    # Away from a terminal the width is that of the content: a log must not lose columns.
    console = Console() if sys.stdout.isatty() else Console(width=max(80, 16 * len(header)))
    console.print(grid)


@contextmanager
def progress(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with an estimate of the time left, as the callback (done, total) that our functions take.

    It appears with the first progress: what is refused at once is not announced.
    """
    from tqdm import tqdm

    with ExitStack() as stack:
        bars: list[tqdm[Any]] = []

        def update(done: int, total: int) -> None:
            if not bars:
                bar = tqdm(desc=label, unit=f" {unit}", mininterval=0.5, dynamic_ncols=True, file=sys.stderr)
                bars.append(stack.enter_context(bar))
            bars[0].total = total
            bars[0].update(done - bars[0].n)

        yield update


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextmanager
def interruptible(advice: Callable[[], str]) -> Iterator[None]:
    """SIGTERM, which batch systems send before they kill, ends the block as Ctrl-C does; what `advice`
    gives is said with either.

    Only in the main thread of a process, where signals are handled.
    """

    def interrupt(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt as stop:
        raise type(stop)(advice()) from None
    finally:
        signal.signal(signal.SIGTERM, before)
