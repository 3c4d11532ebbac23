import json

import numpy as np
import pytest
from rasterio.transform import Affine
from scipy import ndimage

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.evaluation import Protocol, confusion, evaluate, metrics_to_dict, rasters
from rs_biformer.evaluation.rasters import scene_names, subjects, windows
from rs_biformer.schema import IGNORE, PRESETS, ClassSchema

SCHEMA = PRESETS["vaihingen"]
RNG = np.random.default_rng(7)


def blobs(height: int, width: int, seed: int = 0, classes: int = 6) -> np.ndarray:
    """A map of smooth regions, as labels are."""
    noise = np.random.default_rng(seed).random((classes, height, width))
    return ndimage.gaussian_filter(noise, (0, 4, 4)).argmax(axis=0).astype(np.uint8)


def colours(index: np.ndarray, schema: ClassSchema = SCHEMA) -> np.ndarray:
    table = np.zeros((256, 3), np.uint8)
    table[: len(schema)] = schema.colours
    return np.moveaxis(table[index], -1, 0)


def eroded(index: np.ndarray, radius: int) -> np.ndarray:
    """The ISPRS rule by scipy: a pixel goes when its disc holds two classes."""
    grid = np.arange(-radius, radius + 1)
    disc = grid[:, None] ** 2 + grid**2 <= radius**2
    low = ndimage.minimum_filter(index, footprint=disc, mode="nearest")
    return np.where(low == ndimage.maximum_filter(index, footprint=disc, mode="nearest"), index, IGNORE)


@pytest.fixture
def scene(write_raster):
    """Label in colours with unlabelled pixels, and a prediction with holes, of 90 x 70 pixels."""
    label, prediction = blobs(90, 70), blobs(90, 70, seed=1)
    label[10:20, 30:60] = IGNORE
    prediction[40:45, 5:9] = IGNORE
    files = {
        "label": write_raster("town_label.tif", colours(label)),
        "prediction": write_raster("town_classes.tif", prediction, nodata=IGNORE),
    }
    return files, label, prediction


@pytest.mark.parametrize(("rows", "columns"), [(512, 8192), (7, 11), (1, 70), (90, 1)])
def test_streamed_counts_equal_those_of_the_whole_scene(scene, monkeypatch, rows, columns):
    files, label, prediction = scene
    monkeypatch.setattr(rasters, "_ROWS", rows)
    monkeypatch.setattr(rasters, "_COLUMNS", columns)
    metrics = evaluate(files["prediction"], files["label"], SCHEMA)
    whole = confusion.count(label, prediction, 6)
    np.testing.assert_array_equal(metrics.scores.confusion.matrix, whole.matrix)
    assert metrics_to_dict(metrics)["ignored_pixels"] == 300
    assert metrics_to_dict(metrics)["unpredicted_pixels"] == whole.unpredicted.sum() == 20


@pytest.mark.parametrize(("rows", "columns"), [(512, 8192), (5, 9)])
def test_erosion_by_strips_equals_scipy_on_the_whole_scene(write_raster, monkeypatch, rows, columns):
    label, prediction = blobs(60, 50), blobs(60, 50, seed=1)
    monkeypatch.setattr(rasters, "_ROWS", rows)
    monkeypatch.setattr(rasters, "_COLUMNS", columns)
    paths = write_raster("a_classes.tif", prediction), write_raster("a_label.tif", colours(label))
    metrics = evaluate(*paths, SCHEMA, Protocol("eroded", ignore_boundary=3))
    kept = eroded(label, 3)
    np.testing.assert_array_equal(metrics.scores.confusion.matrix, confusion.count(kept, prediction, 6).matrix)
    np.testing.assert_array_equal(metrics.full.confusion.matrix, confusion.count(label, prediction, 6).matrix)
    assert metrics.scores.confusion.eroded == (kept == IGNORE).sum() > 0


def test_several_scenes_are_one_matrix_and_not_a_mean_of_scores(write_raster):
    labels, predictions = [], []
    for number, size in enumerate((20, 50)):
        labels.append(write_raster(f"{number}/label.tif", colours(blobs(size, size, number))))
        predictions.append(write_raster(f"{number}/classes.tif", blobs(size, size, number + 2)))
    result = metrics_to_dict(evaluate(predictions, labels, "vaihingen"))
    parts = [np.array(scene["confusion_matrix"]) for scene in result["per_scene"]]
    assert result["confusion_matrix"] == sum(parts).tolist()
    assert result["overall_accuracy"] == np.trace(sum(parts)) / sum(parts).sum()
    assert result["overall_accuracy"] != np.mean([scene["overall_accuracy"] for scene in result["per_scene"]])


def test_a_class_outside_the_means_still_counts_in_the_accuracy_and_is_reported(scene):
    files, *_ = scene
    all_classes = metrics_to_dict(evaluate(files["prediction"], files["label"], SCHEMA))
    without = metrics_to_dict(
        evaluate(files["prediction"], files["label"], SCHEMA, Protocol("five", exclude=("clutter",)))
    )
    assert without["overall_accuracy"] == all_classes["overall_accuracy"]
    assert without["per_class"] == all_classes["per_class"]
    five = [without["per_class"][name]["iou"] for name in SCHEMA.classes if name != "clutter"]
    assert without["mean_iou"] == pytest.approx(np.mean(five), abs=1e-15)
    assert (without["protocol"], all_classes["protocol"]) == ("five", "all-classes")


def test_absent_classes_are_none_and_not_zero(write_raster):
    label = np.zeros((8, 8), np.uint8)
    label[4:] = 1
    paths = write_raster("a_classes.tif", label), write_raster("a_label.tif", colours(label))
    result = metrics_to_dict(evaluate(*paths, SCHEMA))
    assert result["mean_iou"] == result["mean_f1"] == result["overall_accuracy"] == 1
    assert result["mean_over"] == ["impervious surface", "building"]
    absent = {"iou": None, "f1": None, "precision": None, "recall": None, "support": 0, "unpredicted": 0}
    assert result["per_class"]["car"] == absent
    json.dumps(result, allow_nan=False)


def test_pixels_that_are_nodata_in_the_scene_are_ignored_and_holes_elsewhere_are_errors(write_raster):
    label = np.zeros((10, 10), np.uint8)
    prediction = label.copy()
    prediction[:3] = IGNORE
    image = np.full((3, 10, 10), 9, np.uint8)
    image[:, :2] = 0
    paths = write_raster("a_classes.tif", prediction, nodata=255), write_raster("a_label.tif", colours(label))
    scene = write_raster("a_image.tif", image, nodata=0)
    blind, seeing = evaluate(*paths, SCHEMA), evaluate(*paths, SCHEMA, scenes=[scene])
    assert (blind.overall_accuracy, seeing.overall_accuracy) == (0.7, 70 / 80)
    assert seeing.scores.confusion.ignored == 20
    assert any("10 labelled pixels (12.50 %) have no prediction" in note for note in metrics_to_dict(seeing)["notes"])


def test_a_map_in_colours_equals_the_map_in_indices(scene, write_raster):
    files, _, prediction = scene
    coloured = write_raster("coloured.tif", colours(prediction))
    by_index = metrics_to_dict(evaluate(files["prediction"], files["label"], SCHEMA))
    by_colour = metrics_to_dict(evaluate(coloured, files["label"], SCHEMA))
    assert by_colour["confusion_matrix"] == by_index["confusion_matrix"]


def test_labels_spelt_as_values_meet_maps_of_class_indices(write_raster):
    values = np.array([[0, 1, 7], [3, 3, 2]], np.uint8)  # LoveDA: 0 is no data, 1 to 7 are the classes
    prediction = np.array([[5, 0, 6], [2, 2, 1]], np.uint8)
    paths = write_raster("1_classes.tif", prediction, nodata=255), write_raster("1.png.tif", values)
    metrics = evaluate(*paths, "loveda")
    assert metrics.overall_accuracy == 1 and metrics.scores.confusion.ignored == 1


def test_few_unknown_colours_are_ignored_and_reported_and_many_are_refused(write_raster):
    label = colours(np.zeros((20, 20), np.uint8))
    label[:, 0, :3] = 17
    paths = write_raster("a_classes.tif", np.zeros((20, 20), np.uint8)), write_raster("a_label.tif", label)
    result = metrics_to_dict(evaluate(*paths, SCHEMA, Protocol("eroded", ignore_boundary=2)))
    assert (result["unknown_label_pixels"], result["evaluated_pixels"]) == (3, 397)
    assert any("3 pixels have a label that the class schema lacks" in note for note in result["notes"])
    message = r"a_label.tif holds \(17, 17, 17\), which schema 'vaihingen' does not know; use .* 3 pixels, 0.75 %"
    with pytest.raises(RasterError, match=message):
        evaluate(*paths, SCHEMA, max_unknown=0.005)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"array": np.zeros((90, 71), np.uint8)}, "town_bad.tif is 90 x 71 .*town_label.tif is 90 x 70"),
        ({"transform": Affine(0.5, 0, 500_010.0, 0, -0.5, 5_400_000.0)}, "town_bad.tif .*town_label.tif .*20 pixels"),
        ({"crs": "EPSG:25833"}, "town_bad.tif is in EPSG:25833 and .*town_label.tif in EPSG:25832"),
        ({"array": np.full((90, 70), 6, np.uint8)}, "holds the value 6; schema 'vaihingen' has .* 0 to 5"),
        ({"array": np.zeros((90, 70), np.float32)}, "holds float32"),
        ({"array": np.zeros((2, 90, 70), np.uint8)}, "2 bands"),
        ({"array": np.full((3, 90, 70), 9, np.uint8)}, r"prediction .*town_bad.tif holds \(9, 9, 9\)"),
    ],
)
def test_a_map_that_does_not_fit_is_refused_by_name(scene, write_raster, change, message):
    files, _, prediction = scene
    path = write_raster("town_bad.tif", **{"array": prediction, **change})
    with pytest.raises(RasterError, match=message):
        evaluate(path, files["label"], SCHEMA)


def test_a_map_of_the_same_classes_in_another_order_is_caught_by_its_colour_table(scene, write_raster):
    files, _, prediction = scene
    import rasterio

    path = write_raster("town_other.tif", prediction, photometric="palette")
    with rasterio.open(path, "r+") as sink:
        sink.write_colormap(1, dict(enumerate(reversed(SCHEMA.colours))))
    with pytest.raises(RasterError, match="draws class 0 in the colour of 'clutter', but .* 'impervious surface'"):
        evaluate(path, files["label"], SCHEMA)


def test_a_set_without_a_labelled_pixel_is_refused(write_raster):
    empty = np.full((5, 5), IGNORE, np.uint8)
    paths = write_raster("a_classes.tif", np.zeros((5, 5), np.uint8)), write_raster("a_label.tif", colours(empty))
    with pytest.raises(RasterError, match="no labelled pixel"):
        evaluate(*paths, SCHEMA)


def test_unequal_numbers_are_refused():
    with pytest.raises(ConfigError, match="2 predictions and 1 labels"):
        subjects(["a.tif", "b.tif"], "c.tif", None, None)
    with pytest.raises(ConfigError, match="0 predictions and 0 labels"):
        subjects([], [], None, None)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([("PROS362_classes", "PROS362_label")], ("PROS362",)),
        ([("area2_classes", "area2"), ("area4_classes", "area4")], ("area2", "area4")),
        ([("top_2_10_classes", "top_2_10_label"), ("top_2_11_classes", "top_2_11_label")], ("top_2_10", "top_2_11")),
        ([("map1", "truth1"), ("map2", "truth2")], ("truth1", "truth2")),
        ([("set_map_1", "set_truth_1"), ("set_map_2", "set_truth_2")], ("set_truth_1", "set_truth_2")),
    ],
)
def test_scenes_are_called_by_what_their_files_have_in_common(names, expected, tmp_path):
    pairs = [(tmp_path / f"{one}.tif", tmp_path / f"{other}.tif") for one, other in names]
    assert scene_names(pairs) == expected


def test_windows_cover_a_raster_once():
    seen = np.zeros((1100, 9000), np.uint8)
    for window in windows(*seen.shape):
        seen[window.slices] += 1
    assert (seen == 1).all()


def test_progress_ends_at_all_pixels(scene, monkeypatch):
    files, *_ = scene
    monkeypatch.setattr(rasters, "_ROWS", 32)
    seen = []
    evaluate(files["prediction"], files["label"], SCHEMA, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2240, 6300), (4480, 6300), (6300, 6300)]


def test_nodata_that_a_scene_does_not_declare_can_be_said(write_raster):
    image = np.full((3, 40, 50), 7, np.uint8)
    image[:, :10] = 0
    truth = np.zeros((40, 50), np.uint8)
    mapped = truth.copy()
    mapped[:10] = 255
    schema = ClassSchema("two", ("a", "b"), ((1, 1, 1), (2, 2, 2)))
    files = write_raster("a_classes.tif", mapped, nodata=255), write_raster("a_label.tif", truth)
    scene = write_raster("a_image.tif", image)
    for nodata, pixels in (((), 2000), ((0.0,), 1500)):
        found = evaluate(*files, schema, scenes=[scene], nodata=nodata)
        assert found.scores.confusion.evaluated == pixels
        assert found.overall_accuracy == 1500 / pixels
