import re
from dataclasses import replace

import numpy as np

from rs_biformer.evaluation import Protocol, Resampling, evaluate, write_card
from rs_biformer.evaluation.card import _code
from rs_biformer.schema import ClassSchema

SCHEMA = ClassSchema("two", ("ground | soil", "roof"), ((1, 1, 1), (2, 2, 2)))


def test_a_card_says_what_was_measured_how_and_on_what(write_raster, tmp_path):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, (140, 110)).astype(np.uint8).repeat(10, 0).repeat(10, 1)
    wrong = rng.random((140, 110)).repeat(10, 0).repeat(10, 1) < 0.1
    files = write_raster("a_classes.tif", np.where(wrong, 1 - label, label)), write_raster("a_label.tif", label)
    sure = write_raster("a_sure.tif", np.full(label.shape, 0.95, np.float32))
    protocol = Protocol("mine", "Of my own.", ignore_boundary=1)
    metrics = evaluate(*files, SCHEMA, protocol, boundary=(2,), confidences=[sure], resampling=Resampling(samples=200))
    metrics = replace(metrics, about={"network": "small <b>", "parameters": "1.20 M"})
    text = write_card(
        tmp_path / "deep" / "CARD.md", metrics, title="Towns", commands=["rs-biformer evaluate x"]
    ).read_text()
    lines = text.splitlines()
    assert lines[0] == "# Towns" and "- network: small \\<b\\>" in lines and "- parameters: 1.20 M" in lines
    low, high = metrics.intervals["mean_iou"]
    assert f"| mean IoU | {100 * metrics.mean_iou:.2f} ({100 * low:.2f} to {100 * high:.2f}) |" in lines
    assert any(line.startswith("| ground \\| soil | ") for line in lines)
    assert "| boundary F1 | within 2 px |" in lines and "- Protocol mine: Of my own." in lines
    assert f"Expected calibration error {100 * metrics.calibration.expected_error:.2f} %" in text
    assert "```sh\nrs-biformer evaluate x\n```" in text
    tables = [line for line in lines if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


NASTY = "a\n# b ```\x1b[2J <img src=x> | [x](http://y) &lt; \udcff"


def test_nothing_from_outside_begins_markup_or_ends_a_line_of_the_card(write_raster, tmp_path):
    label = np.zeros((60, 60), np.uint8)
    metrics = evaluate(write_raster("m.tif", label), write_raster("l.tif", label), SCHEMA, Protocol("id", NASTY))
    hostile = replace(
        metrics,
        about={NASTY: NASTY},
        version=NASTY,
        scenes=tuple(replace(scene, name=NASTY) for scene in metrics.scenes),
        protocol=replace(metrics.protocol, cautions=(NASTY,)),
    )
    text = write_card(
        tmp_path / "C.md", hostile, title=NASTY, commands=[f"rs-biformer {NASTY}", "echo ````"]
    ).read_text()
    plain, fence, rest = text.partition("\n`````sh\n")
    assert fence and rest.endswith("\necho ````\n`````\n") and rest.count("\n") == 3
    assert not any(line.startswith("# b") for line in text.splitlines()) and "\x1b" not in plain
    for sign in "<>`[]&":
        assert f"\\{sign}" in plain and not re.search(rf"(?<!\\){re.escape(sign)}", plain), sign
    table = [line for line in plain.split("## Scenes")[1].splitlines() if line.startswith("|")]
    assert "\\|" in table[2] and len({line.replace("\\|", "").count("|") for line in table}) == 1


def test_commands_of_a_card_hold_nothing_that_a_terminal_obeys():
    assert _code(["a\x1b[2J b\x85c", "d```e"]) == "````sh\na [2J b c\nd```e\n````"
