"""The training loop. Its randomness comes from the seed, so two losses see the same weights, batches and views."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from metric_kernels.demo.data import TRAIN_CLASSES, ClassBalancedBatches, Digits, views
from metric_kernels.demo.network import network

LEARNING_RATE = 3e-4


@dataclass(frozen=True)
class Training:
    """A trained network, the loss of every step, and the number of steps in an epoch."""

    net: nn.Module
    curve: list[float]
    epoch: int


def train(
    loss: nn.Module,
    digits: Digits,
    epochs: int,
    batch_size: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    title: str = "",
    time_limit: float = math.inf,
) -> Training:
    """Train a network from its first weights; past ``time_limit`` seconds stop at the end of the step."""
    start = time.perf_counter()
    net = network(seed, dtype)
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    batches = ClassBalancedBatches(digits.labels, batch_size // TRAIN_CLASSES, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    curve = []
    with tqdm(total=epochs * len(batches), desc=f"{title:<32}", unit="step", leave=True) as bar:
        for _ in range(epochs):
            for index in batches:
                x = net(views(digits.images[index], generator).to(dtype))
                value = loss(x, digits.labels[index])
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                curve.append(value.item())
                bar.set_postfix_str(f"loss {curve[-1]:.4f}", refresh=False)
                bar.update()
                if time.perf_counter() - start > time_limit:
                    return Training(net, curve, len(batches))
    return Training(net, curve, len(batches))


def difference(a: list[float], b: list[float]) -> float:
    """The largest relative difference of two loss curves, over the steps that both have."""
    return max(abs(x - y) / max(abs(x), abs(y), 1e-30) for x, y in zip(a, b))
