from __future__ import annotations

from metric_kernels.distances import LpDistance
from metric_kernels.losses._base import Loss, check_unanchored
from metric_kernels.quadruplets import NEGATIVES
from metric_kernels.reducers import AvgNonZeroReducer
from metric_kernels.windows import quadruplet_sums


class QuadrupletMarginLoss(Loss):
    """Hinge over every positive pair with every negative pair of a batch.

    ``mean+ [d_ij - d_kl + margin]_+`` over unordered positive pairs (i, j) and unordered negative pairs (k, l), the mean being
    over the quadruplets with a loss above 0. With a similarity the difference changes sign.

    The quadruplets of Ustinova and Lempitsky, "Learning Deep Embeddings with Histogram Loss", NeurIPS 2016 ("disjoint"), and
    of Chen et al., "Beyond Triplet Loss", CVPR 2017 ("other_class"). All O(B^4) of them are summed exactly in O(B^2 log B)
    time: negative pairs are ranked among the sorted positive pairs, and what a negative pair may not meet is subtracted.

    Args:
        margin: added to the difference of distances.
        negatives: "disjoint", negative pairs that share no point with the positive pair; "other_class", those without a point
            of its class, for which a batch needs three classes; or "all".
        **kwargs: ``distance`` (LpDistance), ``reducer`` (AvgNonZeroReducer; any mean or sum of the losses inside a window), and
            the others of :class:`~metric_kernels.losses.Loss`.

    A loss that equals the upper bound of a ThresholdReducer is inside here. Without quadruplets the loss is 0. Listed
    quadruplets are what :class:`QuadrupletLoss` takes; an ``indices_tuple`` or a reference set raises ValueError here.

    Raises:
        ValueError: unknown ``negatives``, a distance that is not symmetric, or a reducer that needs an anchor.

    Example:
        >>> import torch
        >>> from metric_kernels.losses import QuadrupletMarginLoss
        >>> loss = QuadrupletMarginLoss(margin=0.5)
        >>> loss(torch.eye(6), torch.tensor([0, 0, 1, 1, 2, 2]))
        tensor(0.5000)
    """

    default_distance = LpDistance
    default_reducer = AvgNonZeroReducer
    kernels = "ordered"

    def __init__(self, margin: float = 0.2, negatives: str = "disjoint", **kwargs):
        super().__init__(**kwargs)
        if negatives not in NEGATIVES:
            raise ValueError(f"negatives: expected one of {', '.join(NEGATIVES)}, got {negatives!r}")
        self.margin = margin
        self.negatives = negatives

    def _evaluate(self, batch):
        self._refuse(batch, listed=True)
        (reducer,) = self._reducers()
        check_unanchored(reducer)
        self.distance.check_symmetric(type(self).__name__)
        sums = quadruplet_sums(reducer.window, self._number("margin"), self.negatives, batch, self.distance, self.backend)
        return reducer.of_pairs(sums.totals[None], sums.counts[None].double(), batch.labels)
