"""The network: 16x16 views to 64 numbers."""

from __future__ import annotations

import torch
from torch import nn

WIDTH = 64


def network(seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A convolutional network whose weights depend on the seed only, up to rounding the same in every dtype."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(128, WIDTH),
        )
    return net.to(dtype)
