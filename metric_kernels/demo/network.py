"""The network: 16x16 views to 64 numbers."""

from __future__ import annotations

import torch
from torch import nn

WIDTH = 64


def network(seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A convolutional network with the same weights for the same seed in every dtype.

    Smooth activations and average pooling: rounding in float32 is amplified less than by kinks, so two trainings that
    should be equal stay together for longer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.GELU(),
            nn.AvgPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.GELU(),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(64, WIDTH),
        )
    return net.to(dtype)
