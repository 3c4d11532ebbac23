import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score
from tiny_index import SCHEMA
from torch import nn

from rs_biformer.checkpoint import CheckpointMeta
from rs_biformer.errors import ConfigError
from rs_biformer.nn import losses
from rs_biformer.nn.losses import create_loss
from rs_biformer.train.config import OptimizerConfig, ScheduleConfig
from rs_biformer.train.task import PROTOCOL, SegmentationTask


class Stage:
    """The little of a Trainer that a validation epoch looks at."""

    sanity_checking = False


@pytest.fixture
def task(monkeypatch) -> SegmentationTask:
    """A task whose network is the identity: the first three bands are the logits."""
    meta = CheckpointMeta("none", "none", {}, SCHEMA, ("a", "b", "c"), "float32", (0.0,) * 3, (1.0,) * 3, 8, None, "0")
    task = SegmentationTask(
        nn.Identity(), create_loss("cross_entropy"), meta, optimizer=OptimizerConfig(), schedule=ScheduleConfig()
    )
    logged = {}
    monkeypatch.setattr(SegmentationTask, "trainer", Stage())
    monkeypatch.setattr(task, "log", lambda name, value, **options: logged.update({name: float(value)}))
    task.logged = logged
    return task.eval()


def batch(truth: np.ndarray, predicted: np.ndarray) -> dict[str, torch.Tensor]:
    """A batch of windows (B, H, W) for which the identity predicts what is given."""
    image = np.eye(3, dtype=np.float32)[predicted].transpose(0, 3, 1, 2)
    return {
        "image": torch.from_numpy(image * 4),
        "label": torch.from_numpy(truth.astype(np.uint8)),
        "valid": torch.ones(truth.shape, dtype=torch.bool),
    }


def test_figures_come_from_one_confusion_over_all_batches(task):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (5, 8, 8))
    truth[3] = 0  # a batch of one class, whose own scores would be far from the whole
    predicted = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 3, truth.shape))
    for part in (slice(0, 2), slice(2, 3), slice(3, 5)):
        task.validation_step(batch(truth[part], predicted[part]), 0)
    task.on_validation_epoch_end()
    per_class = jaccard_score(truth.ravel(), predicted.ravel(), average=None)
    assert task.logged["val/mean_iou"] == pytest.approx(per_class.mean())
    assert task.logged["val/mean_f1"] == pytest.approx(f1_score(truth.ravel(), predicted.ravel(), average="macro"))
    assert task.logged["val/overall_accuracy"] == pytest.approx((truth == predicted).mean())
    for name, iou in zip(SCHEMA.classes, per_class, strict=True):
        assert task.logged[f"val/iou/{name}"] == pytest.approx(iou)


def test_a_class_that_does_not_occur_is_absent_and_not_zero(task):
    truth = np.random.default_rng(0).integers(0, 2, (2, 8, 8))
    task.validation_step(batch(truth, truth), 0)
    task.on_validation_epoch_end()
    assert task.logged["val/mean_iou"] == 1.0
    assert "val/iou/bright" not in task.logged and task.logged["val/iou/dark"] == 1.0


def test_ignored_pixels_change_no_figure(task):
    truth = np.random.default_rng(0).integers(0, 3, (2, 8, 8))
    predicted = truth.copy()
    truth[:, :, :4] = 255
    predicted[:, :, :4] = 0
    task.validation_step(batch(truth, predicted), 0)
    task.on_validation_epoch_end()
    assert task.logged["val/mean_iou"] == task.logged["val/overall_accuracy"] == 1.0


def test_each_validation_starts_from_nothing(task):
    truth = np.random.default_rng(0).integers(0, 3, (2, 8, 8))
    task.validation_step(batch(truth, (truth + 1) % 3), 0)
    task.on_validation_epoch_end()
    assert task.logged["val/mean_iou"] == 0
    task.validation_step(batch(truth, truth), 0)
    task.on_validation_epoch_end()
    assert task.logged["val/mean_iou"] == 1


def test_the_validation_loss_is_a_mean_over_labelled_pixels(task):
    truth = np.random.default_rng(0).integers(0, 3, (4, 8, 8))
    truth[3, 1:] = 255
    predicted = np.random.default_rng(1).integers(0, 3, truth.shape)
    whole = batch(truth, predicted)
    expected = torch.nn.functional.cross_entropy(whole["image"], whole["label"].long(), ignore_index=255)
    for part in (slice(0, 3), slice(3, 4)):
        task.validation_step(batch(truth[part], predicted[part]), 0)
    task.on_validation_epoch_end()
    assert task.logged["val/loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_checkpoint_carries_the_figures_and_their_protocol_until_the_weights_change(task):
    truth = np.random.default_rng(0).integers(0, 3, (2, 8, 8))
    task.validation_step(batch(truth, truth), 0)
    task.on_validation_epoch_end()
    saved = {}
    task.on_save_checkpoint(saved)
    assert saved["rs_biformer"]["metrics"]["mean_iou"] == 1.0 and saved["rs_biformer"]["protocol"] == PROTOCOL
    task.on_train_batch_start({}, 0)
    task.on_save_checkpoint(saved)
    assert saved["rs_biformer"]["metrics"] == {} and saved["rs_biformer"]["protocol"] == ""


def test_invalid_pixels_reach_the_network_as_zero(task):
    windows = batch(np.zeros((1, 8, 8), int), np.ones((1, 8, 8), int))
    windows["image"][:, :, 0, 0] = float("nan")
    windows["valid"][:, 0, 0] = False
    assert task(windows["image"], windows["valid"])[0, :, 0, 0].tolist() == [0, 0, 0]


class TwoHeads(nn.Module):
    """Gives its input as logits, and half of it from the auxiliary head."""

    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Identity()

    def forward(self, x):
        return x

    def forward_with_auxiliary(self, x):
        return x, x / 2


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_the_auxiliary_head_adds_its_share_of_the_same_loss_in_training_alone(task, weight):
    truth = np.random.default_rng(0).integers(0, 3, (2, 8, 8))
    windows = batch(truth, (truth + 1) % 3)
    with_head = SegmentationTask(
        TwoHeads(), task.loss, task.meta, optimizer=OptimizerConfig(), schedule=ScheduleConfig(), auxiliary=weight
    )
    label = windows["label"].long()
    first, second = (torch.nn.functional.cross_entropy(windows["image"] / divisor, label) for divisor in (1, 2))
    torch.testing.assert_close(with_head.training_loss(windows), first + weight * second)
    torch.testing.assert_close(task.training_loss(windows), first)
    torch.testing.assert_close(with_head(windows["image"], windows["valid"]), windows["image"])


def test_labels_that_do_not_fit_are_named_where_the_loss_could_only_be_nan(task, monkeypatch):
    monkeypatch.setattr(losses, "_can_be_counted", lambda device: False)  # as on a GPU
    windows = batch(np.zeros((1, 8, 8), int), np.zeros((1, 8, 8), int))
    windows["label"][0, 3, 3] = 9
    with pytest.raises(ConfigError, match="class index 9, the logits have classes 0 to 2"):
        task.training_step(windows, 0)
