import json
import subprocess
import sys
import tracemalloc
import zlib
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rs_biformer.errors import ConfigError
from rs_biformer.evaluation import (
    PROTOCOLS,
    Protocol,
    Resampling,
    compare,
    evaluate,
    merge,
    metrics_to_dict,
    read_results,
)
from rs_biformer.evaluation.boundary import BoundaryCounts
from rs_biformer.evaluation.calibration import CalibrationCounts
from rs_biformer.evaluation.compare import comparison_to_dict, sentences
from rs_biformer.evaluation.confusion import Confusion
from rs_biformer.evaluation.metrics import Metrics, Options, SceneResult
from rs_biformer.evaluation.report import write_json, write_results
from rs_biformer.evaluation.results import metrics_from_dict
from rs_biformer.schema import IGNORE, ClassSchema

SCHEMA = ClassSchema("three", ("ground", "roof", "tree"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))


@pytest.fixture
def scenes(write_raster):
    """Labels of two scenes of 1400 x 1100 pixels, and the maps of a good, an equal and a bad model."""
    made: dict[str, list[Path]] = {"label": [], "good": [], "equal": [], "bad": [], "confidence": []}
    for number in range(2):
        rng = np.random.default_rng(number)
        label = rng.integers(0, 3, (70, 55)).astype(np.uint8).repeat(20, 0).repeat(20, 1)
        label[:30, :40] = IGNORE
        made["label"].append(write_raster(f"{number}_label.tif", label, nodata=IGNORE))
        for name, share in (("good", 0.1), ("equal", 0.1), ("bad", 0.25)):
            wrong = rng.random((140, 110)).repeat(10, 0).repeat(10, 1) < share
            made[name].append(
                write_raster(f"{number}_{name}.tif", np.where(wrong, (label + 1) % 3, label % 3).astype(np.uint8))
            )
        sure = rng.random(label.shape).astype(np.float32)
        made["confidence"].append(write_raster(f"{number}_confidence.tif", sure))
    return made


def measured(scenes, name, protocol=None, **options):
    rules = protocol or Protocol("mine", exclude=("tree",), ignore_boundary=2)
    return replace(evaluate(scenes[name], scenes["label"], SCHEMA, rules, **options), name=name)


def test_a_result_read_back_is_the_result_that_was_written(scenes, tmp_path):
    metrics = measured(
        scenes, "good", boundary=(3, 1), confidences=scenes["confidence"], resampling=Resampling("scenes", 500)
    )
    path = write_json(tmp_path / "good.json", metrics)
    (again,) = read_results(path)
    assert metrics_to_dict(again) == metrics_to_dict(metrics)
    assert again.options.boundary == (1.0, 3.0) and again.boundary_f1.shape == (2,)


def test_several_results_in_one_file_are_read_back_and_nameless_ones_get_that_of_the_file(scenes, tmp_path):
    results = [measured(scenes, name) for name in ("good", "bad")]
    path = write_results(tmp_path / "both.json", results, {"mine": compare(results)})
    assert [metrics.name for metrics in read_results(path)] == ["good", "bad"]
    content = json.loads(path.read_text())
    assert content["protocols"] == ["mine"] and content["comparisons"][0]["protocol"] == "mine"
    nameless = write_json(tmp_path / "lonely.json", replace(results[0], name=""))
    assert read_results(nameless)[0].name == "lonely"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no valid JSON"),
        ("[]", "holds no result"),
        ("3", "holds no result"),
        ('{"results": 3}', "holds no result"),
        ('{"results": [3]}', "it is 3; it should be a mapping; give a file that `rs-biformer evaluate` wrote"),
        ("{}", "schema is missing .*evaluate the maps again"),
        ('{"schema": 3}', "class schema"),
        ('{"format": 99}', "has format 99 and this version knows up to 1: update"),
    ],
)
def test_a_file_that_is_no_result_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"odd.json.*{message}"):
        read_results(path)
    with pytest.raises(ConfigError, match="nowhere.json cannot be read"):
        read_results(tmp_path / "nowhere.json")


@pytest.fixture(scope="module")
def content():
    """A small result as a file has it: of one scene of 600 x 520 pixels, with everything that may be in it."""
    rng = np.random.default_rng(0)
    stack = Confusion(rng.integers(0, 9999, (4, 3, 3)), rng.integers(0, 99, (4, 3)), 10, 5, 1)
    scene = SceneResult(
        "one",
        "one_label.tif",
        "one_map.tif",
        600,
        520,
        {0: stack, 2: stack},
        {2: CalibrationCounts(*(rng.integers(0, 99, 15) for _ in range(2)), rng.random(15))},
        BoundaryCounts((1.0, 3.0), *(rng.integers(0, 99, shape) for shape in (3, 3, (2, 3), (2, 3)))),
        {"MODEL": "x"},
    )
    rules = Protocol("mine", exclude=("tree",), ignore_boundary=2)
    metrics = Metrics(SCHEMA, rules, (scene,), Options(boundary=(1.0, 3.0)), Resampling(samples=100), "model", {"a": 1})
    return json.dumps(metrics_to_dict(metrics))


def changed(content: str, path: str, value: object) -> dict:
    """The result with another value at a path such as per_scene.0.counts.height; `...` takes the key away."""
    found = json.loads(content)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = found
    for part in parents:
        place = place[str(part)] if isinstance(place, dict) else place[part]
    if value is ...:
        del place[last]
    else:
        place[str(last) if isinstance(place, dict) else last] = value
    return found


def test_a_result_survives_the_round_trip_and_what_came_later_is_left_aside(content):
    again = metrics_from_dict(json.loads(content))
    assert json.dumps(metrics_to_dict(again)) == content
    newer = changed(changed_text(content, "later", 1), "per_scene.0.counts.by_erosion.2.later", [1])
    assert json.dumps(metrics_to_dict(metrics_from_dict(newer))) == content
    older = changed(content, "format", ...)
    assert json.dumps(metrics_to_dict(metrics_from_dict(older))) == content


def changed_text(content: str, path: str, value: object) -> str:
    return json.dumps(changed(content, path, value))


BLOCKS = "per_scene.0.counts.by_erosion.2.blocks"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("version", ..., "version is missing"),
        ("schema.classes.0.colour", [1, 2], "class schema: classes"),
        ("protocol_definition.exclude", ["bush"], "names the class 'bush'"),
        ("protocol_definition.ignore_boundary", 3, "no counts of labels eroded by 3"),
        ("protocol_definition.pad_to", 10**12, "pad_to 1000000000000"),
        ("per_scene", [], "per_scene is .*at least 1 item"),
        ("per_scene.0.name", None, r"per_scene\[0\].name is null; it should be text"),
        ("per_scene.0.counts.height", 2**31 - 1, "said to have counts of .* MiB and a file may have those of 512 MiB"),
        ("per_scene.0.counts.height", 10**30 % 2**62, "less than 2147483648"),
        ("per_scene.0.counts.height", 0, "greater than or equal to 1"),
        ("per_scene.0.counts.height", 600.5, "whole number"),
        ("per_scene.0.counts.height", 2000, "not those of 8 blocks and 3 classes"),
        ("per_scene.0.counts.block", 256, "block is 256; it should be greater than or equal to 512"),
        ("per_scene.0.counts.by_erosion.2.ignored", -1, "greater than or equal to 0"),
        ("per_scene.0.counts.by_erosion.x", {}, "by_erosion.x"),
        (BLOCKS, 3, "blocks is 3; it should be text"),
        (BLOCKS, "?", "the counts of 'one' are damaged"),
        (BLOCKS, b64encode(b"nonsense").decode(), "the counts of 'one' are damaged"),
        (BLOCKS, b64encode(zlib.compress(bytes(10**8))).decode(), "not those of 4 blocks"),
        (BLOCKS, b64encode(zlib.compress(bytes(4 * 12 * 4))[:-6]).decode(), "not those of 4 blocks"),
        (BLOCKS, b64encode(zlib.compress(b"\xff" * (4 * 12 * 4))).decode(), "a block has 262,144 pixels at most"),
        ("per_scene.0.counts.calibration.2.pixels", [1], "at least 15 items"),
        ("per_scene.0.counts.calibration.2.confidence", ["x"] * 15, "should be a number"),
        ("per_scene.0.counts.boundary.distances", [1.0, 99.0], "less than or equal to 64"),
        ("per_scene.0.counts.boundary.label", [1, 2], "boundary counts of 'one' are not those of 3 classes"),
        ("per_scene.0.counts.boundary.label_hits", [[1, 2, 3]], "boundary counts of 'one' are not those of 3 classes"),
        ("intervals.samples", 10**12, "1000000000000 samples"),
        ("intervals.seed", -1, "seed -1"),
        ("intervals.unit", "pixels", "draws 'pixels'"),
        ("options.max_unknown", 2, "max_unknown is 2; it should be less than or equal to 1"),
        ("options.strange", 2, "options: it has no key 'strange'; allowed are"),
        ("model", [1], "model is .*; it should be a mapping"),
    ],
)
def test_a_damaged_result_is_refused_in_a_line_before_it_takes_memory(content, path, value, message):
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=f"odd.json: .*{message}") as caught:
            metrics_from_dict(changed(content, path, value), "odd.json")
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_scenes_with_other_distances_are_not_added_up(content):
    two = changed(content, "per_scene.0.name", "two")
    two["per_scene"].append(json.loads(content)["per_scene"][0])
    metrics_from_dict(two)
    two["per_scene"][1]["counts"]["boundary"] = None
    with pytest.raises(ConfigError, match="boundaries within different distances"):
        metrics_from_dict(two)


OLD = Path(__file__).parents[1] / "old"


def test_a_result_of_0_1_0_as_it_was_first_is_read_for_good():
    (metrics,) = read_results(OLD / "result_0_1_0.json")
    written = json.loads((OLD / "result_0_1_0.json").read_text())
    assert "format" not in written and metrics.version == "0.1.0"
    now = metrics_to_dict(metrics)
    assert {key: value for key, value in now.items() if key not in ("format", "name")} == written
    assert metrics.protocol == PROTOCOLS["all-classes"]


def test_a_better_model_is_told_from_a_worse_one_and_not_from_its_equal(scenes):
    good, equal, bad = (measured(scenes, name) for name in ("good", "equal", "bad"))
    found = {(row.first, row.second, row.figure): row for row in compare([good, equal, bad])}
    assert len(found) == 3 * (3 + 2)  # pairs by three figures and the two averaged classes
    for figure in ("mean_iou", "mean_f1", "overall_accuracy", "iou ground", "iou roof"):
        assert found["good", "bad", figure].real and found["equal", "bad", figure].real
        assert not found["good", "equal", figure].real
    row = found["good", "bad", "mean_iou"]
    assert row.value == pytest.approx(good.mean_iou - bad.mean_iou, abs=1e-12)
    assert 0 < row.low < row.value < row.high and row.p < row.adjusted < 0.05
    words = sentences(list(found.values()))
    assert words[1].startswith("good is better than bad by ") and "do not differ by more than chance" in words[0]
    json.dumps(comparison_to_dict(list(found.values())), allow_nan=False)


def test_among_many_models_a_better_one_is_still_told(scenes):
    # a dozen sets make 330 tests: with too few swaps, the least p that can come out is above the threshold
    results = [measured(scenes, "good", resampling=Resampling(samples=200))]
    results += [
        replace(measured(scenes, "bad", resampling=Resampling(samples=200)), name=f"bad {n}") for n in range(11)
    ]
    found = [row for row in compare(results) if row.figure == "mean_iou"]
    assert len(found) == 66 and all(row.real == (row.first == "good") for row in found)


def test_the_order_of_models_and_scenes_changes_signs_only(scenes):
    good, bad = measured(scenes, "good"), measured(scenes, "bad")
    turned = {key: list(reversed(paths)) for key, paths in scenes.items()}
    there, back = compare([good, bad])[1], compare([measured(turned, "bad"), good])[1]
    assert there.figure == back.figure == "mean_iou"
    assert (back.value, back.p) == (pytest.approx(-there.value, abs=1e-15), there.p)


def test_results_of_two_protocols_are_never_compared(scenes):
    good = measured(scenes, "good")
    other = measured(scenes, "bad", Protocol("theirs"))
    with pytest.raises(ConfigError, match="good was measured under protocol 'mine' and bad under 'theirs'"):
        compare([good, other])
    changed = measured(scenes, "bad", Protocol("mine", ignore_boundary=2))
    with pytest.raises(ConfigError, match="two definitions of protocol 'mine'"):
        compare([good, changed])


def test_results_that_differ_otherwise_are_refused_too(scenes):
    good, bad = measured(scenes, "good"), measured(scenes, "bad")
    cases = [
        ([good], "needs two results"),
        ([good, good], "give each a name of its own"),
        ([good, replace(bad, schema=replace(SCHEMA, classes=("ground", "roof", "bush")))], "same classes"),
        ([good, replace(bad, resampling=Resampling(samples=500))], "samples 2000.*samples 500"),
        ([good, replace(bad, scenes=bad.scenes[:1])], "label 1_label.tif is in good alone"),
        (
            [good, replace(bad, scenes=(replace(bad.scenes[0], blocks=bad.scenes[1].blocks), bad.scenes[1]))],
            "on other labelled pixels of 0_label.tif",
        ),
    ]
    for results, message in cases:
        with pytest.raises(ConfigError, match=message):
            compare(results)


def test_merged_parts_are_the_whole_and_parts_that_do_not_fit_are_refused(scenes):
    whole = measured(scenes, "good", boundary=(2,), confidences=scenes["confidence"])
    parts = []
    for place in range(2):
        one = {key: paths[place : place + 1] for key, paths in scenes.items()}
        parts.append(measured(one, "good", boundary=(2,), confidences=one["confidence"]))
    merged = merge(parts)
    assert merged.scores.to_dict() == whole.scores.to_dict()
    assert merged.intervals["mean_iou"] == whole.intervals["mean_iou"]
    np.testing.assert_array_equal(merged.boundary_f1, whole.boundary_f1)
    assert merged.calibration.expected_error == pytest.approx(whole.calibration.expected_error, abs=1e-12)
    with pytest.raises(ConfigError, match="a scene occurs in two"):
        merge([parts[0], parts[0]])
    with pytest.raises(ConfigError, match="another schema, protocol or options"):
        merge([parts[0], measured(scenes, "good", Protocol("theirs"))])


WORKER = """
import sys
import torch
import torch.distributed as dist
from torchmetrics.classification import MulticlassConfusionMatrix
from rs_biformer.evaluation import Protocol, evaluate, merge
from rs_biformer.evaluation.confusion import Confusion
from rs_biformer.evaluation.metrics import Metrics, Options, SceneResult
from rs_biformer.evaluation.report import write_json
from rs_biformer.evaluation.maps import ClassMap
from rs_biformer.geometry import Window
from rs_biformer.schema import ClassSchema

rank, store, out, *files = sys.argv[1:]
rank = int(rank)
schema = ClassSchema("three", ("ground", "roof", "tree"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
prediction, label = files[rank], files[2 + rank]
part = evaluate(prediction, label, schema, Protocol("mine", exclude=("tree",), ignore_boundary=2))
parts = [None, None]
dist.all_gather_object(parts, part)
matrix = MulticlassConfusionMatrix(3, ignore_index=255)
with ClassMap(prediction, schema) as found, ClassMap(label, schema) as truth:
    area = Window(0, 0, 1400, 1100)
    matrix.update(torch.tensor(found.read(area)).long(), torch.tensor(truth.read(area)).long())
total = matrix.compute()  # torchmetrics adds up what the processes have
if rank == 0:
    merged = merge(parts)
    assert merged.full.confusion.matrix.tolist() == total.tolist()
    write_json(out, merged)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_find_what_one_finds(scenes, tmp_path):
    whole = replace(measured(scenes, "good"), name="")
    files = [str(path) for path in (*scenes["good"], *scenes["label"])]
    argv = [str(tmp_path / "store"), str(tmp_path / "merged.json"), *files]
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(rank), *argv]) for rank in range(2)]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    merged, alone = json.loads((tmp_path / "merged.json").read_text()), json.loads(json.dumps(metrics_to_dict(whole)))
    for result in (merged, alone):  # a scene alone is called by its label, two by what tells them apart
        for scene in result["per_scene"]:
            del scene["name"]
    assert merged == alone
