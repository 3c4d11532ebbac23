"""A Python environment for rs-biformer, apart from QGIS's own: made on request with venv and pip. No QGIS in here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Callable, Sequence

from . import process
from .command import clean_environment, error_line

DEFAULT_SOURCE = "rs-biformer-predict[all]"
"""With what looking for label errors needs."""
OLDEST, NEWEST = (3, 11), (3, 13)
_NAMES = ("python3.13", "python3.12", "python3.11", "python3", "python")
_ASK = "import sys; print(sys.version_info[0], sys.version_info[1])"


class SetupError(Exception):
    """The environment cannot be made, in one line."""


def find_command(folder: str) -> str | None:
    """The command rs-biformer of an environment's folder, or the file itself; None where there is none."""
    names = ("rs-biformer.exe", "rs-biformer") if os.name == "nt" else ("rs-biformer",)
    if os.path.isfile(folder):
        return folder
    for place in ("Scripts", "bin", ""):
        for name in names:
            path = os.path.join(folder, place, name)
            if os.path.isfile(path):
                return path
    return None


def candidates(given: str | None = None) -> list[str]:
    """Programs that may be a Python to make an environment with: the given one alone, or those that are found."""
    if given:
        return [given]
    base = sys.base_prefix
    own = [sys.executable] if os.path.basename(sys.executable).lower().startswith("python") else []
    inside = [os.path.join(base, "python.exe"), os.path.join(base, "python3.exe"), os.path.join(base, "bin", "python3")]
    found = [shutil.which(name) for name in _NAMES]
    listed = [*own, *(path for path in inside if os.path.isfile(path)), *(path for path in found if path)]
    return list(dict.fromkeys(listed))


def choose_python(given: str | None = None) -> str:
    """A Python of a version that rs-biformer runs with. Raises SetupError where there is none, with those seen."""
    seen = []
    for path in candidates(given):
        version = _version_of(path)
        if version is not None and OLDEST <= version <= NEWEST:
            return path
        seen.append(f"{path} ({'does not run' if version is None else '.'.join(map(str, version))})")
    raise SetupError(
        f"rs-biformer needs Python {_dotted(OLDEST)} to {_dotted(NEWEST)}; found {', '.join(seen) or 'none'}: install "
        "one from python.org or your system and give its program"
    )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _version_of(path: str) -> tuple[int, int] | None:
    try:
        said = subprocess.run(
            [path, "-c", _ASK],
            env=clean_environment(dict(os.environ)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=30,
            check=True,
        ).stdout.split()
        return int(said[0]), int(said[1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def requirement(source: str) -> list[str]:
    """What pip is asked for: a name with or without a version, a wheel, a folder of wheels or of sources.

    Raises SetupError for a path that is not there, or a folder that holds neither.
    """
    if not os.path.isdir(source):
        if (os.sep in source or source.endswith(".whl")) and not os.path.isfile(source) and "://" not in source:
            raise SetupError(f"there is no {source}; give a wheel, a folder, or a name such as {DEFAULT_SOURCE}")
        return [source]
    wheels = [os.path.join(source, name) for name in os.listdir(source) if name.endswith(".whl")]
    ours = [path for path in wheels if os.path.basename(path).startswith("rs_biformer")]
    if ours:  # the newest; an index may have a newer one still, which was not asked for
        newest = max(ours, key=os.path.getmtime)
        extra = "[all]" if os.path.basename(newest).startswith("rs_biformer_predict-") else ""
        return ["--find-links", source, newest + extra]
    if any(os.path.isfile(os.path.join(source, name)) for name in ("pyproject.toml", "setup.py")):
        return [source]
    raise SetupError(
        f"{source} holds neither a wheel of rs_biformer (.whl) nor sources (pyproject.toml); give another folder"
    )


def make(
    folder: str,
    source: str,
    *,
    python: str | None = None,
    stopped: Callable[[], bool],
    tell: Callable[[str], None],
) -> str:
    """Make an environment in `folder` with what `source` names, in place of one that was made there; its command.

    It is made in its place, as environments cannot be moved; one that fails or is cancelled is removed. Raises
    SetupError, and process.Cancelled.
    """
    wanted = requirement(source)
    chosen = choose_python(python)
    _require_own(folder)
    tell(f"{chosen} makes an environment in {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    inside = os.path.join(folder, *(("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")))
    pip = [inside, "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    done = False
    try:
        _step("venv", [chosen, "-I", "-m", "venv", folder], stopped, tell)
        _step("pip", [*pip, *wanted], stopped, tell)
        command = find_command(folder)
        if command is None:
            raise SetupError(f"{source} is installed and brings no command rs-biformer; give {DEFAULT_SOURCE}")
        _step("rs-biformer", [command, "--version"], stopped, tell)
        done = True
        return command
    finally:
        if not done:
            shutil.rmtree(folder, ignore_errors=True)


def _require_own(folder: str) -> None:
    """Nothing but an environment, or nothing, is replaced."""
    if os.path.isfile(folder) or (os.path.isdir(folder) and os.listdir(folder)):
        if not os.path.isfile(os.path.join(folder, "pyvenv.cfg")):
            raise SetupError(f"{folder} holds something else than an environment; give a new folder")


def _step(name: str, command: Sequence[str], stopped: Callable[[], bool], tell: Callable[[str], None]) -> None:
    try:
        code, lines, said = process.run(
            command, environment=clean_environment(dict(os.environ)), stopped=stopped, tell=tell
        )
    except OSError as error:
        raise SetupError(f"{name} cannot be started: {error}") from error
    for line in said.splitlines():
        tell(line)
    if code:
        hint = "; Debian and Ubuntu have it in the package python3-venv" if name == "venv" else ""
        raise SetupError(error_line(name, code, [*said.splitlines(), *lines]) + hint)
