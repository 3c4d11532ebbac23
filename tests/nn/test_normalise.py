import pytest
import torch

from rs_biformer.errors import ConfigError
from rs_biformer.nn.normalise import Normalisation


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.float32, torch.float64])
def test_bands_of_any_type_come_out_standardised_in_float32(dtype):
    raw = torch.tensor([[10, 30], [5, 5]]).to(dtype).view(1, 2, 1, 2)
    out = Normalisation([20, 5], [10, 2])(raw)
    assert out.dtype == torch.float32
    assert out.flatten().tolist() == [-1, 1, 0, 0]


def test_invalid_pixels_become_the_mean_whatever_they_hold():
    raw = torch.tensor([[torch.nan, 7.0], [torch.inf, -32768.0]]).view(1, 1, 2, 2)
    valid = torch.tensor([[False, True], [False, False]]).view(1, 2, 2)
    assert Normalisation([5], [2])(raw, valid).flatten().tolist() == [0, 1, 0, 0]


def test_statistics_are_in_the_state_dict():
    saved = Normalisation([1, 2], [3, 4]).state_dict()
    loaded = Normalisation([0, 0], [1, 1])
    loaded.load_state_dict(saved)
    assert loaded.mean.tolist() == [1, 2]
    assert loaded.std.tolist() == [3, 4]


def test_another_number_of_bands_is_refused():
    with pytest.raises(ConfigError, match="got 4 bands; these statistics are for 3"):
        Normalisation([0] * 3, [1] * 3)(torch.zeros(1, 4, 2, 2))


@pytest.mark.parametrize(("mean", "std"), [([0], [0]), ([0], [-1]), ([float("nan")], [1]), ([0, 0], [1]), ([], [])])
def test_statistics_that_cannot_be_divided_by_are_refused(mean, std):
    with pytest.raises(ConfigError):
        Normalisation(mean, std)
