from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rs_biformer.errors import ConfigError
from rs_biformer.evaluation.curves import charts, ink, nice_ticks, read_curves, svg
from rs_biformer.schema import PRESETS

LOG = """epoch,step,train/loss_step,train/loss_epoch,val/loss,val/miou,val/iou/tree,lr-SGD
0,9,2.0,,,,,0.1
0,19,1.0,,,,,0.1
0,19,,1.5,1.2,0.25,nan,
1,29,0.5,,,,,0.05
1,39,,0.5,0.9,0.5,0.75,
"""


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(LOG)
    return path


def test_sparse_rows_become_series_over_epochs_and_the_epoch_value_wins_over_steps(log):
    x_name, columns = read_curves(log)
    assert x_name == "epoch"
    assert columns["train/loss"] == [(0, 1.5), (1, 0.5)]
    assert columns["val/miou"] == [(0, 0.25), (1, 0.5)]
    assert columns["val/iou/tree"] == [(1, 0.75)]
    assert columns["lr-SGD"] == [(0, 0.1), (1, 0.05)]
    assert "train/loss_step" not in columns


def test_a_single_epoch_is_drawn_over_its_steps(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss\n0,1,3\n0,2,2\n0,2,1\n")
    assert read_curves(path) == ("step", {"train/loss": [(1, 3), (2, 1.5)]})


@pytest.mark.parametrize("content", [b"", b"epoch,step\n0,1\n", b"a,b\nx,y\n", b"\xff\xfe\x00"])
def test_a_log_without_numbers_is_refused_by_name(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="metrics.csv .*training curves"):
        read_curves(path)


def test_a_missing_log_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read as training curves: No such file"):
        read_curves(tmp_path / "metrics.csv")


def test_charts_group_losses_scores_classes_and_rates(log):
    drawn = {chart.title: chart for chart in charts(*read_curves(log), PRESETS["vaihingen"])}
    names = {title: [line.name for line in chart.series] for title, chart in drawn.items()}
    assert names == {
        "Loss": ["val loss", "train loss"],
        "Scores on the validation set": ["mIoU"],
        "IoU per class": ["tree"],
        "Learning rate": ["lr-SGD"],
    }
    for chart in drawn.values():
        picture = ElementTree.fromstring(svg(chart))
        assert len(picture.findall("polyline")) == len(chart.series)


def test_higher_values_lie_higher_and_later_ones_to_the_right(log):
    chart = next(chart for chart in charts(*read_curves(log), PRESETS["vaihingen"]) if "Scores" in chart.title)
    points = ElementTree.fromstring(svg(chart)).find("polyline").get("points").split()
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in points)
    assert x0 < x1 and y0 > y1


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
@example(0.0, 5e-324)
@example(-1e-323, 1e-323)
@example(0.1 + 0.2, 0.3)
def test_ticks_enclose_the_values_and_are_few(one, other):
    low, high = min(one, other), max(one, other)
    ticks = nice_ticks(low, high)
    span = ticks[-1] - ticks[0]
    assert ticks[0] <= low + 1e-6 * span and ticks[-1] >= high - 1e-6 * span
    assert 2 <= len(ticks) <= 8


def test_a_line_stands_out_on_white_whatever_its_class_colour():
    assert ink((255, 255, 255)) != "#ffffff" and ink((10, 20, 30)) == "#0a141e"
