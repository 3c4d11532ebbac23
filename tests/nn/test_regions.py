import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rs_biformer.nn.attention.regions import (
    pad_to_multiple,
    partition,
    region_of_pixel,
    region_size,
    unpartition,
)

SIZES = st.integers(1, 21)


@given(SIZES, SIZES, SIZES, SIZES)
def test_unpartition_undoes_partition_and_padding(height, width, region_height, region_width):
    x = torch.arange(2 * height * width * 3).view(2, height, width, 3)
    padded = pad_to_multiple(x, region_height, region_width)
    parts = partition(padded, region_height, region_width)
    assert parts.shape[2] == region_height * region_width
    assert torch.equal(unpartition(parts, (height, width), region_height, region_width), x)


@given(SIZES, SIZES, st.integers(1, 9))
def test_regions_cover_the_map_and_none_is_empty(height, width, regions):
    rows, columns = region_size(height, width, regions)
    assert rows * regions >= height
    assert columns * regions >= width
    numbers = region_of_pixel((height, width), rows, columns, torch.device("cpu"))
    assert numbers.unique().tolist() == list(range(-(-height // rows) * -(-width // columns)))


def test_partition_lists_regions_and_their_pixels_row_by_row():
    x = torch.arange(16).view(1, 4, 4, 1)
    assert partition(x, 2, 2)[0, :, :, 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (1, 9)])
def test_region_of_pixel_agrees_with_partition(size):
    numbers = region_of_pixel(size, 2, 3, torch.device("cpu")).view(1, *size, 1)
    parts = partition(pad_to_multiple(numbers + 1, 2, 3), 2, 3)[0, :, :, 0] - 1
    for region, pixels in enumerate(parts):
        assert set(pixels.tolist()) <= {region, -1}


def test_padding_is_zero_and_at_the_bottom_and_right():
    padded = pad_to_multiple(torch.ones(1, 3, 2, 1), 2, 4)[0, :, :, 0]
    assert padded.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
