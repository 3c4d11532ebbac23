import pytest
import yaml

from rs_biformer.errors import ConfigError
from rs_biformer.schema import PRESETS, ClassSchema, load_schema


@pytest.mark.parametrize("name", PRESETS)
def test_a_schema_survives_the_round_trip_through_yaml(name, tmp_path):
    path = tmp_path / "classes.yaml"
    path.write_text(yaml.safe_dump(PRESETS[name].to_dict()))
    assert load_schema(path) == PRESETS[name]


def test_the_isprs_colours_are_those_of_the_contest():
    schema = load_schema("vaihingen")
    assert dict(zip(schema.classes, schema.colours, strict=True)) == {
        "impervious surface": (255, 255, 255),
        "building": (0, 0, 255),
        "low vegetation": (0, 255, 255),
        "tree": (0, 255, 0),
        "car": (255, 255, 0),
        "clutter": (255, 0, 0),
    }
    assert schema.ignore_colours == ((0, 0, 0),)


def test_values_count_up_from_zero_unless_given():
    assert load_schema("vaihingen").values == (0, 1, 2, 3, 4, 5)
    assert load_schema("loveda").values == (1, 2, 3, 4, 5, 6, 7)


def test_an_unknown_name_is_refused_with_the_nearest_preset():
    with pytest.raises(ConfigError, match="did you mean vaihingen"):
        load_schema("vaihinegn")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [", "no valid YAML"),
        ("classes: 3", "needs the keys"),
        ("classes: [{name: a}]", "needs a name and a colour"),
        ("classes: [{name: a, colour: [1, 2]}]", "no colour"),
        ("classes: [{name: a, colour: [1, 2, 300]}]", "0 to 255"),
        ("classes: [{name: a, colour: [1, 2, 3], color: 1}]", "no key 'color'"),
        ("classes: [{name: a, colour: [1, 2, 3]}, {name: a, colour: [1, 2, 4]}]", "class name twice"),
        ("classes: [{name: a, colour: [1, 2, 3]}, {name: b, colour: [1, 2, 3]}]", "colour twice"),
        ("classes: [{name: a, colour: [1, 2, 3]}]\nignore: {values: [0]}", "label value twice"),
        ("clases: []\nclasses: []", "no key 'clases'"),
    ],
)
def test_a_broken_schema_file_is_refused_by_name_and_reason(text, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_schema(path)
    assert "mine.yaml" in str(caught.value)


def test_a_schema_needs_one_colour_per_class():
    with pytest.raises(ConfigError, match="2 names, 1 colours"):
        ClassSchema("x", ("a", "b"), ((1, 2, 3),))
