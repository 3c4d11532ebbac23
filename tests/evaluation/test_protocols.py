import numpy as np
import pytest
import yaml

from rs_biformer.errors import ConfigError
from rs_biformer.evaluation.confusion import Confusion
from rs_biformer.evaluation.protocols import PROTOCOLS, Protocol, load_protocol, padding
from rs_biformer.schema import PRESETS, ClassSchema


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_survives_the_round_trip_through_yaml(name, tmp_path):
    path = tmp_path / "protocol.yaml"
    path.write_text(yaml.safe_dump(PROTOCOLS[name].to_dict()))
    assert load_protocol(path) == PROTOCOLS[name] == load_protocol(name)


def test_the_official_vaihingen_splits_have_the_published_sizes():
    sizes = {name: (len(p.train), len(p.test)) for name, p in PROTOCOLS.items()}
    assert sizes == {
        "all-classes": (0, 0),
        "isprs-official": (16, 17),
        "geoseg-legacy": (16, 17),
        "ssrs-12-4": (12, 4),
        "mmseg-6class": (16, 17),
    }
    official = PROTOCOLS["isprs-official"]
    assert set(official.train) | set(official.test) == set(PROTOCOLS["mmseg-6class"].train + official.test)
    assert len(set(official.train + official.test)) == 33


def test_only_the_six_class_protocols_average_clutter():
    clutter = PRESETS["vaihingen"].classes.index("clutter")
    with_clutter = {name for name, p in PROTOCOLS.items() if clutter in p.averaged(PRESETS["vaihingen"])}
    assert with_clutter == {"all-classes", "mmseg-6class"}


def test_scene_ids_are_read_from_the_official_names():
    protocol = PROTOCOLS["isprs-official"]
    assert protocol.scene_id("top_mosaic_09cm_area12") == "12"
    assert protocol.scene_id("top_mosaic_09cm_area2_noBoundary") == "2"
    assert protocol.scene_id("somewhere") is None


def test_a_training_scene_is_refused_and_the_test_split_passes_without_notes():
    protocol = PROTOCOLS["ssrs-12-4"]
    assert protocol.check_scenes([f"area{number}" for number in (5, 21, 15, 30)]) == ()
    with pytest.raises(ConfigError, match="area3 is training scene 3 of protocol 'ssrs-12-4'"):
        protocol.check_scenes(["area5", "area3"])


def test_missing_and_foreign_scenes_are_noted():
    notes = PROTOCOLS["ssrs-12-4"].check_scenes(["area5", "area15", "area30", "area99", "village"])
    assert notes == (
        "not among the official test scenes: village, area99",
        "1 of 4 official test scenes were not evaluated: 21",
    )


def test_an_unknown_protocol_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"use all-classes, .*; did you mean isprs-official\?"):
        load_protocol("isprs-oficial")


def test_excluding_a_class_that_the_schema_lacks_is_refused():
    with pytest.raises(ConfigError, match="names the class 'clutter', which schema 'loveda' does not have"):
        PROTOCOLS["isprs-official"].averaged(PRESETS["loveda"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ignore_boundry: 3", r"no key 'ignore_boundry'.* did you mean ignore_boundary\?"),
        ("description: nameless", "id is missing"),
        ("{id: ''}", "id is ''; string should have at least 1 character"),
        ("{id: mine, description: null}", "description is null; it should be text"),
        ("{id: mine, pad_to: 99999999, pad_class: tree}", "pad_to 99999999"),
        ("{id: mine, window: 99999999}", "window 99999999"),
        ("{id: mine, scene_pattern: '((a+)+)$'}", "a repeat in a repeat, which may take years"),
        ("{id: mine, scene_pattern: '(a*a*a*a*)b'}", "more than 3 of . and ., which may take years"),
        ("{id: mine, scene_pattern: '(a?a?a?a?a?a?a?a?a?)'}", "which may take years"),
        ("{id: mine, train: [1.5]}", r"train.0. is 1.5; it should be text"),
        ("{id: mine, ignore_boundary: -1}", "radius of 0 to 255"),
        ("{id: mine, ignore_boundary: 1.5}", "ignore_boundary is 1.5; it should be a whole number"),
        ("{id: mine, exclude: tree}", "exclude is 'tree'; it should be a list"),
        ("{id: mine, pad_to: 1024}", "give both"),
        ("{id: mine, pad_class: tree}", "give both"),
        ("{id: mine, window: 64, overlap: 1}", "a share from 0 to below 1"),
        ("{id: mine, overlap: none}", "overlap is 'none'; it should be a number"),
        ("{id: mine, excluded_labels: drop}", "use count or ignore"),
        ("{id: mine, test: [1]}", "give scene_pattern"),
        ("{id: mine, scene_pattern: 'area', test: [1]}", "0 groups; it needs exactly one"),
        ("{id: mine, scene_pattern: '(', test: [1]}", "no regular expression"),
        ("{id: mine, scene_pattern: '(.)', test: [1], train: [1]}", "in both train and test"),
        ("- a list", "should be a mapping"),
        ("{", "no valid YAML"),
    ],
)
def test_a_protocol_file_that_cannot_be_meant_is_refused_with_its_path(text, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"mine.yaml.*{message}"):
        load_protocol(path)


def test_a_protocol_that_leaves_nothing_to_average_is_refused():
    schema = PRESETS["vaihingen"]
    with pytest.raises(ConfigError, match="every class"):
        Protocol("none", exclude=schema.classes).averaged(schema)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(2048, 1024, 0), (2049, 1024, 3072 * 1024 - 2049 * 1024), (2494, 2064, 4_289_568)]
)
def test_padding_is_what_two_sides_rounded_up_have_more(height, width, expected):
    assert padding(height, width, 1024) == expected


def blocks(*matrices):
    matrix = np.array(matrices, np.int64)
    return Confusion(matrix, np.arange(matrix.shape[0] * matrix.shape[1]).reshape(matrix.shape[:2]), ignored=4)


SCHEMA = ClassSchema("three", ("road", "tree", "clutter"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))


def test_labels_of_an_excluded_class_count_or_are_ignored_as_the_protocol_says():
    counts = blocks([[5, 1, 1], [0, 4, 2], [3, 0, 2]])
    counted = Protocol("a", exclude=("clutter",)).apply(counts, SCHEMA, 4, 5)
    assert counted is counts
    ignored = Protocol("b", exclude=("clutter",), excluded_labels="ignore").apply(counts, SCHEMA, 4, 5)
    # Predictions of clutter elsewhere stay errors; the labels of clutter and its missing predictions are gone.
    assert ignored.matrix.tolist() == [[[5, 1, 1], [0, 4, 2], [0, 0, 0]]]
    assert ignored.unpredicted.tolist() == [[0, 1, 0]] and ignored.ignored == 4 + 5 + 2
    assert counts.matrix[0, 2].tolist() == [3, 0, 2]


def test_scored_padding_is_one_more_block_of_right_pixels():
    counts = blocks([[5, 1, 1], [0, 4, 2], [3, 0, 2]])
    padded = Protocol("p", pad_to=8, pad_class="tree").apply(counts, SCHEMA, 4, 5)
    assert padded.matrix[1].tolist() == [[0, 0, 0], [0, 64 - 20, 0], [0, 0, 0]] and padded.padded == 44
    assert padded.total.evaluated == counts.total.evaluated + 44


def test_a_plain_protocol_takes_labels_as_they_are():
    plain = Protocol("plain")
    assert (plain.ignore_boundary, plain.pad_to, plain.window, plain.overlap) == (0, 0, 0, 0)
    assert (plain.excluded_labels, plain.exclude, plain.scene_pattern) == ("count", (), "")


@pytest.mark.parametrize(
    ("least", "most", "beyond"),
    [
        ({"ignore_boundary": 0}, {"ignore_boundary": 255}, [{"ignore_boundary": -1}, {"ignore_boundary": 256}]),
        ({"window": 0}, {"window": 65536}, [{"window": -1}, {"window": 65537}]),
        ({"overlap": 0.0}, {"overlap": 0.99}, [{"overlap": -0.01}, {"overlap": 1.0}]),
        (
            {"pad_to": 1, "pad_class": "a"},
            {"pad_to": 65536, "pad_class": "a"},
            [{"pad_to": -1, "pad_class": "a"}, {"pad_to": 65537, "pad_class": "a"}, {"pad_to": 8}, {"pad_class": "a"}],
        ),
        ({"scene_pattern": "(a)"}, {"scene_pattern": "(a)" + "b" * 497}, [{"scene_pattern": "(a)" + "b" * 498}]),
        ({"train": ["1"], "scene_pattern": "(a)"}, {"test": ["1"], "scene_pattern": "(a)"}, [{"train": ["1"]}]),
    ],
)
def test_numbers_of_a_protocol_have_bounds(least, most, beyond):
    for allowed in (least, most):
        Protocol("mine", **allowed)
    for refused in beyond:
        with pytest.raises(ConfigError, match="protocol 'mine'"):
            Protocol("mine", **refused)
