from metric_kernels import fn
from metric_kernels.distances import CosineSimilarity
from metric_kernels.language import lse
from metric_kernels.losses._pair import PairLoss
from metric_kernels.reducers import AvgNonZeroReducer


class CircleLoss(PairLoss):
    """Circle loss on class labels.

    ``l_a = log(1 + sum_p e^{-gamma [1+m-s_ap]_+ (s_ap - 1 + m)} sum_n e^{gamma [s_an+m]_+ (s_an - m)})``, mean over the
    anchors with a loss above 0. The weights in square brackets are constants for differentiation.

    Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", CVPR 2020.

    Args:
        m: relaxation factor; 0.4 for fine-grained retrieval, 0.25 for faces and re-identification.
        gamma: scale of the exponents; 80, 256 and 128 likewise.
        **kwargs: ``distance`` (CosineSimilarity only), ``reducer`` (AvgNonZeroReducer), and the others of
            :class:`~metric_kernels.losses.PairLoss`.

    Anchors without positives or without negatives have loss 0 and are left out of the mean.

    Example:
        >>> import torch
        >>> from metric_kernels.losses import CircleLoss
        >>> loss = CircleLoss(gamma=1)
        >>> loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(1.5989)
    """

    default_reducer = AvgNonZeroReducer
    magnifies = True  # by gamma

    def __init__(self, m: float = 0.4, gamma: float = 80, **kwargs):
        super().__init__(**kwargs)
        if not self.distance.is_a(CosineSimilarity):
            raise AssertionError(f"distance: CircleLoss expects CosineSimilarity, got {type(self.distance).__name__}")
        self.m = m
        self.gamma = gamma

    # In Python, and so in double precision: gamma turns an error in the last place of 1 - m into one of the gradient.
    op = property(lambda self: 1 + self.m)
    on = property(lambda self: -self.m)
    delta_p = property(lambda self: 1 - self.m)
    delta_n = property(lambda self: self.m)

    stats = (lse("pos"), lse("neg"))

    def pair(v, gamma, op, on, delta_p, delta_n):
        toward_positive = gamma * fn.stop(fn.relu(op - v)) * (delta_p - v)
        toward_negative = gamma * fn.stop(fn.relu(v - on)) * (v - delta_n)
        return toward_positive, toward_negative

    def dpair(v, gamma, op, on, delta_p, delta_n):
        return -gamma * fn.relu(op - v), gamma * fn.relu(v - on)

    def row(positives, negatives):
        return fn.softplus(positives + negatives)
