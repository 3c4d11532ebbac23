import json

import numpy as np
import pytest
from PIL import Image

from rs_biformer.evaluation.confusion import Confusion
from rs_biformer.evaluation.metrics import Metrics, SceneResult
from rs_biformer.evaluation.protocols import PROTOCOLS, Protocol
from rs_biformer.evaluation.report import (
    column_shares,
    percent,
    quantity,
    row_shares,
    summary_lines,
    table_rows,
    write_confusion_png,
    write_file,
    write_json,
)
from rs_biformer.evaluation.results import metrics_to_dict
from rs_biformer.schema import PRESETS


def make_metrics(protocol: Protocol = PROTOCOLS["all-classes"], missing: int = 0) -> Metrics:
    matrix = np.diag([50, 40, 30, 20, 10, 0]).astype(np.int64)
    matrix[0, 1] = 50
    unpredicted = np.array([0, 0, missing, 0, 0, 0])
    stack = Confusion(matrix[None], unpredicted[None], ignored=7, eroded=3)
    blocks = {0: stack, protocol.ignore_boundary: stack}
    return Metrics(PRESETS["vaihingen"], protocol, (SceneResult("area2", "l.tif", "p.tif", 20, 15, blocks),))


def test_the_table_shows_per_cent_a_dash_for_absent_classes_and_the_mean():
    rows = table_rows(make_metrics())
    assert rows[0] == ("impervious surface", "50.00", "66.67", "100.00", "50.00", "100", "50.00")
    assert rows[5] == ("clutter", "–", "–", "–", "–", "0", "0.00")
    mean = 100 * (0.5 + 40 / 90 + 3) / 5
    assert rows[6][:2] == ("mean of 5", f"{mean:.2f}")


def test_a_class_outside_the_means_is_starred_and_explained():
    metrics = make_metrics(PROTOCOLS["isprs-official"])
    assert table_rows(metrics)[5][0] == "clutter *"
    lines = summary_lines(metrics)
    assert "* not in the means: clutter" in lines
    assert any(line.startswith("full labels, 5 classes: overall accuracy 75.00") for line in lines)
    assert any(line.startswith("no intervals: 1 blocks") for line in lines)
    assert any("7 ignored (3 of them at eroded boundaries)" in line for line in lines)


def test_json_holds_what_the_metrics_hold_and_no_nan(tmp_path):
    metrics = make_metrics(PROTOCOLS["isprs-official"], missing=2)
    path = write_json(tmp_path / "deep" / "metrics.json", metrics)
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content == metrics_to_dict(metrics)
    assert {
        "overall_accuracy", "mean_iou", "mean_f1", "per_class", "confusion_matrix", "protocol", "ignored_pixels",
        "kappa", "frequency_weighted_iou", "per_scene", "full_labels", "version", "schema", "options",
        "forms", "intervals", "protocol_definition",
    } <= set(content)  # fmt: skip
    assert content["protocol"] == "isprs-official" and content["unpredicted_pixels"] == 2


@pytest.mark.parametrize("missing", [0, 4])
def test_the_picture_of_the_matrix_is_dark_on_the_diagonal_and_the_same_each_time(tmp_path, missing):
    paths = [write_confusion_png(tmp_path / name, make_metrics(missing=missing)) for name in ("a.png", "b.png")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with Image.open(paths[0]) as picture:
        assert min(picture.size) > 700
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels == (8, 48, 107)).all(axis=-1).sum() > 10_000  # the darkest blue, of 100 %


def test_shares_of_rows_and_columns_sum_to_one_or_are_undefined():
    table = np.array([[3, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(row_shares(table), [[0.75, 0.25, 0], [np.nan] * 3])
    np.testing.assert_array_equal(column_shares(table), [[1, 1, np.nan], [0, 0, np.nan]])


def test_numbers_are_written_for_people():
    assert [quantity(n) for n in (7, 4200, 999_950, 31_900_000, 2 * 10**9)] == [
        "7",
        "4.2 k",
        "1,000 k",
        "31.9 M",
        "2 G",
    ]
    assert (percent(0.12345), percent(float("nan"))) == ("12.35", "–")


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch):
    path = write_file(tmp_path / "page.html", b"old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_file(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"] and path.read_bytes() == b"old"
