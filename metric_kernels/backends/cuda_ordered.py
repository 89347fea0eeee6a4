"""The kernels of :mod:`metric_kernels.ordered` in CUDA C++; the arguments are described there."""

from __future__ import annotations

import torch
from torch import Tensor

from metric_kernels.backends import cuda_pairs
from metric_kernels.backends.cuda import gradient, integers, matrix, on_tile, sums, whole
from metric_kernels.ordered import Members, own_lists
from metric_kernels.terms import ValueTile

# The kernels of metric_kernels/positive_pairs.py.
pairs = cuda_pairs


def ranks(
    tile: ValueTile,
    sign: float,
    lists: Tensor,
    which: Tensor,
    margin: float,
    totals: Tensor,
    counts: Tensor,
    below: Tensor | None,
):
    on_tile("ranks", tile, sign, _lists(lists, tile, which), margin, *sums(totals, counts, tile), _below(below, lists))


def rank_grads(
    tile: ValueTile, sign: float, lists: Tensor, which: Tensor, margin: float, scale: Tensor, g: Tensor, below: Tensor | None
):
    scale = scale.contiguous()
    given = *gradient(scale, g, tile), _below(below, lists)
    on_tile("rank_grads", tile, sign, _lists(lists, tile, which), margin, *given)


def triplets(tile: ValueTile, sign: float, members: Members, margin: float, totals: Tensor, counts: Tensor):
    on_tile("triplets", tile, sign, _members(members, tile), margin, *sums(totals, counts, tile))


def triplet_grads(tile: ValueTile, sign: float, members: Members, margin: float, scale: Tensor, g: Tensor):
    scale = scale.contiguous()
    on_tile("triplet_grads", tile, sign, _members(members, tile), margin, *gradient(scale, g, tile))


def triplet_sums(
    tile: ValueTile,
    sign: float,
    members: Members,
    margin: float,
    shape: str,
    low: float,
    high: float,
    totals: Tensor,
    counts: Tensor,
):
    on_tile("triplet_sums", tile, sign, _members(members, tile), margin, (shape, low, high), *sums(totals, counts, tile))


def triplet_sum_grads(
    tile: ValueTile,
    sign: float,
    members: Members,
    margin: float,
    shape: str,
    low: float,
    high: float,
    scale: Tensor,
    g: Tensor,
):
    scale = scale.contiguous()
    on_tile("triplet_sum_grads", tile, sign, _members(members, tile), margin, (shape, low, high), *gradient(scale, g, tile))


def semi_hard(
    tile: ValueTile,
    sign: float,
    members: Members,
    margin: float,
    shape: str,
    low: float,
    high: float,
    totals: Tensor,
    counts: Tensor,
):
    on_tile("semi_hard", tile, sign, _members(members, tile), margin, (shape, low, high), *sums(totals, counts, tile))


def semi_hard_grads(
    tile: ValueTile,
    sign: float,
    members: Members,
    margin: float,
    shape: str,
    low: float,
    high: float,
    scale: Tensor,
    g: Tensor,
):
    scale = scale.contiguous()
    on_tile("semi_hard_grads", tile, sign, _members(members, tile), margin, (shape, low, high), *gradient(scale, g, tile))


def nearest(tile: ValueTile, sign: float, lists: Tensor) -> Tensor:
    columns, which = torch.empty(lists.shape, dtype=torch.int64, device=lists.device), own_lists(tile)
    given = whole("columns", columns, lists.shape, tile.v, torch.int64)
    on_tile("nearest", tile, sign, _lists(lists, tile, which), given)
    return columns


def _lists(lists: Tensor, tile: ValueTile, which: Tensor) -> tuple:
    """Lists as the entry points take them."""
    return matrix("lists", lists, lists.shape, tile.v), *lists.shape, integers("which", which, len(tile.v), tile.v)


def _members(members: Members, tile: ValueTile) -> tuple:
    m, n = tile.v.shape
    return tuple(integers(name, t, size, tile.v) for name, t, size in zip(Members._fields, members, (n, m, m)))


def _below(below: Tensor | None, lists: Tensor) -> int:
    return 0 if below is None else whole("below", below, lists.shape, lists, torch.int64)
