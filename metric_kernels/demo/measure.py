"""What a loss step (forward and backward) costs: time side by side here, peak memory in a process of its own.

``python -m metric_kernels.demo.measure CONTENDER LOSS BACKEND SIZE`` is that process and prints the bytes.
"""

from __future__ import annotations

import sys
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

from metric_kernels.demo import contenders, peak
from metric_kernels.demo.batch import clustered
from metric_kernels.demo.timing import interleaved

BATCHES = (128, 256, 512, 1024, 2048)
WIDTH = 128
PER_CLASS = 4
TOO_SLOW_MS = 1500
SECONDS_PER_BATCH = 1.0
# Of a contender that takes longer than its share, which is a matter of seconds for each turn.
MIN_TURNS = 2


def batch_of(size: int) -> tuple[Tensor, Tensor]:
    x, labels = clustered(size, WIDTH, PER_CLASS)
    return x.requires_grad_(), labels


def step(loss: nn.Module, x: Tensor, labels: Tensor) -> None:
    x.grad = None
    loss(x, labels).backward()


def times(losses: dict[str, nn.Module]) -> dict[int, dict[str, float]]:
    """Median milliseconds of a step, {batch: {contender: ms}}, for as many batch sizes as the slowest contender bears.

    A loss over triplets or pairs of pairs costs some peers 16 times the time and memory when the batch doubles. Where
    the growth so far foretells seconds for the next step, that step could also exceed the memory of a laptop.
    """
    milliseconds: dict[int, dict[str, float]] = {}
    before = None
    bar = tqdm(BATCHES, desc=f"{'time of a loss step':<32}", unit="batch size")
    for size in bar:
        x, labels = batch_of(size)
        steps = {name: partial(step, loss, x, labels) for name, loss in losses.items()}
        timings = interleaved(steps, SECONDS_PER_BATCH, MIN_TURNS)
        milliseconds[size] = {name: t.median for name, t in timings.items()}
        # Not the median: a few moments in which other programs had the core must not look like growth.
        slowest = max(t.p20 for t in timings.values())
        if before is not None and slowest * slowest / before > TOO_SLOW_MS:
            bar.total = len(milliseconds)
            bar.close()
            break
        before = slowest
    return milliseconds


def peak_memory(names: tuple[str, ...], loss: str, backend: str | None, size: int) -> dict[str, int]:
    """Bytes that one step of each contender needs at its peak beyond what was in use before."""
    return dict(zip(names, peak.in_processes(__name__, [(name, loss, backend or "", size) for name in names])))


def _main(contender: str, loss: str, backend: str, size: str) -> int:
    torch.set_num_threads(1)
    module = contenders.build(contender, loss, backend or None)
    step(module, *batch_of(4 * PER_CLASS))
    x, labels = batch_of(int(size))
    with torch.no_grad():
        x @ x.T  # the library of products allocates for the shape
    return peak.growth(partial(step, module, x, labels))


if __name__ == "__main__":
    print(_main(*sys.argv[1:]))
