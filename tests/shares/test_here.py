import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rs_biformer.shares import Here

PARENT = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from rs_biformer.shares import Here
from test_here import busy
if __name__ == "__main__":
    list(Here(2).map(busy, [Path(sys.argv[1]) / str(number) for number in range(2)]))
"""


def busy(note: Path) -> None:
    """Leave the process's id in a file, and be at work for minutes."""
    note.with_suffix(".part").write_text(str(os.getpid()))
    note.with_suffix(".part").rename(note)
    time.sleep(300)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or ") Z" not in state.read_text()


def wait_for(condition, what):
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail(what)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX systems")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_the_process_that_began_them(tmp_path, number):
    (tmp_path / "parent.py").write_text(PARENT)
    notes = [tmp_path / "0", tmp_path / "1"]
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path), str(Path(__file__).parent)]
    parent = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: all(note.exists() for note in notes), "the workers did not begin")
        workers = [int(note.read_text()) for note in notes]
        assert all(map(is_alive, workers))
        parent.send_signal(number)
        wait_for(lambda: not any(map(is_alive, workers)), f"workers live on after {number.name}")
        parent.wait(60)
    finally:
        parent.kill()


def test_results_come_in_the_order_of_the_tasks():
    assert list(Here(2).map(str, [3, 1, 2])) == ["3", "1", "2"]


def large(number: int) -> bytes:
    return bytes(30_000_000)


def test_who_gives_up_while_results_are_sent_does_not_wait_for_the_rest_of_one():
    """A worker that ended while it sent a result would leave half a message, for whose rest nobody would come."""
    done: list[int] = []

    def rounds() -> None:
        for number in range(4):
            results = Here(2).map(large, range(40))
            next(results)
            time.sleep(0.02 * number)
            results.close()
            done.append(number)

    thread = threading.Thread(target=rounds, daemon=True)
    thread.start()
    thread.join(180)
    assert done == [0, 1, 2, 3]
