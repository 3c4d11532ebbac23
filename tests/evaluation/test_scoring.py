"""What the protocols make of one and the same map: the differences that published figures are confused by."""

import json

import numpy as np
import pytest
import rasterio
from scipy import ndimage
from sklearn import metrics as sk

from rs_biformer.errors import ConfigError
from rs_biformer.evaluation import PROTOCOLS, Protocol, evaluate, evaluate_protocols, metrics_to_dict
from rs_biformer.schema import IGNORE, PRESETS

SCHEMA = PRESETS["vaihingen"]
FIVE, SIX = range(5), range(6)


@pytest.fixture
def town(write_raster):
    """Label and prediction of a Vaihingen test scene of 1100 x 900 pixels, 15 % of the prediction wrong."""
    rng = np.random.default_rng(2)
    noise = ndimage.zoom(rng.random((6, 40, 33)), (1, 27.5, 27.5), order=1)[:, :1100, :900]
    label = noise.argmax(axis=0).astype(np.uint8)
    wrong = ndimage.zoom(rng.random((40, 33)), 27.5, order=0)[:1100, :900] < 0.15
    prediction = np.where(wrong, (label + 1) % 6, label).astype(np.uint8)
    prediction[50:60, 50:60] = IGNORE
    return {
        "label": label,
        "map": prediction,
        "files": (
            write_raster("area2_classes.tif", prediction, nodata=IGNORE),
            write_raster("area2_label.tif", np.moveaxis(np.array(SCHEMA.colours, np.uint8)[label], -1, 0)),
        ),
    }


@pytest.fixture
def scored(town):
    """The map under each protocol of Vaihingen that may score scene 2, from one reading."""
    ids = ("isprs-official", "geoseg-legacy", "mmseg-6class", "all-classes")
    results = evaluate_protocols(*town["files"], SCHEMA, ids)
    return dict(zip(ids, results, strict=True))


def kept_by_erosion(label: np.ndarray) -> np.ndarray:
    """Pixels of which every other pixel within 3 has their class, by scipy."""
    grid = np.arange(-3, 4)
    disc = grid[:, None] ** 2 + grid**2 <= 9
    return ndimage.minimum_filter(label, footprint=disc, mode="nearest") == ndimage.maximum_filter(
        label, footprint=disc, mode="nearest"
    )


def expected(town, kept, classes, padding=0) -> tuple[float, float, float]:
    """Overall accuracy, mean IoU and mean F1 of scikit-learn, with padding scored as right pixels of class 0."""
    truth = np.concatenate([town["label"][kept], np.zeros(padding, np.uint8)])
    found = np.concatenate([town["map"][kept], np.zeros(padding, np.uint8)])
    scores = [
        score(truth, found, labels=classes, average="macro", zero_division=0)
        for score in (sk.jaccard_score, sk.f1_score)
    ]
    return (sk.accuracy_score(truth, found), *scores)


def test_each_protocol_gives_what_scikit_learn_gives_by_its_rules(town, scored):
    full, eroded = np.ones(town["label"].shape, bool), kept_by_erosion(town["label"])
    padding = 2048 * 1024 - 1100 * 900
    for name, kept, classes, added in (
        ("all-classes", full, SIX, 0),
        ("isprs-official", eroded, FIVE, 0),
        ("mmseg-6class", eroded, SIX, 0),
        ("geoseg-legacy", eroded, FIVE, padding),
    ):
        metrics = scored[name]
        found = (metrics.overall_accuracy, metrics.mean_iou, metrics.mean_f1)
        assert found == pytest.approx(expected(town, kept, classes, added), abs=1e-12), name
        json.dumps(metrics_to_dict(metrics), allow_nan=False)


def test_scored_padding_lifts_the_accuracy_from_oa_to_oa_times_1_minus_p_plus_p(scored):
    honest, padded = scored["isprs-official"], scored["geoseg-legacy"]
    counts = padded.scores.confusion
    p = counts.padded / counts.evaluated
    assert p > 0.5 and counts.padded == 2048 * 1024 - 1100 * 900
    oa = honest.overall_accuracy
    assert padded.overall_accuracy == pytest.approx(oa * (1 - p) + p, abs=1e-12)
    assert padded.overall_accuracy - oa > 0.05  # the size of the effect on this map
    first = SCHEMA.classes[0]
    gain = metrics_to_dict(padded)["per_class"][first]["iou"] - metrics_to_dict(honest)["per_class"][first]["iou"]
    assert gain > 0.1
    others = [name for name in SCHEMA.classes if name != first]
    for name in others:  # the other classes are what they were: right padding takes nothing from them
        assert metrics_to_dict(padded)["per_class"][name] == metrics_to_dict(honest)["per_class"][name]


def test_the_flaws_are_said_in_every_result(scored):
    notes = metrics_to_dict(scored["geoseg-legacy"])["notes"]
    assert any("padding that is in no scene is scored" in note for note in notes)
    counts = scored["geoseg-legacy"].scores.confusion
    share = f"{100 * counts.padded / counts.evaluated:.1f} %"
    assert f"1,107,152 of the scored pixels ({share}) are padding and in no scene" in notes
    assert any("checkpoints chosen on the test scenes" in note for note in notes)
    assert not any("padding" in note for note in metrics_to_dict(scored["isprs-official"])["notes"])


def test_five_and_six_classes_on_eroded_and_full_labels_come_at_once(town, scored):
    full, eroded = np.ones(town["label"].shape, bool), kept_by_erosion(town["label"])
    forms = metrics_to_dict(scored["isprs-official"])["forms"]
    for name, kept, classes in (
        ("eroded labels, 5 classes", eroded, FIVE),
        ("eroded labels, 6 classes", eroded, SIX),
        ("full labels, 5 classes", full, FIVE),
        ("full labels, 6 classes", full, SIX),
    ):
        found = [forms[name][figure] for figure in ("overall_accuracy", "mean_iou", "mean_f1")]
        assert found == pytest.approx(expected(town, kept, classes), abs=1e-12), name
    assert len(forms) == 4


def test_several_protocols_at_once_give_what_each_gives_alone(town, scored):
    for name, metrics in scored.items():
        alone = metrics_to_dict(evaluate(*town["files"], SCHEMA, name))
        together = metrics_to_dict(metrics)
        for result in (alone, together):  # the one has counted radii that the other has no use for
            for scene in result["per_scene"]:
                del scene["counts"]
        assert together == alone


def test_clutter_that_is_ignored_is_as_if_it_had_no_label(town):
    protocol = Protocol("no clutter", exclude=("clutter",), excluded_labels="ignore")
    metrics = evaluate(*town["files"], SCHEMA, protocol)
    found = (metrics.overall_accuracy, metrics.mean_iou, metrics.mean_f1)
    assert found == pytest.approx(expected(town, town["label"] != 5, FIVE), abs=1e-12)


def test_every_result_carries_its_protocol_the_version_and_the_options(scored):
    from rs_biformer import __version__

    for name, metrics in scored.items():
        result = metrics_to_dict(metrics)
        assert (result["protocol"], result["version"]) == (name, __version__)
        assert result["protocol_definition"] == PROTOCOLS[name].to_dict()
        assert result["options"] == {"tolerance": 0, "max_unknown": 0.01, "boundary": []}
        assert {"unit", "samples", "level", "seed", "units"} <= set(result["intervals"])


def test_a_map_stitched_in_another_way_than_the_protocol_asks_is_noted(town):
    path = town["files"][0]
    with rasterio.open(path, "r+") as file:
        file.update_tags(PREDICTION_WINDOW="256", PREDICTION_OVERLAP="0.5")
    asked = [
        metrics_to_dict(evaluate(*town["files"], SCHEMA, name))["notes"] for name in ("geoseg-legacy", "isprs-official")
    ]
    sentence = (
        "1 of 1 maps were made from windows of 256 pixels with overlap 0.5, where the protocol asks for 1024 and 0"
    )
    assert sentence in asked[0] and sentence not in asked[1]
    with rasterio.open(path, "r+") as file:
        file.update_tags(PREDICTION_WINDOW="1024", PREDICTION_OVERLAP="0")
    assert not any("windows of" in note for note in evaluate(*town["files"], SCHEMA, "geoseg-legacy").cautions)


def test_a_training_scene_is_refused_under_any_of_the_protocols(town):
    with pytest.raises(ConfigError, match="training scene 2 of protocol 'mine'"):
        mine = Protocol("mine", scene_pattern=r"area(\d+)", train=("2",), test=("3",))
        evaluate_protocols(*town["files"], SCHEMA, ["all-classes", mine])
