from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from metric_kernels.binned import PairHistogram
from metric_kernels.checks import whole_number
from metric_kernels.distances import LpDistance
from metric_kernels.losses._base import Loss, check_unit_distance
from metric_kernels.terms import evaluate, running_sums


class FastAPLoss(Loss):
    """FastAP: 1 less the average precision of each anchor, from histograms of its distances.

    ``l_i = 1 - (1 / K_i) sum_b h+_b H+_b / H_b`` with soft histograms h+ and h- of the squared distances of the K_i positives
    and of the negatives of i, ``H+_b`` the sum of h+ and ``H_b`` that of both up to bin b; mean over anchors with a positive.

    Cakir, He, Xia, Kulis and Sclaroff, "Deep Metric Learning to Rank", CVPR 2019.

    Args:
        num_bins: number of bins over the range of the distance.
        **kwargs: ``distance`` (LpDistance(power=2); normalised, p=2), ``reducer`` (MeanReducer, over anchors), and the others
            of :class:`~metric_kernels.losses.Loss`.

    ``indices_tuple`` weighs the anchors: each by how often it occurs there, over the most frequent. Without a positive pair
    the loss is 0. A reference set raises ValueError.

    Raises:
        AssertionError: another distance, as in pytorch-metric-learning.
        ValueError: no labels, or fewer than one bin.

    Example:
        >>> import torch
        >>> from metric_kernels.losses import FastAPLoss
        >>> loss = FastAPLoss()
        >>> loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(0.6667)
    """

    default_distance = partial(LpDistance, power=2)
    kernels = "binned"

    def __init__(self, num_bins: int = 10, **kwargs):
        super().__init__(**kwargs)
        check_unit_distance(self)
        self.num_bins = whole_number("num_bins", num_bins)

    def _evaluate(self, batch):
        self._refuse(batch)
        if batch.labels is None:
            raise ValueError("labels: FastAPLoss expects them, got None")
        step = 2.0**self.distance.power / self.num_bins
        found, _ = evaluate(PairHistogram(0.0, step, self.num_bins + 1, True), batch, self.distance, self.backend)
        positive, negative = found.unbind(1)
        ranked, total = running_sums(positive), running_sums(positive + negative)
        # A bin without a positive adds nothing; total is not 0 where there is one.
        precision = torch.where(positive == 0, 0.0, positive * ranked / torch.where(positive == 0, 1.0, total))
        number = batch.numbers()[0]
        losses = (1.0 - precision.sum(1) / number.clamp(min=1)) * _weights(batch)
        return self._anchors(losses, number > 0, batch)


def _weights(batch) -> Tensor | float:
    """How often each point is listed, over the most frequent one."""
    if batch.pairs is None:
        return 1.0
    anchors = [batch.pairs[0].anchors] if batch.listed == 3 else [p.anchors for p in batch.pairs]
    number = torch.cat([*anchors, *(p.others for p in batch.pairs)]).bincount(minlength=len(batch.x)).double()
    return torch.where(number.max() > 0, number / number.max().clamp(min=1.0), 1.0)
