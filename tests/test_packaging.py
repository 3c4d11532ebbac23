"""The recipe for conda and the Dockerfiles: the same dependencies as the wheels, and what their linters say."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted((ROOT / "packaging/docker").glob("Dockerfile.*"))
RECIPE = ROOT / "packaging/conda/recipe.yaml"
OUTPUTS = {"rs-biformer": ROOT / "pyproject.toml", "rs-biformer-predict": ROOT / "packaging/predict/pyproject.toml"}
IN_CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def project(path: Path) -> dict:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def test_the_conda_packages_need_what_the_wheels_need():
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    outputs = {output["package"]["name"]: output for output in recipe["outputs"]}
    assert set(outputs) == set(OUTPUTS)
    for name, path in OUTPUTS.items():
        tables = project(path)
        wanted = {}
        extras = tables["project"]["optional-dependencies"]
        spared = extras["all"] if name == "rs-biformer-predict" else []  # conda has no extras
        for line in tables["project"]["dependencies"] + spared + tables["build-system"]["requires"]:
            package, bound = re.fullmatch(r"([\w-]+)([<>=].*)", line).groups()
            wanted[IN_CONDA.get(package, package)] = bound
        needs = outputs[name]["requirements"]
        (python,) = (line for line in needs["run"] if line.startswith("python "))
        others = [line for line in needs["run"] + needs["host"] if line.split(" ")[0] not in ("python", "pip")]
        assert dict(line.split(" ") for line in others) == wanted
        least = python.removeprefix("python ").replace("${{ python_min }}", recipe["context"]["python_min"])
        assert least == tables["project"]["requires-python"]
        points = [f"{key} = {value}" for key, value in tables["project"]["scripts"].items()]
        assert outputs[name]["build"]["python"]["entry_points"] == points
        assert [other.split()[0] for other in needs["run_constraints"]] == [*(set(OUTPUTS) - {name})]


def test_the_recipe_is_one_that_rattler_build_renders(monkeypatch):
    rattler_build = pytest.importorskip("rattler_build", reason="make lint-packaging brings it")
    monkeypatch.setenv("RS_BIFORMER_VERSION", "0.3.0")
    rendered = rattler_build.Stage0Recipe.from_file(RECIPE).render()
    found = {variant.recipe.package.name: variant.recipe.package.version for variant in rendered}
    assert {str(name): str(version) for name, version in found.items()} == dict.fromkeys(OUTPUTS, "0.3.0")
    with pytest.raises(rattler_build.RattlerBuildError):
        rattler_build.Stage0Recipe.from_yaml(
            RECIPE.read_text(encoding="utf-8").replace("run_constraints", "constrains")
        )


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.suffix)
def test_a_dockerfile_passes_its_linter(path):
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}") or shutil.which("hadolint")
    if not hadolint:
        pytest.skip("no hadolint: make lint-packaging brings it")
    done = subprocess.run([hadolint, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    worse = (
        path.read_text(encoding="utf-8").replace("USER 1000:1000", "USER root").replace("--no-install-recommends ", "")
    )
    assert subprocess.run([hadolint, "-"], cwd=ROOT, input=worse, capture_output=True, text=True).returncode != 0


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.suffix)
def test_a_dockerfile_copies_what_is_there_and_asks_for_extras_that_exist(path):
    text = path.read_text(encoding="utf-8")
    ignored = [line.rstrip("/") for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n") if line]
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists() and name.split("/")[0] not in ignored, line
    (arguments,) = re.findall(r"python dependencies.py (.+) > requirements.txt", text)
    place = {"predict": ROOT / "packaging/predict"}.get(path.suffix[1:], ROOT)
    command = [sys.executable, str(ROOT / "packaging/docker/dependencies.py"), *arguments.split()]
    printed = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True).stdout.splitlines()
    tables = project(place / "pyproject.toml")["project"]
    extras = [line for name in arguments.split()[1:] for line in tables["optional-dependencies"][name]]
    assert printed == tables["dependencies"] + extras
    assert f"pip install --no-deps {'./packaging/predict' if place != ROOT else '.'}\n" in text


def test_the_images_have_a_python_that_the_package_allows():
    named = set(re.findall(r"^FROM python:(\S+?)-", "\n".join(p.read_text() for p in DOCKERFILES), re.MULTILINE))
    classifiers = project(ROOT / "pyproject.toml")["project"]["classifiers"]
    assert {f"Programming Language :: Python :: {version}" for version in named} <= set(classifiers)
