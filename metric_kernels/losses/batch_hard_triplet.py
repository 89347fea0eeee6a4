from __future__ import annotations

import torch

from metric_kernels.core import queued
from metric_kernels.distances import LpDistance
from metric_kernels.extremes import FORMULA, extremes_of
from metric_kernels.losses._base import Loss
from metric_kernels.ordered import SLOPES
from metric_kernels.reducers import MeanReducer

LONE_ANCHORS = ("skip", "zero")


class BatchHardTripletLoss(Loss):
    """Triplet loss of the farthest positive and the nearest negative of each anchor ("batch hard").

    ``mean_a [max_p d_ap - min_n d_an + margin]_+`` over the anchors that have both. With a similarity it is the least similar
    positive, the most similar negative, and the difference changes sign.

    Hermans, Beyer and Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017.

    | same as | here |
    |---|---|
    | Hermans et al., soft margin | ``margin=0, soft_margin=True`` |
    | BatchHardMiner with TripletMarginLoss of pytorch-metric-learning | ``reducer=AvgNonZeroReducer()`` |
    | sentence-transformers BatchHardTripletLoss(margin=5) | ``margin=5, lone_anchors="zero"``, un-normalised LpDistance |
    | OML TripletLoss with HardTripletsMiner | the same, ``soft_margin=True`` if its margin is None |

    Args:
        margin: added to the difference of distances.
        soft_margin: ``log(1 + e^t)`` instead of ``[t]_+``.
        lone_anchors: "skip" anchors without a positive, or take the distance to themselves, "zero", for that of a positive (1
            for the cosine).
        **kwargs: ``distance`` (LpDistance), ``reducer`` (MeanReducer, over anchors), and the others of
            :class:`~metric_kernels.losses.Loss`.

    Of equal distances the first one has the gradient. Anchors without a negative never count; without any that count the
    loss is 0. An ``indices_tuple`` raises ValueError: it names the triplets itself, see :class:`TripletMarginLoss`.

    Raises:
        ValueError: an unknown ``lone_anchors``, or "zero" with a reference set.

    Example:
        >>> import torch
        >>> from metric_kernels.losses import BatchHardTripletLoss
        >>> loss = BatchHardTripletLoss(margin=0.5)
        >>> loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(0.5000)
    """

    default_distance = LpDistance
    default_reducer = MeanReducer
    kernels = FORMULA

    def __init__(self, margin: float = 0.05, soft_margin: bool = False, lone_anchors: str = "skip", **kwargs):
        super().__init__(**kwargs)
        if lone_anchors not in LONE_ANCHORS:
            raise ValueError(f"lone_anchors: expected one of {', '.join(LONE_ANCHORS)}, got {lone_anchors!r}")
        self.margin = margin
        self.soft_margin = soft_margin
        self.lone_anchors = lone_anchors

    def _evaluate(self, batch):
        self._refuse(batch, reference=False, listed=True)
        losses, present, positives, negatives = self._hardest(batch)
        (reducer,) = self._reducers()
        if reducer.needs_each:
            triplets = tuple(t[present] for t in (batch.rows(), positives, negatives))
            return self._each({"loss": (losses[present], triplets, "triplet")}, [reducer], batch)
        counted = present & reducer.inside(losses)
        # A NaN has no place in an order, and yet must reach the loss.
        losses = torch.where(counted | losses.isnan(), losses, 0.0)
        return reducer.of_pairs(losses.double(), counted.double(), batch.labels)

    def _hardest(self, batch):
        """The loss of each anchor, whether it counts, and the columns of its positive and its negative."""
        most, least, top, bottom, index = extremes_of(batch, self.distance, self.backend)
        far, near = (most, bottom) if self.sign > 0 else (least, top)
        positives, negatives = (index[0], index[3]) if self.sign > 0 else (index[1], index[2])
        present = negatives >= 0
        if self.lone_anchors == "skip":
            present = present & (positives >= 0)
        else:
            if not batch.same:
                raise ValueError("lone_anchors: expected 'skip' with a reference set, where no point is its own, got 'zero'")
            alone = positives < 0
            if queued(alone) or alone.any():
                far = torch.where(alone, self.distance.rowwise(batch.x, batch.x), far)
            positives = torch.where(alone, batch.rows(), positives)
        # What is not there is infinite, and may be NaN all the same.
        far, near = (torch.where(present | t.isnan(), t, 0.0) for t in (far, near))
        gap = self.sign * (far - near) + self._number("margin")
        return SLOPES["softplus" if self.soft_margin else "hinge"][0](gap), present, positives, negatives
