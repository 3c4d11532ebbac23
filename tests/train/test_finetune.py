import pytest
import torch
from tiny_checkpoint import tiny_meta, write_checkpoint
from tiny_index import write_tiny_index

from rs_biformer.checkpoint import load_checkpoint
from rs_biformer.errors import CheckpointError
from rs_biformer.nn.model import create_encoder
from rs_biformer.schema import PRESETS, ClassSchema
from rs_biformer.train import run
from rs_biformer.train.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from rs_biformer.train.finetune import begin_from, pretrained_part
from rs_biformer.train.run import train

ENCODER = "mobilenet_v2"
FIRST, LAST = "encoder.features.0.0.weight", "head.weight"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.ckpt", tiny_meta(ENCODER))


def fresh(**changes):
    meta = tiny_meta(ENCODER, **changes)
    torch.manual_seed(1)
    return meta.create_network(), meta


def test_the_same_network_begins_with_all_weights(trained):
    network, meta = fresh()
    line = begin_from(trained, network, meta)
    expected = load_checkpoint(trained).network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert f"{len(expected)} tensors used, 0 kept" in line


@pytest.mark.parametrize("classes", [("car", "water", "building"), ("tree", "car", "road", "field", "building", "sea")])
def test_classes_of_the_same_name_keep_their_weights(trained, classes):
    schema = ClassSchema("other", classes, tuple((10 * n, 0, 0) for n in range(len(classes))))
    network, meta = fresh(schema=schema)
    untouched = network.state_dict()[LAST].clone()
    begin_from(trained, network, meta)
    before, now = load_checkpoint(trained).network.state_dict()[LAST], network.state_dict()[LAST]
    for row, name in enumerate(classes):
        known = PRESETS["vaihingen"].classes
        wanted = before[known.index(name)] if name in known else untouched[row]
        assert torch.equal(now[row], wanted), name


@pytest.mark.parametrize("bands", [("nir", "red", "green"), ("red", "green", "blue", "nir"), ("red",)])
def test_bands_of_the_same_name_keep_their_weights_and_the_response_its_scale(trained, bands):
    changes = dict(bands=bands, mean=(1.0,) * len(bands), std=(1.0,) * len(bands))
    network, meta = fresh(**changes)
    begin_from(trained, network, meta)
    before, now = load_checkpoint(trained).network.state_dict()[FIRST], network.state_dict()[FIRST]
    scale = 3 / len(bands)
    for channel, name in enumerate(bands):
        known = ("red", "green", "blue")
        wanted = before[:, known.index(name)] if name in known else before.mean(1)
        assert torch.allclose(now[:, channel], wanted * scale), name


def test_published_weights_fill_the_encoder(tmp_path):
    torch.manual_seed(2)
    encoder = create_encoder(ENCODER)
    torch.save(encoder.state_dict(), tmp_path / "published.pth")
    network, meta = fresh()
    line = begin_from(tmp_path / "published.pth", network, meta)
    assert all(torch.equal(value, network.encoder.state_dict()[name]) for name, value in encoder.state_dict().items())
    assert "the decoder is fresh" in line


def test_lightning_checkpoints_of_others_fill_the_encoder_and_its_bands_are_met_by_name(tmp_path):
    encoder = create_encoder(ENCODER)
    torch.save(
        {"state_dict": {f"net.encoder.{k}": v for k, v in encoder.state_dict().items()}}, tmp_path / "other.ckpt"
    )
    changes = dict(bands=("blue", "nir", "green", "red"), mean=(1.0,) * 4, std=(1.0,) * 4)
    network, meta = fresh(**changes)
    line = begin_from(tmp_path / "other.ckpt", network, meta)
    before, now = encoder.state_dict()[FIRST.removeprefix("encoder.")], network.state_dict()[FIRST]
    for channel, place in ((0, 2), (2, 1), (3, 0)):
        torch.testing.assert_close(now[:, channel], before[:, place] * 0.75)
    assert "below net.encoder" in line and "blue, green, red by name, nir from the mean of all 3" in line


def test_weights_may_be_named_and_their_bands_told(monkeypatch):
    encoder = create_encoder(ENCODER)
    monkeypatch.setattr("rs_biformer.nn.model.published_weights", lambda name, weights: encoder.state_dict())
    network, meta = fresh(bands=("nir", "red"), mean=(1.0,) * 2, std=(1.0,) * 2)
    line = begin_from("imagenet", network, meta, weights_bands=["red", "nir", "swir"])
    before, now = encoder.state_dict()[FIRST.removeprefix("encoder.")], network.state_dict()[FIRST]
    torch.testing.assert_close(now, before[:, [1, 0]] * 1.5)
    assert line.startswith("began from imagenet: ")


@pytest.mark.parametrize("encoder", ["resnet18_biformer", "test_vit"])
def test_freezing_spares_what_began_at_random(encoder):
    network = create_encoder(encoder)
    frozen = pretrained_part(network)
    ids = {id(parameter) for parameter in frozen.parameters()}
    left = [name for name, parameter in network.named_parameters() if id(parameter) not in ids]
    assert {name.split(".")[0] for name in left} == {"stages" if encoder != "test_vit" else "levels"}


def test_a_checkpoint_of_another_encoder_is_refused(trained):
    meta = tiny_meta("resnet18")
    with pytest.raises(CheckpointError, match="do not fit resnet18; begin from a checkpoint of the same encoder"):
        begin_from(trained, meta.create_network(), meta)


def test_a_frozen_encoder_stays_as_it_began_and_is_trained_afterwards(tmp_path, monkeypatch):
    index = write_tiny_index(tmp_path / "scenes", {"a": "train", "b": "val"})
    seen = []
    step = run.SegmentationTask.training_step

    def watched(self, batch, batch_idx):
        state = self.model.encoder.state_dict()
        seen.append((self.current_epoch, torch.cat([value.flatten().double() for value in state.values()])))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(run.SegmentationTask, "training_step", watched)
    config = TrainConfig(
        model=ModelConfig(encoder=ENCODER, freeze=1),
        data=DataConfig(index=str(index), batch_size=2, workers=0),
        optimizer=OptimizerConfig(learning_rate=0.01),
        trainer={"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
        out=str(tmp_path / "run"),
        images_every=0,
    )
    train(config)
    first = [state for epoch, state in seen if epoch == 0]
    second = [state for epoch, state in seen if epoch == 1]
    assert all(torch.equal(state, first[0]) for state in [*first, second[0]])
    assert not torch.equal(second[0], second[1])
