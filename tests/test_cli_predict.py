"""The commands predict, export, explain, models and info, run as the shell runs them but in this process."""

import argparse
import json
from importlib import import_module

import numpy as np
import pytest
import rasterio
from tiny_checkpoint import tiny_meta, write_checkpoint

from rs_biformer.cli.predict import parse_size
from rs_biformer.errors import CheckpointError, ConfigError, RasterError
from rs_biformer.schema import IGNORE, PRESETS


def run(command: str, *argv: object) -> None:
    module = import_module(f"rs_biformer.cli.{command}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    module.run(parser.parse_args([str(part) for part in argv]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model") / "best.ckpt")


@pytest.fixture
def rgb(write_raster):
    def write(name: str = "scene.tif", **options: object):
        image = np.random.default_rng(0).integers(1, 256, (3, 80, 90)).astype(np.uint8)
        image[:, :, :5] = 0
        return write_raster(name, image, **({"photometric": "rgb", "nodata": 0} | options))

    return write


def test_predict_writes_the_maps_that_were_asked_for_and_says_where(rgb, checkpoint, tmp_path, capsys):
    scene, out = rgb(), tmp_path / "maps"
    run("predict", scene, "--checkpoint", checkpoint, "--out", out, "--confidence", "--probabilities")
    names = [f"scene_{layer}.tif" for layer in ("classes", "probabilities", "confidence")]
    assert capsys.readouterr().out.splitlines() == [str(out / name) for name in names]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    with rasterio.open(scene) as source, rasterio.open(out / names[0]) as found:
        assert (found.crs, found.transform, found.shape) == (source.crs, source.transform, source.shape)
        classes = found.read(1)
        assert found.tags()["MODEL"] == "resnet18_biformer + unet_fusion"
        assert found.colormap(1)[4][:3] == PRESETS["vaihingen"].colours[4]
    assert (classes[:, :5] == IGNORE).all()
    assert (classes[:, 5:] < 6).all()
    with rasterio.open(out / names[1]) as found:
        assert found.descriptions == PRESETS["vaihingen"].classes
        probabilities = found.read()
    np.testing.assert_allclose(probabilities[:, :, 5:].sum(0), 250, atol=3)


def test_predict_again_replaces_the_map_by_the_same_bytes(rgb, checkpoint, tmp_path):
    scene, found = rgb(), []
    for _ in range(2):
        run("predict", scene, "--checkpoint", checkpoint, "--out", tmp_path / "maps", "--overlap", 0)
        found.append((tmp_path / "maps" / "scene_classes.tif").read_bytes())
    assert found[0] == found[1]


def test_predict_takes_a_folder_and_refuses_all_scenes_when_one_does_not_fit(rgb, write_raster, checkpoint, tmp_path):
    rgb("in/a.tif")
    write_raster("in/b.tif", np.ones((2, 30, 30), np.uint8))
    with pytest.raises(RasterError, match=r"b\.tif has 2 bands.*takes 3 bands"):
        run("predict", tmp_path / "in", "--checkpoint", checkpoint, "--out", tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--checkpoint", "nowhere.ckpt"], CheckpointError, "no checkpoint"),
        (["--tta", "all"], ConfigError, "none, flips, d4"),
        (["--max-memory", "much"], ConfigError, "500MB or 2GB"),
        (["--max-memory", "1MB"], ConfigError, "needs at least"),
        (["--bands", "1,2,9"], RasterError, "no band 9"),
    ],
)
def test_predict_refuses_what_cannot_be_meant(rgb, checkpoint, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        run("predict", rgb(), "--checkpoint", checkpoint, "--out", tmp_path / "maps", *options)
    assert not list(tmp_path.rglob("*_classes.tif"))


def test_predict_refuses_another_pixel_size_unless_told(rgb, tmp_path):
    coarse = write_checkpoint(tmp_path / "coarse.ckpt", tiny_meta(gsd=2.0))
    with pytest.raises(RasterError, match="--allow-gsd-mismatch"):
        run("predict", rgb(), "--checkpoint", coarse, "--out", tmp_path)
    run("predict", rgb(), "--checkpoint", coarse, "--out", tmp_path, "--overlap", 0, "--allow-gsd-mismatch")
    assert (tmp_path / "scene_classes.tif").exists()


def test_scenes_with_one_stem_are_refused_before_the_start(rgb, tmp_path):
    first, second = rgb("a/scene.tif"), rgb("b/scene.tif")
    with pytest.raises(ConfigError, match="two scenes are called scene"):
        run("predict", first, second, "--checkpoint", tmp_path / "none.ckpt", "--out", tmp_path)


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("500mb", 500 * 10**6), ("1.5g", 1.5e9), ("4096", 4096), ("12kB", 12000)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "2 fortnights", "inf"])
def test_sizes_that_are_none_are_refused(text: str):
    with pytest.raises(ConfigError):
        parse_size(text)


def test_explain_draws_and_tells(rgb, checkpoint, tmp_path, capsys):
    run("explain", rgb(), "--checkpoint", checkpoint, "--at", "40,30", "--pixels", "--out", tmp_path / "routing.png")
    assert (tmp_path / "routing.png").stat().st_size > 10_000
    assert "stages.0" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["40", "a,b", "1,2,3"])
def test_explain_refuses_what_is_no_place(checkpoint, text: str):
    with pytest.raises(ConfigError, match="X,Y"):
        run("explain", "scene.tif", "--checkpoint", checkpoint, "--at", text, "--out", "a.png")


def test_models_counts_what_is_known_of_resnet18(capsys):
    run("models", "--only", "resnet18", "--size", 224, "--json")
    (found,) = json.loads(capsys.readouterr().out)["models"]
    # torchvision: 11.69 M parameters and 1.814 G multiply-adds, of which its classifier has 0.513 M and 0.0005 G
    assert found["encoder_parameters"] == 11_689_512 - 513_000
    assert found["encoder_multiply_adds"] == pytest.approx(1.8136e9, rel=1e-3)
    assert found["multiply_adds"] > found["encoder_multiply_adds"]
    assert found["strides"] == [2, 4, 8, 16, 32]
    assert found["widths"] == [64, 64, 128, 256, 512]


def test_models_prints_a_table(capsys):
    run("models", "--only", "resnet18", "--size", 64)
    out = capsys.readouterr().out
    assert "resnet18" in out
    assert "upernet" in out


def test_info_tells_versions_checkpoints_and_rasters_apart(rgb, checkpoint, capsys):
    def facts(*argv: object) -> dict:
        run("info", *argv, "--json")
        return json.loads(capsys.readouterr().out)

    assert "torch" in facts()
    found = facts(checkpoint)
    assert (found["kind"], found["window"], found["bands"]) == ("checkpoint", 64, ["red", "green", "blue"])
    found = facts(rgb())
    assert (found["kind"], found["rows"], found["columns"], found["dtype"]) == ("raster", 80, 90, "uint8")
    run("info", checkpoint)
    assert "impervious surface, building" in capsys.readouterr().out


def test_info_refuses_what_is_nothing(tmp_path):
    with pytest.raises(RasterError):
        run("info", tmp_path / "nowhere.tif")
