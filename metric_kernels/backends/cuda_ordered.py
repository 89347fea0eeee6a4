"""The kernels of :mod:`metric_kernels.ordered` in CUDA C++; the arguments are described there."""

from __future__ import annotations

import torch
from torch import Tensor

from metric_kernels.backends import cuda_pairs
from metric_kernels.backends.cuda import integers, matrix, on_tile, vector, whole
from metric_kernels.ordered import Members
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
    sums = vector("totals", totals, len(tile.v), tile.v, torch.float64), integers("counts", counts, len(tile.v), tile.v)
    on_tile("ranks", tile, sign, _lists(lists, tile, which), margin, *sums, _below(below, lists))


def rank_grads(
    tile: ValueTile, sign: float, lists: Tensor, which: Tensor, margin: float, scale: Tensor, g: Tensor, below: Tensor | None
):
    scale = scale.contiguous()
    given = vector("scale", scale, len(tile.v), tile.v), matrix("g", g, tile.v.shape, tile.v), _below(below, lists)
    on_tile("rank_grads", tile, sign, _lists(lists, tile, which), margin, *given)


def triplets(tile: ValueTile, sign: float, members: Members, margin: float, totals: Tensor, counts: Tensor):
    sums = vector("totals", totals, len(tile.v), tile.v, torch.float64), integers("counts", counts, len(tile.v), tile.v)
    on_tile("triplets", tile, sign, _members(members, tile), margin, *sums)


def triplet_grads(tile: ValueTile, sign: float, members: Members, margin: float, scale: Tensor, g: Tensor):
    scale = scale.contiguous()
    given = vector("scale", scale, len(tile.v), tile.v), matrix("g", g, tile.v.shape, tile.v)
    on_tile("triplet_grads", tile, sign, _members(members, tile), margin, *given)


def sums(
    tile: ValueTile,
    sign: float,
    lists: Tensor,
    margin: float,
    shape: str,
    low: float,
    high: float,
    totals: Tensor,
    counts: Tensor,
):
    sums = vector("totals", totals, len(tile.v), tile.v, torch.float64), integers("counts", counts, len(tile.v), tile.v)
    on_tile("sums", tile, sign, _lists(lists, tile), margin, (shape, low, high), *sums)


def sum_grads(
    tile: ValueTile,
    sign: float,
    lists: Tensor,
    margin: float,
    shape: str,
    low: float,
    high: float,
    scale: Tensor,
    g: Tensor,
    slopes: Tensor,
):
    scale = scale.contiguous()
    given = vector("scale", scale, len(tile.v), tile.v), matrix("g", g, tile.v.shape, tile.v)
    by_value = whole("slopes", slopes, lists.shape, tile.v, torch.float64)
    on_tile("sum_grads", tile, sign, _lists(lists, tile), margin, (shape, low, high), *given, by_value)


def nearest(tile: ValueTile, sign: float, lists: Tensor) -> Tensor:
    columns = torch.empty(lists.shape, dtype=torch.int64, device=lists.device)
    on_tile("nearest", tile, sign, _lists(lists, tile), whole("columns", columns, lists.shape, tile.v, torch.int64))
    return columns


def _lists(lists: Tensor, tile: ValueTile, which: Tensor | None = None) -> tuple:
    """Lists as the entry points take them: one for each row unless ``which`` says otherwise."""
    rows = len(tile.v)
    number, length = lists.shape if which is not None else (rows, lists.shape[1])
    owners = 0 if which is None else integers("which", which, rows, tile.v)
    return matrix("lists", lists, (number, length), tile.v), number, length, owners


def _members(members: Members, tile: ValueTile) -> tuple:
    m, n = tile.v.shape
    return tuple(integers(name, t, size, tile.v) for name, t, size in zip(Members._fields, members, (n, m, m)))


def _below(below: Tensor | None, lists: Tensor) -> int:
    return 0 if below is None else whole("below", below, lists.shape, lists, torch.int64)
