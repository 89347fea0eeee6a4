"""The kernels of :mod:`metric_kernels.ordered` in Numba; the arguments are described there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metric_kernels.backends import numba_term_kernels as kernels
from metric_kernels.backends.numba_terms import Scratch, run
from metric_kernels.terms import ValueTile


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
    arrays = {**_lists(lists, which), "totals": totals, "counts": counts, "below": _counted(below, lists)}
    scratch = {**_places(lists), "sums": (lists.shape[1] + 1, torch.float64)}
    run(kernels.ranks, tile, (sign, margin), arrays, scratch)


def rank_grads(
    tile: ValueTile, sign: float, lists: Tensor, which: Tensor, margin: float, scale: Tensor, g: Tensor, below: Tensor | None
):
    arrays = {**_lists(lists, which), "scale": scale.contiguous(), "g": g, "below": _counted(below, lists)}
    run(kernels.rank_grads, tile, (sign, margin), arrays, _places(lists))


def _counted(below: Tensor | None, lists: Tensor) -> Tensor:
    return torch.zeros(lists.shape, dtype=torch.int64) if below is None else below


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
    arrays = {"lists": lists.contiguous(), "totals": totals, "counts": counts}
    cost, _ = kernels.SHAPES[shape]
    run(kernels.sums, tile, (sign, margin, low, high), arrays, _chunks(lists, "u"), cost=cost)


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
    arrays = {"lists": lists.contiguous(), "scale": scale.contiguous(), "g": g, "slopes": slopes}
    cost, slope = kernels.SHAPES[shape]
    if low <= 0.0 and high == math.inf:
        cost = slope  # where f is not above 0, neither is its slope
    scratch = _chunks(lists, "u", "by_negative")
    run(kernels.sum_grads, tile, (sign, margin, low, high), arrays, scratch, cost=cost, slope=slope)


def nearest(tile: ValueTile, sign: float, lists: Tensor) -> Tensor:
    columns = torch.empty(lists.shape, dtype=torch.int64)
    run(kernels.nearest, tile, (sign,), {"lists": lists.contiguous(), "columns": columns}, {})
    return columns


def _lists(lists: Tensor, which: Tensor) -> dict[str, Tensor]:
    if lists.shape[1] >= 2**30:
        raise ValueError(f"lists: expected fewer than 2**30 values each, got {lists.shape[1]}")
    # A thread hands its counts on when the list changes: rows of one list come one after another.
    return {"order": which.argsort(stable=True), "which": which.contiguous(), "lists": lists.contiguous()}


def _places(lists: Tensor) -> Scratch:
    return {**_chunks(lists, "u"), "above": (kernels.CHUNK, torch.int32), "hits": (lists.shape[1] + 1, torch.int64)}


def _chunks(like: Tensor, *names: str) -> Scratch:
    return dict.fromkeys(names, (kernels.CHUNK, like.dtype))
