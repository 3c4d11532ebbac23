import csv
from pathlib import Path

import pytest
import torch

from rs_biformer import files
from rs_biformer.train.writing import Metrics, WholeCheckpoints, keep_rows, read_rows

HEADER = "epoch,step,train/loss\r\n"


def logged(folder: Path, *rows: dict[str, float], steps: list[int]) -> None:
    logger = Metrics(folder)
    for row, step in zip(rows, steps, strict=True):
        logger.log_metrics(row, step)
        logger.save()


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("torn", "steps"),
    [
        ("0,0,1.5\r\n0,1,1.25\r\n", [0, 1]),
        ("0,0,1.5\r\n0,1,1.2", [0]),  # of 1.25: nothing but the missing line end tells
        ("0,0,1.5\r\n0,1,1.25", [0]),
        ("0,0,1.5\r\n0,", [0]),
        ("0,0,1.5\r\n0,1\r\n", [0]),
        ("0,0,1.5\r\n\0\0\0\0\0\0", [0]),
        ("0,0,1.5\r\n\0\0\0,1,1\r\n0,2,1\r\n", [0, 2]),
        ("0,0,1.5\r\n0,x,1\r\n", [0]),
        ("0,0,1.5\r\n0,1,1,1\r\n", [0]),
        ("0,0,1.5\r\n0,-1,1\r\n", [0]),
        ("", []),
    ],
)
def test_a_torn_row_of_the_metrics_is_left_out_and_the_others_stay(tmp_path, torn, steps):
    (tmp_path / "metrics.csv").write_bytes((HEADER + torn).encode())
    rows = read_rows(tmp_path / "metrics.csv")
    assert [int(row["step"]) for row in rows] == steps
    keep_rows(tmp_path / "metrics.csv", 1)
    assert [row["step"] for row in table(tmp_path)] == ["0"] if steps else not (tmp_path / "metrics.csv").exists()


@pytest.mark.parametrize("text", ["", "epo", "\0\0\0", HEADER.rstrip()])
def test_metrics_without_a_header_have_no_rows(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    assert read_rows(tmp_path / "metrics.csv") == []


def test_a_run_that_goes_on_adds_to_the_rows_that_are_there(tmp_path):
    logged(tmp_path, {"train/loss": 3.0}, {"val/loss": 2.0}, {"train/loss": 1.0}, steps=[0, 1, 2])
    keep_rows(tmp_path / "metrics.csv", 2)
    again = Metrics(tmp_path)
    assert again.experiment and len(table(tmp_path)) == 2  # nothing is lost before the next row is written
    again.log_metrics({"train/loss": 0.5}, 2)
    again.log_metrics({"speed": 9.0, "val/loss": 0.25}, 3)
    again.save()
    found = [{name: value for name, value in row.items() if value} for row in table(tmp_path)]
    assert found == [
        {"step": "0", "train/loss": "3.0"},
        {"step": "1", "val/loss": "2.0"},
        {"step": "2", "train/loss": "0.5"},
        {"step": "3", "speed": "9.0", "val/loss": "0.25"},
    ]


def test_a_new_column_never_takes_the_rows_away(tmp_path, monkeypatch):
    logged(tmp_path, {"train/loss": 3.0}, steps=[0])
    before = (tmp_path / "metrics.csv").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "publish", full)
    with pytest.raises(OSError, match="No space"):
        logged(tmp_path, {"val/loss": 3.0}, steps=[1])
    assert (tmp_path / "metrics.csv").read_bytes() == before


class Breaks:
    """What cannot be saved: the disk, or the process, gives up while it is written."""

    def __reduce__(self):
        raise OSError(28, "No space left on device")


def test_a_checkpoint_that_is_not_written_to_its_end_leaves_the_one_before(tmp_path, monkeypatch):
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    path, writer = tmp_path / "run" / "last.ckpt", WholeCheckpoints()
    seen = []
    publish = files.publish
    monkeypatch.setattr(files, "publish", lambda partial, *rest, **how: (seen.append(partial), publish(partial, *rest)))
    writer.save_checkpoint({"state": torch.arange(1000)}, path)
    assert seen[0].parent == path.parent and not any(elsewhere.iterdir())  # a rename, not a copy from another disk
    with pytest.raises(OSError, match="No space"):
        writer.save_checkpoint({"state": torch.arange(10), "more": Breaks()}, path)
    assert torch.equal(torch.load(path, weights_only=True)["state"], torch.arange(1000))
    assert [one.name for one in path.parent.iterdir()] == ["last.ckpt"]


def test_nothing_is_removed_in_the_name_of_a_checkpoint(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    WholeCheckpoints().remove_checkpoint(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").exists()
