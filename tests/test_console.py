import json

import numpy as np
import rasterio

from rs_biformer.cli import main
from rs_biformer.cli.console import table, visible


def test_names_are_shown_as_they_are_and_never_obeyed(capsys):
    table("[bold]t[/x]", ("a [/b]", "[red]n"), [("scene [old].tif", "\x1b[2Jx\x07\u202e"), ("名\udcff", "1")])
    shown = capsys.readouterr().out
    for part in ("[bold]t[/x]", "a [/b]", "[red]n", "scene [old].tif", r"\x1b[2Jx\x07\u202e", "名\\udcff"):
        assert part in shown
    assert "\x1b" not in shown and "\x07" not in shown


def test_control_characters_are_spelt_out():
    assert visible("a\nb\x9b\udc80é ") == r"a\nb\x9b\udc80é "


def test_an_error_never_drives_the_terminal(capsys, tmp_path):
    assert main(["evaluate", "--compare", str(tmp_path / "a\x1b[2Jb.json"), "--out", str(tmp_path / "o.json")]) == 2
    message = capsys.readouterr().err
    assert "\x1b" not in message and r"\x1b[2Jb.json" in message


def test_a_program_gets_progress_as_lines_of_json_and_nothing_to_erase(capsys, tmp_path):
    profile = {"driver": "GTiff", "height": 300, "width": 40, "count": 1, "dtype": "uint8", "nodata": 255}
    place = rasterio.Affine(0.5, 0, 5e5, 0, -0.5, 5.4e6)
    with rasterio.open(tmp_path / "map.tif", "w", crs="EPSG:25832", transform=place, **profile) as file:
        file.write(np.zeros((300, 40), np.uint8), 1)
        file.update_tags(CLASS_NAMES='["roof"]')
    command = ["vectorize", str(tmp_path / "map.tif"), "--out", str(tmp_path / "map.gpkg")]
    assert main(["--progress", "json", *command]) == 0
    told = capsys.readouterr().err
    assert "\r" not in told and "%" not in told
    *_, last = map(json.loads, told.splitlines())
    assert last == {"progress": "vectorize", "done": 300, "total": 300, "unit": "row"}
    assert main(["--progress", "none", *command]) == 0
    assert capsys.readouterr().err == ""
    assert main(command) == 0
    assert "100%" in capsys.readouterr().err, "a bar, unless it is said"


def test_lines_of_progress_are_few_and_the_last_is_the_whole(capsys, monkeypatch):
    from rs_biformer.cli import console

    clock = iter(np.arange(0, 100, 0.01))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(console, "_form", "json")
    with console.progress("big", "window") as progress:
        for done in range(1, 1001):
            progress(done, 1000)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert 40 <= len(lines) <= 60
    assert (lines[0]["done"], lines[-1]["done"]) == (1, 1000)
