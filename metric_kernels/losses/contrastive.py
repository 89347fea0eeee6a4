from metric_kernels import fn
from metric_kernels.distances import LpDistance
from metric_kernels.language import count, total
from metric_kernels.losses._pair import PairLoss
from metric_kernels.reducers import AvgNonZeroReducer


class ContrastiveLoss(PairLoss):
    """Contrastive loss: positives closer than one margin, negatives farther than another.

    ``mean+ [d_ap - pos_margin]_+  +  mean+ [neg_margin - d_an]_+``, each mean over the pairs with a loss above 0.

    With a similarity the differences change sign, ``[pos_margin - s]_+`` and ``[s - neg_margin]_+``, and 1 and 0 are the
    natural margins. Hadsell, Chopra and LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006, in
    the linear form of pytorch-metric-learning.

    Args:
        pos_margin: distance below which a positive pair costs nothing.
        neg_margin: distance above which a negative pair costs nothing.
        **kwargs: ``distance`` (LpDistance), ``reducer`` (AvgNonZeroReducer, applied to "pos_loss" and "neg_loss"
            separately and added), and the others of :class:`~metric_kernels.losses.PairLoss`.

    A side without pairs adds 0. Pairs at distance 0 have a zero subgradient.

    Example:
        >>> import torch
        >>> from metric_kernels.losses import ContrastiveLoss
        >>> loss = ContrastiveLoss()
        >>> loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(1.4142)
    """

    default_distance = LpDistance
    default_reducer = AvgNonZeroReducer
    sub_losses = ("pos_loss", "neg_loss")
    counts_repetitions = True

    def __init__(self, pos_margin: float = 0, neg_margin: float = 1, **kwargs):
        super().__init__(**kwargs)
        self.pos_margin = pos_margin
        self.neg_margin = neg_margin

    stats = (total("pos"), count("pos"), total("neg"), count("neg"))

    def pair(v, sign, pos_margin, neg_margin, low0, high0, low1, high1):
        far = fn.relu(sign * (v - pos_margin))
        near = fn.relu(sign * (neg_margin - v))
        counted, uncounted = fn.within(far, low0, high0), fn.within(near, low1, high1)
        return counted * far, counted, uncounted * near, uncounted

    def dpair(v, sign, pos_margin, neg_margin, low0, high0, low1, high1):
        far, near = sign * (v - pos_margin), sign * (neg_margin - v)
        far_slope = fn.step(far) * fn.within(fn.relu(far), low0, high0)
        near_slope = fn.step(near) * fn.within(fn.relu(near), low1, high1)
        return sign * far_slope, 0.0, -sign * near_slope, 0.0
