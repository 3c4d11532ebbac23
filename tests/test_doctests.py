"""The examples in docstrings are run, and the modules that people read first have some."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import rs_biformer

PACKAGE = Path(rs_biformer.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(("rs_biformer", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_are_true(name):
    result = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted and not result.failed


@pytest.mark.parametrize(("name", "least"), [("geometry", 10), ("schema", 3), ("raster.paths", 5)])
def test_the_modules_that_everything_is_built_on_show_how_they_are_used(name, least):
    finder = doctest.DocTestFinder()
    examples = [test for test in finder.find(import_module(f"rs_biformer.{name}")) if test.examples]
    assert len(examples) >= least
