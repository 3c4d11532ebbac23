"""What commands show: lines and tables on standard output, progress and remarks on standard error.

Nothing else in the package prints: names come from files, and what a terminal would obey is spelt out here.

Progress is a bar with the time left, or, for a program that runs the command, lines of JSON, at most five a second:
`{"progress": "town", "done": 12, "total": 96, "unit": "window"}`. All other lines on standard error are for people.
"""

import io
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

PROGRESS = ("bar", "json", "none")
_SECONDS = 0.2  # between two lines of JSON

_form = "bar"


def show_progress_as(form: str) -> None:
    """Choose one of PROGRESS for this process."""
    global _form
    _form = form


def visible(text: str) -> str:
    """The text with its control characters spelt out, which a terminal would obey: names come from files."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def show(text: object = "", *, flush: bool = False) -> None:
    """Print text for people, of one line or several, on standard output."""
    print("\n".join(map(visible, str(text).split("\n"))), flush=flush)


def document(text: str) -> None:
    """Print text for programs as it is: JSON, YAML or CSV, whose own rules spell control characters out."""
    print(text.removesuffix("\n"))


def say(line: object) -> None:
    """Write a line to standard error, above a progress bar and not through it, without what gives access to a URL."""
    from tqdm import tqdm

    from rs_biformer.raster.paths import without_access

    tqdm.write(visible(without_access(str(line))), file=sys.stderr)


def complain(line: str) -> None:
    """Write what ends a command to standard error, as one line."""
    from rs_biformer.raster.paths import without_access

    print(visible(without_access(" ".join(line.split()))), file=sys.stderr)


class _Remarks(logging.Handler):
    """Shows what the package logs."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(record.getMessage())
        except (OSError, ValueError):  # nobody reads any more
            self.handleError(record)


_REMARKS = _Remarks(logging.WARNING)


def prepare() -> None:
    """Make ready for what commands show: any name in a terminal of any encoding, and what the package logs."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.getLogger("rs_biformer").addHandler(_REMARKS)  # twice is once


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

    It appears with the first progress: what is refused at once is not announced. See `show_progress_as` for others.
    """
    if _form != "bar":
        yield _lines(label, unit) if _form == "json" else lambda done, total: None
        return
    from tqdm import tqdm

    with ExitStack() as stack:
        bars: list[tqdm[Any]] = []

        def update(done: int, total: int) -> None:
            if not bars:
                bar = tqdm(desc=visible(label), unit=f" {unit}", mininterval=0.5, dynamic_ncols=True, file=sys.stderr)
                bars.append(stack.enter_context(bar))
            bars[0].total = total
            bars[0].update(done - bars[0].n)

        yield update


def _lines(label: str, unit: str) -> Callable[[int, int], None]:
    last = -_SECONDS

    def update(done: int, total: int) -> None:
        nonlocal last
        if done >= total or time.monotonic() - last >= _SECONDS:
            last = time.monotonic()
            line = {"progress": label, "done": int(done), "total": int(total), "unit": unit}
            print(json.dumps(line), file=sys.stderr, flush=True)

    return update


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


_INTERRUPTIONS = {signal.SIGTERM: Terminated, signal.SIGINT: KeyboardInterrupt}
_came: list[type[KeyboardInterrupt]] = []  # in this process, whatever became of it: see `interruptible`


@contextmanager
def interruptible(advice: Callable[[], str]) -> Iterator[None]:
    """SIGTERM, which batch systems send before they kill, ends the block as Ctrl-C does; what `advice`
    gives is said with either.

    Native code that was calling Python back when the signal came makes an error of its own of it, such as "the batch
    cannot be read", or another interruption: a block that ends by any error after a signal was interrupted. Where such
    code passes over it altogether the block goes on to its end.

    Only in the main thread of a process, where signals are handled, and not in processes that it forks. SIGINT is
    watched where Python's own handler would have had it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, already = os.getpid(), len(_came)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            _came.append(_INTERRUPTIONS[signal.Signals(number)])
            raise _came[-1]
        if number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    watched = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        watched.append(signal.SIGINT)
    before = {number: signal.signal(number, interrupt) for number in watched}
    try:
        yield
    except (Exception, KeyboardInterrupt) as stop:
        kind = _came[-1] if len(_came) > already else type(stop)
        if not issubclass(kind, KeyboardInterrupt) or (isinstance(stop, KeyboardInterrupt) and stop.args):
            raise
        raise kind(*filter(None, [advice()])) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
