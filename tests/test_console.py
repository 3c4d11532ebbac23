import ast
import io
import json
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import rasterio

import rs_biformer
from rs_biformer.cli import main
from rs_biformer.cli.console import Terminated, document, interruptible, prepare, say, show, table, visible


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


PACKAGE = Path(rs_biformer.__file__).parent


def test_no_command_prints_but_by_the_console():
    found = []
    for path in (PACKAGE / "cli").glob("*.py"):
        if path == PACKAGE / "cli" / "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name) and node.id == "print":
                found.append(f"{path}:{node.lineno}")
    assert found == []


def test_lines_for_people_are_never_obeyed(capsys):
    show("a\x1b[2J\nb\u202e \udce9é")
    say("c\x07 https://me:word@host/a.tif?sig=x")
    document('{"a": "\\u001b"}\n')
    out, err = capsys.readouterr()
    assert out == "a\\x1b[2J\nb\\u202e \\udce9é\n" + '{"a": "\\u001b"}\n'
    assert err == "c\\x07 https://host/a.tif\n"


def test_what_is_logged_is_shown_once_and_never_obeyed(capsys):
    prepare()
    prepare()
    logging.getLogger("rs_biformer.raster.vector").warning("%s is odd", "a\x1b[2J.tif")
    assert capsys.readouterr().err.count("a\\x1b[2J.tif is odd") == 1


def test_names_reach_a_terminal_of_any_encoding(monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    prepare()
    show("name 名 m²")
    narrow.flush()
    assert narrow.buffer.getvalue() == b"name \\u540d m\\xb2\n"


@pytest.mark.parametrize("words", [["tile", "s.tif", "--no\x1b[2Jsuch"], ["\x1b[2J"]])
def test_a_wrong_word_is_not_obeyed_either(capsys, words):
    with pytest.raises(SystemExit):
        main(words)
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
def test_names_that_are_no_utf8_are_refused_in_a_line(tmp_path, capsys):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.tif")
    Path(name).touch()
    for words in (["info", name], ["vectorize", name, "--out", "v.gpkg"], ["ndsm", "d.tif", "--out", name]):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert r"caf\udce9.tif is no UTF-8; rename it" in line
    # come upon in a folder
    (tmp_path / "c.yaml").write_text("name: t\nclasses: [{name: a, colour: [1, 2, 3]}]\n")
    classes, out = str(tmp_path / "c.yaml"), str(tmp_path / "t")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).touch()
    words = ["tile", str(tmp_path / "*.tif"), "--labels", "{dir}/{stem}.png", "--classes", classes, "--split", "train"]
    assert main([*words, "--out", out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert r"caf\udce9.tif is no UTF-8; rename it" in line and not Path(out).exists()


def test_being_told_to_end_is_an_interruption_here_and_an_end_in_forked_processes():
    def wait_for_signal() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated, match="go on"), interruptible(lambda: "go on"):
        wait_for_signal()
    with interruptible(str):
        child = os.fork()
        if not child:
            try:
                wait_for_signal()
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_advice_is_said_once(capsys):
    with pytest.raises(KeyboardInterrupt) as stop, interruptible(lambda: "outer"), interruptible(lambda: "inner"):
        raise KeyboardInterrupt
    assert stop.value.args == ("inner",)


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_an_error_that_native_code_makes_of_a_signal_is_the_interruption(number, kind):

    def native(made_of_it: BaseException) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        except KeyboardInterrupt:
            raise made_of_it from None

    for made in (OSError("cannot be written"), KeyboardInterrupt(), RuntimeError()):
        with pytest.raises(kind, match="^go on$") as stop, interruptible(str), interruptible(lambda: "go on"):
            native(made)
        assert stop.type is kind
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(kind, match="outer"), interruptible(lambda: "outer"):
        with interruptible(lambda: "inner"), suppress(OSError):
            native(OSError())
        raise OSError("what came of it later")
    with pytest.raises(OSError, match="its own"), interruptible(str):  # an earlier signal is no reason
        raise OSError("its own")


def test_ctrl_c_is_left_to_who_handles_it_and_to_forked_processes_as_it_was():
    def own(*_: object) -> None:
        pass

    try:
        signal.signal(signal.SIGINT, own)
        with interruptible(str):
            assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with interruptible(str):
        child = os.fork()
        if not child:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                os._exit(0)
            os._exit(6)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_the_command_is_known_is_a_line_too(number, code, monkeypatch, capsys):
    monkeypatch.setattr("rs_biformer.cli.build_parser", lambda: os.kill(os.getpid(), number))
    assert main(["info"]) == code
    assert capsys.readouterr().err == "rs-biformer: interrupted\n"
