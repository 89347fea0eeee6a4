"""Peak memory of one step in a process of its own: ``python -m benchmarks.memory CASE`` prints the bytes."""

from __future__ import annotations

import sys
from dataclasses import astuple

import torch

from benchmarks.cases import PROVIDERS, Case
from metric_kernels.demo import peak

_TINY = 32


def peak_mb(case: Case, threads: int) -> float:
    """Extra megabytes (1e6 bytes) that a step of the case needs at its peak; the gradient of the embeddings counts."""
    return peak.in_processes(__name__, [(*astuple(case), threads)])[0] / 1e6


def step_peak(case: Case) -> int:
    """Bytes, measured in this process, which must not have run anything large before."""
    provider = PROVIDERS[case.provider]
    # A compiled function belongs to one shape, so that its warm-up has to be the case itself.
    tiny = case if case.provider == "compile" else Case(case.loss, _TINY, case.dim, case.dtype, 4, case.provider)
    provider.step(tiny, *tiny.inputs())()
    return peak.growth(provider.step(case, *case.inputs()))


def _main(loss, batch, dim, dtype, per_class, provider, threads) -> None:
    torch.set_num_threads(int(threads))
    print(step_peak(Case(loss, int(batch), int(dim), dtype, int(per_class), provider)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
