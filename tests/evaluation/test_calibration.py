import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from torchmetrics.classification import BinaryCalibrationError

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.evaluation import Protocol, evaluate, metrics_to_dict
from rs_biformer.evaluation.calibration import count_calibration, no_calibration
from rs_biformer.schema import IGNORE, ClassSchema

SCHEMA = ClassSchema("two", ("ground", "roof"), ((1, 1, 1), (2, 2, 2)))


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), pixels=st.integers(1, 300))
def test_the_curve_equals_that_of_scikit_learn(seed, pixels):
    rng = np.random.default_rng(seed)
    confidence = np.where(rng.random(pixels) < 0.1, rng.choice([0.0, 1.0], pixels), rng.beta(5, 1, pixels))
    right = rng.random(pixels) < confidence
    counts = count_calibration(confidence, right)
    accuracy, mean = calibration_curve(right, confidence, n_bins=15)
    filled = counts.pixels > 0
    np.testing.assert_allclose(counts.accuracy[filled], accuracy, atol=1e-12)
    np.testing.assert_allclose(counts.mean_confidence[filled], mean, atol=1e-12)
    assert np.isnan(counts.accuracy[~filled]).all()
    expected = (counts.pixels[filled] / pixels * np.abs(accuracy - mean)).sum()
    assert counts.expected_error == pytest.approx(expected, abs=1e-12)
    assert counts.largest_error == pytest.approx(np.abs(accuracy - mean).max(), abs=1e-12)
    assert counts.overconfidence == pytest.approx(confidence.mean() - right.mean(), abs=1e-12)


def test_the_error_equals_that_of_torchmetrics():
    rng = np.random.default_rng(3)
    confidence = rng.random(2000)
    right = rng.random(2000) < confidence**2
    theirs = BinaryCalibrationError(n_bins=15, norm="l1")(torch.tensor(confidence), torch.tensor(right).int())
    assert count_calibration(confidence, right).expected_error == pytest.approx(float(theirs), abs=1e-6)  # float32


def test_the_bins_hold_their_upper_ends():
    counts = count_calibration(np.array([0.0, 0.5, 1.0]), np.array([True, True, False]), bins=2)
    assert counts.pixels.tolist() == [2, 1] and counts.hits.tolist() == [2, 0]


def test_no_pixels_give_no_figures():
    empty = no_calibration()
    assert np.isnan([empty.expected_error, empty.largest_error, empty.overconfidence]).all()


@pytest.fixture
def rasters(write_raster):
    """A label with holes, a map with holes, its confidences and probabilities, of 40 x 30 pixels."""
    rng = np.random.default_rng(0)
    label = rng.choice([0, 1, IGNORE], (40, 30)).astype(np.uint8)
    roof = rng.random((40, 30)).astype(np.float32)
    prediction = (roof > 0.5).astype(np.uint8)
    prediction[5:8, :4] = IGNORE
    sure = np.where(prediction == IGNORE, np.nan, np.maximum(roof, 1 - roof)).astype(np.float32)
    return {
        "label": write_raster("a_label.tif", label, nodata=IGNORE),
        "map": write_raster("a_classes.tif", prediction, nodata=IGNORE),
        "confidence": write_raster("a_confidence.tif", sure, nodata=np.nan),
        "probabilities": write_raster("a_probabilities.tif", np.stack([1 - roof, roof])),
        "bytes": write_raster(
            "b_confidence.tif", np.where(np.isnan(sure), 255, np.nan_to_num(sure) * 250).round().astype(np.uint8)
        ),
        "arrays": (label, prediction, sure),
    }


@pytest.mark.parametrize("kind", ["confidence", "probabilities", "bytes"])
@pytest.mark.parametrize("rows", [512, 7])
def test_streamed_calibration_equals_that_of_the_whole_scene(rasters, monkeypatch, kind, rows):
    monkeypatch.setattr("rs_biformer.evaluation.rasters._ROWS", rows)
    label, prediction, sure = rasters["arrays"]
    sure = np.round(sure * 250) / 250 if kind == "bytes" else sure
    metrics = evaluate(rasters["map"], rasters["label"], SCHEMA, confidences=[rasters[kind]])
    known = (label != IGNORE) & (prediction != IGNORE)
    whole = count_calibration(sure[known].astype(np.float32).astype(np.float64), (label == prediction)[known])
    found = metrics.calibration
    np.testing.assert_array_equal(found.pixels, whole.pixels)
    np.testing.assert_array_equal(found.hits, whole.hits)
    np.testing.assert_allclose(found.confidence, whole.confidence, rtol=1e-12)
    assert metrics_to_dict(metrics)["calibration"]["expected_error"] == pytest.approx(whole.expected_error, abs=1e-12)


def test_eroded_pixels_take_no_part(rasters):
    full = evaluate(rasters["map"], rasters["label"], SCHEMA, confidences=[rasters["confidence"]])
    protocol = Protocol("eroded", ignore_boundary=1)
    eroded = evaluate(rasters["map"], rasters["label"], SCHEMA, protocol, confidences=rasters["confidence"])
    evaluated = eroded.scores.confusion
    assert eroded.calibration.pixels.sum() == evaluated.evaluated - evaluated.unpredicted.sum()
    assert 0 < eroded.calibration.pixels.sum() < full.calibration.pixels.sum()


def test_rasters_that_are_no_probabilities_are_refused(rasters, write_raster):
    shape = (40, 30)
    for array, message in (
        (np.zeros((3, *shape), np.float32), "3 bands; confidence has one, probabilities have 2"),
        (np.zeros(shape, np.int16), "int16; probabilities are uint8 or float"),
        (np.full(shape, 7, np.float32), "holds 7.0; probabilities are 0 to 250 as bytes, else 0 to 1"),
        (np.full(shape, 254, np.uint8), "holds 254; probabilities"),
        (np.zeros((41, 30), np.float32), "must have the same size"),
    ):
        with pytest.raises(RasterError, match=message):
            evaluate(rasters["map"], rasters["label"], SCHEMA, confidences=[write_raster("bad.tif", array)])
    with pytest.raises(ConfigError, match="2 confidence rasters for 1 predictions"):
        evaluate(rasters["map"], rasters["label"], SCHEMA, confidences=[rasters["confidence"]] * 2)
