"""The term over quadruplets: pairs of an unordered positive and an unordered negative pair of a batch with itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metric_kernels.ordered import BatchAllTriplets
from metric_kernels.positive_pairs import positive_pairs
from metric_kernels.terms import Term, Tiles, ValueTile

NEGATIVES = ("disjoint", "all", "other_class")


@dataclass(frozen=True)
class BatchAllQuadruplets(Term):
    """The hinge summed over (unordered positive pair, unordered negative pair) of a batch with itself, and the active ones.

    ``negatives``: "all" negative pairs; those "disjoint" from the positive pair; or those that avoid its class
    ("other_class"). A negative pair meets a positive pair in one point at most, so the disjoint ones are all but the
    batch-all triplets. A negative pair touches a class with one end at most, so those of other classes are all but, for
    each anchor, its negatives with the positive pairs of its class.
    """

    sign: float
    margin: float
    negatives: str

    family = "ordered"
    saves = True
    mirrors = True

    def shapes(self, n, m):
        return (1,), (1,)

    @property
    def triplets(self) -> BatchAllTriplets:
        return BatchAllTriplets("hinge", self.sign, 0.0, torch.inf, (self.margin,))

    def forward(self, kernels, tiles: Tiles, values: Tensor, counts: Tensor):
        pairs = positive_pairs(kernels).of(kernels, tiles, self.sign, by_class=self.negatives == "other_class")
        total, count = values.new_zeros(2, len(tiles.labels)), counts.new_zeros(2, len(tiles.labels))
        for tile in tiles:
            at = tile.rows
            pairs.ranks(kernels, tile, self.sign, self.margin, total[0, at], count[0, at])
            if self.negatives == "other_class":
                pairs.own_ranks(kernels, tile, self.sign, self.margin, total[1, at], count[1, at])
            if self.negatives == "disjoint":
                self.triplets.forward(kernels, (tile,), total[1:], count[1:])
        # Every negative pair was seen from both its ends, and what is to be subtracted from one. In a matrix too large to be
        # mirrored the two may differ in their last bits, and ties leave a difference where there is nothing.
        active = torch.minimum(count[0].sum() // 2 - count[1].sum(), valid_quadruplets(tiles.labels, self.negatives))
        counts += active.clamp(min=0)
        found = 0.5 * total[0].sum() - total[1].sum()
        values += torch.where(counts > 0, found.clamp(min=0.0), found * 0.0)
        return counts > 0, *pairs.tensors()

    def backward(self, kernels, tile: ValueTile, g: Tensor, grads: Tensor, saved):
        some, *tensors = saved
        pairs = positive_pairs(kernels).restored(tensors)
        grads = torch.where(some, grads, 0.0)
        scale = grads.to(g.dtype).expand(len(g)).contiguous()
        pairs.rank_grads(kernels, tile, self.sign, self.margin, 0.5 * scale, g)
        if self.negatives == "other_class":
            pairs.own_rank_grads(kernels, tile, self.sign, self.margin, -scale, g)
        if self.negatives == "disjoint":
            self.triplets.backward(kernels, tile, g, -grads.expand(1, tile.rows.stop), ())
        pairs.grads(kernels, tile, self.sign, scale, g)


def valid_quadruplets(labels: Tensor, negatives: str) -> Tensor:
    """The number of pairs of an unordered positive and an unordered negative pair."""
    ordered = labels.sort().values
    size = torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)
    others = len(labels) - size
    positive, out = (size - 1).sum() // 2, others.sum() // 2
    every = positive * out
    if negatives == "disjoint":
        return every - ((size - 1) * others).sum()
    # A class has size * others pairs out of it, and size * (size - 1) / 2 within.
    return every if negatives == "all" else every - ((size - 1) * size * others).sum() // 2
