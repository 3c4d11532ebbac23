"""Commands killed at any moment by any signal, and the same command again: what it would have made undisturbed.

Training and `predict` have tests of their own with more to look at (train/test_run.py, predict/test_resume.py). A
moment is a share of the CPU time of the undisturbed command, so that a busy machine does not move them all to its
beginning. `make kills` kills each command twelve times; the slow suite once.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from every_command import COMMANDS, command, made, write_inputs

pytest.importorskip("onnxscript")

KILLS = int(os.environ.get("RS_BIFORMER_KILLS", "1"))
SIGNALS = {signal.SIGTERM: 143, signal.SIGKILL: 137, signal.SIGINT: 130}
"""Exit codes as a shell sees them: 128 and the signal, whether it ended the process or that ended by itself."""
FORK = multiprocessing.get_context("forkserver")
PRELOADED = [
    *("rs_biformer.cli.predict", "rs_biformer.predict", "rs_biformer.checkpoint", "rs_biformer.jobs.tiling"),
    *("rs_biformer.jobs.evaluating", "rs_biformer.evaluation.page", "rs_biformer.raster.vector", "scipy.stats"),
    *("rs_biformer.raster.height", "rs_biformer.explain", "rs_biformer.synthetic", "rs_biformer.train.run"),
    *("rs_biformer.export", "torch.onnx", "onnxscript", "torch.export", "matplotlib.pyplot", "pyogrio.raw"),
]
TAKEN_UP = {"train": {"run/.unfinished", "run/.lock"}}
"""Files under a leading dot that stay, or may be there after a kill, by design."""
MEANWHILE = {"train"}
"""Commands whose files change while they run: a checkpoint of the first epoch is no half-written one of the last."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """All that COMMANDS read."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


def command_line(argv: list[str], log: str) -> None:
    """What the shell would run, in a process group and with temporary files of its own."""
    os.setsid()
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    tempfile.tempdir = f"{log}.tmp"
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from rs_biformer.cli import main

    note(Path(f"{log}.begun"), cpu(os.getpid()))
    code = main(argv)
    if code == 0:
        note(Path(f"{log}.ended"), cpu(os.getpid()))
    sys.exit(code)


def note(path: Path, seconds: float) -> None:
    """Who waits for the file reads it as soon as it is there."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(str(seconds))
    os.replace(partial, path)


def cpu(pid: int) -> float:
    """Seconds of CPU that the main thread of a process has had; infinite for one that is gone."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, IndexError):
        return float("inf")


class Command:
    """A command with a folder to write to."""

    def __init__(self, name: str, inputs: Path, out: Path) -> None:
        self.name, self.out, self.log = name, out, out.with_suffix(".log")
        self.begun, self.ended = Path(f"{self.log}.begun"), Path(f"{self.log}.ended")
        self.temporary = Path(f"{self.log}.tmp")
        self.argv = command(name, inputs, out)
        out.mkdir()
        self.temporary.mkdir(exist_ok=True)

    def start(self) -> multiprocessing.Process:
        FORK.set_forkserver_preload(PRELOADED)
        self.begun.unlink(missing_ok=True)
        self.ended.unlink(missing_ok=True)
        process = FORK.Process(target=command_line, args=(self.argv, str(self.log)))
        process.start()
        while not self.begun.exists() and process.is_alive():
            time.sleep(0.001)
        return process

    def run(self) -> float:
        """Seconds of CPU that it took."""
        process = self.start()
        process.join()
        assert process.exitcode == 0, self.log.read_text()
        return float(self.ended.read_text()) - float(self.begun.read_text())

    def kill_after(self, seconds: float, number: int) -> bool:
        """Whether it was still at work; then it ended as that signal ends a command, and its children did too."""
        process = self.start()
        stop = float(self.begun.read_text()) + seconds
        while process.is_alive() and cpu(process.pid) < stop:
            time.sleep(0.001)
        if process.is_alive():
            os.kill(process.pid, number)
        process.join()
        deadline = time.monotonic() + 60
        while (left := members(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == [], f"children live on after {signal.Signals(number).name}"
        told = self.log.read_text()
        if self.ended.exists():  # with 0; while Python itself comes to its end a signal has other effects
            return False
        code = process.exitcode if process.exitcode >= 0 else 128 - process.exitcode
        assert code == SIGNALS[number], f"{process.exitcode}: {told}"
        assert "Traceback" not in told
        return True

    def hidden(self) -> set[str]:
        return {str(path.relative_to(self.out)) for path in self.out.rglob(".*")} - TAKEN_UP.get(self.name, set())


def members(group: int) -> list[int]:
    """Processes of a group that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(sys.platform != "linux", reason="looks for children and their time in /proc")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_leaves_nothing_wrong_and_the_same_command_ends_the_same(name, inputs, tmp_path):
    out = tmp_path / "out"  # one for all, as some files name where they lie
    undisturbed = Command(name, inputs, out)
    seconds = undisturbed.run()
    wanted, killed = made(out), 0
    assert wanted and undisturbed.hidden() == set()
    for number in range(KILLS + 5):
        if number >= KILLS and killed:
            break  # the five are for a machine so busy that the command ended before it could be killed
        shutil.rmtree(out)
        again = Command(name, inputs, out)
        moment = seconds * (number % KILLS + 0.6) / (KILLS + 0.2)
        which = list(SIGNALS)[(number + len(name)) % len(SIGNALS)]
        killed += again.kill_after(moment, which)
        told = f"{which.name} after {moment:.2f} of {seconds:.2f} s"
        if name not in MEANWHILE:
            assert {key for key, value in made(out).items() if wanted.get(key) != value} == set(), told
        again.run()
        found = made(out)
        assert set(found) == set(wanted), told
        assert {key for key, value in found.items() if wanted[key] != value} == set(), told
        assert again.hidden() == set(), told
        assert list(again.temporary.iterdir()) == [], told
    print(f"{name}: {killed} of {KILLS} kills came before its end, which took {seconds:.2f} s of CPU")
    assert killed > 0
