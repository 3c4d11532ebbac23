"""Runs commands in a child process that may crash, hang or grow, and says what became of each.

The outcome of a case is "right", or "refused" in one line; all else is a finding.
"""

import itertools
import json
import os
import selectors
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from child import CPU_SECONDS
from files import Kind, Task

import rs_biformer

MOST_MEMORY = 1.5e9
"""Bytes that a command may take beyond what the process had, for files of a few kilobytes."""

PATIENCE = 600.0
"""Seconds without an answer after which a child that does not compute is given up; the machine may be busy."""

LONGEST = 6000
"""Characters of a refusal, which may list formats and names."""


@dataclass(frozen=True)
class Outcome:
    """right, refused, wrong, traceback, warning, hang, crash, memory, leftover or text; and what was seen."""

    name: str
    seen: str = ""

    @property
    def is_finding(self) -> bool:
        return self.name not in ("right", "refused")


class Child:
    """A process of child.py, begun when it is needed and again after it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, task: Task, folder: Path) -> Outcome:
        """The outcome of a command in a folder of mutated files."""
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = self._begin()
        assert self._process.stdin is not None and self._process.stdout is not None
        case = {"argv": task.argv(folder), "folder": str(folder), "truth": task.truth}
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            answered = bool(selector.select(PATIENCE))
        line = self._process.stdout.readline() if answered else ""
        if not line:
            code = self._end()
            return Outcome("hang" if not answered or code == -24 else "crash", f"ended by {code}")
        return judged(json.loads(line), task, folder)

    def _begin(self) -> subprocess.Popen:
        path = [str(Path(rs_biformer.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("child.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
        )

    def _end(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.close()
            process.wait(1)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
        code = process.wait()
        process.stdout.close()
        return code


def judged(answer: dict, task: Task, folder: Path) -> Outcome:
    """What an answer of the child amounts to."""
    code, printed = answer["code"], answer["printed"]
    if answer["traceback"] or "Traceback (most recent" in printed:
        return Outcome("traceback", answer["traceback"] or printed)
    if "Warning: " in printed:
        return Outcome("warning", printed)
    if answer["memory"] > MOST_MEMORY:
        return Outcome("memory", f"{answer['memory'] / 1e6:.0f} MB")
    if control := [letter for letter in printed if ord(letter) < 32 and letter not in "\n\t\r"]:
        return Outcome("text", f"control characters {control}: {printed!r}")
    if code == 0:
        return Outcome("wrong", answer["wrong"]) if answer["wrong"] else Outcome("right")
    return _refusal(code, printed, task, folder)


def _refusal(code: int, printed: str, task: Task, folder: Path) -> Outcome:
    lines = [line for line in printed.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if code != 2 or not last.startswith(("rs-biformer ", "usage: ")) or len(last) > LONGEST:
        return Outcome("text", f"exit code {code}: {printed}")
    left = [name for name in task.made if (folder / name).exists()]
    left += [str(path) for path in folder.rglob(".*") if path.is_file() and "partial" in path.name]
    return Outcome("leftover", f"{left} after {last}") if left else Outcome("refused", last)


def fuzz(kind: Kind, folder: Path, seeds: range) -> tuple[dict[str, int], list[str]]:
    """How often each outcome came, and a line for every finding: its seed, command and what was seen.

    Intact files come first, and must be right.
    """
    counts: dict[str, int] = {}
    findings: list[str] = []
    with Child() as child:
        for intact, task in itertools.product(kind.intact, kind.tasks):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(intact, folder)
            assert (outcome := child.run(task, folder)).name == "right", (kind.name, task, outcome)
        for seed in seeds:
            shutil.rmtree(folder, ignore_errors=True)
            task = kind.make(folder, seed)
            outcome = child.run(task, folder)
            counts[outcome.name] = counts.get(outcome.name, 0) + 1
            if outcome.is_finding:
                findings.append(f"{kind.name}, seed {seed}, {task.words}: {outcome.name}: {outcome.seen}")
    return counts, findings


assert CPU_SECONDS < PATIENCE
