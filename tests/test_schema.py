import pytest
import yaml

from rs_biformer.errors import ConfigError
from rs_biformer.schema import IGNORE, PRESETS, ClassSchema, load_schema


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
        ("classes: 3", "classes is 3; it should be a list"),
        ("classes: [{name: a}]", r"classes\[0\] \(a\) has no colour"),
        ("classes: [{colour: [1, 2, 3]}]", r"classes\[0\].name is missing"),
        ("classes: [{name: a, colour: [1, 2]}]", r"classes\[0\].colour"),
        ("classes: [{name: a, colour: [1, 2, 300]}]", r"classes\[0\].colour\[2\] is 300.*255"),
        ("classes: [{name: a, colour: [1, 2, 1.7]}]", r"classes\[0\].colour\[2\] is 1.7"),
        ("classes: [{name: a, colour: [.inf, 2, 3]}]", r"classes\[0\].colour\[0\]"),
        ("classes: [{name: a, colour: [.nan, 2, 3]}]", r"classes\[0\].colour\[0\]"),
        ("classes: [{name: a, colour: red}]", r"classes\[0\].colour"),
        ("classes: [{name: a, colour: [true, 2, 3]}]", r"classes\[0\].colour\[0\]"),
        ("classes: [{name: a, colour: [1, 2, 3], color: 1}]", "no key 'color'"),
        (
            "classes: [{name: a, colour: [1, 2, 3], value: water}]",
            r"classes\[0\].value \(a\) is 'water'; .*\[water, 0\]",
        ),
        ("classes: [{name: a, colour: [1, 2, 3], value: null}]", r"classes\[0\].value \(a\) is null"),
        ("classes: [{name: a, colour: [1, 2, 3], value: }]", r"classes\[0\].value \(a\) is null"),
        ("classes: [{name: a, colour: [1, 2, 3], value: 1.9}]", r"classes\[0\].value \(a\) is 1.9"),
        ("classes: [{name: a, colour: [1, 2, 3], value: .inf}]", r"classes\[0\].value"),
        ("classes: [{name: a, colour: [1, 2, 3], value: yes please}]", r"classes\[0\].value"),
        ("classes: [{name: a, colour: [1, 2, 3], value: true}]", r"classes\[0\].value"),
        ("classes: [{name: a, colour: [1, 2, 3], value: 2020-01-01}]", r"classes\[0\].value"),
        ("classes: [{name: a, colour: [1, 2, 3], value: []}]", r"classes\[0\].value"),
        ("classes: [{name: a, colour: [1, 2, 3], value: [water]}]", r"classes\[0\].value"),
        ("classes: [{name: a, colour: [1, 2, 3], value: [1, 2.5]}]", r"classes\[0\].value"),
        ("classes: [{name: a, colour: [1, 2, 3], value: [1, [2]]}]", r"classes\[0\].value"),
        ("classes: [{name: a, colour: [1, 2, 3], value: {a: 1}}]", r"classes\[0\].value"),
        ("classes: [{name: a, colour: [1, 2, 3], value: 99999999999999999999}]", "beyond 64 bits"),
        ("classes: [{name: a, colour: [1, 2, 3]}]\nignore: {values: 255}", "ignore.values is 255; it should be a list"),
        ("classes: [{name: a, colour: [1, 2, 3]}]\nignore: {values: [none]}", r"ignore.values\[0\] is 'none'"),
        ("classes: [{name: a, colour: [1, 2, 3]}]\nignore: {values: [1.5]}", r"ignore.values\[0\] is 1.5"),
        ("classes: [{name: a, colour: [1, 2, 3]}]\nignore: {colours: [0, 0, 0]}", r"ignore.colours\[0\] is 0"),
        ("classes: [{name: a, colour: [1, 2, 3]}]\nignore: [255]", "ignore is"),
        ("classes: [{name: a, colour: [1, 2, 3], value: 255}]\nignore: {values: [255]}", "ignore.values; remove it"),
        ("classes: [{name: a, colour: [1, 2, 3]}]\noutside: b", "no class 'b'.*outside: ignore"),
        ("- a", "mapping"),
        ("", "null"),
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


def _written(text, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_schema(path)


def test_several_values_and_colours_make_one_class(tmp_path):
    schema = _written(
        "classes:\n"
        "- {name: water, colour: [0, 0, 255], value: 11}\n"
        "- {name: developed, colours: [[255, 0, 0], [200, 0, 0]], value: [city, 21, 22, 23]}\n",
        tmp_path,
    )
    assert schema.values == (11, 21) and schema.colours == ((0, 0, 255), (255, 0, 0))
    assert dict(schema.class_values()) == {11: 0, 21: 1, "city": 1, 22: 1, 23: 1}
    assert dict(schema.class_colours()) == {(0, 0, 255): 0, (255, 0, 0): 1, (200, 0, 0): 1}
    assert schema.class_numbers() == {11: 0, 21: 1, 22: 1, 23: 1}
    assert ClassSchema.from_dict(schema.to_dict()) == schema
    assert schema.plainly_numbered().class_numbers() == {0: 0, 1: 1}


def test_one_value_cannot_mean_two_classes(tmp_path):
    with pytest.raises(ConfigError, match="label value twice: 22"):
        _written(
            "classes: [{name: a, colour: [0, 0, 0], value: [21, 22]}, {name: b, colour: [1, 0, 0], value: 22}]",
            tmp_path,
        )


def test_a_class_of_value_255_needs_no_trick(tmp_path):
    schema = _written(
        "classes: [{name: a, colour: [0, 0, 0], value: 0}, {name: b, colour: [9, 9, 9], value: 255}]", tmp_path
    )
    assert schema.values == (0, 255) and schema.ignore_values == ()
    assert ClassSchema.from_dict(schema.to_dict()) == schema
    assert ClassSchema("x", ("a",), ((1, 2, 3),), values=(255,)).ignore_values == ()


def test_whole_numbers_are_taken_as_spreadsheets_write_them(tmp_path):
    schema = _written("classes: [{name: 7, colour: [1.0, '2', 3], value: '12'}]\nignore: {values: null}", tmp_path)
    assert (schema.classes, schema.colours, schema.values) == (("7",), ((1, 2, 3),), (12,))
    assert schema.ignore_values == ()


def test_what_lies_outside_of_polygons_is_a_class_or_ignored(tmp_path):
    text = "classes: [{name: meadow, colour: [1, 2, 3]}]\nignore: {names: [cloud]}\noutside: "
    schema = _written(text + "meadow", tmp_path)
    assert schema.outside == "meadow" and schema.ignore_names == ("cloud",)
    assert ClassSchema.from_dict(schema.to_dict()) == schema
    assert _written(text + "ignore", tmp_path).outside is None


def test_the_presets_are_spelt_as_their_publishers_spell_them():
    """ISPRS 2D Semantic Labeling Contest; LoveDA (Wang et al. 2021), whose masks hold 1 to 7 and 0 for no data."""
    white, blue, cyan, green, yellow, red = (
        *((255, 255, 255), (0, 0, 255), (0, 255, 255)),
        *((0, 255, 0), (255, 255, 0), (255, 0, 0)),
    )
    for name in ("vaihingen", "potsdam"):
        assert PRESETS[name].colours == (white, blue, cyan, green, yellow, red)
        assert PRESETS[name].classes == ("impervious surface", "building", "low vegetation", "tree", "car", "clutter")
        assert PRESETS[name].ignore_colours == ((0, 0, 0),)
    loveda = PRESETS["loveda"]
    assert loveda.classes == ("background", "building", "road", "water", "barren", "forest", "agriculture")
    assert loveda.colours == (white, red, yellow, blue, (159, 129, 183), green, (255, 195, 128))
    assert (loveda.values, loveda.ignore_values) == ((1, 2, 3, 4, 5, 6, 7), (0, IGNORE))
    assert loveda.ignore_colours == ((0, 0, 0),)


def test_255_as_a_class_is_no_longer_ignored_and_other_ignored_values_stay():
    colours = ((1, 1, 1), (2, 2, 2))
    assert ClassSchema("two", ("a", "b"), colours, (1, 255)).ignore_values == ()
    assert ClassSchema("two", ("a", "b"), colours, (1, 255), ignore_values=(0,)).ignore_values == (0,)
    assert ClassSchema("two", ("a", "b"), colours, (1, 2)).ignore_values == (IGNORE,)
