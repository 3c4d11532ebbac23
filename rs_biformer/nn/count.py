"""Parameters and multiply-adds of the architectures, counted on what they are and what they compute."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rs_biformer.errors import ConfigError
from rs_biformer.nn.attention.bra import BiLevelRoutingAttention
from rs_biformer.nn.meta_device import without_memory
from rs_biformer.nn.model import SegmentationModel, create_model

IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Figures:
    """What one image costs in an encoder and in the segmentation model made with it.

    encoder_*: the encoder alone. classifier_*: with a linear classifier of the 1000 ImageNet classes on its coarsest
    feature, which is what papers count. parameters, multiply_adds: the whole segmentation model. strides, widths:
    pixels per side and channels of the encoder's features, from finest to coarsest, where there are any.
    """

    encoder: str
    decoder: str
    encoder_parameters: int
    encoder_multiply_adds: int
    classifier_parameters: int
    classifier_multiply_adds: int
    parameters: int
    multiply_adds: int
    strides: tuple[int, ...]
    widths: tuple[int, ...]


def count_model(encoder: str, decoder: str, size: int = 224, bands: int = 3, classes: int = 6) -> Figures:
    """The figures of an architecture for one image of `size` x `size` pixels; without memory where torch can do that.

    Raises ConfigError for unknown names and for a size below 1.
    """
    if size < 1:
        raise ConfigError(f"size is {size}; an image has 1 pixel or more, such as 224")

    def run() -> tuple[SegmentationModel, list[Tensor], dict[str, int]]:
        features: list[Tensor] = []
        with torch.inference_mode():
            network = create_model(encoder, decoder, classes=classes, in_channels=bands).eval()
            network.encoder.register_forward_hook(lambda module, inputs, outputs: features.extend(outputs))
            return network, features, count_multiply_adds(network, torch.zeros(1, bands, size, size))

    network, features, counts = without_memory(run)
    rows = features[0].shape[-2]
    pyramid = [feature for feature in features[1:] if feature.shape[1]]
    classifier = pyramid[-1].shape[1] * IMAGENET_CLASSES
    parameters = count_parameters(network.encoder)
    return Figures(
        encoder,
        decoder,
        encoder_parameters=parameters,
        encoder_multiply_adds=counts["encoder"],
        classifier_parameters=parameters + classifier + IMAGENET_CLASSES,
        classifier_multiply_adds=counts["encoder"] + classifier,
        parameters=count_parameters(network),
        multiply_adds=counts[""],
        strides=tuple(rows // feature.shape[-2] for feature in pyramid),
        widths=tuple(feature.shape[1] for feature in pyramid),
    )


def count_parameters(network: nn.Module) -> int:
    """Numbers that training adjusts; shared ones once."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_multiply_adds(network: nn.Module, x: Tensor) -> dict[str, int]:
    """Multiply-adds of `network(x)` by dotted module name, '' for the whole; modules without any are absent.

    Half of what torch's FlopCounterMode counts as the network runs, so matrix products and convolutions and nothing
    else; with one exception. Bi-level routing attention counts what its definition asks for, each pixel with the pixels
    of the regions that it is routed to, however it is computed: on small maps a dense product under a mask is faster
    though it multiplies more. The network may live on torch's meta device.
    """
    routed: dict[str, int] = {}
    hooks = [
        module.register_forward_pre_hook(_note(routed, name))
        for name, module in network.named_modules()
        if isinstance(module, BiLevelRoutingAttention)
    ]
    with FlopCounterMode(display=False) as counter:
        network(x)
    for hook in hooks:
        hook.remove()
    root = type(network).__name__
    counts = {
        name.removeprefix(root).removeprefix("."): sum(operations.values()) // 2
        for name, operations in counter.get_flop_counts().items()
        if name.startswith(root)
    }
    for name, count in routed.items():
        surplus = counts[name] - count
        for outer in counts:
            if not outer or f"{name}.".startswith(f"{outer}."):
                counts[outer] -= surplus
    return counts


def _note(counts: dict[str, int], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, BiLevelRoutingAttention)
        counts[name] = routing_multiply_adds(module, inputs[0].shape)

    return hook


def routing_multiply_adds(attention: BiLevelRoutingAttention, shape: tuple[int, ...]) -> int:
    """Multiply-adds of bi-level routing attention over a map of `shape` (B, H, W, C), by its definition."""
    batch, height, width, dim = shape
    rows, columns = attention.region_on(height, width)
    pixels, regions = height * width, -(-height // rows) * -(-width // columns)
    keys = min(attention.topk * rows * columns, pixels)
    projections = 4 * pixels * dim**2
    local = pixels * dim * attention.local.kernel_size[0] ** 2
    routing = regions**2 * dim if attention.topk < regions else 0
    return batch * (projections + local + routing + 2 * pixels * keys * dim)
