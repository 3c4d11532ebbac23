import argparse
import json
import sys

import numpy as np
import pytest
import yaml

from rs_biformer.cli import evaluate as command
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.schema import IGNORE, PRESETS, ClassSchema


def run(*argv: object) -> None:
    """The command as the shell's, without the frame that turns errors into exit codes."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(part) for part in argv]))


@pytest.fixture
def files(write_raster):
    """Two scenes whose prediction is wrong in every tenth row, and their images."""
    rng = np.random.default_rng(3)
    made: dict[str, list] = {"image": [], "label": [], "map": []}
    for name in ("a", "b"):
        label = np.repeat(rng.integers(0, 5, (50, 1)), 40, axis=1).astype(np.uint8)
        prediction = label.copy()
        prediction[::10] = 5
        colours = np.moveaxis(np.array(PRESETS["potsdam"].colours, np.uint8)[label], -1, 0)
        made["label"].append(write_raster(f"{name}_label.tif", colours))
        made["map"].append(write_raster(f"{name}_classes.tif", prediction, nodata=IGNORE))
        made["image"].append(write_raster(f"{name}_image.tif", colours // 2))
    return made


def test_maps_and_labels_become_a_table_json_a_picture_and_a_page(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rs-biformer", "evaluate", "--the", "options given"])
    out, page = tmp_path / "result" / "metrics.json", tmp_path / "result" / "page.html"
    run(
        *("--prediction", *files["map"], "--label", *files["label"], "--scene", *files["image"]),
        *("--classes", "potsdam", "--out", out, "--report", page, "--title", "Two towns"),
    )
    result = json.loads(out.read_text())
    assert result["overall_accuracy"] == 0.9 and result["protocol"] == "all-classes"
    assert [scene["name"] for scene in result["per_scene"]] == ["a", "b"]
    shown = capsys.readouterr().out
    assert "impervious surface" in shown and "overall accuracy 90.00" in shown
    assert shown.splitlines()[-3:] == [str(out), str(out.with_name("metrics_confusion.png")), str(page)]
    assert out.with_name("metrics_confusion.png").read_bytes().startswith(b"\x89PNG")
    text = page.read_text(encoding="utf-8")
    assert "<h1>Two towns</h1>" in text and "rs-biformer evaluate --the &#x27;options given&#x27;" in text
    assert text.count('class="scene card"') == 2 and 'alt="Image of a"' in text


def test_a_protocol_file_and_a_tolerance_are_obeyed(files, tmp_path):
    protocol = tmp_path / "mine.yaml"
    protocol.write_text(yaml.safe_dump({"id": "mine", "exclude": ["clutter"], "ignore_boundary": 1}))
    out = tmp_path / "metrics.json"
    run(
        *("--prediction", *files["map"], "--label", *files["label"], "--classes", "potsdam", "--out", out),
        *("--protocol", protocol, "--tolerance", 5),
    )
    result = json.loads(out.read_text())
    assert result["protocol"] == "mine" and "clutter" not in result["mean_over"]
    assert result["options"]["tolerance"] == 5
    assert result["eroded_pixels"] > 0 == result["full_labels"]["eroded_pixels"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prediction", "m.tif"], "--prediction needs --classes"),
        (["--checkpoint", "c.ckpt"], "--checkpoint needs --scene"),
        (["--prediction", "m.tif", "--classes", "potsdam", "--maps", "d"], "--maps has no effect on maps that exist"),
        (["--prediction", "m.tif", "--classes", "potsdam", "--tta", "d4"], "--tta has no effect"),
        (["--prediction", "m.tif", "--classes", "potsdam", "--curves", "c.csv"], "give --report"),
        (["--prediction", "m.tif", "--classes", "postdam"], "did you mean potsdam"),
        (
            ["--prediction", "m.tif", "--classes", "potsdam", "--protocol", "isprs-offical"],
            "did you mean isprs-official",
        ),
        (["--prediction", "m.tif", "n.tif", "--classes", "potsdam"], "2 predictions and 1 labels"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(argv, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run(*argv, "--label", "l.tif", "--out", tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()


def test_a_missing_label_is_refused_and_nothing_is_written(files, tmp_path):
    labels = [files["label"][0], tmp_path / "nowhere.tif"]
    with pytest.raises(RasterError, match="nowhere.tif does not exist"):
        run("--prediction", *files["map"], "--label", *labels, "--classes", "potsdam", "--out", tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()


@pytest.fixture
def checkpoint(tmp_path):
    """A small network that was never trained, saved as training saves one."""
    import torch

    from rs_biformer.checkpoint import META_KEY, NETWORK_PREFIX, CheckpointMeta

    torch.manual_seed(0)
    meta = CheckpointMeta(
        encoder="resnet18",
        decoder="unet",
        model_arguments={},
        schema=PRESETS["potsdam"],
        bands=("red", "green", "blue"),
        dtype="uint8",
        mean=(60.0,) * 3,
        std=(40.0,) * 3,
        window=32,
        gsd=0.5,
        version="0",
    )
    state = {f"{NETWORK_PREFIX}{name}": value for name, value in meta.create_network().state_dict().items()}
    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": state, META_KEY: meta.to_dict()}, path)
    return path


@pytest.mark.parametrize("keep", [True, False])
def test_a_checkpoint_maps_the_scenes_first_and_the_maps_are_kept_where_asked(
    files, checkpoint, tmp_path, capsys, keep
):
    out, maps = tmp_path / "metrics.json", tmp_path / "maps"
    kept = ["--maps", maps] if keep else []
    run(
        *("--checkpoint", checkpoint, "--scene", *files["image"], "--label", *files["label"], "--out", out),
        *("--device", "cpu", "--overlap", 0, "--window", 32, *kept),
    )
    result = json.loads(out.read_text())
    assert result["evaluated_pixels"] == 2 * 50 * 40 and result["unpredicted_pixels"] == 0
    assert result["schema"]["name"] == "potsdam"
    assert maps.is_dir() == keep
    if keep:
        assert sorted(path.name for path in maps.iterdir()) == ["a_image_classes.tif", "b_image_classes.tif"]
        again = tmp_path / "again.json"
        run(
            *("--prediction", *sorted(maps.iterdir()), "--label", *files["label"]),
            *("--classes", "potsdam", "--out", again),
        )
        assert json.loads(again.read_text())["confusion_matrix"] == result["confusion_matrix"]
    assert "_image_classes.tif" not in capsys.readouterr().out


def test_what_cannot_be_evaluated_is_refused_before_anything_is_mapped(files, checkpoint, tmp_path):
    options = ["--checkpoint", checkpoint, "--scene", *files["image"], "--out", tmp_path / "m.json", "--label"]
    two = ClassSchema("two", ("roof", "ground"), ((1, 2, 3), (4, 5, 6)))
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(two.to_dict()))
    with pytest.raises(ConfigError, match="knows the classes impervious surface, .* has roof, ground"):
        run(*options, *files["label"], "--classes", path)
    with pytest.raises(ConfigError, match="2 scenes and 1 labels"):
        run(*options, files["label"][0])
    with pytest.raises(ConfigError, match="no protocol 'strict'"):
        run(*options, *files["label"], "--protocol", "strict", "--maps", tmp_path / "maps")
    with pytest.raises(RasterError, match="nowhere.tif does not exist"):
        run(*options, files["label"][0], tmp_path / "nowhere.tif", "--maps", tmp_path / "maps")
    assert not (tmp_path / "maps").exists()  # all were refused before the first scene was mapped
