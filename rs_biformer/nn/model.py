"""The names of encoders and decoders, and the segmentation model that joins one of each."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch.nn.functional as F
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from rs_biformer.errors import ConfigError
from rs_biformer.nn.blocks import Block, ConvNormAct
from rs_biformer.nn.decoders.unet_fusion import UNetFusion
from rs_biformer.nn.encoders import biformer, coat, cswin, hybrid
from rs_biformer.nn.encoders.library import is_library_name, library_encoder, library_names, published_weights
from rs_biformer.nn.weight_files import is_file_name
from rs_biformer.nn.weights import LoadReport, load_published_weights

ENCODERS: dict[str, Callable[..., Any]] = {
    **hybrid.VARIANTS,
    **biformer.VARIANTS,
    **cswin.VARIANTS,
    **coat.VARIANTS,
}
"""Our encoders: name -> function of in_channels and the arguments in its signature."""


def list_encoders() -> list[str]:
    """The names of our encoders. Every encoder of smp and timm is accepted by its own name as well."""
    return list(ENCODERS)


def create_encoder(
    name: str,
    in_channels: int = 3,
    encoder_weights: str | Path | None = None,
    checkpointing: bool = False,
    **arguments: Any,
) -> nn.Module:
    """An encoder that keeps smp's contract: `.out_channels`, `.output_stride`, and features from the input down.

    name: one of list_encoders(), or the name of an smp or timm encoder, timm's also with the tag of its weights, which
    are not loaded without encoder_weights. Plain vision transformers become pyramids.
    encoder_weights: None for random ones; the path of a published checkpoint; or the name of weights to download; see
    `load_encoder_weights`.
    checkpointing: whether the blocks run again in the backward pass instead of keeping what they computed: less memory
    in training for about a third more time, with the same gradients.
    arguments: what the encoder's own function takes, such as drop_path.
    Raises ConfigError for unknown names and arguments, CheckpointError for a file that does not fit.
    """
    if in_channels < 1:
        raise ConfigError(f"in_channels is {in_channels}; a raster has 1 band or more")
    if name in ENCODERS:
        _check_arguments(name, arguments)
        encoder: nn.Module = ENCODERS[name](in_channels, **arguments)
    elif is_library_name(name):
        encoder = library_encoder(name, in_channels, **arguments)
    else:
        raise ConfigError(f"no encoder is called {name!r}{_nearest(name, [*ENCODERS, *library_names()])}")
    if encoder_weights is not None:
        load_encoder_weights(encoder, encoder_weights, name)
    if checkpointing:
        _checkpoint_blocks(name, encoder)
    return encoder


def load_encoder_weights(
    encoder: nn.Module,
    weights: str | Path,
    name: str,
    bands: Sequence[str] | None = None,
    weights_bands: Sequence[str] | None = None,
) -> LoadReport:
    """Fill an encoder that `create_encoder(name, ...)` made, of a hybrid its CNN, from a file or by name.

    weights: a file of weights of any origin, see load_published_weights; or a name, "imagenet" or another of smp's or
    timm's for this encoder, or torchgeo's, which is downloaded by the library that knows it.
    bands, weights_bands: see load_published_weights.
    Raises ConfigError when there are no weights of this name or they cannot be downloaded, CheckpointError for a file
    that does not fit.
    """
    if is_file_name(weights):
        return load_published_weights(encoder, weights, bands, weights_bands)
    of_library = library_name(encoder, name)
    if of_library is None:
        raise ConfigError(f"{name} has no weights to download; pass the path of a published checkpoint file")
    return load_published_weights(encoder, published_weights(of_library, str(weights)), bands, weights_bands)


def library_name(encoder: nn.Module, name: str) -> str | None:
    """Smp's or timm's name of an encoder called `name`, of a hybrid of its CNN; None where it is neither's."""
    return getattr(encoder, "cnn_name", None) if name in ENCODERS else name


def _checkpoint_blocks(name: str, encoder: nn.Module) -> None:
    blocks = [module for module in encoder.modules() if isinstance(module, Block)]
    for block in blocks:
        block.checkpointing = True
    network = getattr(encoder, "model", None) or getattr(encoder, "transformer", None)
    by_timm = getattr(network, "set_grad_checkpointing", None)
    if by_timm is not None:
        by_timm()
    elif not blocks:
        raise ConfigError(f"{name} cannot checkpoint; take tu-{name} if timm has it, or a smaller batch")


def _check_arguments(name: str, arguments: Iterable[str]) -> None:
    allowed = [key for key in inspect.signature(ENCODERS[name]).parameters if key != "in_channels"]
    for key in arguments:
        if key not in allowed:
            raise ConfigError(f"{name} takes no argument {key!r}{_nearest(key, allowed)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known[:4]
    return f"; did you mean {' or '.join(near)}?"


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that goes by its running statistics when a batch has but one value per channel, and so none itself.

    That is what training with one image per step comes to behind a pooling of the whole image.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def _accept_single_images(decoder: nn.Module) -> None:
    """Exchange the batch norms behind poolings of the whole image for those that can stand a batch of one."""
    for branch in decoder.modules():
        if isinstance(branch, nn.Sequential) and getattr(next(iter(branch), None), "output_size", None) == 1:
            for parent in branch.modules():
                for name, child in list(parent.named_children()):
                    if type(child) is nn.BatchNorm2d:
                        setattr(parent, name, BatchNorm(child.num_features, child.eps, child.momentum))


def _unet_fusion(channels: list[int]) -> tuple[nn.Module, int]:
    decoder = UNetFusion(channels)
    return decoder, decoder.out_channels


def _unet(channels: list[int]) -> tuple[nn.Module, int]:
    widths = (256, 128, 64, 32, 16)
    return UnetDecoder(encoder_channels=channels, decoder_channels=widths, n_blocks=len(widths)), widths[-1]


def _fpn(channels: list[int]) -> tuple[nn.Module, int]:
    decoder = FPNDecoder(encoder_channels=channels)
    return decoder, decoder.out_channels


def _upernet(channels: list[int]) -> tuple[nn.Module, int]:
    return UPerNetDecoder(encoder_channels=channels, decoder_channels=256), 256


def _segformer(channels: list[int]) -> tuple[nn.Module, int]:
    return SegformerDecoder(encoder_channels=channels, segmentation_channels=256), 256


def no_coarser_than(stride: int, features: Sequence[Tensor]) -> list[Tensor]:
    """Features at strides 1, 2, 4 ... with those beyond `stride` interpolated to the size of the one at it."""
    at = stride.bit_length() - 1
    size = features[at].shape[-2:]
    return [
        feature if number <= at else F.interpolate(feature, size=size, mode="bilinear", align_corners=False)
        for number, feature in enumerate(features)
    ]


class AtStride16(nn.Module):
    """Gives a decoder that wants its coarsest feature at stride 16 one, by interpolation, from an encoder of stride 32.

    DeepLabV3+ is made for encoders whose last stage is dilated instead. Only some convolutional ones can be: for these
    pass `output_stride=16` to create_model, and nothing is interpolated here.
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: list[Tensor]) -> Tensor:
        decoded: Tensor = self.decoder(no_coarser_than(16, features))
        return decoded


def _deeplabv3plus(channels: list[int]) -> tuple[nn.Module, int]:
    decoder = DeepLabV3PlusDecoder(
        encoder_channels=channels,
        encoder_depth=5,
        out_channels=256,
        atrous_rates=(12, 24, 36),
        output_stride=16,
        aspp_separable=True,
        aspp_dropout=0.5,
    )
    return AtStride16(decoder), 256


DECODERS: dict[str, Callable[[list[int]], tuple[nn.Module, int]]] = {
    "unet_fusion": _unet_fusion,
    "unet": _unet,
    "fpn": _fpn,
    "upernet": _upernet,
    "deeplabv3plus": _deeplabv3plus,
    "segformer": _segformer,
}
"""Decoders: name -> function of the encoder's out_channels, giving the decoder and the width of what it returns.

All but the first are smp's, with smp's defaults; "fpn" is the Semantic FPN.
"""


class SegmentationModel(nn.Module):
    """Encoder, decoder and a classifier of pixels: (B, C, H, W) float -> logits (B, classes, H, W) for any H and W.

    Sizes that the encoder's stride does not divide are padded at the bottom and right by repeating the edge, and the
    logits cropped. At least two strides are padded to: at one, the coarsest map is a single pixel, of which a batch
    norm in training can make no statistics when the batch is one image.

    auxiliary: a second classifier, of the feature at stride 16, for training alone; see forward_with_auxiliary.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, head: nn.Module, auxiliary: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head = head
        self.auxiliary = auxiliary
        self.stride = int(encoder.output_stride)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        padded = self._pad(x)
        return self._at_size_of(x, padded, self.head(self.decoder(self.encoder(padded))))

    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and those of the auxiliary classifier: (B, classes, H, W) each."""
        assert self.auxiliary is not None, "the model was made without an auxiliary head"
        padded = self._pad(x)
        features = self.encoder(padded)
        second = self.auxiliary(features[AUXILIARY_FEATURE])  # first: some decoders overwrite the list they are given
        logits = self.head(self.decoder(features))
        return self._at_size_of(x, padded, logits), self._at_size_of(x, padded, second)

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Compile in place; part by part where the auxiliary head makes a second way through the model."""
        for part in self.children() if self.auxiliary is not None else ():
            part.compile(*arguments, **options)
        if self.auxiliary is None:
            super().compile(*arguments, **options)

    def _pad(self, x: Tensor) -> Tensor:
        down, right = (max(2 * self.stride, -(-n // self.stride) * self.stride) - n for n in x.shape[-2:])
        return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x

    @staticmethod
    def _at_size_of(x: Tensor, padded: Tensor, logits: Tensor) -> Tensor:
        logits = F.interpolate(logits, size=padded.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., : x.shape[-2], : x.shape[-1]]


AUXILIARY_FEATURE = 4
"""Place of the feature at stride 16 in what an encoder gives."""


def auxiliary_head(in_channels: int, classes: int) -> nn.Module:
    """The FCN head that published UPerNet recipes train beside the decoder: 256 channels, 3x3, dropout of 0.1."""
    head = nn.Sequential(ConvNormAct(in_channels, 256, 3), nn.Dropout2d(0.1), nn.Conv2d(256, classes, 1))
    initialize_head(head)
    return head


def create_model(
    encoder: str = "resnet50_biformer",
    decoder: str = "unet_fusion",
    classes: int = 6,
    in_channels: int = 3,
    auxiliary: bool = False,
    **arguments: Any,
) -> SegmentationModel:
    """A segmentation model of the named encoder and decoder, with random weights unless `encoder_weights` says else.

    decoder: "unet_fusion" or smp's "unet", "fpn", "upernet", "deeplabv3plus", "segformer".
    auxiliary: whether to add the head of SegmentationModel.forward_with_auxiliary, for training; forward never runs it.
    arguments: of the encoder; see create_encoder.
    Raises ConfigError for unknown names and arguments.
    """
    if decoder not in DECODERS:
        raise ConfigError(f"no decoder is called {decoder!r}{_nearest(decoder, DECODERS)}")
    if classes < 1:
        raise ConfigError(f"classes is {classes}; a class map has 1 class or more")
    return complete(create_encoder(encoder, in_channels, **arguments), decoder, classes, auxiliary)


def complete(encoder: nn.Module, decoder: str, classes: int, auxiliary: bool = False) -> SegmentationModel:
    """The segmentation model of an encoder at hand; otherwise as create_model."""
    channels = list(encoder.out_channels)  # type: ignore[arg-type]
    layers, width = DECODERS[decoder](channels)
    head = nn.Conv2d(width, classes, 3, padding=1)
    _accept_single_images(layers)
    initialize_decoder(layers)
    initialize_head(head)
    # Made last, so that a seed gives the rest of the model the same weights with it and without.
    second = auxiliary_head(channels[AUXILIARY_FEATURE], classes) if auxiliary else None
    return SegmentationModel(encoder, layers, head, second)


class SmpEncoder(nn.Module):
    """One of our encoders in the way smp makes them: with 3 bands, whose number and stride smp sets afterwards.

    Decoders that ask for a finer output stride than the encoder's 32 get it by interpolation: the stages after it keep
    their own resolution, for which their attention and their published weights are made.
    """

    def __init__(self, name: str, depth: int, output_stride: int) -> None:
        super().__init__()
        self.name, self.depth = name, depth
        self.output_stride = min(output_stride, 2**depth)
        self.encoder = ENCODERS[name](3)

    @property
    def out_channels(self) -> list[int]:
        return list(self.encoder.out_channels)[: self.depth + 1]

    def set_in_channels(self, in_channels: int, pretrained: bool) -> None:
        if in_channels != self.out_channels[0]:
            self.encoder = ENCODERS[self.name](in_channels)

    def make_dilated(self, output_stride: int) -> None:
        self.output_stride = min(output_stride, 2**self.depth)

    def forward(self, x: Tensor) -> list[Tensor]:
        return no_coarser_than(self.output_stride, self.encoder(x)[: self.depth + 1])


def register_with_smp() -> None:
    """Make `smp.create_model("unet", "biformer_small", encoder_weights=None)` work for all our encoders."""
    for name in ENCODERS:
        params = {"name": name}
        smp.encoders.encoders[name] = {"encoder": SmpEncoder, "pretrained_settings": {}, "params": params}


register_with_smp()
