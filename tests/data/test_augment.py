import warnings

import numpy as np
import pytest

from rs_biformer.data.augment import Augmentation, create_augment
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
