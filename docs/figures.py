"""Draws the figures of the explanations with the code that they explain: `python docs/figures.py`.

What a pixel attends to is found from outside: by which pixels of its input the output of a module at that pixel changes
(its gradient). So a figure shows what the module does, and not what is said of it.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from rs_biformer.geometry import Window, axis_weights, stride_of
from rs_biformer.nn.attention import BiLevelRoutingAttention, MultiScaleDilatedAttention
from rs_biformer.nn.attention.conv_attention import ConvAttention, ConvRelativePosition
from rs_biformer.nn.attention.cross_shaped import CrossShapedAttention
from rs_biformer.synthetic import Town, render

IMAGES = Path(__file__).parent / "images"
SIDE, CELL = 32, 8  # of the feature map, in pixels; of a pixel of it, in those of the scene
AT = (13, 18)  # the pixel that attends: row, column
CHANNELS, HEADS = 64, 4
REGIONS, TOPK = 8, 4
DILATIONS = (1, 2)
STRIPE = 2

Attention = Callable[[Tensor], Tensor]
"""(1, H, W, C) -> (1, H, W, C)."""


def scene() -> NDArray[np.uint8]:
    """A synthetic scene (3, h, w): near infrared, red and green."""
    return render(Town.from_seed(4), Window(600, 600, SIDE * CELL, SIDE * CELL), 0.25)[0]


def features(image: NDArray[np.uint8]) -> Tensor:
    """Colour and roughness of each cell, standardised and turned into (1, H, W, C) without loss."""
    pixels = torch.from_numpy(image.astype(np.float32))[None]
    mean = F.avg_pool2d(pixels, CELL)
    rough = (F.avg_pool2d(pixels**2, CELL) - mean**2).clamp(0).sqrt()
    joined = torch.cat((mean, rough), dim=1)
    joined = (joined - joined.mean((2, 3), keepdim=True)) / joined.std((2, 3), keepdim=True)
    turn = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(0)))[0]
    return joined.permute(0, 2, 3, 1) @ turn[: joined.shape[1]]


def attentions() -> dict[str, Attention]:
    """The four kinds. Queries, keys and values are the features themselves: alike attends to alike."""
    torch.manual_seed(0)
    routed = BiLevelRoutingAttention(CHANNELS, HEADS, REGIONS, TOPK)
    dilated = MultiScaleDilatedAttention(CHANNELS, HEADS, dilations=DILATIONS)
    crossed = CrossShapedAttention(CHANNELS, HEADS, STRIPE)
    factorised = ConvAttention(CHANNELS, HEADS)
    position = ConvRelativePosition(CHANNELS, {3: 1, 5: 1, 7: 2})
    for module in (routed, dilated, crossed, factorised):
        with torch.no_grad():
            module.qkv.weight.copy_(torch.eye(CHANNELS).repeat(3, 1))
            module.qkv.bias.zero_()
            nn.init.orthogonal_(module.project.weight)
    return {
        "bra": routed,
        "msda": dilated,
        "cross_shaped": crossed,
        "conv_attention": lambda x: factorised(x, x.new_zeros(1, 0, CHANNELS), position)[0],
    }


def influence(attend: Attention, x: Tensor, at: tuple[int, int] = AT) -> NDArray[np.float32]:
    """How much each pixel of x changes the output at one pixel: (H, W), the Euclidean length of the gradient."""
    x = x.clone().requires_grad_()
    chosen = attend(x)[0, at[0], at[1]]
    direction = torch.randn(chosen.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((chosen * direction).sum(), x)
    return gradient[0].norm(dim=-1).numpy()


def draw(image: NDArray[np.uint8], found: NDArray[np.float32], every: int | None = None) -> Image.Image:
    """The scene where the pixel looks, pale where it does not; the stronger the redder. every: cells between lines."""
    strength = np.log10(np.maximum(found / np.median(found[found > 0]), 1e-3)) / 2 + 0.5
    shown = np.where(found > 0, np.clip(strength, 0.05, 1), 0)
    large = np.kron(shown, np.ones((CELL, CELL)))[..., None]
    base = np.moveaxis(image, 0, -1).astype(np.float64)
    hot = 255 * colormaps["autumn_r"](large[..., 0])[..., :3]
    drawn = np.where(large > 0, (1 - 0.6 * large) * base + 0.6 * large * hot, 0.25 * base + 0.75 * 255)
    drawn = np.kron(drawn.clip(0, 255).astype(np.uint8), np.ones((2, 2, 1), np.uint8))
    cell = 2 * CELL
    if every:
        drawn[:: every * cell], drawn[:, :: every * cell] = 120, 120
    top, left = (place * cell for place in AT)
    for edge in (slice(top - 2, top + 1), slice(top + cell - 1, top + cell + 2)):
        drawn[edge, left - 2 : left + cell + 2] = 0, 0, 200
    for edge in (slice(left - 2, left + 1), slice(left + cell - 1, left + cell + 2)):
        drawn[top - 2 : top + cell + 2, edge] = 0, 0, 200
    return Image.fromarray(drawn).quantize(96)


def draw_weights(path: Path, length: int = 160, size: int = 64) -> None:
    """Blend weights of the windows along a row, for three overlaps, and their sum."""
    figure = Figure(figsize=(9, 2.4), layout="constrained")
    for axes, (overlap, blend) in zip(
        figure.subplots(1, 3, sharey=True), ((0.125, "hann"), (0.5, "hann"), (0.5, "center")), strict=True
    ):
        stride = stride_of(size, overlap)
        weights, total = axis_weights(length, size, stride, blend), np.zeros(length)
        starts = [min(number * stride, length - size) for number in range(len(weights))]
        for start, weight in zip(starts, weights, strict=True):
            axes.fill_between(np.arange(start, start + size), weight, alpha=0.35, step="mid")
            total[start : start + size] += weight
        axes.plot(total, color="black", linewidth=1)
        axes.set(title=f"overlap {overlap}, {blend}", xlabel="pixel along a row", ylim=(0, 1.1), xlim=(0, length - 1))
    figure.savefig(path, dpi=90, metadata={"Software": None})


def main() -> None:
    """Write all figures."""
    image = scene()
    x = features(image)
    for name, attend in attentions().items():
        draw(image, influence(attend, x), SIDE // REGIONS if name == "bra" else None).save(
            IMAGES / f"attention_{name}.png", optimize=True
        )
    draw_weights(IMAGES / "blend_weights.png")


if __name__ == "__main__":
    main()
