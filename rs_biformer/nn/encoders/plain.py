"""Plain vision transformers of timm as pyramids, so that every decoder works with them.

Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection" (ViTDet), ECCV 2022, arXiv:2203.16527,
section 3: all maps of the pyramid are made of the transformer's last one, by transposed convolutions and pooling.

    tokens at stride 16 ---- transposed 2x2 -- norm, GELU -- transposed 2x2 ----> stride 4
                        ---- transposed 2x2 ------------------------------------> stride 8
                        --------------------------------------------------------> stride 16
                        ---- max pooling 2x2 -----------------------------------> stride 32
                             each then 1x1, norm, 3x3, norm

Differences: the maps may be made of four blocks evenly apart instead (taps="even"), the finest of the earliest, as SETR
and DPT take them, which suits transformers that stay frozen. Patches of another size than a power of two, such as the
14 pixels of DINOv2, are met by scaling the image, so that tokens lie at stride 16.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import Tensor, nn

from rs_biformer.errors import ConfigError
from rs_biformer.nn.meta_device import without_memory

STRIDES = (4, 8, 16, 32)
FLEXIBLE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
"""What the families of timm call that an image may have any size, most of them first."""


@cache
def is_plain_transformer(name: str) -> bool:
    """Whether a network of timm is a transformer whose blocks all work at one stride."""
    try:
        network = without_memory(lambda: timm.create_model(name))
    except Exception:
        return False  # one that cannot be made is told by whoever makes it
    info = getattr(network, "feature_info", None)
    if not isinstance(info, list) or not hasattr(network, "forward_intermediates"):
        return False
    blocks = getattr(network, "blocks", None)
    strides = {stage["reduction"] for stage in info}
    return len(strides) == 1 and len(info) > 1 and isinstance(blocks, nn.Sequential | nn.ModuleList)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PlainTransformer(nn.Module):
    """A plain vision transformer and the simple feature pyramid. Keeps smp's encoder contract.

    forward: (B, in_channels, H, W), H and W multiples of 32 -> features at strides 1 (the input), 2 (no channels), 4,
    8, 16 and 32, the latter four `width` wide. Position embeddings follow the size of the image: absolute ones are
    resampled, rotary ones computed.

    name: timm's. width: channels of the pyramid. taps: "last", the pyramid is made of the last block's map; "even",
    each level of the map of another block. lora: rank of low-rank adapters in all linear layers of the transformer,
    whose own weights then stay as they are; 0 for none. arguments: of timm's network, such as drop_path_rate or
    img_size, to which position embeddings are resampled once and for all.
    Raises ConfigError where the transformer takes images of one size alone, or peft is missing for adapters.
    """

    output_stride = 32
    published_part = "transformer"

    def __init__(
        self,
        name: str,
        in_channels: int = 3,
        width: int = 256,
        taps: Literal["last", "even"] = "last",
        lora: int = 0,
        **arguments: Any,
    ) -> None:
        super().__init__()
        if taps not in ("last", "even"):
            raise ConfigError(f"taps is {taps!r}; use last or even")
        self.name = name
        self.transformer = _flexible(name, in_channels, arguments)
        count, patch = len(self.transformer.feature_info), self.transformer.feature_info[-1]["reduction"]
        self.patch, self.stride = int(patch), 1 << (int(patch) - 1).bit_length()
        self.indices = (
            [count - 1] if taps == "last" else [(level + 1) * count // len(STRIDES) - 1 for level in range(4)]
        )
        self.levels = nn.ModuleList(
            _level(channels, width, self.stride, stride)
            for channels, stride in zip(self._widths(in_channels, arguments.get("img_size", 64)), STRIDES, strict=True)
        )
        self.out_channels = [in_channels, 0, *[width] * len(STRIDES)]
        if lora:
            add_adapters(self.transformer, lora)

    @torch.no_grad()
    def _widths(self, in_channels: int, size: int) -> list[int]:
        """Channels of the map of each level: a neck, as SAM has one, may have changed the transformer's own."""
        device = next(self.transformer.parameters()).device
        training = self.transformer.training
        maps = self.eval().maps(torch.zeros(1, in_channels, size, size, device=device))
        self.train(training)
        return [tokens.shape[1] for tokens in maps]

    def maps(self, x: Tensor) -> Sequence[Tensor]:
        """The transformer's maps that the levels are made of, finest first: (B, C, H / stride, W / stride) each."""
        if self.patch != self.stride:
            size = [side * self.patch // self.stride for side in x.shape[-2:]]
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        found = self.transformer.forward_intermediates(
            x, indices=self.indices, norm=True, intermediates_only=True, output_fmt="NCHW"
        )
        return found if len(found) > 1 else list(found) * len(STRIDES)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [level(tokens) for level, tokens in zip(self.levels, self.maps(x), strict=True)]
        batch, _, height, width = x.shape
        return [x, features[0].new_empty(batch, 0, -(-height // 2), -(-width // 2)), *features]


def layer_depths(network: nn.Module) -> dict[str, int]:
    """How many layers lie between each parameter of the plain transformers in `network` and their end, by its name.

    The embedding of patches is one layer, each block another; the last norm belongs to the last block. As timm counts.
    Raises ConfigError where there is no plain transformer.
    """
    depths: dict[str, int] = {}
    for where, part in network.named_modules():
        if isinstance(part, PlainTransformer):
            layers = group_parameters(part.transformer, part.transformer.group_matcher(), reverse=True)
            last = max(layers.values())
            depths |= {f"{where}.transformer.{name}".lstrip("."): last - layer for name, layer in layers.items()}
    if not depths:
        raise ConfigError("the network has no plain transformer whose layers could decay; use optimizer.multipliers")
    return depths


def _flexible(name: str, in_channels: int, arguments: dict[str, Any]) -> Any:
    """Timm's network, for images of any size. Raises ConfigError where it takes one size alone."""
    for flexible in FLEXIBLE:
        try:
            network = timm.create_model(name, in_chans=in_channels, num_classes=0, **{**flexible, **arguments})
        except TypeError as error:
            if not flexible or not any(key in str(error) for key in flexible):
                raise
            continue
        if flexible or "img_size" in arguments or _takes_any_size(name):
            return network
    raise ConfigError(
        f"{name} takes images of one size alone; give it as img_size, the size of all windows, or choose another "
        "transformer, such as vit_small_patch16_224"
    )


@cache
def _takes_any_size(name: str) -> bool:
    def of_another_size() -> None:
        network: Any = timm.create_model(name, num_classes=0).eval()
        with torch.no_grad():
            network.forward_intermediates(torch.zeros(1, 3, 64, 96), indices=[0], intermediates_only=True)

    try:
        without_memory(of_another_size)
    except Exception:
        return False
    return True


def _level(channels: int, width: int, have: int, want: int) -> nn.Sequential:
    """From a map at stride `have` to the pyramid's at stride `want`."""
    layers: list[nn.Module] = []
    while have > want:
        narrower = max(channels // 2, width)
        layers += [nn.ConvTranspose2d(channels, narrower, 2, stride=2), ChannelNorm(narrower, eps=1e-6), nn.GELU()]
        channels, have = narrower, have // 2
    if layers:
        layers = layers[:-2]  # what follows the last one is the norm below
    if have < want:
        layers.append(nn.MaxPool2d(want // have))
    layers += [nn.Conv2d(channels, width, 1, bias=False), ChannelNorm(width, eps=1e-6)]
    layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), ChannelNorm(width, eps=1e-6)]
    return nn.Sequential(*layers)


def add_adapters(transformer: nn.Module, rank: int) -> None:
    """Put low-rank adapters beside all linear layers, and let nothing else of the transformer learn.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685; scaled by 2, as peft
    advises for small ranks. At the beginning they add nothing.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError("low-rank adapters need peft; get it with: pip install 'rs_biformer[lora]'") from None
    layers = {name.rpartition(".")[2] for name, part in transformer.named_modules() if isinstance(part, nn.Linear)}
    if rank < 1 or not layers:
        raise ConfigError(f"lora is {rank}, for {len(layers)} kinds of linear layers; use a rank of 4 to 16")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=sorted(layers)), transformer)
