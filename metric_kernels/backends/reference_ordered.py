"""The kernels of :mod:`metric_kernels.ordered` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from metric_kernels.ordered import SLOPES
from metric_kernels.terms import ValueTile, running_sums, sides, spoiled


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
    negative, u, c = _ranks(tile, sign, lists, which, margin, below)
    values = lists.double().masked_fill(lists == -torch.inf, 0.0)
    sums = pad(running_sums(values.flip(1)), (1, 0))
    cost = sums[which].gather(1, c) - c * u
    totals += cost.masked_fill(~negative, 0.0).sum(1).masked_fill(spoiled(tile), torch.nan)
    counts += c.masked_fill(~negative, 0).sum(1)


def rank_grads(
    tile: ValueTile, sign: float, lists: Tensor, which: Tensor, margin: float, scale: Tensor, g: Tensor, below: Tensor | None
):
    negative, _, c = _ranks(tile, sign, lists, which, margin, below)
    g -= (sign * scale)[:, None] * c.masked_fill(~negative, 0)


def _ranks(tile, sign, lists, which, margin, below) -> tuple[Tensor, Tensor, Tensor]:
    _, negative = sides(tile)
    u = sign * tile.v - margin
    mine = lists[which] if len(lists) > 1 else lists.expand(len(which), -1)
    c = lists.shape[1] - torch.searchsorted(mine.contiguous(), u, right=True)
    if below is not None:
        hits = torch.zeros(lists.shape[0], lists.shape[1] + 1, dtype=torch.int64, device=lists.device)
        place = (which[:, None] * hits.shape[1] + c)[negative]
        hits.view(-1).index_add_(0, place, torch.ones_like(place))
        below += hits.flip(1).cumsum(1)[:, :-1]
    return negative, u, c


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
    for cost, _, inside in _costs(tile, sign, lists, margin, shape, low, high):
        totals += cost.masked_fill(~inside, 0.0).sum(1, dtype=torch.float64)
        counts += inside.sum(1)
    totals.masked_fill_(spoiled(tile), torch.nan)


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
    for k, (_, slope, inside) in enumerate(_costs(tile, sign, lists, margin, shape, low, high)):
        slope = slope.masked_fill(~inside, 0.0)
        slopes[:, k] += slope.sum(1, dtype=torch.float64)
        g -= (sign * scale)[:, None] * slope


def _costs(tile, sign, lists, margin, shape, low, high):
    """For each place of the lists, what it costs with every column, the slope of that, and which of these pairs count."""
    _, negative = sides(tile)
    for values in lists.T:
        gap = values[:, None] - (sign * tile.v - margin)
        cost, slope = (f(gap) for f in SLOPES[shape])
        yield cost, slope, negative & (values > -torch.inf)[:, None] & (cost > low) & (cost < high)


def nearest(tile: ValueTile, sign: float, lists: Tensor) -> Tensor:
    if not tile.v.numel():
        return torch.full_like(lists, -1, dtype=torch.int64)
    _, negative = sides(tile)
    u, columns = (sign * tile.v).masked_fill(~negative, torch.inf).sort(stable=True, dim=1)
    number = negative.sum(1, keepdim=True)
    place = torch.searchsorted(u.contiguous(), lists.contiguous(), right=True)
    farthest = torch.searchsorted(u.contiguous(), u.gather(1, (number - 1).clamp(min=0)))
    # NaNs come after all else, so that a search may end beyond the row.
    place = torch.where(place < number, place, farthest).clamp(max=u.shape[1] - 1)
    return columns.gather(1, place).masked_fill(number == 0, -1)
