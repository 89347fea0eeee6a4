"""Triplets whose anchor and positive change places where the positive is nearer to the negative (Balntas et al. 2016).

The loss of (a, p, n) then depends on two rows of pair values, that of a and that of p, which the kernels of a tile do not see.
It is computed by torch, one positive of every anchor at a time, each computed again in the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from metric_kernels import core
from metric_kernels.batch import Batch
from metric_kernels.distances import Distance
from metric_kernels.ordered import SLOPES, BatchAllTriplets, positive_columns
from metric_kernels.rowstats import pair_matrix
from metric_kernels.terms import ValueTile, sides
from metric_kernels.triplets import Triplets
from metric_kernels.tuples import Pairs, values


def swapped_values(distance: Distance, batch: Batch, triplets: Triplets, negative: Tensor) -> Tensor:
    """The pair values (T,) with the negatives, of the anchor or of the positive, whichever is nearer."""
    other = values(distance, batch.y, batch.y, Pairs(triplets.positives, triplets.negatives))
    return _nearer(distance, negative, other)


def swapped_sums(term: BatchAllTriplets, batch: Batch, distance: Distance, backend: str | None) -> tuple[Tensor, Tensor]:
    """What the term is for all triplets after the change of places: values (1, B) float64, counts (1, B) int64."""
    columns = max(core.workspace() // (4 * core.arithmetic(batch.x.dtype).itemsize * max(len(batch.y), 1)), 16)
    found = [_rows(term, batch, distance, slice(at, at + columns)) for at in range(0, len(batch.x), columns)]
    totals, counts = zip(*found)
    return torch.cat(totals)[None], torch.cat(counts)[None]


def _rows(term: BatchAllTriplets, batch: Batch, distance: Distance, rows: slice) -> tuple[Tensor, Tensor]:
    """Sums and numbers for some anchors."""
    x, y, labels = batch.x[rows], batch.y, batch.labels[rows]
    v = pair_matrix(distance, x, y)
    tile = ValueTile(v.detach(), labels, batch.ref_labels, rows, rows.start if batch.exclude_self else -1)
    _, negative = sides(tile)
    totals = v.sum(1, dtype=torch.float64) * 0.0
    counts = torch.zeros_like(labels)

    def share(v: Tensor, y: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        present = columns < len(y)
        place = torch.where(present, columns, 0)
        chosen = _nearer(distance, v, pair_matrix(distance, y.index_select(0, place), y))
        gap = term.sign * (v.gather(1, place[:, None]) - chosen) + term.margins[0]
        cost = SLOPES[term.shape][0](gap)
        inside = negative & present[:, None] & (cost > term.low) & (cost < term.high)
        return torch.where(inside, cost, 0.0).sum(1, dtype=torch.float64), inside.sum(1)

    for columns in positive_columns(tile).T:
        total, count = checkpoint(share, v, y, columns, use_reentrant=False, preserve_rng_state=False)
        totals, counts = totals + total, counts + count
    return totals, counts


def _nearer(distance: Distance, one: Tensor, other: Tensor) -> Tensor:
    return torch.maximum(one, other) if distance.is_inverted else torch.minimum(one, other)
