"""CoaT and CoaT-Lite: conv-attention at strides 4, 8, 16 and 32, one class token per scale.

Xu et al., "Co-Scale Conv-Attentional Image Transformers", ICCV 2021, arXiv:2104.06399. CoaT-Lite runs the four scales
one after the other; CoaT then lets the last three exchange what they found, in parallel blocks.

Given the same weights it equals the published code's intermediate features. Where it differs:

- A map that does not divide into patches is padded with zeros at the bottom and right. The published code drops the
  rest, and fails below 32 px.
- The encodings that all blocks of a scale share, and the feed-forward network that the scales of a parallel block
  share, have one name each. Published state dicts repeat them under every block; see `published_key`.
- Stochastic depth draws for a scale's map and for its class token separately.
- No classifier: the norms before it and the aggregation of the class tokens are left out.
"""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from rs_biformer.nn.attention.conv_attention import ConvAttention, ConvRelativePosition
from rs_biformer.nn.blocks import MLP, Block, ChannelsLast, init_transformer

NUM_HEADS = 8
HEADS_BY_KERNEL = {3: 2, 5: 3, 7: 3}
LAYER_NORM_EPS = 1e-6

Four = tuple[int, int, int, int]


class SerialBlock(Block):
    """Conv-attention and a feed-forward network on one scale: (B, H, W, C) and (B, T, C) -> the same.

    The convolution added first and the relative position encoding belong to the scale and are handed to forward.
    """

    def __init__(self, dim: int, hidden_dim: int, drop_path: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attention = ConvAttention(dim, NUM_HEADS)
        self.ffn_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.ffn = MLP(dim, hidden_dim)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(
        self, x: Tensor, token: Tensor, local: nn.Module, position: ConvRelativePosition
    ) -> tuple[Tensor, Tensor]:
        x = x + local(x)
        seen, seen_token = self.attention(self.attention_norm(x), self.attention_norm(token), position)
        x, token = x + self.drop_path(seen), token + self.drop_path(seen_token)
        return x + self.drop_path(self.ffn(self.ffn_norm(x))), token + self.drop_path(self.ffn(self.ffn_norm(token)))


class Scale(nn.Module):
    """One scale: patches of the map before, a class token, and serial blocks.

    forward: (B, C, H, W) -> the map (B, h, w, C') and the token (B, 1, C'). patch: side and stride of a patch.
    """

    def __init__(self, in_channels: int, dim: int, patch: int, hidden_dim: int, depth: int, drop_path: float) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Conv2d(in_channels, dim, patch, stride=patch)
        self.embed_norm = nn.LayerNorm(dim)  # with torch's epsilon, unlike the norms of the blocks
        self.token = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.token, std=0.02)
        self.local = ChannelsLast(nn.Conv2d(dim, dim, 3, padding=1, groups=dim))
        self.position = ConvRelativePosition(dim, HEADS_BY_KERNEL)
        self.blocks = nn.ModuleList(SerialBlock(dim, hidden_dim, drop_path) for _ in range(depth))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.pad(x, (0, -x.shape[3] % self.patch, 0, -x.shape[2] % self.patch))
        x = self.embed_norm(self.embed(x).permute(0, 2, 3, 1))
        token = self.token.expand(x.shape[0], -1, -1)
        for block in self.blocks:
            x, token = block(x, token, self.local, self.position)
        return x, token


class ParallelBlock(Block):
    """Conv-attention on three scales of one width, each then given the sum of all three, resized to it.

    forward: three maps (B, H, W, C), their tokens (B, 1, C), and the three scales, whose encodings it uses.
    """

    def __init__(self, dim: int, hidden_dim: int, drop_path: float) -> None:
        super().__init__()
        self.attention_norms = nn.ModuleList(nn.LayerNorm(dim, eps=LAYER_NORM_EPS) for _ in range(3))
        self.attentions = nn.ModuleList(ConvAttention(dim, NUM_HEADS) for _ in range(3))
        self.ffn_norms = nn.ModuleList(nn.LayerNorm(dim, eps=LAYER_NORM_EPS) for _ in range(3))
        self.ffn = MLP(dim, hidden_dim)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(
        self, maps: list[Tensor], tokens: list[Tensor], scales: Sequence[Scale]
    ) -> tuple[list[Tensor], list[Tensor]]:
        maps = [x + scale.local(x) for x, scale in zip(maps, scales, strict=True)]
        seen = [
            attention(norm(x), norm(token), scale.position)
            for attention, norm, x, token, scale in zip(
                self.attentions, self.attention_norms, maps, tokens, scales, strict=True
            )
        ]
        seen_token = sum(token for _, token in seen)
        maps = [x + self.drop_path(sum(resize(other, x) for other, _ in seen)) for x in maps]
        tokens = [token + self.drop_path(seen_token) for token in tokens]
        maps = [x + self.drop_path(self.ffn(norm(x))) for x, norm in zip(maps, self.ffn_norms, strict=True)]
        tokens = [t + self.drop_path(self.ffn(norm(t))) for t, norm in zip(tokens, self.ffn_norms, strict=True)]
        return maps, tokens


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear (B, H, W, C) at the height and width of `like`; not smoothed when it shrinks, as published."""
    if x.shape[1:3] == like.shape[1:3]:
        return x
    return F.interpolate(x.permute(0, 3, 1, 2), size=like.shape[1:3], mode="bilinear").permute(0, 2, 3, 1)


class CoaT(nn.Module):
    """CoaT as an encoder under smp's contract.

    forward: (B, in_channels, H, W) -> [the input, nothing at stride 2 (zero channels), then the maps at strides 4, 8,
    16 and 32 without a norm of their own, as published for dense prediction], each of ceil(H / stride) x
    ceil(W / stride) pixels.
    dims, depths, ffn_ratios: channels, serial blocks and width of the feed-forward network by scale. parallel_depth:
    parallel blocks, 0 for CoaT-Lite; otherwise the last three scales are equally wide. drop_path: stochastic depth of
    every block.
    """

    output_stride = 32

    def __init__(
        self, in_channels: int, dims: Four, depths: Four, ffn_ratios: Four, parallel_depth: int, drop_path: float
    ) -> None:
        super().__init__()
        self.out_channels = (in_channels, 0, *dims)
        self.scales = nn.ModuleList(
            Scale(before, dim, patch, ratio * dim, depth, drop_path)
            for (before, dim), patch, ratio, depth in zip(
                pairwise((in_channels, *dims)), (4, 2, 2, 2), ffn_ratios, depths, strict=True
            )
        )
        self.parallel = nn.ModuleList(
            ParallelBlock(dims[3], ffn_ratios[3] * dims[3], drop_path) for _ in range(parallel_depth)
        )
        self.apply(init_transformer)

    def forward(self, x: Tensor) -> list[Tensor]:
        batch, _, height, width = x.shape
        features = [x, x.new_empty(batch, 0, -(-height // 2), -(-width // 2))]
        maps, tokens = [], []
        for scale in self.scales:
            scale_map, token = scale(x)
            maps.append(scale_map)
            tokens.append(token)
            x = scale_map.permute(0, 3, 1, 2)
        first, maps, tokens = maps[0], maps[1:], tokens[1:]
        for block in self.parallel:
            maps, tokens = block(maps, tokens, list(self.scales)[1:])
        return features + [scale_map.permute(0, 3, 1, 2) for scale_map in (first, *maps)]


def coat_lite_tiny(in_channels: int = 3, drop_path: float = 0.0) -> CoaT:
    """CoaT-Lite Tiny: 5.7 M parameters with its classifier."""
    return CoaT(in_channels, (64, 128, 256, 320), (2, 2, 2, 2), (8, 8, 4, 4), 0, drop_path)


def coat_lite_mini(in_channels: int = 3, drop_path: float = 0.0) -> CoaT:
    """CoaT-Lite Mini: 11 M parameters with its classifier."""
    return CoaT(in_channels, (64, 128, 320, 512), (2, 2, 2, 2), (8, 8, 4, 4), 0, drop_path)


def coat_lite_small(in_channels: int = 3, drop_path: float = 0.0) -> CoaT:
    """CoaT-Lite Small: 20 M parameters with its classifier."""
    return CoaT(in_channels, (64, 128, 320, 512), (3, 4, 6, 3), (8, 8, 4, 4), 0, drop_path)


def coat_lite_medium(in_channels: int = 3, drop_path: float = 0.3) -> CoaT:
    """CoaT-Lite Medium: 45 M parameters with its classifier."""
    return CoaT(in_channels, (128, 256, 320, 512), (3, 6, 10, 8), (4, 4, 4, 4), 0, drop_path)


def coat_tiny(in_channels: int = 3, drop_path: float = 0.0) -> CoaT:
    """CoaT Tiny: 5.5 M parameters with its classifier."""
    return CoaT(in_channels, (152, 152, 152, 152), (2, 2, 2, 2), (4, 4, 4, 4), 6, drop_path)


def coat_mini(in_channels: int = 3, drop_path: float = 0.0) -> CoaT:
    """CoaT Mini: 10 M parameters with its classifier."""
    return CoaT(in_channels, (152, 216, 216, 216), (2, 2, 2, 2), (4, 4, 4, 4), 6, drop_path)


def coat_small(in_channels: int = 3, drop_path: float = 0.2) -> CoaT:
    """CoaT Small: 22 M parameters with its classifier."""
    return CoaT(in_channels, (152, 320, 320, 320), (2, 2, 2, 2), (4, 4, 4, 4), 6, drop_path)


VARIANTS: dict[str, Callable[..., nn.Module]] = {
    "coat_lite_tiny": coat_lite_tiny,
    "coat_lite_mini": coat_lite_mini,
    "coat_lite_small": coat_lite_small,
    "coat_lite_medium": coat_lite_medium,
    "coat_tiny": coat_tiny,
    "coat_mini": coat_mini,
    "coat_small": coat_small,
}
"""Name -> function of in_channels and drop_path (default: the rate that the published model was trained with)."""


RENAMES = tuple(
    (re.compile(rf"^{published}(?=\.|$)"), ours)
    for published, ours in (
        # the encodings of a scale, which published state dicts name again under each block that uses them
        (r"serial_blocks(\d)\.\d+\.cpe", r"cpe\1"),
        (r"serial_blocks(\d)\.\d+\.factoratt_crpe\.crpe", r"crpe\1"),
        (r"parallel_blocks\.\d+\.factoratt_crpe(\d)\.crpe", r"crpe\1"),
        (r"cpe(\d)\.proj", r"scales.\1.local.module"),
        (r"crpe(\d)\.conv_list", r"scales.\1.position.convolutions"),
        (r"cls_token(\d)", r"scales.\1.token"),
        (r"patch_embed(\d)\.proj", r"scales.\1.embed"),
        (r"patch_embed(\d)\.norm", r"scales.\1.embed_norm"),
        (r"serial_blocks(\d)\.(\d+)\.norm1", r"scales.\1.blocks.\2.attention_norm"),
        (r"serial_blocks(\d)\.(\d+)\.norm2", r"scales.\1.blocks.\2.ffn_norm"),
        (r"serial_blocks(\d)\.(\d+)\.factoratt_crpe\.qkv", r"scales.\1.blocks.\2.attention.qkv"),
        (r"serial_blocks(\d)\.(\d+)\.factoratt_crpe\.proj", r"scales.\1.blocks.\2.attention.project"),
        (r"serial_blocks(\d)\.(\d+)\.mlp\.fc1", r"scales.\1.blocks.\2.ffn.0"),
        (r"serial_blocks(\d)\.(\d+)\.mlp\.fc2", r"scales.\1.blocks.\2.ffn.2"),
        (r"parallel_blocks\.(\d+)\.norm1(\d)", r"parallel.\1.attention_norms.\2"),
        (r"parallel_blocks\.(\d+)\.norm2(\d)", r"parallel.\1.ffn_norms.\2"),
        (r"parallel_blocks\.(\d+)\.factoratt_crpe(\d)\.qkv", r"parallel.\1.attentions.\2.qkv"),
        (r"parallel_blocks\.(\d+)\.factoratt_crpe(\d)\.proj", r"parallel.\1.attentions.\2.project"),
        (r"parallel_blocks\.(\d+)\.mlp\d\.fc1", r"parallel.\1.ffn.0"),
        (r"parallel_blocks\.(\d+)\.mlp\d\.fc2", r"parallel.\1.ffn.2"),
    )
)
"""Published names -> ours, applied in order, but for the number of the scale, which is theirs: 1 to 4."""


def published_key(key: str) -> str | None:
    """Our name for a parameter of the published implementation; None for its classifier, which is left.

    Several published names may mean one parameter of ours, for that is how they spell sharing. A name that the
    published implementation does not have is returned as it is.
    """
    if re.match(r"(norm[1-4]|aggregate|head)\.", key):
        return None
    name = key
    for published, ours in RENAMES:
        name = published.sub(ours, name)
    if name == key:
        return key
    name = re.sub(r"^scales\.(\d)", lambda found: f"scales.{int(found[1]) - 1}", name)
    return re.sub(  # a parallel block begins at their scale 2
        r"^(parallel\.\d+\.(?:attention_norms|attentions|ffn_norms))\.(\d)",
        lambda found: f"{found[1]}.{int(found[2]) - 2}",
        name,
    )
