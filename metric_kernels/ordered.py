"""Terms over triplets and quadruplets, exact and far below cubic cost, because they need only the order of pair values.

With u = v for a distance and u = -v for a similarity, a triplet costs f(u_ap - u_an + margin) and a quadruplet
[u_ij - u_kl + margin]_+. For the hinge, keep the positive values as a sorted list: a negative u costs the sum of those
above u - margin less their number times (u - margin); minus their number is its gradient, and that of a positive is the
number of negatives below it. Numbers are integers and sums float64, hence exact and independent of any order.

What the ``ordered`` kernels of a backend do, for each row i of a tile of values v and a list of positive values of its own
or shared, ``lists[which[i]]`` (K,), sorted, with -inf for places that are empty; c is the number of those above u - margin:

``positives(tile, sign) -> (columns, lists)``
    the columns (m, K) of the positives of each row by ascending u, and their values u; where there are fewer, the number of
    columns and -inf. It need not be there: torch does it otherwise.
``triplets_step(metric, tile, sign, margin, both, norm_grad) -> (total, count)``
    for a tile of products that is the whole matrix, the sum of all hinges and the number of those above 0; the products are
    overwritten with the derivatives of the sum, in both directions of a pair with ``both``, and the rows' shares of the
    gradient with respect to the squared norms go to norm_grad (m,) unless that is None. It need not be there either.
``ranks(tile, sign, lists, which, margin, totals, counts, below)``
    adds to totals (m,) the hinge summed over the row's negatives, to counts (m,) the sum of c, and to below (lists, K), for
    each value of the list, the number of the row's negatives with u - margin below it, unless that is None. A NaN in a row
    makes its total NaN.
``rank_grads(tile, sign, lists, which, margin, scale, g, below)``
    adds -sign * scale_i * c to g_ij at the row's negatives, and to below as above.
``triplets(tile, sign, members, margin, totals, counts)``, ``triplet_grads(tile, sign, members, margin, scale, g)``
    ``ranks`` with the positives of each row as its list, and all of its gradient, without a list in memory whose size only the
    labels know: a CPU need not wait for a GPU. They need not be there.
``sums(tile, sign, lists, margin, shape, low, high, totals, counts)``
    with a list for each row: adds f summed over the pairs of a value of the list and a negative with low < f < high, and
    their number.
``sum_grads(tile, sign, lists, margin, shape, low, high, scale, g, slopes)``
    adds the slopes of these at the negatives, times -sign * scale_i, to g, and to slopes (m, K) float64 their sums for each
    value of the list.
``nearest(tile, sign, lists) -> (m, K)``
    the column of the nearest negative beyond each value of the row's list, of the farthest negative if there is none, -1 if
    there are no negatives. The first one of equals.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from metric_kernels.batch import Batch
from metric_kernels.rowstats import Call, pair_matrix
from metric_kernels.terms import Term, Tiles, ValueTile, spoiled
from metric_kernels.triplets import Triplets

SHAPES = ("hinge", "squared_hinge", "softplus")


class Members(NamedTuple):
    """The columns (n,) of a tile by label, and for each row (m,) where those with its label begin there, and their number."""

    order: Tensor
    first: Tensor
    number: Tensor

    @classmethod
    def of(cls, tile: ValueTile) -> Members:
        labels, order = tile.ref_labels.sort(stable=True)
        first = torch.searchsorted(labels, tile.labels)
        return cls(order, first, torch.searchsorted(labels, tile.labels, right=True) - first)


class Positives(NamedTuple):
    """The positives of each row of a tile: columns (m, K), M where there are fewer, and their values u, sorted."""

    columns: Tensor
    lists: Tensor

    @classmethod
    def of(cls, kernels: ModuleType, tile: ValueTile, sign: float) -> Positives:
        return cls(*getattr(kernels, "positives", positives)(tile, sign))


def add_at(g: Tensor, columns: Tensor, grads: Tensor) -> None:
    """Adds grads (m, K) to g (m, n) at some columns, but for those beyond the last."""
    present = columns < g.shape[1]
    g.scatter_add_(1, torch.where(present, columns, 0), torch.where(present, grads, 0.0).to(g.dtype))


def positives(tile: ValueTile, sign: float) -> tuple[Tensor, Tensor]:
    columns = positive_columns(tile)
    last = tile.v.shape[1] - 1
    u = (sign * tile.v.gather(1, columns.clamp(max=last))).masked_fill(columns > last, -torch.inf)
    lists, order = u.sort(1)
    return columns.gather(1, order), lists


def positive_columns(tile: ValueTile) -> Tensor:
    """Columns (m, K) of the points with the label of each row but the row's own point; the number of columns where none."""
    order, first, number = Members.of(tile)
    most = int(number.max()) if len(number) else 0
    place = torch.arange(most, device=order.device)
    columns = pad(order, (0, 1), value=len(order))[torch.where(place < number[:, None], first[:, None] + place, len(order))]
    if tile.diagonal >= 0:
        own = torch.arange(tile.diagonal, tile.diagonal + len(columns), device=order.device)
        columns = columns.masked_fill(columns == own[:, None], len(order)).sort(1).values[:, : max(most - 1, 0)]
    return columns


@dataclass(frozen=True)
class BatchAllTriplets(Term):
    """For each margin and anchor, f summed over its (positive, negative) pairs with ``low < f < high``, and their number."""

    shape: str
    sign: float
    low: float
    high: float
    margins: tuple[float, ...]

    family = "ordered"

    @property
    def by_rank(self) -> bool:
        """Whether it is enough to know how many positives are above a negative, and their sum."""
        return self.shape == "hinge" and self.low == 0.0 and self.high == torch.inf

    def shapes(self, n, m):
        return (len(self.margins), n), (len(self.margins), n)

    def at_once(self, kernels):
        if self.by_rank and len(self.margins) == 1 and hasattr(kernels, "triplets_step"):
            return partial(kernels.triplets_step, sign=self.sign, margin=self.margins[0])
        return None

    def forward(self, kernels, tiles: Tiles, values: Tensor, counts: Tensor):
        for tile in tiles:
            by_margin = zip(self.margins, values[:, tile.rows], counts[:, tile.rows])
            if self.by_rank and hasattr(kernels, "triplets"):
                members = Members.of(tile)
                for margin, total, count in by_margin:
                    kernels.triplets(tile, self.sign, members, margin, total, count)
                continue
            lists = Positives.of(kernels, tile, self.sign).lists
            for margin, total, count in by_margin:
                if self.by_rank:
                    kernels.ranks(tile, self.sign, lists, own_lists(tile), margin, total, count, None)
                else:
                    kernels.sums(tile, self.sign, lists, margin, self.shape, self.low, self.high, total, count)
        return ()

    def backward(self, kernels, tile: ValueTile, g: Tensor, grads: Tensor, saved):
        by_margin = zip(self.margins, grads[:, tile.rows].to(g.dtype))
        if self.by_rank and hasattr(kernels, "triplet_grads"):
            members = Members.of(tile)
            for margin, scale in by_margin:
                kernels.triplet_grads(tile, self.sign, members, margin, scale, g)
            return
        positives = Positives.of(kernels, tile, self.sign)
        lists, which = positives.lists, own_lists(tile)
        for margin, scale in by_margin:
            if self.by_rank:
                slopes = none_below(lists)
                kernels.rank_grads(tile, self.sign, lists, which, margin, scale, g, slopes)
            else:
                slopes = torch.zeros_like(lists, dtype=torch.float64)
                kernels.sum_grads(tile, self.sign, lists, margin, self.shape, self.low, self.high, scale, g, slopes)
            add_at(g, positives.columns, self.sign * scale[:, None] * slopes)


@dataclass(frozen=True)
class SemiHardTriplets(Term):
    """For each anchor, f summed over its positives against the nearest negative beyond each, or else the farthest one, where
    ``low < f < high``, and the number of these.
    """

    shape: str
    sign: float
    low: float
    high: float
    margin: float

    family = "ordered"

    def shapes(self, n, m):
        return (1, n), (1, n)

    def forward(self, kernels, tiles: Tiles, values: Tensor, counts: Tensor):
        found = []
        for tile in tiles:
            triplets = self._triplets(kernels, tile)
            cost = SLOPES[self.shape][0](triplets.gap)
            counted = self._counted(triplets, cost)
            total = torch.where(counted, cost, 0.0).sum(1, dtype=torch.float64)
            values[0, tile.rows] = total.masked_fill(spoiled(tile), torch.nan)
            counts[0, tile.rows] = counted.sum(1)
            found.append(triplets)
        return tuple(found[0]) if len(found) == 1 else ()

    def backward(self, kernels, tile: ValueTile, g: Tensor, grads: Tensor, saved):
        triplets = NearestTriplets(*(t[tile.rows] for t in saved)) if saved else self._triplets(kernels, tile)
        scale = self.sign * grads[0, tile.rows, None].to(g.dtype)
        cost, slope = (f(triplets.gap) for f in SLOPES[self.shape])
        slope = torch.where(self._counted(triplets, cost), slope, 0.0) * scale
        add_at(g, triplets.positives, slope)
        add_at(g, triplets.negatives, -slope)

    def listed(self, batch: Batch, distance: object, backend: str | None) -> Triplets:
        """The triplets themselves, from the matrix of pair values."""
        call = Call.of(self, (self.flat,), distance, batch, backend)
        with torch.no_grad():
            v = pair_matrix(distance, batch.x, batch.y)
            diagonal = 0 if batch.exclude_self else -1
            tile = ValueTile(v, batch.labels, batch.ref_labels, slice(0, len(v)), diagonal)
            positives, negatives, _ = self._triplets(call.chosen().ordered, tile)
        anchors, place = (negatives < len(batch.y)).nonzero(as_tuple=True)
        return Triplets(anchors, positives[anchors, place], negatives[anchors, place])

    def _counted(self, triplets: NearestTriplets, cost: Tensor) -> Tensor:
        return (triplets.gap > -torch.inf) & (cost > self.low) & (cost < self.high)

    def _triplets(self, kernels, tile: ValueTile) -> NearestTriplets:
        positives = Positives.of(kernels, tile, self.sign)
        negatives = kernels.nearest(tile, self.sign, positives.lists)
        missing = (negatives < 0) | (positives.lists == -torch.inf)
        chosen = self.sign * tile.v.gather(1, negatives.clamp(min=0))
        gap = (positives.lists - chosen + self.margin).masked_fill(missing, -torch.inf)
        return NearestTriplets(positives.columns, negatives.masked_fill(missing, tile.v.shape[1]), gap)


class NearestTriplets(NamedTuple):
    """For each positive of each row, all (m, K): its column, that of its negative, and u_ap - u_an + margin.

    Where there is none, the columns are beyond the last and the gap is -inf.
    """

    positives: Tensor
    negatives: Tensor
    gap: Tensor


def own_lists(tile: ValueTile) -> Tensor:
    return torch.arange(len(tile.v), device=tile.v.device)


def none_below(lists: Tensor) -> Tensor:
    return torch.zeros_like(lists, dtype=torch.int64)


# f and its derivative for each shape.
SLOPES = {
    "hinge": (torch.relu, lambda t: (t > 0).to(t.dtype)),
    "squared_hinge": (lambda t: torch.relu(t).square(), lambda t: 2.0 * torch.relu(t)),
    "softplus": (torch.nn.functional.softplus, torch.sigmoid),
}
