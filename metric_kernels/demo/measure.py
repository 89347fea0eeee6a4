"""What a loss step (forward and backward) costs: time side by side here, peak memory in a process of its own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

BATCHES = (128, 256, 512, 1024, 2048)
WIDTH = 128
PER_CLASS = 4
TOO_SLOW_S = 1.5
SECONDS_PER_BATCH = 1.0


def batch_of(size: int) -> tuple[Tensor, Tensor]:
    """Random embeddings with four of each class: the cost depends on the shape and the labels, hardly on the values."""
    x = torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return x, torch.arange(size) // PER_CLASS


def step(loss: nn.Module, x: Tensor, labels: Tensor) -> None:
    x.grad = None
    loss(x, labels).backward()


def times(losses: dict[str, nn.Module]) -> dict[int, dict[str, float]]:
    """Median seconds of a step, {batch: {contender: seconds}}, for as many batch sizes as the slowest contender bears.

    A loss over triplets or pairs of pairs costs some peers 16 times the time and memory when the batch doubles. Where
    the growth so far foretells seconds for the next step, that step could also exceed the memory of a laptop.
    """
    seconds: dict[int, dict[str, float]] = {}
    before = None
    bar = tqdm(BATCHES, desc=f"{'time of a loss step':<32}", unit="batch size")
    for size in bar:
        x, labels = batch_of(size)
        steps = {name: partial(step, m, x, labels) for name, m in losses.items()}
        seconds[size] = interleaved_medians(steps)
        # Time spent computing, not waiting: other programs must not look like growth.
        now = max(_seconds(action, time.thread_time) for action in steps.values())
        if before is not None and now * now / before > TOO_SLOW_S:
            bar.total = len(seconds)
            bar.close()
            break
        before = now
    return seconds


def interleaved_medians(actions: Mapping[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each action. They take turns, so a slow moment of the machine falls on all of them alike."""
    for action in actions.values():  # the first call compiles and starts threads
        action()
    taken: dict[str, list[float]] = {name: [] for name in actions}
    start = time.perf_counter()
    while True:
        for name, action in actions.items():
            # Not timed: what the previous action left in the caches and to the allocator should not count.
            action()
            taken[name].append(_seconds(action))
        if time.perf_counter() - start > SECONDS_PER_BATCH:
            return {name: statistics.median(t) for name, t in taken.items()}


def _seconds(action: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    action()
    return clock() - start


def peak_memory(contenders: tuple[str, ...], loss: str, backend: str | None, size: int) -> dict[str, int]:
    """Bytes that one step of each contender needs at its peak beyond what was in use before; peak.py has the method."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        # glibc keeps freed blocks below a threshold that it raises as it goes; a block that is kept hides a later peak.
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    command = [sys.executable, "-m", "metric_kernels.demo.peak"]
    children = {
        name: subprocess.Popen(
            [*command, name, loss, backend or "", str(size)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for name in contenders
    }
    printed = {name: child.communicate()[0] for name, child in children.items()}
    for child in children.values():
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, child.args)
    return {name: int(text) for name, text in printed.items()}
