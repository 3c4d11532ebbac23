"""The files around the code: what a wheel holds, what hosts and citation tools read, what the pins say."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from rs_biformer.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCHEMAS = {".github/workflows/ci.yml": "vendor.github-workflows", "CITATION.cff": "vendor.citation-file-format"}


def pins(name: str) -> dict[str, str]:
    """Normalised name -> version of a constraints file."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {key.lower().replace("_", "-"): version for key, version in pairs}


def required() -> list[str]:
    """Normalised names of what the project and its extras need, but `pretrained`, which are weights."""
    extras = PROJECT["project"]["optional-dependencies"]
    listed = PROJECT["project"]["dependencies"] + [
        line for name in extras if name != "pretrained" for line in extras[name]
    ]
    return [line.partition("[")[0].partition(">")[0].partition("=")[0].lower().replace("_", "-") for line in listed]


def test_a_wheel_holds_all_files_of_the_package(tmp_path):
    """Built by the project's own backend from a copy, so that a stale build folder can add nothing."""
    copy = tmp_path / "source"
    copy.mkdir()
    files = subprocess.run(
        ["git", "ls-files", "rs_biformer", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if files.returncode:
        pytest.skip("no git checkout: what belongs to the project cannot be listed")
    for name in files.stdout.split("\n")[:-1]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    code = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=copy, capture_output=True, text=True)
    if "No module named 'setuptools'" in done.stderr or "license" in done.stderr and done.returncode:
        pytest.skip("setuptools is absent or older than the build needs; pip fetches its own")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(copy / done.stdout.split()[-1]) as wheel:
        packed = {name for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")}
        entry_points = wheel.read(next(name for name in wheel.namelist() if name.endswith("entry_points.txt")))
    assert packed == {name for name in files.stdout.split() if name.startswith("rs_biformer/")}
    assert "rs_biformer/py.typed" in packed and any(name.endswith(".css") for name in packed)
    assert b"rs-biformer = rs_biformer.cli:main" in entry_points


HEAVY = ("torch", "torchvision", "timm", "rasterio", "pyproj", "pytorch_lightning", "matplotlib", "scipy", "dask")


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, rs_biformer; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_help_of_every_command_loads_nothing_heavy():
    code = f"""
import sys, rs_biformer.cli
for name in rs_biformer.cli.COMMANDS:
    try:
        rs_biformer.cli.main([name, "--help"])
    except SystemExit as stop:
        assert stop.code == 0
    heavy = [module for module in {HEAVY} if module in sys.modules]
    print("loaded:", name, *heavy, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [f"loaded: {name}" for name in COMMANDS]


@pytest.mark.parametrize("name", SCHEMAS)
def test_files_for_other_programs_keep_to_their_schemas(name):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", SCHEMAS[name], str(ROOT / name)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_tests_each_python_that_the_package_allows_on_every_system():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    named = {line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if ":: 3." in line}
    assert set(jobs["tests"]["strategy"]["matrix"]["python"]) == named == {"3.11", "3.12", "3.13"}
    assert {name.partition("-")[0] for name in jobs["other-systems"]["strategy"]["matrix"]["system"]} == {
        "macos",
        "windows",
    }
    targets = {line.partition(":")[0] for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()}
    steps = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    assert {words[1] for words in map(str.split, steps) if words[:1] == ["make"]} <= targets


def test_the_hooks_call_what_lint_calls():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    lint = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2]
    called = {word.removeprefix("$(BIN)/") for word in lint.partition("\n\n")[0].split() if word.startswith("$(BIN)/")}
    assert {hook["entry"].split()[0] for hook in hooks} <= {*called, "python"}
    assert all(hook["language"] == "system" for hook in hooks)


def test_the_citation_tells_the_version_and_the_licence_of_the_package():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == PROJECT["project"]["version"] and cited["license"] == PROJECT["project"]["license"]


def test_everything_that_is_needed_is_pinned_in_both_files():
    newest, oldest = pins("constraints.txt"), pins("constraints-oldest.txt")
    optional = {"peft"}  # of an extra that make install leaves out
    assert set(required()) - optional <= set(newest)
    assert set(required()) <= set(oldest)


def test_the_oldest_pins_are_the_lower_bounds():
    oldest = pins("constraints-oldest.txt")
    for line in PROJECT["project"]["dependencies"]:
        name, _, least = line.partition(">=") if ">=" in line else line.partition("==")
        found = oldest[name.partition("[")[0].lower().replace("_", "-")]
        assert (found + ".0.0").startswith(f"{least}."), f"{line}, but {found} in constraints-oldest.txt"
