"""The kernels of :mod:`metric_kernels.ordered` in C++; the arguments are described there."""

from __future__ import annotations

import torch
from torch import Tensor

from metric_kernels.backends.native import extension, products
from metric_kernels.terms import ValueTile
from metric_kernels.tile import Tile


def values(tile: ValueTile) -> tuple:
    """A tile as every entry point takes it."""
    labels, ref_labels = tile.labels.numpy(), tile.ref_labels.numpy()
    return tile.v.contiguous().numpy(), labels, ref_labels, tile.diagonal, min(torch.get_num_threads(), 1024)


def positives(tile: ValueTile, sign: float) -> tuple[Tensor, Tensor]:
    columns, lists = extension().positives(*values(tile), sign)
    return torch.from_numpy(columns), torch.from_numpy(lists)


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
    given = lists.numpy(), which.numpy(), margin, totals.numpy(), counts.numpy(), _given(below)
    extension().ranks(*values(tile), sign, *given)


def rank_grads(
    tile: ValueTile, sign: float, lists: Tensor, which: Tensor, margin: float, scale: Tensor, g: Tensor, below: Tensor | None
):
    given = lists.numpy(), which.numpy(), margin, scale.contiguous().numpy(), g.numpy(), _given(below)
    extension().rank_grads(*values(tile), sign, *given)


def triplets_step(
    metric: type, tile: Tile, sign: float, margin: float, both: bool, norm_grad: Tensor | None
) -> tuple[Tensor, Tensor]:
    labels = tile.labels.numpy(), tile.ref_labels.numpy(), tile.diagonal
    total, count = extension().triplets_step(*products(metric, tile), *labels, sign, margin, both, _given(norm_grad))
    return torch.tensor(total, dtype=torch.float64), torch.tensor(count)


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
    given = margin, shape, low, high, totals.numpy(), counts.numpy()
    extension().sums(*values(tile), sign, lists.numpy(), *given)


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
    given = margin, shape, low, high, scale.contiguous().numpy(), g.numpy(), slopes.numpy()
    extension().sum_grads(*values(tile), sign, lists.numpy(), *given)


def nearest(tile: ValueTile, sign: float, lists: Tensor) -> Tensor:
    columns = torch.empty(lists.shape, dtype=torch.int64)
    extension().nearest(*values(tile), sign, lists.numpy(), columns.numpy())
    return columns


def _given(below: Tensor | None):
    return None if below is None else below.numpy()
