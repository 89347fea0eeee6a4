"""The kernels of :mod:`metric_kernels.binned` in Numba; the arguments are described there."""

from __future__ import annotations

import torch
from torch import Tensor

from metric_kernels.backends import numba_term_kernels as kernels
from metric_kernels.backends.numba_terms import run
from metric_kernels.terms import ValueTile


def histogram(tile: ValueTile, low: float, step: float, lone: bool, bits: int, out: Tensor, spoiled: Tensor):
    shares = (kernels.CHUNK, torch.int64)
    own = 2 * out.shape[2] if len(out) == 1 else 0  # one histogram for each thread, if there is but one
    scratch = {"node": (kernels.CHUNK, torch.int32), "lower": shares, "upper": shares, "own": (own, torch.int64)}
    arrays = {"out": out.view(len(out), 2 * out.shape[2]), "spoiled": spoiled.view(torch.uint8)}
    run(kernels.histogram, tile, (low, 1.0 / step, lone, 2.0**bits), arrays, scratch)


def histogram_grads(tile: ValueTile, low: float, step: float, lone: bool, tables: Tensor, g: Tensor):
    slopes = tables.diff(dim=2).flatten(1).mul_(1.0 / step)
    high = low + step * (tables.shape[2] - 1)
    run(kernels.histogram_grads, tile, (low, 1.0 / step, lone, high), {"slopes": slopes, "g": g}, {})
