"""Raw band values -> what the network sees. Part of the network: the device gets uint8, a quarter of float32."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rs_biformer.errors import ConfigError


class Normalisation(nn.Module):
    """Standardise each band by a fixed mean and standard deviation: `(raw - mean) / std`.

    mean, std: one number per band, in the raw units of the raster (0..255 for 8-bit imagery, metres for a height band).
    Both are buffers: they move with the module and are stored in its state dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not len(mean):
            raise ConfigError(f"{len(mean)} means and {len(std)} deviations; give one of each per band")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.std).all() and (self.std > 0).all()):
            raise ConfigError(
                f"mean {list(mean)} and std {list(std)} must be finite and std above zero; "
                "leave out a band that is constant over the training pixels"
            )

    @property
    def bands(self) -> int:
        return self.mean.numel()

    def forward(self, raw: Tensor, valid: Tensor | None = None) -> Tensor:
        """Standardise `raw`, (B, C, H, W) of any dtype, to float32.

        valid: (B, H, W) bool. Pixels that are not valid become 0, the mean, whatever they hold, NaN included: what a
        nodata value happens to be cannot reach the network.
        Raises ConfigError when the number of bands is not that of the statistics.
        """
        if raw.shape[1] != self.bands:
            raise ConfigError(f"got {raw.shape[1]} bands; these statistics are for {self.bands}")
        out = (raw.to(torch.float32) - self.mean[:, None, None]) / self.std[:, None, None]
        return out if valid is None else torch.where(valid[:, None], out, 0.0)
