"""Networks as if they had seen data."""

import torch
from torch import nn


def trained(model: nn.Module) -> nn.Module:
    """In eval mode and channels-last, with batch norms that do something."""
    torch.manual_seed(0)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
    return model.eval().to(memory_format=torch.channels_last)
