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
