"""Backbones that are not ours, from training to a map, a file for QGIS and a picture of the attention."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from tiny_index import write_tiny_index

from rs_biformer.checkpoint import load_checkpoint
from rs_biformer.explain import explain, explain_pixel
from rs_biformer.export import export_onnx
from rs_biformer.nn.encoders.library import weights_of
from rs_biformer.nn.meta_device import without_memory
from rs_biformer.nn.model import create_model
from rs_biformer.predict import predict_scene
from rs_biformer.raster.scene import Scene
from rs_biformer.train.config import DataConfig, ModelConfig, TrainConfig, parse
from rs_biformer.train.optim import create_optimizer
from rs_biformer.train.run import train

BACKBONES = {
    "vision transformer": ("test_vit", {"width": 32}),
    "hybrid of a ConvNeXt": ("hybrid", {"cnn": "test_convnext", "width": 32, "depths": [1, 1, 1, 1]}),
}


CONFIGS = Path(__file__).parents[1] / "configs" / "transformers"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_for_transformers_can_be_built(path):
    config = parse(["--config", str(path)])
    arguments = config.model.arguments
    if "lora" in arguments:
        pytest.importorskip("peft")
    network = without_memory(
        lambda: create_model(config.model.encoder, config.model.decoder, classes=6, in_channels=4, **arguments)
    )
    assert len(create_optimizer(network, config.optimizer).param_groups) > 1
    assert config.model.weights.lstrip(".") in weights_of(config.model.encoder)


@pytest.fixture(scope="module", params=BACKBONES)
def trained(request, tmp_path_factory):
    """A network of random weights after two steps, and one of its scenes."""
    folder = tmp_path_factory.mktemp("backbone")
    encoder, arguments = BACKBONES[request.param]
    index = write_tiny_index(folder / "scenes", {"a": "train", "b": "val"})
    config = TrainConfig(
        model=ModelConfig(encoder=encoder, arguments=arguments),
        data=DataConfig(index=str(index), batch_size=2, workers=0, samples_per_epoch=4),
        trainer={"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        out=str(folder / "run"),
        images_every=0,
        loggers=[],
    )
    train(config)
    return folder / "run" / "best.ckpt", folder / "scenes" / "a.tif"


def test_it_trains_predicts_and_exports(trained, tmp_path):
    checkpoint, scene = trained
    model = load_checkpoint(checkpoint)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    predict_scene(model, scene, tmp_path / "map.tif", classes=model.schema)
    with rasterio.open(tmp_path / "map.tif") as drawn, rasterio.open(scene) as source:
        assert (drawn.height, drawn.width, drawn.crs) == (source.height, source.width, source.crs)
        assert set(np.unique(drawn.read(1))) <= {*range(len(model.schema)), 255}
    pytest.importorskip("onnxruntime")
    assert export_onnx(model, tmp_path / "model.onnx", window=64).agreement.ties == 0


def test_its_attention_is_explained(trained, tmp_path):
    checkpoint, scene = trained
    model = load_checkpoint(checkpoint)
    with Scene(scene) as opened:
        routings = explain(model, opened, (20, 30), tmp_path / "picture.png", pixels=True, window=64)
    assert (tmp_path / "picture.png").stat().st_size > 0
    for routing in routings:
        assert routing.attention.sum((1, 2)) == pytest.approx(1, abs=1e-4)


def test_the_attention_of_a_plain_transformer_is_that_of_its_last_block():
    """Worked out again from queries and keys of the last block, without its class and register tokens."""
    from tiny_checkpoint import tiny_meta

    from rs_biformer.checkpoint import TrainedModel

    torch.manual_seed(0)
    meta = tiny_meta("test_vit", model_arguments={"width": 16})
    model = TrainedModel(meta.create_network(), meta)
    image, valid = torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8), torch.ones(64, 96, dtype=torch.bool)
    seen = []
    block = model.network.encoder.transformer.blocks[-1].attn
    block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    (routing,) = explain_pixel(model, image, valid, row=40, col=70)
    heads, (x,) = block.num_heads, seen
    with torch.inference_mode():
        q, k, _ = block.qkv(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)[:, 0]
        q, k = block.q_norm(q), block.k_norm(k)
    beside = x.shape[1] - 4 * 6
    row, col = 40 // 16, 70 // 16
    logits = (q[:, beside + row * 6 + col, None] * k[:, beside:]).sum(-1) * q.shape[-1] ** -0.5
    expected = logits.softmax(-1).view(heads, 4, 6).numpy()
    np.testing.assert_allclose(routing.attention, expected, rtol=1e-4, atol=1e-6)
    assert (routing.token, routing.region, routing.stride) == ((row, col), (4, 6), 16)
    assert block.fused_attn == type(block)(64, num_heads=2).fused_attn
