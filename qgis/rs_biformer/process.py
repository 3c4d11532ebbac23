"""A child process that is heard line by line and can be stopped, with all that it started. No QGIS in here."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import threading
from typing import IO, Callable, Sequence

_POLL = 0.1  # seconds between two looks at whether to stop
_GRACE = 15.0  # seconds for the child to tidy up; then it is killed
_KEPT = 400  # lines of standard error, for the message of a failure


class Cancelled(Exception):
    """The child was stopped because somebody asked for it."""


def run(
    command: Sequence[str],
    *,
    environment: dict[str, str],
    folder: str | None = None,
    stopped: Callable[[], bool],
    tell: Callable[[str], None],
) -> tuple[int, list[str], str]:
    """Run a command; its exit code, the last lines of its standard error, and its standard output.

    folder: where it runs. stopped: asked ten times a second whether to stop. tell: gets each line of standard error,
    in the calling thread. Raises Cancelled once a stopped child is gone, and OSError where it cannot be started.
    """
    child = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=folder,
        **_apart(),
    )
    assert child.stdout is not None and child.stderr is not None
    lines: queue.Queue[str | None] = queue.Queue()
    written: list[bytes] = []
    readers = [
        threading.Thread(target=_lines_into, args=(child.stderr, lines), daemon=True),
        threading.Thread(target=_all_into, args=(child.stdout, written), daemon=True),
    ]
    for reader in readers:
        reader.start()
    kept: list[str] = []
    try:
        _listen(lines, kept, stopped, tell)
        while child.poll() is None:  # it has closed its standard error and is still at work
            if stopped():
                raise Cancelled
            _wait(child, _POLL)
    except BaseException:
        _stop(child)
        raise
    finally:
        for reader in readers:
            reader.join(timeout=_GRACE)
        child.stdout.close()
        child.stderr.close()
    return child.returncode, kept, b"".join(written).decode("utf-8", "replace")


def _listen(
    lines: queue.Queue[str | None], kept: list[str], stopped: Callable[[], bool], tell: Callable[[str], None]
) -> None:
    while True:
        if stopped():
            raise Cancelled
        try:
            line = lines.get(timeout=_POLL)
        except queue.Empty:
            continue
        if line is None:
            return
        kept.append(line)
        del kept[:-_KEPT]
        tell(line)


def _lines_into(stream: IO[bytes], lines: queue.Queue[str | None]) -> None:
    for raw in iter(stream.readline, b""):
        # A bar of another program, pip's say, overwrites itself: only its last state is a line.
        text = raw.decode("utf-8", "replace").rstrip("\r\n").rpartition("\r")[2]
        lines.put(text)
    lines.put(None)


def _all_into(stream: IO[bytes], written: list[bytes]) -> None:
    written.extend(iter(lambda: stream.read(1 << 16), b""))


def _apart() -> dict[str, object]:
    """A group of its own, so that all of it can be stopped; and no console window on Windows."""
    if os.name == "nt":
        return {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _wait(child: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _stop(child: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C first, so that the child removes what it has half written; then by force, with its children."""
    if os.name == "nt":
        kill = ["taskkill", "/T", "/F", "/PID", str(child.pid)]
        subprocess.run(kill, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, **_apart())
        _wait(child, _GRACE)
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            pass
        if _wait(child, _GRACE if number == signal.SIGINT else 2.0):
            break
    try:
        os.killpg(child.pid, signal.SIGKILL)  # what it may have left of its own children
    except (ProcessLookupError, PermissionError):
        pass


def partials(folder: str) -> set[str]:
    """What is half written in a folder: rs-biformer calls it `.NAME....partial` until it is complete."""
    try:
        return {name for name in os.listdir(folder) if name.startswith(".") and name.endswith(".partial")}
    except OSError:
        return set()


def remove_partials(folder: str, names: set[str]) -> None:
    """Remove these, which a child that was killed could not."""
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        elif os.path.exists(path):
            os.remove(path)
