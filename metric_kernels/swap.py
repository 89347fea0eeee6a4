"""Triplets whose anchor and positive change places where the positive is nearer to the negative (Balntas et al. 2016).

The loss of (a, p, n) then depends on two rows of pair values, that of a and that of p, which the kernels of a tile do not see.
It is computed by torch, for some anchors and one positive of each at a time, and once more so in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from metric_kernels import core
from metric_kernels.batch import Batch
from metric_kernels.caller import Caller, as_called
from metric_kernels.distances import Distance
from metric_kernels.once import once
from metric_kernels.ordered import SLOPES, BatchAllTriplets, positive_columns
from metric_kernels.rowstats import pair_matrix
from metric_kernels.terms import ValueTile, sides
from metric_kernels.triplets import Triplets
from metric_kernels.tuples import Pairs, values

# Torch's temporaries for a matrix of pair values and what is done with it; they share the budget.
_MATRICES = 32


def swapped_values(distance: Distance, batch: Batch, triplets: Triplets, negative: Tensor) -> Tensor:
    """The pair values (T,) with the negatives, of the anchor or of the positive, whichever is nearer."""
    other = values(distance, batch.y, batch.y, Pairs(triplets.positives, triplets.negatives))
    return _nearer(distance, negative, other)


def swapped_sums(term: BatchAllTriplets, batch: Batch, distance: Distance) -> tuple[Tensor, Tensor]:
    """What the term is for all triplets after the change of places, on any backend: values (1, B) and counts (1, B)."""
    labels = batch.labels, batch.ref_labels, batch.exclude_self
    return _Swapped.apply(batch.x, None if batch.y is batch.x else batch.y, term, distance, labels)


class _Swapped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, term, distance, labels):
        ctx.options = term, distance, labels
        ctx.save_for_backward(x, y)
        x, y = _in_arithmetic(x, y)
        # A NaN must reach the loss even of an anchor without triplets.
        totals = ((x * 0.0).sum() + (y * 0.0).sum()).double().repeat(len(x))
        counts = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for tile in _tiles(y, *labels):
            tile = tile._replace(v=pair_matrix(distance, x[tile.rows], y))
            for columns in positive_columns(tile).T:
                total, count = _share(term, distance, tile, y, columns)
                totals[tile.rows] += total
                counts[tile.rows] += count
        ctx.caller = Caller()
        ctx.mark_non_differentiable(counts)
        return totals[None], counts[None]

    @staticmethod
    @as_called
    def backward(ctx, grads, _):
        given = ctx.saved_tensors
        term, distance, labels = ctx.options
        x, y = _in_arithmetic(*given)
        gx = torch.zeros_like(x)
        gy = gx if given[1] is None else torch.zeros_like(y)
        with torch.enable_grad(), core.no_autocast(x.device.type):
            for tile in _tiles(y, *labels):
                anchors, others = (t.detach().requires_grad_() for t in (x[tile.rows], y))
                matrix = pair_matrix(distance, anchors, others)
                tile = tile._replace(v=matrix.detach().requires_grad_())
                for columns in positive_columns(tile).T:
                    _share(term, distance, tile, others, columns)[0].backward(grads[0, tile.rows].detach())
                if tile.v.grad is not None:
                    matrix.backward(tile.v.grad)
                    gx[tile.rows] += anchors.grad
                    gy += others.grad
        x, y = given
        return once(gx.to(x.dtype), *given), None if y is None else once(gy.to(y.dtype), *given), None, None, None


def _in_arithmetic(x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = core.arithmetic(x.dtype if y is None else torch.promote_types(x.dtype, y.dtype))
    x = x.to(dtype)
    return x, x if y is None else y.to(dtype)


def _tiles(y: Tensor, labels: Tensor, ref_labels: Tensor, exclude_self: bool) -> Iterator[ValueTile]:
    """Tiles that have no values yet."""
    nothing = y.new_empty(0, len(y))
    step = max(core.workspace() // (_MATRICES * y.element_size() * max(len(y), 1)), 16)
    for start in range(0, len(labels), step):
        rows = slice(start, min(start + step, len(labels)))
        yield ValueTile(nothing, labels[rows], ref_labels, rows, start if exclude_self else -1)


def _share(term: BatchAllTriplets, distance: Distance, tile: ValueTile, y: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Sums and numbers (m,) for one positive of each anchor, which is none if it is beyond the last column."""
    present = columns < len(y)
    place = torch.where(present, columns, 0)
    chosen = _nearer(distance, tile.v, pair_matrix(distance, y.index_select(0, place), y))
    cost = SLOPES[term.shape][0](term.sign * (tile.v.gather(1, place[:, None]) - chosen) + term.margins[0])
    _, negative = sides(tile)
    inside = negative & present[:, None] & (cost > term.low) & (cost < term.high)
    return torch.where(inside, cost, 0.0).sum(1, dtype=torch.float64), inside.sum(1)


def _nearer(distance: Distance, one: Tensor, other: Tensor) -> Tensor:
    return torch.maximum(one, other) if distance.is_inverted else torch.minimum(one, other)
