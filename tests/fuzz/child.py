"""Commands one after another in a process of their own, so that a reader that crashes takes no test with it.

A line of JSON on standard input is a case: {"argv": [...], "folder": "...", "truth": name or null}; a line of JSON on
standard output is what became of it. A case that takes more than CPU_SECONDS ends the process (SIGXCPU).
"""

import io
import json
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

CPU_SECONDS = 20
DATA_BYTES = 6 * 2**30


def run(case: dict) -> dict:
    """Exit code, what was printed, the largest memory in bytes beyond that before, and what `truth` finds wrong."""
    from rs_biformer.cli import main

    used = int(time.process_time()) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, resource.RLIM_INFINITY))
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
    told, code, wrong = io.StringIO(), 0, ""
    with tempfile.TemporaryFile() as screen, _redirected(screen):
        try:
            code = main(case["argv"])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            code = -1
            traceback.print_exc(file=told)
        sys.stdout.flush()
        sys.stderr.flush()
        peak = _memory("VmHWM") - before
        if code == 0 and case["truth"]:
            import truths

            try:
                wrong = getattr(truths, case["truth"])(Path(case["folder"])) or ""
            except Exception:
                wrong = "the truth could not be worked out: " + traceback.format_exc()
        screen.seek(0)
        printed = screen.read(100_000).decode(errors="replace")
    return {"code": code, "printed": printed, "traceback": told.getvalue(), "memory": peak, "wrong": wrong}


class _redirected:
    """File descriptors 1 and 2 go to a file, those of C libraries too."""

    def __init__(self, file: io.BufferedRandom) -> None:
        self.file = file

    def __enter__(self) -> None:
        self.kept = [os.dup(number) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(self.file.fileno(), number)

    def __exit__(self, *_: object) -> None:
        for number, kept in zip((1, 2), self.kept, strict=True):
            os.dup2(kept, number)
            os.close(kept)


def _memory(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{name}:")[2].split()[0]) * 1024


def main() -> None:
    """Until standard input ends."""
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES, DATA_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind in (RuntimeWarning, UserWarning, FutureWarning):
        warnings.simplefilter("always", kind)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
