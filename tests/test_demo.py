import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from rs_biformer import demo
from rs_biformer.cli import build_parser, main
from rs_biformer.demo import CLAIM, run_demo
from rs_biformer.errors import ConfigError
from rs_biformer.evaluation.confusion import iou


@pytest.fixture
def tiny(monkeypatch):
    """The demo on scenes that are too small to learn from, but fast."""
    monkeypatch.setattr(demo, "WINDOW", 64)
    monkeypatch.setattr(demo, "BATCH", 2)
    monkeypatch.setattr(demo, "EPOCHS", 1)
    return {"size": 128, "steps": 2}


def test_the_demo_goes_from_nothing_to_a_report_and_says_how_to_repeat_it(tiny, tmp_path):
    out, said = tmp_path / "demo", []
    result = run_demo(out, **tiny, say=said.append)
    assert result.report.read_text(encoding="utf-8").startswith("<!")
    figures = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert figures["mean_iou"] == pytest.approx(result.metrics.mean_iou)
    assert sum(map(sum, figures["confusion_matrix"])) + figures["ignored_pixels"] == 128 * 128
    with (
        rasterio.open(out / "maps" / "test_1_classes.tif") as mapped,
        rasterio.open(out / "scenes/test_1.tif") as scene,
    ):
        assert mapped.crs == scene.crs and mapped.transform == scene.transform
        np.testing.assert_array_equal(
            np.bincount(mapped.read(1).ravel(), minlength=6), np.sum(figures["confusion_matrix"], axis=0)
        )
    commands = [line.removeprefix("$ ") for line in said if line.startswith("$ ")]
    about = (out / "about.txt").read_text(encoding="utf-8")
    assert about.startswith(CLAIM)
    for command in commands:
        assert command in about
        program, *arguments = shlex.split(command)
        assert program == "rs-biformer"
        build_parser().parse_args(arguments)  # exits when an option does not exist
    names = [shlex.split(command)[1] for command in commands]
    assert list(dict.fromkeys(names)) == ["demo", "tile", "train", "predict", "evaluate"]
    assert _files(out) == {path for path in _files(out) if path.exists()}


def test_a_demo_replaces_an_earlier_one_and_nothing_else(tiny, tmp_path, monkeypatch):
    out = tmp_path / "demo"
    out.mkdir()
    (out / "about.txt").write_text(f"{CLAIM}\n", encoding="utf-8")
    for stale in ("run/best.ckpt", "maps/old_classes.tif", "report.html"):
        (out / stale).parent.mkdir(exist_ok=True)
        (out / stale).write_text("stale")
    (out / "mine.txt").write_text("a note of the user's")

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        run_demo(out, **tiny)
    assert not (out / "report.html").exists() and not (out / "run").exists() and not (out / "maps").exists()
    assert (out / "mine.txt").read_text() == "a note of the user's"
    with pytest.raises(KeyboardInterrupt):  # what an interrupted demo left is taken over as well
        run_demo(out, **tiny)
    assert len(list((out / "scenes").iterdir())) == 2 * len(demo.SCENES)


def test_a_folder_that_holds_anything_else_is_refused_and_left_alone(tiny, tmp_path):
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "mine.tif").write_text("precious")
    with pytest.raises(ConfigError, match="no demo made"):
        run_demo(tmp_path, **tiny)
    assert (tmp_path / "scenes" / "mine.tif").read_text() == "precious"
    with pytest.raises(ConfigError, match="is a file"):
        run_demo(tmp_path / "scenes" / "mine.tif", **tiny)


def test_a_table_of_colours_is_right_where_colour_tells_all_and_wrong_where_it_does_not(tmp_path, write_raster):
    schema = demo.SCHEMA
    half = np.zeros((40, 40), np.uint8)
    half[:, 20:] = 3
    grey = np.stack([np.where(half == 3, 200, 40)] * 3).astype(np.uint8)
    colours = np.moveaxis(np.array(schema.colours, np.uint8)[half], -1, 0)
    telling = write_raster("telling.tif", grey)
    write_raster("telling_label.tif", colours)
    silent = write_raster("silent.tif", np.full_like(grey, 40))
    write_raster("silent_label.tif", colours)
    perfect = demo.score_colours([telling], telling).matrix
    assert perfect.trace() == perfect.sum() == 1600
    assert demo.score_colours([telling], silent).matrix[3].tolist() == [800, 0, 0, 0, 0, 0]


def test_colour_alone_does_not_tell_the_classes_apart(tmp_path):
    paths = [tmp_path / f"{seed}.tif" for seed in (21, 22, 23)]
    for seed, path in zip((21, 22, 23), paths, strict=True):
        assert demo.make_pair(path, size=640, seed=seed, gsd=0.25) == (path, demo.label_of(path))
    elsewhere = np.nanmean(iou(demo.score_colours(paths[:2], paths[2])))
    assert 0.15 < elsewhere < 0.5
    # Even a table made from the very scene that it is scored on leaves much to be told by shape.
    assert np.nanmean(iou(demo.score_colours(paths[2:], paths[2]))) < 0.72


def test_the_overview_shows_image_truth_and_prediction_of_the_same_part(tmp_path, write_raster):
    schema = demo.SCHEMA
    truth = np.zeros((100, 120), np.uint8)
    truth[:, 60:] = 1
    scene = write_raster("scene.tif", np.full((3, 100, 120), 90, np.uint8))
    label = write_raster("scene_label.tif", np.moveaxis(np.array(schema.colours, np.uint8)[truth], -1, 0))
    prediction = write_raster("map.tif", np.where(truth == 1, 3, 0).astype(np.uint8), nodata=255)
    with Image.open(demo.draw_overview(tmp_path / "overview.png", scene, label, prediction, schema)) as picture:
        pixels = np.array(picture.convert("RGB"))
    assert pixels.shape[1] == 1200
    row, right = 200, 300
    assert pixels[row, right].tolist() == [90, 90, 90]
    assert pixels[row, 402 + right].tolist() == list(schema.colours[1])
    assert pixels[row, 804 + right].tolist() == list(schema.colours[3])
    assert pixels[row, 804 + 50].tolist() == list(schema.colours[0])


def test_the_command_writes_a_single_scene_of_any_size(tmp_path, capsys):
    path = tmp_path / "big.tif"
    assert main(["demo", "--scene", str(path), "--size", "70", "--gsd", "0.5", "--seed", "3"]) == 0
    assert capsys.readouterr().out.split() == [str(path), str(tmp_path / "big_label.tif")]
    with rasterio.open(path) as file:
        assert (file.height, file.width, file.res) == (70, 70, (0.5, 0.5))


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--size", "900"], "--scene"), (["--scene", "a.png"], ".tif"), (["--scene", "a.tif", "--size", "0"], "0 x 0")],
)
def test_the_command_refuses_options_that_cannot_be_meant_in_one_line(tmp_path, monkeypatch, capsys, options, said):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *options]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("rs-biformer demo: ") and said in message
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_network_beats_what_colours_tell_on_a_scene_it_did_not_train_on(tmp_path):
    result = run_demo(tmp_path / "demo")
    colours = result.metrics.scores_of(result.colours).mean_iou
    assert result.metrics.mean_iou >= 0.60
    assert result.metrics.mean_iou > colours + 0.15


def _files(out: Path) -> set[Path]:
    return {*demo._Files(out).made, out / "about.txt"}
