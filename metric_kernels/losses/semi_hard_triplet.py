from __future__ import annotations

import torch

from metric_kernels.distances import LpDistance
from metric_kernels.losses._triplet import TripletLoss
from metric_kernels.ordered import SLOPES, SemiHardTriplets
from metric_kernels.reducers import MeanReducer
from metric_kernels.terms import evaluate


class SemiHardTripletLoss(TripletLoss):
    """Triplet loss with one negative for each positive pair: the nearest one that is farther than the positive.

    ``mean [d_ap - d_an + margin]_+`` over all (a, p), where n is the nearest negative with ``d_an > d_ap``, or else the
    farthest negative; the first of equals. With a similarity the order and the difference are reversed.

    Schroff, Kalenichenko and Philbin, "FaceNet: A Unified Embedding for Face Recognition and Clustering", CVPR 2015. The
    same as BatchSemiHardTripletLoss of sentence-transformers (``margin=5, distance=LpDistance(normalize_embeddings=False)``).

    Args:
        margin: added to the difference of distances.
        soft_margin: ``log(1 + e^t)`` instead of ``[t]_+``.
        **kwargs: ``distance`` (LpDistance), ``reducer`` (MeanReducer, over the positive pairs of anchors with a negative), and
            the others of :class:`~metric_kernels.losses.Loss`.

    The choice of negatives has no gradient. Without triplets the loss is 0. An ``indices_tuple`` raises ValueError: it names
    the triplets itself, see :class:`TripletMarginLoss`.

    Example:
        >>> import torch
        >>> from metric_kernels.losses import SemiHardTripletLoss
        >>> loss = SemiHardTripletLoss(margin=0.5)
        >>> loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(0.5000)
    """

    default_distance = LpDistance
    default_reducer = MeanReducer
    kernels = "ordered"

    def __init__(self, margin: float = 0.2, soft_margin: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.margin = margin
        self.soft_margin = soft_margin

    def _evaluate(self, batch):
        self._refuse(batch, reference=False, listed=True)
        return super()._evaluate(batch)

    @property
    def shape(self) -> str:
        return "softplus" if self.soft_margin else "hinge"

    def _term(self, low, high):
        return SemiHardTriplets(self.shape, self.sign, low, high, self._number("margin"))

    def _sums(self, batch, reducer):
        window = reducer.window
        values, counts = evaluate(self._term(max(window[0], -1.0), window[1]), batch, self.distance, self.backend)
        return values[0], counts[0]

    def _triplets(self, batch):
        return self._term(0.0, torch.inf).listed(batch, self.distance, self.backend)

    def _costs(self, batch, triplets):
        positive, negative = self._values(batch, triplets)
        return SLOPES[self.shape][0](self.sign * (positive - negative) + self._number("margin"))
