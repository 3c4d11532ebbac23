"""The same bytes whatever the runs, the devices and the threads; the same classes whatever the batches."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import CLASSES, MemoryScene, brightest_band, infer, looking_around, pixels, whole
from torch import nn

from rs_biformer.nn.model import create_model
from rs_biformer.predict.recipe import Recipe

WINDOW = 16
ALL = ("classes", "probabilities", "confidence", "margin", "entropy")
OVERLAPS = [0, 0.1, 0.25, 0.5, 0.75]
BLENDS = ["hann", "average", "center"]


@pytest.fixture
def narrow_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes of at most two windows, so that small scenes have several."""
    monkeypatch.setattr("rs_biformer.predict.plan.NARROWEST", WINDOW)
    monkeypatch.setattr("rs_biformer.predict.plan.COMFORTABLE", 1)
    monkeypatch.setattr("rs_biformer.predict.plan.WIDEST", 2 * WINDOW)


def assert_same_bytes(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), name


def with_holes(height: int, width: int, seed: int) -> MemoryScene:
    """A scene in which whole windows and single pixels are invalid."""
    rng = np.random.default_rng(seed)
    valid = np.kron(rng.random((-(-height // 20), -(-width // 20))) > 0.4, np.ones((20, 20)))[:height, :width] > 0
    return MemoryScene(pixels(height, width, seed), valid & (rng.random((height, width)) > 0.05))


@settings(max_examples=40)
@given(
    st.integers(1, 75),
    st.integers(1, 75),
    st.sampled_from(OVERLAPS),
    st.sampled_from(BLENDS),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_a_pointwise_model_maps_as_in_one_pass(height, width, overlap, blend, batch_size, longest, workers):
    scene = MemoryScene(pixels(height, width, seed=height * 100 + width))
    plan = scene.plan(window=WINDOW, overlap=overlap, blend=blend, batch_size=batch_size)
    found = infer(scene, plan, longest=longest, workers=workers)
    np.testing.assert_array_equal(found["classes"], whole(scene.image))


@pytest.mark.parametrize(("height", "width"), list(product((1, WINDOW - 1, WINDOW, WINDOW + 1, 37, 83), repeat=2)))
def test_sizes_about_that_of_a_window_map_as_in_one_pass(height: int, width: int, narrow_lanes):
    scene = MemoryScene(pixels(height, width))
    for overlap, blend in ((0, "average"), (0.5, "hann"), (0.75, "center")):
        plan = scene.plan(window=WINDOW, overlap=overlap, blend=blend, batch_size=3)
        np.testing.assert_array_equal(infer(scene, plan)["classes"], whole(scene.image))


@pytest.mark.parametrize(("overlap", "blend"), list(product((0, 0.25, 0.5, 0.75), BLENDS)))
def test_lanes_of_columns_map_as_in_one_pass(overlap: float, blend: str, narrow_lanes):
    scene = MemoryScene(pixels(37, 131))
    plan = scene.plan(window=WINDOW, overlap=overlap, blend=blend, batch_size=2)
    assert len(plan.columns) > 2
    np.testing.assert_array_equal(infer(scene, plan)["classes"], whole(scene.image))


@settings(max_examples=25)
@given(
    st.integers(1, 75),
    st.integers(1, 60),
    st.sampled_from(OVERLAPS),
    st.sampled_from(BLENDS),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_any_split_into_runs_gives_the_same_bytes(height, width, overlap, blend, batch_size, longest, seed):
    scene, model = with_holes(height, width, seed), looking_around()
    plan = scene.plan(window=WINDOW, overlap=overlap, blend=blend, batch_size=batch_size)
    assert_same_bytes(infer(scene, plan, model, names=ALL), infer(scene, plan, model, names=ALL, longest=longest))


def test_any_split_into_runs_gives_the_same_bytes_in_lanes(narrow_lanes):
    scene, model = with_holes(60, 90, seed=3), looking_around()
    plan = scene.plan(window=WINDOW, overlap=0.75, batch_size=3)
    one = infer(scene, plan, model, names=ALL)
    for longest in (1, 4):
        assert_same_bytes(one, infer(scene, plan, model, names=ALL, longest=longest))


@pytest.mark.parametrize("workers", [2, 3])
def test_several_devices_give_the_same_bytes_as_one(workers: int):
    scene, model = with_holes(200, 90, seed=1), looking_around()
    plan = scene.plan(window=WINDOW, batch_size=4)
    one = infer(scene, plan, model, names=ALL)
    assert_same_bytes(one, infer(scene, plan, model, names=ALL, longest=5, workers=workers))


def test_two_and_more_threads_give_the_same_bytes():
    scene, model = with_holes(100, 90, seed=2), looking_around()
    plan = scene.plan(window=32, batch_size=4)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (2, 3, 4):
            torch.set_num_threads(threads)
            found.append(infer(scene, plan, model, names=ALL))
    finally:
        torch.set_num_threads(before)
    for one in found[1:]:
        assert_same_bytes(found[0], one)


def test_one_thread_gives_what_two_give_but_for_rounding():
    scene, model = with_holes(100, 90, seed=2), looking_around()
    plan = scene.plan(window=32, batch_size=4)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(infer(scene, plan, model, names=ALL))
    finally:
        torch.set_num_threads(before)
    one, two = found
    assert (one["classes"] != two["classes"]).mean() < 1e-3  # where two classes tie
    for name in one.keys() - {"classes"}:
        np.testing.assert_allclose(one[name], two[name], atol=2e-3, err_msg=name)  # of float16


def share_of_changes(scene: MemoryScene, model: nn.Module, monkeypatch: pytest.MonkeyPatch, **options: object) -> float:
    """Of pixels that have another class with other batches, and with lanes as a tighter bound on memory makes them."""
    plans = [scene.plan(**options, batch_size=batch_size) for batch_size in (4, 1, 3)]
    monkeypatch.setattr("rs_biformer.predict.plan.WIDEST", scene.width // 2)
    monkeypatch.setattr("rs_biformer.predict.plan.NARROWEST", 1)
    monkeypatch.setattr("rs_biformer.predict.plan.COMFORTABLE", 1)
    plans.append(scene.plan(**options, batch_size=4))
    assert len(plans[-1].columns) > 1
    first, *others = (infer(scene, plan, model)["classes"] for plan in plans)
    return max(float((one != first).mean()) for one in others)


def test_batches_and_memory_change_no_more_than_ties_with_the_hybrid(monkeypatch):
    torch.manual_seed(0)
    model = create_model("resnet18_biformer", classes=CLASSES).eval()
    assert share_of_changes(MemoryScene(pixels(130, 170)), model, monkeypatch, window=64) <= 1e-4


def test_batches_and_memory_change_nothing_with_a_pointwise_model(monkeypatch):
    torch.manual_seed(0)
    scene, model = MemoryScene(pixels(1009, 1013)), nn.Conv2d(3, CLASSES, 1).eval()
    assert share_of_changes(scene, model, monkeypatch, window=256) <= 1e-6


@pytest.mark.parametrize("tta", ["none", "d4"])
def test_values_under_nodata_change_no_byte(tta: str):
    scene, model = with_holes(60, 70, seed=5), looking_around()
    plan = scene.plan(window=32, batch_size=4)
    recipe = Recipe(CLASSES, tta=tta, scales=(1.0, 1.5))
    found = []
    for filler in (0, 255, 17):
        image = np.where(scene.valid, scene.image, filler).astype("uint8")
        found.append(infer(MemoryScene(image, scene.valid), plan, model, names=ALL, recipe=recipe))
    assert_same_bytes(found[0], found[1])
    assert_same_bytes(found[0], found[2])
    np.testing.assert_array_equal(found[0]["classes"] != 255, scene.valid)
    np.testing.assert_array_equal(np.isfinite(found[0]["entropy"]), scene.valid)


def test_every_map_is_that_of_one_pass_with_a_pointwise_model():
    scene = MemoryScene(pixels(70, 90))

    def model(batch: torch.Tensor) -> torch.Tensor:
        return brightest_band(batch) / 40  # soft enough that probabilities differ from 0 and 1

    found = infer(scene, scene.plan(window=WINDOW, overlap=0.5), model, names=ALL)
    truth = model(torch.from_numpy(scene.image.astype("float32"))[None]).softmax(1)[0].numpy()
    ranked = np.sort(truth, axis=0)
    np.testing.assert_allclose(found["probabilities"], truth, atol=1e-3)
    np.testing.assert_allclose(found["confidence"], ranked[-1], atol=1e-3)
    np.testing.assert_allclose(found["margin"], ranked[-1] - ranked[-2], atol=1e-3)
    entropy = -(truth * np.log(np.maximum(truth, 1e-30))).sum(0) / np.log(CLASSES)
    np.testing.assert_allclose(found["entropy"], entropy, atol=1e-3)
