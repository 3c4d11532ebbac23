"""Cutting a feature map into regions and putting it together again.

B batch, H and W the map's height and width, C channels, R regions, P pixels per region.
Serves bi-level routing attention and cross-shaped attention: both are attention inside groups of pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def region_size(height: int, width: int, regions: int) -> tuple[int, int]:
    """Height and width of a region when at most `regions` x `regions` of them cover a map.

    Rounded up, so a map that does not divide evenly has fewer regions per side, the last of them partly outside;
    a map smaller than `regions` pixels has regions of one pixel. There is no region without a pixel of the map.
    """
    return -(-height // regions), -(-width // regions)


def pad_to_multiple(x: Tensor, height: int, width: int) -> Tensor:
    """Grow (B, H, W, C) by zeros at the bottom and right until H and W are multiples of `height` and `width`."""
    down, right = -x.shape[1] % height, -x.shape[2] % width
    return F.pad(x, (0, 0, 0, right, 0, down)) if down or right else x


def partition(x: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W, C) -> (B, R, P, C): regions of `height` x `width` row by row, their pixels row by row.

    H and W must be multiples of `height` and `width`; see pad_to_multiple.
    """
    batch, rows, columns, channels = x.shape
    x = x.view(batch, rows // height, height, columns // width, width, channels)
    return x.transpose(2, 3).reshape(batch, -1, height * width, channels)


def unpartition(x: Tensor, size: tuple[int, int], height: int, width: int) -> Tensor:
    """(B, R, P, C) -> (B, H, W, C) with (H, W) = `size`; the inverse of partition, cropping what padding added."""
    rows, columns = -(-size[0] // height), -(-size[1] // width)
    x = x.view(x.shape[0], rows, columns, height, width, x.shape[-1]).transpose(2, 3)
    x = x.reshape(x.shape[0], rows * height, columns * width, x.shape[-1])
    return x[:, : size[0], : size[1]]


def region_of_pixel(size: tuple[int, int], height: int, width: int, device: torch.device) -> Tensor:
    """(H * W,) int64: the number of the region, row by row, in which each pixel of the map lies."""
    rows = torch.arange(size[0], device=device) // height
    columns = torch.arange(size[1], device=device) // width
    return (rows[:, None] * -(-size[1] // width) + columns).flatten()
