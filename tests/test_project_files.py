"""The files around the code: what a wheel holds, what hosts and citation tools read, what the pins say."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from rs_biformer.cli import COMMANDS
from rs_biformer.distribution import SPARED

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PREDICTION = tomllib.loads((ROOT / "packaging/predict/pyproject.toml").read_text(encoding="utf-8"))
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
RELEASE = CITATION["version"]
FALLBACK = PROJECT["tool"]["hatch"]["version"]["fallback-version"]
SCHEMAS = {".github/workflows/ci.yml": "vendor.github-workflows", "CITATION.cff": "vendor.citation-file-format"}


def pins(name: str) -> dict[str, str]:
    """Normalised name -> version of a constraints file."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {key.lower().replace("_", "-"): version for key, version in pairs}


def name_of(line: str) -> str:
    """The normalised name in a line of dependencies."""
    return line.partition("[")[0].partition(">")[0].partition("=")[0].lower().replace("_", "-")


def required(without: Sequence[str]) -> set[str]:
    """Normalised names of what the project and its extras need."""
    extras = PROJECT["project"]["optional-dependencies"]
    listed = [line for name in extras if name not in without for line in extras[name]]
    return {name_of(line) for line in PROJECT["project"]["dependencies"] + listed}


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """What git knows of the project, as an archive holds it: no git, no build folder and nothing left by hand."""
    named = ["rs_biformer", "packaging", "configs", "pyproject.toml", "README.md", "LICENSE"]
    files = subprocess.run(["git", "ls-files", *named], cwd=ROOT, capture_output=True, text=True, check=False)
    if files.returncode:
        pytest.skip("no git checkout: what belongs to the project cannot be listed")
    copy = tmp_path_factory.mktemp("archive")
    for name in files.stdout.split("\n")[:-1]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    return copy


def build(folder: Path, kind: str) -> Path:
    """The wheel or sdist that the backend makes in this folder, as pip and build call it."""
    code = f"from hatchling.build import build_{kind}; print(build_{kind}('dist'))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "dist" / done.stdout.split()[-1]


def contents(wheel: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Files of the package, and those about the distribution, by name."""
    with zipfile.ZipFile(wheel) as packed:
        files = {name: packed.read(name) for name in packed.namelist()}
    about = {name.partition("/")[2]: files.pop(name) for name in list(files) if ".dist-info/" in name}
    return files, about


@pytest.mark.parametrize("place", [".", "packaging/predict"])
def test_a_wheel_holds_all_files_of_the_package(archive, place):
    packed, about = contents(build(archive / place, "wheel"))
    source = {path.relative_to(archive).as_posix(): path for path in (archive / "rs_biformer").rglob("*.*")}
    if place == ".":
        source |= {f"rs_biformer/{path.relative_to(archive)}": path for path in (archive / "configs").rglob("*.yaml")}
        assert "rs_biformer/configs/vaihingen/recommended.yaml" in source
    assert packed == {name: path.read_bytes() for name, path in source.items()}
    assert "rs_biformer/py.typed" in packed and any(name.endswith(".css") for name in packed)
    assert b"rs-biformer = rs_biformer.cli:main" in about["entry_points.txt"]
    assert about["licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert f"\nVersion: {FALLBACK}\n".encode() in about["METADATA"]


def test_the_sdist_of_prediction_builds_the_same_wheel_anywhere(archive, tmp_path):
    direct, _ = contents(build(archive / "packaging/predict", "wheel"))
    sdist = build(archive / "packaging/predict", "sdist")
    with tarfile.open(sdist) as packed:
        packed.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    files, about = contents(build(unpacked, "wheel"))
    assert files == direct
    assert f"\nVersion: {FALLBACK}\n".encode() in about["METADATA"] and "licenses/LICENSE" in about


def test_prediction_alone_needs_a_part_of_what_the_toolkit_needs():
    """One distribution or the other: the same Pythons, command and versions, and nothing of torch."""
    whole, part = PROJECT["project"], PREDICTION["project"]
    onnx = whole["optional-dependencies"]["onnx"]
    assert set(part["dependencies"]) <= {*whole["dependencies"], *onnx}
    heavy = {"torch", "torchvision", "timm", "segmentation-models-pytorch", "pytorch-lightning", "torchmetrics"}
    left = {name_of(line) for line in {*whole["dependencies"], *onnx} - set(part["dependencies"])}
    spared = part["optional-dependencies"]["all"]
    assert set(spared) <= set(whole["dependencies"]) and sorted(map(name_of, spared)) == sorted(SPARED)
    assert left == heavy | {"albumentations", "safetensors", "onnx", "onnxscript", *SPARED}
    same = ("requires-python", "license", "classifiers", "scripts", "dynamic")
    assert {key: part[key] for key in same} == {key: whole[key] for key in same}
    assert PREDICTION["build-system"] == PROJECT["build-system"]
    versions = [tables["tool"]["hatch"]["version"] for tables in (PROJECT, PREDICTION)]
    assert versions[0] | {"raw-options": {"root": "../.."}} == versions[1]


FOREIGN = """
import sys, sysconfig
places = tuple(sysconfig.get_paths()[key] for key in ("purelib", "platlib"))
before = set(sys.modules)
def foreign():
    new = {name: getattr(sys.modules[name], "__file__", None) or "" for name in set(sys.modules) - before}
    return sorted({name.split(".")[0] for name, file in new.items() if file.startswith(places)} - {"rs_biformer"})
"""
"""`foreign()`: the packages of others that were loaded since; at the start of Python some environments load theirs."""


def test_importing_the_package_loads_no_other_package():
    code = f"{FOREIGN}\nimport rs_biformer; print(foreign(), 'importlib.metadata' in set(sys.modules) - before)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == (
        "[] False\n"
    )


def test_the_help_of_every_command_loads_no_other_package():
    """Nor does the list of the commands or the version; so all of them answer in a tenth of a second."""
    code = f"""{FOREIGN}
import rs_biformer.cli
for name in ["", *rs_biformer.cli.COMMANDS]:
    try:
        rs_biformer.cli.main([*name.split(), "--help"])
    except SystemExit as stop:
        assert stop.code == 0
    print("loaded:", name, *foreign(), file=sys.stderr)
try:
    rs_biformer.cli.main(["--version"])
except SystemExit as stop:
    print("loaded:", *foreign(), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.rstrip() for line in done.stderr.splitlines()] == [
        "loaded:", *(f"loaded: {name}" for name in COMMANDS), "loaded:"
    ]  # fmt: skip


def test_each_distribution_tells_its_version(tmp_path):
    """`__version__`, and so checkpoints and results, where the one or the other is installed, or none."""
    for name in ("rs_biformer", "rs_biformer_predict", "another"):
        about = tmp_path / name / f"{name}-1.2.3.dev4.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2.3.dev4\n")
        code = f"import sys; sys.path[:] = [{str(tmp_path / name)!r}, {str(ROOT)!r}, *sys.path[:-1]]\n"
        code += "sys.path = [place for place in sys.path if not place.endswith('site-packages')]\n"
        code += "import rs_biformer; print(rs_biformer.__version__)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == ("0+unknown\n" if name == "another" else "1.2.3.dev4\n")


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


def test_the_citation_tells_the_release_and_the_licence_of_the_package():
    """The release that is being made, or that of the tag on the commit, of which an archive knows no more than this."""
    assert CITATION["license"] == PROJECT["project"]["license"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[(.+)\] - ", changes, re.MULTILINE)[1] == RELEASE
    tags = subprocess.run(["git", "tag", "--points-at"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    tagged = {tag for tag in tags.split() if tag.startswith("v")}
    assert tagged <= {f"v{RELEASE}"}
    assert FALLBACK in ({RELEASE} if tagged else {RELEASE, f"{RELEASE}.dev0"})


def test_everything_that_is_needed_is_pinned_in_both_files():
    newest, oldest = pins("constraints.txt"), pins("constraints-oldest.txt")
    assert required(without=["pretrained"]) <= set(newest)  # an extra that make install leaves out
    assert {"transformers", "accelerate"} <= set(newest)  # what peft, of the extra lora, brings
    assert required(without=["pretrained", "packaging", "docs"]) <= set(oldest)


def test_the_oldest_pins_are_the_lower_bounds():
    oldest = pins("constraints-oldest.txt")
    for line in PROJECT["project"]["dependencies"]:
        name, _, least = line.partition(">=") if ">=" in line else line.partition("==")
        found = oldest[name.partition("[")[0].lower().replace("_", "-")]
        assert (found + ".0.0").startswith(f"{least}."), f"{line}, but {found} in constraints-oldest.txt"
