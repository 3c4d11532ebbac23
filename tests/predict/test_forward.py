import numpy as np
import pytest
import torch
from in_memory import CLASSES, CPU, brightest_band, looking_around
from torch import Tensor, nn

from rs_biformer.errors import ConfigError, RsBiformerError
from rs_biformer.nn.model import create_model
from rs_biformer.nn.normalise import Normalisation
from rs_biformer.predict import forward
from rs_biformer.predict.backends import eval_mode
from rs_biformer.predict.forward import largest_batch, pick_device, pick_devices, prepare
from rs_biformer.predict.mapping import default_batch
from rs_biformer.predict.recipe import Recipe


def batch(size: int = 6, side: int = 16) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randint(0, 255, (size, 3, side, side), dtype=torch.uint8), torch.rand(size, side, side) > 0.2


def values(recipe: Recipe, model, *arguments: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.stack(list(prepare(recipe, model, CPU).predict(*arguments)))


def one_window() -> tuple[np.ndarray, np.ndarray]:
    return tuple(part[0].numpy() for part in batch(1))


class Small(nn.Module):
    """A device with memory for `most` windows at a time."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.seen = most, []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(len(image))
        if len(image) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return brightest_band(image)


@pytest.mark.parametrize(("most", "fits"), [(8, 6), (3, 3), (2, 2), (1, 1)])
def test_a_batch_is_halved_until_the_device_has_memory_for_it(most: int, fits: int):
    small = Small(most)
    assert largest_batch(prepare(Recipe(CLASSES), small, CPU), 6, *one_window()) == fits
    assert small.seen == [size for size in (6, 3, 2, 1) if size >= fits]


def test_views_of_a_batch_are_tried_as_well():
    worker = prepare(Recipe(CLASSES, tta="flips", disagreement=True), Small(most=1), CPU)
    assert largest_batch(worker, 4, *one_window()) == 1


def test_a_window_that_does_not_fit_is_an_error_that_says_what_to_do():
    with pytest.raises(RsBiformerError, match="one window of 16 pixels does not fit the memory of cpu; take a smaller"):
        largest_batch(prepare(Recipe(CLASSES), Small(most=0), CPU), 4, *one_window())


def test_gpus_take_more_windows_at_a_time():
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert [default_batch(devices) for devices in ([gpu], [gpu, gpu], [cpu], [gpu, cpu], ["cpu"], [])] == [
        *(64, 64, 8, 8, 8, 8)
    ]


@pytest.mark.parametrize("allowed", [True, False])
def test_convolutions_in_float32_are_that_while_a_gpu_predicts(allowed: bool):
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = allowed
        with forward._exact(torch.device("cuda")):
            assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.allow_tf32 == allowed
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_a_batch_that_does_not_fit_later_is_not_halved_in_silence():
    """Halves give other bits on a GPU than the whole, and whether they are needed depends on what else runs there."""
    with pytest.raises(torch.OutOfMemoryError):
        values(Recipe(CLASSES), Small(most=2), *batch(6))


def test_a_module_is_in_eval_mode_for_a_while_and_its_parts_have_their_own_mode_again(caplog):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Conv2d(3, 3, 1))
    model[0].eval()
    before = [part.training for part in model.modules()]
    with pytest.raises(ZeroDivisionError), eval_mode(model):
        assert not any(part.training for part in model.modules())
        raise ZeroDivisionError
    assert [part.training for part in model.modules()] == before == [True, False, True, True]
    assert "is in training mode" in caplog.text
    caplog.clear()
    with eval_mode(model.eval()), eval_mode(brightest_band):
        pass
    assert not caplog.text
    assert not any(part.training for part in model.modules())


def test_one_logit_for_two_classes_is_a_sigmoid():
    image, valid = batch()

    def model(raw: Tensor) -> Tensor:
        return raw[:, :1] / 50 - 2

    found = values(Recipe(2), model, image, valid)
    wanted = torch.sigmoid(torch.where(valid, image[:, 0].float(), 0) / 50 - 2)
    torch.testing.assert_close(found, torch.stack([1 - wanted, wanted], 1))


def test_one_logit_for_one_class_is_refused_with_the_recipe():
    with pytest.raises(ConfigError, match="one logit and there is one class.*classes=2.*sigmoid"):
        values(Recipe(1), lambda raw: raw[:, :1], *batch())
    with pytest.raises(ConfigError, match=r"returned \(6, 1, 16, 16\).*must return logits \(6, 3, 16, 16\)"):
        values(Recipe(3), lambda raw: raw[:, :1], *batch())


@pytest.mark.parametrize(
    ("model", "classes", "told"),
    [
        (lambda raw: (raw[:, :3] / 9).softmax(1), 3, "softmax"),
        (lambda raw: (raw[:, :1] / 99 - 1).sigmoid(), 2, "sigmoid"),
        (lambda raw: raw[:, :3] / 255, 3, None),
        (lambda raw: (raw[:, :3] / 9).log_softmax(1), 3, None),
        (lambda raw: torch.zeros_like(raw[:, :1]), 2, None),
    ],
)
def test_a_model_that_ends_in_a_softmax_or_a_sigmoid_is_told_once(caplog, model, classes: int, told: str | None):
    with torch.inference_mode():
        predict = prepare(Recipe(classes), model, CPU).predict
        for _ in range(2):
            list(predict(*batch()))
    assert len(caplog.records) == (told is not None)
    assert told is None or f"seems to end in a {told}" in caplog.text


def test_other_errors_of_the_model_pass_through():
    def failing(_: Tensor) -> Tensor:
        raise RuntimeError("sizes of tensors must match")

    with pytest.raises(RuntimeError, match="sizes of tensors"):
        values(Recipe(CLASSES), failing, *batch())


def test_the_raw_batch_is_not_changed_by_what_the_model_gets():
    image, valid = batch()
    image = image.to(torch.float32)
    before = image.clone()

    def model(raw: Tensor) -> Tensor:
        assert not raw[~valid[:, None].expand_as(raw)].any()
        return brightest_band(raw).clone()

    values(Recipe(CLASSES), model, image, valid)
    assert torch.equal(image, before)


class Counting(nn.Module):
    """Counts its batches in a buffer, as a module with a state of its own does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        self.batches += 1
        return brightest_band(image) * self.scale


def test_a_copy_leaves_the_callers_module_as_it_is():
    model = Counting()
    for copy, counted in ((True, 0), (False, 1)):
        predict = prepare(Recipe(CLASSES), model, CPU, copy=copy).predict
        with torch.inference_mode():
            assert len(list(predict(*batch()))) == 6
        assert model.batches.item() == counted


def test_a_copy_leaves_the_callers_module_and_the_recipes_normalisation_where_they_are(monkeypatch):
    monkeypatch.setattr("rs_biformer.predict.forward.good_at_bf16", lambda device: False)
    model, elsewhere = Counting(), torch.device("meta")
    recipe = Recipe(CLASSES, Normalisation([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]))
    prepare(recipe, model, elsewhere, copy=True)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    prepare(recipe, model, elsewhere)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    assert {tensor.device.type for tensor in recipe.normalisation.buffers()} == {"cpu"}


def test_scaled_views_are_seen_at_their_size():
    sides = []

    def model(raw: Tensor) -> Tensor:
        sides.append(raw.shape[-1])
        return brightest_band(raw)

    image, valid = batch(side=64)
    found = values(Recipe(CLASSES, scales=(0.5, 1.0, 1.5)), model, image, valid)
    assert sides == [32, 64, 96]
    torch.testing.assert_close(found.sum(1), torch.ones(6, 64, 64))


def test_precision_is_settled_by_the_model_and_the_hardware():
    class Own(nn.Module):
        normalisation = Normalisation([0.0], [1.0])

    assert Recipe(CLASSES).settled(Own(), fast=True).precision == "bf16"
    assert Recipe(CLASSES).settled(Own(), fast=False).precision == "32"
    assert Recipe(CLASSES).settled(nn.Identity(), fast=True).precision == "32"
    assert Recipe(CLASSES, precision="32").settled(Own(), fast=True).precision == "32"


def test_the_model_is_compiled_if_that_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    model = looking_around()
    for wanted in (False, True):
        values(Recipe(CLASSES, compile=wanted), model, *batch())
        assert compiled == [model] * wanted


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "off", "share"), [("32", 1e-3, 1.0), ("bf16", 0.05, 0.98)])
def test_a_gpu_gives_what_the_cpu_gives(precision: str, off: float, share: float):
    """In bfloat16 all but few: what is rounded may send a region of random weights elsewhere."""
    model, gpu = create_model("resnet18_biformer", classes=CLASSES).eval(), torch.device("cuda")
    image, valid = batch(2, 64)
    wanted = values(Recipe(CLASSES), model, image, valid)
    with torch.inference_mode():
        predict = prepare(Recipe(CLASSES, precision=precision), model, gpu).predict
        found = torch.stack(list(predict(image.to(gpu), valid.to(gpu)))).cpu()
    assert ((found - wanted).abs() <= off).double().mean() >= share


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, "1 to 254"),
        ({"classes": 255}, "1 to 254"),
        ({"classes": 3, "precision": "16"}, "auto, 32, bf16"),
        ({"classes": 3, "tta": "all"}, "none, flips, d4"),
        ({"classes": 3, "scales": (1.0, -1.0)}, "scales are"),
        ({"classes": 3, "disagreement": True}, "several models or test-time views"),
    ],
)
def test_recipes_that_cannot_be_meant_are_refused(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        Recipe(**options)


def test_a_sequence_names_several_devices():
    assert pick_devices(["cpu", "cpu"]) == [CPU, CPU]
    assert pick_devices("cpu") == [CPU]
    assert pick_device("auto", movable=False) == CPU
    with pytest.raises(ConfigError, match="no device is named"):
        pick_devices([])
    with pytest.raises(ConfigError, match=r"cuda:99.* cannot be used"):
        pick_devices(["cpu", "cuda:99"])


def test_all_gpus_are_meant_by_cuda_and_by_auto_for_a_module(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    both = [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert pick_devices("cuda") == pick_devices("auto") == both
    assert pick_devices("auto", movable=False) == [CPU]
