"""Tensors of torch on a device, as blending asks for them; see arrays.py."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from rs_biformer.predict.buffers import buffer

_Function = TypeVar("_Function", bound=Callable[..., Any])


class TorchArrays:
    """Tensors on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def gathers(self) -> bool:
        return self.device.type != "cpu"

    def room(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        if self.device.type != "cpu":
            return torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
        return torch.from_numpy(buffer(shape, dtype))

    def staged(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def placed(self, array: NDArray[Any] | Tensor) -> Tensor:
        return torch.as_tensor(array).to(self.device, non_blocking=True)

    def on_host(self, array: Tensor) -> NDArray[Any]:
        found: NDArray[Any] = array.cpu().numpy()
        return found

    def inferring(self, function: _Function) -> _Function:
        return torch.inference_mode()(function)  # of a generator function each step, and nothing between them
