"""The commands predict, export, explain, models and info, run as the shell runs them but in this process."""

import argparse
import json
import os
import signal
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from range_server import serving
from tiny_checkpoint import pointwise_model, tiny_meta, write_checkpoint

from rs_biformer.checkpoint import TrainedModel
from rs_biformer.cli import main
from rs_biformer.cli.prediction import parse_scales, parse_size
from rs_biformer.errors import CheckpointError, ConfigError, RasterError, RsBiformerError
from rs_biformer.geometry import Window
from rs_biformer.jobs import Loaded
from rs_biformer.predict.options import Compute, Options, Output, Windows
from rs_biformer.predict.plan import make_plan
from rs_biformer.predict.quality import DEFAULT, Sight
from rs_biformer.raster.scene import Scene
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
    assert sorted(path.name for path in out.glob("*.tif")) == sorted(names)
    assert (out / "scene_classes.qml").exists()
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


@pytest.fixture
def pointwise(monkeypatch):
    """A quick model in place of the checkpoint: `pointwise(**changes)` sets what it was trained on."""

    def use(**changes: object) -> TrainedModel:
        model = pointwise_model(tiny_meta(window=64, **changes))
        monkeypatch.setattr("rs_biformer.jobs.mapping.load_model", lambda path: Loaded(model, model.meta, Path(path)))
        return model

    use()
    return use


def predict(*argv: object) -> None:
    run("predict", *argv, "--checkpoint", "pointwise.ckpt", "--overlap", 0, "--precision", 32)


def truncated(write_raster, name: str) -> Path:
    """A scene whose header is whole and whose last blocks are missing."""
    noise = np.random.default_rng(0).integers(1, 255, (3, 128, 64), np.uint8)
    path = write_raster(name, noise, photometric="rgb", compress="deflate", tiled=True, blockxsize=64, blockysize=64)
    path.write_bytes(path.read_bytes()[:-6000])
    return path


def test_a_scene_that_fails_does_not_stop_the_others(rgb, write_raster, pointwise, tmp_path, capsys):
    scenes = [rgb("a.tif"), truncated(write_raster, "b.tif"), rgb("c.tif")]
    with pytest.raises(RsBiformerError, match=r"^1 of 3 scenes are not mapped, .* b: .*b\.tif cannot be read"):
        predict(*scenes, "--out", tmp_path / "maps")
    assert sorted(path.name for path in (tmp_path / "maps").glob("*.tif")) == ["a_classes.tif", "c_classes.tif"]
    assert capsys.readouterr().out.count("_classes.tif") == 2


def test_the_summary_is_json_on_request(rgb, write_raster, pointwise, tmp_path, capsys):
    scenes = [rgb("a.tif"), truncated(write_raster, "b.tif")]
    with pytest.raises(RsBiformerError):
        predict(*scenes, "--out", tmp_path / "maps", "--json", "--margin")
    facts = json.loads(capsys.readouterr().out)
    (done,), (failed,) = facts["scenes"], facts["failed"]
    assert done["maps"] == {layer: str(tmp_path / f"maps/a_{layer}.tif") for layer in ("classes", "margin")}
    assert (done["name"], done["pixels"], done["windows"], done["rasters"]) == ("a", 7200, 4, [str(scenes[0])])
    assert done["seconds"] > 0
    assert failed["name"] == "b"
    assert "cannot be read" in failed["error"]


def test_what_is_wrong_with_the_options_stops_at_the_first_of_many_scenes(rgb, pointwise, tmp_path):
    with pytest.raises(ConfigError, match="none, flips, d4"):
        predict(rgb("a.tif"), rgb("b.tif"), "--out", tmp_path / "maps", "--tta", "all")


def test_maps_beside_their_scenes_are_not_mapped_again(rgb, pointwise, tmp_path, capsys):
    rgb("a.tif")
    for _ in range(2):
        predict(tmp_path, "--out", tmp_path, "--confidence")
        assert capsys.readouterr().out.split() == [
            str(tmp_path / f"a_{layer}.tif") for layer in ("classes", "confidence")
        ]


def test_labels_in_the_folder_can_be_left_out(rgb, pointwise, tmp_path, capsys):
    rgb("in/a_image.tif")
    rgb("in/a_label.tif")
    predict(tmp_path / "in", "--out", tmp_path / "maps", "--exclude", "*_label.tif")
    assert capsys.readouterr().out.split() == [str(tmp_path / "maps/a_image_classes.tif")]


def test_existing_maps_can_be_left_alone(rgb, pointwise, tmp_path, capsys):
    scenes, out = [rgb("a.tif"), rgb("b.tif")], tmp_path / "maps"
    predict(scenes[0], "--out", out)
    before = (out / "a_classes.tif").stat().st_mtime_ns
    predict(*scenes, "--out", out, "--skip-existing")
    assert (out / "a_classes.tif").stat().st_mtime_ns == before
    shown = capsys.readouterr()
    assert shown.out.split() == [str(out / "a_classes.tif"), str(out / "b_classes.tif")]
    assert "1 scene was left alone" in shown.err
    predict(*scenes, "--out", out, "--skip-existing", "--margin")  # not all of its maps are there
    assert (out / "a_margin.tif").exists()


def test_a_list_of_scenes_of_one_stem_is_named_by_their_folders(rgb, pointwise, tmp_path):
    rgb("x/ortho.tif")
    rgb("y/ortho.tif")
    (tmp_path / "tonight.txt").write_text("# two of them\nx/ortho.tif\ny/ortho.tif\n")
    predict(tmp_path / "tonight.txt", "--out", tmp_path / "maps", "--name", "{parent}")
    assert sorted(path.name for path in (tmp_path / "maps").glob("*.tif")) == ["x_classes.tif", "y_classes.tif"]


def test_the_plan_is_said_before_each_scene(rgb, pointwise, tmp_path, capsys):
    predict(rgb("a.tif"), rgb("b.tif"), "--out", tmp_path / "maps")
    said = capsys.readouterr().err
    assert "1/2 a: 80 x 90 pixels in 4 windows of 64" in said
    assert "2/2 b: 80 x 90 pixels" in said
    assert "MB" in said


def by_hand(model: TrainedModel, image: np.ndarray) -> np.ndarray:
    """Classes of raw pixels (C, h, w) by a model of one 1x1 convolution."""
    weight, bias = (value.detach().double().numpy() for value in model.parameters())
    mean, std = (np.array(part)[:, None, None] for part in (model.meta.mean, model.meta.std))
    return (np.tensordot(weight[:, :, 0, 0], (image - mean) / std, 1) + bias[:, None, None]).argmax(0)


def test_heights_on_another_grid_are_mapped_with_the_image(write_raster, pointwise, tmp_path, capsys):
    """Heights twice as coarse and in steps of four pixels, so that a resampled pixel is known away from the steps."""
    model = pointwise(bands=("red", "green", "blue", "height"), dtype="float32", mean=(1.0,) * 4, std=(9.0,) * 4)
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (3, 80, 96)).astype(np.uint8)
    heights = rng.uniform(0, 30, (1, 10, 12)).astype(np.float32)
    heights[0, 3, 4] = -9999
    scene = write_raster("a.tif", image, photometric="rgb")
    coarse = heights.repeat(4, axis=1).repeat(4, axis=2)
    place = Affine(1, 0, 500_000, 0, -1, 5_400_000)
    write_raster("a_ndsm.tif", coarse, transform=place, nodata=-9999, descriptions=("height",))
    predict(scene, "--extra", "{dir}/{stem}_ndsm.tif", "--out", tmp_path / "maps")
    assert "a_ndsm.tif is resampled to pixels of 0.5 m" in capsys.readouterr().err
    fine = heights.repeat(8, axis=1).repeat(8, axis=2)
    known = np.zeros((80, 96), bool)
    known.reshape(10, 8, 12, 8)[:, 2:-2, :, 2:-2] = True
    with rasterio.open(tmp_path / "maps/a_classes.tif") as file:
        found = file.read(1)
    truth = np.where(fine[0] == -9999, 255, by_hand(model, np.concatenate([image, fine])))
    assert (found[known] == truth[known]).mean() > 0.999  # float32 may see a tie otherwise
    assert np.array_equal(found == 255, fine[0] == -9999)


def test_a_rescaled_scene_is_mapped_on_the_model_s_pixels(write_raster, pointwise, tmp_path):
    model = pointwise(gsd=2.0)
    image = np.random.default_rng(0).integers(1, 256, (3, 20, 25)).astype(np.uint8)
    scene = write_raster("a.tif", image.repeat(4, axis=1).repeat(4, axis=2), photometric="rgb")
    with pytest.raises(RasterError, match="--rescale-gsd"):
        predict(scene, "--out", tmp_path)
    predict(scene, "--out", tmp_path, "--rescale-gsd")
    with rasterio.open(tmp_path / "a_classes.tif") as file, Scene(scene, gsd=2.0) as coarse:
        assert file.shape == (20, 25)
        assert file.transform.almost_equals(Affine(2, 0, 500_000, 0, -2, 5_400_000))
        pixels, valid = coarse.read(Window(0, 0, 20, 25))
        assert valid.all()
        assert (file.read(1) == by_hand(model, pixels)).mean() > 0.999


@pytest.mark.parametrize("kind", ["nodata", "alpha", "mask", "external mask", "nan", "per band"])
def test_nodata_comes_out_where_it_went_in(write_raster, pointwise, tmp_path, kind):
    hole = np.zeros((80, 90), bool)
    hole[20:31, 5:66] = hole[0, 0] = True
    image = np.random.default_rng(0).integers(1, 256, (3, 80, 90)).astype("float32" if kind == "nan" else "uint8")
    options: dict = {"photometric": "rgb"}
    if kind == "nodata":
        image[:, hole] = 0
        options["nodata"] = 0
    elif kind == "nan":
        pointwise(dtype="float32")
        image[1, hole] = np.nan
    elif kind == "alpha":
        image = np.concatenate([image, np.where(hole, 0, 255).astype(np.uint8)[None]])
        options["alpha"] = "yes"
    elif kind.endswith("mask"):
        options["mask"] = ~hole
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=kind != "external mask"):
        scene = write_raster("a.tif", image, **options)
    if kind == "per band":
        masks = np.full((3, 80, 90), 255, np.uint8)
        masks[2, hole] = 0
        beside = write_raster("masks.tif", masks)
        with rasterio.open(beside, "r+") as file:
            file.update_tags(**{f"INTERNAL_MASK_FLAGS_{number}": "0" for number in (1, 2, 3)})
        beside.rename(tmp_path / "a.tif.msk")
    predict(scene, "--out", tmp_path / "maps", "--confidence")
    for layer in ("classes", "confidence"):
        with rasterio.open(tmp_path / f"maps/a_{layer}.tif") as file:
            assert np.array_equal(file.read_masks(1) == 0, hole)


def test_a_scene_is_mapped_from_a_server(rgb, pointwise, tmp_path):
    rgb("a.tif")
    with serving(tmp_path) as url:
        predict(f"{url}/a.tif?key=1", "--out", tmp_path / "far")
    predict(tmp_path / "a.tif", "--out", tmp_path / "near")
    with rasterio.open(tmp_path / "far/a_classes.tif") as far, rasterio.open(tmp_path / "near/a_classes.tif") as near:
        assert np.array_equal(far.read(1), near.read(1))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on(rgb, pointwise, tmp_path, monkeypatch, capsys, number, code):
    monkeypatch.setattr("rs_biformer.jobs.mapping.map_scene", lambda *_, **__: os.kill(os.getpid(), number))
    argv = ["predict", str(rgb()), "--checkpoint", "pointwise.ckpt", "--out", str(tmp_path / "maps")]
    assert main(argv) == code
    assert "interrupted: the same command goes on from the last finished strip" in capsys.readouterr().err
    assert main([*argv[:2], str(rgb("b.tif")), *argv[2:]]) == code
    assert "interrupted: the same command with --skip-existing goes on" in capsys.readouterr().err


def test_every_option_reaches_the_map_of_a_scene(rgb, pointwise, tmp_path, monkeypatch):
    seen = {}

    def note(model, scene, paths, **given):
        seen.update(given, paths=paths)
        given["on_plan"](make_plan(80, 90, planes=6, bands=3, itemsize=1))

    monkeypatch.setattr("rs_biformer.jobs.mapping.map_scene", note)
    layers = ["probabilities", "confidence", "margin", "entropy", "disagreement"]
    argv = "--tta flips --blend average --scales 0.5 1 --probability-dtype float16 --max-memory 300MB --restart"
    argv += " --compile --window 64 --device cpu,cpu --batch-size 2 --overlap 0.25 --precision bf16 --passes plain"
    run(
        "predict",
        rgb(),
        "--checkpoint",
        "p.ckpt",
        "--out",
        tmp_path,
        *[f"--{layer}" for layer in layers],
        *argv.split(),
    )
    assert seen["options"] == Options(
        Windows(64, 0.25, "average", "flips", (0.5, 1.0)),
        Compute(2, ["cpu", "cpu"], "bf16", 3 * 10**8, compile=True, passes="plain"),
        Output("float16", restart=True),
    )
    assert seen["paths"] == {layer: tmp_path / f"scene_{layer}.tif" for layer in ["classes", *layers]}


def test_what_is_not_given_is_the_default_and_the_model_tells_its_window(rgb, pointwise, tmp_path, monkeypatch):
    seen = {}

    def note(model, scene, paths, **given):
        seen.update(given)
        given["on_plan"](make_plan(80, 90, planes=6, bands=3, itemsize=1))

    monkeypatch.setattr("rs_biformer.jobs.mapping.map_scene", note)
    run("predict", rgb(), "--checkpoint", "p.ckpt", "--out", tmp_path)
    assert seen["options"] == Options()
    assert seen["sight"] == Sight(64, grows=True)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_the_help_tells_the_defaults(command):
    parser = argparse.ArgumentParser()
    import_module(f"rs_biformer.cli.{command}").add_arguments(parser)
    told = {action.dest: action.help for action in parser._actions}
    windows, compute, output = Windows(), Compute(), Output()
    for name, default in [
        *((name, getattr(windows, name)) for name in ("blend", "tta")),
        ("scales", 1),
        ("quality", DEFAULT),
        ("batch_size", 64),
        *((name, getattr(compute, name)) for name in ("device", "precision")),
        *([("probability_dtype", output.probability_dtype)] if command == "predict" else []),
    ]:
        assert f"({default}" in told[name], name


@pytest.mark.parametrize("text", [[""], ["1,x"], ["half"], ["1", ""]])
def test_scales_that_are_none_are_refused(text: list[str]):
    with pytest.raises(ConfigError, match=r"0\.75 1 1\.25"):
        parse_scales(text)


@pytest.mark.parametrize("text", [["0.75", "1", "1.25"], ["0.75,1,1.25"], ["0.75,1", "1.25"]])
def test_scales_are_read_as_people_write_them(text: list[str]):
    assert parse_scales(text) == (0.75, 1, 1.25)


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


def rectangle(path: Path, left: float, bottom: float, right: float, top: float) -> Path:
    """A polygon in EPSG:25832 as GeoJSON."""
    ring = [[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::25832"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]}))
    return path


def test_outside_of_an_area_is_nodata_and_nothing_is_inferred(rgb, pointwise, tmp_path):
    model = pointwise()
    scene = rgb("a.tif", nodata=None)
    predict(scene, "--out", tmp_path / "all")
    # columns 10 to 30 and rows 20 to 40 of 0.5 m pixels from 500000, 5400000
    area = rectangle(tmp_path / "area.geojson", 500_005, 5_399_980, 500_015, 5_399_990)
    seen: list[int] = []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    predict(scene, "--out", tmp_path / "part", "--area", area)
    with rasterio.open(tmp_path / "all/a_classes.tif") as whole, rasterio.open(tmp_path / "part/a_classes.tif") as part:
        classes, found = whole.read(1), part.read(1)
    inside = np.zeros((80, 90), bool)
    inside[20:40, 10:30] = True
    assert np.array_equal(found[inside], classes[inside])
    assert (found[~inside] == IGNORE).all()
    # of the four windows of 64, at rows 0 and 16 and columns 0 and 26, all reach into it; of a smaller area two do
    assert sum(seen) == 4
    seen.clear()
    small = rectangle(tmp_path / "small.geojson", 500_005, 5_399_980, 500_010, 5_399_990)
    predict(scene, "--out", tmp_path / "small", "--area", small)
    assert sum(seen) == 2
    with pytest.raises(RasterError, match="does not overlap|no polygon|outside"):
        predict(scene, "--out", tmp_path / "none", "--area", rectangle(tmp_path / "far.geojson", 0, 0, 9, 9))


def test_info_tells_what_our_own_maps_are(rgb, pointwise, tmp_path, capsys):
    predict(rgb("a.tif"), "--out", tmp_path / "maps", "--confidence")
    capsys.readouterr()
    run("info", tmp_path / "maps/a_classes.tif", "--json")
    found = json.loads(capsys.readouterr().out)
    schema = PRESETS["vaihingen"]
    assert found["kind"] == "class map" and (found["rows"], found["columns"]) == (80, 90)
    assert found["classes"] == {
        name: "#" + bytes(colour).hex() for name, colour in zip(schema.classes, schema.colours, strict=True)
    }
    assert found["classes"]["building"] == "#0000ff"
    assert found["made_by"]["MODEL"] == "resnet18_biformer + unet_fusion"
    assert (found["made_by"]["MODEL_FILE"], found["made_by"]["PREDICTION_WINDOW"]) == ("pointwise.ckpt", "64")
    run("info", tmp_path / "maps/a_confidence.tif")
    shown = capsys.readouterr().out
    assert "map of confidence" in shown and "value / 250" in shown and "PREDICTION_OVERLAP: 0" in shown


@pytest.mark.parametrize(
    "argv",
    [
        ["predict", "SCENE", "--checkpoint", "MODEL", "--out", "OUT"],
        ["evaluate", "--checkpoint", "MODEL", "--scene", "SCENE", "--label", "LABEL", "--out", "OUT/m.json"],
        ["tile", "SCENE", "--labels", "LABEL", "--classes", "vaihingen", "--split", "train", "--out", "OUT"],
        ["tile", "SCENE", "--labels", "LABEL", "--classes", "vaihingen", "--split", "blocks:0.5,0.5,0", "--out", "OUT"],
        ["explain", "SCENE", "--checkpoint", "MODEL", "--at", "40,30", "--pixels", "--out", "OUT/r.png"],
        ["export", "--checkpoint", "MODEL", "--out", "OUT/m.onnx"],
    ],
    ids=lambda argv: argv[0],
)
@pytest.mark.parametrize("window", [0, -64])
def test_a_window_of_no_pixels_is_refused_by_every_command(
    rgb, write_raster, checkpoint, tmp_path, capsys, argv, window
):
    label = write_raster("label.tif", np.zeros((80, 90), np.uint8))
    given = {"SCENE": str(rgb()), "LABEL": str(label), "MODEL": str(checkpoint)}
    filled = [given.get(part, part.replace("OUT", str(tmp_path / "out"))) for part in argv]
    assert main([*filled, f"--window={window}"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"rs-biformer {argv[0]}: window is {window} pixels; it must be 1 or more")
    assert len(said) == 1  # and no progress bar that nothing follows
    assert not list(tmp_path.glob("out/*"))


def test_info_shows_several_rasters_as_one_scene(rgb, write_raster, capsys):
    place = Affine(1, 0, 500_000, 0, -1, 5_400_000)
    dsm = write_raster("dsm.tif", np.ones((1, 40, 45), np.float32), transform=place, descriptions=("height",))
    run("info", rgb(), dsm, "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["rows"], found["dtype"], found["resampled"]) == ("scene", 80, "float32", [str(dsm)])
    assert found["bands"] == ["red", "green", "blue", "height"]


def test_info_refuses_what_is_nothing(tmp_path):
    with pytest.raises(RasterError):
        run("info", tmp_path / "nowhere.tif")
