"""What a loss step (forward and backward) costs: time side by side in this process, peak memory in a process of its own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

BATCHES = (128, 256, 512, 1024, 2048)
WIDTH = 128
PER_CLASS = 4
# Losses over triplets or pairs of pairs cost some peers 16 times as much in time and memory when the batch doubles. Past this
# time per step the next batch could take minutes and more memory than a laptop has.
TOO_SLOW_S = 0.7
SECONDS_PER_BATCH = 1.0


def batch_of(size: int) -> tuple[Tensor, Tensor]:
    """Random embeddings with four of each class: the cost depends on the shape and the labels, hardly on the values."""
    x = torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return x, torch.arange(size) // PER_CLASS


def step(loss: nn.Module, x: Tensor, labels: Tensor) -> None:
    x.grad = None
    loss(x, labels).backward()


def times(losses: dict[str, nn.Module]) -> dict[int, dict[str, float]]:
    """Median seconds of a step, {batch: {contender: seconds}}, up to the first batch where some contender is too slow."""
    seconds = {}
    for size in tqdm(BATCHES, desc=f"{'time of a loss step':<32}", unit="batch size"):
        x, labels = batch_of(size)
        seconds[size] = interleaved_medians({name: partial(step, m, x, labels) for name, m in losses.items()})
        if max(seconds[size].values()) > TOO_SLOW_S:
            break
    return seconds


def interleaved_medians(actions: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each action. They take turns, so a slow moment of the machine falls on all of them alike."""
    for action in actions.values():  # the first call compiles and starts threads
        action()
    start = time.perf_counter()
    taken = {name: [_seconds(action)] for name, action in actions.items()}
    round_s = time.perf_counter() - start
    for _ in range(min(100, max(1, int(SECONDS_PER_BATCH / round_s)))):
        for name, action in actions.items():
            taken[name].append(_seconds(action))
    return {name: statistics.median(t) for name, t in taken.items()}


def _seconds(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def peak_memory(contender: str, loss: str, backend: str | None, size: int) -> int:
    """Bytes that one step needs at its peak beyond what was in use before it; see peak.py for the method."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        # glibc keeps freed blocks below a threshold that it raises as it goes, and a block that is kept hides a later peak.
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    command = [sys.executable, "-m", "metric_kernels.demo.peak", contender, loss, backend or "", str(size)]
    return int(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout)
