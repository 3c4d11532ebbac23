import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rs_biformer.errors import ConfigError
from rs_biformer.evaluation import Protocol, Resampling, compare, evaluate, merge, read_results
from rs_biformer.evaluation.compare import comparison_to_dict, sentences
from rs_biformer.evaluation.report import write_json, write_results
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
    assert again.to_dict() == metrics.to_dict()
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
        ("{}", "is no result of rs-biformer evaluate that can be compared .*evaluate the maps again"),
        ('{"schema": 3}', "class schema"),
    ],
)
def test_a_file_that_is_no_result_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"odd.json.*{message}"):
        read_results(path)
    with pytest.raises(ConfigError, match="nowhere.json cannot be read"):
        read_results(tmp_path / "nowhere.json")


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
    merged, alone = json.loads((tmp_path / "merged.json").read_text()), json.loads(json.dumps(whole.to_dict()))
    for result in (merged, alone):  # a scene alone is called by its label, two by what tells them apart
        for scene in result["per_scene"]:
            del scene["name"]
    assert merged == alone
