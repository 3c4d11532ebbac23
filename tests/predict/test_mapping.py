"""predict_scene from file to file. That maps are exact is shown in test_exact.py, in memory and for more plans."""

import threading
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from in_memory import CLASSES, brightest_band, looking_around, pixels, whole
from tiny_checkpoint import tiny_meta
from torch import Tensor, nn
from trained import trained

from rs_biformer.checkpoint import TrainedModel
from rs_biformer.errors import ConfigError, RasterError, RsBiformerError
from rs_biformer.geometry import Window
from rs_biformer.jobs.models import Loaded
from rs_biformer.nn.normalise import Normalisation
from rs_biformer.predict import predict_scene
from rs_biformer.predict.mapping import map_scene
from rs_biformer.predict.options import Options
from rs_biformer.predict.plan import Plan
from rs_biformer.predict.quality import Sight
from rs_biformer.raster.metadata import SCORE_LEVELS
from rs_biformer.raster.scene import Scene
from rs_biformer.schema import IGNORE, PRESETS

WINDOW = 16


@pytest.fixture(autouse=True)
def no_thread_outlives_a_prediction() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    # torch and GDAL keep pools of their own, which Python does not list
    assert not [thread for thread in set(threading.enumerate()) - before if thread.is_alive()]


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as source:
        return source.read().squeeze(0) if source.count == 1 else source.read()


SIZES = (1, WINDOW, 37)


@pytest.mark.parametrize(("height", "width"), list(product(SIZES, SIZES)))
def test_a_pointwise_model_maps_as_in_one_pass(write_raster: Callable[..., Path], tmp_path, height: int, width: int):
    image = pixels(height, width)
    scene = write_raster("scene.tif", image)
    out = predict_scene(brightest_band, scene, tmp_path / "map.tif", classes=CLASSES, window=WINDOW, overlap=0.5)
    np.testing.assert_array_equal(read(out), whole(image))


def test_probabilities_do_not_depend_on_lanes_batches_or_overlap_with_a_pointwise_model(write_raster, tmp_path):
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
        np.testing.assert_allclose(stored / SCORE_LEVELS, truth, atol=0.51 / SCORE_LEVELS)
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


def test_where_memory_is_short_windows_are_those_of_training(write_raster, tmp_path):
    scene = write_raster("scene.tif", pixels(600, 700))
    found: list[Plan | None] = []

    def note(plan: Plan) -> None:
        found.append(plan)
        raise KeyboardInterrupt

    for megabytes in (20, *range(60, 400, 20)):
        options = Options.of(max_memory=megabytes * 10**6, device="cpu")
        paths = {"classes": tmp_path / "map.tif"}
        try:
            map_scene(
                brightest_band,
                scene,
                paths,
                classes=CLASSES,
                options=options,
                on_plan=note,
                sight=Sight(256, grows=True),
            )
        except ConfigError as error:
            assert "needs at least" in str(error)
            found.append(None)
        except KeyboardInterrupt:
            assert found[-1].memory.total <= megabytes * 10**6
    sizes = [plan and plan.size for plan in found]
    refused, small = sizes.count(None), sizes.count(256)
    large = next(size for size in sizes if size not in (None, 256))
    assert refused and small and large > 256
    assert sizes == [None] * refused + [256] * small + [large] * (len(sizes) - refused - small)
    assert "quality balanced" in str(found[refused])


@pytest.mark.parametrize(("value", "told"), [(1e30, True), (-1e30, True), (1e4, False)])
def test_values_beyond_what_a_network_can_add_up_give_no_map(write_raster, tmp_path, value, told):
    scene = write_raster("scene.tif", np.random.default_rng(0).random((3, 70, 70), np.float32) * np.float32(value))
    meta = tiny_meta("resnet18_biformer", dtype="float32")
    model = TrainedModel(trained(meta.create_network()), meta)
    options = {"classes": 6, "device": "cpu", "precision": "32"}
    if not told:
        predict_scene(model, scene, tmp_path / "map.tif", **options)
        assert (read(tmp_path / "map.tif") < 6).all()
        return
    with pytest.raises(RsBiformerError, match="NaN for the window at row 0, column 0; no map was written"):
        predict_scene(model, scene, tmp_path / "map.tif", **options)
    assert not (tmp_path / "map.tif").exists()


def test_regions_are_as_large_as_in_training_where_a_quality_chooses_the_windows(write_raster, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 255, (3, 150, 150), dtype=np.uint8)
    scene, meta = write_raster("scene.tif", pixels), tiny_meta("resnet18_biformer", window=64)
    torch.manual_seed(0)
    model = TrainedModel(trained(meta.create_network()), meta)
    kept = model.with_regions_of_training()
    told, asked = [], []

    def keep(self: TrainedModel) -> TrainedModel:
        asked.append(self)
        return kept

    monkeypatch.setattr(TrainedModel, "with_regions_of_training", keep)

    def mapped(by: TrainedModel, sight: Sight | None = None, **options: object) -> np.ndarray:
        how = Options.of(device="cpu", precision="32", **options)
        paths = {"classes": tmp_path / "map.tif"}
        map_scene(by, scene, paths, classes=6, options=how, sight=sight, on_plan=lambda plan: told.append(str(plan)))
        with rasterio.open(paths["classes"]) as made:
            return made.read(1)

    found = mapped(model, Loaded(model, meta).sight, quality="balanced")
    assert "96 every 64 (quality balanced, regions as large as in training, a halo of 16" in told[0]
    given = {"window": 96, "overlap": 1 / 3}
    assert asked == [model]
    np.testing.assert_array_equal(found, mapped(kept, **given))
    mapped(model, Loaded(model, meta).sight, **given)  # the same windows, given
    assert asked == [model]


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


SCORES = ("probabilities", "confidence", "margin", "entropy", "disagreement")


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_all_maps_are_written_in_one_pass(write_raster, tmp_path, dtype: str):
    image = pixels(40, 53)
    valid = np.ones((40, 53), bool)
    valid[:, 50:] = False
    scene, seen = write_raster("scene.tif", image, mask=valid), []

    def model(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        return brightest_band(batch) / 40

    paths = {name: tmp_path / f"{name}.tif" for name in SCORES}
    options = {"classes": CLASSES, "window": WINDOW, "tta": "flips"}
    predict_scene(model, scene, tmp_path / "map.tif", probability_dtype=dtype, **paths, **options)
    inferred = sum(seen)
    seen.clear()
    predict_scene(model, scene, tmp_path / "alone.tif", **options)
    assert inferred == sum(seen)
    assert read(tmp_path / "map.tif").tobytes() == read(tmp_path / "alone.tif").tobytes()
    found = {name: read(path).astype("float64") for name, path in paths.items()}
    unit = SCORE_LEVELS if dtype == "uint8" else 1
    for layer in found.values():
        missing = layer == IGNORE if dtype == "uint8" else np.isnan(layer)
        np.testing.assert_array_equal(missing, np.broadcast_to(~valid, layer.shape))
        layer[missing] = 0
    truth = model(torch.from_numpy(image.astype("float32"))[None]).softmax(1)[0].numpy() * valid
    np.testing.assert_allclose(found["probabilities"] / unit, truth, atol=0.0021)
    np.testing.assert_allclose(found["confidence"] / unit, truth.max(0), atol=0.0021)
    assert (found["margin"] <= found["confidence"]).all()
    assert (found["disagreement"] == 0).all(), "views of a pointwise model agree"
    with rasterio.open(paths["entropy"]) as source:
        assert source.tags()["LAYER"] == "entropy"
        assert ("SCALE" in source.tags()) == (dtype == "uint8")


def test_several_devices_write_the_same_bytes_as_one(write_raster, tmp_path):
    scene, told = write_raster("scene.tif", pixels(170, 90)), []
    one, two = (
        predict_scene(
            looking_around(),
            scene,
            tmp_path / f"{name}.tif",
            classes=CLASSES,
            window=32,
            batch_size=3,
            device=device,
            progress=lambda *at: told.append(at),
        ).read_bytes()
        for name, device in (("one", "cpu"), ("two", ("cpu", "cpu")))
    )
    assert one == two
    assert told[-1][0] == told[-1][1]


def test_an_error_on_one_of_several_devices_ends_all_and_leaves_no_map(scene, tmp_path):
    def failing(batch: Tensor) -> Tensor:
        if (batch[:, 0, 0, 0] == float(pixels(64, 64)[0, 48, 0])).any():
            raise ZeroDivisionError
        return brightest_band(batch)

    with pytest.raises(ZeroDivisionError):
        predict_scene(
            failing, scene, tmp_path / "map.tif", classes=CLASSES, window=16, overlap=0, device=["cpu", "cpu", "cpu"]
        )
    assert leftovers(tmp_path) == []


def test_a_named_schema_puts_a_style_beside_the_map(scene, tmp_path):
    schema = PRESETS["vaihingen"]
    model = nn.Conv2d(3, len(schema), 1).eval()
    predict_scene(model, scene, tmp_path / "plain.tif", classes=schema, window=16, style=False)
    assert not list(tmp_path.glob("*.qml"))
    predict_scene(model, scene, tmp_path / "map.tif", classes=schema, window=16)
    assert "building" in (tmp_path / "map.qml").read_text()


def test_the_plan_is_told_before_anything_is_inferred(scene, tmp_path):
    told: list[str] = []

    def model(batch: Tensor) -> Tensor:
        assert len(told) == 1
        return brightest_band(batch)

    predict_scene(
        model, scene, tmp_path / "map.tif", classes=CLASSES, window=16, on_plan=lambda plan: told.append(str(plan))
    )
    assert "windows of 16 every 8" in told[0]


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
    with pytest.raises(RasterError, match=r"block 7 is damaged \(rows 40 to 56, columns 0 to 64\)"):
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
        ({"batch_size": 0}, "batch_size is 0"),
        ({"tta": "all"}, "none, flips, d4"),
        ({"precision": "16"}, "auto, 32, bf16"),
        ({"device": "cuda:99"}, "cannot be used"),
        ({"device": "gpu"}, "cannot be used"),
        ({"classes": 3}, "3 classes at the size of its input"),
        ({"max_memory": 1000}, "needs at least"),
        ({"confidence": "map.tif"}, "asked for twice"),
        ({"disagreement": "views.tif"}, "several models or test-time views"),
        ({"scales": (0,)}, "scales are"),
        ({"probability_dtype": "float64"}, "uint8, float16"),
        ({"device": []}, "no device is named"),
        ({"device": ["cpu"] * 9, "max_memory": 10**8}, "9 devices need"),
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
    with pytest.raises(ConfigError, match="which is read"):
        predict_scene(brightest_band, scene, scene, classes=CLASSES)


def test_a_missing_scene_is_refused(tmp_path):
    with pytest.raises(RasterError, match=r"nowhere\.tif"):
        predict_scene(brightest_band, tmp_path / "nowhere.tif", tmp_path / "map.tif", classes=CLASSES)


def batch_normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout2d(0.5), nn.Conv2d(8, CLASSES, 1))


def test_a_module_left_in_training_mode_maps_as_in_eval_mode_and_is_not_changed(write_raster, tmp_path):
    scene = write_raster("scene.tif", pixels(50, 60))
    wanted = read(predict_scene(batch_normed().eval(), scene, tmp_path / "a.tif", classes=CLASSES, window=WINDOW))
    model = batch_normed().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for size in (1, 8):
        out = predict_scene(model, scene, tmp_path / "b.tif", classes=CLASSES, window=WINDOW, batch_size=size)
        np.testing.assert_array_equal(read(out), wanted)
    assert all(part.training for part in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("rs_biformer.predict.reading.buffer", MemoryError("Unable to allocate 3.00 GiB for an array")),
        (
            "rs_biformer.predict.tensors.TorchArrays.room",
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        ),
        ("rs_biformer.predict.tensors.buffer", OSError(12, "Cannot allocate memory")),
        ("rs_biformer.predict.forward._softmax", RuntimeError("DefaultCPUAllocator: can't allocate memory")),
        ("rs_biformer.predict.engine.read_run", RuntimeError("CUDA error: out of memory")),
    ],
)
def test_memory_that_runs_out_anywhere_is_one_line(write_raster, tmp_path, monkeypatch, where: str, error: Exception):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(where, fail)
    scene = write_raster("scene.tif", pixels(50, 60))
    with pytest.raises(RsBiformerError, match=r"ran out of memory; the plan takes \d+ MB .*--batch-size") as caught:
        predict_scene(looking_around(), scene, tmp_path / "map.tif", classes=CLASSES, window=WINDOW, device="cpu")
    assert caught.value.__cause__ is error
    assert str(caught.value).startswith("the GPU" if "CUDA" in str(error) else "this machine")
    assert not (tmp_path / "map.tif").exists()


def test_other_errors_are_no_shortage_of_memory(write_raster, tmp_path):
    def fail(*_: object) -> None:
        raise RuntimeError("sizes of tensors must match")

    scene = write_raster("scene.tif", pixels(50, 60))
    with pytest.raises(RuntimeError, match="sizes of tensors"):
        predict_scene(fail, scene, tmp_path / "map.tif", classes=CLASSES, window=WINDOW)


@pytest.mark.parametrize(
    ("told", "kept"), [("2024:05:31 10:20:30", True), ("0000:00:00 00:00:00", False), ("May", False)]
)
def test_maps_say_what_their_bands_are_and_when_the_scene_was_taken(scene, tmp_path, told: str, kept: bool):
    with rasterio.open(scene, "r+") as file:
        file.update_tags(TIFFTAG_DATETIME=told)
    out = tmp_path / "map.tif"
    sure, each = tmp_path / "sure.tif", tmp_path / "each.tif"
    predict_scene(brightest_band, scene, out, window=32, classes=CLASSES, confidence=sure, probabilities=each)
    names = []
    for path in (out, sure, each):
        with rasterio.open(path) as file:
            assert file.tags().get("TIFFTAG_DATETIME") == (told if kept else None)
            names.append(file.descriptions)
    assert names[:2] == [("class",), ("confidence",)]
    assert len(names[2]) == CLASSES
