"""Several models as one, against averaging by hand."""

from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from tiny_checkpoint import pointwise_model, tiny_meta, write_checkpoint
from torch import nn

from rs_biformer.checkpoint import TrainedModel, load_checkpoint
from rs_biformer.cli import main
from rs_biformer.errors import ConfigError
from rs_biformer.jobs import load_model, map_scenes, publish
from rs_biformer.predict import Ensemble, predict_scene
from rs_biformer.predict.mapping import map_scene
from rs_biformer.predict.options import Options
from rs_biformer.predict.resume import model_identity
from rs_biformer.schema import ClassSchema

META = tiny_meta(window=32)


def model(seed: int, **changes: object) -> TrainedModel:
    torch.manual_seed(seed)
    meta = replace(META, **changes)
    network = nn.Conv2d(len(meta.bands), len(meta.schema), 1)
    nn.init.normal_(network.weight, std=3)
    return TrainedModel(network, meta)


@pytest.fixture
def scene(write_raster):
    return write_raster("scene.tif", PIXELS, photometric="rgb")


PIXELS = np.random.default_rng(0).integers(0, 256, (3, 45, 70)).astype(np.uint8)


def by_hand(*models):
    """Mean probabilities (K, h, w) and the share of the most that the models could differ, (h, w), in float64."""
    with torch.inference_mode():
        each = [one(torch.from_numpy(PIXELS)[None])[0].double().softmax(0).numpy() for one in models]
    mean = np.mean(each, 0)
    divergence = np.mean([(one * np.log(one / mean)).sum(0) for one in each], 0)
    return mean, divergence / np.log(min(len(models), len(mean)))


def read(path):
    with rasterio.open(path) as source:
        found = source.read()
    return found[0] if len(found) == 1 else found


def mapped(ensemble, scene, folder, **options):
    names = ("classes", "probabilities", "disagreement")
    paths = {name: folder / f"{name}.tif" for name in names}
    chosen = Options.of(window=32, probability_dtype="float16", precision="32", device="cpu", **options)
    map_scene(ensemble, scene, paths, classes=6, options=chosen)
    return {name: read(path) for name, path in paths.items()}


@pytest.mark.parametrize("count", [2, 3, 7])
def test_probabilities_are_the_mean_and_disagreement_is_the_mutual_information(count, scene, tmp_path):
    models = [model(seed) for seed in range(count)]
    found = mapped(Ensemble(models), scene, tmp_path)
    mean, disagreement = by_hand(*models)
    np.testing.assert_allclose(found["probabilities"], mean, atol=1e-3)
    np.testing.assert_allclose(found["disagreement"], disagreement, atol=1e-3)
    assert disagreement.max() > 0.3 and (found["classes"] == mean.argmax(0)).mean() > 0.999


def test_models_that_are_the_same_do_not_disagree_and_certain_ones_do_completely(scene, tmp_path):
    found = mapped(Ensemble([model(0), model(0)]), scene, tmp_path)
    assert found["disagreement"].max() < 1e-3
    sure = [model(0), model(0)]
    for index, one in enumerate(sure):
        nn.init.zeros_(one.network.weight)
        with torch.no_grad():
            one.network.bias.copy_(100 * torch.eye(6)[index])
    np.testing.assert_allclose(mapped(Ensemble(sure), scene, tmp_path)["disagreement"], 1, atol=1e-3)


def test_views_are_averaged_in_each_model_before_the_models(scene, tmp_path):
    models = [model(0), model(1)]
    found = mapped(Ensemble(models), scene, tmp_path, tta="d4")
    np.testing.assert_allclose(found["disagreement"], by_hand(*models)[1], atol=1e-3)  # pointwise: views are alike


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Two models of torch and the same two as ONNX."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from rs_biformer.export import export_onnx

    folder, models = tmp_path_factory.mktemp("onnx"), [model(0), model(1)]
    return models, [export_onnx(one, folder / f"{place}.onnx").path for place, one in enumerate(models)]


@pytest.mark.parametrize("kinds", ["to", "ot", "oo"])
def test_torch_and_exported_models_are_averaged_alike(kinds, exported, scene, tmp_path):
    models, files = exported
    members = [load_model(files[place]).model if kind == "o" else models[place] for place, kind in enumerate(kinds)]
    found = mapped(Ensemble(members), scene, tmp_path)
    mean, disagreement = by_hand(*models)
    np.testing.assert_allclose(found["probabilities"], mean, atol=1e-3)
    np.testing.assert_allclose(found["disagreement"], disagreement, atol=1e-3)


def test_the_fingerprint_tells_every_model_and_their_order():
    same, other = Ensemble([model(0), model(1)]), Ensemble([model(0), model(2)])
    assert model_identity(same) == model_identity(Ensemble([model(0), model(1)]))
    assert len({model_identity(one) for one in (same, other, Ensemble([model(1), model(0)]))}) == 3
    assert model_identity(Ensemble([model(0), lambda raw: raw])) is None


class Stopped(Exception): ...


def test_an_interrupted_ensemble_goes_on_and_another_is_refused(write_raster, tmp_path):
    tall = np.random.default_rng(0).integers(0, 256, (3, 300, 40)).astype(np.uint8)
    scene = write_raster("scene.tif", tall, photometric="rgb")
    options = dict(classes=6, window=32, batch_size=1, device="cpu", resume=True)

    def stop(done, total):
        if done > total // 2:
            raise Stopped

    pair = [model(0), model(1)]
    whole = predict_scene(Ensemble(pair), scene, tmp_path / "whole.tif", **options).read_bytes()
    with pytest.raises(Stopped):
        predict_scene(Ensemble(pair), scene, tmp_path / "map.tif", **options, progress=stop)
    with pytest.raises(ConfigError, match="model"):
        predict_scene(Ensemble([model(0), model(3)]), scene, tmp_path / "map.tif", **options)
    assert predict_scene(Ensemble(pair), scene, tmp_path / "map.tif", **options).read_bytes() == whole


def test_the_plan_counts_what_averaging_takes(scene, tmp_path):
    plans = []
    for members in ([model(0)], [model(0), model(1)]):
        one = Ensemble(members) if len(members) > 1 else members[0]
        predict_scene(one, scene, tmp_path / "map.tif", classes=6, window=32, on_plan=plans.append)
    assert plans[1].memory.batches > plans[0].memory.batches


def test_members_left_in_training_mode_predict_in_eval_mode_and_have_theirs_again(scene, tmp_path):
    pair = [model(0), model(1)]
    pair[1].train()
    predict_scene(Ensemble(pair), scene, tmp_path / "map.tif", classes=6, window=32)
    assert [one.training for one in pair] == [False, True]


def test_the_command_averages_files_of_every_form(write_raster, tmp_path, capsys):
    meta = tiny_meta(encoder="lcnet_035", decoder="segformer")
    one = write_checkpoint(tmp_path / "one.ckpt", meta)
    publish(one, tmp_path / "two.safetensors")
    scene = write_raster("scene.tif", PIXELS, photometric="rgb")
    models = ["--checkpoint", str(one), str(tmp_path / "two.safetensors")]
    # Scenes may follow the models or go before them.
    assert main(["predict", *models, str(scene), "--out", str(tmp_path / "a"), "--disagreement"]) == 0
    assert main(["predict", str(scene), *models, "--out", str(tmp_path / "b"), "--disagreement"]) == 0
    for layer in ("classes", "disagreement"):
        first, second = (read(tmp_path / folder / f"scene_{layer}.tif") for folder in "ab")
        np.testing.assert_array_equal(first, second)
    assert not read(tmp_path / "a" / "scene_disagreement.tif").any()  # they are the same model
    with rasterio.open(tmp_path / "a" / "scene_classes.tif") as source:
        assert source.tags()["MODEL_FILE"] == "one.ckpt, two.safetensors"
    assert (tmp_path / "a" / "scene_disagreement.qml").is_file()
    capsys.readouterr()
    assert main(["predict", *models, str(one), str(scene), "--out", str(tmp_path / "c")]) == 2
    assert "one.ckpt is given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"schema": ClassSchema("other", tuple("abcdef"), META.schema.colours)},
            "classes are a, b, c, d, e, f and imp",
        ),
        ({"bands": ("nir", "red", "green")}, "bands are nir, red, green and red, green, blue"),
        ({"gsd": 0.6}, "metres per pixel are 0.6 and 0.5"),
        ({"gsd": None}, "metres per pixel are unknown and 0.5"),
        ({"dtype": "uint16", "gsd": 1.0}, "data type are uint16 and uint8; metres per pixel are 1.0 and 0.5"),
    ],
)
def test_models_that_differ_are_refused_with_what_differs(changes, said, scene, tmp_path):
    with pytest.raises(ConfigError, match=said) as caught:
        map_scenes(scene, [model(0), model(1, **changes)], tmp_path / "maps")
    assert "\n" not in str(caught.value) and not (tmp_path / "maps").exists()


def test_statistics_networks_and_windows_may_differ(scene, tmp_path):
    other = model(1, mean=(1.0, 2.0, 3.0), window=48, gsd=0.51)
    report = map_scenes(scene, [model(0), other], tmp_path / "maps", layers=["disagreement"])
    assert report.mapped[0].maps["disagreement"].is_file()


def test_one_model_in_a_list_is_that_model(tmp_path):
    path = write_checkpoint(tmp_path / "one.ckpt", tiny_meta(encoder="lcnet_035", decoder="segformer"))
    assert isinstance(load_model([path]).model, TrainedModel) and load_checkpoint(path).meta.window == 64
    assert isinstance(load_model([pointwise_model()]).model, TrainedModel)
    with pytest.raises(ConfigError, match="two models or more"):
        Ensemble([pointwise_model()])
