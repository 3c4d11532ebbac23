"""docs/reliability.md names tests that exist, and docs/dependencies.md all packages."""

import ast
import re
import tomllib

from documentation import ROOT, spans

TESTS = {
    node.name
    for path in (ROOT / "tests").rglob("test_*.py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
}


def test_every_test_that_is_named_exists():
    named = [span for span in spans((ROOT / "docs/reliability.md").read_text()) if re.fullmatch(r"test_\w+", span)]
    assert len(named) > 100
    assert set(named) <= TESTS, sorted(set(named) - TESTS)


def test_every_file_that_is_named_exists():
    named = [span for span in spans((ROOT / "docs/reliability.md").read_text()) if re.fullmatch(r"[\w/]+\.py", span)]
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_dependency_is_explained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(one for extra in extras if extra not in ("dev", "packaging", "site", "docs") for one in extras[extra]),
    ]
    page = (ROOT / "docs/dependencies.md").read_text()
    names = {re.split(r"[<>=!\[ ]", one)[0] for one in wanted}
    missing = {name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", page)}
    assert {name for name in missing if "efficientnet-lite" not in name} == set()


def test_what_is_made_for_a_while_is_made_where_the_next_run_removes_it():
    """A killed process leaves what `tempfile` names; only a file without a name goes with the process."""
    found = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "rs_biformer").rglob("*.py")
        if re.search(r"TemporaryDirectory|NamedTemporaryFile|mkdtemp|mkstemp|SpooledTemp", path.read_text())
    ]
    assert found == []


def test_albumentations_is_imported_in_one_file():
    found = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "rs_biformer").rglob("*.py")
        if re.search(r"^\s*(import|from) albumentations", path.read_text(), re.MULTILINE)
    ]
    assert found == ["rs_biformer/data/augment.py"]
