"""Histograms of the positive and negative pair values, with each value shared linearly between its two nearest nodes.

Shares are integers, multiples of 2**-bits, so that the sums are the same in any order. In the backward pass a pair looks up
the slope of the loss between its two nodes.

What the ``binned`` kernels of a backend do for a tile of values v (m, n), nodes at low + step * r for r = 0, 1 ... R - 1, and
``per_anchor`` either one histogram for each row or one for all:

``histogram(tile, low, step, lone, bits, out, spoiled)``
    adds the shares of the positives of each row to out[row or 0, 0] and of its negatives to out[row or 0, 1]; out is
    (m or 1, 2, R) int64. A value beyond the nodes counts as the last node on its side. spoiled (m,) becomes True for a row
    with a value of a pair that is not finite, and is nowhere in the histogram.
``histogram_grads(tile, low, step, lone, tables, g)``
    adds (tables[..., r + 1] - tables[..., r]) / step to g_ij, r and r + 1 being the nodes of v_ij; 0 beyond the nodes.

With ``lone`` a label below 0 is that of all points without a positive, and pairs of two of these are on neither side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metric_kernels.terms import Term, Tiles, ValueTile


@dataclass(frozen=True)
class PairHistogram(Term):
    """Sums of shares (1 or N, 2, nodes): over the positive pairs, then over the negative pairs, (i, j) and (j, i) both."""

    low: float
    step: float
    nodes: int
    per_anchor: bool
    lone: bool = False

    family = "binned"

    @property
    def symmetric(self) -> bool:
        return not self.per_anchor

    def shapes(self, n, m):
        return (n if self.per_anchor else 1, 2, self.nodes), (0,)

    def forward(self, kernels, tiles: Tiles, values: Tensor, counts: Tensor):
        shares = torch.zeros(values.shape, dtype=torch.int64, device=values.device)
        spoiled = torch.zeros(len(tiles.labels), dtype=torch.bool, device=values.device)
        bits = 0
        for tile in tiles:
            # The largest sum that there can be still fits in 62 bits.
            pairs = tile.v.shape[1] * (1 if self.per_anchor else len(tiles.labels))
            bits = min(50, 62 - math.ceil(math.log2(max(pairs, 2))))
            out = shares[tile.rows] if self.per_anchor else shares
            kernels.histogram(tile, self.low, self.step, self.lone, bits, out, spoiled[tile.rows])
        values.copy_(shares).mul_(2.0**-bits)
        spoiled = spoiled if self.per_anchor else spoiled.any()[None]
        values.masked_fill_(spoiled[:, None, None], torch.nan)
        return ()

    def backward(self, kernels, tile: ValueTile, g: Tensor, grads: Tensor, saved):
        tables = grads[tile.rows] if self.per_anchor else grads
        kernels.histogram_grads(tile, self.low, self.step, self.lone, tables.to(g.dtype), g)


def soft_histogram(v: Tensor, low: float, step: float, nodes: int) -> Tensor:
    """The shares (nodes,) float64 of a list of values (P,), differentiable."""
    # A value that is not finite has no place, and must reach the sums.
    place = ((v.double() - low) / step).clamp(0.0, nodes - 1.0) + 0.0 * v
    node = place.detach().nan_to_num(0.0).long().clamp(max=nodes - 2)
    share = place - node
    return share.new_zeros(nodes).index_add(0, node, 1.0 - share).index_add(0, node + 1, share)
