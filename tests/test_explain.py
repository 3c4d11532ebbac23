"""The explanation is worked out beside the network; what the network itself puts out is the truth."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoint import pointwise_model, tiny_meta

from rs_biformer.checkpoint import TrainedModel
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.explain import explain, explain_pixel
from rs_biformer.nn.attention.bra import BiLevelRoutingAttention
from rs_biformer.raster.scene import Scene


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    torch.manual_seed(0)
    meta = tiny_meta()
    return TrainedModel(meta.create_network(), meta)


@pytest.fixture(scope="module")
def window() -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    return image, torch.ones(64, 64, dtype=torch.bool)


def test_the_attention_reproduces_the_output_of_each_module_at_the_token(model, window):
    inputs, outputs = {}, {}

    def keep(name: str):
        def hook(module, args, output) -> None:
            inputs[name], outputs[name] = args[0], output

        return hook

    hooks = [
        module.register_forward_hook(keep(name))
        for name, module in model.network.named_modules()
        if isinstance(module, BiLevelRoutingAttention)
    ]
    routings = explain_pixel(model, *window, row=37, col=10)
    for hook in hooks:
        hook.remove()
    modules = dict(model.network.named_modules())
    assert [routing.stride for routing in routings] == [4, 8, 16, 32]
    with torch.inference_mode():
        for routing in routings:
            module, x = modules[routing.name], inputs[routing.name]
            row, col = routing.token
            value = module.qkv(x).chunk(3, -1)[2]
            heads = value[0].reshape(-1, module.num_heads, value.shape[-1] // module.num_heads)
            weights = torch.from_numpy(routing.attention).flatten(1)
            attended = torch.einsum("mn,nmd->md", weights, heads).flatten()
            local = module.local(value.permute(0, 3, 1, 2))[0, :, row, col]
            found = module.project(attended + local)
            torch.testing.assert_close(found, outputs[routing.name][0, row, col], atol=1e-4, rtol=1e-4)


def test_attention_lies_in_the_routed_regions_and_sums_to_one(model, window):
    for routing in explain_pixel(model, *window, row=63, col=0):
        np.testing.assert_allclose(routing.attention.sum((1, 2)), 1, atol=1e-5)
        inside = np.zeros(routing.attention.shape[1:], bool)
        for row, col in routing.routed:
            inside[row : row + routing.region[0], col : col + routing.region[1]] = True
        assert (routing.attention[:, ~inside] == 0).all()
        assert (routing.attention[:, inside] > 0).all()
        assert routing.token == (63 // routing.stride, 0)
        assert 0 < routing.routed_share <= 1


def test_the_hooks_are_gone_afterwards(model, window):
    explain_pixel(model, *window, row=1, col=1)
    assert not any(module._forward_pre_hooks for module in model.network.modules())


@pytest.fixture
def scene(write_raster) -> Scene:
    image = np.random.default_rng(0).integers(1, 256, (3, 100, 150)).astype(np.uint8)
    image[:, :10, :10] = 0
    return Scene(write_raster("scene.tif", image, nodata=0, photometric="rgb"))


def test_a_place_by_map_coordinates_and_by_pixels_is_the_same(model, scene, tmp_path):
    x, y = scene.bounds.left + 120.5 * 0.5, scene.bounds.top - 80.5 * 0.5
    by_map = explain(model, scene, (x, y), tmp_path / "a.png")
    by_pixel = explain(model, scene, (120, 80), tmp_path / "b.png", pixels=True)
    for one, other in zip(by_map, by_pixel, strict=True):
        np.testing.assert_array_equal(one.attention, other.attention)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 3 * picture.height  # the window and four stages side by side
        assert len(np.unique(np.asarray(picture))) > 50
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("at", [(-1, 5), (150, 5), (5, 100)])
def test_a_place_outside_the_scene_is_refused(model, scene, tmp_path, at):
    with pytest.raises(RasterError, match="lies outside"):
        explain(model, scene, at, tmp_path / "a.png", pixels=True)


def test_a_place_without_data_is_refused(model, scene, tmp_path):
    with pytest.raises(RasterError, match="no data at 5, 5"):
        explain(model, scene, (5, 5), tmp_path / "a.png", pixels=True)


def test_a_network_without_routing_is_refused(scene, tmp_path):
    model = pointwise_model()
    model.network.encoder = torch.nn.Identity()
    with pytest.raises(ConfigError, match="no bi-level routing attention"):
        explain(model, scene, (50, 50), tmp_path / "a.png", pixels=True)


def test_a_scene_smaller_than_the_window_is_explained(model, write_raster, tmp_path):
    image = np.random.default_rng(0).integers(1, 256, (3, 20, 30)).astype(np.uint8)
    with Scene(write_raster("small.tif", image)) as small:
        assert len(explain(model, small, (29, 19), tmp_path / "a.png", pixels=True)) == 4
