"""What tells one run from another, so that no map is ever put together from two."""

import os
from dataclasses import replace

import numpy as np
import pytest
import rasterio.shutil
import torch
from range_server import serving
from torch import nn

from rs_biformer.nn.attention.bra import BiLevelRoutingAttention
from rs_biformer.nn.normalise import Normalisation
from rs_biformer.predict.forward import hardware
from rs_biformer.predict.plan import make_plan
from rs_biformer.predict.recipe import Recipe
from rs_biformer.predict.resume import fingerprint, model_identity
from rs_biformer.raster.remote import local_file, remote_state
from rs_biformer.raster.scene import Scene

RECIPE = Recipe(4, precision="32")


def network(seed: int = 0, **changes: object) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, **({"kernel_size": 3, "padding": 1} | changes)), nn.BatchNorm2d(4)).eval()


@pytest.fixture
def scene(write_raster):
    return write_raster("scene.tif", np.arange(3 * 20 * 30, dtype=np.uint8).reshape(3, 20, 30))


def of(scene, model=None, recipe: Recipe = RECIPE, hardware: str = "cpu", **plan: object):
    """The fingerprint of a prediction of a scene, given as a path or opened."""
    scene = scene if isinstance(scene, Scene) else Scene(scene)
    facts = {"planes": 4, "bands": 3, "itemsize": 1, "window": 16} | plan
    return fingerprint(scene, model or network(), make_plan(scene.height, scene.width, **facts), recipe, hardware)


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in one | other if one.get(name) != other.get(name)}


def test_a_model_built_again_from_the_same_weights_is_the_same_one():
    assert model_identity(network()) == model_identity(network())
    assert model_identity(network()).startswith("Sequential ")


def test_where_a_model_lies_in_memory_does_not_matter():
    assert model_identity(network().to(memory_format=torch.channels_last)) == model_identity(network())


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: network(seed=1), id="weights"),
        pytest.param(lambda: network(padding_mode="reflect"), id="a setting without weights"),
        pytest.param(lambda: network().double(), id="dtype"),
        pytest.param(lambda: network().train(), id="training mode"),
        pytest.param(lambda: nn.Sequential(network()), id="names"),
        pytest.param(lambda: nn.Sequential(*network(), nn.ReLU()), id="a part without weights"),
    ],
)
def test_a_model_that_differs_in(other):
    assert model_identity(other()) != model_identity(network())


def test_attention_to_other_regions_is_another_model_although_its_weights_are_equal():
    found = []
    for topk in (1, 4):
        torch.manual_seed(0)
        found.append(model_identity(BiLevelRoutingAttention(16, 2, regions=4, topk=topk)))
    assert found[0] != found[1]


def test_buffers_that_are_not_saved_count_as_well():
    found = []
    for value in (1.0, 2.0):
        model = network()
        model.register_buffer("scale", torch.tensor(value), persistent=False)
        found.append(model_identity(model))
    assert found[0] != found[1]


def test_one_changed_bit_of_one_weight_is_seen():
    model = network()
    model[0].weight.data.view(torch.int32)[3, 2, 1, 0] ^= 1
    assert model_identity(model) != model_identity(network())


def test_a_plain_callable_has_no_identity_unless_it_brings_one(scene):
    def model(batch):
        return batch

    assert model_identity(model) is None
    assert of(scene, model) is None
    model.fingerprint = "thresholds of 3 May"
    assert of(scene, model)["model"] == "thresholds of 3 May"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"window": 32, "overlap": 0.0}, "window"),
        ({"overlap": 0.25}, "overlap"),
        ({"blend": "average"}, "blend"),
        ({"batch_size": 1}, "batch size"),
        ({"recipe": replace(RECIPE, precision="bf16")}, "precision"),
        ({"recipe": replace(RECIPE, keep_regions=True)}, "regions"),
        ({"recipe": replace(RECIPE, tta="d4")}, "tta"),
        ({"recipe": replace(RECIPE, scales=(1.0, 1.5))}, "scales"),
        ({"recipe": replace(RECIPE, compile=True)}, "compile"),
        ({"recipe": replace(RECIPE, passes="fused")}, "passes"),
        ({"recipe": replace(RECIPE, classes=5)}, "classes"),
        ({"recipe": replace(RECIPE, normalisation=Normalisation([1.0], [2.0]))}, "normalisation"),
        ({"hardware": "NVIDIA H100"}, "hardware"),
    ],
)
def test_an_option_that_changes_bytes_is_told_by_its_name(scene, changes: dict, name: str):
    one, other = of(scene), of(scene, **changes)
    assert name in differing(one, other) <= {name, "overlap", "rows together"}
    assert all(isinstance(value, str) for value in one.values())


def test_a_scene_that_was_written_again_is_another_scene(scene):
    one = of(scene)
    os.utime(scene, ns=(0, 1_700_000_000_123_456_789))
    other = of(scene)
    assert differing(one, other) == {f"file {scene.resolve()}"}
    assert other[f"file {scene.resolve()}"].endswith(" bytes of 2023-11-14 22:13:20.123456789")


def test_the_choice_and_order_of_bands_is_seen(scene):
    found = [of(Scene(scene, bands=bands)) for bands in ([1, 2, 3], [3, 2, 1])]
    assert differing(*found) == {"bands"}


def test_a_scene_read_at_another_pixel_size_is_another_scene(scene):
    assert differing(of(scene), of(Scene(scene, gsd=0.25))) >= {"size", "transform"}


def test_a_mask_beside_the_raster_and_the_sources_of_a_vrt_belong_to_the_scene(scene, tmp_path):
    vrt = tmp_path / "scene.vrt"
    rasterio.shutil.copy(scene, vrt, driver="VRT")
    one = of(vrt)
    os.utime(scene, ns=(0, 0))
    assert differing(one, of(vrt)) == {f"file {scene.resolve()}"}
    bare = of(scene)
    with rasterio.open(scene, "r+") as raster, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        raster.write_mask(np.zeros((20, 30), np.uint8))
    os.utime(scene, ns=(0, 0))
    mask = tmp_path / "scene.tif.msk"
    assert differing(bare, of(scene)) == {f"file {mask.resolve()}"}


def test_a_relative_path_means_the_file_it_leads_to(scene, monkeypatch):
    monkeypatch.chdir(scene.parent)
    assert of(scene.name) == of(scene)


def test_the_statistics_of_a_normalisation_identify_it():
    assert model_identity(Normalisation([1.0], [2.0])) != model_identity(Normalisation([1.0], [3.0]))


def test_one_thread_and_several_are_different_hardware():
    assert [hardware(torch.device("cpu"), threads) for threads in (1, 2, 4)] == [
        "cpu, one thread",
        "cpu, several threads",
        "cpu, several threads",
    ]


def test_an_exported_model_tells_its_runtime_and_where_it_runs(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from tiny_checkpoint import pointwise_model

    from rs_biformer.export import export_onnx
    from rs_biformer.predict import onnx

    model = onnx.OnnxModel(export_onnx(pointwise_model(), tmp_path / "model.onnx").path)
    runtime = f"onnxruntime {onnxruntime.__version__} (CPUExecutionProvider)"
    for one in (model, None):
        assert onnx.hardware("auto", 1, one) == f"cpu, one thread, {runtime}"
        assert onnx.hardware("cpu", 2, one) == f"cpu, several threads, {runtime}"


def test_a_file_behind_a_url_that_changes_is_another_scene(scene):
    with serving(scene.parent) as address:
        url = f"{address}/{scene.name}"
        one = of(url)
        assert of(url) == one
        os.utime(scene, (1_700_000_000, 1_700_000_000))
        other = of(url)
        assert differing(one, other) == {f"file /vsicurl/{url}"}
        assert other[f"file /vsicurl/{url}"].startswith(f"{scene.stat().st_size} bytes, ETag ")
        assert other[f"file /vsicurl/{url}"].endswith("of Tue, 14 Nov 2023 22:13:20 GMT")


def test_a_signature_of_a_url_is_no_part_of_a_fingerprint(scene):
    with serving(scene.parent) as address:
        urls = [f"{address}/{scene.name}?sig={secret}" for secret in ("one", "two")]
        assert of(urls[0]) == of(urls[1])


def test_a_fingerprint_holds_no_key_whatever_it_is_called_and_tells_queries_apart(scene):
    with serving(scene.parent) as address:
        one, other = (of(f"{address}/{scene.name}?layer={number}&subscription=KEY") for number in (1, 2))
    assert "KEY" not in str(one) and "layer" not in str(one)
    assert len(differing(one, other)) == 2  # a file that is there only for the one, and only for the other


def test_a_server_that_tells_nothing_is_said_to():
    assert remote_state("http://127.0.0.1:1/a.tif") == "in a state that 127.0.0.1:1 does not tell"


@pytest.mark.parametrize("name", ["/vsizip/{}/inner/a.tif", "/vsizip/{{{}}}/a.tif", 'NETCDF:"{}":height', "{}"])
def test_a_part_of_an_archive_is_known_by_the_archive(tmp_path, name):
    path = tmp_path / "all.zip"
    path.write_bytes(b"x")
    assert local_file(name.format(path)) == path
    assert local_file(name.format(tmp_path / "none.zip")) is None
