"""Lists of triplets: those that are given, those of listed pairs, all of a batch, or a random choice."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metric_kernels.batch import Batch
from metric_kernels.tuples import Pairs, all_pairs


class Triplets(NamedTuple):
    """Indices (T,) of anchors in the batch, and of positives and negatives on the other side."""

    anchors: Tensor
    positives: Tensor
    negatives: Tensor

    @classmethod
    def of(cls, batch: Batch) -> Triplets:
        """Those that a call lists, every positive pair with every negative pair of its anchor if it lists pairs, else all."""
        if batch.pairs is None:
            return cls.joined(*all_pairs(batch.labels, batch.ref_labels, batch.exclude_self), len(batch.x))
        positives, negatives = batch.pairs
        if batch.listed == 3:
            return cls(positives.anchors, positives.others, negatives.others)
        return cls.joined(positives, negatives, len(batch.x))

    @classmethod
    def joined(cls, positives: Pairs, negatives: Pairs, rows: int) -> Triplets:
        """Every positive pair with every negative pair of its anchor, in the order of the positive pairs."""
        grouped, order = negatives.anchors.sort(stable=True)
        number = grouped.bincount(minlength=rows)
        first = number.cumsum(0) - number
        each = number[positives.anchors]
        pair = torch.repeat_interleave(each)
        place = torch.arange(len(pair), device=pair.device) - (each.cumsum(0) - each)[pair]
        anchors = positives.anchors[pair]
        return cls(anchors, positives.others[pair], negatives.others[order[first[anchors] + place]])

    @classmethod
    def sampled(cls, batch: Batch, each: int) -> Triplets:
        """``each`` triplets of every anchor that has one, their positives and negatives drawn uniformly with replacement."""
        positives, negatives = batch.numbers()
        grouped, order = batch.ref_labels.sort(stable=True)
        anchors = ((positives > 0) & (negatives > 0)).nonzero()[:, 0].repeat_interleave(each)
        first = torch.searchsorted(grouped, batch.labels)[anchors]
        same = len(batch.y) - negatives[anchors]
        positive = first + _below(positives[anchors])
        if batch.exclude_self:
            own = torch.empty_like(order).index_put_((order,), torch.arange(len(order), device=order.device))
            positive += positive >= own[anchors]
        negative = _below(negatives[anchors])
        negative += same * (negative >= first)
        return cls(anchors, order[positive], order[negative])


def _below(limits: Tensor) -> Tensor:
    """A random integer from 0 to each limit, exclusive."""
    share = torch.rand(limits.shape, dtype=torch.float64, device=limits.device)
    return torch.minimum((share * limits).long(), limits - 1)
