"""Which label belongs to which map: names confirm an order, or show that a shell has permuted it."""

from pathlib import Path

import pytest

from rs_biformer.errors import ConfigError
from rs_biformer.jobs.pairing import pair_by_name

MAP, LABEL = ("map", "label"), ("label", "map")


def files(*names: str) -> list[Path]:
    return [Path(name) for name in names]


def shell(pattern: str, numbers) -> list[Path]:
    return sorted((Path(pattern.format(n)) for n in numbers), key=str)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (files("a_classes.tif", "b_classes.tif"), files("a_label.tif", "b_label.tif")),
        (
            files("maps/area1_classes.tif", "maps/area3_classes.tif"),
            files("top_mosaic_09cm_area1.tif", "top_mosaic_09cm_area3.tif"),
        ),
        (files("map_2.tif", "map_10.tif"), files("truth_02.tif", "truth_10.tif")),
        (files("2_10_RGB.tif", "10_2_RGB.tif"), files("2_10_label.tif", "10_2_label.tif")),
        (files("x/train/1.tif", "x/val/1.tif"), files("y/train/1_mask.tif", "y/val/1_mask.tif")),
        (files("ortho_2021_05.tif", "ortho_2022_07.tif"), files("2021.tif", "2022.tif")),
        (files("north_a.tif", "north_b.tif", "south_a.tif"), files("a_north.tif", "b_north.tif", "a_south.tif")),
        (shell("map_{}.tif", range(1, 13)), shell("truth_{}.tif", range(1, 13))),
        (["https://host/a.tif?sig=1", "https://host/b.tif?sig=2"], files("a.tif", "b.tif")),
    ],
)
def test_names_confirm_the_order(left, right):
    assert pair_by_name(left, right, MAP).places == tuple(range(len(left)))
    assert not pair_by_name(left, right, MAP).note
    assert not pair_by_name(right, left, LABEL).note


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (shell("map_{}.tif", range(1, 13)), shell("truth_{:02d}.tif", range(1, 13))),
        (shell("{}.tif", range(8, 12)), shell("gt/{:03d}_mask.png", range(8, 12))),
        (files("a_map.tif", "b_map.tif"), files("label_b.tif", "label_a.tif")),
        (files("zurich_map.tif", "basel_map.tif", "bern_map.tif"), files("basel.tif", "bern.tif", "zurich.tif")),
        (files("scene_a_2021.tif", "scene_b_2022.tif"), files("mask_b.tif", "mask_a.tif")),
        (files("t1_x10.tif", "t1_x9.tif"), files("x9.png", "x10.png")),
        (files("x/val/1.tif", "x/train/1.tif"), files("y/train/1.tif", "y/val/1.tif")),
    ],
)
def test_a_permutation_is_refused_and_paired_by_name_on_request(left, right):
    with pytest.raises(ConfigError, match=r"stands beside label .* and by their names it belongs to .*--pair names"):
        pair_by_name(left, right, MAP)
    assert pair_by_name(left, right, MAP, "order").places == tuple(range(len(left)))
    by_name = pair_by_name(left, right, MAP, "names")
    assert "out of the order given" in by_name.note
    for place, partner in enumerate(by_name.places):
        assert pair_by_name([left[place]], [right[partner]], MAP).places == (0,)
    # what is paired by name is confirmed by names
    assert not pair_by_name(left, [right[partner] for partner in by_name.places], MAP).note


def test_the_shell_s_order_of_twelve_is_undone_by_name():
    left, right = shell("map_{}.tif", range(1, 13)), shell("truth_{:02d}.tif", range(1, 13))
    places = pair_by_name(left, right, MAP, "names").places
    assert [int(left[n].stem[4:]) for n in range(12)] == [int(right[place].stem[6:]) for place in places]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (files("old.tif", "new.tif"), files("first.tif", "second.tif")),
        (files("1_2.tif", "2_1.tif"), files("x3.tif", "x4.tif")),
    ],
)
def test_where_names_do_not_tell_the_order_is_said(left, right):
    found = pair_by_name(left, right, MAP)
    assert found.places == (0, 1)
    assert f"{left[0]} with {right[0]}" in found.note
    with pytest.raises(ConfigError, match="belongs to none of the labels"):
        pair_by_name(left, right, MAP, "names")


def test_one_pair_needs_no_names():
    assert pair_by_name(files("map.tif"), files("truth.tif"), MAP) == pair_by_name(files("a.tif"), files("a.tif"), MAP)


def test_lists_of_two_lengths_are_refused():
    with pytest.raises(ConfigError, match="2 maps and 1 labels; give one label for each map, or a pattern"):
        pair_by_name(files("a.tif", "b.tif"), files("a.tif"), MAP)


def test_two_that_belong_to_one_are_refused_by_name():
    with pytest.raises(ConfigError, match="both belong to"):
        pair_by_name(files("a_1.tif", "a_1_x.tif", "c_2.tif"), files("b_1.tif", "b_5.tif", "b_2.tif"), MAP, "names")
    with pytest.raises(ConfigError, match="must be one of auto, names, order"):
        pair_by_name(files("a.tif"), files("a.tif"), MAP, "luck")


def test_thousands_of_files_are_paired_by_equal_names():
    left, right = shell("map_{}.tif", range(3000)), shell("t_{:05d}.tif", range(3000))
    places = pair_by_name(left, right, MAP, "names").places
    assert all(int(left[n].stem[4:]) == int(right[place].stem[2:]) for n, place in enumerate(places))
