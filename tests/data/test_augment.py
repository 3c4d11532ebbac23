import warnings

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from rs_biformer.data.augment import Augmentation, by_albumentations, create_augment, draw
from rs_biformer.data.moving import TURNS, Motion, moved
from rs_biformer.errors import ConfigError
from rs_biformer.schema import IGNORE

SIZE = 32


def create(bands: int = 3, **options):
    return create_augment(Augmentation(**options), SIZE, np.full(bands, 100.0), np.full(bands, 20.0))


def window(bands: int, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image whose values tell label and validity, so that their moving together can be seen."""
    label = np.random.default_rng(0).integers(0, 5, (SIZE, SIZE)).astype(np.uint8)
    valid = np.ones((SIZE, SIZE), bool)
    valid[:5, :9] = False
    label[~valid] = IGNORE
    image = np.stack([label.astype(np.int64) + 10 * band for band in range(bands)]).astype(dtype)
    return image, label, valid


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 7])
def test_turning_moves_image_label_and_validity_together(bands, dtype):
    augment = create(bands, d4=True)
    image, label, valid = window(bands, dtype)
    seen = set()
    for seed in range(20):
        turned, moved, still = augment(image, label, valid, np.random.default_rng(seed))
        assert turned.dtype == image.dtype and turned.shape == image.shape
        np.testing.assert_array_equal(turned[0].astype(np.int64), moved.astype(np.int64))
        np.testing.assert_array_equal(still, moved != IGNORE)
        seen.add(moved.tobytes())
    assert len(seen) > 4


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64", "int32"])
@pytest.mark.parametrize("bands", [1, 3, 5])
def test_what_zooming_out_brings_in_is_invalid_and_ignored(bands, dtype):
    augment = create(bands, scale=1.0, probability=1.0)
    image = np.full((bands, SIZE, SIZE), 100, dtype)
    label, valid = np.zeros((SIZE, SIZE), np.uint8), np.ones((SIZE, SIZE), bool)
    invalid = 0
    for seed in range(10):
        zoomed, moved, still = augment(image, label, valid, np.random.default_rng(seed))
        assert zoomed.dtype == image.dtype and zoomed.shape == image.shape
        assert set(np.unique(moved)) <= {0, IGNORE}
        np.testing.assert_array_equal(moved == IGNORE, ~still)
        assert np.allclose(zoomed, 100)  # the fill is the mean, so no edge is drawn
        invalid += int((~still).sum())
    assert invalid > 0


def test_labels_are_never_interpolated():
    augment = create(scale=0.5, rotate=45, probability=1.0)
    image, label, valid = window(3, "uint8")
    label = np.where(label > 2, 4, 0).astype(np.uint8)
    _, moved, _ = augment(image, label, valid, np.random.default_rng(1))
    assert set(np.unique(moved)) == {0, 4, IGNORE}


def test_the_same_generator_gives_the_same_window():
    augment = create(d4=True, scale=0.3, brightness=0.3, contrast=0.2, band=0.1, noise=0.1)
    again = create(d4=True, scale=0.3, brightness=0.3, contrast=0.2, band=0.1, noise=0.1)
    for seed in range(5):
        first = augment(*window(3, "uint8"), np.random.default_rng(seed))
        second = again(*window(3, "uint8"), np.random.default_rng(seed))
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, other)


def test_brightness_shifts_by_standard_deviations():
    augment = create(brightness=0.5, probability=1.0)
    image = np.full((3, SIZE, SIZE), 100.0, np.float32)
    shifts = [augment(image, *window(3, "uint8")[1:], np.random.default_rng(s))[0].mean() - 100 for s in range(200)]
    assert -10 <= min(shifts) < -8 and 8 < max(shifts) <= 10


def test_contrast_keeps_the_mean_where_it_is():
    augment = create(contrast=0.5, probability=1.0)
    image = np.stack([np.full((SIZE, SIZE), value, np.float32) for value in (100, 140, 60)])
    changed = augment(image, *window(3, "uint8")[1:], np.random.default_rng(0))[0]
    assert np.allclose(changed[0], 100)
    assert np.allclose(changed[1] - 100, 100 - changed[2]) and not np.allclose(changed[1], 140)


def test_integers_are_clipped_and_not_wrapped():
    augment = create(brightness=3.0, probability=1.0)
    image = np.full((3, SIZE, SIZE), 250, np.uint8)
    changed = [augment(image, *window(3, "uint8")[1:], np.random.default_rng(s))[0] for s in range(20)]
    assert max(c.max() for c in changed) == 255 and min(c.min() for c in changed) >= 190


def test_without_any_change_there_is_no_augmentation():
    assert create() is None


def test_building_it_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert create(d4=True, scale=0.2, rotate=10.0) is not None


@pytest.mark.parametrize("options", [{"scale": -0.1}, {"contrast": 1.0}, {"probability": 1.5}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=f"augment.{next(iter(options))}"):
        Augmentation(**options)


# --- two back ends ----------------------------------------------------------------------------------------------------


def layers(size: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Smooth bands about 0, as far as half a standard deviation of 20 from a pixel to the next, and masks."""
    rows, cols = np.mgrid[:size, :size].astype(np.float32)
    bands = np.stack([40 * np.sin(rows / 5) + 30 * np.cos(cols / 7), 60 * np.sin((rows + cols) / 9), cols - rows])
    masks = (rows // 8 + cols // 8)[None].repeat(2, 0).astype(np.uint8) % 3
    return bands.astype(np.float32), masks


def test_both_back_ends_turn_to_the_same_eight_pictures():
    bands, masks = layers(SIZE)
    theirs = by_albumentations(Augmentation(d4=True), SIZE)
    found = [theirs(bands, masks, np.random.default_rng(seed)) for seed in range(60)]
    ours = [moved(bands, masks, Motion(turn), SIZE) for turn in range(TURNS)]
    for place in (0, 1):
        assert {one[place].tobytes() for one in found} == {one[place].tobytes() for one in ours}
    assert len({one[0].tobytes() for one in ours}) == TURNS


@pytest.mark.parametrize("zoom, angle", [(1.3, 0.0), (0.6, 0.0), (1.0, 17.0), (0.8, -40.0), (2.0, 90.0), (0.5, 180.0)])
def test_both_back_ends_zoom_and_turn_to_the_same_picture(zoom, angle):
    bands, masks = layers()
    options = Augmentation(scale=1.0, rotate=180, probability=1.0)
    motion = Motion(0, zoom, angle)
    theirs, their_masks = by_albumentations(options, SIZE, motion)(bands, masks, np.random.default_rng(0))
    ours, our_masks = moved(bands, masks, motion, SIZE)
    assert ours.shape == theirs.shape == (3, SIZE, SIZE) and ours.dtype == theirs.dtype
    assert (our_masks != their_masks).mean() < 0.01  # where two pixels are as near
    assert (our_masks == IGNORE).any() == (their_masks == IGNORE).any() == (zoom < 1)
    inside = (our_masks != IGNORE).all(0) & (their_masks != IGNORE).all(0)
    assert np.abs(ours - theirs)[:, inside].max() < 1.0  # 1e-5, but for OpenCVs that take places to 1/32 of a pixel


@pytest.mark.parametrize("backend", ["albumentations", "scipy"])
def test_blurring_keeps_levels_and_softens_edges(backend):
    """albumentations' own blur cut what deviates from the mean off at 0 and 1."""
    augment = create(blur=2.0, probability=1.0, backend=backend)
    image = np.full((3, SIZE, SIZE), 30, np.uint8)
    image[..., SIZE // 2 :] = 210
    label, valid = np.zeros((SIZE, SIZE), np.uint8), np.ones((SIZE, SIZE), bool)
    softest = 180
    for seed in range(20):
        blurred, *_ = augment(image, label, valid, np.random.default_rng(seed))
        assert (blurred[..., :8] == 30).all() and (blurred[..., -8:] == 210).all()
        steps = np.diff(blurred.astype(int), axis=-1)
        assert (steps >= 0).all()
        softest = min(softest, steps.max())
    assert softest < 60


@pytest.mark.parametrize("sigma", [0.7, 1.5, 3.0])
def test_a_blur_is_the_gaussian_of_scipy(sigma):
    bands, masks = layers(SIZE)
    wanted = gaussian_filter(bands.astype(np.float64), (0, sigma, sigma), mode="mirror", radius=int(3.5 * sigma))
    np.testing.assert_allclose(moved(bands, masks, Motion(blur=sigma), SIZE)[0], wanted, atol=1e-3)


def test_motions_are_drawn_from_the_distributions_that_are_promised():
    options = Augmentation(d4=True, scale=0.5, rotate=20, blur=2.0, probability=0.6)
    found = [draw(options, np.random.default_rng(seed)) for seed in range(4000)]
    warped, blurred = [one for one in found if one.zoom != 1], [one for one in found if one.blur]
    assert abs(len(warped) / 4000 - 0.6) < 0.03 and abs(len(blurred) / 4000 - 0.6) < 0.03
    assert abs(len([one for one in warped if one.blur]) / 4000 - 0.36) < 0.03  # each by itself
    for values, low, high in (
        ([one.zoom for one in warped], 1 / 1.5, 1.5),
        ([one.angle for one in warped], -20, 20),
        ([one.blur for one in blurred], 0, 2),
    ):
        assert low <= min(values) < low + 0.02 * (high - low) and high - 0.02 * (high - low) < max(values) <= high
        assert abs(np.mean(values) - (low + high) / 2) < 0.03 * (high - low)
    assert (
        np.bincount([one.turn for one in found]).min() > 400
        and draw(Augmentation(), np.random.default_rng()) == Motion()
    )


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_augmentation_by_scipy_moves_image_label_and_validity_together(dtype):
    augment = create(3, d4=True, scale=0.4, rotate=30, blur=1.0, brightness=0.1, probability=1.0, backend="scipy")
    length = SIZE + 2 * augment.margin
    label = (np.arange(length) // 8 % 3).astype(np.uint8)[None].repeat(length, 0)
    image = (100 + 50 * label.astype(np.int64))[None].repeat(3, 0).astype(dtype)
    for seed in range(8):
        changed, moved_label, valid = augment(image, label, np.ones_like(label, bool), np.random.default_rng(seed))
        assert (
            changed.shape == (3, SIZE, SIZE)
            and changed.dtype == image.dtype
            and set(np.unique(moved_label)) <= {0, 1, 2}
        )
        assert valid.all()
        means = [changed[:, moved_label == value].mean() for value in range(3) if (moved_label == value).sum() > 20]
        assert all(later - before > 20 for before, later in zip(means, means[1:], strict=False))


def test_an_unknown_back_end_is_refused():
    with pytest.raises(ConfigError, match="augment.backend is 'torchvision'; it must be one of albumentations, scipy"):
        Augmentation(backend="torchvision")
