"""The kernels of :mod:`metric_kernels.binned` in CUDA C++; the arguments are described there."""

from __future__ import annotations

import torch
from torch import Tensor

from metric_kernels.backends.cuda import matrix, on_tile, vector, whole
from metric_kernels.terms import ValueTile


def histogram(tile: ValueTile, low: float, step: float, lone: bool, bits: int, out: Tensor, spoiled: Tensor):
    shares = whole("out", out, (_histograms(out, tile), 2, out.shape[2]), tile.v, torch.int64)
    flags = vector("spoiled", spoiled, len(tile.v), tile.v, torch.bool)
    on_tile("histogram", tile, low, step, out.shape[2], len(out) > 1, lone, bits, shares, flags)


def histogram_grads(tile: ValueTile, low: float, step: float, lone: bool, tables: Tensor, g: Tensor):
    tables = tables.contiguous()
    table = whole("tables", tables, (_histograms(tables, tile), 2, tables.shape[2]), tile.v)
    given = len(tables) > 1, lone, table, matrix("g", g, tile.v.shape, tile.v)
    on_tile("histogram_grads", tile, low, step, tables.shape[2], *given)


def _histograms(of: Tensor, tile: ValueTile) -> int:
    """One for each row, or one for all."""
    return 1 if len(of) == 1 else len(tile.v)
