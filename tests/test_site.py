"""The site of the documentation: built without a warning, whole, and with a search that needs no server."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import chromium

import rs_biformer
from rs_biformer.cli import COMMANDS, build_parser
from rs_biformer.train.config import known_keys

ROOT = Path(__file__).parents[1]


def test_every_public_name_has_its_place_in_the_reference():
    page = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^\.\. auto\w+:: rs_biformer\.([\w.]+)$", page, flags=re.MULTILINE))
    assert set(rs_biformer.__all__) - {"__version__"} <= described


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, made as `make docs` makes it."""
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ndocs: ")[2].splitlines()[1]
    command = recipe.replace("$(BIN)/python", sys.executable).replace("build/doctrees", f"{folder}/doctrees").split()
    done = subprocess.run([*command[:-1], f"{folder}/site"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return folder / "site"


@pytest.mark.slow
def test_the_site_describes_every_command_with_every_option_and_every_key_of_the_config(site):
    text = (site / "docs/reference/commands.html").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f'<section id="{name}">' in text, name
    commands = next(action for action in build_parser()._actions if action.dest == "command")
    options = {option for command in commands.choices.values() for option in command._option_string_actions}
    assert "--checkpoint" in options and not [option for option in options if option not in text]
    keys = (site / "docs/reference/config.html").read_text(encoding="utf-8")
    assert not [key for key in known_keys() if f"--{key} (" not in keys]
    assert (site / "index.html").is_file() and not list(site.rglob("*.ipynb_checkpoints"))


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 360])
def test_the_site_is_searched_and_read_without_a_server(site, tmp_path, width):
    with chromium(tmp_path / "profile") as page:
        page.open((site / "search.html").as_uri() + "?q=predict_scene", width=width, touch=width < 600)
        page.wait("document.querySelectorAll('#search-results li a').length > 3")
        found = page.run("[...document.querySelectorAll('#search-results li a')].map(a => a.href)")
        assert any("reference/python.html" in address for address in found)
        for name in ("docs/index", "docs/guide/data", "docs/reference/commands", "docs/reference/python", "README"):
            page.open(site / f"{name}.html", width=width, touch=width < 600)
            assert page.run("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than the screen"
        assert not page.complaints
