"""The options of prediction: one name, one group, one default; scales that would be counted twice are refused."""

from dataclasses import fields

import pytest

from rs_biformer.errors import ConfigError
from rs_biformer.predict.options import Compute, Options, Output, Windows


def test_each_name_finds_its_group_and_the_others_keep_their_defaults():
    options = Options.of(window=512, tta="d4", device="cpu", restart=True)
    assert options.windows == Windows(window=512, tta="d4")
    assert options.compute == Compute(device="cpu")
    assert options.output == Output(restart=True)


def test_no_two_groups_have_an_option_of_one_name():
    names = [item.name for group in (Windows, Compute, Output) for item in fields(group)]
    assert len(set(names)) == len(names)


def test_a_name_that_is_none_is_refused_with_the_nearest():
    with pytest.raises(TypeError, match="no option 'overlp'; did you mean 'overlap'"):
        Options.of(overlp=0.25)


@pytest.mark.parametrize(
    ("window", "scales", "side"),
    [(256, (1.0, 1.05), 256), (256, (0.5, 0.52), 128), (32, (0.25, 0.5), 32), (512, (1.25, 0.75, 0.76), 384)],
)
def test_scales_that_round_to_one_view_are_refused(window, scales, side):
    one, other = scales[-2:]
    with pytest.raises(ConfigError, match=rf"scales {one:g} and {other:g} give the same views, of {side} pixels"):
        Windows(window=window, scales=scales)


def test_scales_near_each_other_are_taken_where_their_views_differ():
    assert len(Windows(window=1024, scales=(1.0, 1.05), tta="flips").views) == 8


@pytest.mark.parametrize("window", [0, -8])
def test_a_window_without_pixels_is_refused(window):
    with pytest.raises(ConfigError, match=f"window is {window} pixels; it must be 1 or more"):
        Options.of(window=window)


def test_scales_may_be_any_sequence():
    assert Windows(scales=[0.75, 1, 1.25]).scales == (0.75, 1, 1.25)
