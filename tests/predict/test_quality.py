"""Which windows a quality means: held against the pixels that are inferred, counted by hand or by trying all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rs_biformer.errors import ConfigError
from rs_biformer.geometry import window_starts
from rs_biformer.predict.options import Windows
from rs_biformer.predict.quality import Seen, Sight, choices, fitted, keeps_regions

FAR = (100_000, 100_000)
GROWS, STAYS = Sight(256, grows=True), Sight(256)


def first(windows: Windows, sight: Sight | None = GROWS, batch: int = 8, scene: tuple[int, int] = FAR) -> Seen:
    return next(choices(windows, batch, sight, *scene))


def test_what_is_given_is_taken_as_it_is_and_the_other_is_as_it_ever_was():
    assert first(Windows(512)) == Seen(512, 0.5, 8)
    assert first(Windows(overlap=0.25)) == Seen(256, 0.25, 8)
    assert first(Windows(512, 0.125)) == Seen(512, 0.125, 8)
    assert first(Windows(512, 0.125, quality="fast"))[:3] == (512, 0.125, 8)
    assert len(list(choices(Windows(512), 8, GROWS, *FAR))) == 1


def test_a_model_of_which_nothing_is_known_looks_as_it_ever_did():
    assert first(Windows(), None) == Seen(256, 0.5, 8)
    assert first(Windows(quality="best"), None)[:3] == (256, 0.5, 8)


def test_best_is_half_an_overlap_of_the_windows_of_training():
    assert first(Windows(quality="best"))[:3] == (256, 0.5, 8)
    assert first(Windows(quality="best"), Sight(192, grows=True))[:3] == (192, 0.5, 8)


def test_balanced_shares_as_many_pixels_of_windows_twice_as_large_and_fast_half_of_them():
    small = Sight(96, grows=True)
    assert first(Windows(), small) == Seen(192, 0.25, 8, "quality balanced")
    assert first(Windows(quality="fast"), small) == Seen(192, 0.125, 8, "quality fast")
    assert first(Windows(quality="fast", overlap=0.3))[:3] == (512, 0.3, 2)


def test_larger_windows_have_less_edge_and_share_less_but_never_under_half_of_the_most():
    assert first(Windows(), Sight(128, grows=True))[:2] == (256, 64 / 256)
    assert first(Windows(), Sight(192, grows=True))[:2] == (384, 42 / 384)  # 64 * 256 / 384
    assert first(Windows()) == Seen(576, 32 / 576, 1, "quality balanced")
    assert first(Windows(), Sight(512, grows=True), scene=(1152 + 1120 * 9,) * 2)[:2] == (1152, 32 / 1152)
    assert first(Windows(quality="fast")) == Seen(576, 16 / 576, 1, "quality fast")
    assert first(Windows(quality="fast"), Sight(192, grows=True))[:2] == (384, 21 / 384)
    assert first(Windows(768, quality="balanced"))[:2] == (768, 32 / 768)
    assert first(Windows(768, quality="best"))[:2] == (768, 128 / 768)  # as wide as ever
    assert first(Windows(256, quality="balanced"))[:2] == (256, 0.5)
    assert first(Windows(quality="best"), Sight(1024, grows=True))[:2] == (1024, 0.5)


def test_what_cannot_grow_keeps_its_window():
    assert first(Windows(), STAYS)[:3] == (256, 0.5, 8)
    assert first(Windows(quality="fast"), STAYS)[:3] == (256, 0.25, 8)
    assert first(Windows(quality="fast"), None)[:3] == (256, 0.25, 8)


def test_a_pass_holds_no_more_pixels_than_with_the_windows_of_training():
    assert first(Windows(), batch=3)[:3] == (256, 0.5, 3)
    assert first(Windows(), batch=4)[:3] == (512, 32 / 512, 1)
    assert first(Windows(), Sight(512, grows=True), scene=(1024 + 992 * 9,) * 2)[:3] == (1024, 32 / 1024, 2)
    # of 128 as many as of 256: a pass of so little is not worth a smaller one
    assert first(Windows(), Sight(128, grows=True))[:3] == (256, 64 / 256, 8)


def test_the_next_choice_is_the_window_of_training():
    assert [seen[:3] for seen in choices(Windows(), 8, GROWS, *FAR)] == [(576, 32 / 576, 1), (256, 0.5, 8)]


def test_where_a_quality_decides_regions_keep_their_size_and_old_command_lines_their_meaning():
    routes = Sight(256, grows=True, routes=True)
    assert keeps_regions(Windows(), routes)
    assert keeps_regions(Windows(quality="fast"), routes)
    assert keeps_regions(Windows(512, quality="balanced"), routes)
    assert not keeps_regions(Windows(quality="best"), routes)  # the default of before, whatever the views' scales
    assert first(Windows(512, quality="best"), routes).rule == "quality best"
    assert first(Windows(512, quality="fast"), routes).rule == "quality fast, regions as large as in training"
    assert not keeps_regions(Windows(512), routes)
    assert not keeps_regions(Windows(overlap=0.25), routes)
    assert not keeps_regions(Windows(), GROWS)  # nothing is routed
    assert not keeps_regions(Windows(quality="fast"), Sight(256, routes=True))  # its window stays
    assert not keeps_regions(Windows(quality="fast"), None)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([64, 100, 128, 192, 256]), st.booleans())
def test_no_scene_is_inferred_more_often_than_with_the_largest_windows(height: int, width: int, least: int, half: bool):
    shared = least // (2 if half else 4)

    def inferred(side: int) -> int:
        rows, columns = (len(window_starts(length, side, side - shared)) for length in (height, width))
        return rows * columns * side**2

    side = fitted((height, width), 2 * least, least, shared)
    assert least <= side <= 2 * least
    assert side % 32 == 0 or side in (least, 2 * least)
    assert inferred(side) <= inferred(2 * least)
    # a large scene is looked at through windows not much smaller than the largest
    assert side >= min(2 * least * 3 // 4, height, width)


def test_a_window_is_fitted_to_the_scene_by_hand():
    assert fitted((300, 300), 512, 256, 128) == 320  # one window, and not one of 512
    assert fitted((700, 700), 512, 256, 128) == 416  # two of 416 share 132, and not two of 512
    assert fitted((200, 90), 512, 256, 128) == 256


@pytest.mark.parametrize("quality", ["", "good", 1])
def test_another_quality_is_refused(quality: object):
    with pytest.raises(ConfigError, match="fast, balanced, best"):
        Windows(quality=quality)  # type: ignore[arg-type]
