"""The kernels of :mod:`metric_kernels.binned` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from metric_kernels.terms import ValueTile, sides


def histogram(tile: ValueTile, low: float, step: float, lone: bool, bits: int, out: Tensor, spoiled: Tensor):
    node, share = _nodes(tile, low, step, out.shape[2])
    upper = (share * 2.0**bits).round().long()
    row = torch.arange(len(tile.v), device=node.device)[:, None] if len(out) > 1 else torch.zeros_like(node[:, :1])
    finite = tile.v.isfinite()
    spoiled |= (torch.logical_or(*sides(tile)) & ~finite).any(1)
    for number, mask in enumerate(_counted(tile, lone)):
        mask = mask & finite
        place = ((2 * row + number) * out.shape[2] + node)[mask]
        out.view(-1).index_add_(0, place, (2**bits - upper)[mask])
        out.view(-1).index_add_(0, place + 1, upper[mask])


def histogram_grads(tile: ValueTile, low: float, step: float, lone: bool, tables: Tensor, g: Tensor):
    node, share = _nodes(tile, low, step, tables.shape[2])
    slopes = tables.diff(dim=2) / step
    inside = (tile.v >= low) & (tile.v <= low + step * slopes.shape[2])
    for number, mask in enumerate(_counted(tile, lone)):
        table = slopes[:, number].expand(len(node), -1)
        g += table.gather(1, node).masked_fill(~(mask & inside), 0.0)


def _counted(tile: ValueTile, lone: bool) -> tuple[Tensor, Tensor]:
    """The positives and the negatives; pairs of two lone points are neither."""
    positive, negative = sides(tile)
    return positive & (tile.labels >= 0)[:, None] if lone else positive, negative


def _nodes(tile: ValueTile, low: float, step: float, nodes: int) -> tuple[Tensor, Tensor]:
    """The lower node of each value, and the share of the upper one."""
    place = ((tile.v - low) / step).nan_to_num(0.0).clamp(0.0, nodes - 1.0)
    node = place.long().clamp(max=nodes - 2)
    return node, place - node
