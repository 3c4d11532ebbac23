"""The engine against one pass over the whole scene, which needs no windows and so cannot be wrong about them."""

import threading
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rs_biformer.errors import ConfigError, RasterError, RsBiformerError
from rs_biformer.geometry import Window
from rs_biformer.nn.normalise import Normalisation
from rs_biformer.predict import engine, predict_scene
from rs_biformer.predict.plan import make_plan
from rs_biformer.raster.scene import Scene
from rs_biformer.schema import IGNORE, PRESETS

CLASSES = 4
WINDOW = 16


@pytest.fixture(autouse=True)
def no_thread_outlives_a_prediction() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    # torch and GDAL keep pools of their own, which Python does not list
    assert not [thread for thread in set(threading.enumerate()) - before if thread.is_alive()]


def brightest_band(batch: Tensor) -> Tensor:
    """Pointwise and without ties: class k wins where band k holds the largest value."""
    return torch.cat([batch, batch.sum(1, keepdim=True) - 300.5], 1)


def pixels(height: int, width: int, seed: int = 0, dtype: str = "uint8") -> np.ndarray:
    """(3, height, width) in which no two bands are equal at a pixel."""
    rng = np.random.default_rng(seed)
    image = rng.integers(1, 80, (3, height, width)) * 3 + np.arange(3)[:, None, None]
    return image.astype(dtype)


def whole(image: np.ndarray) -> np.ndarray:
    """The class map by one pass over all pixels."""
    return brightest_band(torch.from_numpy(image.astype("float32"))[None])[0].argmax(0).numpy()


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as source:
        return source.read().squeeze(0) if source.count == 1 else source.read()


SIZES = (1, WINDOW - 1, WINDOW, WINDOW + 1, 37)


@pytest.mark.parametrize(("height", "width"), list(product(SIZES, SIZES)))
def test_a_pointwise_model_maps_as_in_one_pass(write_raster: Callable[..., Path], tmp_path, height: int, width: int):
    image = pixels(height, width)
    scene = write_raster("scene.tif", image)
    out = predict_scene(brightest_band, scene, tmp_path / "map.tif", classes=CLASSES, window=WINDOW, overlap=0.5)
    np.testing.assert_array_equal(read(out), whole(image))


class Memory:
    """A scene in memory, and maps in memory, so that many plans can be tried in little time."""

    paths = ()

    def __init__(self, image: np.ndarray, valid: np.ndarray | None = None) -> None:
        self.image = image
        self.valid = np.ones(image.shape[1:], bool) if valid is None else valid
        self.height, self.width = image.shape[1:]

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        return self.image[:, *window.slices], self.valid[window.slices]


class MemoryMap:
    def __init__(self, height: int, width: int) -> None:
        self.pixels = np.full((height, width), 77, np.uint8)

    def write(self, window: Window, layer: np.ndarray) -> None:
        assert (self.pixels[window.slices] == 77).all(), "a pixel is written twice"
        self.pixels[window.slices] = layer


def predict_in_memory(scene: Memory, model=brightest_band, **options: object) -> np.ndarray:
    plan = make_plan(scene.height, scene.width, classes=CLASSES, bands=3, itemsize=1, **options)
    cpu = torch.device("cpu")
    sink = MemoryMap(scene.height, scene.width)
    run = engine._runner(model, None, cpu, CLASSES, bf16=False)
    with torch.inference_mode():
        engine._predict(scene, plan, run, {"classes": sink}, CLASSES, cpu, None)
    return sink.pixels


@settings(max_examples=60)
@given(
    st.integers(1, 75),
    st.integers(1, 75),
    st.sampled_from([0, 0.1, 0.25, 0.5, 0.75]),
    st.sampled_from(["hann", "average", "center"]),
    st.integers(1, 9),
)
def test_any_size_overlap_blend_and_batch_maps_as_in_one_pass(height, width, overlap, blend, batch_size):
    image = pixels(height, width, seed=height * 100 + width)
    found = predict_in_memory(Memory(image), window=WINDOW, overlap=overlap, blend=blend, batch_size=batch_size)
    np.testing.assert_array_equal(found, whole(image))


@pytest.mark.parametrize("blend", ["hann", "average", "center"])
def test_blocks_of_columns_map_as_in_one_pass(blend: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rs_biformer.predict.plan.COLUMN_STEP", 8)
    image = pixels(61, 203)
    options = {"window": WINDOW, "overlap": 0.5, "blend": blend, "batch_size": 2}
    bound = make_plan(61, 203, classes=CLASSES, bands=3, itemsize=1, **options).memory * 3 // 5
    assert len(make_plan(61, 203, classes=CLASSES, bands=3, itemsize=1, max_memory=bound, **options).columns) > 2
    found = predict_in_memory(Memory(image), max_memory=bound, **options)
    np.testing.assert_array_equal(found, whole(image))


def test_probabilities_do_not_depend_on_blocks_batches_or_overlap_with_a_pointwise_model(write_raster, tmp_path):
    image = pixels(40, 53)
    scene = write_raster("scene.tif", image)

    def model(batch: Tensor) -> Tensor:
        return brightest_band(batch) / 40  # soft enough that probabilities differ from 0 and 1

    truth = model(torch.from_numpy(image.astype("float32"))[None]).softmax(1)[0].numpy()
    for overlap, batch_size in ((0, 1), (0.5, 3), (0.75, 8)):
        predict_scene(
            model,
            scene,
            tmp_path / "map.tif",
            classes=CLASSES,
            window=WINDOW,
            overlap=overlap,
            batch_size=batch_size,
            probabilities=tmp_path / "probabilities.tif",
            confidence=tmp_path / "confidence.tif",
        )
        stored = read(tmp_path / "probabilities.tif")
        np.testing.assert_allclose(stored / engine.LEVELS, truth, atol=0.51 / engine.LEVELS)
        np.testing.assert_array_equal(read(tmp_path / "confidence.tif"), stored.max(0))


def test_running_again_gives_the_same_bytes(write_raster, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, CLASSES, 3, padding=1)).eval()
    scene = write_raster("scene.tif", pixels(70, 90))
    first, second = (
        predict_scene(model, scene, tmp_path / name, classes=CLASSES, window=32, batch_size=3).read_bytes()
        for name in ("first.tif", "second.tif")
    )
    assert first == second


def edge_effect(batch: Tensor) -> Tensor:
    """A model that is wrong near the edges of its window, as convolutions with zero padding are, and right inside."""
    distance = torch.ones(batch.shape[-2:]).cumsum(0)
    distance = torch.minimum(distance, distance.flip(0))
    distance = torch.minimum(distance, torch.minimum(distance.T.contiguous(), distance.T.flip(0, 1)))
    margin = (distance - 4.5).expand(len(batch), 1, -1, -1)
    return torch.cat([margin, -margin], 1)


def test_blending_hides_the_edges_of_windows_except_at_the_edge_of_the_scene(write_raster, tmp_path):
    scene = write_raster("scene.tif", pixels(128, 128))
    maps = {
        overlap: read(
            predict_scene(edge_effect, scene, tmp_path / "map.tif", classes=2, window=32, overlap=overlap, blend="hann")
        )
        for overlap in (0, 0.5)
    }
    assert (maps[0][5:-5, 5:-5] == 1).any()
    assert (maps[0.5][5:-5, 5:-5] == 0).all()


def test_invalid_pixels_are_nodata_and_their_values_reach_no_other_pixel(write_raster, tmp_path):
    torch.manual_seed(0)
    model = nn.Conv2d(3, CLASSES, 9, padding=4).eval()
    valid = np.ones((50, 60), bool)
    valid[10:20, 5:30] = False
    valid[:, -3:] = False
    image, maps = pixels(50, 60), []
    for filler in (0, 255):
        scene = write_raster("scene.tif", np.where(valid, image, filler).astype("uint8"), mask=valid)
        for extra in ({}, {"normalisation": ([120.0] * 3, [60.0] * 3)}):
            out = predict_scene(model, scene, tmp_path / "map.tif", classes=CLASSES, window=WINDOW, **extra)
            maps.append(read(out))
    np.testing.assert_array_equal(maps[0], maps[2])
    np.testing.assert_array_equal(maps[1], maps[3])
    for found in maps:
        np.testing.assert_array_equal(found != IGNORE, valid)


def test_not_a_number_in_the_scene_is_nodata(write_raster, tmp_path):
    image = pixels(20, 30, dtype="float32")
    image[:, 3, 4] = np.nan
    out = predict_scene(brightest_band, write_raster("s.tif", image), tmp_path / "m.tif", classes=CLASSES, window=8)
    found = read(out)
    assert found[3, 4] == IGNORE
    assert (found == IGNORE).sum() == 1


def test_windows_without_a_valid_pixel_are_not_inferred(write_raster, tmp_path):
    seen = []

    def counting(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        return brightest_band(batch)

    image = pixels(64, 64)
    image[:, :, 32:] = 0
    scene = write_raster("scene.tif", image, nodata=0)
    calls: list[tuple[int, int]] = []
    out = predict_scene(
        counting,
        scene,
        tmp_path / "map.tif",
        classes=CLASSES,
        window=16,
        overlap=0,
        batch_size=3,
        progress=lambda *at: calls.append(at),
    )
    assert seen == [2] * 4
    np.testing.assert_array_equal(read(out)[:, :32], whole(image)[:, :32])
    assert (read(out)[:, 32:] == IGNORE).all()
    assert calls[-1] == (16, 16)
    assert calls == sorted(calls)


def test_a_scene_of_nothing_but_nodata_gives_a_map_of_nothing_but_nodata(write_raster, tmp_path):
    scene = write_raster("scene.tif", np.zeros((3, 20, 20), np.uint8), nodata=0)
    out = predict_scene(pytest.fail, scene, tmp_path / "map.tif", classes=CLASSES, window=16)
    assert (read(out) == IGNORE).all()


def test_the_map_has_the_place_colours_and_names_of_scene_and_schema(write_raster, tmp_path):
    scene = write_raster("scene.tif", pixels(40, 50))
    schema = PRESETS["vaihingen"]
    out = predict_scene(
        lambda batch: torch.cat([batch, batch * 0], 1),
        scene,
        tmp_path / "map.tif",
        classes=schema,
        window=16,
        tags={"MODEL": "bands"},
    )
    with rasterio.open(scene) as source, rasterio.open(out) as found:
        assert found.crs == source.crs
        assert found.transform == source.transform
        assert found.nodata == IGNORE
        assert found.dtypes == ("uint8",)
        assert found.colormap(1)[1][:3] == schema.colours[1]
        assert "building" in found.tags()["CLASS_NAMES"]
        assert found.tags()["MODEL"] == "bands"
        assert found.tags()["PREDICTION_OVERLAP"] == "0.5"


def test_several_rasters_are_stacked(write_raster, tmp_path):
    image = pixels(20, 25)
    paths = [write_raster("rgb.tif", image[:2]), write_raster("height.tif", image[2])]
    out = predict_scene(brightest_band, paths, tmp_path / "map.tif", classes=CLASSES, window=16)
    np.testing.assert_array_equal(read(out), whole(image))


def test_normalisation_reaches_the_model_and_raw_values_do_without_it(write_raster, tmp_path):
    image = pixels(20, 20)
    scene = write_raster("scene.tif", image)
    seen: list[Tensor] = []

    def keep(batch: Tensor) -> Tensor:
        seen.append(batch.clone())
        return brightest_band(batch)

    options = {"classes": CLASSES, "window": 20}
    predict_scene(keep, scene, tmp_path / "a.tif", **options)
    predict_scene(keep, scene, tmp_path / "b.tif", normalisation=([10, 20, 30], [2, 4, 8]), **options)
    raw = torch.from_numpy(image.astype("float32"))[None]
    torch.testing.assert_close(seen[0], raw, check_stride=False)
    wanted = (raw - torch.tensor([10.0, 20, 30])[:, None, None]) / torch.tensor([2.0, 4, 8])[:, None, None]
    torch.testing.assert_close(seen[1], wanted, check_stride=False)


class SelfNormalising(nn.Module):
    """What `load_checkpoint` gives, as far as the engine knows."""

    def __init__(self) -> None:
        super().__init__()
        self.normalisation = Normalisation([100.0] * 3, [50.0] * 3)
        self.dtypes: list[tuple] = []

    def forward(self, raw: Tensor, valid: Tensor) -> Tensor:
        self.dtypes.append((raw.dtype, valid.dtype, torch.is_autocast_enabled("cpu")))
        return brightest_band(self.normalisation(raw, valid) * 50 + 100)


@pytest.mark.parametrize(("precision", "autocast"), [("32", False), ("bf16", True)])
def test_a_model_with_its_own_normalisation_gets_the_raster_as_it_is(write_raster, tmp_path, precision, autocast):
    model = SelfNormalising()
    image = pixels(20, 25)
    out = predict_scene(
        model, write_raster("s.tif", image), tmp_path / "m.tif", classes=CLASSES, window=16, precision=precision
    )
    assert set(model.dtypes) == {(torch.uint8, torch.bool, autocast)}
    np.testing.assert_array_equal(read(out), whole(image))


def test_two_normalisations_are_refused(write_raster, tmp_path):
    with pytest.raises(ConfigError, match="normalises by itself"):
        predict_scene(
            SelfNormalising(),
            write_raster("s.tif", pixels(9, 9)),
            tmp_path / "m.tif",
            classes=CLASSES,
            normalisation=([0] * 3, [1] * 3),
        )


def test_a_scene_with_other_bands_than_the_model_is_refused(write_raster, tmp_path):
    scene = write_raster("scene.tif", pixels(20, 25)[:2])
    with pytest.raises(RasterError, match="has 2 bands .* the model takes 3"):
        predict_scene(SelfNormalising(), scene, tmp_path / "map.tif", classes=CLASSES)


@pytest.mark.parametrize("tta", ["flips", "d4"])
def test_views_leave_a_pointwise_model_as_it_is(write_raster, tmp_path, tta: str):
    image = pixels(21, 33)
    scene = write_raster("scene.tif", image)
    out = predict_scene(brightest_band, scene, tmp_path / "map.tif", classes=CLASSES, window=16, tta=tta)
    np.testing.assert_array_equal(read(out), whole(image))


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.name != "scene.tif")


@pytest.fixture
def scene(write_raster) -> Path:
    return write_raster("scene.tif", pixels(64, 64))


def test_not_a_number_from_the_model_names_the_window_and_leaves_no_map(scene, tmp_path):
    def broken(batch: Tensor) -> Tensor:
        logits = brightest_band(batch).clone()
        broken.calls += 1
        if broken.calls == 3:
            logits[1, 2, 5, 5] = float("nan")
        return logits

    broken.calls = 0
    with pytest.raises(RsBiformerError, match="NaN for the window at row 32, column 16"):
        predict_scene(broken, scene, tmp_path / "map.tif", classes=CLASSES, window=16, overlap=0, batch_size=4)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError("odd size"), KeyboardInterrupt()])
def test_what_the_model_raises_passes_through_and_leaves_no_map(scene, tmp_path, error: BaseException):
    def failing(batch: Tensor) -> Tensor:
        raise error

    with pytest.raises(type(error)):
        predict_scene(failing, scene, tmp_path / "map.tif", classes=CLASSES, window=16)
    assert leftovers(tmp_path) == []


def test_a_block_that_cannot_be_read_leaves_no_map(scene, tmp_path, monkeypatch: pytest.MonkeyPatch):
    read_window = Scene.read

    def failing(self: Scene, window: Window):
        if window.row >= 32:
            raise RasterError("scene.tif: block 7 is damaged")
        return read_window(self, window)

    monkeypatch.setattr(Scene, "read", failing)
    with pytest.raises(RasterError, match="block 7"):
        predict_scene(brightest_band, scene, tmp_path / "map.tif", classes=CLASSES, window=16)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("failing_call", [1, 4])
def test_a_full_disk_leaves_no_map(scene, tmp_path, monkeypatch: pytest.MonkeyPatch, failing_call: int):
    calls = []

    def full(self, window: Window, layer: np.ndarray) -> None:
        calls.append(window)
        if len(calls) == failing_call:
            raise RasterError("map.tif: the disk is full")

    monkeypatch.setattr("rs_biformer.raster.writer.MapWriter.write", full)
    with pytest.raises(RasterError, match="disk is full"):
        predict_scene(brightest_band, scene, tmp_path / "map.tif", classes=CLASSES, window=16, overlap=0, batch_size=1)
    assert leftovers(tmp_path) == []


def test_an_existing_map_is_replaced_only_by_a_complete_one(scene, tmp_path):
    out = predict_scene(brightest_band, scene, tmp_path / "map.tif", classes=CLASSES, window=16)
    before = out.read_bytes()
    with pytest.raises(ZeroDivisionError):
        predict_scene(lambda batch: 1 / 0, scene, out, classes=CLASSES, window=16)
    assert out.read_bytes() == before
    predict_scene(lambda batch: brightest_band(batch).flip(1), scene, out, classes=CLASSES, window=16)
    assert out.read_bytes() != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, "1 to 254"),
        ({"window": 0}, "window is 0"),
        ({"overlap": 1.0}, "overlap is 1.0"),
        ({"blend": "cosine"}, "hann, average, center"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"tta": "all"}, "none, flips, d4"),
        ({"precision": "16"}, "auto, 32, bf16"),
        ({"device": "cuda:99"}, "cannot be used"),
        ({"device": "gpu"}, "cannot be used"),
        ({"classes": 3}, "3 classes at the size of its input"),
        ({"max_memory": 1000}, "needs at least"),
        ({"confidence": "map.tif"}, "asked for twice"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(scene, tmp_path, monkeypatch, options: dict, message: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        predict_scene(brightest_band, scene, "map.tif", **({"classes": CLASSES, "window": 16} | options))
    assert leftovers(tmp_path) == []


def test_a_model_that_returns_a_tuple_or_another_size_is_refused(scene, tmp_path):
    for model in (lambda batch: (batch, batch), lambda batch: brightest_band(batch)[..., ::2]):
        with pytest.raises(ConfigError, match="must return logits"):
            predict_scene(model, scene, tmp_path / "map.tif", classes=CLASSES)


def test_the_scene_is_not_overwritten_by_its_map(scene):
    with pytest.raises(ConfigError, match="is the scene itself"):
        predict_scene(brightest_band, scene, scene, classes=CLASSES)


def test_a_missing_scene_is_refused(tmp_path):
    with pytest.raises(RasterError, match=r"nowhere\.tif"):
        predict_scene(brightest_band, tmp_path / "nowhere.tif", tmp_path / "map.tif", classes=CLASSES)
