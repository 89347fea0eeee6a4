from metric_kernels import fn
from metric_kernels.distances import LpDistance
from metric_kernels.language import count, lse, total
from metric_kernels.losses._pair import PairLoss


class LiftedStructureLoss(PairLoss):
    """Lifted structured loss: each positive pair against the negatives of both its points.

    ``J_ap = log( sum_{n in N(a)} e^{neg_margin - d_an} + sum_{n in N(p)} e^{neg_margin - d_pn} ) + d_ap - pos_margin`` and
    ``l_ap = [J_ap]_+^2 / 2``, mean over ordered positive pairs.

    Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016. With a similarity, differences
    change sign.

    Args:
        neg_margin: margin of negative distances.
        pos_margin: subtracted from positive distances.
        **kwargs: ``distance`` (LpDistance), ``reducer`` (MeanReducer), and the others of
            :class:`~metric_kernels.losses.PairLoss`.

    If neither point of a pair has a negative, the logarithm counts as 0. A batch without positive pairs or without negative
    pairs has loss 0. With a reference set, the negatives of a reference point p are the embeddings of other classes, as if
    the two sets were one batch; pytorch-metric-learning takes p for an index into the embeddings there.

    Example:
        >>> import torch
        >>> from metric_kernels.losses import LiftedStructureLoss
        >>> loss = LiftedStructureLoss()
        >>> loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(2.8472)
    """

    default_distance = LpDistance
    counts_repetitions = True
    required = 0

    def __init__(self, neg_margin: float = 1, pos_margin: float = 0, **kwargs):
        super().__init__(**kwargs)
        self.neg_margin = neg_margin
        self.pos_margin = pos_margin

    class Negatives:
        stats = (lse("neg"),)

        def pair(v, sign, neg_margin):
            return (sign * (neg_margin - v),)

        def dpair(v, sign, neg_margin):
            return (-sign,)

    class Positives:
        stats = (total("pos"), count("pos"))

        def pair(v, row0, col0, sign, pos_margin, low0, high0):
            none = fn.maximum(row0, col0) < -1.0e30
            lifted = fn.relu(fn.where(none, 0.0, fn.logaddexp(row0, col0)) + sign * (v - pos_margin))
            loss = 0.5 * lifted * lifted
            counted = fn.within(loss, low0, high0)
            return counted * loss, counted

        def dpair(v, row0, col0, sign, pos_margin, low0, high0):
            none = fn.maximum(row0, col0) < -1.0e30
            lifted = fn.relu(fn.where(none, 0.0, fn.logaddexp(row0, col0)) + sign * (v - pos_margin))
            return fn.within(0.5 * lifted * lifted, low0, high0) * lifted * sign, 0.0

        def drow(v, row0, col0, sign, pos_margin, low0, high0):
            none = fn.maximum(row0, col0) < -1.0e30
            lifted = fn.relu(fn.where(none, 0.0, fn.logaddexp(row0, col0)) + sign * (v - pos_margin))
            share = fn.where(none, 0.0, fn.sigmoid(row0 - col0))
            return fn.within(0.5 * lifted * lifted, low0, high0) * lifted * share, 0.0

        def dcol(v, row0, col0, sign, pos_margin, low0, high0):
            none = fn.maximum(row0, col0) < -1.0e30
            lifted = fn.relu(fn.where(none, 0.0, fn.logaddexp(row0, col0)) + sign * (v - pos_margin))
            share = fn.where(none, 0.0, fn.sigmoid(col0 - row0))
            return fn.within(0.5 * lifted * lifted, low0, high0) * lifted * share, 0.0
