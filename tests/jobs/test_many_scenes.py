"""Many scenes from Python: what the command does, told by events, with a policy for those that fail."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import pointwise_model, tiny_meta, write_checkpoint

import rs_biformer
from rs_biformer.cli import predict as command
from rs_biformer.errors import CheckpointError, ConfigError, RasterError
from rs_biformer.jobs import Advanced, Checked, Failed, Mapped, Planned, ScenesFailed, Skipped, load_model
from rs_biformer.schema import PRESETS


@pytest.fixture
def scene(write_raster):
    """Scenes of noise, by name."""

    def write(name: str):
        image = np.random.default_rng(len(name)).integers(1, 256, (3, 70, 90)).astype(np.uint8)
        return write_raster(name, image, photometric="rgb")

    return write


@pytest.fixture(scope="module")
def model():
    return pointwise_model(tiny_meta(window=64))


def test_scenes_whose_maps_are_there_are_not_looked_at(scene, model, tmp_path, monkeypatch):
    for name in ("in/a.tif", "in/b.tif", "in/c.tif"):
        scene(name)
    rs_biformer.map_scenes(tmp_path / "in", model, tmp_path / "out", layers=["margin"])
    wanted = (tmp_path / "out" / "b_margin.tif").read_bytes()
    (tmp_path / "out" / "b_margin.tif").unlink()
    for gone in "ac":  # nothing is read of them: they need not even be rasters
        (tmp_path / "in" / f"{gone}.tif").write_text("no raster")
    told: list = []
    report = rs_biformer.map_scenes(
        tmp_path / "in", model, tmp_path / "out", layers=["margin"], skip_existing=True, tell=told.append
    )
    assert [one.name for one in report.skipped] == ["a", "c"] and [one.name for one in report.mapped] == ["b"]
    assert (tmp_path / "out" / "b_margin.tif").read_bytes() == wanted
    assert [(one.number, one.total) for one in told if isinstance(one, Planned)] == [(2, 3)]


def test_the_model_is_looked_through_once_for_many_scenes(scene, model, tmp_path, monkeypatch):
    from rs_biformer.predict import mapping

    seen: list[int] = []
    real = mapping.model_identity
    monkeypatch.setattr(mapping, "model_identity", lambda one: (seen.append(1), real(one))[1])
    for name in ("in/a.tif", "in/b.tif", "in/c.tif"):
        scene(name)
    rs_biformer.map_scenes(tmp_path / "in", model, tmp_path / "out")
    assert seen == [1]


def test_a_scene_is_opened_once_to_be_checked_and_once_to_be_read(scene, model, tmp_path, monkeypatch):
    from threading import Thread

    from rs_biformer.raster import gdal

    opened, started = [], []
    open_it, start = gdal._opened, Thread.start
    monkeypatch.setattr(
        gdal, "_opened", lambda path, *rest, **more: (opened.append(path), open_it(path, *rest, **more))[1]
    )
    monkeypatch.setattr(Thread, "start", lambda thread: (started.append(thread.name), start(thread))[1])
    scenes = [scene("in/a.tif"), scene("in/bb.tif")]
    rs_biformer.map_scenes(tmp_path / "in", model, tmp_path / "out", window=128, overlap=0)
    assert [sum(Path(path) == one for path in opened) for one in scenes] == [2, 2]
    assert started == []  # one window, one strip: there is nothing to do beside


def torn(path: Path) -> Path:
    """The scene without its last bytes: its header is whole."""
    path.write_bytes(path.read_bytes()[:-6000])
    return path


def test_a_folder_is_mapped_from_python_with_the_bytes_of_the_command(scene, tmp_path, capsys):
    for name in ("in/a.tif", "in/b.tif"):
        scene(name)
    checkpoint = write_checkpoint(tmp_path / "best.ckpt", tiny_meta("resnet18"))
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    options = ["--overlap", "0.25", "--tta", "flips", "--confidence", "--margin"]
    argv = [str(tmp_path / "in"), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "by command"), *options]
    command.run(parser.parse_args(argv))
    report = rs_biformer.map_scenes(
        tmp_path / "in", checkpoint, tmp_path / "by python", layers=["margin", "confidence"], overlap=0.25, tta="flips"
    )
    made = sorted(path.name for path in (tmp_path / "by python").iterdir())
    assert made == sorted(path.name for path in (tmp_path / "by command").iterdir())
    layers = ("classes", "confidence", "margin")
    assert [name for name in made if name.endswith(".tif")] == [
        f"{name}_{layer}.tif" for name in "ab" for layer in layers
    ]
    for name in made:
        assert (tmp_path / "by python" / name).read_bytes() == (tmp_path / "by command" / name).read_bytes()
    shown = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert shown == [path.name for one in report.mapped for path in one.maps.values()]


def test_the_model_is_loaded_once_and_the_scenes_are_listed_once(scene, tmp_path, monkeypatch):
    import rs_biformer.checkpoint as checkpoint_files
    from rs_biformer.jobs import mapping

    counted = {"load_checkpoint": 0, "pattern_scenes": 0}

    def count(room, name):
        real = getattr(room, name)

        def counting(*args, **options):
            counted[name] += 1
            return real(*args, **options)

        monkeypatch.setattr(room, name, counting)

    count(checkpoint_files, "load_checkpoint")
    count(mapping, "pattern_scenes")
    checkpoint = write_checkpoint(tmp_path / "best.ckpt", tiny_meta("resnet18"))
    rs_biformer.map_scenes([scene("a.tif"), scene("bb.tif")], checkpoint, tmp_path / "maps", overlap=0)
    assert counted == {"load_checkpoint": 1, "pattern_scenes": 1}


def test_every_step_is_told(scene, model, tmp_path):
    told = []
    scenes = [scene("a.tif"), torn(scene("bb.tif")), scene("ccc.tif")]
    rs_biformer.map_scenes(scenes[0], model, tmp_path / "maps", overlap=0)
    with pytest.raises(
        ScenesFailed, match=r"^1 of 2 scenes are not mapped, the others are; bb: .*cannot be read"
    ) as caught:
        rs_biformer.map_scenes(scenes, model, tmp_path / "maps", overlap=0, skip_existing=True, tell=told.append)
    assert [type(event) for event in told if not isinstance(event, Advanced)] == [
        *(Checked, Skipped, Planned, Failed, Planned, Mapped)
    ]
    assert [(event.name, event.number, event.total) for event in told if isinstance(event, Planned)] == [
        *(("bb", 2, 3), ("ccc", 3, 3))
    ]
    assert [(event.done, event.total) for event in told if isinstance(event, Advanced)][-1] == (4, 4)
    report = caught.value.report
    assert [one.name for one in report.mapped] == ["ccc"]
    assert report.mapped[0].maps == {"classes": tmp_path / "maps" / "ccc_classes.tif"}
    facts = report.to_dict()
    assert facts["skipped"] == [{"name": "a"}] and facts["failed"][0]["name"] == "bb"
    assert (facts["scenes"][0]["pixels"], facts["scenes"][0]["windows"]) == (6300, 4)


def test_a_scene_that_fails_can_stop_all(scene, model, tmp_path):
    scenes = [scene("a.tif"), torn(scene("bb.tif")), scene("ccc.tif")]
    with pytest.raises(RasterError, match=r"bb\.tif cannot be read"):
        rs_biformer.map_scenes(scenes, model, tmp_path / "maps", overlap=0, on_failure="stop")
    assert not (tmp_path / "maps" / "ccc_classes.tif").exists()


def test_what_is_wrong_with_the_options_stops_at_the_first_scene_that_is_mapped(scene, model, tmp_path):
    rs_biformer.map_scenes(scene("a.tif"), model, tmp_path / "maps", overlap=0)
    with pytest.raises(ConfigError, match="needs at least"):
        rs_biformer.map_scenes(
            [scene("a.tif"), scene("bb.tif")], model, tmp_path / "maps", max_memory=10**6, skip_existing=True
        )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": ["confidences"]}, ConfigError, "no layer 'confidences'; did you mean confidence"),
        ({"on_failure": "ignore"}, ConfigError, "must be one of continue, stop"),
        ({"window": 0}, ConfigError, "window is 0 pixels"),
        ({"windows": 64}, TypeError, "did you mean 'window'"),
        ({"tta": "all"}, ConfigError, "none, flips, d4"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(scene, model, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        rs_biformer.map_scenes(scene("a.tif"), model, tmp_path / "maps", **options)
    assert not (tmp_path / "maps").exists()


def test_a_loaded_model_says_what_it_is(model, tmp_path):
    path = write_checkpoint(tmp_path / "best.ckpt", tiny_meta("resnet18"))
    loaded = load_model(path)
    assert load_model(loaded) is loaded and loaded.schema == PRESETS["vaihingen"]
    assert loaded.tags["MODEL"] == "resnet18 + unet_fusion" and loaded.tags["MODEL_FILE"] == "best.ckpt"
    assert loaded.facts["parameters"].endswith(" M") and loaded.facts["training window"] == "64 px"
    assert "MODEL_FILE" not in load_model(model).tags and "checkpoint" not in load_model(model).facts
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_model(tmp_path / "none.ckpt")
