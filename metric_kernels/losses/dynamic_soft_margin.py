from __future__ import annotations

import copy
import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from metric_kernels.binned import soft_histogram
from metric_kernels.checks import whole_number
from metric_kernels.core import arithmetic
from metric_kernels.distances import LpDistance
from metric_kernels.extremes import extremes_of
from metric_kernels.losses._base import Loss, check_unit_distance
from metric_kernels.ordered import BatchAllTriplets
from metric_kernels.terms import evaluate, running_sums
from metric_kernels.triplets import Triplets
from metric_kernels.tuples import Pairs, values


class DynamicSoftMarginLoss(Loss):
    """Triplet loss whose weights are the running distribution of what it sums: the harder a triplet, the larger its weight.

    ``mean CDF(t) t`` over all triplets, t = d_ap - d_an, where CDF is the share of triplets that were easier, from a soft
    histogram of t that each batch changes by ``momentum``.

    Zhang and Rusinkiewicz, "Learning Local Descriptors with a CDF-Based Dynamic Soft Margin", ICCV 2019. Weights are constants
    for differentiation (pytorch-metric-learning keeps their graph, so that the second step fails). The histogram
    of all triplets comes from hinge sums at its nodes, in O(bins B^2 log K) time.

    Args:
        min_val: first node of the histogram; the last is ``-min_val``. Values beyond the nodes count on the nearest, and
            weigh 0 below the first and 1 above the last.
        num_bins: number of intervals between nodes.
        momentum: weight of each triplet of a batch in the running histogram, which sums to 1; 1 for the first batch.
        **kwargs: ``distance`` (LpDistance; normalised, p=2), ``reducer`` (MeanReducer; the loss is one number, which no
            reducer changes), and the others of :class:`~metric_kernels.losses.Loss`.

    Without ``labels`` and ``indices_tuple``, row i of ``ref_emb`` is the positive of row i of ``embeddings``, and its negative
    the nearest of the other pairs on either side. The histogram is the buffer ``histogram`` (num_bins + 1,), part of
    ``state_dict``, and changes in training mode only. Triplets in ``indices_tuple`` are taken as they are; of pairs, every
    positive pair is joined with every negative pair of its anchor. Without triplets the loss is 0. The value can be negative.

    Raises:
        AssertionError: another distance, as in pytorch-metric-learning.
        ValueError: ``min_val`` that is not negative, fewer than one bin, ``momentum`` beyond 0 to 1, or no labels and no
            ``ref_emb`` of the same shape.

    Example:
        >>> import torch
        >>> from metric_kernels.losses import DynamicSoftMarginLoss
        >>> loss = DynamicSoftMarginLoss()
        >>> loss(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1]))
        tensor(-0.0680)
    """

    default_distance = LpDistance
    kernels = "ordered"
    labels_required = False

    def __init__(self, min_val: float = -2.0, num_bins: int = 10, momentum: float = 0.01, **kwargs):
        super().__init__(**kwargs)
        check_unit_distance(self)
        if not isinstance(min_val, (int, float)) or not -math.inf < min_val < 0:
            raise ValueError(f"min_val: expected a finite number below 0, got {min_val!r}")
        if not isinstance(momentum, (int, float)) or not 0 <= momentum <= 1:
            raise ValueError(f"momentum: expected a number from 0 to 1, got {momentum!r}")
        self.min_val = min_val
        self.num_bins = whole_number("num_bins", num_bins)
        self.momentum = momentum
        self.delta = 2 * abs(min_val) / self.num_bins
        self.register_buffer("histogram", torch.zeros(self.num_bins + 1, dtype=torch.float64))

    def _evaluate(self, batch):
        if batch.pairs is None and batch.labels is not None:
            return self._whole(self._of_all(batch), batch)
        gap = self._of_rows(batch) if batch.pairs is None else self._of_list(batch)
        return self._whole(self._of_gaps(gap, batch), batch)

    def _of_all(self, batch) -> Tensor:
        # A t at a node counts as above it, and hinges are of what is truly above: distances are at most 2, with this rounding.
        rounding = 4.0 * torch.finfo(arithmetic(batch.x.dtype)).eps
        nodes = self.min_val + self.delta * torch.arange(self.num_bins + 1, dtype=torch.float64, device=batch.x.device)
        margins = tuple(rounding - (self.min_val + self.delta * b) for b in range(self.num_bins + 1))
        term = BatchAllTriplets("hinge", self.sign, 0.0, torch.inf, margins)
        sums, counts = (t.sum(1) for t in evaluate(term, batch, self.distance, self.backend))
        sums = sums - rounding * counts
        positives, negatives = batch.numbers()
        number = (positives * negatives).sum().double()
        # Shares of the nodes above each node but the last: clamp((t - node) / delta, 0, 1), summed.
        above = -sums.detach().diff() / self.delta
        histogram = self._updated(torch.cat((number - above[:1], -above.diff(), above[-1:])).clamp(min=0.0), number)
        beyond = sums + counts * nodes  # the sum of all t above each node
        return (histogram * beyond).sum() / number.clamp(min=1.0)

    def _of_gaps(self, gap: Tensor, batch) -> Tensor:
        nodes = self.num_bins + 1
        histogram = soft_histogram(gap.detach(), self.min_val, self.delta, nodes)
        weights = pad(running_sums(self._updated(histogram, histogram.sum())), (1, 0))
        place = ((gap.detach().double() - self.min_val) / self.delta).nan_to_num(0.0).floor().clamp(-1, nodes - 1).long()
        return (weights[place + 1] * gap).sum() / max(len(gap), 1)

    def _updated(self, histogram: Tensor, number: Tensor) -> Tensor:
        """The running histogram after this batch; the old one if the batch has no triplets."""
        old = self.histogram.to(histogram.device)
        momentum = torch.where(old.sum() == 0, 1.0, self.momentum)
        new = (1.0 - momentum) * old + momentum * histogram
        new = torch.where((number > 0) & new.isfinite().all(), new / new.sum().clamp(min=1e-300), old)
        if self.training and self.histogram.device == new.device:
            self.histogram.copy_(new)  # which a CUDA graph knows by its address
        elif self.training:
            self.histogram = new
        return new

    def _of_list(self, batch) -> Tensor:
        a, p, n = Triplets.of(batch)
        both = values(self.distance, batch.x, batch.y, Pairs(torch.cat((a, a)), torch.cat((p, n))))
        return both[: len(a)] - both[len(a) :]

    def _of_rows(self, batch) -> Tensor:
        """Each row's own distance to its partner less that to the nearest other."""
        if batch.same or len(batch.x) != len(batch.y):
            given = "None or embeddings" if batch.same else tuple(batch.y.shape)
            raise ValueError(f"ref_emb: expected shape {tuple(batch.x.shape)}, since there are no labels, got {given}")
        there, back = copy.copy(batch), copy.copy(batch)
        back.x, back.y = batch.y, batch.x
        own = self.distance.rowwise(batch.x, batch.y)
        nearest = []
        for side in (there, back):
            side.targets = side.ref_labels = torch.arange(len(batch.x), device=batch.x.device)
            nearest.append(extremes_of(side, self.distance, self.backend).smallest_negative)
        return own - torch.minimum(*nearest) if len(own) > 1 else own[:0]
