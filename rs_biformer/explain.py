"""What a pixel looks at: the regions it was routed to at each bi-level routing stage, and its attention over them.

Nothing of the network is changed: the inputs of its attention modules are caught on their way, and routing and
attention are worked out once more from each module's own parameters, for the one token in question. A plain vision
transformer routes nothing: what is shown is the attention of its last block over the whole window.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rs_biformer.checkpoint import TrainedModel
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.files import replacing
from rs_biformer.geometry import Window, reflect_pad
from rs_biformer.nn.attention.bra import BiLevelRoutingAttention, route
from rs_biformer.nn.attention.regions import region_of_pixel
from rs_biformer.nn.encoders.plain import PlainTransformer
from rs_biformer.raster.overwriting import refuse_overwriting
from rs_biformer.raster.scene import Scene

LARGEST_WINDOW = 8192
"""Pixels on a side of what is looked at around a place: it goes through the network whole."""


@dataclass(frozen=True)
class Routing:
    """What one attention module did for one token.

    name: of the module in the network. stride: pixels of the input per token.
    token: its row and column on the map. region: height and width of a region, in tokens.
    routed: the upper left corners (row, column) of the regions that it attends to, in tokens.
    attention: (heads, H, W) float32; each head's sums to 1 and is 0 outside the routed regions.
    """

    name: str
    stride: int
    token: tuple[int, int]
    region: tuple[int, int]
    routed: tuple[tuple[int, int], ...]
    attention: NDArray[np.float32]

    @property
    def routed_share(self) -> float:
        """The share of the attention that the most attended region gets, averaged over heads."""
        down, along = self.region
        mean = self.attention.mean(0)
        return max(float(mean[row : row + down, col : col + along].sum()) for row, col in self.routed)


def explain_pixel(model: TrainedModel, image: Tensor, valid: Tensor, row: int, col: int) -> list[Routing]:
    """The routing of the token that holds a pixel: one entry per stage, from the last block of each.

    image: (C, H, W) raw band values; valid: (H, W) bool; row, col: the pixel in them.
    Raises ConfigError for a network with neither bi-level routing attention nor a plain transformer.
    """
    encoder = model.network.get_submodule("encoder")
    if isinstance(encoder, PlainTransformer):
        return [_of_plain_transformer(model, encoder, image, valid, row, col)]
    caught: list[tuple[str, BiLevelRoutingAttention, Tensor]] = []
    sizes: list[int] = []
    hooks = [encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-2]))]
    for name, module in model.network.named_modules():
        if isinstance(module, BiLevelRoutingAttention):
            hooks.append(module.register_forward_pre_hook(_catch(name, caught)))
    try:
        with torch.inference_mode():
            model(image[None], valid[None])
            stages = _last_of_each_stage(caught)
            if not stages:
                raise ConfigError(
                    f"{model.meta.encoder} has no bi-level routing attention to explain; use a BiFormer, a hybrid or a "
                    "plain vision transformer"
                )
            return [_routing(name, module, x, sizes[0] // x.shape[1], row, col) for name, module, x in stages]
    finally:
        for hook in hooks:
            hook.remove()


def _of_plain_transformer(
    model: TrainedModel, encoder: PlainTransformer, image: Tensor, valid: Tensor, row: int, col: int
) -> Routing:
    """The attention of a pixel's token in the last block, over all tokens of the window; one region, the whole of it.

    Tokens beside the map, such as class tokens, are left out and the rest is scaled to a sum of 1.
    """
    caught: list[Tensor] = []
    sizes: list[torch.Size] = []
    parts = encoder.transformer.named_modules()
    blocks = [(name, part) for name, part in parts if hasattr(part, "fused_attn") and hasattr(part, "attn_drop")]
    if not blocks:
        raise ConfigError(f"{model.meta.encoder} does not show its attention; use a ViT, a BiFormer or a hybrid")
    name, block = blocks[-1]
    fused, block.fused_attn = block.fused_attn, False  # a fused kernel never forms the weights
    hooks = [
        encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape)),
        block.get_submodule("attn_drop").register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0])),
    ]
    try:
        with torch.inference_mode():
            model(image[None], valid[None])
    finally:
        block.fused_attn = fused
        for hook in hooks:
            hook.remove()
    height, width = (side // encoder.stride for side in sizes[0][-2:])
    row, col = row // encoder.stride, col // encoder.stride
    weights = caught[0][0]  # (M, N, N), tokens beside the map first
    beside = weights.shape[-1] - height * width
    if len(caught[0]) != 1 or beside < 0:
        raise ConfigError(f"the last block of {model.meta.encoder} does not see the whole window; nothing can be shown")
    attention = weights[:, beside + row * width + col, beside:]
    shown = (attention / attention.sum(-1, keepdim=True)).float().view(-1, height, width).cpu().numpy()
    return Routing(f"encoder.transformer.{name}", encoder.stride, (row, col), (height, width), ((0, 0),), shown)


def _catch(name: str, caught: list[tuple[str, BiLevelRoutingAttention, Tensor]]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, BiLevelRoutingAttention)
        caught.append((name, module, inputs[0]))

    return hook


def _last_of_each_stage(
    caught: Sequence[tuple[str, BiLevelRoutingAttention, Tensor]],
) -> list[tuple[str, BiLevelRoutingAttention, Tensor]]:
    """Modules that work on maps of one size are of one stage; the last one has seen most."""
    return list({tuple(x.shape): (name, module, x) for name, module, x in caught}.values())


def _routing(name: str, module: BiLevelRoutingAttention, x: Tensor, stride: int, row: int, col: int) -> Routing:
    """x: (1, H, W, C), the module's input."""
    size = height, width = x.shape[1], x.shape[2]
    row, col = row // stride, col // stride
    q, k, _ = module.qkv(x).chunk(3, dim=-1)
    region = module.region_on(height, width)
    per_row = -(-width // region[1])
    count = -(-height // region[0]) * per_row
    own = (row // region[0]) * per_row + col // region[1]
    routes = route(q, k, region, module.topk)[0, own] if module.topk < count else torch.arange(count, device=x.device)
    reachable = torch.isin(region_of_pixel(size, *region, x.device), routes)  # (H * W,)
    heads = module.num_heads
    query = q[0, row, col].view(heads, 1, -1)  # (M, 1, D)
    keys = k[0].reshape(height * width, heads, -1).permute(1, 2, 0)  # (M, D, N)
    logits = (query @ keys).squeeze(1).float() * module.scale
    attention = logits.masked_fill(~reachable, -torch.inf).softmax(-1)
    corners = [(int(r) // per_row * region[0], int(r) % per_row * region[1]) for r in routes.sort().values]
    weights = attention.view(heads, height, width).cpu().numpy()
    return Routing(name, stride, (row, col), region, tuple(corners), weights)


def explain(
    model: TrainedModel,
    scene: Scene,
    at: tuple[float, float],
    out: str | os.PathLike[str],
    *,
    pixels: bool = False,
    window: int | None = None,
) -> list[Routing]:
    """Draw the routing of one place of a scene as a PNG and return it.

    at: x and y in units of the scene's CRS, or, with `pixels`, column and row.
    window: pixels around the place that the network sees; those of training unless given.

    Raises RasterError when the place is outside the scene or is nodata, ConfigError for a network without routing.
    """
    refuse_overwriting([*scene.paths, model.path], [out])
    row, col = _pixel(scene, at, pixels)
    size = model.meta.window if window is None else window
    if not 1 <= size <= LARGEST_WINDOW:
        raise ConfigError(f"window is {size} pixels; it must be 1 or more, and at most {LARGEST_WINDOW}")
    view = _view_around(scene, row, col, size)
    image, valid = scene.read(view)
    row, col = row - view.row, col - view.col
    if not valid[row, col]:
        raise RasterError(f"{scene.path} has no data at {at[0]:g}, {at[1]:g}; choose a place on the image")
    padded, padded_valid = reflect_pad(image, size, size), reflect_pad(valid, size, size)
    routings = explain_pixel(model, torch.from_numpy(padded), torch.from_numpy(padded_valid), row, col)
    with torch.inference_mode():
        logits = model(torch.from_numpy(padded)[None], torch.from_numpy(padded_valid)[None])[0]
    label = model.schema.classes[int(logits[:, row, col].argmax())]
    _draw(padded, padded_valid, (row, col), routings, f"{scene.name}, predicted: {label}", Path(out))
    return routings


def _pixel(scene: Scene, at: tuple[float, float], pixels: bool) -> tuple[int, int]:
    inverse = ~scene.transform
    x, y = at
    if not (np.isfinite(x) and np.isfinite(y)):
        raise ConfigError(f"the place is {x:g}, {y:g}; give two finite numbers")
    col, row = int(np.floor(x)), int(np.floor(y))
    if not pixels:
        col = int(np.floor(inverse.a * x + inverse.b * y + inverse.c))
        row = int(np.floor(inverse.d * x + inverse.e * y + inverse.f))
    if not (0 <= row < scene.height and 0 <= col < scene.width):
        where = f"{scene.height} rows and {scene.width} columns" if pixels else f"the bounds {tuple(scene.bounds)}"
        raise RasterError(f"{at[0]:g}, {at[1]:g} lies outside {scene.path}, which has {where}")
    return row, col


def _view_around(scene: Scene, row: int, col: int, size: int) -> Window:
    """A window of `size` with the pixel in its middle, shifted into the scene where it would leave it."""
    height, width = min(size, scene.height), min(size, scene.width)
    return Window(0, 0, height, width).moved(row - size // 2, col - size // 2, scene.height, scene.width)


def _draw(
    image: NDArray[Any],
    valid: NDArray[np.bool_],
    pixel: tuple[int, int],
    routings: Sequence[Routing],
    title: str,
    out: Path,
) -> None:
    """The window, and beside it each stage: routed regions outlined, attention averaged over heads on top."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    picture = _picture(image, valid)
    figure = Figure(figsize=(3.4 * (len(routings) + 1), 3.9), layout="constrained")
    axes = figure.subplots(1, len(routings) + 1)
    axes[0].imshow(picture)
    axes[0].set_title(title, fontsize=9)
    for axis, routing in zip(axes[1:], routings, strict=True):
        height, width = picture.shape[:2]
        axis.imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=1.4)
        heat = routing.attention.mean(0)
        across, down = heat.shape[1] * routing.stride, heat.shape[0] * routing.stride
        # Square root: a token attends to few places strongly and to many a little, and both are to be seen.
        alpha = np.sqrt(heat / heat.max()) * 0.85
        axis.imshow(heat, extent=(0, across, down, 0), cmap="inferno", alpha=alpha, interpolation="nearest")
        for row, col in routing.routed:
            sides = routing.region[1] * routing.stride, routing.region[0] * routing.stride
            corner = col * routing.stride, row * routing.stride
            axis.add_patch(Rectangle(corner, *sides, fill=False, edgecolor="cyan", linewidth=0.9))
        axis.set(xlim=(0, width), ylim=(height, 0))
        side = f"{routing.attention.shape[1]} x {routing.attention.shape[2]}"
        axis.set_title(
            f"stride {routing.stride} ({side}): {len(routing.routed)} region(s)\nmost: {routing.routed_share:.0%}",
            fontsize=9,
        )
    for axis in axes:
        axis.plot(pixel[1] + 0.5, pixel[0] + 0.5, marker="+", color="red", markersize=12, markeredgewidth=1.8)
        axis.set_axis_off()
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _picture(image: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(H, W, 3) in 0..1: the first three bands (or the first alone), stretched between percentiles 2 and 98."""
    bands = image[:3] if len(image) >= 3 else image[[0, 0, 0]]
    low, high = (np.percentile(bands[:, valid], share, axis=1)[:, None, None] for share in (2, 98))
    with np.errstate(invalid="ignore"):
        stretched = np.clip((bands - low) / np.maximum(high - low, 1e-6), 0, 1)
    return np.where(valid[..., None], np.moveaxis(stretched, 0, -1), 0.0)
