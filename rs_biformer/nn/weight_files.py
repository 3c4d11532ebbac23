"""Files of weights -> a flat state dict. Nothing in a file is executed."""

import pickle
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from rs_biformer.errors import CheckpointError

CONTAINERS = ("state_dict_ema", "model_ema", "teacher", "target_encoder", "model", "state_dict", "network", "student")
"""Keys under which authors keep the state dict in a file, best first: where there are two, they publish the average,
which self-supervised training calls the teacher."""

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".tar", ".pyth", ".npz")
"""What files of weights are called; .npz is among them to be refused with advice."""


def is_file_name(name: str | PathLike[str]) -> bool:
    """Whether this means a file and not the name of weights to download, such as imagenet or .dinov3_lvd1689m."""
    path = Path(name)
    return path.suffix.lower() in SUFFIXES or len(path.parts) > 1 or path.is_file()


def read_state_dict(source: Mapping[str, Tensor] | str | PathLike[str], name: str) -> dict[str, Tensor]:
    """The tensors of a file or mapping by their names, out of the container they are kept in.

    name: what to call the source in messages.
    Raises CheckpointError when there is no such file, when it cannot be read as weights alone, or holds none.
    """
    content: Mapping[str, Any] = source if isinstance(source, Mapping) else read_file(source)
    for _ in range(2):  # a container within a container: what trainers of trainers write
        content = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), content)
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{name} holds no tensors, bare or under {', '.join(CONTAINERS)}; give a state dict")
    return tensors


def read_file(path: str | PathLike[str]) -> Mapping[str, object]:
    """The mapping in a .pth, .ckpt or .safetensors file, on the CPU.

    Raises CheckpointError as read_state_dict; for a pickled model it tells the command that makes a state dict of it.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give the path of a .pth or .safetensors file")
    if path.suffix == ".npz":
        raise CheckpointError(f"{path} holds arrays of JAX; take the .safetensors or .pth file that timm made of it")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with safe_globals([(_NotATensor, name) for name in _other_types(path)]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        if "TorchScript" in str(error):
            raise CheckpointError(_made_a_state_dict(path, "a TorchScript program", "torch.jit.load({!r})")) from None
        reason = str(error).partition("\n")[0].partition(". ")[0]  # torch goes on with advice that would run the file
        raise CheckpointError(f"{path} cannot be read as weights alone ({reason}); save its state dict anew") from error
    if isinstance(content, _NotATensor):
        raise CheckpointError(_made_a_state_dict(path, "a pickled model", "torch.load({!r}, weights_only=False)"))
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; a state dict of tensors is needed")
    pickled = [key for key in CONTAINERS if isinstance(content.get(key), _NotATensor)]
    if pickled:
        load = f"torch.load({{!r}}, weights_only=False)[{pickled[0]!r}]"
        raise CheckpointError(_made_a_state_dict(path, f"a pickled model under {pickled[0]!r}", load))
    return content


def _made_a_state_dict(path: Path, what: str, load: str) -> str:
    out = path.with_name(f"{path.stem}_weights.pth")
    code = f"import torch; torch.save({load.format(str(path))}.state_dict(), {str(out)!r})"
    return (
        f"{path} holds {what}, which is code as well as weights; if you trust it, make a state dict of it with the "
        f'packages that it was made with: python -c "{code}"'
    )


class _NotATensor:
    """Stands for what authors save beside the weights, such as their command line; what it was is never looked up."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _other_types(path: Path) -> list[str]:
    """Names of the types and functions in a file that are not those of weights; none are imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols of files that are no checkpoints anyway
        try:
            return get_unsafe_globals_in_checkpoint(path)
        except ValueError:  # a file from before torch 1.6, or none of torch's at all
            return []
